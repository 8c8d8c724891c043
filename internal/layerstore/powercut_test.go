package layerstore

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/powercut"
	"github.com/thaw-project/thaw/internal/testenv"
)

// randomCrashes is how often each step is cut with random parts of what was not synced.
func randomCrashes() int {
	if os.Getenv("THAW_LONG") != "" {
		return 40
	}
	return 2
}

// scenario works on a store in a recorded directory.
type scenario struct {
	t     *testing.T
	rec   *powercut.Recorder
	store *Store
}

func (w *scenario) promise(format string, args ...any) { w.rec.Mark(fmt.Sprintf(format, args...)) }

// voids takes a promise back, before what breaks it begins.
func (w *scenario) voids(format string, args ...any) {
	w.rec.Mark("not " + fmt.Sprintf(format, args...))
}

// inForce returns the promises that were made before a crash and not taken back.
func inForce(marks []string) []string {
	var out []string
	for _, m := range marks {
		if gone, ok := strings.CutPrefix(m, "not "); ok {
			out = slices.DeleteFunc(out, func(p string) bool { return p == gone })
			continue
		}
		out = append(out, m)
	}
	return out
}

// crashes records work and looks at what the next boot makes of each power cut in it.
func crashes(t *testing.T, fakes []*fake, work func(w *scenario)) {
	testenv.NeedFUSE(t)
	rec := powercut.Record(t)
	s, err := Open(rec.Dir+"/store", Options{BootID: boot1, Log: quiet(), DropCache: true})
	must(t, err)
	work(&scenario{t, rec, s})
	must(t, s.Close())
	rec.Stop(t).Crashes(t, randomCrashes(), func(t *testing.T, c powercut.Crash) { checkCrash(t, c, fakes) })
}

// checkCrash opens what is left, in another boot: it opens, believes nothing that
// is wrong, has kept what was promised, and works.
func checkCrash(t *testing.T, c powercut.Crash, fakes []*fake) {
	s, err := Open(c.Dir+"/store", Options{BootID: boot2, Log: quiet()})
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	defer s.Close()
	layers := map[string]*Layer{}
	for i, f := range fakes {
		l, err := s.Acquire(t.Context(), f.meta, nil)
		if errors.Is(err, ErrQuarantined) || errors.Is(err, ErrConflict) {
			continue
		}
		if err != nil {
			t.Fatalf("acquire %d: %v", i, err)
		}
		defer l.Release()
		layers[fmt.Sprint(i)] = l
		checkBelieved(t, l, f)
		if l.Complete() && l.missing() > 0 {
			t.Error("complete with spans missing")
		}
		if !l.Complete() && l.HaveBytes() > 0 {
			t.Error("believed over a boot without a look")
		}
	}
	for _, p := range inForce(c.Marks) {
		checkPromise(t, s, layers, fakes, p)
	}
	for name, l := range layers { // and go on
		f := fakes[name[0]-'0']
		for i := range f.meta.Spans() {
			if _, err := l.Recheck(i); err != nil {
				t.Fatal(err)
			}
		}
		checkBelieved(t, l, f)
		putAll(t, l, f)
		err := l.Finish(t.Context())
		var lie *DiffIDError
		if f.lies() != errors.As(err, &lie) || !f.lies() && err != nil {
			t.Fatalf("finish: %v", err)
		}
		if !f.lies() {
			checkBelieved(t, l, f)
		}
	}
}

func checkPromise(t *testing.T, s *Store, layers map[string]*Layer, fakes []*fake, promise string) {
	t.Helper()
	var layer string
	var n int
	switch {
	case scan(promise, "synced %s to %d", &layer, &n):
		l := layers[layer]
		for i := range n {
			if ok, err := l.Recheck(i); err != nil || !ok {
				t.Fatalf("%s: span %d is not here (%v)", promise, i, err)
			}
		}
	case scan(promise, "complete %s", &layer):
		if l := layers[layer]; l == nil || !l.Complete() {
			t.Fatalf("%s: it is not", promise)
		}
	case scan(promise, "pinned %s", &layer):
		if len(s.pins.owners(fakes[layer[0]-'0'].meta.Blob)) == 0 {
			t.Fatalf("%s: it is not", promise)
		}
	case scan(promise, "quarantined %s", &layer):
		if m := &fakes[layer[0]-'0'].meta; !s.Quarantined(m.Blob, m.TableDigest()) {
			t.Fatalf("%s: it is not", promise)
		}
	default:
		t.Fatalf("promise %q is not known", promise)
	}
}

func scan(s, format string, args ...any) bool {
	n, err := fmt.Sscanf(s, format, args...)
	return err == nil && n == len(args)
}

// lies reports whether the span table is one of other bytes than the diffID's.
func (f *fake) lies() bool { return f.meta.DiffID != digest.FromBytes(f.data) }

// TestPowerCutHydrate: spans come in no order, are synced now and then, and the layer is
// finished, closed, and opened again.
func TestPowerCutHydrate(t *testing.T) {
	f := makeFake(20, 12*testSpan+99, testSpan)
	crashes(t, []*fake{f}, hydrating(f))
}

func hydrating(f *fake) func(w *scenario) {
	return func(w *scenario) {
		t := w.t
		l := acquire(t, w.store, f)
		put(t, l, f, 2, 0, 1)
		must(t, l.Sync())
		w.promise("synced 0 to 3")
		put(t, l, f, 4, 3, 9)
		must(t, l.Sync())
		w.promise("synced 0 to 5")
		put(t, l, f, 5, 6)
		must(t, l.Release())
		w.promise("synced 0 to 7")
		l = acquire(t, w.store, f)
		put(t, l, f, 7, 8, 10, 11, 12)
		_, err := l.Advance(t.Context(), 3*testSpan)
		must(t, err)
		must(t, l.Finish(t.Context()))
		w.promise("complete 0")
		must(t, l.Release())
	}
}

// TestPowerCutExt4 does the same on ext4, whose disk is a recorded file: each crash is
// that of a disk that lost any sectors it was not told to flush, and the journal is
// replayed before the store is opened.
func TestPowerCutExt4(t *testing.T) {
	if os.Getenv("THAW_LONG") == "" {
		t.Skip("takes a minute: THAW_LONG=1")
	}
	testenv.NeedFUSE(t)
	testenv.NeedTool(t, "mkfs.ext4")
	rec := powercut.Record(t)
	disk := filepath.Join(rec.Dir, "disk")
	must(t, os.WriteFile(disk, nil, 0o600))
	must(t, os.Truncate(disk, 32<<20))
	must(t, fsyncPath(rec.Dir))
	run(t, "mkfs.ext4", "-q", "-F", disk)
	dir := t.TempDir()
	run(t, "mount", "-o", "loop", disk, dir)
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) }) // where the test fails
	s, err := Open(dir+"/store", Options{BootID: boot1, Log: quiet(), DropCache: true})
	must(t, err)
	run(t, "sync", "-f", dir)
	rec.Mark("not ready")
	f := makeFake(23, 12*testSpan+99, testSpan)
	hydrating(f)(&scenario{t, rec, s})
	must(t, s.Close())
	run(t, "umount", dir)
	rec.Stop(t).Some(t, 200, func(t *testing.T, c powercut.Crash) {
		dir := t.TempDir()
		run(t, "mount", "-o", "loop", filepath.Join(c.Dir, "disk"), dir)
		defer run(t, "umount", dir)
		c.Dir = dir
		checkCrash(t, c, []*fake{f})
	})
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

// TestPowerCutIngest: a layer is streamed in, pinned, removed, and hydrated anew.
func TestPowerCutIngest(t *testing.T) {
	f := makeFake(21, SpanBytes+4097, SpanBytes)
	crashes(t, []*fake{f}, func(w *scenario) {
		s := w.store
		must(t, s.Pin("image:x", f.meta.Blob))
		w.promise("pinned 0")
		g, err := s.Ingest(t.Context(), f.meta.Blob, f.meta.BlobBytes, f.meta.DiffID)
		must(t, err)
		for i := range f.meta.Spans() {
			_, err := g.Write(f.span(i))
			must(t, err)
		}
		l, err := g.Commit(t.Context(), f.meta.SpanDigests)
		must(t, err)
		w.promise("complete 0")
		must(t, l.Release())
		w.voids("pinned 0")
		must(t, s.Unpin("image:x"))
		w.voids("complete 0")
		must(t, s.Remove(t.Context(), f.meta.Blob))
		l = acquire(t, s, f)
		put(t, l, f, 1)
		must(t, l.Sync())
		put(t, l, f, 0)
		must(t, l.Finish(t.Context()))
		w.promise("complete 0")
		must(t, s.Pin("image:x", f.meta.Blob))
		w.promise("pinned 0")
		must(t, l.Release())
	})
}

// TestPowerCutQuarantine: a lie is found out; a layer is described anew by a better
// table while parts of it are here.
func TestPowerCutQuarantine(t *testing.T) {
	honest := makeFake(22, 5*testSpan, testSpan)
	liar := honest.lying(1)
	crashes(t, []*fake{liar, honest}, func(w *scenario) {
		s := w.store
		l := acquire(t, s, liar)
		put(t, l, liar, 0, 1, 3)
		must(t, l.Sync())
		must(t, l.Release())
		l = acquire(t, s, honest) // another table: what is here is suspect
		put(t, l, honest, 1)
		must(t, l.Sync())
		must(t, l.Release())
		must(t, s.Remove(t.Context(), honest.meta.Blob))
		l = acquire(t, s, liar)
		putAll(t, l, liar)
		var lie *DiffIDError
		if err := l.Finish(t.Context()); !errors.As(err, &lie) {
			t.Fatalf("finish of a lie: %v", err)
		}
		w.promise("quarantined 0")
		must(t, l.Release())
		l = acquire(t, s, honest)
		putAll(t, l, honest)
		must(t, l.Finish(t.Context()))
		w.promise("complete 1")
		must(t, l.Release())
	})
}
