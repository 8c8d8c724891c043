package main

import (
	"math"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/profile"
)

// tells waits until the command has said something on its standard error.
func (p *process) tells(text string) {
	p.node.Helper()
	if !p.err.wait(text, p.done) {
		p.node.Fatalf("thaw %s does not say %q\nstdout: %s\nstderr: %s", strings.Join(p.args, " "), text, p.out, p.err)
	}
}

// attached decodes the record that a command has printed.
func attached(t testing.TB, r result) *profile.Record {
	t.Helper()
	if r.code != 0 {
		t.Fatal(r)
	}
	rec, err := profile.Decode([]byte(r.stdout))
	if err != nil {
		t.Fatalf("%v: %s", err, r)
	}
	return rec
}

// TestMeasureAttach: starts that ctr makes are measured, with either snapshotter: what
// containerd says, what the kernel says of executions, listening and opens, and the probe.
func TestMeasureAttach(t *testing.T) {
	c := newCluster(t, "2", `background = "off"`)
	_, ref := c.lazyNginx()
	for _, snapshotter := range []string{"thaw", "overlayfs"} {
		port := freePort(c.node)
		p := c.start("measure", "--attach", "nginx", "--containerd-address", c.path("c.sock"), "--ready", "http://127.0.0.1:"+port+"/ready", "--request", "GET:/", "--starts", "1", "--json")
		p.tells("watching containerd")
		c.ctr("images", "pull", "--local", "--plain-http", "--snapshotter", snapshotter, ref)
		c.ctr("run", "-d", "--net-host", "--snapshotter", snapshotter, "--env", "PORT="+port, ref, "one")
		rec := attached(t, p.wait())
		c.ctr("tasks", "rm", "-f", "one")
		c.ctr("containers", "rm", "one")
		if len(rec.Subjects) != 1 || len(rec.Subjects[0].Runs) != 1 || rec.Subjects[0].Mode != "containerd/"+snapshotter || rec.Subjects[0].Image != ref {
			t.Fatalf("%s: %+v", snapshotter, rec.Subjects)
		}
		checkAttached(t, snapshotter, rec, port)
	}
	checkOthers(c, ref)

	// A kubelet's, with a network of its own; its sandbox is not measured.
	k := c.kubelet()
	p := c.start("measure", "--attach", "--namespace", "k8s.io", "--containerd-address", c.path("c.sock"), "--ready", "http://127.0.0.1:8080/ready", "--request", "GET:/", "--starts", "1", "--json")
	p.tells("watching containerd")
	pod := k.runPod("one")
	if err := k.pullImage(ref, nil); err != nil {
		t.Fatal(err)
	}
	pod.start("server", ref, "PORT=8080")
	rec := attached(t, p.wait())
	checkAttached(t, "pod", rec, "8080")
	if s := rec.Subjects[0]; s.Image != ref {
		t.Errorf("pod: image %s, want %s", s.Image, ref)
	}
	pod.remove()
	k.removeImage(ref)
}

func checkAttached(t *testing.T, what string, rec *profile.Record, port string) {
	t.Helper()
	run := &rec.Subjects[0].Runs[0]
	for name, source := range map[string]string{profile.EventPullEnd: profile.SignalContainerd, profile.EventCreated: profile.SignalContainerd,
		profile.EventStarted: profile.SignalTracefs, profile.EventListen: profile.SignalTracefs, profile.EventReady: profile.SignalProbe} {
		if e := run.Event(name); e == nil || e.Source != source {
			t.Errorf("%s: %s is %+v, want it by %s", what, name, e, source)
		}
	}
	if e := run.Event(profile.EventListen); e != nil && e.Detail != "port "+port {
		t.Errorf("%s: it listens at %s, want %s", what, e.Detail, port)
	}
	sum, known := 0.0, true
	for i, name := range profile.Phases[:profile.StartPhases] {
		p := run.Phase(name)
		if p == nil || p.Ms == nil {
			// It loads for some milliseconds: where the machine is busy its opens are heard of later.
			if loads := i == 3 || i == 4; !loads || p == nil || p.Reason == "" {
				t.Errorf("%s: %s is %+v", what, name, p)
			}
			known = false
			continue
		}
		sum += *p.Ms
	}
	if run.TotalMs == nil || known && math.Abs(sum-*run.TotalMs) > 0.02**run.TotalMs {
		t.Errorf("%s: phases add up to %.1f ms, want %v", what, sum, run.TotalMs)
	}
	for _, path := range []string{"/usr/sbin/nginx", "/etc/nginx/nginx.conf"} {
		if !slices.ContainsFunc(run.Reads, func(r profile.Read) bool { return r.Path == path }) {
			t.Errorf("%s: the open of %s was not seen, of %d", what, path, len(run.Reads))
		}
	}
	if !slices.ContainsFunc(run.Processes, func(p profile.Process) bool { return strings.HasSuffix(p.Command, "nginx") }) {
		t.Errorf("%s: processes %+v", what, run.Processes)
	}
	if p := run.Phase(profile.PhaseFirstRequest); p == nil || p.Ms == nil || len(run.Requests) != 8 {
		t.Errorf("%s: %+v, requests %+v", what, p, run.Requests)
	}
	if i := slices.IndexFunc(run.Reads, func(r profile.Read) bool { return r.Path == "/usr/sbin/nginx" }); i >= 0 && run.Reads[i].Bytes == 0 {
		t.Errorf("%s: nothing was read of nginx", what)
	}
	if t.Failed() {
		t.Logf("%s: %+v\nsignals %+v\nreads %+v", what, run.Events, rec.Signals, run.Reads[:min(10, len(run.Reads))])
	}
}

// checkOthers: what is not meant is left alone, and what ends is said to have.
func checkOthers(c *cluster, ref string) {
	c.Helper()
	p := c.start("measure", "--attach", "two", "--containerd-address", c.path("c.sock"), "--json", "--ready", "tcp:1")
	p.tells("watching containerd")
	c.runIn(ref, "one", "true")
	if _, err := c.tryCtr("run", "--rm", "--snapshotter", "thaw", ref, "two", "sh", "-c", "exit 7"); err == nil {
		c.Error("exit code 0")
	}
	p.tells("it ended with code 7")
	p.signal(unix.SIGINT)
	rec := attached(c, p.wait())
	if len(rec.Subjects) != 1 || len(rec.Subjects[0].Runs) != 1 || rec.Subjects[0].Runs[0].Container != "two" || rec.Subjects[0].Runs[0].Error != "it ended with code 7 before it was ready" {
		c.Errorf("record %+v", rec.Subjects)
	}
	none := c.start("measure", "--attach", "none", "--containerd-address", c.path("c.sock"))
	none.tells("watching containerd")
	none.signal(unix.SIGINT)
	if r := none.wait(); r.code != 130 {
		c.Error(r)
	}
	c.refuses(1, "connect to containerd", "measure", "--attach", "--containerd-address", c.path("none.sock"))
}
