// Package mounttest is the conformance suite of mount.Mounter: what any implementation does for the readers of a mount whose layers are
// not complete. It also has what the tests of implementations share: images with known contents, and a Handler
// that hydrates them from memory.
//
// It looks only at what readers see and at which methods of the Handler are called; what an implementation
// does about crashes is tested by itself.
package mounttest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/mount"
	"github.com/thaw-project/thaw/internal/testenv"
)

// New makes the Mounter under test; it is closed by the suite.
type New func(t *testing.T, h mount.Handler) mount.Mounter

// Run runs the suite.
func Run(t *testing.T, newMounter New) {
	testenv.NeedRoot(t)
	for _, test := range []struct {
		name string
		run  func(*testing.T, New)
	}{
		{"Equal", testEqual},
		{"Mmap", testMmap},
		{"Exec", testExec},
		{"Sendfile", testSendfile},
		{"CoveringRange", testCoveringRange},
		{"FetchError", testFetchError},
		{"FetchWithoutEffect", testFetchWithoutEffect},
		{"Panic", testPanic},
		{"ConcurrentReaders", testConcurrentReaders},
		{"SlowFetch", testSlowFetch},
		{"ManyLayers", testManyLayers},
		{"SharedLayers", testSharedLayers},
		{"Remount", testRemount},
		{"Unwatch", testUnwatch},
		{"CompleteLayer", testCompleteLayer},
		{"UnmountInUse", testUnmountInUse},
		{"CloseWhileWaiting", testCloseWhileWaiting},
		{"Overlay", testOverlay},
		{"MountErrors", testMountErrors},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, newMounter) })
	}
}

// fixture is one mounted image.
type fixture struct {
	*Image
	source  *Source
	mounter mount.Mounter
	dir     string
}

func start(t *testing.T, newMounter New, layers int, files []File) *fixture {
	t.Helper()
	f := &fixture{Image: NewImage(t, layers, files), source: &Source{}, dir: t.TempDir()}
	f.source.Add(f.Layers...)
	f.mounter = newMounter(t, f.source)
	t.Cleanup(func() {
		_ = f.mounter.Close()
		left, err := mount.ListUnder(f.dir)
		if err != nil || len(left) > 0 {
			t.Errorf("still mounted after Close: %v, %v", left, err)
		}
		for _, info := range left {
			_ = unix.Unmount(info.Dir, unix.MNT_DETACH)
		}
	})
	f.mount(t)
	return f
}

func (f *fixture) mount(t *testing.T) {
	t.Helper()
	if err := f.mounter.Mount(t.Context(), f.Spec(f.dir)); err != nil {
		t.Fatal(err)
	}
}

func (f *fixture) path(name string) string { return filepath.Join(f.dir, name) }

// check reads files to their end and compares them.
func (f *fixture) check(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		got, err := os.ReadFile(f.path(name))
		if err != nil {
			t.Errorf("read %s: %v", name, err)
		} else if !bytes.Equal(got, f.Data(name)) {
			t.Errorf("%s differs: %s", name, difference(got, f.Data(name)))
		}
	}
}

func (f *fixture) checkAll(t *testing.T) {
	t.Helper()
	for _, file := range f.Files {
		f.check(t, file.Name)
	}
}

func (f *fixture) checkEIO(t *testing.T, name string) {
	t.Helper()
	if got, err := os.ReadFile(f.path(name)); !errors.Is(err, unix.EIO) {
		t.Errorf("read %s: %d bytes, error %v, want EIO", name, len(got), err)
	}
}

func difference(got, want []byte) string {
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			return fmt.Sprintf("byte %d is %#x, want %#x", i, got[i], want[i])
		}
	}
	return fmt.Sprintf("%d bytes, want %d", len(got), len(want))
}

func (s *Source) setFetch(hook func(blob digest.Digest, off, n int64) error) { s.OnFetch.Store(&hook) }

func testEqual(t *testing.T, newMounter New) {
	f := start(t, newMounter, 3, Files(24))
	f.checkAll(t)
	entries, err := os.ReadDir(f.dir)
	if err != nil || len(entries) != len(f.Files) {
		t.Errorf("%d entries, %v, want %d", len(entries), err, len(f.Files))
	}
	for i, entry := range entries {
		info, err := entry.Info()
		if err != nil {
			t.Fatal(err)
		}
		want := f.Files[i]
		if info.Name() != want.Name || info.Size() != int64(len(want.Data)) || uint32(info.Mode()) != want.Mode || info.ModTime().Unix() != 1e9 {
			t.Errorf("entry %v, want %s with %d bytes", info, want.Name, len(want.Data))
		}
	}
	fetches := f.source.Fetches.Load()
	f.checkAll(t)
	if again := f.source.Fetches.Load(); again != fetches {
		t.Errorf("%d fetches of what was there", again-fetches)
	}
	if err := os.WriteFile(f.path("new"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("write: %v, want EROFS", err)
	}
}

func testMmap(t *testing.T, newMounter New) {
	f := start(t, newMounter, 1, []File{{Name: "f", Mode: 0o644, Data: Bytes(7, 3<<20+777)}})
	file, err := os.Open(f.path("f"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	want := f.Data("f")
	b, err := unix.Mmap(int(file.Fd()), 0, len(want), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(b)
	// Faults are taken in a system call: one in Go code would stop this whole process, and the mounter is in it.
	for off := len(want) &^ (SpanBytes - 1); off >= 0; off -= SpanBytes {
		if err := unix.Madvise(b[off:min(off+SpanBytes, len(b))], unix.MADV_POPULATE_READ); err != nil {
			t.Fatalf("fault at %d: %v", off, err)
		}
	}
	if !bytes.Equal(b, want) {
		t.Error(difference(b, want))
	}
}

func testExec(t *testing.T, newMounter New) {
	program, err := os.ReadFile("/bin/echo")
	if err != nil {
		t.Skip(err)
	}
	f := start(t, newMounter, 2, append(Files(3), File{Name: "echo", Mode: 0o755, Data: program}))
	// A shell executes it. A child of this process may not: between its vfork and its exec this process cannot stop for garbage
	// collection, and so not answer the child's reads.
	got, err := exec.Command("/bin/sh", "-c", `exec "$0" thawed`, f.path("echo")).CombinedOutput()
	if err != nil || string(got) != "thawed\n" {
		t.Errorf("%q, %v", got, err)
	}
}

func testSendfile(t *testing.T, newMounter New) {
	f := start(t, newMounter, 1, []File{{Name: "f", Mode: 0o644, Data: Bytes(7, 1<<20+5)}})
	in, err := os.Open(f.path("f"))
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	want := f.Data("f")
	for sent := 0; sent < len(want); {
		n, err := unix.Sendfile(int(out.Fd()), int(in.Fd()), nil, len(want)-sent)
		if err != nil || n == 0 {
			t.Fatalf("sendfile after %d bytes: %d, %v", sent, n, err)
		}
		sent += n
	}
	got, err := os.ReadFile(out.Name())
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%v, %s", err, difference(got, want))
	}
}

func testCoveringRange(t *testing.T, newMounter New) {
	f := start(t, newMounter, 1, []File{{Name: "f", Mode: 0o644, Data: Bytes(9, 8<<20)}})
	var mu sync.Mutex
	var asked [][2]int64
	f.source.setFetch(func(blob digest.Digest, off, n int64) error {
		mu.Lock()
		defer mu.Unlock()
		if blob != f.Layers[0].Blob || off < 0 || n <= 0 || off+n > int64(len(f.Layers[0].Data)) {
			t.Errorf("fetch of %s at %d, %d bytes", blob, off, n)
		}
		asked = append(asked, [2]int64{off, off + n})
		return nil
	})
	file, err := os.Open(f.path("f"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	const at, size = 5<<20 + 100, 3000
	got := make([]byte, size)
	if _, err := file.ReadAt(got, at); err != nil || !bytes.Equal(got, f.Data("f")[at:at+size]) {
		t.Fatalf("%v, %s", err, difference(got, f.Data("f")[at:at+size]))
	}
	mu.Lock()
	defer mu.Unlock()
	for pos := int64(512 + at); pos < 512+at+size; pos++ { // 512: where the file lies in the layer
		covered := false
		for _, r := range asked {
			covered = covered || r[0] <= pos && pos < r[1]
		}
		if !covered {
			t.Fatalf("byte %d was in no fetch: %v", pos, asked)
		}
	}
}

func testFetchError(t *testing.T, newMounter New) {
	f := start(t, newMounter, 2, Files(8))
	f.source.setFetch(func(digest.Digest, int64, int64) error { return errors.New("the network is gone") })
	f.checkEIO(t, "f0006")
	f.checkEIO(t, "f0007")
	f.source.OnFetch.Store(nil)
	f.checkAll(t)
}

func testFetchWithoutEffect(t *testing.T, newMounter New) {
	image := NewImage(t, 1, Files(8))
	f := &fixture{Image: image, dir: t.TempDir(), mounter: newMounter(t, idle{})}
	t.Cleanup(func() { _ = f.mounter.Close() })
	f.mount(t)
	f.checkEIO(t, "f0003")
}

// idle has nothing and says that it fetched it.
type idle struct{}

func (idle) Have(digest.Digest, int64, int64) bool                    { return false }
func (idle) Fetch(context.Context, digest.Digest, int64, int64) error { return nil }

func testPanic(t *testing.T, newMounter New) {
	f := start(t, newMounter, 1, Files(8))
	f.source.setFetch(func(digest.Digest, int64, int64) error { panic("fetch") })
	f.checkEIO(t, "f0003")
	f.source.OnFetch.Store(nil)
	hook := func() { panic("have") }
	f.source.OnHave.Store(&hook)
	f.checkEIO(t, "f0003")
	f.source.OnHave.Store(nil)
	f.checkAll(t)
}

func testConcurrentReaders(t *testing.T, newMounter New) {
	f := start(t, newMounter, 1, []File{{Name: "f", Mode: 0o644, Data: Bytes(3, 4<<20)}})
	want := f.Data("f")
	var readers errgroup.Group
	for i := range 32 {
		readers.Go(func() error {
			file, err := os.Open(f.path("f"))
			if err != nil {
				return err
			}
			defer file.Close()
			got := make([]byte, 100_000)
			for at := 0; at+len(got) < len(want); at += 300_000 + i%2*50_000 {
				if _, err := file.ReadAt(got, int64(at)); err != nil {
					return err
				}
				if !bytes.Equal(got, want[at:at+len(got)]) {
					return errors.New(difference(got, want[at:]))
				}
			}
			return nil
		})
	}
	if err := readers.Wait(); err != nil {
		t.Error(err)
	}
}

func testSlowFetch(t *testing.T, newMounter New) {
	f := start(t, newMounter, 2, []File{{Name: "slow", Mode: 0o644, Data: Bytes(1, 100_000)}, {Name: "fast", Mode: 0o644, Data: Bytes(2, 1<<20)}})
	f.check(t, "fast")
	entered, release := make(chan struct{}), make(chan struct{})
	enter := sync.OnceFunc(func() { close(entered) })
	f.source.setFetch(func(digest.Digest, int64, int64) error { enter(); <-release; return nil })
	var reader sync.WaitGroup
	reader.Go(func() { f.check(t, "slow") })
	<-entered
	dropCache(t, f.path("fast"))
	f.check(t, "fast")
	close(release)
	reader.Wait()
}

func testManyLayers(t *testing.T, newMounter New) {
	for _, layers := range []int{70, 300} {
		t.Run(fmt.Sprint(layers), func(t *testing.T) {
			f := start(t, newMounter, layers, Files(layers))
			f.checkAll(t)
		})
	}
}

func testSharedLayers(t *testing.T, newMounter New) {
	f := start(t, newMounter, 2, Files(8))
	again := *f
	again.dir = t.TempDir()
	again.mount(t)
	f.check(t, "f0006")
	again.checkAll(t)
	if err := f.mounter.Unmount(t.Context(), f.dir); err != nil {
		t.Error(err)
	}
	again.checkAll(t)
	dropCache(t, again.path("f0007"))
	again.checkAll(t)
}

func testRemount(t *testing.T, newMounter New) {
	f := start(t, newMounter, 3, Files(16))
	f.check(t, "f0001")
	for range 3 {
		if err := f.mounter.Unmount(t.Context(), f.dir); err != nil {
			t.Fatal(err)
		}
		if entries, err := os.ReadDir(f.dir); err != nil || len(entries) > 0 {
			t.Fatalf("after unmount: %v, %v", entries, err)
		}
		f.mount(t)
	}
	f.checkAll(t)
	if err := f.mounter.Unmount(t.Context(), f.dir); err != nil {
		t.Error(err)
	}
	if err := f.mounter.Unmount(t.Context(), f.dir); err != nil {
		t.Errorf("unmount where nothing is: %v", err)
	}
}

func testUnwatch(t *testing.T, newMounter New) {
	f := start(t, newMounter, 2, Files(16))
	f.check(t, "f0000")
	for _, layer := range f.Layers {
		if err := layer.Complete(); err != nil {
			t.Fatal(err)
		}
		if err := f.mounter.Unwatch(layer.Blob); err != nil {
			t.Fatal(err)
		}
	}
	before := f.source.Haves.Load()
	f.checkAll(t)
	for _, file := range f.Files {
		dropCache(t, f.path(file.Name))
	}
	f.checkAll(t)
	if n := f.source.Haves.Load() - before; n > 0 {
		t.Errorf("%d reads were asked about after Unwatch", n)
	}
	if err := f.mounter.Unwatch(digest.FromString("unknown")); err != nil {
		t.Errorf("unwatch an unknown layer: %v", err)
	}
}

func testCompleteLayer(t *testing.T, newMounter New) {
	f := start(t, newMounter, 2, Files(8))
	if err := f.mounter.Unmount(t.Context(), f.dir); err != nil {
		t.Fatal(err)
	}
	if err := f.Layers[0].Complete(); err != nil {
		t.Fatal(err)
	}
	spec := f.Spec(f.dir)
	spec.Layers[0].Complete, spec.Layers[0].File = true, nil
	if err := f.mounter.Mount(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	f.source.setFetch(func(blob digest.Digest, _, _ int64) error {
		if blob == f.Layers[0].Blob {
			t.Error("fetch of a complete layer")
		}
		return nil
	})
	f.checkAll(t)
}

// testUnmountInUse unmounts under an open file: what it reads afterwards is right or EIO.
func testUnmountInUse(t *testing.T, newMounter New) {
	f := start(t, newMounter, 1, []File{{Name: "f", Mode: 0o644, Data: Bytes(5, 4<<20)}})
	file, err := os.Open(f.path("f"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := f.mounter.Unmount(t.Context(), f.dir); err != nil {
		t.Fatal(err)
	}
	if mounted, err := mount.ListUnder(f.dir); err != nil || len(mounted) > 0 {
		t.Errorf("still mounted: %v, %v", mounted, err)
	}
	got, err := io.ReadAll(file)
	if err != nil && !errors.Is(err, unix.EIO) {
		t.Errorf("read: %v", err)
	}
	if want := f.Data("f")[:len(got)]; !bytes.Equal(got, want) {
		t.Error(difference(got, want))
	}
}

func testCloseWhileWaiting(t *testing.T, newMounter New) {
	f := start(t, newMounter, 1, []File{{Name: "f", Mode: 0o644, Data: Bytes(5, 1<<20)}})
	entered, closing := make(chan struct{}), make(chan struct{})
	enter := sync.OnceFunc(func() { close(entered) })
	f.source.setFetch(func(digest.Digest, int64, int64) error { enter(); <-closing; return nil })
	var reader sync.WaitGroup
	reader.Go(func() {
		got, err := os.ReadFile(f.path("f"))
		if err == nil && !bytes.Equal(got, f.Data("f")) {
			t.Error(difference(got, f.Data("f")))
		}
	})
	<-entered
	close(closing)
	_ = f.mounter.Close()
	reader.Wait()
}

// testOverlay changes metadata in an overlay, which fetches nothing, and data, which does.
func testOverlay(t *testing.T, newMounter New) {
	f := start(t, newMounter, 1, Files(8))
	base := t.TempDir()
	over := *f
	over.dir = filepath.Join(base, "merged")
	spec := mount.OverlaySpec{Lower: []string{f.dir}, Upper: filepath.Join(base, "upper"), Work: filepath.Join(base, "work"), Dir: over.dir, Volatile: true}
	for _, dir := range []string{spec.Upper, spec.Work, spec.Dir} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := mount.Overlay(spec); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if _, err := mount.Unmount(context.Background(), spec.Dir); err != nil {
			t.Error(err)
		}
	}()
	if err := errors.Join(os.Chmod(over.path("f0007"), 0o600), os.Rename(over.path("f0006"), over.path("f0006.old")), os.Remove(over.path("f0005"))); err != nil {
		t.Fatal(err)
	}
	if n := f.source.Fetches.Load(); n > 0 {
		t.Errorf("%d fetches for a change of metadata", n)
	}
	if _, err := os.Stat(over.path("f0005")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("removed file: %v", err)
	}
	if err := os.Rename(over.path("f0006.old"), over.path("f0006")); err != nil {
		t.Error(err)
	}
	over.check(t, "f0004", "f0006", "f0007")
	file, err := os.OpenFile(over.path("f0003"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteString("more"); err != nil {
		t.Error(err)
	}
	if got, err := os.ReadFile(over.path("f0003")); err != nil || string(got) != string(f.Data("f0003"))+"more" {
		t.Errorf("appended file: %d bytes, %v", len(got), err)
	}
	f.check(t, "f0003")
}

func testMountErrors(t *testing.T, newMounter New) {
	f := start(t, newMounter, 1, Files(4))
	if err := f.mounter.Mount(t.Context(), f.Spec(f.dir)); err == nil {
		t.Error("no error for a directory that is mounted on")
	}
	elsewhere := t.TempDir()
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.mounter.Mount(cancelled, f.Spec(elsewhere)); !errors.Is(err, context.Canceled) {
		t.Errorf("mount with a context that has ended: %v", err)
	}
	broken := f.Spec(elsewhere)
	broken.Metadata = f.Layers[0].Path
	if err := f.mounter.Mount(t.Context(), broken); err == nil {
		t.Error("no error for a metadata image that is none")
	}
	broken = f.Spec(filepath.Join(elsewhere, "missing"))
	if err := f.mounter.Mount(t.Context(), broken); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("mount on a directory that does not exist: %v", err)
	}
	if left, err := mount.ListUnder(elsewhere); err != nil || len(left) > 0 {
		t.Errorf("mounted after an error: %v, %v", left, err)
	}
	f.checkAll(t)
}

// dropCache makes the next read of a file go to the mounter again.
func dropCache(t testing.TB, path string) {
	t.Helper()
	if err := DropCache(path); err != nil {
		t.Fatal(err)
	}
}

// DropCache drops a file's pages from the page cache.
func DropCache(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
}
