package main

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"

	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/index"
	"github.com/thaw-project/thaw/internal/indexer"
	"github.com/thaw-project/thaw/internal/startup"
	"github.com/thaw-project/thaw/internal/trace"
	"github.com/thaw-project/thaw/internal/tracestore"
)

// writeTrace writes a trace of reads of the image's layers: layer, offset, length.
func (n *smallImage) writeTrace(reads ...[3]int64) string {
	n.Helper()
	path := n.path("trace")
	f, err := os.Create(path)
	if err != nil {
		n.Fatal(err)
	}
	defer f.Close()
	if err := trace.Encode(f, n.trace(reads...)); err != nil {
		n.Fatal(err)
	}
	return path
}

func (n *smallImage) trace(reads ...[3]int64) *trace.Trace {
	t := &trace.Trace{Version: trace.Version, Image: n.lab.Images()[0].Digest, Reference: n.ref, Runs: 1, Created: time.Unix(1700000000, 0)}
	for i, r := range reads {
		t.Accesses = append(t.Accesses, trace.Access{Layer: n.manifest.Layers[r[0]].Digest, Offset: r[1], Length: r[2], At: time.Duration(i), Phase: trace.PhaseReady})
	}
	return t
}

// keepTrace puts an encoded trace into a store of traces.
func (n *node) keepTrace(dir string, b []byte) {
	n.Helper()
	tr, err := trace.Decode(bytes.NewReader(b), trace.Limits{})
	if err != nil {
		n.Fatal(err)
	}
	store, err := tracestore.Open(dir, slog.New(slog.DiscardHandler))
	if err == nil {
		err = store.Put(tr)
	}
	if err != nil {
		n.Fatal(err)
	}
}

// allReads is everything in the image's layers, the second one first.
var allReads = [][3]int64{{1, 0, 1 << 30}, {0, 0, 1 << 30}}

// someReads is the second layer and a part of the first one.
var someReads = [][3]int64{{1, 0, 1 << 30}, {0, 1 << 20, 1 << 20}}

// pushBundle puts an index with a start-up bundle beside the image, from another
// node, and returns the bundle's digest.
func (n *smallImage) pushBundle(reads ...[3]int64) string {
	n.Helper()
	n.thaw("--root", n.mkdir(), "index", "build", "--trace", n.writeTrace(reads...), "--push", n.ref)
	_, m := n.pushedIndex()
	b := m.Layers[len(m.Layers)-1]
	if b.MediaType != index.MediaTypeBundle {
		n.Fatalf("manifest has no bundle: %+v", m.Layers)
	}
	return b.Digest.String()
}

// layerRequests counts the requests for layers.
func (n *smallImage) layerRequests() (requests, bytes int64) {
	stats := n.lab.Stats()
	for _, l := range n.manifest.Layers {
		c := stats.Blobs[l.Digest.String()]
		requests, bytes = requests+c.Requests, bytes+c.Bytes
	}
	return requests, bytes
}

// bundled waits until the bundle of the only mount is through, and returns what
// became of it.
func (n *node) bundled() api.Stats {
	n.Helper()
	var s api.Stats
	n.eventually("the bundle is through", func() bool {
		s = n.status().Mounts[0].Stats
		return s.Bundle != api.BundleStreaming
	})
	return s
}

// TestBundle: a node gets from the bundle what the recorded start read, and no
// layer is asked for that.
func TestBundle(t *testing.T) {
	t.Parallel()
	n := newSmallImage(t)
	bundle := n.pushBundle(allReads...)
	n.lab.ResetStats()
	dir := n.mkdir()
	n.thaw("mount", "--background=off", "--index=require", n.ref, dir)
	s := n.bundled()
	n.sameTree(n.want, dir)
	if s.Bundle != api.BundleApplied || s.BundleBytes == 0 || s.FetchedBytes != 0 {
		t.Errorf("stats %+v", s)
	}
	if requests, _ := n.layerRequests(); requests != 0 {
		t.Errorf("%d requests for layers", requests)
	}
	n.eventually("as many bytes of the bundle were sent as are counted", func() bool { return n.lab.Stats().Blobs[bundle].Bytes == s.BundleBytes })
	n.thaw("umount", dir)

	// What is here in pieces makes whole layers without a request.
	n.thaw("mount", "--wait", n.ref, dir)
	n.sameTree(n.want, dir)
	if requests, _ := n.layerRequests(); requests != 0 {
		t.Errorf("%d requests for layers whose bytes are all in the bundle", requests)
	}
	n.thaw("umount", dir)
	n.lab.ResetStats()
	n.thaw("mount", "--wait", n.ref, dir)
	if got := n.lab.Stats().Requests; got != 0 {
		t.Errorf("%d requests for an image that is complete", got)
	}
}

// TestBundleOfAPart: the rest comes as ever, at once for readers, and in the
// background afterwards; each byte once.
func TestBundleOfAPart(t *testing.T) {
	t.Parallel()
	n := newSmallImage(t)
	n.pushBundle([3]int64{0, 1 << 20, 1 << 20}, [3]int64{0, 5<<20 + 4096, 100}, [3]int64{1, 0, 1 << 30})
	n.lab.ResetStats()
	dir := n.mkdir()
	n.thaw("mount", "--wait", n.ref, dir)
	n.sameTree(n.want, dir)
	var whole int64
	for _, l := range n.manifest.Layers {
		whole += l.Size
	}
	if requests, bytes := n.layerRequests(); requests == 0 || bytes > whole {
		t.Errorf("%d requests for %d bytes of layers of %d", requests, bytes, whole)
	}
}

// TestBundleOnFUSE: bundles are no business of the mount path.
func TestBundleOnFUSE(t *testing.T) {
	t.Parallel()
	n := newSmallImage(t)
	n.pushBundle(someReads...)
	n.write("config.toml", "mount = \"fuse\"\n")
	n.lab.ResetStats()
	dir := n.mkdir()
	n.thaw("mount", "--background=off", n.ref, dir)
	s := n.bundled()
	if _, err := os.ReadFile(filepath.Join(dir, "data/b")); err != nil {
		t.Fatal(err)
	}
	if s.Bundle != api.BundleApplied {
		t.Errorf("stats %+v", s)
	}
	if requests, _ := n.layerRequests(); requests != 0 {
		t.Errorf("%d requests for layers", requests)
	}
	n.sameTree(n.want, dir)
}

// TestBundleDamaged: a bundle that cannot be used is ignored, visibly, and all is
// right.
func TestBundleDamaged(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]string{
		"header": "flip=40", "frames": "flip=@100000", "gone": "404",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newSmallImage(t)
			bundle := n.pushBundle(someReads...)
			setFaults(t, n.lab, fault+",match=/blobs/"+bundle)
			dir := n.mkdir()
			n.thaw("mount", "--background=off", n.ref, dir)
			n.sameTree(n.want, dir)
			if s := n.bundled(); !strings.HasPrefix(s.Bundle, "ignored: ") {
				t.Errorf("stats %+v", s)
			}
			n.logs("start-up bundle is ignored")
		})
	}
}

// TestBundleWithoutRoom: the last of the disk is the readers', not a bundle's.
func TestBundleWithoutRoom(t *testing.T) {
	t.Parallel()
	n := newSmallImage(t)
	n.pushBundle(allReads...)
	n.policy("[cache]\nmin-free = \"100%\"")
	dir := n.mkdir()
	n.thaw("mount", "--background=off", "--index=require", n.ref, dir)
	if s := n.bundled(); !strings.Contains(s.Bundle, "ignored: no room") || s.HereBytes != 0 {
		t.Errorf("stats %+v", s)
	}
	n.sameTree(n.want, dir)
}

// TestBundleLies: a bundle whose pieces have the digests that its header says, and
// are not the layer's bytes. It is found out when the layers come; then all is
// right, and the index is not taken again.
func TestBundleLies(t *testing.T) {
	t.Parallel()
	n := newSmallImage(t)
	n.pushLyingBundle()
	dir := n.mkdir()
	n.thaw("mount", "--background=off", n.ref, dir)
	n.bundled()
	r := n.try("mount", "--wait", n.ref, n.mkdir())
	if r.code == 0 || !strings.Contains(r.stderr, "lied") {
		t.Errorf("nobody is told: %v", r)
	}
	// The next daemon goes on with what is mounted by it.
	pid := n.daemon()
	n.kill(pid)
	n.daemon(pid)
	n.sameTree(n.want, dir)
	if s := n.status(); len(s.Mounts) != 2 {
		t.Errorf("after a crash there are %d mounts", len(s.Mounts))
	}
	for _, m := range n.status().Mounts {
		n.thaw("umount", m.Dir)
	}
	r = n.try("mount", "--wait", n.ref, dir)
	if r.code != 0 || !strings.Contains(r.stderr, "was found to lie before") {
		t.Errorf("the index is taken again: %v", r)
	}
	n.sameTree(n.want, dir)
}

// pushLyingBundle puts an index beside the image that is right but for its bundle.
func (n *smallImage) pushLyingBundle() {
	n.Helper()
	g := &globalOptions{root: n.mkdir()}
	task, err := g.indexTask(n.Context(), n.ref, false)
	if err != nil {
		n.Fatal(err)
	}
	defer task.client.Close()
	made, err := task.build(n.Context(), false, newProgress(os.Stderr, n.ref))
	if err != nil {
		n.Fatal(err)
	}
	r, err := task.openLayers(n.Context(), made, filepath.Join(g.root, "store"))
	if err != nil {
		n.Fatal(err)
	}
	defer r.close()
	b, err := startup.Build(n.Context(), n.trace(someReads...), made.Image, func(ctx context.Context, l digest.Digest, off int64, b []byte) error {
		err := r.read(ctx, l, off, b)
		if off == 1<<20 {
			b[1000] ^= 1
		}
		return err
	})
	if err == nil {
		err = made.Artifact.SetBundle(b)
	}
	if err == nil {
		err = indexer.Push(n.Context(), task.repo, made.Artifact)
	}
	if err != nil {
		n.Fatal(err)
	}
}

// TestDaemonKilledDuringBundle: the next daemon believes what is here and goes on.
func TestDaemonKilledDuringBundle(t *testing.T) {
	t.Parallel()
	n := newSmallImage(t)
	bundle := n.pushBundle(someReads...)
	setFaults(t, n.lab, "stall=300000,match=/blobs/"+bundle)
	dir := n.mkdir()
	n.thaw("mount", "--background=off", n.ref, dir)
	n.eventually("a part of the bundle is here", func() bool {
		return n.status().Mounts[0].Stats.BundleBytes > 200_000
	})
	pid := n.daemon()
	n.kill(pid)
	setFaults(t, n.lab)
	n.daemon(pid)
	n.sameTree(n.want, dir)
	if s := n.bundled(); s.Bundle != api.BundleApplied {
		t.Errorf("stats %+v", s)
	}
}
