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
		p := c.start("measure", "--attach", "nginx", "--containerd-address", c.path("c.sock"), "--ready", "http://127.0.0.1:"+port+"/ready", "--starts", "1", "--json")
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
	sum := 0.0
	for _, name := range profile.Phases[:profile.StartPhases] {
		p := run.Phase(name)
		if p == nil || p.Ms == nil {
			t.Errorf("%s: %s is %+v", what, name, p)
			continue
		}
		sum += *p.Ms
	}
	if run.TotalMs == nil || math.Abs(sum-*run.TotalMs) > 0.02**run.TotalMs {
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
	if t.Failed() {
		t.Logf("%s: %+v\nsignals %+v", what, run.Events, rec.Signals)
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
