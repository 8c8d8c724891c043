package daemon

import (
	"cmp"
	"slices"
	"time"

	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/spans"
)

// followMost is how long a start is followed: what is not over by then is not in its
// trace.
const followMost = 10 * time.Minute

// spansPatience is how long the daemon waits at its end for traces to be sent. An
// upgrade has readers who wait for the next one.
func spansPatience(upgrade bool) time.Duration {
	if upgrade {
		return upgradePatience
	}
	return 3 * time.Second
}

// followStart sends a start's trace when the start is over: complete and, where a
// container tells, started and ready; or the mount is gone, or the daemon ends.
func (d *Daemon) followStart(m *mounted) {
	timeout := time.NewTimer(followMost)
	defer timeout.Stop()
	completed := m.completed
	for over := false; !over; {
		m.mu.Lock()
		if m.news == nil {
			m.news = make(chan struct{})
		}
		news, t := m.news, m.times
		m.mu.Unlock()
		if completed == nil && (!m.Writable || t.Started > 0 && (t.Ready > 0 || !t.ReadyComes)) {
			break
		}
		select {
		case <-news:
		case <-completed:
			completed = nil
		case <-m.gone:
			over = true
		case <-timeout.C:
			over = true
		case <-d.ctx.Done():
			over = true
		}
	}
	d.spans.Send(m.start())
}

// start describes a mount's start for its trace.
func (m *mounted) start() spans.Start {
	s := m.lastStats()
	m.mu.Lock()
	defer m.mu.Unlock()
	out := spans.Start{Image: m.img.ref.String(), Manifest: m.Manifest.String(), Mount: m.ID, Mode: m.Mode, Index: m.Origin, Begun: m.asked,
		Waits: s.Waits, WaitTotal: s.WaitTotal, NetworkBytes: s.NetworkBytes, Requests: s.Requests, Error: s.Error,
		Traceparent: m.Request.Traceparent}
	if !m.times.Begun.IsZero() {
		out.Begun = m.times.Begun
	}
	for _, f := range m.Fallbacks {
		out.Reasons = append(out.Reasons, string(f.Reason))
	}
	out.Phases = spanPhases(m.phases())
	return out
}

func spanPhases(phases []api.Phase) []spans.Phase {
	var all []spans.Phase
	for _, p := range phases {
		all = append(all, spans.Phase{Name: p.Name, Start: p.Start, End: p.End, Detail: p.Detail})
	}
	return all
}

// startFailed sends the trace of a start of which nothing is there.
func (d *Daemon) startFailed(req api.MountRequest, t *task, begun time.Time, err error) {
	d.spans.Send(spans.Start{Image: req.Image, Mode: cmp.Or(req.Mode, d.mode), Begun: begun, Phases: spanPhases(t.phases), Error: err.Error(),
		Requests: t.counter.Requests.Load(), NetworkBytes: t.counter.BytesRead.Load(), Traceparent: req.Traceparent})
}

// told takes what thaw run says of its container, and counts the phases that are new.
func (d *Daemon) told(m *mounted, t api.Times) {
	m.tell(t)
	m.mu.Lock()
	before := len(m.containerPhases())
	m.times = t
	now := m.containerPhases()
	d.countStart(m)
	if m.news != nil {
		close(m.news)
		m.news = make(chan struct{})
	}
	m.mu.Unlock()
	for _, p := range now[min(before, len(now)):] {
		d.counts.phase(p.Name, p.End.Sub(p.Start))
	}
}

// mountedAt is when the daemon's part of a start was over.
func (m *mounted) mountedAt() time.Time {
	if n := len(m.Committed); n > 0 {
		return m.Committed[n-1].End
	}
	return m.Created
}

// containerPhases are those that thaw run has told of. Called with m.mu held.
func (m *mounted) containerPhases() []api.Phase {
	var all []api.Phase
	last := m.mountedAt()
	for _, p := range []struct {
		name string
		at   time.Duration
	}{{"create", m.times.Created}, {"start", m.times.Started}, {"ready", m.times.Ready}} {
		if p.at <= 0 || m.times.Begun.IsZero() {
			break
		}
		end := m.times.Begun.Add(p.at)
		all = append(all, api.Phase{Name: p.name, Start: last, End: end})
		last = end
	}
	return all
}

// completion is the last phase of a start, from mounted to complete, which may be
// over before the container is ready. Called with m.mu held, once m is complete.
func (m *mounted) completion() api.Phase {
	at := m.mountedAt()
	if m.doneAt.Before(at) { // it was complete before
		return api.Phase{Name: "complete", Start: at, End: at}
	}
	return api.Phase{Name: "complete", Start: at, End: m.doneAt}
}

// phases are all of a mount's start that are over. Called with m.mu held.
func (m *mounted) phases() []api.Phase {
	all := append(slices.Clone(m.Committed), m.containerPhases()...)
	if m.complete {
		all = append(all, m.completion())
	}
	return all
}
