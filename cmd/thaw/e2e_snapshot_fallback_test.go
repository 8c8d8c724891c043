package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/layertar/layertartest"
)

// fallback returns the event about an image with a reason, or fails.
func (n *snapNode) fallback(ref, action, reason string) api.Fallback {
	n.Helper()
	all, err := api.NewClient(n.root).Fallbacks(n.Context())
	if err != nil {
		n.Fatal(err)
	}
	for _, f := range all {
		if f.Image == ref && f.Reason == reason && f.Action == action {
			return f
		}
	}
	n.Errorf("no fallback of %q to %s for %s, only %+v", ref, action, reason, all)
	return api.Fallback{}
}

// TestSnapshotWithoutIndex brings an image that has no index whole, and is lazy with what it made of that
// when the image is pulled again.
func TestSnapshotWithoutIndex(t *testing.T) {
	n := newSnapNode(t, api.ModeFanotify)
	layout := t.TempDir()
	layers := manySpans()
	writeImage(t, layout, "many", compressions[0], layers)
	ref := newLab(t, layout, "none").Addr() + "/many:latest"
	img := n.image(layout, "many", ref)
	n.pull(img)
	if f := n.fallback(ref, "eager", "no-index"); f.Hint == "" || f.Manifest != img.manifest {
		t.Errorf("fallback: %+v", f)
	}
	for i, chain := range img.chains {
		n.sameChain(chain, chainTree(t, layers[:i+1]))
		usage, err := n.sn.Usage(t.Context(), chain)
		if want := int64(len(layers[i])); err != nil || usage.Inodes != 1 || usage.Size < want || usage.Size > want+want/4+65536 {
			t.Errorf("usage of a complete layer of %d bytes: %+v, %v", want, usage, err)
		}
	}
	n.remove(img)
	n.empty()
}

// TestSnapshotFallback leaves to containerd what thaw is not to have, or cannot.
func TestSnapshotFallback(t *testing.T) {
	n := newSnapNode(t, api.ModeFanotify, `images = [{match = "**/off:*", mode = "off"}, {match = "**/eager", mode = "eager"}]`)
	layout := t.TempDir()
	layers := manySpans()
	names := []string{"off", "eager", "lazy", "odd"}
	for _, name := range names[:3] {
		// Each has layers of its own.
		top := new(layertartest.Builder).File("name", []byte(name)).End().Bytes()
		writeImage(t, layout, name, compressions[0], [][]byte{top, layers[0]})
	}
	writeImage(t, layout, "odd", compressions[0], [][]byte{new(layertartest.Builder).File("../name", nil).End().Bytes()})
	addr := newLab(t, layout, "none").Addr()
	images := map[string]snapImage{}
	for _, name := range names {
		images[name] = n.image(layout, name, addr+"/"+name+":latest")
		if name != "odd" {
			n.pushIndex(images[name].ref)
		}
	}
	plain := func(img snapImage, reason string) {
		t.Helper()
		if at, err := n.tryPull(img); err != nil || at != 0 {
			t.Errorf("%s: layer %d is to be unpacked, %v", img.ref, at, err)
		}
		n.fallback(img.ref, "plain", reason)
	}
	plain(images["off"], "configured")
	plain(images["odd"], "unsupported")
	unnamed := images["lazy"]
	unnamed.ref = ""
	plain(unnamed, "unnamed")
	gone := images["lazy"]
	gone.ref = addr + "/gone:latest"
	plain(gone, "registry")

	n.pull(images["eager"])
	n.fallback(images["eager"].ref, "eager", "configured")
	if m := n.status().Mounts; len(m) != 1 || m[0].Mode != api.ModeEager || m[0].Stats.HereBytes != m[0].Stats.UnpackedBytes {
		t.Errorf("mounts: %+v", m)
	}
	// A lazy layer on one that containerd has unpacked is not possible.
	lazy := images["lazy"]
	key := n.key("extract")
	if _, err := n.sn.Prepare(t.Context(), key, ""); err != nil {
		t.Fatal(err)
	}
	if err := n.sn.Commit(t.Context(), "unpacked", key); err != nil {
		t.Fatal(err)
	}
	key = n.key("extract")
	if _, err := n.sn.Prepare(t.Context(), key, "unpacked", snapshots.WithLabels(lazy.labels(1))); err != nil {
		t.Error(err)
	}
	n.fallback(lazy.ref, "plain", "plain-parent")
	for _, name := range []string{key, "unpacked"} {
		if err := n.sn.Remove(t.Context(), name); err != nil {
			t.Error(err)
		}
	}
	n.pull(lazy)
	for _, img := range images {
		n.remove(img)
	}
	n.empty()
	pid := n.daemon()
	n.kill(pid)
	n.thaw("cache", "ls")
	n.fallback(lazy.ref, "plain", "plain-parent") // of the daemon before
	n.refuses(exitUsage, "containerd.listen", "--config", n.write("wrong.toml", "[containerd]\nlisten = \"relative\"\n"), "--root", n.mkdir(), "daemon")
}

// TestSnapshotManyLayers has an image of 70 layers.
func TestSnapshotManyLayers(t *testing.T) {
	n := newSnapNode(t, api.ModeFanotify)
	layout := t.TempDir()
	var layers [][]byte
	for i := range 70 {
		layers = append(layers, new(layertartest.Builder).File(fmt.Sprint("file", i), layertartest.Fill(i, 100_000)).
			File("last", fmt.Append(nil, i)).End().Bytes())
	}
	writeImage(t, layout, "deep", compressions[0], layers)
	ref := newLab(t, layout, "none").Addr() + "/deep:latest"
	n.pushIndex(ref)
	img := n.image(layout, "deep", ref)
	begun := time.Now()
	n.pull(img)
	pulled := time.Since(begun)
	key := n.key("container")
	begun = time.Now()
	mounts, err := n.sn.Prepare(t.Context(), key, img.top())
	if err != nil {
		t.Fatal(err)
	}
	n.mounted(mounts, func(dir string) {
		t.Logf("pulled in %v, mounted in %v", pulled, time.Since(begun))
		if last, err := os.ReadFile(filepath.Join(dir, "last")); err != nil || string(last) != "69" {
			t.Errorf("last: %q, %v", last, err)
		}
	})
	if n := strings.Count(strings.Join(mounts[0].Options, " "), "image"); n != 1 {
		t.Errorf("an overlay over %d images: %v", n, mounts)
	}
	if err := n.sn.Remove(t.Context(), key); err != nil {
		t.Error(err)
	}
	n.sameChain(img.chains[34], chainTree(t, layers[:35]))
	n.remove(img)
	n.empty()
}
