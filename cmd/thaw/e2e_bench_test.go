package main

import (
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/bench"
	"github.com/thaw-project/thaw/internal/testenv"
)

// benchArgs time starts of nginx in a directory of the node.
func (n *node) benchArgs(flags ...string) []string {
	n.Helper()
	layout, _ := corpus(n, "nginx")
	port := freePort(n)
	return append([]string{"bench", "--image", "oci:" + layout + ":nginx", "--net", "fast", "-e", "PORT=" + port,
		"--ready", "http://127.0.0.1:" + port + "/ready", "--dir", n.base, "--pages", "http://127.0.0.1:" + port + "/"}, flags...)
}

// waitSteps waits for a benchmark that tells of each of its steps: one may take as
// long as other commands in all.
func (p *process) waitSteps(steps ...string) result {
	p.node.Helper()
	for _, step := range steps {
		p.err.wait(step, p.done)
	}
	return p.wait()
}

// benchLeft fails if a benchmark has left its directory or processes behind.
func (n *node) benchLeft() {
	n.Helper()
	if left, _ := filepath.Glob(n.path("thaw-bench-*")); len(left) > 0 {
		n.Errorf("left behind: %v", left)
	}
}

func TestBench(t *testing.T) {
	testenv.NeedRuntime(t)
	n := newNode(t)
	file := n.path("bench.json")
	r := n.start(n.benchArgs("--runs", "1", "--mode", "eager,lazy,lazy+bundle", "--read", "/usr/bin/perl", "--json-file", file)...).
		waitSteps("prepare lazy", "prepare lazy+bundle", "prepare warm", "eager: ready", "lazy: ready", "lazy+bundle: ready", "warm: ready")
	if r.code != 0 {
		t.Fatal(r)
	}
	n.benchLeft()
	for _, want := range []string{"network fast: 2 ms to the first byte, 1GB/s", "floor of lazy: 3 round trips x 2 ms + ", "noise was not judged",
		"cold: before each of 3 cold starts the image was removed and the page cache dropped"} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("no %q in\n%v", want, r)
		}
	}
	if !strings.Contains(r.stderr, "run 1 of 1: lazy: ready after ") {
		t.Errorf("no progress: %v", r)
	}
	var got bench.Result
	b, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(b, &got)
	}
	if err != nil {
		t.Fatal(err)
	}
	if got.Version != bench.ResultVersion || got.Runs != 1 || !strings.HasPrefix(got.Manifest, "sha256:") || got.ImageBytes < 1<<20 || got.ReadBytes < 1<<20 || len(got.Modes) != 4 {
		t.Errorf("result %s", b)
	}
	for _, name := range []string{"eager", "lazy", "lazy+bundle", "warm"} {
		m := got.Modes[name]
		if m == nil || len(m.ReadyMs) != 1 || m.MedianMs <= 0 || m.MedianMs != m.ReadyMs[0] || m.FirstReadMs == nil || m.SecondReadMs == nil ||
			len(m.Pages) != 1 || m.Pages[0].FirstMs.Median <= 0 || m.Pages[0].SecondMs.Median <= 0 || len(m.Residue) != 1 {
			t.Fatalf("%s: %s", name, b)
		}
		if name == "warm" {
			if m.Cold || m.Residue[0].StoredBytes < got.ImageBytes || m.FloorMs != nil {
				t.Errorf("warm is not warm: %s", b)
			}
			continue
		}
		if !m.Cold || !m.Residue[0].Cold() || m.FloorMs == nil || *m.FloorRatio <= 0 || m.CountedBy != "lab" || *m.RequestsUntilReady <= 0 || *m.BytesUntilReady <= 0 {
			t.Errorf("%s is not cold, or was not counted: %s", name, b)
		}
	}
	eager, lazy := got.Modes["eager"], got.Modes["lazy"]
	if *eager.BytesUntilReady < got.ImageBytes || eager.Floor.NeededBytes != got.ImageBytes || lazy.Floor.NeededBytes >= got.ImageBytes {
		t.Errorf("eager fetches all, lazy needs less: %s", b)
	}
}

// buildPeer puts the program that talks to containerd into PATH until the end of the test.
func (n *node) buildPeer() {
	n.Helper()
	testenv.NeedTool(n, "go")
	bin := n.mkdir()
	build := exec.Command("go", "build", "-o", bin, "../thaw-bench-containerd")
	if out, err := build.CombinedOutput(); err != nil {
		n.Fatalf("%v: %s", err, out)
	}
	path := os.Getenv("PATH")
	os.Setenv("PATH", bin+string(os.PathListSeparator)+path)
	n.Cleanup(func() { os.Setenv("PATH", path) })
}

// newContainerd runs a containerd of its own until the end of the test. It returns its
// socket.
func (n *node) newContainerd() string {
	n.Helper()
	programs := testenv.NeedContainerd(n, "2")
	n.buildPeer()
	script, err := filepath.Abs("../../scripts/containerd.sh")
	if err != nil {
		n.Fatal(err)
	}
	cmd := exec.Command(script, "serve", n.path("c"))
	cmd.Env = append(os.Environ(), "CONTAINERD_BIN="+programs)
	out := newOutput()
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		n.Fatal(err)
	}
	n.Cleanup(func() { // before the node's end, which looks for processes
		cmd.Process.Signal(unix.SIGTERM)
		cmd.Wait()
		if n.Failed() {
			n.Logf("containerd: %s", out)
		}
	})
	socket := n.path("c/containerd.sock")
	n.eventually("containerd answers", func() bool {
		c, err := net.Dial("unix", socket)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return socket
}

func TestBenchContainerd(t *testing.T) {
	testenv.NeedRuntime(t)
	n := newNode(t)
	socket := n.newContainerd()
	layout, _ := corpus(t, "nginx")
	r := n.start(n.benchArgs("--runs", "1", "--mode", "warm", "--vs-containerd", socket, "--tuned", "--json", "--read", "/usr/bin/perl")...).
		waitSteps("warm: ready", "containerd/overlayfs: ready", "containerd/overlayfs+tuned: ready")
	var got bench.Result
	if err := json.Unmarshal([]byte(r.stdout), &got); err != nil {
		t.Fatalf("%v\n%v", err, r)
	}
	n.benchLeft()
	for _, name := range []string{"containerd/overlayfs", "containerd/overlayfs+tuned"} {
		m := got.Modes[name]
		if m == nil || !m.Cold || !m.Residue[0].Cold() || m.MedianMs <= 0 || *m.BytesUntilReady < got.ImageBytes || m.FirstReadMs == nil || m.FloorMs == nil {
			t.Errorf("%s: %s", name, r.stdout)
		}
	}
	if left, err := bench.MeasureResidue(n.path("c/root/io.containerd.content.v1.content/blobs"), n.path("c/root/io.containerd.snapshotter.v1.overlayfs/snapshots")); err != nil || !left.Cold() {
		t.Errorf("containerd has %+v, %v", left, err)
	}
	pull := exec.Command(filepath.Join(testenv.NeedContainerd(t, "2"), "ctr"), "-a", socket, "-n", "other", "content", "fetch", "--plain-http", newLab(t, layout, "none").Addr()+"/nginx:latest")
	if out, err := pull.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	n.refuses(1, "in its namespace other as well", n.benchArgs("--vs-containerd", socket, "--mode", "warm", "--runs", "1")...)
	n.refuses(1, "has no snapshotter \"none\", only ", n.benchArgs("--vs-containerd", socket, "--snapshotter", "none", "--mode", "warm")...)
	n.refuses(1, "connect to containerd: ", n.benchArgs("--vs-containerd", "/none", "--mode", "warm")...)
}

// TestBenchSnapshotter times thaw as containerd's snapshotter beside thaw itself, with a
// start-up bundle.
func TestBenchSnapshotter(t *testing.T) {
	if os.Getenv("THAW_LONG") == "" {
		t.Skip("needs THAW_LONG: it takes half a minute")
	}
	c := newCluster(t, "2")
	n := newNode(t) // the benchmark's own daemons do not serve containerd
	n.buildPeer()
	r := n.start(n.benchArgs("--runs", "3", "--net", "cloud", "--mode", "lazy+bundle", "--vs-containerd", c.path("c.sock"), "--snapshotter", "thaw", "--json")...).
		waitSteps("prepare lazy+bundle", "run 1 of 3", "run 2 of 3", "run 3 of 3", "warm: ready")
	var got bench.Result
	if err := json.Unmarshal([]byte(r.stdout), &got); err != nil {
		t.Fatalf("%v\n%v", err, r)
	}
	m := got.Modes["containerd/thaw"]
	if m == nil || !m.Cold || m.MedianMs <= 0 || *m.BytesUntilReady >= got.ImageBytes {
		t.Fatalf("%s", r.stdout)
	}
	t.Logf("ready after %v ms, with thaw run %v ms", m.ReadyMs, got.Modes["lazy+bundle"].ReadyMs)
}

func TestBenchInterrupted(t *testing.T) {
	testenv.NeedRuntime(t)
	n := newNode(t)
	for _, at := range []string{"prepare lazy", "run 1 of 50: lazy"} {
		p := n.start(n.benchArgs("--runs", "50", "--mode", "lazy")...)
		if !p.err.wait(at, p.done) {
			t.Fatalf("no %q: %s", at, p.err)
		}
		p.signal(unix.SIGINT)
		if r := p.wait(); r.code != exitInterrupted || r.stdout != "" {
			t.Errorf("interrupted at %q: %v", at, r)
		}
		n.benchLeft()
	}
}
