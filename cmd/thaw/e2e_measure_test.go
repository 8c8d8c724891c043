package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/profile"
	"github.com/thaw-project/thaw/internal/testenv"
)

// measureArgs measure an image of the corpus in a directory of the node.
func (n *node) measureArgs(image, ready string, flags ...string) []string {
	n.Helper()
	layout, _ := corpus(n, image)
	port := freePort(n)
	return append([]string{"measure", "oci:" + layout + ":" + image, "-e", "PORT=" + port, "--ready", "http://127.0.0.1:" + port + ready, "--dir", n.base}, flags...)
}

// measureLeft fails if a measurement has left its directory or an instance of tracefs behind.
func (n *node) measureLeft() {
	n.Helper()
	left, _ := filepath.Glob(n.path("thaw-measure-*"))
	if len(left) > 0 {
		n.Errorf("left behind: %v", left)
	}
}

// measured waits for a measurement, and returns its record.
func (n *node) measured(p *process, steps ...string) *profile.Record {
	n.Helper()
	r := p.waitSteps(steps...)
	if r.code != 0 {
		n.Fatal(r)
	}
	rec, err := profile.Decode([]byte(r.stdout))
	if err != nil {
		n.Fatalf("%v\n%v", err, r)
	}
	n.measureLeft()
	return rec
}

// startKnown fails unless all phases of a run's start are known, and add up.
func startKnown(t testing.TB, r *profile.Run) {
	t.Helper()
	if r.TotalMs == nil {
		t.Fatalf("no total: %+v", r)
	}
	sum := 0.0
	for _, p := range r.Phases[:profile.StartPhases] {
		if p.Ms == nil {
			t.Errorf("%s is unknown: %s", p.Name, p.Reason)
			continue
		}
		if p.LazyWaitMs == nil || p.Bytes == nil || p.Files == nil {
			t.Errorf("%s: waits %v, bytes %v, files %v", p.Name, p.LazyWaitMs, p.Bytes, p.Files)
		}
		sum += *p.Ms
	}
	if math.Abs(sum-*r.TotalMs) > 0.02**r.TotalMs {
		t.Errorf("phases add up to %.1f of %.1f ms", sum, *r.TotalMs)
	}
}

// loadedByNode is what the corpus's node application loads, among others.
var loadedByNode = []string{"node:express", "node:lodash", "node:sequelize", "node:moment", "lib:libnode.so.108", "lib:libc.so.6"}

// bytesKnown says that all starts found in the page cache what they had read.
func bytesKnown(rec *profile.Record) bool {
	for _, s := range rec.Subjects {
		for _, r := range s.Runs {
			for _, p := range r.Packages {
				if slices.Contains(loadedByNode, p.Name) && p.Phase == profile.PhaseDependencyLoad && p.Bytes == 0 {
					return false
				}
			}
		}
	}
	return true
}

// TestMeasure: a real application, lazily and eagerly, from the request to requests that
// it answers.
func TestMeasure(t *testing.T) {
	testenv.NeedRuntime(t)
	n := newNode(t)
	var rec *profile.Record
	for attempt := 0; attempt < 3 && (rec == nil || !bytesKnown(rec)); attempt++ { // others on the machine may drop the page cache in between
		rec = n.measured(n.start(n.measureArgs("node", "/health/ready", "--net", "fast", "--runs", "1", "--compare-mode", "eager", "--request", "GET:/", "--wait-complete",
			"--name", "try", "--label", "release=1", "--json")...), "node lazy 1/1", "node eager 1/1")
	}
	if rec.Name != "try" || rec.Labels["release"] != "1" || rec.Source != profile.SourceMeasure || rec.Network.Name != "fast" || rec.Machine.CPUs < 1 || len(rec.Subjects) != 2 {
		t.Errorf("record %+v", rec.Labels)
	}
	for _, s := range rec.Signals {
		if !s.Used {
			t.Errorf("%s is not used: %s", s.Name, s.Reason)
		}
	}
	for i := range rec.Subjects {
		s := &rec.Subjects[i]
		r := &s.Runs[0]
		startKnown(t, r)
		if r.Coldness == nil || !r.Coldness.Proven || r.Coldness.Level != profile.ColdL0 {
			t.Errorf("%s: not cold: %+v", s.Name, r.Coldness)
		}
		if p := r.Phase(profile.PhaseHydration); p.Ms == nil {
			t.Errorf("%s: hydration is unknown: %s", s.Name, p.Reason)
		}
		first := r.Phase(profile.PhaseFirstRequest)
		if len(first.Routes) != 1 || first.Routes[0].Route != "GET /" || first.Routes[0].FirstMs <= 0 {
			t.Errorf("%s: first requests %+v", s.Name, first)
		}
		names := map[string]profile.Package{}
		for _, p := range r.Packages {
			if p.Phase == profile.PhaseDependencyLoad {
				names[p.Name] = p
			}
		}
		for _, want := range loadedByNode {
			if p := names[want]; p.Files == 0 || p.Bytes == 0 || p.Ms < 0 {
				t.Errorf("%s: %s is not among what was loaded: %+v", s.Name, want, p)
			}
		}
		read, never := 0, 0
		for _, f := range s.Files {
			if f.First != "" {
				read++
			} else {
				never++
			}
			if f.CompressedBytes > f.Bytes*2+4096 || f.Bytes > 1<<20 && f.CompressedBytes == 0 {
				t.Errorf("%s has %d bytes, %d compressed", f.Path, f.Bytes, f.CompressedBytes)
			}
		}
		if read < 500 || never < read || len(s.Layers) != 4 || s.Layers[3].Instruction == "" || !strings.HasPrefix(s.Manifest, "sha256:") || len(s.Command) == 0 || s.ImageBytes < 1<<20 {
			t.Errorf("%s: %d files were read, %d never; layers %+v", s.Name, read, never, s.Layers)
		}
		if len(r.Processes) == 0 || !strings.HasSuffix(r.Processes[0].Command, "/node") || r.Cost == nil || r.Cost.NetworkBytes == 0 || r.Cost.NeededBytes < 1<<20 {
			t.Errorf("%s: processes %+v, cost %+v", s.Name, r.Processes, r.Cost)
		}
	}
	lazy, eager := &rec.Subjects[0].Runs[0], &rec.Subjects[1].Runs[0]
	if len(lazy.Waits) == 0 || *lazy.Phase(profile.PhaseDependencyLoad).LazyWaitMs <= 0 {
		t.Errorf("a lazy start did not wait: %+v", lazy.Waits)
	}
	if len(eager.Waits) != 0 || *eager.Phase(profile.PhasePull).Ms <= *lazy.Phase(profile.PhasePull).Ms {
		t.Errorf("an eager start waited, or pulled for less: %+v", eager.Phases)
	}
}

// straced are the system calls of a process by strace -ttt -T: when they ended.
func straced(t testing.TB, file, call, text string) (time.Time, bool) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		at, rest, _ := strings.Cut(line, " ")
		if !strings.HasPrefix(rest, call) || !strings.Contains(rest, text) {
			continue
		}
		begun, err := strconv.ParseFloat(at, 64)
		open := strings.LastIndex(rest, "<")
		if err != nil || open < 0 {
			t.Fatalf("line of strace %q: %v", line, err)
		}
		took, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(rest[open+1:]), ">"), 64)
		if err != nil {
			t.Fatalf("line of strace %q: %v", line, err)
		}
		return time.UnixMicro(int64((begun + took) * 1e6)), true
	}
	return time.Time{}, false
}

// TestMeasureStrace: strace sees the same start at the same times. It holds everything up,
// itself too on a busy machine, so some attempts may disagree.
func TestMeasureStrace(t *testing.T) {
	testenv.NeedRuntime(t)
	testenv.NeedTool(t, "strace")
	const attempts, within = 5, 10 * time.Millisecond
	n := newNode(t)
	for attempt := 1; ; attempt++ {
		dir, args := n.mkdir(), n.measureArgs("node", "/health/ready", "--net", "none", "--runs", "1", "--json")
		cmd := n.command(args...)
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		out := filepath.Join(dir, "o")
		strace := exec.Command("strace", slices.Concat([]string{"-ff", "--seccomp-bpf", "-ttt", "-T", "-s", "40", "-e", "trace=execve,listen,write,writev", "-o", out, exe}, cmd.Args[1:])...)
		strace.Env, strace.Dir = cmd.Env, cmd.Dir
		b, err := strace.Output()
		if err != nil {
			var exit *exec.ExitError
			if errors.As(err, &exit) {
				b = exit.Stderr
			}
			t.Fatalf("%v: %s", err, b)
		}
		rec, err := profile.Decode(b)
		if err != nil {
			t.Fatal(err)
		}
		r := &rec.Subjects[0].Runs[0]
		startKnown(t, r)
		file := fmt.Sprintf("%s.%d", out, r.Processes[0].Pid)
		agree := true
		for _, e := range []struct{ name, call, text string }{
			{profile.EventStarted, "execve(", "/node"}, {profile.EventListen, "listen(", ""}, {profile.EventReady, "write", "HTTP/1.1 200"},
		} {
			at, ok := straced(t, file, e.call, e.text)
			if !ok {
				t.Fatalf("strace has no %s(%s)", e.call, e.text)
			}
			off := r.Begun.Add(time.Duration(r.Event(e.name).AtMs * float64(time.Millisecond))).Sub(at)
			t.Logf("attempt %d: %s is %v later than strace has it", attempt, e.name, off)
			agree = agree && off.Abs() <= within
		}
		if agree {
			return
		}
		if attempt == attempts {
			t.Fatalf("no attempt of %d agreed within %v", attempts, within)
		}
	}
}

// slowServer is the corpus's node application with a sleep where SLEEP says.
const slowServer = `
const sleep = ms => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);
const at = where => process.env.SLEEP === where;
const express = require('express'), _ = require('lodash'), moment = require('moment');
if (at('import')) sleep(5000);
require('axios'); require('pg'); require('winston'); require('helmet'); require('sequelize'); require('joi');
require('date-fns'); require('rxjs'); require('graphql'); require('ajv');
const app = express();
app.get('/health/ready', (q, s) => setTimeout(() => s.json({}), at('health') ? 5000 : 0));
setTimeout(() => app.listen(+process.env.PORT, process.env.BIND), at('bootstrap') ? 5000 : 0);
`

// TestMeasureSlowed: what is slow shows in its own phase, and in no other.
func TestMeasureSlowed(t *testing.T) {
	testenv.NeedRuntime(t)
	n := newNode(t)
	server := n.write("server.js", slowServer)
	phases := map[string]string{"": "", "import": profile.PhaseDependencyLoad, "bootstrap": profile.PhaseBootstrap, "health": profile.PhaseHealthContainer}
	if os.Getenv("THAW_LONG") == "" { // ten seconds each
		phases = map[string]string{"bootstrap": profile.PhaseBootstrap}
	}
	for where, slow := range phases {
		rec := n.measured(n.start(n.measureArgs("node", "/health/ready", "--net", "none", "--mode", "no-index", "--runs", "1", "--cold", "L1", "-v", server+":/app/server.js:ro",
			"-e", "SLEEP="+where, "--json")...), "node 1/1")
		r := &rec.Subjects[0].Runs[0]
		startKnown(t, r)
		for _, p := range r.Phases[:profile.StartPhases] {
			if p.Name == slow && *p.Ms < 4990 || p.Name != slow && *p.Ms > 4990 {
				t.Errorf("sleeping in %q, %s took %.1f ms", where, p.Name, *p.Ms)
			}
		}
	}
}

// TestMeasureSlowNetwork: a slower network shows in the pull, and in what waits for bytes.
func TestMeasureSlowNetwork(t *testing.T) {
	if os.Getenv("THAW_LONG") == "" {
		t.Skip("needs THAW_LONG: it takes half a minute")
	}
	testenv.NeedRuntime(t)
	n := newNode(t)
	ms := map[string]map[string]float64{}
	for _, network := range []string{"none", "slow"} {
		rec := n.measured(n.start(n.measureArgs("node", "/health/ready", "--net", network, "--runs", "2", "--json")...), "node 1/2", "node 2/2")
		ms[network] = map[string]float64{}
		for _, p := range rec.Subjects[0].Runs[1].Phases[:profile.StartPhases] {
			ms[network][p.Name] = *p.Ms
			ms[network]["waited in "+p.Name] = *p.LazyWaitMs
		}
	}
	t.Logf("%v", ms)
	for _, name := range []string{profile.PhasePull, profile.PhaseDependencyLoad, "waited in " + profile.PhaseDependencyLoad} {
		if ms["slow"][name] < ms["none"][name]+100 {
			t.Errorf("%s: %v ms, and on a fast network %v", name, ms["slow"][name], ms["none"][name])
		}
	}
	for _, name := range []string{profile.PhaseBootstrap, profile.PhaseHealthContainer} {
		if ms["slow"][name] > ms["none"][name]+400 {
			t.Errorf("%s: %v ms, and on a fast network %v", name, ms["slow"][name], ms["none"][name])
		}
	}
}

// TestMeasureEnds: by Ctrl-C, by a container that ends, and by kill -9, after which the
// next measurement cleans up.
func TestMeasureEnds(t *testing.T) {
	testenv.NeedRuntime(t)
	n := newNode(t)
	p := n.start(n.measureArgs("nginx", "/ready", "--net", "none", "--mode", "no-index", "--runs", "50")...)
	if !p.err.wait("nginx 1/50", p.done) {
		t.Fatalf("no run: %s", p.err)
	}
	p.signal(unix.SIGINT) // what was measured until then is not lost
	r := p.wait()
	if r.code != exitInterrupted || !strings.Contains(r.stdout, "warning: cut short in run") || !strings.Contains(r.stderr, "thaw: interrupted") {
		t.Errorf("interrupted: %v", r)
	}
	n.measureLeft()
	kept := n.thaw("runs", "show", "last", "--json")
	if !strings.Contains(kept, `: interrupted"`) {
		t.Errorf("kept: %s", kept)
	}
	p = n.start(n.measureArgs("nginx", "/ready", "--net", "none", "--mode", "no-index", "--runs", "50")...)
	n.eventually("its daemon is there", func() bool { return len(n.pids(" daemon ")) > 0 })
	p.signal(unix.SIGINT)
	if r := p.wait(); r.code != exitInterrupted || r.stdout != "" {
		t.Errorf("interrupted before there was anything: %v", r)
	}
	n.measureLeft()

	p = n.start(n.measureArgs("nginx", "/ready", "--net", "none", "--mode", "no-index", "--runs", "50")...)
	if !p.err.wait("nginx 1/50", p.done) {
		t.Fatalf("no run: %s", p.err)
	}
	p.signal(unix.SIGKILL)
	p.wait()
	instances := fmt.Sprintf("/sys/kernel/tracing/instances/thaw-measure-%d-*", p.cmd.Process.Pid)
	if _, err := os.Stat("/sys/kernel/tracing/instances"); err == nil {
		if left, _ := filepath.Glob(instances); len(left) != 1 {
			t.Errorf("killed, it left %v", left)
		}
	}
	n.eventually("what it started to observe has ended by itself", func() bool {
		return len(n.pids(" run ")) == 0 && len(n.pids(" lab ")) == 0
	})
	if left, _ := filepath.Glob(n.path("thaw-measure-*")); len(left) != 1 {
		t.Errorf("killed, it left %v", left)
	}
	n.refuses(exitFailed, "thaw run: ", append(n.measureArgs("nginx", "/ready", "--net", "none", "--mode", "no-index", "--runs", "1"), "--", "/bin/false")...)
	n.measureLeft()
	if left, _ := filepath.Glob(instances); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if left := n.pids(" daemon "); len(left) > 0 {
		t.Errorf("daemons are left: %v", left)
	}
}

// TestMeasureRefuses: what cannot be measured is said before anything is started.
func TestMeasureRefuses(t *testing.T) {
	n := newNode(t)
	for text, args := range map[string][]string{
		"want an IMAGE":            {},
		"want --ready":             {"app"},
		"neither an http":          {"app", "--ready", "x"},
		"--cold \"L9\"":            {"app", "--ready", "tcp:1", "--cold", "L9"},
		"--mode \"x\"":             {"app", "--ready", "tcp:1", "--mode", "x"},
		"--runs \"0\"":             {"app", "--ready", "tcp:1", "--runs", "0"},
		"--label \"x\"":            {"app", "--ready", "tcp:1", "--label", "x"},
		"label \"x\\ny\" is not":   {"app", "--ready", "tcp:1", "--label", "a=x\ny"},
		"name \"x\\ty\" is not":    {"app", "--ready", "tcp:1", "--name", "x\ty"},
		"request \"x\"":            {"app", "--ready", "tcp:1", "--request", "x"},
		"--repeat 0":               {"app", "--ready", "tcp:1", "--repeat", "0"},
		"--net is of the lab":      {"app", "--ready", "tcp:1", "--net", "slow"},
		"want one IMAGE":           {"app", "--ready", "tcp:1", "other"},
		"volume \"x\"":             {"app", "--ready", "tcp:1", "-v", "x"},
		"not yet: nothing freezes": {"app", "--ready", "tcp:1", "--cold", "L3"},
	} {
		code := exitUsage
		if strings.HasPrefix(text, "not yet") {
			code = exitFailed
		}
		n.refuses(code, text, append([]string{"measure"}, args...)...)
	}
}

// TestMeasureTable: what a person sees.
func TestMeasureTable(t *testing.T) {
	testenv.NeedRuntime(t)
	n := newNode(t)
	file := n.path("record.json")
	r := n.start(n.measureArgs("nginx", "/ready", "--net", "fast", "--runs", "1", "--cold", "L1", "--request", "/", "--json-file", file)...).waitSteps("nginx 1/1")
	if r.code != 0 {
		t.Fatal(r)
	}
	for _, want := range append(slices.Clone(profile.Phases), "nginx (lazy, L1): 1 runs, ready after", "lib:libc.so.6", "GET /", "measured (tracefs", "too few to say", "record 20") {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("no %q in\n%s", want, r.stdout)
		}
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var rec profile.Record
	if err := json.Unmarshal(b, &rec); err != nil {
		t.Fatal(err)
	}
	startKnown(t, &rec.Subjects[0].Runs[0])
	if waits := rec.Subjects[0].Runs[0].Waits; len(waits) > 0 {
		t.Errorf("all of it was here, and a read waited: %+v", waits)
	}
}

// TestMeasureDegraded: where the kernel's tracing cannot be had, as in a PID namespace of
// its own, the rest says as much as it can, and why not more.
func TestMeasureDegraded(t *testing.T) {
	testenv.NeedRuntime(t)
	n := newNode(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := n.command(n.measureArgs("nginx", "/ready", "--net", "none", "--mode", "no-index", "--runs", "1", "--json")...)
	unshare := exec.Command("unshare", slices.Concat([]string{"--pid", "--fork", "--kill-child", "--mount-proc", exe}, cmd.Args[1:])...)
	unshare.Env, unshare.Dir = cmd.Env, cmd.Dir
	var stderr strings.Builder
	unshare.Stderr = &stderr
	b, err := unshare.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, &stderr)
	}
	rec, err := profile.Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]profile.Signal{}
	for _, s := range rec.Signals {
		used[s.Name] = s
	}
	if s := used[profile.SignalTracefs]; s.Used || !strings.Contains(s.Reason, "PID namespace") {
		t.Errorf("tracefs: %+v", s)
	}
	if s := used[profile.SignalProc]; !s.Used || s.Reason == "" {
		t.Errorf("proc: %+v", s)
	}
	r := &rec.Subjects[0].Runs[0]
	startKnown(t, r)
	if e := r.Event(profile.EventListen); e == nil || e.Source != profile.SignalProc || e.PrecisionMs == 0 {
		t.Errorf("listening: %+v", e)
	}
	if e := r.Event(profile.EventStarted); e == nil || e.Confidence != profile.Estimated {
		t.Errorf("execution: %+v", e)
	}
}

// TestMeasureOverhead: starts that nobody observes are compared with those that are.
func TestMeasureOverhead(t *testing.T) {
	if os.Getenv("THAW_LONG") == "" {
		t.Skip("needs THAW_LONG: it takes half a minute")
	}
	testenv.NeedRuntime(t)
	n := newNode(t)
	rec := n.measured(n.start(n.measureArgs("node", "/health/ready", "--net", "none", "--mode", "no-index", "--cold", "L2", "--runs", "5", "--overhead", "--json")...),
		"node 1/5", "node unobserved 3/5", "node unobserved 5/5")
	for i := range rec.Subjects {
		for k := range rec.Subjects[i].Runs {
			r := &rec.Subjects[i].Runs[k]
			reached := r.Event(profile.EventReached)
			if reached == nil || reached.Source != profile.SignalProbe || reached.AtMs > *r.TotalMs {
				t.Fatalf("run %d of %s was reached: %+v", k+1, rec.Subjects[i].Name, reached)
			}
			if listen := r.Event(profile.EventListen); i == 0 && (listen == nil || listen.AtMs > reached.AtMs || listen.AtMs < reached.AtMs-reached.PrecisionMs-1) || i == 1 && listen != nil {
				t.Errorf("run %d of %s: listening %+v, reached %+v", k+1, rec.Subjects[i].Name, listen, reached)
			}
		}
	}
	as, bs := paired(&rec.Subjects[1], &rec.Subjects[0], profile.EventReached)
	pairs, _ := profile.ComparePairs(as, bs)
	t.Logf("to listen %.0f ms unobserved, %.0f ms observed: %+v", profile.Percentile(as, 0.5), profile.Percentile(bs, 0.5), pairs)
	unobserved := &rec.Subjects[1].Runs[0]
	if p := unobserved.Phase(profile.PhaseDependencyLoad); p.Ms != nil || len(unobserved.Reads)+len(unobserved.Processes) > 0 {
		t.Errorf("unobserved, and dependencies are known: %+v", p)
	}
	startKnown(t, &rec.Subjects[0].Runs[0])
}

// TestMeasureBundle: a start-up bundle is made before anything is measured.
func TestMeasureBundle(t *testing.T) {
	if os.Getenv("THAW_LONG") == "" {
		t.Skip("needs THAW_LONG: it takes half a minute")
	}
	testenv.NeedRuntime(t)
	n := newNode(t)
	rec := n.measured(n.start(n.measureArgs("nginx", "/ready", "--net", "cloud", "--runs", "2", "--mode", "lazy", "--compare-mode", "lazy+bundle", "--json")...),
		"nginx lazy 1/2", "nginx lazy+bundle 1/2", "nginx lazy 2/2")
	for i := range rec.Subjects {
		for k := range rec.Subjects[i].Runs {
			startKnown(t, &rec.Subjects[i].Runs[k])
		}
	}
}
