package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/index"
	"github.com/thaw-project/thaw/internal/testenv"
)

// TestOptimize: one node records a start of a real image and pushes the bundle;
// another one, on a network like a cloud's, starts from it: no layer is asked for
// until the container is ready.
func TestOptimize(t *testing.T) {
	testenv.NeedRuntime(t)
	builder, n := newNode(t), newNode(t)
	s := newLab(t, filepath.Join(testenv.Corpus(t), "oci"), "cloud")
	ref := s.Addr() + "/nginx:latest"
	port := freePort(t) // the same in both: the trace is of the whole command
	env, ready := "PORT="+port, "http://127.0.0.1:"+port+"/ready"
	builder.thaw("optimize", "-e", env, "--ready", ready, "--after", "100ms", "--push", "--json", ref)
	if left, _ := filepath.Glob(filepath.Join(builder.root, "optimize-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	out := builder.thaw("index", "verify", ref)
	if !strings.Contains(out, "start-up bundle of") {
		t.Errorf("verify says %s", out)
	}
	var in inspected
	if err := json.Unmarshal([]byte(n.thaw("index", "inspect", "--json", ref)), &in); err != nil || in.Bundle == nil || in.Bundle.Pieces == 0 || in.Bundle.ReadyMs == 0 {
		t.Errorf("inspect says %+v, %v", in, err)
	}
	for try := 1; ; try++ {
		s.ResetStats()
		watch := testenv.Start()
		line := n.timelineOf(ref, "--index=require", "--background=off", "-e", env, "--ready", ready, "--exit-when-ready")
		err := fromBundle(line.AtReady, s.Stats().Requests)
		if err == nil {
			break
		}
		// On a busy machine some of it may be late.
		if _, starved := watch.Over(0); try == 5 || starved < watch.Took()/4 {
			t.Fatalf("try %d, the machine was busy for %v of %v: %v", try, starved, watch.Took(), err)
		}
		t.Logf("try %d: %v", try, err)
		n.forget("")
	}
}

// fromBundle says what is wrong with a start that had all that it needs from a bundle.
func fromBundle(c *timelineCost, requests int64) error {
	switch {
	case c == nil || c.Bundle != api.BundleApplied || c.BundleBytes == 0 || c.BundleBytes > c.ImageBytes/4:
		return fmt.Errorf("at ready %+v", c)
	case c.Waits > 10 || c.LayerBytes > c.ImageBytes/4:
		return fmt.Errorf("%d reads waited, %d bytes of layers", c.Waits, c.LayerBytes)
	case requests > 40:
		return fmt.Errorf("%d requests", requests)
	}
	return nil
}

// TestTraceAuto: what a node recorded becomes a bundle; of another image of the
// repository, what both have. Without a record it is an error.
func TestTraceAuto(t *testing.T) {
	t.Parallel()
	n := newSmallImage(t)
	n.refuses(1, "no start of", "index", "build", "--trace", "auto", n.ref)
	b, err := os.ReadFile(n.writeTrace(someReads...))
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(n.root, "traces")
	n.keepTrace(dir, b)
	n.thaw("index", "build", "--trace", "auto", "--push", n.ref)
	_, m := n.pushedIndex()
	if m.Layers[len(m.Layers)-1].MediaType != index.MediaTypeBundle {
		t.Errorf("manifest %+v", m.Layers)
	}
	// The local store has it too.
	n.lab.ResetStats()
	mnt := n.mkdir()
	n.thaw("mount", "--background=off", n.ref, mnt)
	n.bundled()
	if requests, _ := n.layerRequests(); requests != 0 {
		t.Errorf("%d requests for layers", requests)
	}
	n.sameTree(n.want, mnt)
}

// TestPrefetchTrace: an index without a bundle, and a trace on the node: what it
// read comes first.
func TestPrefetchTrace(t *testing.T) {
	t.Parallel()
	n := newSmallImage(t)
	n.pushIndex(n.ref)
	b, err := os.ReadFile(n.writeTrace([3]int64{0, 7 << 20, 100}))
	if err != nil {
		t.Fatal(err)
	}
	n.keepTrace(filepath.Join(n.root, "traces"), b)
	mnt := n.mkdir()
	n.thaw("mount", "--wait", n.ref, mnt)
	n.sameTree(n.want, mnt)
	n.logs("bringing first what an earlier start read")
}
