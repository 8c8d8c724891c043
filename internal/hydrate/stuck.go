package hydrate

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/thaw-project/thaw/internal/registry"
)

const (
	// stuckAfter is how long a run that someone waits for may bring nothing before
	// it is looked at. Its request may have been swallowed by an outage that is over.
	stuckAfter   = 3 * time.Second
	askingBudget = 2500 * time.Millisecond
)

// errStuck ends a run whose request gets no bytes although its source gives some
// to others.
var errStuck = errors.New("no more bytes came for a request, although the source gives some")

// unstick looks at a run that someone waits for: where it got nothing for a while
// the source is asked for a single byte, and if that comes the run is ended, to be
// tried again. A source that is merely slow gives that byte late as well.
func (l *Layer) unstick(r *run) {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	if r.cancel == nil || r.asking || l.closed || l.s.closed || r.quietFor() < stuckAfter {
		return
	}
	r.asking = true
	l.s.wg.Add(1)
	l.wg.Go(func() {
		defer l.s.wg.Done()
		err := l.ask(l.c.Spans[r.first].OffsetCompressed)
		l.s.mu.Lock()
		defer l.s.mu.Unlock()
		r.asking = false
		if err == nil && r.cancel != nil && r.quietFor() >= stuckAfter {
			l.windows.forgetPending()
			r.cancel(errStuck)
		}
	})
}

// ask fetches one byte.
func (l *Layer) ask(off int64) error {
	ctx, cancel := context.WithTimeout(registry.WithPatience(l.ctx, 0, 0), askingBudget)
	defer cancel()
	body, err := l.c.Data.ReadRange(ctx, off, 1)
	if err != nil {
		return err
	}
	defer body.Close()
	_, err = io.ReadFull(body, make([]byte, 1))
	return err
}

// quietFor is how long a run has got no byte.
func (r *run) quietFor() time.Duration { return time.Since(time.Unix(0, r.progress.Load())) }

// begin notes how a run's transfer can be ended, and that it has just begun.
func (l *Layer) begin(r *run, cancel context.CancelCauseFunc) {
	r.progress.Store(time.Now().UnixNano())
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	r.cancel = cancel
}
