package daemon

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"

	digest "github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/index"
	"github.com/thaw-project/thaw/internal/indexstore"
	"github.com/thaw-project/thaw/internal/layerstore"
	"github.com/thaw-project/thaw/internal/layertar/layertartest"
	"github.com/thaw-project/thaw/internal/mount"
	"github.com/thaw-project/thaw/internal/oci"
	"github.com/thaw-project/thaw/internal/powercut"
	"github.com/thaw-project/thaw/internal/testenv"
	"github.com/thaw-project/thaw/internal/tracestore"
)

const otherBoot = "11111111-2222-4333-8444-555555555555"

// openDaemon is a daemon over a state directory that neither mounts nor listens.
func openDaemon(t testing.TB, root string) *Daemon {
	t.Helper()
	d := newDaemon(Config{Root: root, Mode: api.ModeEager, Log: slog.New(slog.DiscardHandler)})
	d.mode = api.ModeEager
	d.ctx, d.cancel = t.Context(), func() {}
	var err error
	if d.store, err = layerstore.Open(filepath.Join(root, "store"), layerstore.Options{Log: d.log}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.store.Close() })
	if d.indexes, err = indexstore.Open(filepath.Join(root, "index")); err != nil {
		t.Fatal(err)
	}
	if d.traces, err = tracestore.Open(filepath.Join(root, "traces"), d.log); err != nil {
		t.Fatal(err)
	}
	return d
}

var someRef, _ = oci.ParseReference("registry.example.com/app:1")

// someImage makes an image of one small layer, with its index.
func someImage(t testing.TB, name string) (img *image, manifest []byte, head []byte) {
	t.Helper()
	tar := new(layertartest.Builder).Dir("d").File("d/"+name, bytes.Repeat([]byte(name), 700)).End().Bytes()
	blob := digest.FromBytes(tar)
	layer, err := index.BuildLayer(t.Context(), bytes.NewReader(tar), index.BuildInput{Blob: blob, BlobBytes: int64(len(tar)), DiffID: blob})
	if err != nil {
		t.Fatal(err)
	}
	lb, err := index.EncodeLayer(layer)
	if err != nil {
		t.Fatal(err)
	}
	im, err := index.Assemble([]*index.LayerBlob{lb})
	if err != nil {
		t.Fatal(err)
	}
	if head, err = im.Encode(); err != nil {
		t.Fatal(err)
	}
	config := mustJSON(t, v1.Image{Platform: v1.Platform{OS: "linux"}, RootFS: v1.RootFS{Type: "layers", DiffIDs: []digest.Digest{blob}}})
	m := v1.Manifest{MediaType: v1.MediaTypeImageManifest,
		Config: v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config))},
		Layers: []v1.Descriptor{{MediaType: v1.MediaTypeImageLayer, Digest: blob, Size: int64(len(tar))}}}
	m.SchemaVersion = 2
	known, err := oci.ParseImage(mustJSON(t, m), config)
	if err != nil {
		t.Fatal(err)
	}
	img = &image{ref: someRef, resolved: make(chan struct{}), origin: originStored}
	img.set(known)
	manifest = []byte("artifact of " + name)
	if err := img.adopt(manifest, head); err != nil {
		t.Fatal(err)
	}
	return img, manifest, head
}

func mustJSON(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func blobs(img *image) (all []digest.Digest) {
	for _, l := range img.oci.Layers {
		all = append(all, l.Digest)
	}
	return all
}

// TestPowerCut cuts the power while an image is kept, another one takes over its
// name, and a mount's record is written.
func TestPowerCut(t *testing.T) {
	testenv.NeedFUSE(t)
	rec := powercut.Record(t)
	first, firstManifest, firstHead := someImage(t, "first")
	second, secondManifest, secondHead := someImage(t, "second")
	work := openDaemon(t, rec.Dir)
	keep := func(img *image, manifest, head []byte) {
		t.Helper()
		if err := work.store.Pin(pinOwner(img.ref), blobs(img)...); err != nil {
			t.Fatal(err)
		}
		if err := work.indexes.Put(img.digest, &indexstore.Image{Manifest: manifest, Head: head}); err != nil {
			t.Fatal(err)
		}
		if err := work.keepPulled(img, blobs(img)); err != nil {
			t.Fatal(err)
		}
		if _, err := work.metadataPath(img); err != nil {
			t.Fatal(err)
		}
	}
	keep(first, firstManifest, firstHead)
	rec.Mark("first")
	id, dir, err := work.newID("box")
	if err != nil {
		t.Fatal(err)
	}
	m := &mounted{record: record{ID: id, BootID: otherBoot, Manifest: first.digest, ImageDir: filepath.Join(dir, "image"), Writable: true}, dir: dir}
	for range 2 {
		if err := m.save(); err != nil {
			t.Fatal(err)
		}
		if err := replaceJSON(m.path("image.json"), first.stored(false), false); err != nil {
			t.Fatal(err)
		}
		m.Finished = true
	}
	keep(second, secondManifest, secondHead)
	rec.Mark("second")
	if err := work.store.Close(); err != nil {
		t.Fatal(err)
	}
	random := 4
	if os.Getenv("THAW_LONG") != "" {
		random = 40
	}
	rec.Stop(t).Crashes(t, random, func(t *testing.T, c powercut.Crash) {
		checkCrash(t, openDaemon(t, c.Dir), c.Marks, first, second)
	})
}

// checkCrash checks that what the reference names is whole, known to the node
// with all that a start needs, and kept.
func checkCrash(t *testing.T, d *Daemon, marks []string, first, second *image) {
	records, err := d.readRecords()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.recoverMounts(records, api.ModeEager, nil); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(d.mountsDir()); err == nil && len(left) > 0 {
		t.Errorf("left in mounts: %v", left)
	}
	known := d.knownImage(someRef)
	var img *image
	switch {
	case known == nil:
		if len(marks) > 0 {
			t.Fatal("the image is forgotten")
		}
		return
	case known.ManifestDescriptor.Digest == first.digest && !slices.Contains(marks, "second"):
		img = first
	case known.ManifestDescriptor.Digest == second.digest:
		img = second
	default:
		t.Fatalf("the reference names %s", known.ManifestDescriptor.Digest)
	}
	for _, blob := range blobs(img) {
		if !pinned(t, d, blob) {
			t.Errorf("layer %s of the image is not pinned", blob)
		}
	}
	idx, err := d.indexes.Get(img.digest)
	if err != nil {
		t.Fatalf("index: %v", err)
	}
	again := &image{ref: someRef, resolved: make(chan struct{}), origin: originStored}
	again.set(known)
	if err := again.adopt(idx.Manifest, idx.Head); err != nil {
		t.Fatal(err)
	}
	path, err := d.metadataPath(again)
	if err != nil {
		t.Fatal(err)
	}
	want, _ := img.head.Erofs()
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("metadata is wrong (%v)", err)
	}
}

// pinned makes the layer known to the store, whose list says who pins it.
func pinned(t *testing.T, d *Daemon, blob digest.Digest) bool {
	t.Helper()
	l, err := d.store.Acquire(t.Context(), layerstore.Meta{Blob: blob, DiffID: blob, SpanBytes: layerstore.SpanBytes, SpanDigests: [][32]byte{}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Release()
	all, err := d.store.List()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(info layerstore.Info) bool { return info.Blob == blob })
	return i >= 0 && slices.Contains(all[i].Pins, pinOwner(someRef))
}

// TestReboot: records of another boot are cleaned up, whatever of them is left, and
// what somebody else has mounted since then where they were stays.
func TestReboot(t *testing.T) {
	testenv.NeedRoot(t)
	root, theirs := t.TempDir(), t.TempDir()
	img, _, _ := someImage(t, "x")
	d := openDaemon(t, root)
	metadata, err := d.metadataPath(img)
	if err != nil {
		t.Fatal(err)
	}
	layer := filepath.Join(t.TempDir(), "layer")
	if err := os.WriteFile(layer, make([]byte, img.head.Layers[0].TarBytes), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := mount.EROFS(metadata, []string{layer}, theirs); err != nil {
		t.Skipf("mount EROFS: %v", err)
	}
	t.Cleanup(func() { mount.UnmountEROFS(t.Context(), theirs) })
	write := func(id string, files map[string]string) {
		t.Helper()
		for _, dir := range []string{"rootfs", "upper/a", "bundle", "image"} {
			if err := os.MkdirAll(filepath.Join(d.mountsDir(), id, dir), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		for name, content := range files {
			if err := os.WriteFile(filepath.Join(d.mountsDir(), id, name), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	whole := func(r record) string { return string(mustJSON(t, r)) }
	write("mount", map[string]string{"mount.json": whole(record{ID: "mount", BootID: otherBoot, ImageDir: theirs, Finished: true, Mode: api.ModeFanotify})})
	write("box", map[string]string{"mount.json": whole(record{ID: "box", BootID: otherBoot, ImageDir: filepath.Join(d.mountsDir(), "box/image"),
		Writable: true, Finished: true, Pid: 1, PidStart: 1, Request: api.MountRequest{Runtime: "runc"}}), "image.json": "{}"})
	write("zeros", map[string]string{"mount.json": string(make([]byte, 512))})
	write("torn", map[string]string{"mount.json": whole(record{ID: "torn"})[:9], ".tmp-1": "x"})
	write("other", map[string]string{"mount.json": whole(record{ID: "../../..", ImageDir: theirs})})
	write("empty", nil)
	records, err := d.readRecords()
	if err != nil || len(records) != 6 {
		t.Fatalf("%d records, %v", len(records), err)
	}
	if left := leftBehind(records); left != "" {
		t.Errorf("a mount of another boot decides on the mount path: %s", left)
	}
	if err := d.recoverMounts(records, api.ModeEager, nil); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(d.mountsDir()); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if there, err := mount.ListUnder(theirs); err != nil || len(there) != 1 {
		t.Errorf("what somebody mounted is gone: %v, %v", there, err)
	}
	if len(d.mounts) > 0 {
		t.Error(fmt.Sprint("taken over: ", d.mounts))
	}
}
