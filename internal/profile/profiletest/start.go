package profiletest

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/thaw-project/thaw/internal/profile"
)

// starter makes the runs of a subject.
type starter struct {
	shape   shape
	subject *profile.Subject
	rnd     *rand.Rand
	eager   bool
	used    map[string][]int // by phase, files of the subject that starts read
}

// compression is how much smaller files are in a layer, about.
const compression = 0.36

// files makes the image's files.
func (s *starter) files() {
	s.used = map[string][]int{}
	suffix := map[string]string{PythonML: ".py", Node: ".js", Nginx: ".so"}[s.subject.Name]
	for _, p := range s.shape.packs {
		left := p.bytes
		for i := range p.files {
			size := left
			if i < p.files-1 {
				size = int64(float64(left) / float64(p.files-i) * (0.2 + 1.6*s.rnd.Float64()))
			}
			left -= size
			f := profile.File{Path: fmt.Sprintf("%s/%03d%s", p.dir, i, suffix), Bytes: size, CompressedBytes: int64(float64(size) * compression), Layer: p.layer, Package: p.name}
			if p.phase != "" && float64(i) < float64(p.files)*p.used {
				f.First, f.ReadBytes, f.Runs = p.phase, int64(float64(size)*(0.3+0.7*s.rnd.Float64())), 1
				s.used[p.phase] = append(s.used[p.phase], len(s.subject.Files))
			}
			s.subject.Files = append(s.subject.Files, f)
		}
	}
}

// run makes a start; slow is by how much it is slower than usual.
func (s *starter) run(begun time.Time, slow float64) profile.Run {
	sh, sub := s.shape, s.subject
	r := profile.Run{Begun: begun, Container: fmt.Sprintf("%012x", s.rnd.Uint64()>>16),
		Coldness: &profile.Coldness{Level: profile.ColdL0, Proven: true, Files: 3, StoredBytes: 20 << 10}}
	jitter := func(f float64) float64 { return f * slow * (0.95 + 0.1*s.rnd.Float64()) }
	const perMs = 250_000. // bytes of the network
	pull, wait := 65., 0.  // of manifests and the index
	for _, l := range sub.Layers {
		if s.eager {
			pull += float64(l.Bytes) / perMs
		}
	}
	lengths := []float64{jitter(sh.queue), jitter(pull), jitter(sh.init), jitter(sh.dependency), jitter(sh.bootstrap), jitter(sh.health)}
	waits := make([]float64, len(lengths))
	if !s.eager { // what is read comes from the network
		for i, name := range profile.Phases[:profile.StartPhases] {
			for _, f := range s.used[name] {
				wait += float64(sub.Files[f].CompressedBytes)/perMs + 0.4
			}
			waits[i], wait = jitter(wait*0.8), 0
			lengths[i] += waits[i]
		}
	}
	at := 0.
	var ends []float64
	for i, name := range profile.Phases[:profile.StartPhases] {
		p := s.phase(&r, name, at, lengths[i], waits[i])
		at = *p.EndMs
		ends = append(ends, at)
		r.Phases = append(r.Phases, p)
	}
	r.TotalMs = pointer(at)
	s.events(&r, ends)
	r.Phases = append(r.Phases, profile.Phase{Name: profile.PhaseHealthLB, Confidence: profile.Unknown, Reason: "nothing is known of a load balancer"})
	r.Phases = append(r.Phases, s.requests(&r, at, slow))
	s.hydration(&r, ends[1], at, slow)
	s.packages(&r)
	s.processes(&r, ends)
	s.cost(&r)
	return r
}

// phase makes a phase with its reads and waits.
func (s *starter) phase(r *profile.Run, name string, from, length, wait float64) profile.Phase {
	to := ms(from + length)
	p := profile.Phase{Name: name, StartMs: pointer(ms(from)), EndMs: &to, Ms: pointer(ms(to - ms(from))), Source: profile.SignalTracefs, Confidence: profile.Measured,
		LazyWaitMs: pointer(0.), Bytes: pointer(int64(0)), Files: pointer(0)}
	switch name {
	case profile.PhaseQueue, profile.PhasePull, profile.PhaseRuntimeInit:
		p.Source = profile.SignalTimeline
	case profile.PhaseDependencyLoad:
		p.Source, p.Confidence = profile.SignalOpens, profile.Estimated
	case profile.PhaseHealthContainer:
		p.Source = profile.SignalProbe
	}
	used := s.used[name]
	var all int64
	for _, f := range used {
		all += s.subject.Files[f].ReadBytes + 4096
	}
	at := from
	for i, f := range used {
		file := &s.subject.Files[f]
		took := length * (float64(file.ReadBytes+4096)/float64(all)*0.5 + 0.5/float64(len(used)))
		waited := ms(took * wait / length)
		r.Reads = append(r.Reads, profile.Read{Path: file.Path, AtMs: ms(at), Phase: name, Bytes: file.ReadBytes, TookMs: ms(took)})
		if waited > 0 && i%3 == 0 { // one brings what the next ones read
			end := ms(min(at+took*wait/length*3, to))
			r.Waits = append(r.Waits, profile.Wait{StartMs: ms(at), EndMs: end, Path: file.Path, Layer: s.subject.Layers[file.Layer].Digest, Bytes: file.CompressedBytes})
			*p.LazyWaitMs += end - ms(at)
		}
		*p.Bytes += file.ReadBytes
		*p.Files++
		at += took
	}
	*p.LazyWaitMs = ms(min(*p.LazyWaitMs, *p.Ms))
	p.CPUMs = pointer(ms((*p.Ms - *p.LazyWaitMs) * 0.8))
	return p
}

// events of a start whose phases end then.
func (s *starter) events(r *profile.Run, ends []float64) {
	event := func(name string, at float64, source, confidence, detail string) {
		r.Events = append(r.Events, profile.Event{Name: name, AtMs: at, Source: source, Confidence: confidence, Detail: detail})
	}
	event(profile.EventRequested, 0, profile.SignalTimeline, profile.Measured, "")
	event(profile.EventPullStart, ends[0], profile.SignalTimeline, profile.Measured, "")
	event(profile.EventPullEnd, ends[1], profile.SignalTimeline, profile.Measured, "")
	event(profile.EventCreated, ms(ends[1]+(ends[2]-ends[1])*0.7), profile.SignalTimeline, profile.Measured, "")
	event(profile.EventStarted, ends[2], profile.SignalTracefs, profile.Measured, s.shape.command[0])
	event(profile.EventDepStart, ms(ends[2]+0.6), profile.SignalOpens, profile.Measured, "")
	event(profile.EventDepEnd, ends[3], profile.SignalOpens, profile.Estimated, "")
	event(profile.EventListen, ends[4], profile.SignalTracefs, profile.Measured, "")
	event(profile.EventReady, ends[5], profile.SignalProbe, profile.Measured, s.subject.Probe)
}

// requests makes the requests after a start, and the phase that they come to.
func (s *starter) requests(r *profile.Run, from, slow float64) profile.Phase {
	p := profile.Phase{Name: profile.PhaseFirstRequest, Source: profile.SignalProbe, Confidence: profile.Measured, LazyWaitMs: pointer(0.), Bytes: pointer(int64(0)), Files: pointer(0)}
	used := s.used[profile.PhaseFirstRequest]
	at, worst := from+5, 0.
	first := 0.
	for i, route := range s.shape.routes {
		route.FirstMs, route.SteadyMs = ms(route.FirstMs*slow), ms(route.SteadyMs*slow)
		if i == len(s.shape.routes)-1 { // it reads what others do not
			phase := s.phase(r, profile.PhaseFirstRequest, at, route.FirstMs, boolFloat(!s.eager)*route.FirstMs*0.3)
			route.Files, route.Bytes, route.WaitMs = len(used), *phase.Bytes, *phase.LazyWaitMs
			p.LazyWaitMs, p.Bytes, p.Files = phase.LazyWaitMs, phase.Bytes, phase.Files
		}
		route.PenaltyMs = ms(route.FirstMs - route.SteadyMs)
		worst = max(worst, route.PenaltyMs)
		p.Routes = append(p.Routes, route)
		for n := 1; n <= 12; n++ {
			took := route.SteadyMs
			q := profile.Request{Route: route.Route, N: n, StartMs: ms(at), Status: 200}
			switch {
			case n == 1:
				took, q.Files, q.Bytes, q.WaitMs = route.FirstMs, route.Files, route.Bytes, route.WaitMs
			case n < 5:
				took *= 1 + 0.3/float64(n)
			}
			at += took
			q.EndMs = ms(at)
			if first == 0 {
				first = q.EndMs
			}
			r.Requests = append(r.Requests, q)
			at += 2
		}
	}
	p.Ms = pointer(worst)
	r.Events = append(r.Events, profile.Event{Name: profile.EventFirstRequest, AtMs: first, Source: profile.SignalProbe, Confidence: profile.Measured},
		profile.Event{Name: profile.EventSteady, AtMs: ms(at), Source: profile.SignalProbe, Confidence: profile.Measured})
	return p
}

func boolFloat(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// hydration ends when all of the image is here.
func (s *starter) hydration(r *profile.Run, pulled, ready, slow float64) {
	end := pulled
	if !s.eager {
		end = ms(max(ready*0.8, pulled+float64(s.subject.ImageBytes)/230_000*slow))
	}
	r.Phases = append(r.Phases, profile.Phase{Name: profile.PhaseHydration, StartMs: &pulled, EndMs: &end, Ms: pointer(ms(end - pulled)), Source: profile.SignalTimeline, Confidence: profile.Measured})
	r.Events = append(r.Events, profile.Event{Name: profile.EventHydrated, AtMs: end, Source: profile.SignalTimeline, Confidence: profile.Measured})
	slices.SortStableFunc(r.Events, func(a, b profile.Event) int {
		switch {
		case a.AtMs < b.AtMs:
			return -1
		case a.AtMs > b.AtMs:
			return 1
		}
		return 0
	})
}

// packages adds up what was read by package.
func (s *starter) packages(r *profile.Run) {
	type key struct{ name, phase string }
	names := map[string]string{}
	for _, f := range s.subject.Files {
		names[f.Path] = f.Package
	}
	sums := map[key]*profile.Package{}
	for _, read := range r.Reads {
		k := key{names[read.Path], read.Phase}
		if k.name == "" {
			continue
		}
		if sums[k] == nil {
			sums[k] = &profile.Package{Name: k.name, Phase: k.phase}
		}
		p := sums[k]
		p.Ms, p.Bytes, p.Files = ms(p.Ms+read.TookMs), p.Bytes+read.Bytes, p.Files+1
	}
	for _, p := range sums {
		r.Packages = append(r.Packages, *p)
	}
	slices.SortFunc(r.Packages, func(a, b profile.Package) int {
		if a.Ms > b.Ms || a.Ms == b.Ms && a.Name < b.Name {
			return -1
		}
		return 1
	})
}

// processes are the first one, and those that it starts before it listens.
func (s *starter) processes(r *profile.Run, ends []float64) {
	r.Processes = append(r.Processes, profile.Process{Pid: 1, Command: s.shape.command[0], StartMs: ends[2]})
	for i, c := range s.shape.processes {
		r.Processes = append(r.Processes, profile.Process{Pid: 7 + i, Parent: 1, Command: c, StartMs: ms(ends[4] - 1 + float64(i)*0.4)})
	}
}

// cost counts what came over the network until ready.
func (s *starter) cost(r *profile.Run) {
	c := &profile.Cost{NetworkBytes: 1 << 20, Requests: 3}
	for _, p := range r.Phases[:profile.StartPhases] {
		c.NeededBytes += *p.Bytes
		c.CPUMs += int64(*p.CPUMs)
	}
	if s.eager {
		c.RegistryBytes, c.Requests = s.subject.ImageBytes, c.Requests+int64(len(s.subject.Layers))
	} else {
		c.RegistryBytes, c.Requests = int64(float64(c.NeededBytes)*compression*1.4), c.Requests+int64(len(r.Waits))
	}
	c.NetworkBytes += c.RegistryBytes
	c.CompleteBytes = 1<<20 + s.subject.ImageBytes
	r.Cost = c
}
