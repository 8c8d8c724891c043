package layerstore

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

func TestPut(t *testing.T) {
	s := openStore(t, t.TempDir(), boot1)
	f := makeFake(1, 10*testSpan+17, testSpan)
	l := acquire(t, s, f)
	defer l.Release()

	put(t, l, f, 0, 10, 4, 4)
	if got, want := state(l), "h...h.....h"; got != want {
		t.Errorf("spans %s, want %s", got, want)
	}
	checkBelieved(t, l, f)

	var se *SpanError
	bad := bytes.Clone(f.span(2))
	bad[100] ^= 4
	for name, data := range map[string][]byte{"flipped": bad, "short": f.span(2)[:99], "long": f.data[:2*testSpan], "empty": nil} {
		if err := l.Put(2, data); !errors.As(err, &se) || se.Span != 2 || se.Layer != f.meta.Blob || l.Have(2) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, i := range []int{-1, 11, 1 << 40} {
		if err := l.Put(i, nil); err == nil {
			t.Errorf("span %d: no error", i)
		}
		if _, err := l.Recheck(i); err == nil || l.Have(i) || l.Suspect(i) {
			t.Errorf("span %d: no error", i)
		}
	}
	st, err := os.Stat(l.Path())
	must(t, err)
	if st.Size() != f.meta.TarBytes || st.Mode().Perm() != 0o600 {
		t.Errorf("tar is %v", st)
	}
}

func TestHaveRange(t *testing.T) {
	s := openStore(t, t.TempDir(), boot1)
	f := makeFake(1, 4*testSpan+17, testSpan)
	l := acquire(t, s, f)
	put(t, l, f, 1, 2, 4)
	for _, tc := range []struct {
		off, n int64
		want   bool
	}{
		{0, 1, false}, {0, 0, true}, {testSpan, 1, true}, {testSpan, 2 * testSpan, true},
		{testSpan, 2*testSpan + 1, false}, {testSpan - 1, 2, false}, {4 * testSpan, 17, true},
		{4 * testSpan, 1 << 62, true}, {4 * testSpan, 1<<63 - 1, true}, {3 * testSpan, 1 << 62, false},
		{5 * testSpan, 10, true}, {-5, 3, false}, {1<<63 - 1, 1<<63 - 1, true},
	} {
		if got := l.HaveRange(tc.off, tc.n); got != tc.want {
			t.Errorf("HaveRange(%d, %d) = %v", tc.off, tc.n, got)
		}
	}
}

// What a later Open believes, by how the earlier one ended and in which boot.
func TestBelief(t *testing.T) {
	const spans = 8
	for _, tc := range []struct {
		name   string
		boot   string
		sync   bool // between the first puts (0, 1) and the others (4, 5)
		end    func(t *testing.T, s *Store, l *Layer)
		want   string
		recked string // after Recheck of all
	}{
		{"released", boot1, false, func(t *testing.T, s *Store, l *Layer) { must(t, l.Release()); must(t, s.Close()) }, "hh..hh..", "hh..hh.."},
		{"closed", boot1, true, func(t *testing.T, s *Store, l *Layer) { must(t, s.Close()) }, "hh..hh..", "hh..hh.."},
		{"killed", boot1, true, func(t *testing.T, s *Store, l *Layer) { kill(s) }, "hhssssss", "hh.hhh.."},
		{"killed early", boot1, false, func(t *testing.T, s *Store, l *Layer) { kill(s) }, "ssssssss", "hh.hhh.."},
		{"released, booted", boot2, true, func(t *testing.T, s *Store, l *Layer) { must(t, l.Release()); must(t, s.Close()) }, "ss..ss..", "hh..hh.."},
		{"killed, booted", boot2, true, func(t *testing.T, s *Store, l *Layer) { kill(s) }, "ssssssss", "hh.hhh.."},
		{"clean, then killed", boot1, true, func(t *testing.T, s *Store, l *Layer) {
			f := makeFake(1, spans*testSpan, testSpan)
			must(t, l.Release())
			l = acquire(t, s, f)
			put(t, l, f, 6)
			kill(s)
		}, "hhsshhss", "hh.hhhh."},
		{"boot id unknown", "00000000-0000-0000-0000-000000000000", true, func(t *testing.T, s *Store, l *Layer) { must(t, s.Close()) }, "ss..ss..", "hh..hh.."},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir, f := t.TempDir(), makeFake(1, spans*testSpan, testSpan) // span 3 is zeros
			s := openStore(t, dir, boot1)
			l := acquire(t, s, f)
			put(t, l, f, 0, 1)
			if tc.sync {
				must(t, l.Sync())
			}
			put(t, l, f, 4, 5)
			tc.end(t, s, l)

			s = openStore(t, dir, tc.boot)
			l = acquire(t, s, f)
			if got := state(l); got != tc.want {
				t.Errorf("spans %s, want %s", got, tc.want)
			}
			checkBelieved(t, l, f)
			for i := range spans {
				ok, err := l.Recheck(i)
				if err != nil || ok != l.Have(i) {
					t.Errorf("recheck %d: %v, %v", i, ok, err)
				}
			}
			if got := state(l); got != tc.recked {
				t.Errorf("rechecked spans %s, want %s", got, tc.recked)
			}
			checkBelieved(t, l, f)
			// What was learnt is durable.
			must(t, l.Release())
			must(t, s.Close())
			s = openStore(t, dir, tc.boot)
			want := tc.recked
			if strings.HasPrefix(tc.boot, "0000") {
				want = tc.want
			}
			if got := state(acquire(t, s, f)); got != want && tc.name != "boot id unknown" {
				t.Errorf("spans after that %s, want %s", got, want)
			}
		})
	}
}

// Suspects that nobody rechecked stay suspects, whatever is saved over them.
func TestSuspectsSurviveSave(t *testing.T) {
	dir, f := t.TempDir(), makeFake(1, 8*testSpan, testSpan)
	s := openStore(t, dir, boot1)
	l := acquire(t, s, f)
	put(t, l, f, 0, 1, 2)
	must(t, s.Close())
	s = openStore(t, dir, boot2)
	l = acquire(t, s, f)
	put(t, l, f, 7)
	must(t, l.Release())
	l = acquire(t, s, f)
	for i := range 3 {
		if ok, err := l.Recheck(i); !ok || err != nil {
			t.Errorf("span %d: %v, %v", i, ok, err)
		}
	}
	must(t, l.Release())
	if got, want := state(acquire(t, s, f)), "hhhssssh"; got != want {
		t.Errorf("spans %s, want %s", got, want)
	}
}

func TestSpoiltDiskIsNotBelieved(t *testing.T) {
	dir, f := t.TempDir(), makeFake(1, 8*testSpan, testSpan)
	s := openStore(t, dir, boot1)
	l := acquire(t, s, f)
	putAll(t, l, f)
	must(t, s.Close())
	scribble(t, tarFile(s, f), 2*testSpan+7, []byte{0xff, 0})
	s = openStore(t, dir, boot2)
	l = acquire(t, s, f)
	for i := range 8 {
		if ok, err := l.Recheck(i); ok != (i != 2) || err != nil {
			t.Errorf("span %d: %v, %v", i, ok, err)
		}
	}
	put(t, l, f, 2)
	checkBelieved(t, l, f)
	must(t, l.Finish(t.Context()))
}

func scribble(t testing.TB, path string, off int64, b []byte) {
	t.Helper()
	fd, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer fd.Close()
	_, err = fd.WriteAt(b, off)
	must(t, err)
}

// Each byte of the have file wrong, and each length of it: nothing is believed
// without a look.
func TestDamagedHave(t *testing.T) {
	dir, f := t.TempDir(), makeFake(1, 20*testSpan, testSpan)
	s := openStore(t, dir, boot1)
	l := acquire(t, s, f)
	putAll(t, l, f)
	must(t, l.Finish(t.Context()))
	must(t, l.Release())
	good, err := os.ReadFile(haveFile(s, f))
	must(t, err)
	if want := haveHeaderSize + 3 + haveSumSize; len(good) != want {
		t.Fatalf("have file of %d bytes, want %d", len(good), want)
	}
	check := func(name string, b []byte) {
		must(t, os.WriteFile(haveFile(s, f), b, 0o600))
		l := acquire(t, s, f)
		defer func() { must(t, l.Release()) }()
		if got := state(l); got != strings.Repeat("s", 20) || l.Complete() || l.HaveBytes() != 0 {
			t.Errorf("%s: %s, complete %v", name, got, l.Complete())
		}
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= byte(1 + rand.IntN(255))
		check(fmt.Sprintf("byte %d", i), bad)
	}
	for n := range good {
		check(fmt.Sprintf("%d bytes", n), good[:n])
	}
	check("one more", append(bytes.Clone(good), 0))

	// Repaired by a look at the disk.
	l = acquire(t, s, f)
	for i := range 20 {
		if ok, err := l.Recheck(i); !ok || err != nil {
			t.Errorf("span %d: %v, %v", i, ok, err)
		}
	}
	must(t, l.Finish(t.Context()))
	must(t, l.Release())
	if l = acquire(t, s, f); !l.Complete() {
		t.Error("not complete after the repair")
	}
}

// A have file that is fine but another layer's, or of an older table.
func TestForeignHave(t *testing.T) {
	s := openStore(t, t.TempDir(), boot1)
	a, b := makeFake(1, 20*testSpan, testSpan), makeFake(2, 20*testSpan, testSpan)
	la, lb := acquire(t, s, a), acquire(t, s, b)
	putAll(t, la, a)
	must(t, la.Finish(t.Context()))
	must(t, la.Release())
	must(t, lb.Release())
	have, err := os.ReadFile(haveFile(s, a))
	must(t, err)
	must(t, os.WriteFile(haveFile(s, b), have, 0o600))
	if lb = acquire(t, s, b); lb.HaveBytes() != 0 || lb.Complete() {
		t.Error("another layer's have file is believed")
	}
}

// A tar that is not the one the complete mark was set for.
func TestCompleteMarkIsBoundToTheTar(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, path string){
		"written": func(t *testing.T, path string) { scribble(t, path, 5, []byte{1}) },
		"cut":     func(t *testing.T, path string) { must(t, os.Truncate(path, 3*testSpan)) },
		"longer":  func(t *testing.T, path string) { must(t, os.Truncate(path, 30*testSpan)) },
		"gone":    func(t *testing.T, path string) { must(t, os.Remove(path)) },
	} {
		t.Run(name, func(t *testing.T) {
			dir, f := t.TempDir(), makeFake(1, 8*testSpan, testSpan)
			s := openStore(t, dir, boot1)
			l := acquire(t, s, f)
			putAll(t, l, f)
			must(t, l.Finish(t.Context()))
			must(t, s.Close())

			s = openStore(t, dir, boot2)
			if l = acquire(t, s, f); !l.Complete() || state(l) != "hhhhhhhh" {
				t.Fatal("complete mark not believed in another boot")
			}
			must(t, s.Close())
			damage(t, tarFile(s, f))
			s = openStore(t, dir, boot2)
			if l = acquire(t, s, f); l.Complete() || l.HaveBytes() != 0 {
				t.Errorf("complete mark believed: %s", state(l))
			}
			for i := range 8 {
				if _, err := l.Recheck(i); err != nil {
					t.Error(err)
				}
			}
			checkBelieved(t, l, f)
			putAll(t, l, f)
			must(t, l.Finish(t.Context()))
			checkBelieved(t, l, f)
		})
	}
}

func TestConcurrent(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, boot1)
	s.opts.DropCache = true
	f := makeFake(1, 200*testSpan+5, testSpan)
	l := acquire(t, s, f)
	var wg sync.WaitGroup
	var done atomic.Bool
	for range 4 { // readers: what is had is right
		wg.Go(func() {
			buf := make([]byte, testSpan)
			for !done.Load() {
				i := rand.IntN(f.meta.Spans())
				if !l.Have(i) {
					continue
				}
				off, n := f.meta.Span(i)
				if _, err := l.File().ReadAt(buf[:n], off); err != nil || !bytes.Equal(buf[:n], f.span(i)) {
					t.Errorf("span %d is wrong: %v", i, err)
				}
			}
		})
	}
	wg.Go(func() {
		for !done.Load() {
			if err := l.Sync(); err != nil {
				t.Error(err)
			}
			if _, err := l.Advance(t.Context(), 3*testSpan); err != nil {
				t.Error(err)
			}
			if _, err := s.List(); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Go(func() {
		for !done.Load() {
			other, err := s.Acquire(t.Context(), f.meta, nil)
			if err != nil || other != l {
				t.Errorf("acquired %p, %v", other, err)
				return
			}
			if err := other.Release(); err != nil {
				t.Error(err)
			}
		}
	})
	var writers sync.WaitGroup
	for range 6 {
		writers.Go(func() {
			for _, i := range rand.Perm(f.meta.Spans()) {
				if err := l.Put(i, f.span(i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
	must(t, l.Finish(t.Context()))
	done.Store(true)
	wg.Wait()
	if !l.Complete() || l.HaveBytes() != f.meta.TarBytes {
		t.Errorf("complete %v, %d bytes", l.Complete(), l.HaveBytes())
	}
	checkBelieved(t, l, f)
	if ents, _ := filepath.Glob(filepath.Join(s.layerDir(f.meta.Blob), "*.tmp")); len(ents) > 0 {
		t.Errorf("left: %v", ents)
	}
}

func TestSyncFailureTakesBitsBack(t *testing.T) {
	dir, f := t.TempDir(), makeFake(1, 8*testSpan, testSpan)
	s := openStore(t, dir, boot1)
	l := acquire(t, s, f)
	put(t, l, f, 0, 1)
	must(t, l.Sync())
	put(t, l, f, 2, 3)
	broken := errors.New("disk is broken")
	good := s.fdatasync
	s.fdatasync = func(*os.File) error { return broken }
	if err := l.Sync(); !errors.Is(err, broken) {
		t.Errorf("sync: %v", err)
	}
	if got, want := state(l), "hh......"; got != want {
		t.Errorf("spans %s, want %s", got, want)
	}
	// The page cache has the bytes still; only writing them anew counts.
	if ok, err := l.Recheck(2); ok || err != nil {
		t.Errorf("recheck: %v, %v", ok, err)
	}
	s.fdatasync = good
	putAll(t, l, f)
	must(t, l.Finish(t.Context()))
	checkBelieved(t, l, f)
}
