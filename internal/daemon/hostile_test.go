package daemon

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/erofs"
	"github.com/thaw-project/thaw/internal/index"
	"github.com/thaw-project/thaw/internal/indexstore"
)

// TestHostileMetadata: an index from elsewhere whose EROFS metadata has the right
// digest and devices, and a file behind the end of one, is not handed to the
// kernel, and not taken again.
func TestHostileMetadata(t *testing.T) {
	d := openDaemon(t, t.TempDir())
	img, manifest, _ := someImage(t, "x")
	metadata, err := img.head.Erofs()
	if err != nil {
		t.Fatal(err)
	}
	// The file's inode: the only one of its size. Its size is made 2^31.
	at := strings.Index(string(metadata), "\xbc\x02\x00\x00")
	if at < 0 {
		t.Fatal("no file of 700 bytes")
	}
	binary.LittleEndian.PutUint32(metadata[at:], 1<<31)
	super := metadata[1024:1536] // with a checksum over all of the block
	binary.LittleEndian.PutUint32(super[4:], 0)
	binary.LittleEndian.PutUint32(super[4:], ^crc32.Checksum(super, crc32.MakeTable(crc32.Castagnoli)))
	img.head = index.NewImage(img.head.Layers, metadata)
	head, err := img.head.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.indexes.Put(img.digest, &indexstore.Image{Manifest: manifest, Head: head}); err != nil {
		t.Fatal(err)
	}
	if err := img.head.CheckDevices(metadata); err != nil {
		t.Fatalf("the devices are right: %v", err)
	}
	var corrupt *erofs.CorruptError
	if path, err := d.metadataPath(img); !errors.As(err, &corrupt) {
		t.Fatalf("path %q, error %v", path, err)
	}
	if left, _ := filepath.Glob(filepath.Join(d.cfg.Root, "metadata", "*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if _, err := d.indexes.Get(img.digest); !errors.Is(err, indexstore.ErrNotFound) || !d.indexes.Quarantined(img.index) {
		t.Errorf("the index is taken again: %v", err)
	}
}

// TestHostileNames: what callers name becomes no path of ours or of anybody else's.
func TestHostileNames(t *testing.T) {
	d := openDaemon(t, t.TempDir())
	for _, id := range []string{".", "..", "../x", "a/b", "/etc", "-x", ".hidden", "a\x00b", "a\nb", strings.Repeat("a", 64), "\u202e"} {
		if id, dir, err := d.newID(id); err == nil {
			t.Errorf("%q is a name, and its directory %s", id, dir)
		}
	}
	for _, dir := range []string{".", "x", "../x", "/nowhere/at/all", "/etc/passwd", "/", d.cfg.Root, d.mountsDir(), filepath.Dir(d.cfg.Root), "/proc/self/cwd"} {
		var e *api.Error
		if real, err := d.reserve(dir); !errors.As(err, &e) {
			if dir == "/proc/self/cwd" {
				continue // a directory like others, by a link
			}
			t.Errorf("%q can be mounted on, as %q: %v", dir, real, err)
		}
	}
	for _, name := range []string{"sha256:../../x", "sha256:" + strings.Repeat("/", 64), "md5:../..", "../../etc/passwd", "oci:../..:../x", "x@sha256:..", ""} {
		if removed, err := d.remove(t.Context(), name); err == nil || len(removed) > 0 {
			t.Errorf("%q was removed: %v, %v", name, removed, err)
		}
		if m := d.find(name); m != nil {
			t.Errorf("%q is a mount", name)
		}
	}
	if left, err := os.ReadDir(d.mountsDir()); err == nil && len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
