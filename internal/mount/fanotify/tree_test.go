package fanotify

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/erofs"
	"github.com/thaw-project/thaw/internal/mount"
	"github.com/thaw-project/thaw/internal/mount/keeper"
	"github.com/thaw-project/thaw/internal/mount/mounttest"
	"github.com/thaw-project/thaw/internal/testenv"
)

// twiceImage is an image with the files "quiet0" and "quiet1" on second devices, one in each layer, and "other" on the first one.
func twiceImage(t *testing.T) (*mounttest.Image, *mounttest.Source) {
	testenv.NeedRoot(t)
	testenv.NeedFanotify(t)
	const quietBytes = 300_000
	image := mounttest.NewImage(t, 2, []mounttest.File{
		{Name: "quiet0", Mode: 0o644, Data: mounttest.Bytes(1, quietBytes)},
		{Name: "quiet1", Mode: 0o644, Data: mounttest.Bytes(2, quietBytes)},
		{Name: "other", Mode: 0o644, Data: mounttest.Bytes(3, 200_000)},
	})
	b, err := os.ReadFile(image.Metadata)
	if err != nil {
		t.Fatal(err)
	}
	if b, err = erofs.Redirect(b, func(e erofs.Extent) bool { return e.OffsetDevice < quietBytes }); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(image.Metadata+"2", b, 0o600); err != nil {
		t.Fatal(err)
	}
	source := &mounttest.Source{}
	source.Add(image.Layers...)
	return image, source
}

func twiceSpec(image *mounttest.Image, dir string) mount.Spec {
	spec := image.Spec(dir)
	spec.Metadata += "2"
	spec.Twice = true
	return spec
}

// readCold reads a file whose pages the kernel has not got, and returns how many events that raised.
func readCold(t *testing.T, m *Mounter, image *mounttest.Image, dir, name string) int64 {
	t.Helper()
	path := filepath.Join(dir, name)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
	events := func() int64 { s := m.Stats(); return s.Inline + s.Waited }
	before := events()
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, image.Data(name)) {
		t.Errorf("%s: %d bytes: %v", name, len(got), err)
	}
	return events() - before
}

// TestSilence: only reads of what is on the second devices of a silent mount are nobody's business.
func TestSilence(t *testing.T) {
	image, source := twiceImage(t)
	m := newMounter(t, source, nil)
	defer m.Close()
	dir, plain := t.TempDir(), t.TempDir()
	if err := m.Mount(t.Context(), twiceSpec(image, dir)); err != nil {
		t.Fatal(err)
	}
	if err := m.Mount(t.Context(), image.Spec(plain)); err != nil {
		t.Fatal(err)
	}
	check := func(dir, name string, want bool) {
		t.Helper()
		if n := readCold(t, m, image, dir, name); n > 0 != want {
			t.Errorf("%d events of %s in %s, want some: %v", n, name, dir, want)
		}
	}
	check(dir, "quiet0", true)
	check(dir, "quiet1", true)
	if err := m.Silence(dir); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		check(dir, "quiet0", false)
		check(dir, "quiet1", false)
		check(dir, "other", true)
		check(plain, "quiet0", true)
	}
	// A write to the file does not end it.
	if err := source.Fetch(t.Context(), image.Layers[0].Blob, 0, 1); err != nil {
		t.Fatal(err)
	}
	check(dir, "quiet0", false)

	m.Unsilence(image.Layers[1].Blob)
	check(dir, "quiet1", true)
	check(dir, "quiet0", true) // all of the mount
	m.Unsilence(image.Layers[1].Blob)
	if err := m.Silence(dir); err != nil {
		t.Fatal(err)
	}
	check(dir, "quiet0", false)

	// Should the kernel not take back the one, it takes back all.
	tree := m.trees[dir]
	fd := tree.fd
	tree.fd = -1
	m.Unsilence(image.Layers[1].Blob)
	tree.fd = fd
	check(dir, "quiet0", true)
	if err := m.Silence(dir); err != nil {
		t.Fatal(err)
	}
	check(dir, "quiet0", false)

	// As a layer in quarantine goes from under its readers.
	if err := os.RemoveAll(filepath.Dir(image.Layers[0].Path)); err != nil {
		t.Fatal(err)
	}
	m.Unsilence(image.Layers[0].Blob)
	check(dir, "quiet0", true)
	if err := m.Silence(dir); err != nil {
		t.Fatal(err)
	}

	if err := m.Silence(plain); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("silence a mount without second devices: %v", err)
	}
	if err := m.Unmount(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	if err := m.Silence(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("silence what is unmounted: %v", err)
	}
	check(plain, "quiet0", true)
}

// TestDetachedIsNotSilent: a mount that is in use when it is taken away raises events again, since nobody could take its silence back.
func TestDetachedIsNotSilent(t *testing.T) {
	image, source := twiceImage(t)
	m := newMounter(t, source, nil)
	defer m.Close()
	dir := t.TempDir()
	if err := m.Mount(t.Context(), twiceSpec(image, dir)); err != nil {
		t.Fatal(err)
	}
	if err := m.Silence(dir); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(dir, "quiet0"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := m.Unmount(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(image.Data("quiet0")))
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, image.Data("quiet0")) {
		t.Errorf("wrong bytes: %v", err) // nothing had been fetched: without an event they are zeros
	}
}

// TestSilenceUnbindable: where layers are on a mount that cannot be cloned all goes on, with events.
func TestSilenceUnbindable(t *testing.T) {
	image, source := twiceImage(t)
	layers := commonDir(twiceSpec(image, "").Layers)
	if err := unix.Mount(layers, layers, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(layers, unix.MNT_DETACH)
	if err := unix.Mount("", layers, "", unix.MS_UNBINDABLE, ""); err != nil {
		t.Fatal(err)
	}
	m := newMounter(t, source, nil)
	defer m.Close()
	dir := t.TempDir()
	if err := m.Mount(t.Context(), twiceSpec(image, dir)); err != nil {
		t.Fatal(err)
	}
	if err := m.Silence(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("silence what is not on a clone: %v", err)
	}
	for _, name := range []string{"quiet0", "quiet1", "other"} {
		if n := readCold(t, m, image, dir, name); n == 0 {
			t.Errorf("no event of %s", name)
		}
	}
	if err := m.Unmount(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
}

// TestSilenceEndsWithDaemon: one that goes takes silence back, since what is found out after that is nobody's to tell; and where it was killed
// the next one does, which does not know what was silent.
func TestSilenceEndsWithDaemon(t *testing.T) {
	for _, killed := range []bool{false, true} {
		image, source := twiceImage(t)
		tmp := t.TempDir()
		socket := filepath.Join(tmp, "keeper.sock")
		client := func() *keeper.Client {
			c, err := keeper.Connect(t.Context(), keeper.ClientOptions{
				Socket: socket, Command: keeperCommand(socket, time.Minute), LogPath: filepath.Join(tmp, "keeper.log"), Log: testLog(t),
			})
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		m := newMounter(t, source, client())
		dir := t.TempDir()
		spec := twiceSpec(image, dir)
		if err := m.Mount(t.Context(), spec); err != nil {
			t.Fatal(err)
		}
		if err := m.Silence(dir); err != nil {
			t.Fatal(err)
		}
		early := make(chan error, 1)
		if killed {
			m.trees[dir].silent = false // it is not taken back
			m.Handover(t.Context())
			early <- nil
		} else {
			m.Handover(t.Context())
			reads := make(chan struct{})
			go func() {
				close(reads)
				got, err := os.ReadFile(filepath.Join(dir, "quiet1"))
				if err == nil && !bytes.Equal(got, image.Data("quiet1")) {
					err = errors.New("read what is not there")
				}
				early <- err
			}()
			<-reads
		}
		m = newMounter(t, source, client())
		defer m.Close()
		if err := m.Adopt(spec); err != nil {
			t.Fatal(err)
		}
		if err := <-early; err != nil {
			t.Error(err)
		}
		// Nothing had been fetched: without events these are zeros.
		for _, name := range []string{"quiet0", "quiet1", "other"} {
			if n := readCold(t, m, image, dir, name); n == 0 {
				t.Errorf("no event of %s", name)
			}
		}
	}
}
