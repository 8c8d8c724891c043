package report

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/thaw-project/thaw/internal/health"
	"github.com/thaw-project/thaw/internal/profile"
	"github.com/thaw-project/thaw/internal/profile/profiletest"
)

// TestAsCommands: the page has the numbers of thaw runs show.
func TestAsCommands(t *testing.T) {
	r := profiletest.Record(5)
	for i := range r.Subjects {
		for j := range r.Subjects[i].Runs {
			run := &r.Subjects[i].Runs[j]
			if j > 0 { // known less well than of the first
				run.Phase(profile.PhasePull).Confidence = profile.Estimated
			}
			p := run.Phase(profile.PhaseFirstRequest)
			for k := range p.Routes { // a median of differences is no difference of medians
				p.Routes[k].FirstMs += float64(j * j % 7 * 100)
				p.Routes[k].SteadyMs += float64(j % 4 * 100)
				p.Routes[k].PenaltyMs = p.Routes[k].FirstMs - p.Routes[k].SteadyMs
			}
			for k := range run.Requests {
				run.Requests[k].Status = 404 // an answer, as the model has it
			}
		}
	}
	for i, s := range viewOf(t, r).Subjects {
		sum := r.Subjects[i].Summarize()
		if s.Total.P50 != round(sum.TotalMs.P50) || s.Total.P95 != round(sum.TotalMs.P95) || s.Total.P99 != round(sum.TotalMs.P99) || s.Total.Avg != round(sum.TotalMs.Avg) {
			t.Errorf("%s: %+v, want %+v", s.Name, s.Total, sum.TotalMs)
		}
		for _, want := range sum.Phases {
			got := s.Median.phase(want.Name)
			if got == nil || want.Ms.N > 0 && (*got.Ms != round(want.Ms.P50) || got.Stats.P95 != round(want.Ms.P95) || got.Confidence != want.Confidence) {
				t.Errorf("%s: %s: %+v, want %+v", s.Name, want.Name, got, want)
			}
		}
		var times []time.Duration // thaw health --run
		for _, run := range r.Subjects[i].Runs {
			if run.Good() {
				times = append(times, time.Duration((run.Event(profile.EventReady).AtMs-run.Event(profile.EventStarted).AtMs)*1e6))
			}
		}
		ready, err := health.FitReady(times)
		if p50, p99 := ready.P50.Seconds()*1e3, ready.P99.Seconds()*1e3; err != nil || math.Abs(s.Fit.P50-p50) > 0.01 || math.Abs(s.Fit.P99-p99) > 0.01 {
			t.Errorf("%s: %+v, want %v and %v, %v", s.Name, s.Fit, p50, p99, err)
		}
		if len(s.Routes) != len(sum.Routes) {
			t.Errorf("%s: %d routes, want %d", s.Name, len(s.Routes), len(sum.Routes))
		}
		for _, want := range sum.Routes {
			for _, got := range s.Routes {
				if got.Route == want.Route && (!got.Known || got.First != round(want.FirstMs.P50) || got.Steady != round(want.SteadyMs.P50) || got.Penalty != round(want.PenaltyMs.P50)) {
					t.Errorf("%s: %s: %v of %v and %v, want %+v", s.Name, got.Route, got.Penalty, got.First, got.Steady, want)
				}
			}
		}
	}
}

// TestManyRuns: more runs than are shown are counted.
func TestManyRuns(t *testing.T) {
	r := profiletest.Record(5)
	r.Subjects = r.Subjects[:1]
	s := &r.Subjects[0]
	for len(s.Runs) < 2*maxRuns {
		run := s.Runs[len(s.Runs)%15]
		run.Error = "exit code 1"
		s.Runs = append(s.Runs, run)
	}
	v := viewOf(t, r).Subjects[0]
	if v.Count != 2*maxRuns || len(v.Runs) != maxRuns || v.Failed != 2*maxRuns-15 || v.Looked != v.Count || !strings.Contains(v.Headline.Text, "105 of 120 starts failed") {
		t.Errorf("%d runs, %d failed, %d looked at, %q", v.Count, v.Failed, v.Looked, v.Headline.Text)
	}
}

// TestUnknownWaits: a lazy start whose waits nobody saw is no evidence that it has none.
func TestUnknownWaits(t *testing.T) {
	r := profiletest.Modes(5, profiletest.PythonML)
	pull := func() *opportunity {
		for _, o := range viewOf(t, r).Subjects[1].Opportunities {
			if o.ID == "pull" {
				return &o
			}
		}
		t.Fatal("no pull that can go")
		return nil
	}
	if o := pull(); o.Confidence != profile.Measured {
		t.Errorf("%+v", o)
	}
	for i := range r.Subjects[0].Runs {
		run := &r.Subjects[0].Runs[i]
		for j := range run.Phases {
			run.Phases[j].LazyWaitMs = nil
		}
	}
	if o := pull(); o.Confidence != profile.Estimated || strings.Contains(o.Evidence, "waits 0") {
		t.Errorf("%+v", o)
	}
}

// TestReadinessIsNoHealth: of an orchestrator that says only since when a container is
// healthy it is not known when it was ready: its check's wait is not waited for twice.
func TestReadinessIsNoHealth(t *testing.T) {
	r := profiletest.Record(5)
	s := &r.Subjects[0]
	for i := range s.Runs {
		for j := range s.Runs[i].Events {
			if e := &s.Runs[i].Events[j]; i%2 == 0 && e.Name == profile.EventReady {
				e.Name, e.AtMs = profile.EventHealthy, e.AtMs+30_000
				*s.Runs[i].TotalMs += 30_000
			}
		}
	}
	v := viewOf(t, r).Subjects[0]
	if len(v.Totals) != len(s.Runs) || len(v.Readiness) != len(s.Runs)/2 {
		t.Errorf("%d times until ready, %d from exec to ready, of %d runs", len(v.Totals), len(v.Readiness), len(s.Runs))
	}
	for _, ms := range v.Readiness {
		if ms > 10_000 {
			t.Errorf("ready after %v ms", ms)
		}
	}
}
