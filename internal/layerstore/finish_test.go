package layerstore

import (
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

func TestFinish(t *testing.T) {
	for _, n := range []int{0, 1, testSpan - 1, testSpan, 5*testSpan + 100} {
		dir, f := t.TempDir(), makeFake(1, n, testSpan)
		s := openStore(t, dir, boot1)
		l := acquire(t, s, f)
		if n > 0 {
			if err := l.Finish(t.Context()); !errors.Is(err, ErrIncomplete) {
				t.Errorf("%d bytes: finish: %v", n, err)
			}
		}
		putAll(t, l, f)
		must(t, l.Finish(t.Context()))
		must(t, l.Finish(t.Context()))
		if !l.Complete() {
			t.Errorf("%d bytes: not complete", n)
		}
		must(t, l.Sync())
		kill(s)
		if l = acquire(t, openStore(t, dir, boot2), f); !l.Complete() || l.HaveBytes() != int64(n) {
			t.Errorf("%d bytes: the mark is not durable", n)
		}
	}
}

func TestAdvance(t *testing.T) {
	s := openStore(t, t.TempDir(), boot1)
	const span = 4 << 20 // larger than one read
	f := makeFake(1, 3*span+5, span)
	l := acquire(t, s, f)
	step := func(budget, want int64) {
		t.Helper()
		if n, err := l.Advance(t.Context(), budget); n != want || err != nil {
			t.Errorf("advanced %d, %v; want %d", n, err, want)
		}
	}
	step(0, 0)
	put(t, l, f, 1)
	step(0, 0)
	put(t, l, f, 0)
	step(readBytes, readBytes)
	step(1, readBytes)
	step(0, 2*span-2*readBytes)
	put(t, l, f, 3)
	step(0, 0)
	put(t, l, f, 2)
	step(0, span+5)
	must(t, l.Finish(t.Context()))
	step(0, 0)
}

// A diffID that no span contradicts: the index lied.
func TestQuarantine(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, boot1)
	f := makeFake(1, 8*testSpan, testSpan)
	evil := f.lying(5)
	l := acquire(t, s, evil)
	user := acquire(t, s, evil)
	putAll(t, l, evil)
	var de *DiffIDError
	err := l.Finish(t.Context())
	if !errors.As(err, &de) || de.Want != f.meta.DiffID || de.Got != digest.FromBytes(evil.data) || de.Layer != f.meta.Blob {
		t.Fatalf("finish: %v", err)
	}
	// Nothing of it is served any more, also not to those who had it.
	if user.Have(0) || user.HaveBytes() != 0 || user.Complete() {
		t.Error("a quarantined layer has spans")
	}
	if err := user.Put(0, evil.span(0)); !errors.Is(err, ErrQuarantined) {
		t.Errorf("put: %v", err)
	}
	if _, err := user.Recheck(0); !errors.Is(err, ErrQuarantined) {
		t.Errorf("recheck: %v", err)
	}
	if err := user.Finish(t.Context()); !errors.Is(err, ErrQuarantined) {
		t.Errorf("finish: %v", err)
	}
	must(t, user.Sync())

	table := evil.meta.TableDigest()
	check := func(s *Store) {
		t.Helper()
		if !s.Quarantined(f.meta.Blob, table) || s.Quarantined(f.meta.Blob, f.meta.TableDigest()) {
			t.Error("wrong table in quarantine")
		}
		var qe *QuarantinedError
		if _, err := s.Acquire(t.Context(), evil.meta, nil); !errors.As(err, &qe) || qe.Table != table {
			t.Errorf("acquire: %v", err)
		}
		infos, err := s.List()
		must(t, err)
		last := infos[len(infos)-1]
		if !strings.Contains(last.Quarantined, de.Got.String()) || last.Table != table || last.Blob != f.meta.Blob {
			t.Errorf("list: %+v", last)
		}
		graves, err := filepath.Glob(s.path(quarantineDir, "*", "*"))
		if err != nil || len(graves) != 1 || filepath.Base(graves[0]) != reasonName {
			t.Errorf("in quarantine: %v, %v", graves, err)
		}
		noTemps(t, s)
	}
	check(s)

	// An honest index of the same blob brings the layer in, beside those who
	// still hold the old file.
	good := acquire(t, s, f)
	putAll(t, good, f)
	must(t, good.Finish(t.Context()))
	must(t, l.Release())
	must(t, user.Release())
	checkBelieved(t, good, f)
	check(s)
	must(t, s.Close())
	s = openStore(t, dir, boot2)
	check(s)
	if !acquire(t, s, f).Complete() {
		t.Error("the honest layer is gone")
	}
	if removed, err := s.GC(t.Context(), nil); len(removed) != 0 || err != nil {
		t.Errorf("collected %v, %v", removed, err)
	}
}

// A quarantine that a crash cut short, at each step.
func TestQuarantineIsFinishedByOpen(t *testing.T) {
	f := makeFake(1, 8*testSpan, testSpan)
	r := reasonFile{Version: reasonVersion, Blob: f.meta.Blob, Table: f.meta.TableDigest(), DiffID: f.meta.DiffID, Reason: "test"}
	for name, crash := range map[string]func(s *Store, dir string){
		"reason written": func(*Store, string) {},
		"moved": func(s *Store, dir string) {
			grave := s.path(quarantineDir, dirName(r.Blob)+"-"+r.Table.Encoded()[:16])
			must(t, os.Rename(dir, grave))
		},
	} {
		dir := t.TempDir()
		s := openStore(t, dir, boot1)
		l := acquire(t, s, f)
		putAll(t, l, f)
		must(t, l.Release())
		layer := s.layerDir(f.meta.Blob)
		must(t, os.WriteFile(filepath.Join(layer, reasonName), mustJSON(t, r), 0o600))
		crash(s, layer)
		kill(s)
		s = openStore(t, dir, boot1)
		if !s.Quarantined(r.Blob, r.Table) || exists(layer) {
			t.Errorf("%s: not in quarantine", name)
		}
		if files, _ := filepath.Glob(s.path(quarantineDir, "*", "*")); len(files) != 1 {
			t.Errorf("%s: left %v", name, files)
		}
	}
	// A reason that cannot be read condemns the data all the same.
	dir := t.TempDir()
	s := openStore(t, dir, boot1)
	must(t, acquire(t, s, f).Release())
	must(t, os.WriteFile(filepath.Join(s.layerDir(f.meta.Blob), reasonName), []byte("{"), 0o600))
	kill(s)
	s = openStore(t, dir, boot1)
	if infos, err := s.List(); len(infos) != 0 || err != nil {
		t.Errorf("list %v, %v", infos, err)
	}
}

// The disk spoilt spans after they were put: the index is not to blame.
func TestFinishFindsSpoiltSpans(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, boot1)
	f := makeFake(1, 8*testSpan, testSpan)
	l := acquire(t, s, f)
	putAll(t, l, f)
	must(t, l.Sync())
	for _, i := range []int64{2, 6} {
		scribble(t, l.Path(), i*testSpan+9, []byte("rot"))
	}
	var se *SpanError
	var de *DiffIDError
	err := l.Finish(t.Context())
	if !errors.As(err, &se) || errors.As(err, &de) || se.Span != 2 || se.Path != l.Path() {
		t.Fatalf("finish: %v", err)
	}
	if got, want := state(l), "hh.hhh.h"; got != want {
		t.Errorf("spans %s, want %s", got, want)
	}
	kill(s) // that they are gone is durable already
	s = openStore(t, dir, boot1)
	l = acquire(t, s, f)
	checkBelieved(t, l, f)
	put(t, l, f, 2, 6)
	must(t, l.Finish(t.Context()))
	checkBelieved(t, l, f)
}

func TestFinishSyncFailure(t *testing.T) {
	s := openStore(t, t.TempDir(), boot1)
	f := makeFake(1, 8*testSpan, testSpan)
	l := acquire(t, s, f)
	putAll(t, l, f)
	broken := errors.New("disk is broken")
	good := s.fsync
	s.fsync = func(*os.File) error { return broken }
	if err := l.Finish(t.Context()); !errors.Is(err, broken) || l.Complete() || l.HaveBytes() != 0 {
		t.Errorf("finish: %v", err)
	}
	s.fsync = good
	putAll(t, l, f)
	must(t, l.Finish(t.Context()))
}

func TestZeroSpanIsItsDigest(t *testing.T) {
	zero := make([]byte, testSpan)
	f := &fake{data: make([]byte, 4*testSpan)}
	f.meta = Meta{
		Blob: digest.FromString("z"), DiffID: digest.FromBytes(f.data), TarBytes: 4 * testSpan,
		SpanBytes: testSpan, SpanDigests: spanDigests(f.data, testSpan),
	}
	if f.meta.SpanDigests[0] != sha256.Sum256(zero) {
		t.Fatal("span digests are wrong")
	}
	dir := t.TempDir()
	s := openStore(t, dir, boot1)
	acquire(t, s, f)
	kill(s)
	s = openStore(t, dir, boot1)
	l := acquire(t, s, f)
	for i := range 4 { // never written, and right
		if ok, err := l.Recheck(i); !ok || err != nil {
			t.Errorf("span %d: %v, %v", i, ok, err)
		}
	}
	must(t, l.Finish(t.Context()))
}

// Bytes that were hashed and then found spoilt are hashed anew.
func TestFinishAfterSpoiltSpans(t *testing.T) {
	s := openStore(t, t.TempDir(), boot1)
	f := makeFake(1, 8*testSpan, testSpan)
	l := acquire(t, s, f)
	putAll(t, l, f)
	must(t, l.Sync())
	scribble(t, l.Path(), 9, []byte("rot"))
	if _, err := l.Advance(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	var se *SpanError
	if err := l.Finish(t.Context()); !errors.As(err, &se) || se.Span != 0 {
		t.Fatalf("finish: %v", err)
	}
	put(t, l, f, 0)
	if n, err := l.Advance(t.Context(), 0); n != f.meta.TarBytes || err != nil {
		t.Errorf("hashed %d anew, %v", n, err)
	}
	must(t, l.Finish(t.Context()))
	checkBelieved(t, l, f)
}

// A running digest gone wrong (a bad bit in memory) is not the index's fault.
func TestFinishBlamesNobodyUnseen(t *testing.T) {
	s := openStore(t, t.TempDir(), boot1)
	f := makeFake(1, 8*testSpan, testSpan)
	l := acquire(t, s, f)
	putAll(t, l, f)
	l.sum.Write([]byte{1})
	must(t, l.Finish(t.Context()))
	if !l.Complete() {
		t.Error("not complete")
	}
}
