package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/layertar/layertartest"
	"github.com/thaw-project/thaw/internal/testenv"
)

// disk is a small file system of its own.
type disk struct {
	testing.TB
	dir string
}

// newDisk mounts an ext4 of the given size from a sparse file until the end of
// the test.
func newDisk(t testing.TB, size int64) *disk {
	t.Helper()
	testenv.NeedRoot(t)
	testenv.NeedTool(t, "mkfs.ext4")
	dir, err := os.MkdirTemp("", "thaw-disk")
	if err != nil {
		t.Fatal(err)
	}
	d := &disk{t, filepath.Join(dir, "mnt")}
	t.Cleanup(func() {
		// Its loop device goes with it. Who has just ended may use it for a moment.
		for deadline := time.Now().Add(patience); unix.Unmount(d.dir, 0) == unix.EBUSY && time.Now().Before(deadline); {
			time.Sleep(20 * time.Millisecond)
		}
		os.Remove(d.dir)
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	file := filepath.Join(dir, "ext4")
	f, err := os.Create(file)
	if err == nil {
		err = f.Truncate(size)
	}
	if err == nil {
		err = f.Close()
	}
	if err == nil {
		err = os.Mkdir(d.dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, cmd := range [][]string{{"mkfs.ext4", "-q", "-m", "0", "-E", "lazy_itable_init=1", file}, {"mount", "-o", "loop", file, d.dir}} {
		if out, err := exec.Command(cmd[0], cmd[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", cmd[0], err, out)
		}
	}
	return d
}

func (d *disk) free() int64 {
	d.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(d.dir, &st); err != nil {
		d.Fatal(err)
	}
	return int64(st.Bavail) * st.Bsize
}

// leave fills the disk up to n free bytes, or gives back what it took.
func (d *disk) leave(n int64) {
	d.Helper()
	f, err := os.OpenFile(filepath.Join(d.dir, "filler"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		d.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		d.Fatal(err)
	}
	if size := max(info.Size()+d.free()-n, 0); size < info.Size() {
		err = f.Truncate(size)
	} else {
		err = unix.Fallocate(int(f.Fd()), 0, 0, size)
	}
	if err != nil {
		d.Fatal(err)
	}
}

// TestFullDisk: a real image on a disk that has no room for it. What nothing
// needs is evicted, then the background stops before the reserve, readers use that
// up and then fail with EIO, and with room again all goes on.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	const reserve = 256 << 20
	disk := newDisk(t, 720<<20)
	n, s, want := newCorpusNode(t)
	if err := os.Symlink(filepath.Join(disk.dir, "r"), n.root); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(disk.dir, "r"), 0o700); err != nil {
		t.Fatal(err)
	}
	ref := s.Addr() + "/nginx"
	n.pushIndex(ref)

	// An image that nothing needs any more, and one that is pulled.
	layout := n.mkdir()
	writeImage(t, layout, "old", compressions[0], [][]byte{new(layertartest.Builder).File("old", layertartest.Fill(1, 24<<20)).End().Bytes()})
	writeImage(t, layout, "pulled", compressions[0], [][]byte{new(layertartest.Builder).File("pulled", layertartest.Fill(2, 8<<20)).End().Bytes()})
	other := newLab(t, layout, "none").Addr()
	n.thaw("pull", other+"/pulled")
	old := n.mkdir()
	n.thaw("mount", "--wait", other+"/old", old)
	n.thaw("umount", old)
	if len(n.layers()) != 2 {
		t.Fatalf("layers %+v", n.layers())
	}

	dir := n.mkdir()
	disk.leave(reserve + 30<<20)
	n.thaw("mount", ref, dir)
	mounted := func() api.Mount { return n.status().Mounts[0] }
	n.eventually("hydration says that there is no room", func() bool { return strings.Contains(mounted().Stats.Error, "no room") })
	if m := mounted(); m.Stats.HereBytes < 30<<20 || m.Stats.HereBytes >= m.Stats.UnpackedBytes || disk.free() < reserve/2 {
		t.Errorf("%d of %d bytes are here, %d are free", m.Stats.HereBytes, m.Stats.UnpackedBytes, disk.free())
	}
	for _, l := range n.layers() {
		if !l.InUse && len(l.Pins) == 0 {
			t.Errorf("not evicted: %+v", l)
		}
	}
	if c := n.status().Cache; c.EvictedLayers != 1 || c.EvictedBytes < 24<<20 || c.MinFreeBytes != reserve || c.EvictableBytes != 0 {
		t.Errorf("cache %+v", c)
	}
	n.logs("layer is evicted", "background hydration stops until there is room")
	n.refuses(1, "no room", "mount", "--wait", ref, n.mkdir())
	n.refuses(1, "no room", "pull", ref)

	disk.leave(3 << 20)
	failed := n.sameOrEIO(want, dir)
	if len(failed) == 0 {
		t.Error("nothing failed on a full disk")
	}
	n.logs("the disk is full and nothing can be evicted", "layer_missing_bytes=")

	disk.leave(disk.free() + 720<<20)
	n.logs("there is room, background hydration goes on") // before readers bring the rest
	n.eventually("the image is complete", func() bool { return mounted().Stats.Complete })
	n.sameImage(want, dir)
	n.complete()
	n.thaw("daemon", "stop", "--force")
	again := n.mkdir()
	s.Close()
	n.thaw("mount", ref, again)
	n.sameImage(want, again)
	n.thaw("umount", again)
}
