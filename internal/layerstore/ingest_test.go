package layerstore

import (
	"errors"
	"os"
	"testing"

	"github.com/opencontainers/go-digest"
)

func ingest(t testing.TB, s *Store, f *fake) *Ingest {
	t.Helper()
	g, err := s.Ingest(t.Context(), f.meta.Blob, f.meta.BlobBytes, f.meta.DiffID)
	must(t, err)
	for rest := f.data; len(rest) > 0; {
		n := min(len(rest), 300_001)
		_, err := g.Write(rest[:n])
		must(t, err)
		rest = rest[n:]
	}
	if g.Size() != int64(len(f.data)) {
		t.Errorf("size %d", g.Size())
	}
	return g
}

func TestIngest(t *testing.T) {
	for _, n := range []int{0, 1, SpanBytes, 12*SpanBytes + 5} {
		dir, f := t.TempDir(), makeFake(1, n, SpanBytes)
		s := openStore(t, dir, boot1)
		g := ingest(t, s, f)
		if infos, err := s.List(); len(infos) != 0 || err != nil {
			t.Errorf("seen before it is there: %v, %v", infos, err)
		}
		l, err := g.Commit(t.Context(), f.meta.SpanDigests)
		must(t, err)
		must(t, g.Abort())
		if _, err := g.Write([]byte("more")); !errors.Is(err, ErrClosed) {
			t.Errorf("write after commit: %v", err)
		}
		if !l.Complete() || l.HaveBytes() != int64(n) {
			t.Errorf("complete %v, %d bytes", l.Complete(), l.HaveBytes())
		}
		checkBelieved(t, l, f)
		noTemps(t, s)
		kill(s)
		s = openStore(t, dir, boot2)
		l = acquire(t, s, f)
		if !l.Complete() {
			t.Error("not durable")
		}
		checkBelieved(t, l, f)
	}
}

func TestSealIsNotYetDurable(t *testing.T) {
	dir, f := t.TempDir(), makeFake(1, 3*SpanBytes+5, SpanBytes)
	s := openStore(t, dir, boot1)
	l, err := ingest(t, s, f).Seal(t.Context(), f.meta.SpanDigests)
	must(t, err)
	if l.Complete() || state(l) != "hhhh" {
		t.Errorf("complete %v, spans %s", l.Complete(), state(l))
	}
	kill(s)
	s = openStore(t, dir, boot1)
	l = acquire(t, s, f)
	if state(l) != "ssss" {
		t.Errorf("spans %s", state(l))
	}
	must(t, l.Release())
	l, err = ingest(t, s, f).Seal(t.Context(), f.meta.SpanDigests)
	must(t, err)
	must(t, l.Finish(t.Context()))
	must(t, l.Release())
	if !acquire(t, s, f).Complete() {
		t.Error("not complete")
	}
}

// TestSealIsBelieved: what an ingest's caller has hashed is not hashed again,
// unless some of it was taken back since.
func TestSealIsBelieved(t *testing.T) {
	s := openStore(t, t.TempDir(), boot1)
	f := makeFake(1, 2*SpanBytes+5, SpanBytes)
	l, err := ingest(t, s, f).Seal(t.Context(), f.meta.SpanDigests)
	must(t, err)
	if n, err := l.Advance(t.Context(), 0); n != 0 || err != nil {
		t.Errorf("%d bytes hashed again, %v", n, err)
	}
	must(t, l.Finish(t.Context()))

	wrong := makeFake(2, 2*SpanBytes+5, SpanBytes)
	wrong.meta.DiffID = digest.FromString("of other bytes")
	l, err = ingest(t, s, wrong).Seal(t.Context(), wrong.meta.SpanDigests)
	must(t, err)
	l.syncMu.Lock()
	l.forget(func(i int) bool { return i == 1 })
	l.syncMu.Unlock()
	put(t, l, wrong, 1)
	var de *DiffIDError
	if err := l.Finish(t.Context()); !errors.As(err, &de) {
		t.Errorf("finish of bytes that nobody has hashed: %v", err)
	}
}

func TestIngestRefuses(t *testing.T) {
	s := openStore(t, t.TempDir(), boot1)
	f := makeFake(1, 2*SpanBytes+5, SpanBytes)

	if _, err := ingest(t, s, f).Commit(t.Context(), f.meta.SpanDigests[:1]); err == nil {
		t.Error("too few span digests: no error")
	}
	g := ingest(t, s, f)
	must(t, g.Abort())
	must(t, g.Abort())
	if _, err := g.Commit(t.Context(), f.meta.SpanDigests); !errors.Is(err, ErrClosed) {
		t.Errorf("commit after abort: %v", err)
	}
	if infos, err := s.List(); len(infos) != 0 || err != nil {
		t.Errorf("list: %v, %v", infos, err)
	}
	if _, err := s.Ingest(t.Context(), "x", 1, f.meta.DiffID); err == nil {
		t.Error("bad blob digest: no error")
	}
	noTemps(t, s)
}

// What an ingest meets when it is done.
func TestIngestMeets(t *testing.T) {
	f := makeFake(1, 4*SpanBytes+5, SpanBytes)
	t.Run("complete", func(t *testing.T) {
		s := openStore(t, t.TempDir(), boot1)
		g := ingest(t, s, f)
		l, err := ingest(t, s, f).Commit(t.Context(), f.meta.SpanDigests)
		must(t, err)
		l2, err := g.Commit(t.Context(), f.meta.SpanDigests)
		must(t, err)
		if l2 != l {
			t.Error("another layer")
		}
		must(t, l.Release())
		must(t, l2.Release())
		// ... and unused.
		st, err := os.Stat(l.Path())
		must(t, err)
		l3, err := ingest(t, s, f).Commit(t.Context(), f.meta.SpanDigests)
		must(t, err)
		st3, err := os.Stat(l3.Path())
		must(t, err)
		if !os.SameFile(st, st3) || !l3.Complete() {
			t.Error("a proven layer was replaced")
		}
		noTemps(t, s)
	})
	t.Run("in use", func(t *testing.T) {
		s := openStore(t, t.TempDir(), boot1)
		l := acquire(t, s, f)
		put(t, l, f, 2)
		l2, err := ingest(t, s, f).Commit(t.Context(), f.meta.SpanDigests)
		must(t, err)
		if l2 != l || !l.Complete() {
			t.Errorf("complete %v", l.Complete())
		}
		checkBelieved(t, l, f)
		noTemps(t, s)
	})
	t.Run("in use, and its index lies", func(t *testing.T) {
		s := openStore(t, t.TempDir(), boot1)
		evil := f.lying(1)
		le := acquire(t, s, evil)
		put(t, le, evil, 1)
		l, err := ingest(t, s, f).Commit(t.Context(), f.meta.SpanDigests)
		must(t, err)
		if le.Have(1) || !s.Quarantined(f.meta.Blob, evil.meta.TableDigest()) {
			t.Error("the lie is still believed")
		}
		checkBelieved(t, l, f)
		must(t, le.Release())
		must(t, l.Release())
		if !acquire(t, s, f).Complete() {
			t.Error("not complete")
		}
		noTemps(t, s)
	})
	t.Run("unused", func(t *testing.T) {
		s := openStore(t, t.TempDir(), boot1)
		l := acquire(t, s, f)
		put(t, l, f, 2)
		must(t, l.Release())
		l, err := ingest(t, s, f).Commit(t.Context(), f.meta.SpanDigests)
		must(t, err)
		checkBelieved(t, l, f)
		noTemps(t, s)
	})
	t.Run("another diffID", func(t *testing.T) {
		other := makeFake(2, 3*SpanBytes, SpanBytes)
		other.meta.Blob = f.meta.Blob
		s := openStore(t, t.TempDir(), boot1)
		l, err := ingest(t, s, f).Commit(t.Context(), f.meta.SpanDigests)
		must(t, err)
		if _, err := ingest(t, s, other).Commit(t.Context(), other.meta.SpanDigests); !errors.Is(err, ErrConflict) {
			t.Errorf("in use: %v", err)
		}
		must(t, l.Release())
		must(t, s.Pin("me", f.meta.Blob))
		if _, err := ingest(t, s, other).Commit(t.Context(), other.meta.SpanDigests); !errors.Is(err, ErrConflict) {
			t.Errorf("pinned: %v", err)
		}
		must(t, s.Unpin("me"))
		l, err = ingest(t, s, other).Commit(t.Context(), other.meta.SpanDigests)
		must(t, err)
		if !l.Complete() {
			t.Error("not complete")
		}
		checkBelieved(t, l, other)
		noTemps(t, s)
	})
}
