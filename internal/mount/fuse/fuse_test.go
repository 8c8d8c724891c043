package fuse

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/mount"
	"github.com/thaw-project/thaw/internal/mount/mounttest"
	"github.com/thaw-project/thaw/internal/testenv"
)

// modeEnv makes the test binary another process.
const modeEnv = "THAW_TEST_MODE"

const fileSeed = 42

func TestMain(m *testing.M) {
	switch os.Getenv(modeEnv) {
	case "keeper":
		os.Exit(keeperMain())
	case "daemon":
		os.Exit(daemonMain())
	case "stuck":
		os.Exit(stuckMain())
	case "reader":
		os.Exit(readerMain())
	}
	testenv.Main(m)
}

func testLog(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}

func newMounter(t testing.TB, h mount.Handler) *Mounter {
	t.Helper()
	m, err := New(t.Context(), Options{Handler: h, Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestMounter(t *testing.T) {
	testenv.NeedFUSE(t)
	mounttest.Run(t, func(t *testing.T, h mount.Handler) mount.Mounter { return newMounter(t, h) })
}

func TestSeen(t *testing.T) {
	testenv.NeedFUSE(t)
	mounttest.RunSeen(t, func(t *testing.T, h mount.Handler, seen mount.Seen) mount.Mounter {
		m, err := New(t.Context(), Options{Handler: h, Seen: seen, Log: testLog(t)})
		if err != nil {
			t.Fatal(err)
		}
		return m
	})
}

func TestProbe(t *testing.T) {
	testenv.NeedFUSE(t)
	dir := t.TempDir()
	if err := Probe(t.Context(), dir); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// mounted mounts an image of one file on one layer.
func mounted(t testing.TB, sizeBytes int, complete bool) (*Mounter, *mounttest.Source, *mounttest.Image, mount.Spec) {
	t.Helper()
	testenv.NeedFUSE(t)
	image := mounttest.NewImage(t, 1, []mounttest.File{{Name: "f", Mode: 0o644, Data: mounttest.Bytes(fileSeed, sizeBytes)}})
	source := &mounttest.Source{}
	source.Add(image.Layers...)
	spec := image.Spec(t.TempDir())
	if complete {
		if err := image.Layers[0].Complete(); err != nil {
			t.Fatal(err)
		}
		spec.Layers[0].Complete, spec.Layers[0].File = true, nil
	}
	m := newMounter(t, source)
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := m.Mount(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	return m, source, image, spec
}

// TestPassthrough reads a layer that was complete when it was mounted: no request comes, not even when nobody answers any more.
func TestPassthrough(t *testing.T) {
	m, _, image, spec := mounted(t, 1<<20, true)
	path := filepath.Join(spec.Dir, "f")
	read := func(f *os.File) {
		t.Helper()
		if err := mounttest.DropCache(path); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 1<<20)
		if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, image.Data("f")) {
			t.Errorf("read: %v", err)
		}
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	read(f)
	if m.node(nodeID(image.Layers[0].Blob)).passthrough(m) == 0 {
		t.Skip("the kernel has no FUSE passthrough")
	}
	if stats := m.Stats(); stats != (Stats{}) {
		t.Errorf("requests for a layer that is passed through: %+v", stats)
	}
	m.Handover(t.Context()) // nobody holds the connection: it is dead
	read(f)
	if _, err := mount.Unmount(t.Context(), spec.Dir); err != nil {
		t.Error(err)
	}
}

// TestHandoverPassthrough: a layer that an earlier daemon passed through is opened again in the same way, which is all the kernel allows.
func TestHandoverPassthrough(t *testing.T) {
	m, source, image, spec := mounted(t, 1<<20, true)
	id := nodeID(image.Layers[0].Blob)
	number := m.node(id).passthrough(m)
	if number == 0 {
		t.Skip("the kernel has no FUSE passthrough")
	}
	layers := slices.Clone(spec.Layers)
	for range 2 {
		held, err := m.Connection()
		if err != nil {
			t.Fatal(err)
		}
		m.Handover(t.Context())
		if m, err = New(t.Context(), Options{Handler: source, Connection: held, Layers: layers, Log: testLog(t)}); err != nil {
			t.Fatal(err)
		}
		if err := m.Adopt(spec); err != nil {
			t.Fatal(err)
		}
		layers[0].File, layers[0].Complete = image.Layers[0].First, false // as one that is not yet believed after a crash
	}
	again := spec
	again.Dir = t.TempDir()
	if err := m.Mount(t.Context(), again); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(again.Dir, "f")); err != nil || !bytes.Equal(got, image.Data("f")) {
		t.Errorf("read: %v", err)
	}
	if stats := m.Stats(); stats != (Stats{}) {
		t.Errorf("requests for a layer that is passed through: %+v", stats)
	}
	if got := m.node(id).passthrough(m); got != number {
		t.Errorf("number %d, want %d", got, number)
	}
	for _, dir := range []string{spec.Dir, again.Dir} {
		if err := m.Unmount(t.Context(), dir); err != nil {
			t.Error(err)
		}
	}
	for deadline := time.Now().Add(time.Minute); m.node(id) != nil; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("layer is not forgotten")
		}
	}
	if _, left, err := loadBackings(m.device.Init); err != nil || len(left) != 0 {
		t.Errorf("numbers are left: %v, %v", left, err)
	}
	if err := m.Mount(t.Context(), spec); err != nil {
		t.Errorf("mount of a layer that was forgotten: %v", err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}

// TestForget forgets a layer when its last user is gone, also one that outlived its mount.
func TestForget(t *testing.T) {
	m, source, image, spec := mounted(t, 1<<20, false)
	blob := image.Layers[0].Blob
	f, err := os.Open(filepath.Join(spec.Dir, "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := m.Unmount(t.Context(), spec.Dir); err != nil {
		t.Fatal(err)
	}
	if m.node(nodeID(blob)) == nil {
		t.Fatal("layer is forgotten although a file is open")
	}
	got := make([]byte, 4096)
	if _, err := f.ReadAt(got, 1<<19); err != nil || !bytes.Equal(got, image.Data("f")[1<<19:][:4096]) || source.Fetches.Load() == 0 {
		t.Errorf("read of a detached mount's file: %v", err)
	}
	f.Close()
	for deadline := time.Now().Add(time.Minute); m.node(nodeID(blob)) != nil; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("layer is not forgotten")
		}
	}
}

// TestTruncatedLayer fails reads of what a layer file lost, instead of answering with less, which would read as zeros.
func TestTruncatedLayer(t *testing.T) {
	_, _, image, spec := mounted(t, 1<<20, false)
	layer := image.Layers[0]
	if err := layer.Complete(); err != nil {
		t.Fatal(err)
	}
	if err := layer.First.Truncate(512 << 10); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(spec.Dir, "f")); !errors.Is(err, unix.EIO) {
		t.Errorf("%d bytes, %v, want EIO", len(got), err)
	}
}

// TestUnmountWhileReading unmounts under readers: what they get is right or an error.
func TestUnmountWhileReading(t *testing.T) {
	m, _, image, spec := mounted(t, 4<<20, false)
	want := image.Data("f")
	var readers errgroup.Group
	started := make(chan struct{}, 8)
	for i := range 8 {
		readers.Go(func() error {
			f, err := os.Open(filepath.Join(spec.Dir, "f"))
			if err != nil {
				return err
			}
			defer f.Close()
			started <- struct{}{}
			got := make([]byte, 10_000)
			for at := i * 1000; at+len(got) < len(want); at += 20_000 {
				if _, err := f.ReadAt(got, int64(at)); err != nil {
					return fmt.Errorf("read after unmount: %w", err)
				}
				if !bytes.Equal(got, want[at:][:len(got)]) {
					return errors.New("wrong bytes")
				}
			}
			return nil
		})
	}
	for range 8 {
		<-started
	}
	if err := m.Unmount(t.Context(), spec.Dir); err != nil {
		t.Error(err)
	}
	if err := readers.Wait(); err != nil {
		t.Error(err)
	}
}

// TestHandover gives the connection to another Mounter, under readers, who wait.
func TestHandover(t *testing.T) {
	m, source, image, spec := mounted(t, 8<<20, false)
	var readers errgroup.Group
	for range 4 {
		readers.Go(func() error {
			got, err := os.ReadFile(filepath.Join(spec.Dir, "f"))
			if err == nil && !bytes.Equal(got, image.Data("f")) {
				err = errors.New("wrong bytes")
			}
			return err
		})
	}
	for range 5 {
		held, err := m.Connection()
		if err != nil {
			t.Fatal(err)
		}
		m.Handover(t.Context())
		if m, err = New(t.Context(), Options{Handler: source, Connection: held, Layers: spec.Layers, Log: testLog(t)}); err != nil {
			t.Fatal(err)
		}
		if err := m.Adopt(spec); err != nil {
			t.Fatal(err)
		}
	}
	if err := readers.Wait(); err != nil {
		t.Error(err)
	}
	again := spec
	again.Dir = t.TempDir()
	if err := m.Mount(t.Context(), again); err != nil {
		t.Errorf("mount after handover: %v", err)
	} else if got, err := os.ReadFile(filepath.Join(again.Dir, "f")); err != nil || !bytes.Equal(got, image.Data("f")) {
		t.Errorf("read after handover: %v", err)
	}
	// Another file of the layer may come only when this one is forgotten.
	for _, dir := range []string{spec.Dir, again.Dir} {
		if m.node(nodeID(image.Layers[0].Blob)) == nil {
			t.Error("layer is forgotten although it is mounted")
		}
		if err := m.Unmount(t.Context(), dir); err != nil {
			t.Error(err)
		}
	}
	for deadline := time.Now().Add(time.Minute); m.node(nodeID(image.Layers[0].Blob)) != nil; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("layer of an earlier daemon's mount is not forgotten")
		}
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}
