package daemon

import (
	"slices"
	"time"

	"github.com/thaw-project/thaw/internal/daemon/api"
)

// told takes what thaw run says of its container, and counts the phases that are new.
func (d *Daemon) told(m *mounted, t api.Times) {
	m.tell(t)
	m.mu.Lock()
	before := len(m.containerPhases())
	m.times = t
	now := m.containerPhases()
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
