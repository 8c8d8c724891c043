package layerstore

import (
	"context"
	_ "crypto/sha512"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/opencontainers/go-digest"
)

func TestLock(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, "")
	_, err := Open(dir, Options{})
	var le *LockedError
	if !errors.Is(err, ErrLocked) || !errors.As(err, &le) || le.PID != os.Getpid() {
		t.Fatalf("second open: %v", err)
	}
	must(t, os.WriteFile(filepath.Join(dir, lockName), []byte("what?"), 0o600))
	if _, err := Open(dir, Options{}); !errors.As(err, &le) || le.PID != 0 {
		t.Fatalf("second open: %v", err)
	}
	must(t, s.Close())
	must(t, s.Close())
	if _, err := s.Acquire(t.Context(), makeFake(1, 1, testSpan).meta, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("acquire from a closed store: %v", err)
	}
	must(t, openStore(t, dir, "").Close())
}

func TestOpenRemovesTemps(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, boot1)
	g, err := s.Ingest(t.Context(), digest.FromString("x"), 1, digest.FromString("y"))
	must(t, err)
	_, err = g.Write([]byte("half a layer"))
	must(t, err)
	kill(s)
	noTemps(t, openStore(t, dir, boot1))
}

func TestMetaValidate(t *testing.T) {
	good := makeFake(1, 3*testSpan+1, testSpan).meta
	must(t, good.Validate())
	for name, change := range map[string]func(*Meta){
		"no blob":          func(m *Meta) { m.Blob = "" },
		"path in blob":     func(m *Meta) { m.Blob = "sha256:../../../etc/passwd" },
		"sha512":           func(m *Meta) { m.Blob = digest.SHA512.FromString("x") },
		"bad diffID":       func(m *Meta) { m.DiffID = "sha256:00" },
		"few spans":        func(m *Meta) { m.SpanDigests = m.SpanDigests[1:] },
		"negative":         func(m *Meta) { m.TarBytes = -1 },
		"huge":             func(m *Meta) { m.TarBytes = 1 << 62 },
		"span size 0":      func(m *Meta) { m.SpanBytes = 0 },
		"odd span size":    func(m *Meta) { m.SpanBytes = 5000 },
		"negative blob":    func(m *Meta) { m.BlobBytes = -1 },
		"span size is max": func(m *Meta) { m.SpanBytes = 1 << 62 },
	} {
		m := good
		change(&m)
		if m.Validate() == nil {
			t.Errorf("%s: no error", name)
		}
		if _, err := (&Store{}).Acquire(t.Context(), m, nil); err == nil {
			t.Errorf("%s: acquired", name)
		}
	}
}

func TestAcquireConflicts(t *testing.T) {
	base := makeFake(1, 8*testSpan, testSpan)
	otherTable := base.lying(5).meta
	otherSize := makeFake(1, 9*testSpan, testSpan).meta
	otherSize.DiffID = base.meta.DiffID
	otherDiffID := base.meta
	otherDiffID.DiffID = digest.FromString("evil")

	for _, tc := range []struct {
		name     string
		meta     Meta
		complete bool
		inUse    bool
		pinned   bool
		want     error
		state    string
	}{
		{"same, in use", base.meta, false, true, false, nil, "hh......"},
		{"same, unused", base.meta, false, false, true, nil, "hh......"},
		{"table, in use", otherTable, false, true, false, ErrConflict, ""},
		{"table, unused", otherTable, false, false, true, nil, "ssssssss"},
		{"table, complete, in use", otherTable, true, true, false, nil, "hhhhhhhh"},
		{"table, complete", otherTable, true, false, false, nil, "hhhhhhhh"},
		{"diffID, in use", otherDiffID, false, true, false, ErrConflict, ""},
		{"diffID, unused", otherDiffID, false, false, true, nil, "ssssssss"},
		{"diffID, complete, pinned", otherDiffID, true, false, true, ErrConflict, ""},
		{"diffID, complete", otherDiffID, true, false, false, nil, "........"},
		{"size, in use", otherSize, false, true, false, ErrConflict, ""},
		{"size, unused", otherSize, false, false, false, nil, "sssssssss"},
		{"size, complete, pinned", otherSize, true, false, true, ErrConflict, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := openStore(t, t.TempDir(), boot1)
			l := acquire(t, s, base)
			put(t, l, base, 0, 1)
			if tc.complete {
				putAll(t, l, base)
				must(t, l.Finish(t.Context()))
			}
			if tc.pinned {
				must(t, s.Pin("image:a", base.meta.Blob))
			}
			if !tc.inUse {
				must(t, l.Release())
			}
			l2, err := s.Acquire(t.Context(), tc.meta, nil)
			if !errors.Is(err, tc.want) {
				t.Fatalf("got %v, want %v", err, tc.want)
			}
			if err != nil {
				return
			}
			if got := state(l2); got != tc.state {
				t.Errorf("spans %s, want %s", got, tc.state)
			}
			if st, err := l2.File().Stat(); err != nil || st.Size() != l2.Meta().TarBytes {
				t.Errorf("tar %v, %v", st, err)
			}
			if tc.name == "table, unused" { // what the tables share is used again
				for i := range 8 {
					if ok, err := l2.Recheck(i); ok != (i < 2 || i == 3) || err != nil {
						t.Errorf("recheck %d: %v, %v", i, ok, err)
					}
				}
			}
			noTemps(t, s)
		})
	}
}

// The descriptor that outlives a daemon.
func TestFirstDescriptor(t *testing.T) {
	dir, f := t.TempDir(), makeFake(1, 8*testSpan, testSpan)
	s := openStore(t, dir, boot1)
	l := acquire(t, s, f)
	put(t, l, f, 0, 1)
	kept := func(path string, flags int) *os.File {
		fd, err := os.OpenFile(path, flags, 0)
		must(t, err)
		t.Cleanup(func() { fd.Close() })
		return fd
	}
	path := l.Path()
	must(t, s.Close())

	s = openStore(t, dir, boot1)
	other := filepath.Join(t.TempDir(), "other")
	must(t, os.WriteFile(other, nil, 0o600))
	for name, fd := range map[string]*os.File{
		"other file": kept(other, os.O_RDWR),
		"read only":  kept(path, os.O_RDONLY),
		"append":     kept(path, os.O_RDWR|os.O_APPEND),
	} {
		if _, err := s.Acquire(t.Context(), f.meta, fd); err == nil {
			t.Errorf("%s: no error", name)
		}
		if _, err := fd.Stat(); err != nil {
			t.Errorf("%s: descriptor was taken: %v", name, err)
		}
	}
	if _, err := s.Acquire(t.Context(), f.lying(2).meta, kept(path, os.O_RDWR)); !errors.Is(err, ErrConflict) {
		t.Errorf("other table for a mounted layer: %v", err)
	}
	if _, err := s.Acquire(t.Context(), makeFake(2, 9, testSpan).meta, kept(other, os.O_RDWR)); !errors.Is(err, ErrNotFound) {
		t.Errorf("descriptor of a layer that is gone: %v", err)
	}
	first := kept(path, os.O_RDWR)
	l, err := s.Acquire(t.Context(), f.meta, first)
	must(t, err)
	if l.File() != first || state(l) != "hh......" {
		t.Errorf("file %v, spans %s", l.File().Name(), state(l))
	}
	again := kept(path, os.O_RDWR)
	l2, err := s.Acquire(t.Context(), f.meta, again)
	must(t, err)
	if _, err := again.Stat(); l2 != l || l.File() != first || !errors.Is(err, os.ErrClosed) {
		t.Errorf("the second descriptor is open: %v", err)
	}
	must(t, l.Release())
	put(t, l, f, 5)
	must(t, l.Release())
	if _, err := first.Stat(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("the first descriptor is open: %v", err)
	}
	must(t, l.Release()) // once too often does no harm
}

func TestDamagedMeta(t *testing.T) {
	dir, f := t.TempDir(), makeFake(1, 8*testSpan, testSpan)
	s := openStore(t, dir, boot1)
	l := acquire(t, s, f)
	putAll(t, l, f)
	must(t, l.Release())
	path := filepath.Join(s.layerDir(f.meta.Blob), metaName)
	good, err := os.ReadFile(path)
	must(t, err)
	other, err := encodeMeta(&makeFake(2, 8*testSpan, testSpan).meta)
	must(t, err)
	for _, b := range [][]byte{nil, good[:40], []byte("{}"), other} {
		must(t, os.WriteFile(path, b, 0o600))
		infos, err := s.List()
		must(t, err)
		if len(infos) != 1 || infos[0].DiffID != "" || infos[0].HereBytes != 0 {
			t.Errorf("list: %+v", infos)
		}
		l = acquire(t, s, f)
		for i := range 8 {
			if ok, err := l.Recheck(i); err != nil {
				t.Errorf("recheck %d: %v, %v", i, ok, err)
			}
		}
		checkBelieved(t, l, f)
		if l.HaveBytes() != f.meta.TarBytes {
			t.Errorf("spans %s", state(l))
		}
		must(t, l.Release())
	}
	// A span digest changed: what it names cannot be had, the rest can.
	must(t, os.Remove(path))
	m := f.lying(4).meta
	must(t, writeMeta(filepath.Dir(path), &m, false))
	l, err = s.Acquire(t.Context(), m, nil)
	must(t, err)
	if l.HaveBytes() != 0 {
		t.Errorf("spans %s", state(l))
	}
}

func TestListRemovePinGC(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, boot1)
	a, b, c := makeFake(1, 8*testSpan, testSpan), makeFake(2, 3*testSpan, testSpan), makeFake(3, 2*testSpan, testSpan)
	la, lb, lc := acquire(t, s, a), acquire(t, s, b), acquire(t, s, c)
	put(t, la, a, 0)
	putAll(t, lb, b)
	must(t, lb.Finish(t.Context()))
	must(t, s.Pin("image:x", a.meta.Blob, b.meta.Blob))
	must(t, s.Pin("mount:1", a.meta.Blob))
	must(t, s.Pin("mount:1", a.meta.Blob))
	must(t, lb.Release())
	must(t, lc.Release())

	want := []Info{
		{Blob: a.meta.Blob, BlobBytes: 4 * testSpan, DiffID: a.meta.DiffID, Table: a.meta.TableDigest(), TarBytes: 8 * testSpan, HereBytes: testSpan, InUse: true, Pins: []string{"image:x", "mount:1"}},
		{Blob: b.meta.Blob, BlobBytes: 3 * testSpan / 2, DiffID: b.meta.DiffID, Table: b.meta.TableDigest(), TarBytes: 3 * testSpan, HereBytes: 3 * testSpan, Complete: true, Proven: true, Pins: []string{"image:x"}},
		{Blob: c.meta.Blob, BlobBytes: testSpan, DiffID: c.meta.DiffID, Table: c.meta.TableDigest(), TarBytes: 2 * testSpan, SuspectBytes: 2 * testSpan},
	}
	slices.SortFunc(want, func(a, b Info) int { return cmpString(a.Blob, b.Blob) })
	infos, err := s.List()
	must(t, err)
	if diff := cmp.Diff(want, infos, cmpopts.IgnoreFields(Info{}, "LastUse", "DiskBytes")); diff != "" {
		t.Errorf("list (-want +got):\n%s", diff)
	}
	for _, info := range infos {
		if info.LastUse.IsZero() || info.HereBytes > 0 && info.DiskBytes == 0 {
			t.Errorf("info %+v", info)
		}
	}

	err = s.Remove(t.Context(), a.meta.Blob)
	var busy *BusyError
	if !errors.As(err, &busy) || !errors.Is(err, ErrInUse) || !errors.Is(err, ErrPinned) || busy.Users != 1 {
		t.Errorf("remove: %v", err)
	}
	err = s.Remove(t.Context(), b.meta.Blob)
	if !errors.As(err, &busy) || errors.Is(err, ErrInUse) || !slices.Equal(busy.Owners, []string{"image:x"}) {
		t.Errorf("remove: %v", err)
	}
	removed, err := s.GC(t.Context(), nil)
	must(t, err)
	if len(removed) != 1 || removed[0].Blob != c.meta.Blob {
		t.Errorf("collected %+v", removed)
	}
	if err := s.Remove(t.Context(), c.meta.Blob); !errors.Is(err, ErrNotFound) {
		t.Errorf("remove: %v", err)
	}

	// Pins outlive the process, users do not.
	must(t, s.Close())
	s = openStore(t, dir, boot2)
	if removed, err = s.GC(t.Context(), nil); err != nil || len(removed) != 0 {
		t.Errorf("collected %+v, %v", removed, err)
	}
	must(t, s.Unpin("image:x"))
	must(t, s.Unpin("image:x"))
	must(t, s.Unpin("nobody"))
	removed, err = s.GC(t.Context(), func(d digest.Digest) bool { return d == b.meta.Blob })
	if err != nil || len(removed) != 0 {
		t.Errorf("collected %+v, %v", removed, err)
	}
	must(t, s.Remove(t.Context(), b.meta.Blob))
	if got := s.Owners(); !slices.Equal(got, []string{"mount:1"}) {
		t.Errorf("owners %v", got)
	}
	noTemps(t, s)
}

func cmpString[T ~string](a, b T) int {
	if a < b {
		return -1
	}
	return 1
}

func TestDamagedPinsKeepEverything(t *testing.T) {
	for _, content := range []string{"", "{", `{"version":9}`, `{"version":1,"owners":{"a":["b"]}}`} {
		dir, f := t.TempDir(), makeFake(1, testSpan, testSpan)
		s := openStore(t, dir, boot1)
		must(t, acquire(t, s, f).Release())
		must(t, s.Close())
		must(t, os.WriteFile(filepath.Join(dir, pinsName), []byte(content), 0o600))
		s = openStore(t, dir, boot1)
		if removed, err := s.GC(t.Context(), nil); err != nil || len(removed) != 0 {
			t.Errorf("collected %+v, %v", removed, err)
		}
		must(t, s.Unpin(LostPins))
		if removed, err := s.GC(t.Context(), nil); err != nil || len(removed) != 1 {
			t.Errorf("collected %+v, %v", removed, err)
		}
		must(t, s.Close())
	}
}

func TestPinRefuses(t *testing.T) {
	s := openStore(t, t.TempDir(), boot1)
	if s.Pin("", digest.FromString("x")) == nil || s.Pin("me", "../x") == nil {
		t.Error("no error")
	}
	must(t, s.Pin("me"))
	if len(s.Owners()) != 0 {
		t.Errorf("owners %v", s.Owners())
	}
}

func TestFreeBytes(t *testing.T) {
	s := openStore(t, t.TempDir(), "")
	if free, size, err := s.FreeBytes(); err != nil || free <= 0 || size < free {
		t.Errorf("%d of %d, %v", free, size, err)
	}
}

func TestCancelledWait(t *testing.T) {
	s := openStore(t, t.TempDir(), boot1)
	f := makeFake(1, testSpan, testSpan)
	e, err := s.lockEntry(t.Context(), f.meta.Blob)
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Acquire(ctx, f.meta, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("acquire: %v", err)
	}
	if err := s.Remove(ctx, f.meta.Blob); !errors.Is(err, context.Canceled) {
		t.Errorf("remove: %v", err)
	}
	e.unlock()
	l := acquire(t, s, f)
	putAll(t, l, f)
	if err := l.Finish(ctx); !errors.Is(err, context.Canceled) || l.Complete() {
		t.Errorf("finish: %v", err)
	}
	must(t, l.Finish(t.Context()))
}

func TestBootID(t *testing.T) {
	for _, bad := range []string{"x", "1234", boot1 + "00"} {
		if _, err := Open(t.TempDir(), Options{BootID: bad}); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
	if b, err := readBootID(""); err != nil || fmt.Sprint(b) == fmt.Sprint(bootID{}) {
		t.Errorf("%v, %v", b, err)
	}
}
