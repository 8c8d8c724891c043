package main

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/index"
	"github.com/thaw-project/thaw/internal/indexer"
	"github.com/thaw-project/thaw/internal/lab"
	"github.com/thaw-project/thaw/internal/layertar"
	"github.com/thaw-project/thaw/internal/oci"
	"github.com/thaw-project/thaw/internal/registry"
)

// smallImage is an image of several spans in a lab registry, with an index.
type smallImage struct {
	*node
	layout   string
	lab      *lab.Server
	ref      string
	want     tree
	manifest v1.Manifest
}

func newSmallImage(t testing.TB, layers ...[]byte) *smallImage {
	t.Helper()
	if layers == nil {
		layers = manySpans()
	}
	n := newNode(t)
	layout := n.mkdir()
	m := writeImage(t, layout, "small", compressions[0], layers)
	s := newLab(t, layout, "none")
	return &smallImage{node: n, layout: layout, lab: s, ref: s.Addr() + "/small", want: n.apply(layers), manifest: m}
}

// sameOrEIO compares a mount: files that cannot be read have to fail with EIO,
// all others have to be right. It returns those that cannot.
func (n *node) sameOrEIO(want tree, dir string) map[string]error {
	n.Helper()
	failed := map[string]error{}
	n.within(2*patience, func() error {
		got, err := readTree(dir)
		if err != nil {
			return err
		}
		failed = got.errors
		for name, err := range failed {
			if !errors.Is(err, unix.EIO) {
				n.Errorf("read %s: %v", name, err)
			}
			f := got.facts[name]
			f.Sum = want.facts[name].Sum
			got.facts[name] = f
		}
		return want.diff(got)
	})
	return failed
}

// TestFlippedLayerByte: reads that need it get EIO, the log names layer and
// span; nothing is kept of it, so that later all is right.
func TestFlippedLayerByte(t *testing.T) {
	t.Parallel()
	n := newSmallImage(t)
	n.pushIndex(n.ref)
	layer := n.manifest.Layers[0]
	setFaults(t, n.lab, "flip=@3000000,match=/blobs/"+layer.Digest.String())
	dir := n.mkdir()
	n.thaw("mount", "--background=off", n.ref, dir)
	failed := n.sameOrEIO(n.want, dir)
	if len(failed) == 0 || len(failed) > 3 {
		t.Errorf("errors of %d files: %v", len(failed), failed)
	}
	n.logNames(layer.Digest.String())
	setFaults(t, n.lab)
	n.sameTree(n.want, dir)
	n.thaw("umount", dir)
}

// logNames waits until the daemon's log tells of a bad span of the layer.
func (n *node) logNames(layer string) {
	n.Helper()
	line := regexp.MustCompile(`(?m)^.*` + layer + `.*\bspan\W*\d+.*$|^.*\bspan\W*\d+.*` + layer + `.*$`)
	n.eventually("the log names a span of layer "+layer, func() bool { return line.MatchString(n.log("daemon.log")) })
}

// TestFlippedOnce: what arrives damaged is fetched again.
func TestFlippedOnce(t *testing.T) {
	t.Parallel()
	n := newSmallImage(t)
	n.pushIndex(n.ref)
	setFaults(t, n.lab, "flip=2000,first=1")
	dir := n.mkdir()
	n.thaw("mount", "--wait", n.ref, dir)
	n.sameTree(n.want, dir)
}

// TestFlippedLayerByteComesToAnEnd: who waits for all of the image is told.
func TestFlippedLayerByteComesToAnEnd(t *testing.T) {
	t.Parallel()
	n := newSmallImage(t)
	layer := n.manifest.Layers[0].Digest.String()
	fault := "flip=@3000000,match=/blobs/" + layer
	setFaults(t, n.lab, fault)
	n.refuses(1, layer, "mount", n.ref, n.mkdir()) // no index: it has to be pulled
	n.refuses(1, layer, "pull", n.ref)
	setFaults(t, n.lab)
	n.pushIndex(n.ref)
	setFaults(t, n.lab, fault)
	dir := n.mkdir()
	n.refuses(1, layer, "mount", "--wait", n.ref, dir)
	n.refuses(1, layer, "mount", "--mount=eager", n.ref, n.mkdir())
	n.thaw("umount", dir)
	for _, l := range n.layers() {
		if l.Blob.String() == layer && l.Complete {
			t.Errorf("layer %+v", l)
		}
	}
}

// TestFlippedLayout is a layout on disk with a flipped byte.
func TestFlippedLayout(t *testing.T) {
	t.Parallel()
	n := newSmallImage(t)
	ref := "oci:" + n.layout + ":small"
	n.thaw("index", "build", ref)
	layer := n.manifest.Layers[0].Digest
	flipFile(t, filepath.Join(n.layout, "blobs", "sha256", layer.Encoded()), 3_000_000)
	dir := n.mkdir()
	n.refuses(1, layer.String(), "mount", "--index=ignore", ref, dir)
	n.thaw("mount", "--background=off", ref, dir)
	if failed := n.sameOrEIO(n.want, dir); len(failed) == 0 {
		t.Error("everything can be read")
	}
	n.logNames(layer.String())
	n.thaw("umount", dir)
}

func flipFile(t testing.TB, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x10
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

// pushedIndex returns the manifest of the index that is beside the image.
func (n *smallImage) pushedIndex() (desc v1.Descriptor, m v1.Manifest) {
	n.Helper()
	get := func(path string, v any) {
		resp, err := http.Get("http://" + n.lab.Addr() + "/v2/small/" + path)
		if err != nil {
			n.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil || json.Unmarshal(b, v) != nil {
			n.Fatalf("get %s: %v: %s", path, err, b)
		}
	}
	var referrers v1.Index
	get("referrers/"+n.lab.Images()[0].Digest.String(), &referrers)
	if len(referrers.Manifests) != 1 {
		n.Fatalf("referrers %+v", referrers)
	}
	get("manifests/"+referrers.Manifests[0].Digest.String(), &m)
	return referrers.Manifests[0], m
}

// TestFlippedIndex: an index that arrives damaged is not used, with a warning.
func TestFlippedIndex(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		blob func(desc v1.Descriptor, m v1.Manifest) string
	}{
		{"manifest", func(desc v1.Descriptor, _ v1.Manifest) string { return "/manifests/" + desc.Digest.String() }},
		{"head", func(_ v1.Descriptor, m v1.Manifest) string { return "/blobs/" + m.Layers[0].Digest.String() }},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newSmallImage(t)
			n.pushIndex(n.ref)
			setFaults(t, n.lab, "flip=100,match="+c.blob(n.pushedIndex()))
			n.refuses(1, "has no index", "mount", "--index=require", n.ref, n.mkdir())
			dir := n.mkdir()
			r := n.try("mount", n.ref, dir)
			if r.code != 0 || !strings.Contains(r.stderr, "warning: index sha256:") {
				t.Fatal(r)
			}
			n.sameTree(n.want, dir)
		})
	}
	t.Run("windows", func(t *testing.T) {
		n := newSmallImage(t)
		n.pushIndex(n.ref)
		_, m := n.pushedIndex()
		setFaults(t, n.lab, "flip=/50,match=/blobs/"+m.Layers[1].Digest.String())
		dir := n.mkdir()
		n.thaw("mount", "--background=off", n.ref, dir)
		if failed := n.sameOrEIO(n.want, dir); len(failed) == 0 {
			t.Error("everything can be read: there are no windows to flip")
		}
		n.logNames(n.manifest.Layers[0].Digest.String())
		setFaults(t, n.lab)
		n.sameTree(n.want, dir)
	})
}

// TestFlippedState flips bytes of what the node keeps between mounts.
func TestFlippedState(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, pattern string }{
		{"EROFS image", "metadata/*.erofs"},
		{"index record", "index/images/*/record.json"},
		{"index head", "index/images/*/sha256-*"},
		{"image", "images/*.json"},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newSmallImage(t)
			n.pushIndex(n.ref)
			dir := n.mkdir()
			n.thaw("mount", "--background=off", n.ref, dir)
			n.thaw("umount", dir)
			n.stop()
			files, _ := filepath.Glob(filepath.Join(n.root, c.pattern))
			if len(files) == 0 {
				t.Fatalf("no %s", c.pattern)
			}
			for _, f := range files {
				info, err := os.Stat(f)
				if err != nil {
					t.Fatal(err)
				}
				flipFile(t, f, info.Size()/2)
			}
			n.thaw("mount", n.ref, dir)
			n.sameTree(n.want, dir)
		})
	}
}

// TestLyingIndex is an index that describes other files than the layers hold:
// its digests are all right. It is found out at completion, and not used again.
func TestLyingIndex(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, path string
		lie        func(l *index.Layer)
	}{
		{"mode", "data/a", func(l *index.Layer) { entry(l, "data/a").Mode = 0o4755 }},
		{"bytes of another file", "data/d", func(l *index.Layer) { entry(l, "data/d").OffsetTar = entry(l, "data/e").OffsetTar }},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newSmallImage(t)
			lying := n.pushLie(c.lie)
			dir := n.mkdir()
			r := n.refuses(1, "quarantined", "mount", "--wait", "--index=require", n.ref, dir)
			if !strings.Contains(r.stderr, c.path) || !strings.Contains(r.stderr, lying) {
				t.Errorf("the error does not name %s and %s: %s", c.path, lying, r.stderr)
			}
			if s := n.status(); len(s.Mounts) != 1 || !strings.Contains(s.Mounts[0].Stats.Error, c.path) || s.Mounts[0].Stats.Complete {
				t.Errorf("status %+v", s.Mounts)
			}
			pid := n.daemon()
			n.kill(pid)
			n.daemon(pid)
			if s := n.status(); len(s.Mounts) != 1 {
				t.Errorf("after a crash there are %d mounts", len(s.Mounts))
			}
			n.thaw("umount", dir)
			n.refuses(1, "has no index", "mount", "--index=require", n.ref, dir)
			r = n.try("mount", n.ref, dir)
			if r.code != 0 || !strings.Contains(r.stderr, "warning: index "+lying) || !strings.Contains(r.stderr, "lie") {
				t.Error(r)
			}
			n.sameTree(n.want, dir)
		})
	}
	t.Run("span", func(t *testing.T) {
		n := newSmallImage(t)
		n.pushLie(func(l *index.Layer) { l.Spans[2].Digest[0] ^= 1 })
		dir := n.mkdir()
		n.refuses(1, n.manifest.Layers[0].Digest.String(), "mount", "--wait", n.ref, dir)
		if failed := n.sameOrEIO(n.want, dir); len(failed) == 0 {
			t.Error("everything can be read")
		}
		n.logNames(n.manifest.Layers[0].Digest.String())
	})
}

func entry(l *index.Layer, path string) *layertar.Entry {
	for i := range l.Entries {
		if l.Entries[i].Path == path {
			return &l.Entries[i]
		}
	}
	panic("no entry " + path)
}

// pushLie pushes an index whose lowest layer was changed, and returns its digest.
func (n *smallImage) pushLie(lie func(l *index.Layer)) string {
	n.Helper()
	client := registry.New(registry.Options{})
	defer client.Close()
	ref, err := oci.ParseReference(n.ref)
	if err != nil {
		n.Fatal(err)
	}
	repo, err := client.Repository(ref)
	if err != nil {
		n.Fatal(err)
	}
	ctx := n.Context()
	img, err := registry.ResolveImage(ctx, repo, ref, v1.Platform{})
	if err != nil {
		n.Fatal(err)
	}
	var blobs []*index.LayerBlob
	for i, l := range img.Layers {
		blob, err := indexer.Layer(ctx, repo, l, indexer.Sink{})
		if err != nil {
			n.Fatal(err)
		}
		if i == 0 {
			lie(blob.Layer)
			if blob, err = index.EncodeLayer(blob.Layer); err != nil {
				n.Fatal(err)
			}
		}
		blobs = append(blobs, blob)
	}
	head, err := index.Assemble(blobs)
	if err != nil {
		n.Fatal(err)
	}
	a, err := index.NewArtifact(img.ManifestDescriptor, head, blobs)
	if err != nil {
		n.Fatal(err)
	}
	if err := indexer.Push(ctx, repo, a); err != nil {
		n.Fatal(err)
	}
	return a.Descriptor.Digest.String()
}
