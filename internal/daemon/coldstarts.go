package daemon

import (
	"strings"
	"time"
	"unicode"

	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/emit"
	"github.com/thaw-project/thaw/internal/oci"
	"github.com/thaw-project/thaw/internal/profile"
)

// serviceLabel names an image's service in metrics: a label in its config.
const serviceLabel = "thaw.dev/service"

// maxServiceBytes bounds what the label may say.
const maxServiceBytes = 128

// serviceOf is what an image's starts are counted under: its label, or its repository.
func serviceOf(ref oci.Reference, img *oci.Image) string {
	if img != nil {
		name := img.Config.Config.Labels[serviceLabel]
		if name != "" && len(name) <= maxServiceBytes && !strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar }) {
			return name
		}
	}
	return emit.ServiceName(ref.String())
}

// startMode is how an image came, in the words of package profile.
func (m *mounted) startMode() string {
	switch {
	case m.Mode == api.ModeEager:
		return "eager"
	case m.Origin == originBuilt:
		return "no-index"
	case m.bundle != nil:
		return "lazy+bundle"
	}
	return "lazy"
}

// startCold is what of an image was here, if that was nothing. Else nobody looked at what
// of it was in the page cache.
func (m *mounted) startCold() string {
	if m.foundBytes == 0 {
		return profile.ColdL0
	}
	return ""
}

// coldStart is a container's start as far as it was told, for metrics. What goes on
// between its exec and its first good answer the daemon does not know. Called with
// m.mu held.
func (m *mounted) coldStart() emit.Start {
	s := emit.Start{Service: serviceOf(m.img.ref, m.img.oci), Mode: m.startMode(), Cold: m.startCold()}
	add := func(phase string, from, to time.Time) {
		s.Phases = append(s.Phases, emit.Phase{Name: phase, Ms: max(0, float64(to.Sub(from))/float64(time.Millisecond))})
	}
	ready := m.mountedAt()
	if len(m.Committed) > 0 {
		begun := m.Committed[0].Start
		if !m.times.Begun.IsZero() {
			add(profile.PhaseQueue, m.times.Begun, begun)
		}
		add(profile.PhasePull, begun, ready)
	}
	if m.times.Started > 0 && !m.times.Begun.IsZero() {
		add(profile.PhaseRuntimeInit, ready, m.times.Begun.Add(m.times.Started))
	}
	if m.times.Ready > 0 {
		ms := float64(m.times.Ready) / float64(time.Millisecond)
		s.DurationMs = &ms
	}
	return s
}

// countStart counts a container's start, once, when it is over: ready, or started, if
// nobody will tell that it is ready. Called with m.mu held.
func (d *Daemon) countStart(m *mounted) {
	if m.counted || !m.Writable || m.times.Ready == 0 && (m.times.ReadyComes || m.times.Started == 0) {
		return
	}
	m.counted = true
	d.counts.starts.Observe(m.coldStart())
}

// countEnd counts a container that ended before it was ready as a start that failed.
// Called with m.mu held.
func (d *Daemon) countEnd(m *mounted) {
	if m.counted || !m.Writable || m.times.Begun.IsZero() { // nothing was told, or another daemon was, that is no more
		return
	}
	m.counted = true
	s := m.coldStart()
	d.counts.starts.Observe(emit.Start{Service: s.Service, Mode: s.Mode, Cold: s.Cold, Error: "it ended before it was ready"})
}

// countFailure counts a container of which there is no mount.
func (d *Daemon) countFailure(req api.MountRequest, err error) {
	ref, bad := oci.ParseReference(req.Image)
	if bad != nil || req.Dir != "" {
		return
	}
	mode := ""
	if req.Mode == api.ModeEager {
		mode = "eager"
	}
	d.counts.starts.Observe(emit.Start{Service: serviceOf(ref, nil), Mode: mode, Error: err.Error()})
}

// countHydration counts that an image which was not here when a container was started
// is. Called with m.mu held.
func (d *Daemon) countHydration(m *mounted, took time.Duration) {
	if m.Writable && took > 0 {
		d.counts.starts.ObservePhase(serviceOf(m.img.ref, m.img.oci), emit.Phase{Name: profile.PhaseHydration, Ms: float64(took) / float64(time.Millisecond)})
	}
}
