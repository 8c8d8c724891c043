package fanotify

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/mount"
	"github.com/thaw-project/thaw/internal/mount/mounttest"
	"github.com/thaw-project/thaw/internal/testenv"
)

func TestProbe(t *testing.T) {
	testenv.NeedFanotify(t)
	dir := t.TempDir()
	if err := Probe(t.Context(), dir); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestProbeUnsupported(t *testing.T) {
	testenv.NeedFanotify(t)
	dir := t.TempDir()
	if err := unix.Mount("thaw-test", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	err := Probe(t.Context(), dir)
	if !errors.Is(err, mount.ErrUnsupported) || !strings.Contains(err.Error(), dir) {
		t.Errorf("probe on tmpfs: %v", err)
	}
	t.Log(err)
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestMountNotFirst refuses a descriptor that would raise events for the daemon's own writes.
func TestMountNotFirst(t *testing.T) {
	testenv.NeedFanotify(t)
	image := mounttest.NewImage(t, 1, mounttest.Files(3))
	source := &mounttest.Source{}
	source.Add(image.Layers...)
	m := newMounter(t, source, nil)
	defer m.Close()
	spec := image.Spec(t.TempDir())
	if err := m.Mount(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	second, err := os.OpenFile(image.Layers[0].Path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	again := image.Spec(t.TempDir())
	again.Layers[0].File = second
	if err := m.Mount(t.Context(), again); !errors.Is(err, mount.ErrNotFirst) {
		t.Errorf("mount with a second descriptor: %v", err)
	}
	if again.Layers[0].File, err = m.First(image.Layers[0].Blob); err != nil || again.Layers[0].File == nil {
		t.Fatalf("first descriptor: %v", err)
	}
	defer again.Layers[0].File.Close()
	if err := m.Mount(t.Context(), again); err != nil {
		t.Errorf("mount with the first descriptor: %v", err)
	}
}

// TestDetachedStaysWatched unmounts under an open file: as long as that is open the layer is watched, then it is not.
func TestDetachedStaysWatched(t *testing.T) {
	testenv.NeedFanotify(t)
	image := mounttest.NewImage(t, 1, mounttest.Files(8))
	source := &mounttest.Source{}
	source.Add(image.Layers...)
	m := newMounter(t, source, nil)
	defer m.Close()
	spec := image.Spec(t.TempDir())
	if err := m.Mount(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	open, err := os.Open(spec.Dir + "/f0007")
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Unmount(t.Context(), spec.Dir); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 4096)
	if _, err := open.ReadAt(got, 100_000&^4095); err != nil || string(got) != string(image.Data("f0007")[100_000&^4095:][:4096]) {
		t.Errorf("read of a detached mount's file: %v", err)
	}
	if source.Fetches.Load() == 0 {
		t.Error("no fetch for a detached mount's file")
	}
	first := func() *os.File {
		f, err := m.First(image.Layers[0].Blob)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	if f := first(); f == nil {
		t.Error("layer is not watched although a file is open")
	} else {
		f.Close()
	}
	open.Close()
	// Any unmount tidies up. Other processes on this machine may have copies of the mount for a moment.
	for deadline := time.Now().Add(5 * time.Second); ; {
		if err := m.Unmount(t.Context(), spec.Dir); err != nil {
			t.Fatal(err)
		}
		f := first()
		if f == nil {
			return
		}
		f.Close()
		if time.Now().After(deadline) {
			t.Fatal("layer is still watched")
		}
	}
}
