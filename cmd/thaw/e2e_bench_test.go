package main

import (
	"encoding/json"
	"os"
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
	r := n.try(n.benchArgs("--runs", "1", "--mode", "eager,lazy", "--read", "/usr/bin/perl", "--json-file", file)...)
	if r.code != 0 {
		t.Fatal(r)
	}
	n.benchLeft()
	for _, want := range []string{"network fast: 2 ms to the first byte, 1GB/s", "floor of lazy: 3 round trips x 2 ms + ", "noise was not judged",
		"cold: before each of 2 cold starts the image was removed and the page cache dropped"} {
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
	if got.Version != bench.ResultVersion || got.Runs != 1 || !strings.HasPrefix(got.Manifest, "sha256:") || got.ImageBytes < 1<<20 || got.ReadBytes < 1<<20 || len(got.Modes) != 3 {
		t.Errorf("result %s", b)
	}
	for _, name := range []string{"eager", "lazy", "warm"} {
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
