package profile_test

import (
	"math"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/thaw-project/thaw/internal/profile"
	"github.com/thaw-project/thaw/internal/profile/profiletest"
)

func TestMedianRun(t *testing.T) {
	s := profile.Subject{Runs: []profile.Run{{TotalMs: pointer(9.)}, {TotalMs: pointer(5.), Error: "no"}, {TotalMs: pointer(6.)}, {}, {TotalMs: pointer(2.)}}}
	if r, n := s.MedianRun(); n != 2 || r != &s.Runs[2] {
		t.Errorf("run %d", n)
	}
	if r, _ := (&profile.Subject{Runs: []profile.Run{{}}}).MedianRun(); r != nil {
		t.Errorf("%+v", r)
	}
}

func TestCriticalChain(t *testing.T) {
	r := profiletest.Record(1)
	run, _ := r.Subject(profiletest.PythonML).MedianRun()
	links := run.CriticalChain()
	var names []string
	sum := 0.
	for _, l := range links {
		names = append(names, l.Event)
		sum += l.TookMs
	}
	want := []string{profile.EventReady, profile.EventListen, profile.EventDepEnd, profile.EventStarted, profile.EventCreated, profile.EventPullEnd, profile.EventPullStart, profile.EventRequested}
	if !slices.Equal(names, want) {
		t.Errorf("%v", names)
	}
	if math.Abs(sum-*run.TotalMs) > 0.01 {
		t.Errorf("links come to %v of %v", sum, *run.TotalMs)
	}
	dep := links[2]
	if dep.Phase != profile.PhaseDependencyLoad || dep.LazyWaitMs == nil || len(dep.Blames) != 3 || dep.Blames[0].Ms < dep.Blames[1].Ms {
		t.Errorf("%+v", dep)
	}
	// An event that was seen later than what it should have held up is passed over.
	late := profile.Run{Events: []profile.Event{{Name: profile.EventRequested}, {Name: profile.EventListen, AtMs: 50}, {Name: profile.EventReady, AtMs: 40}}}
	if got := late.CriticalChain(); len(got) != 2 || got[0].TookMs != 40 {
		t.Errorf("%+v", got)
	}
	// Where only an orchestrator's word is known.
	told := profile.Run{Events: []profile.Event{{Name: profile.EventRequested}, {Name: profile.EventStarted, AtMs: 15_000}, {Name: profile.EventHealthy, AtMs: 45_000}}}
	if got := told.CriticalChain(); len(got) != 3 || got[0].Event != profile.EventHealthy || got[0].TookMs != 30_000 {
		t.Errorf("%+v", got)
	}
	if got := (&profile.Run{}).CriticalChain(); got != nil {
		t.Errorf("%+v", got)
	}
}

func TestBlames(t *testing.T) {
	r := profile.Run{TotalMs: pointer(100.),
		Phases:    []profile.Phase{{Name: profile.PhasePull, StartMs: pointer(0.), EndMs: pointer(50.), Ms: pointer(50.)}},
		Packages:  []profile.Package{{Name: "python:a", Phase: profile.PhaseDependencyLoad, Ms: 30, Bytes: 5, Files: 2}},
		Processes: []profile.Process{{Pid: 1, Command: "init"}, {Pid: 2, Command: "migrate", StartMs: 20, EndMs: pointer(60.)}, {Pid: 3, Command: "late", StartMs: 20, EndMs: pointer(600.)}},
		Waits:     []profile.Wait{{StartMs: 10, EndMs: 15, Path: "/a", Bytes: 1}, {StartMs: 70, EndMs: 71, Path: "/a", Bytes: 1}, {StartMs: 1, EndMs: 4, Layer: "sha256:1"}},
		Requests:  []profile.Request{{Route: "GET /", N: 1, StartMs: 101, EndMs: 110}, {Route: "GET /", N: 2, StartMs: 110, EndMs: 190}}}
	want := []profile.Blame{
		{Kind: profile.KindProcess, Name: "migrate", Ms: 40, AtMs: 20, Phase: profile.PhasePull},
		{Kind: profile.KindPackage, Name: "python:a", Ms: 30, Phase: profile.PhaseDependencyLoad, Bytes: 5, Files: 2},
		{Kind: profile.KindRequest, Name: "GET /", Ms: 9, AtMs: 101, Phase: profile.PhaseFirstRequest},
		{Kind: profile.KindWait, Name: "/a", Ms: 6, AtMs: 10, Phase: profile.PhasePull, Bytes: 2, N: 2},
		{Kind: profile.KindWait, Name: "sha256:1", Ms: 3, AtMs: 1, Phase: profile.PhasePull, N: 1},
	}
	if diff := cmp.Diff(want, r.Blames()); diff != "" {
		t.Error(diff)
	}
}
