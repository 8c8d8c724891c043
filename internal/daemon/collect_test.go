package daemon

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/thaw-project/thaw/internal/hydrate"
	"github.com/thaw-project/thaw/internal/indexstore"
	"github.com/thaw-project/thaw/internal/layerstore"
)

// keepImage puts an image with one layer into a daemon's state, as a pull does.
func keepImage(t *testing.T, d *Daemon, name string, local bool) *image {
	t.Helper()
	img, manifest, head := someImage(t, name)
	if err := d.indexes.Put(img.digest, &indexstore.Image{Manifest: manifest, Head: head, Local: local}); err != nil {
		t.Fatal(err)
	}
	l, err := d.store.Acquire(t.Context(), hydrate.StoreMeta(&img.head.Layers[0]), nil)
	if err == nil {
		err = l.Release()
	}
	if err == nil {
		err = d.keepPulled(img, blobs(img))
	}
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func (d *Daemon) state(t *testing.T, img *image) (layers, indexes, images int) {
	t.Helper()
	infos, err := d.store.List()
	if err != nil {
		t.Fatal(err)
	}
	heads, err := d.indexes.Images()
	if err != nil {
		t.Fatal(err)
	}
	return len(infos), len(heads), len(d.rememberedImages())
}

func TestLostPins(t *testing.T) {
	root := t.TempDir()
	d := openDaemon(t, root)
	img := keepImage(t, d, "pulled", false)
	if err := d.store.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "store", "pins.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	d = openDaemon(t, root)
	d.restorePins()
	if got, want := d.store.Owners(), []string{pinOwner(img.ref), layerstore.LostPins}; !slices.Equal(got, want) {
		t.Errorf("owners %q, want %q", got, want)
	}
	collect := func(layers, indexes, images int) {
		t.Helper()
		if _, err := d.gc(t.Context()); err != nil {
			t.Fatal(err)
		}
		if l, i, r := d.state(t, img); l != layers || i != indexes || r != images {
			t.Errorf("%d layers, %d indexes, %d images are left, want %d, %d, %d", l, i, r, layers, indexes, images)
		}
	}
	if err := d.unpin(layerstore.LostPins); err != nil {
		t.Fatal(err)
	}
	collect(1, 1, 1)
	if err := d.unpin("nobody"); err == nil {
		t.Error("unpinned what is not pinned")
	}
	if err := d.unpin(pinOwner(img.ref)); err != nil { // as cache ls shows it
		t.Fatal(err)
	}
	collect(0, 0, 0)
}

// TestCollectLocalIndex: an index that was made here outlives its image for a
// while, and one that an image needs which is about to be mounted stays as well.
func TestCollectLocalIndex(t *testing.T) {
	d := openDaemon(t, t.TempDir())
	img := keepImage(t, d, "built", true)
	if err := d.unpin(img.ref.String()); err != nil {
		t.Fatal(err)
	}
	record := filepath.Join(d.cfg.Root, "index", "images", "sha256-"+img.digest.Encoded(), "record.json")
	old := time.Now().Add(-localIndexAge - time.Hour)
	for _, c := range []struct {
		what string
		do   func()
		want int
	}{
		{"used of late", func() {}, 1},
		{"being mounted", func() {
			if err := os.Chtimes(record, old, old); err != nil {
				t.Fatal(err)
			}
			d.keepFiles(&task{}, img)
		}, 1},
		{"used long ago", func() { d.dropFiles(&task{image: img}) }, 0},
	} {
		c.do()
		if _, err := d.gc(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, indexes, _ := d.state(t, img); indexes != c.want {
			t.Errorf("%s: %d indexes, want %d", c.what, indexes, c.want)
		}
	}
}
