package measure

import (
	"context"
	"time"

	"github.com/thaw-project/thaw/internal/profile"
)

// Ask makes each route's requests of a container that is ready, repeat of each, one after
// the other, and adds them to its run, which began at zero of the monotonic clock. One
// that fails is in the run; the error is the context's.
func (p Prober) Ask(ctx context.Context, run *profile.Run, zero time.Duration, routes []Route, repeat int) error {
	for _, route := range routes {
		for n := 1; n <= repeat; n++ {
			begun, ended, status, err := p.Request(ctx, route.Method, route.url(p.Target))
			if ctx.Err() != nil {
				return ctx.Err()
			}
			q := profile.Request{Route: route.String(), N: n, StartMs: since(zero, begun), EndMs: since(zero, ended), Status: status}
			if err != nil {
				q.Error = err.Error()
			}
			run.Requests = append(run.Requests, q)
			if len(run.Requests) == 1 {
				run.Events = append(run.Events, profile.Event{Name: profile.EventFirstRequest, AtMs: q.EndMs, Source: profile.SignalProbe, Confidence: profile.Measured, Detail: q.Route})
			}
		}
	}
	if n := len(run.Requests); n > 0 {
		run.Events = append(run.Events, profile.Event{Name: profile.EventSteady, AtMs: run.Requests[n-1].EndMs, Source: profile.SignalProbe, Confidence: profile.Measured})
	}
	return nil
}

// FillBytes adds to a run's reads how many bytes of each file the page cache has, of the
// overlay that is mounted at dir; the error is why that is not known.
func FillBytes(run *profile.Run, dir string) error {
	p := newPages(dir)
	paths := make([]string, 0, len(run.Reads))
	for _, r := range run.Reads {
		paths = append(paths, r.Path)
	}
	p.look(paths)
	for i := range run.Reads {
		run.Reads[i].Bytes = p.bytes[run.Reads[i].Path]
	}
	return p.err
}
