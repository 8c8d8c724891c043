package indexstore

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	digest "github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/index"
	"github.com/thaw-project/thaw/internal/layertar/layertartest"
)

func open(t testing.TB) *Store {
	t.Helper()
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var image = digest.FromString("image manifest")

func someImage(n int) *Image {
	m := fmt.Appendf(nil, "artifact manifest %d", n)
	return &Image{Digest: digest.FromBytes(m), Manifest: m, Head: fmt.Appendf(nil, "head %d", n), Local: n%2 == 0}
}

func someLayer(t testing.TB, name string) *index.LayerBlob {
	t.Helper()
	tar := new(layertartest.Builder).File(name, []byte("data")).End().Bytes()
	l, err := index.BuildLayer(t.Context(), bytes.NewReader(tar), index.BuildInput{
		Blob: digest.FromBytes(tar), BlobBytes: int64(len(tar)), DiffID: digest.FromBytes(tar)})
	if err != nil {
		t.Fatal(err)
	}
	lb, err := index.EncodeLayer(l)
	if err != nil {
		t.Fatal(err)
	}
	return lb
}

func TestPutGetRemove(t *testing.T) {
	s := open(t)
	if _, err := s.Get(image); !errors.Is(err, ErrNotFound) {
		t.Errorf("error %v of an empty store", err)
	}
	for n := range 3 { // the last one counts
		if err := s.Put(image, someImage(n)); err != nil {
			t.Fatal(err)
		}
		got, err := s.Get(image)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(someImage(n), got); d != "" {
			t.Error(d)
		}
	}
	if got, err := s.Images(); err != nil || len(got) != 1 || got[0] != image {
		t.Errorf("images %v, %v", got, err)
	}
	for range 2 {
		if err := s.Remove(image); err != nil {
			t.Error(err)
		}
		if _, err := s.Get(image); !errors.Is(err, ErrNotFound) {
			t.Errorf("error %v after it was removed", err)
		}
	}
}

// TestCompared: it is noted of one head of one image's index, as long as that is here.
func TestCompared(t *testing.T) {
	s := open(t)
	one, other := digest.FromString("head 1"), digest.FromString("head 2")
	if err := s.SetCompared(image, one); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of an index that is not here: %v", err)
	}
	if err := s.Put(image, someImage(1)); err != nil {
		t.Fatal(err)
	}
	if s.Compared(image, one) || s.Compared(image, "") {
		t.Error("nobody has compared it")
	}
	if err := s.SetCompared(image, one); err != nil {
		t.Fatal(err)
	}
	if err := s.Put(image, someImage(2)); err != nil {
		t.Fatal(err)
	}
	if !s.Compared(image, one) || s.Compared(image, other) || s.Compared(digest.FromString("other"), one) || s.Compared("x", one) || s.SetCompared("x", one) == nil {
		t.Error("it is of another head or image")
	}
	if err := s.Remove(image); err != nil {
		t.Fatal(err)
	}
	if s.Compared(image, one) {
		t.Error("the index is gone, and what was noted of it is here")
	}
}

// TestDamage: what does not hash to its name is missing, and can be put again.
func TestDamage(t *testing.T) {
	for name, damage := range map[string]func(b []byte) []byte{
		"flipped": func(b []byte) []byte { b[len(b)/2] ^= 4; return b },
		"cut":     func(b []byte) []byte { return b[:len(b)-1] },
		"empty":   func([]byte) []byte { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			lb := someLayer(t, "f")
			for _, glob := range []string{"images/*/record.json", "images/*/sha256-*", "layers/*"} {
				if err := errors.Join(s.Put(image, someImage(1)), s.PutLayer(lb)); err != nil {
					t.Fatal(err)
				}
				files, _ := filepath.Glob(s.path(glob))
				if len(files) != 1 {
					t.Fatalf("%s is %v", glob, files)
				}
				b, err := os.ReadFile(files[0])
				if err == nil {
					err = os.WriteFile(files[0], damage(b), 0o600)
				}
				if err != nil {
					t.Fatal(err)
				}
				_, err = s.Get(image)
				_, lerr := s.Layer(lb.Blob)
				if !errors.Is(err, ErrNotFound) && !errors.Is(lerr, ErrNotFound) {
					t.Errorf("%s: errors %v and %v", glob, err, lerr)
				}
			}
		})
	}
}

func TestBadDigest(t *testing.T) {
	s := open(t)
	for _, d := range []digest.Digest{"", "sha256:../../etc", "sha256", "x:y"} {
		if _, err := s.Get(d); !errors.Is(err, ErrNotFound) {
			t.Errorf("get %q: %v", d, err)
		}
		if _, err := s.Layer(d); !errors.Is(err, ErrNotFound) {
			t.Errorf("layer %q: %v", d, err)
		}
		if err := s.Put(d, someImage(1)); err == nil {
			t.Errorf("put %q: no error", d)
		}
	}
}

func TestQuarantine(t *testing.T) {
	s := open(t)
	im := someImage(1)
	if err := s.Put(image, im); err != nil {
		t.Fatal(err)
	}
	if err := s.Quarantine(image, im.Digest, "it lied"); err != nil {
		t.Fatal(err)
	}
	if !s.Quarantined(im.Digest) || s.Quarantined(someImage(2).Digest) {
		t.Error("the wrong one is quarantined")
	}
	if err := s.Put(image, im); err != nil { // fetched once more
		t.Fatal(err)
	}
	if _, err := s.Get(image); !errors.Is(err, ErrNotFound) {
		t.Errorf("error %v of a liar", err)
	}
	if err := s.Put(image, someImage(2)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(image); err != nil {
		t.Errorf("error %v of an honest one", err)
	}
}

func TestLayers(t *testing.T) {
	s := open(t)
	a, b := someLayer(t, "a"), someLayer(t, "b")
	if err := errors.Join(s.PutLayer(a), s.PutLayer(b)); err != nil {
		t.Fatal(err)
	}
	got, err := s.Layer(a.Blob)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes, a.Bytes) || got.Digest != a.Digest || got.OffsetWindows != a.OffsetWindows || got.DiffID != a.DiffID {
		t.Error("another layer came back")
	}
	path, ok := s.LayerPath(a.Blob, a.Digest)
	if have, err := os.ReadFile(path); !ok || err != nil || !bytes.Equal(have, a.Bytes) {
		t.Errorf("path %s, %v, %v", path, ok, err)
	}
	if _, ok := s.LayerPath(a.Blob, b.Digest); ok {
		t.Error("a file for another index of the layer")
	}
	if err := s.RemoveLayer(a.Blob); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Layer(a.Blob); !errors.Is(err, ErrNotFound) {
		t.Errorf("error %v", err)
	}
	if _, err := s.Layer(b.Blob); err != nil {
		t.Errorf("error %v of the other", err)
	}
}

// TestConcurrentPut: readers see one of the indexes whole, or none.
func TestConcurrentPut(t *testing.T) {
	s := open(t)
	lb := someLayer(t, "f")
	if err := s.Put(image, someImage(0)); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for n := range 8 {
		wg.Go(func() {
			for range 5 {
				if err := errors.Join(s.Put(image, someImage(n)), s.PutLayer(lb)); err != nil {
					t.Error(err)
				}
				got, err := s.Get(image)
				if err != nil || !bytes.HasSuffix(got.Manifest, got.Head[len("head "):]) {
					t.Errorf("%v, %v", got, err)
				}
			}
		})
	}
	wg.Wait()
	left, _ := filepath.Glob(s.path("*", "*", ".tmp-*"))
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestSweep: what a killed process left is removed, what a living one is
// writing is not.
func TestSweep(t *testing.T) {
	s := open(t)
	ended := startAndForget(t) // nobody has asked for its exit code
	dead, alive := s.path("layers", ".tmp-4194304999-1"), s.path("layers", fmt.Sprintf(".tmp-%d-1", os.Getpid()))
	zombie := s.path("layers", fmt.Sprintf(".tmp-%d-1", ended))
	for _, f := range []string{dead, alive, zombie} {
		if err := os.WriteFile(f, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Open(s.dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dead); err == nil {
		t.Error("a dead process's file is left")
	}
	if _, err := os.Stat(zombie); err == nil {
		t.Error("the file of a process that has ended is left")
	}
	if _, err := os.Stat(alive); err != nil {
		t.Error("a living process's file is gone")
	}
}

// startAndForget returns the pid of a process that has ended, and whose exit code
// is asked for when the test is over.
func startAndForget(t *testing.T) int {
	t.Helper()
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Wait() })
	if err := unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid
}
