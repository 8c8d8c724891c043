package profile

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func at(name string, ms float64) Event {
	return Event{Name: name, AtMs: ms, Source: SignalTracefs, Confidence: Measured}
}

// loads are first opens of n modules of a package, one a millisecond from a time on.
func loads(from float64, n int, pkg string) []Read {
	var all []Read
	for i := range n {
		all = append(all, Read{Path: fmt.Sprintf("/app/node_modules/%s/%d.js", pkg, i), AtMs: from + float64(i), Bytes: 10})
	}
	return all
}

// plainStart is a start with all that can be seen of it: 20 ms of runtime, 90 of loading
// files, 60 of bootstrap, 30 of health.
func plainStart() *Run {
	return &Run{
		Events: []Event{at(EventRequested, 0), at(EventPullStart, 10), at(EventPullEnd, 50), at(EventCreated, 60), at(EventStarted, 70), at(EventListen, 220), at(EventReady, 250)},
		Reads:  loads(71, 90, "express"),
		Waits:  []Wait{},
	}
}

func millis(r *Run) map[string]float64 {
	out := map[string]float64{}
	for _, p := range r.Phases {
		if p.Ms != nil {
			out[p.Name] = math.Round(*p.Ms)
		}
	}
	return out
}

// TestDerive: what is done to a start shows in its own phase and in no other.
func TestDerive(t *testing.T) {
	plain := map[string]float64{PhaseQueue: 10, PhasePull: 40, PhaseRuntimeInit: 20, PhaseDependencyLoad: 90, PhaseBootstrap: 60, PhaseHealthContainer: 30}
	with := func(changes map[string]float64) map[string]float64 {
		out := map[string]float64{}
		for k, v := range plain {
			out[k] = v
		}
		for k, v := range changes {
			if v < 0 {
				delete(out, k)
				continue
			}
			out[k] = v
		}
		return out
	}
	later := func(r *Run, from, by float64) {
		for i := range r.Events {
			if r.Events[i].AtMs >= from {
				r.Events[i].AtMs += by
			}
		}
		for i := range r.Reads {
			if r.Reads[i].AtMs >= from {
				r.Reads[i].AtMs += by
			}
		}
	}
	tests := []struct {
		name   string
		change func(r *Run)
		want   map[string]float64
	}{
		{"plain", func(*Run) {}, plain},
		{"sleep between imports", func(r *Run) { later(r, 100, 500) }, with(map[string]float64{PhaseDependencyLoad: 590})},
		{"sleep in bootstrap", func(r *Run) { later(r, 200, 500) }, with(map[string]float64{PhaseBootstrap: 560})},
		{"sleep in the health route", func(r *Run) { later(r, 240, 500) }, with(map[string]float64{PhaseHealthContainer: 530})},
		{"slow pull", func(r *Run) { later(r, 45, 500) }, with(map[string]float64{PhasePull: 540})},
		{"files of a connection in bootstrap", func(r *Run) {
			r.Reads = append(r.Reads, Read{Path: "/etc/hosts", AtMs: 205}, Read{Path: "/etc/resolv.conf", AtMs: 206}, Read{Path: "/app/node_modules/pg/late.js", AtMs: 207})
		}, plain},
		{"data in bootstrap", func(r *Run) {
			for i := range 50 {
				r.Reads = append(r.Reads, Read{Path: fmt.Sprintf("/srv/data/%d.csv", i), AtMs: 205 + float64(i)/10})
			}
		}, plain},
		{"more modules after a pause", func(r *Run) { r.Reads = append(r.Reads, loads(205, 9, "late")...) }, with(map[string]float64{PhaseDependencyLoad: 143, PhaseBootstrap: 7})},
		{"a machine that has no time", func(r *Run) { // opens 100 ms apart
			for i := range r.Reads {
				r.Reads[i].AtMs += 99 * float64(i)
			}
			for i := range r.Events {
				if r.Events[i].AtMs > 200 {
					r.Events[i].AtMs += 99 * 89
				}
			}
		}, with(map[string]float64{PhaseDependencyLoad: 90 + 99*89})},
		{"slow network is no pause", func(r *Run) { // each of two modules waits 100 ms
			r.Reads = append(r.Reads, Read{Path: "/app/node_modules/x/a.js", AtMs: 162}, Read{Path: "/app/node_modules/x/b.js", AtMs: 263})
			r.Waits = []Wait{{StartMs: 162, EndMs: 262}, {StartMs: 263, EndMs: 363}}
			for i := range r.Events {
				if r.Events[i].AtMs > 200 {
					r.Events[i].AtMs += 203
				}
			}
		}, with(map[string]float64{PhaseDependencyLoad: 293, PhaseBootstrap: 60})},
		{"a parent that listens for workers", func(r *Run) {
			r.Events = slices.DeleteFunc(r.Events, func(e Event) bool { return e.Name == EventListen })
			accept := at(EventAccept, 220)
			accept.WaitedMs = 120
			r.Events = append(r.Events, at(EventListen, 100), accept)
		}, plain},
		{"a connection that was taken at once", func(r *Run) { r.Events = append(r.Events, at(EventAccept, 240)) }, plain},
		{"only accepting was seen", func(r *Run) {
			r.Events = slices.DeleteFunc(r.Events, func(e Event) bool { return e.Name == EventListen })
			r.Events = append(r.Events, at(EventAccept, 220))
		}, plain},
		{"nothing opened", func(r *Run) { r.Reads = nil }, with(map[string]float64{PhaseDependencyLoad: -1, PhaseBootstrap: -1})},
		{"nothing of the program", func(r *Run) {
			r.Events = slices.DeleteFunc(r.Events, func(e Event) bool { return e.Name == EventStarted || e.Name == EventListen })
		}, map[string]float64{PhaseQueue: 10, PhasePull: 40}},
		{"never ready", func(r *Run) {
			r.Events = slices.DeleteFunc(r.Events, func(e Event) bool { return e.Name == EventReady })
		}, with(map[string]float64{PhaseHealthContainer: -1})},
		{"an orchestrator's word", func(r *Run) { r.Events = append(r.Events, at(EventHealthy, 300)) }, with(map[string]float64{PhaseHealthContainer: 80})},
		{"a load balancer's", func(r *Run) { r.Events = append(r.Events, at(EventLBHealthy, 400)) }, with(map[string]float64{PhaseHealthLB: 150})},
		{"a load balancer that was first", func(r *Run) { r.Events = append(r.Events, at(EventLBHealthy, 100)) }, with(map[string]float64{PhaseHealthLB: 0})},
		{"complete", func(r *Run) { r.Events = append(r.Events, at(EventHydrated, 1050)) }, with(map[string]float64{PhaseHydration: 1000})},
		{"complete before", func(r *Run) { r.Events = append(r.Events, at(EventHydrated, 30)) }, with(map[string]float64{PhaseHydration: 0})},
		{"clocks that disagree", func(r *Run) {
			for i := range r.Events {
				if r.Events[i].Name == EventListen {
					r.Events[i].AtMs = 255
				}
			}
		}, with(map[string]float64{PhaseBootstrap: 90, PhaseHealthContainer: 0})},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := plainStart()
			tt.change(r)
			Derive(r)
			if d := cmp.Diff(tt.want, millis(r)); d != "" {
				t.Errorf("phases (-want +got):\n%s", d)
			}
			check(t, r)
			for _, p := range r.Phases {
				if (p.Ms == nil) != (p.Confidence == Unknown) || (p.Ms == nil) != (p.Reason != "") || p.Ms != nil && p.Source == "" {
					t.Errorf("%+v", p)
				}
			}
		})
	}
}

// check looks whether phases follow one another, add up, and are nowhere less than nothing.
func check(t *testing.T, r *Run) {
	t.Helper()
	if len(r.Phases) != len(Phases) {
		t.Fatalf("%d phases", len(r.Phases))
	}
	sum, known, last := 0.0, 0, math.Inf(-1)
	for i, p := range r.Phases {
		if p.Name != Phases[i] {
			t.Errorf("phase %d is %s", i, p.Name)
		}
		if p.Ms == nil {
			continue
		}
		if i < StartPhases {
			sum += *p.Ms
			known++
			if *p.StartMs < last-0.01 {
				t.Errorf("%s begins at %v, before %v", p.Name, *p.StartMs, last)
			}
			last = *p.EndMs
		}
		if p.Name != PhaseFirstRequest && (*p.Ms < 0 || math.Abs(*p.EndMs-*p.StartMs-*p.Ms) > 0.01) {
			t.Errorf("%s from %v to %v takes %v", p.Name, *p.StartMs, *p.EndMs, *p.Ms)
		}
		if p.LazyWaitMs != nil && (*p.LazyWaitMs < 0 || p.Name != PhaseFirstRequest && *p.LazyWaitMs > *p.Ms+0.01) {
			t.Errorf("%s waits %v of %v", p.Name, *p.LazyWaitMs, *p.Ms)
		}
	}
	if known == StartPhases && (r.TotalMs == nil || math.Abs(sum-*r.TotalMs) > 0.01) {
		t.Errorf("phases add up to %v of %v", sum, r.TotalMs)
	}
	for _, one := range r.Reads {
		if one.TookMs < 0 {
			t.Errorf("%s took %v", one.Path, one.TookMs)
		}
	}
}

// TestDeriveWaits: waits count once, in the phase that they are in, and none is 0 only
// if they were watched.
func TestDeriveWaits(t *testing.T) {
	r := plainStart()
	r.Waits = []Wait{{StartMs: 60, EndMs: 90}, {StartMs: 80, EndMs: 100}, {StartMs: 85, EndMs: 86}, {StartMs: 300, EndMs: 400}}
	Derive(r)
	for name, want := range map[string]float64{PhasePull: 0, PhaseRuntimeInit: 10, PhaseDependencyLoad: 30, PhaseBootstrap: 0} {
		if got := r.Phase(name).LazyWaitMs; got == nil || *got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
	r.Waits = nil
	Derive(r)
	if got := r.Phase(PhaseDependencyLoad).LazyWaitMs; got != nil {
		t.Errorf("waits that nobody watched: %v", *got)
	}
}

// TestDeriveReads: reads have their phase and what they took, and add up by package.
func TestDeriveReads(t *testing.T) {
	r := plainStart()
	r.Reads = append(r.Reads, Read{Path: "/usr/bin/node", AtMs: 70, Bytes: 1000}, Read{Path: "/etc/hosts", AtMs: 230, Bytes: 1}, Read{Path: "/late", AtMs: 300, Bytes: 5},
		Read{Path: "/later", AtMs: 900, Bytes: 5}, Read{Path: "/early", AtMs: 55, Bytes: 3})
	for n := 1; n <= 6; n++ {
		took := 2.0
		if n == 1 {
			took = 100
		}
		r.Requests = append(r.Requests, Request{Route: "GET /x", N: n, StartMs: 260 + 110*float64(n-1), EndMs: 260 + 110*float64(n-1) + took, Status: 200})
	}
	r.Waits = []Wait{{StartMs: 310, EndMs: 350}}
	Derive(r)
	phases := map[string]string{}
	for _, one := range r.Reads {
		phases[one.Path] = one.Phase
	}
	for path, want := range map[string]string{"/usr/bin/node": PhaseDependencyLoad, "/etc/hosts": PhaseHealthContainer, "/late": PhaseFirstRequest, "/later": ReadLater, "/early": PhaseRuntimeInit} {
		if phases[path] != want {
			t.Errorf("%s is of %q, want %q", path, phases[path], want)
		}
	}
	dep := r.Phase(PhaseDependencyLoad)
	if *dep.Files != 91 || *dep.Bytes != 1900 {
		t.Errorf("%d files with %d bytes", *dep.Files, *dep.Bytes)
	}
	want := Package{Name: "node:express", Phase: PhaseDependencyLoad, Ms: 89, Bytes: 900, Files: 90} // the last one until the phase's end
	if i := slices.IndexFunc(r.Packages, func(p Package) bool { return p.Name == want.Name }); i < 0 || r.Packages[i] != want {
		t.Errorf("packages %+v", r.Packages)
	}
	first := r.Phase(PhaseFirstRequest)
	route := Route{Route: "GET /x", FirstMs: 100, SteadyMs: 2, PenaltyMs: 98, Files: 1, Bytes: 5, WaitMs: 40}
	if d := cmp.Diff([]Route{route}, first.Routes); d != "" || *first.Ms != 98 || *first.Files != 1 {
		t.Errorf("%v %s", *first.Ms, d)
	}
}

// TestDeriveRequests: what is missing is said.
func TestDeriveRequests(t *testing.T) {
	for want, requests := range map[string][]Request{
		"no requests were made":       nil,
		"fewer than 5 requests":       {{Route: "a", N: 1, Status: 200, EndMs: 1}, {Route: "a", N: 2, Status: 200, EndMs: 1}},
		"the first request failed":    {{Route: "a", N: 1, Status: 503}, {Route: "a", N: 5, Status: 200}},
		"b: the first request failed": {{Route: "b", N: 1, Error: "refused"}},
		"fewer than 5 requests went":  {{Route: "a", N: 1, Status: 200}, {Route: "a", N: 5, Status: 500}},
	} {
		r := plainStart()
		r.Requests = requests
		Derive(r)
		if p := r.Phase(PhaseFirstRequest); p.Ms != nil || !strings.Contains(p.Reason, want) {
			t.Errorf("%q, want %q", p.Reason, want)
		}
	}
}

// TestDeriveProperties: whatever is seen, in whatever order, phases never overlap, add
// up where all are known, are nowhere less than nothing, and come out the same again.
func TestDeriveProperties(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	paths := []string{"/usr/lib/libc.so.6", "/app/node_modules/x/i.js", "/app/main.js", "/etc/app.conf", "/var/x", "/usr/lib/python3/dist-packages/x/y.py"}
	for range 3000 {
		r := &Run{}
		for _, name := range Events {
			if rnd.IntN(4) > 0 {
				r.Events = append(r.Events, Event{Name: name, AtMs: math.Round(rnd.NormFloat64() * 300), Source: SignalProbe, Confidence: Measured, WaitedMs: float64(rnd.IntN(40))})
			}
		}
		if rnd.IntN(2) == 0 { // most are in order
			slices.SortFunc(r.Events, func(a, b Event) int { return slices.Index(Events, a.Name) - slices.Index(Events, b.Name) })
			ms := 0.0
			for i := range r.Events {
				ms += float64(rnd.IntN(200))
				r.Events[i].AtMs = ms
			}
		}
		for range rnd.IntN(60) {
			r.Reads = append(r.Reads, Read{Path: paths[rnd.IntN(len(paths))], AtMs: rnd.Float64()*2000 - 100, Bytes: 1})
		}
		for range rnd.IntN(20) {
			from := rnd.Float64()*2000 - 100
			r.Waits = append(r.Waits, Wait{StartMs: from, EndMs: from + rnd.Float64()*300 - 50})
		}
		for n := range rnd.IntN(8) {
			from := rnd.Float64() * 2000
			r.Requests = append(r.Requests, Request{Route: "x", N: n + 1, StartMs: from, EndMs: from + rnd.Float64()*100, Status: 200})
		}
		Derive(r)
		check(t, r)
		again := *r
		again.Events, again.Reads, again.Requests = slices.Clone(r.Events), slices.Clone(r.Reads), slices.Clone(r.Requests)
		again.Warnings = nil
		Derive(&again)
		again.Warnings = r.Warnings
		if d := cmp.Diff(r, &again); d != "" {
			t.Fatalf("not the same again:\n%s", d)
		}
		if t.Failed() {
			t.Fatalf("%+v", r)
		}
	}
}

func TestPackageOf(t *testing.T) {
	for p, want := range map[string]string{
		"/usr/lib/python3/dist-packages/pandas/core/frame.py":                        "python:pandas",
		"/opt/venv/lib/python3.11/site-packages/scikit_learn-1.5.0.dist-info/RECORD": "python:scikit_learn",
		"/opt/venv/lib/python3.11/site-packages/numpy.libs/libopenblas-x.so":         "python:numpy",
		"/opt/venv/lib/python3.11/site-packages/six.py":                              "python:six",
		"/x/site-packages/__pycache__/six.cpython-311.pyc":                           "python:six",
		"/x/site-packages/_cffi_backend.cpython-311-x86_64-linux-gnu.so":             "python:_cffi_backend",
		"/usr/lib/python3.11/json/decoder.py":                                        "python:stdlib",
		"/usr/local/lib/python3.12/lib-dynload/_ssl.cpython-312-x86_64-linux-gnu.so": "python:stdlib",
		"/app/node_modules/express/lib/router.js":                                    "node:express",
		"/app/node_modules/@nestjs/core/index.js":                                    "node:@nestjs/core",
		"/app/node_modules/a/node_modules/b/index.js":                                "node:b",
		"/app/node_modules/.pnpm/x@1/node_modules/x/index.js":                        "node:x",
		"/app/node_modules/.package-lock.json":                                       "",
		"/usr/local/bundle/gems/rack-3.0.8/lib/rack.rb":                              "ruby:rack",
		"/usr/local/bundle/gems/nokogiri-1.16.0-x86_64-linux/lib/nokogiri.rb":        "ruby:nokogiri",
		"/app/lib/spring-core-6.1.2.jar":                                             "java:spring-core",
		"/app/app.jar":                                                               "java:app",
		"/opt/java/openjdk/lib/modules":                                              "java:jdk",
		"/app/System.Text.Json.dll":                                                  "dotnet:System.Text.Json",
		"/app/vendor/symfony/http-kernel/Kernel.php":                                 "php:symfony/http-kernel",
		"/usr/lib/x86_64-linux-gnu/libssl.so.3":                                      "lib:libssl.so.3",
		"/usr/lib/x86_64-linux-gnu/libicudata.so.72.1":                               "lib:libicudata.so.72",
		"/lib64/ld-linux-x86-64.so.2":                                                "lib:ld-linux-x86-64.so.2",
		"/usr/sbin/nginx":                                                            "bin:nginx",
		"/app/server.js":                                                             "",
		"":                                                                           "",
		"/":                                                                          "",
	} {
		if got := PackageOf(p); got != want {
			t.Errorf("%s: %q, want %q", p, got, want)
		}
	}
}

func TestClassOf(t *testing.T) {
	for p, want := range map[string]string{
		"/usr/lib/libc.so.6": classRuntime, "/usr/bin/node": classRuntime, "/usr/lib/python3.11/os.py": classRuntime, "/app/node_modules/x/i.js": classDependency,
		"/app/server.js": classApp, "/usr/src/app/main.rb": classApp, "/etc/nginx/nginx.conf": classConfig, "/app/config/prod.yaml": classConfig,
		"/srv/www/index.html": classData, "/var/log/x": classData, "/usr/share/zoneinfo/UTC": classData, "/usr/share/icu/x.dat": classRuntime,
	} {
		if got := classOf(p); got != want {
			t.Errorf("%s: %s, want %s", p, got, want)
		}
	}
}

func FuzzPackageOf(f *testing.F) {
	f.Add("/app/node_modules/@a/b/c.js")
	f.Add("/x/site-packages/__pycache__/six.cpython-311.pyc")
	f.Fuzz(func(t *testing.T, p string) {
		name := PackageOf(p)
		if kind, rest, ok := strings.Cut(name, ":"); name != "" && (!ok || kind == "" || rest == "") {
			t.Errorf("%q is of %q", p, name)
		}
		classOf(p)
	})
}

// TestDeriveNoBytes: reads whose bytes nobody asked for are no reads of 0 bytes.
func TestDeriveNoBytes(t *testing.T) {
	event := func(name string, at float64) Event {
		return Event{Name: name, AtMs: at, Source: SignalTracefs, Confidence: Measured}
	}
	r := &Run{Events: []Event{event(EventRequested, 0), event(EventPullStart, 1), event(EventPullEnd, 2), event(EventStarted, 3), event(EventListen, 60), event(EventReady, 61)},
		Reads: []Read{{Path: "/usr/bin/node", AtMs: 4}, {Path: "/app/main.js", AtMs: 5}}}
	Derive(r)
	if p := r.Phase(PhaseDependencyLoad); p.Bytes != nil || p.Files == nil || *p.Files != 2 {
		t.Errorf("bytes %v, files %v", p.Bytes, p.Files)
	}
	r.Reads[0].Bytes = 7
	Derive(r)
	if p := r.Phase(PhaseBootstrap); p.Bytes == nil || *p.Bytes != 0 {
		t.Errorf("bytes %v of a phase that read nothing", p.Bytes)
	}
}

// TestWaitTimes: waits that overlap count once, and few are left of many.
func TestWaitTimes(t *testing.T) {
	var waits []Wait
	for i := range 5000 {
		waits = append(waits, Wait{StartMs: float64(i), EndMs: float64(i) + .5})
	}
	if got := WaitTimes(waits, 600); len(got) > 600 || got[0][0] != 0 || got[len(got)-1][1] != 4999.5 {
		t.Errorf("%d waits", len(got))
	}
	if got := WaitTimes([]Wait{{StartMs: 5, EndMs: 9}, {StartMs: 1, EndMs: 6}, {StartMs: 20, EndMs: 20}}, 600); len(got) != 1 || got[0] != [2]float64{1, 9} {
		t.Errorf("merged: %v", got)
	}
}
