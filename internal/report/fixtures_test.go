package report

import (
	"time"

	"github.com/thaw-project/thaw/internal/profile"
	"github.com/thaw-project/thaw/internal/profile/profiletest"
)

func pointer[T any](v T) *T { return &v }

// sparse is a record as an orchestrator's documents give it: one run, few events, no
// files, most phases unknown.
func sparse() *profile.Record {
	return &profile.Record{Version: 1, ID: "20260301-080000-0001", Source: profile.SourceECS, Begun: time.Date(2026, 3, 1, 8, 0, 0, 0, time.UTC),
		Subjects: []profile.Subject{{Name: "web", Image: "registry.example.com/web@sha256:0000", Runs: []profile.Run{{
			Begun: time.Date(2026, 3, 1, 8, 0, 0, 0, time.UTC), Container: "task/1",
			Events: []profile.Event{{Name: profile.EventRequested, Source: "ecs", Confidence: profile.Reported}, {Name: profile.EventPullStart, AtMs: 9000, Source: "ecs", Confidence: profile.Reported, PrecisionMs: 1000},
				{Name: profile.EventPullEnd, AtMs: 21_000, Source: "ecs", Confidence: profile.Reported}, {Name: profile.EventStarted, AtMs: 22_500, Source: "ecs", Confidence: profile.Reported},
				{Name: profile.EventHealthy, AtMs: 52_600, Source: "ecs", Confidence: profile.Reported}},
			Phases: []profile.Phase{
				{Name: profile.PhaseQueue, StartMs: pointer(0.), EndMs: pointer(9000.), Ms: pointer(9000.), Source: "ecs", Confidence: profile.Reported},
				{Name: profile.PhasePull, StartMs: pointer(9000.), EndMs: pointer(21_000.), Ms: pointer(12_000.), Source: "ecs", Confidence: profile.Reported},
				{Name: profile.PhaseRuntimeInit, StartMs: pointer(21_000.), EndMs: pointer(22_500.), Ms: pointer(1500.), Source: "ecs", Confidence: profile.Reported},
				{Name: profile.PhaseDependencyLoad, Confidence: profile.Unknown, Reason: "ECS does not see into containers"},
				{Name: profile.PhaseBootstrap, Confidence: profile.Unknown, Reason: "ECS does not see into containers"},
				{Name: profile.PhaseHealthContainer, Confidence: profile.Unknown, Reason: "when it was ready is not known"},
				{Name: profile.PhaseHealthLB, Confidence: profile.Unknown, Reason: "no load balancer"},
				{Name: profile.PhaseFirstRequest, Confidence: profile.Unknown, Reason: "no requests were made"}},
		}}}}}
}

// failed is a record none of whose runs was ready.
func failed() *profile.Record {
	return &profile.Record{Version: 1, ID: "20260301-080000-0002", Source: profile.SourceMeasure, Warnings: []string{"the machine was busy"},
		Subjects: []profile.Subject{{Name: "broken", Image: "broken:1", Mode: "lazy", Cold: profile.ColdL0, Runs: []profile.Run{
			{Error: "exit code 1 after 230 ms", Events: []profile.Event{{Name: profile.EventStarted, AtMs: 200, Source: "tracefs", Confidence: profile.Measured}}, Warnings: []string{"no memory"}},
			{Error: "not ready within 1m0s"}}}, {Name: "nothing", Image: ""}}}
}

// hostile is a record all of whose words try to be more than words.
func hostile() *profile.Record {
	r := profiletest.Modes(7, profiletest.Nginx)
	const evil = `</script><script>window.pwned=1</script><img src=x onerror="window.pwned=2">"'><svg/onload=window.pwned=3>{{.}}\u2028` + "\u2028]]>--><style>*{display:none}</style>javascript:window.pwned=4 url(//evil.example/x)"
	r.ID, r.Name, r.Source, r.Tool = evil, evil, evil, evil
	r.Labels = map[string]string{evil: evil, "__proto__": evil, "constructor": evil}
	r.Machine.Kernel, r.Network.Name = evil, evil
	r.Warnings = []string{evil, "__proto__"}
	r.Signals = append(r.Signals, profile.Signal{Name: evil, Reason: evil})
	for i := range r.Subjects {
		s := &r.Subjects[i]
		s.Image, s.Manifest, s.Mode, s.Cold, s.Command, s.Probe = evil, evil, evil, evil, []string{evil}, evil
		if i == 0 {
			s.Name = evil
		} else {
			s.Name = "__proto__"
		}
		for j := range s.Layers {
			s.Layers[j].Instruction, s.Layers[j].Digest = evil, evil
		}
		for j := range s.Files {
			f := &s.Files[j]
			switch j % 4 {
			case 0:
				f.Path = "/" + evil + "/" + f.Path
			case 1:
				f.Path = "/__proto__/constructor" + f.Path
			case 2:
				f.Package = evil
			default:
				f.First, f.Layer = evil, 99
			}
		}
		for j := range s.Runs {
			run := &s.Runs[j]
			run.Container, run.Warnings = evil, []string{evil}
			if j == 1 {
				run.Error = evil
			}
			for k := range run.Processes {
				run.Processes[k].Command = evil
			}
			for k := range run.Requests {
				run.Requests[k].Route, run.Requests[k].Error = evil, evil
			}
			for k := range run.Packages {
				run.Packages[k].Name += evil
			}
			run.Packages = append(run.Packages, profile.Package{Name: "__proto__", Phase: "toString", Ms: 1})
			for k := range run.Phases {
				run.Phases[k].Source, run.Phases[k].Reason, run.Phases[k].Confidence = evil, evil, evil
			}
			run.Phases = append(run.Phases, profile.Phase{Name: evil, StartMs: pointer(1.), EndMs: pointer(2.), Ms: pointer(1.)}, profile.Phase{Name: "__proto__"})
			for k := range run.Events {
				run.Events[k].Source, run.Events[k].Detail = evil, evil
			}
			run.Events = append(run.Events, profile.Event{Name: evil, AtMs: 1}, profile.Event{Name: "toString", AtMs: 2})
			run.Health = &profile.Health{Kind: evil, Source: evil, TicksMs: []float64{1, 5001, 10_001}, HealthyMs: pointer(10_002.)}
		}
	}
	return r
}

// fleet are starts of some images over some releases; the last one is under way.
func fleet() []Start {
	var all []Start
	begun := time.Date(2026, 3, 2, 9, 0, 0, 0, time.UTC)
	for i := range 40 {
		image, release := []string{"shop/api", "shop/api", "shop/web", "ml/predict"}[i%4], 1+i/12
		ms := []float64{310, 290, 140, 2300}[i%4] * (1 + float64(i*7919%13)/40) * (1 - .1*float64(release))
		needed := []int64{38e6, 38e6, 9e6, 160e6}[i%4]
		far := needed * int64(i*31%5) / 8
		all = append(all, Start{ID: profile.NewID(begun), Image: "registry.example.com/" + image + ":1." + string(rune('0'+release)), Manifest: "sha256:" + string(rune('a'+release)), Begun: begun, State: profile.EventReady, Over: true, Kept: true,
			TotalMs: &ms, Mode: "lazy", ImageSize: needed * 4, Unpacked: needed * 11, Needed: needed, Network: far / 3, Here: needed - far, Registry: far, WaitMs: pointer(ms / 9)})
		begun = begun.Add(7 * time.Minute)
	}
	failed := Start{ID: "x", Image: "registry.example.com/shop/gone:1", Begun: begun, State: StateFailed, Over: true, Kept: true, Error: "the registry says: not found"}
	return append(all, failed, Start{ID: "y", Image: "registry.example.com/shop/api:1.4", Begun: begun.Add(time.Minute), State: profile.EventStarted})
}
