package daemon

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/emit"
	"github.com/thaw-project/thaw/internal/metrics"
	"github.com/thaw-project/thaw/internal/profile"
)

// starting is a container that is mounted: asked for at a time, mounted 20 to 120 ms later.
func starting(t *testing.T) *mounted {
	t.Helper()
	img, _, _ := someImage(t, "a")
	begun := time.Date(2026, 3, 2, 9, 30, 0, 0, time.UTC)
	m := newMounted(t.TempDir())
	m.img = img
	m.record = record{ID: "a", Mode: api.ModeFanotify, Origin: originRegistry, Writable: true, Committed: []api.Phase{
		{Name: "resolve", Start: begun.Add(20 * time.Millisecond), End: begun.Add(30 * time.Millisecond)}, {Name: "mount", Start: begun.Add(30 * time.Millisecond), End: begun.Add(120 * time.Millisecond)}}}
	m.times.Begun = begun
	return m
}

// counted are the sums of all series of starts in milliseconds, and the counters.
func countedStarts(d *Daemon) map[string]float64 {
	var set metrics.Set
	d.counts.starts.Put(&set)
	all := map[string]float64{}
	for _, f := range set.Families() {
		for _, m := range f.Metric {
			var labels []string
			for _, l := range m.Label {
				labels = append(labels, l.GetValue())
			}
			v := m.GetCounter().GetValue()
			if h := m.Histogram; h != nil {
				v = h.GetSampleSum() * 1000
			}
			if v != 0 {
				all[f.GetName()+" "+strings.Join(labels, " ")] = v
			}
		}
	}
	return all
}

// TestCountStart: a start is counted once, when it is ready or, where nobody tells, when it is
// started; and as one that failed when it ends before.
func TestCountStart(t *testing.T) {
	phases := map[string]float64{"coldstart_phase_seconds team/app queue": 20, "coldstart_phase_seconds team/app image_pull": 100, "coldstart_phase_seconds team/app runtime_init": 30}
	with := func(more map[string]float64) map[string]float64 {
		for k, v := range phases {
			more[k] = v
		}
		return more
	}
	created, started, ready := 130*time.Millisecond, 150*time.Millisecond, 480*time.Millisecond
	for name, c := range map[string]struct {
		change func(m *mounted)
		times  []api.Times
		end    bool
		want   map[string]float64
	}{
		"ready": {nil, []api.Times{{ReadyComes: true, Created: created}, {ReadyComes: true, Created: created, Started: started}, {ReadyComes: true, Created: created, Started: started, Ready: ready},
			{ReadyComes: true, Created: created, Started: started, Ready: ready}}, true,
			with(map[string]float64{"coldstart_seconds team/app": 480, "coldstart_starts_total team/app lazy L0": 1})},
		"nobody tells": {func(m *mounted) { m.foundBytes = 1 }, []api.Times{{Created: created}, {Created: created, Started: started}}, true,
			with(map[string]float64{"coldstart_starts_total team/app lazy unknown": 1})},
		"ends before": {func(m *mounted) { m.Origin = originBuilt }, []api.Times{{ReadyComes: true, Created: created}, {ReadyComes: true, Created: created, Started: started}}, true,
			map[string]float64{"coldstart_starts_total team/app no-index L0": 1, "coldstart_failures_total team/app": 1}},
		"of another daemon": {func(m *mounted) { m.times = api.Times{} }, nil, true, map[string]float64{}},
		"under way":         {nil, []api.Times{{ReadyComes: true, Created: created, Started: started}}, false, map[string]float64{}},
		"a directory":       {func(m *mounted) { m.Writable = false }, []api.Times{{Created: created, Started: started, Ready: ready}}, true, map[string]float64{}},
		"eager, by its label": {func(m *mounted) {
			m.Mode = api.ModeEager
			m.img.oci.Config.Config.Labels = map[string]string{serviceLabel: "shop"}
		}, []api.Times{{Created: created, Started: started}}, false,
			map[string]float64{"coldstart_starts_total shop eager L0": 1, "coldstart_phase_seconds shop queue": 20, "coldstart_phase_seconds shop image_pull": 100, "coldstart_phase_seconds shop runtime_init": 30}},
		"a label that cannot be printed": {func(m *mounted) {
			m.img.oci.Config.Config.Labels = map[string]string{serviceLabel: "a\nb"}
		}, []api.Times{{Created: created, Started: started}}, false, with(map[string]float64{"coldstart_starts_total team/app lazy L0": 1})},
		"a label that is too long": {func(m *mounted) {
			m.img.oci.Config.Config.Labels = map[string]string{serviceLabel: strings.Repeat("x", 200)}
		}, []api.Times{{Created: created, Started: started}}, false, with(map[string]float64{"coldstart_starts_total team/app lazy L0": 1})},
	} {
		t.Run(name, func(t *testing.T) {
			d, m := metricsDaemon(t), starting(t)
			m.img.ref.Repository = "team/app"
			if c.change != nil {
				c.change(m)
			}
			for _, times := range c.times {
				times.Begun = m.times.Begun
				d.told(m, times)
			}
			if c.end {
				m.mu.Lock()
				d.countEnd(m)
				d.countEnd(m)
				m.mu.Unlock()
			}
			if diff := cmp.Diff(c.want, countedStarts(d), cmp.Comparer(func(a, b float64) bool { return a-b < 1e-6 && b-a < 1e-6 })); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestCountFailure(t *testing.T) {
	d := metricsDaemon(t)
	for _, req := range []api.MountRequest{
		{ImageRequest: api.ImageRequest{Image: "registry.example.com/team/app:1"}},
		{ImageRequest: api.ImageRequest{Image: "registry.example.com/team/app:1"}, Dir: "/mnt"}, // no container
		{ImageRequest: api.ImageRequest{Image: "NOT/a name"}},
	} {
		d.countFailure(req, errors.New("no"))
	}
	m := starting(t)
	m.mu.Lock()
	d.countHydration(m, 2*time.Second)
	d.countHydration(m, 0) // it was here
	m.mu.Unlock()
	want := map[string]float64{"coldstart_starts_total team/app unknown unknown": 1, "coldstart_failures_total team/app": 1, "coldstart_phase_seconds app hydration": 2000}
	if diff := cmp.Diff(want, countedStarts(d)); diff != "" {
		t.Error(diff)
	}
}

// someStart is one of which the daemon knows all that it can know, so that there are series.
func someStart() emit.Start {
	ms := 1.0
	s := emit.Start{Service: "app", Mode: "lazy", Cold: profile.ColdL0, DurationMs: &ms}
	for _, name := range []string{profile.PhaseQueue, profile.PhasePull, profile.PhaseRuntimeInit, profile.PhaseHydration} {
		s.Phases = append(s.Phases, emit.Phase{Name: name, Ms: ms})
	}
	return s
}
