package layerstore

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/testenv"
)

func smallDisk(t *testing.T) string {
	t.Helper()
	testenv.NeedRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "size=8m"); err != nil {
		t.Skipf("needs mount: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

func fill(t *testing.T, dir string) (path string) {
	t.Helper()
	path = filepath.Join(dir, "filler")
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	for _, n := range []int{64 << 10, 4096} {
		for {
			if _, err := f.Write(make([]byte, n)); err != nil {
				break
			}
		}
	}
	return path
}

func TestFullDiskPut(t *testing.T) {
	dir := smallDisk(t)
	s := openStore(t, dir, boot1)
	f := makeFake(1, 12*SpanBytes, SpanBytes)
	l := acquire(t, s, f)
	var failed []int
	for i := range f.meta.Spans() {
		err := l.Put(i, f.span(i))
		if err == nil {
			if i == 2 {
				must(t, l.Sync())
			}
			continue
		}
		failed = append(failed, i)
		var we *WriteError
		if !errors.As(err, &we) || !errors.Is(err, syscall.ENOSPC) || we.Span != i || we.Layer != f.meta.Blob ||
			we.Path != l.Path() || we.MissingBytes <= 0 || we.MissingBytes > SpanBytes || l.Have(i) {
			t.Errorf("put %d: %v", i, err)
		}
	}
	if len(failed) < 4 {
		t.Fatalf("only %v failed", failed)
	}
	checkBelieved(t, l, f)
	fill(t, dir)
	if err := l.Sync(); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("sync: %v", err)
	}
	checkBelieved(t, l, f)
	kill(s)

	// The have file is that of the last sync that worked.
	s = openStore(t, dir, boot1)
	l, err := s.Acquire(t.Context(), f.meta, nil)
	must(t, err)
	if got, want := state(l), "hhhsssssssss"; got != want {
		t.Errorf("spans %s, want %s", got, want)
	}
	for i := range f.meta.Spans() {
		if _, err := l.Recheck(i); err != nil {
			t.Error(err)
		}
	}
	checkBelieved(t, l, f)
	if l.Have(failed[0]) {
		t.Errorf("span %d is half there and believed", failed[0])
	}

	// Room again: it goes on.
	must(t, os.Remove(filepath.Join(dir, "filler")))
	must(t, unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size=32m"))
	putAll(t, l, f)
	must(t, l.Finish(t.Context()))
	checkBelieved(t, l, f)
}

func TestFullDiskIngest(t *testing.T) {
	dir := smallDisk(t)
	s := openStore(t, dir, boot1)
	f := makeFake(1, 12*SpanBytes, SpanBytes)
	before, _, err := s.FreeBytes()
	must(t, err)
	g, err := s.Ingest(t.Context(), f.meta.Blob, 1, f.meta.DiffID)
	must(t, err)
	n, err := g.Write(f.data)
	var we *WriteError
	if !errors.As(err, &we) || !errors.Is(err, syscall.ENOSPC) || int64(n)+we.MissingBytes != f.meta.TarBytes || int64(we.Span) != g.Size()/SpanBytes {
		t.Errorf("write: %d, %v", n, err)
	}
	if _, err := g.Write([]byte("x")); !errors.As(err, &we) {
		t.Errorf("second write: %v", err)
	}
	if _, err := g.Commit(t.Context(), f.meta.SpanDigests); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("commit: %v", err)
	}
	noTemps(t, s)
	if after, _, err := s.FreeBytes(); err != nil || after < before-64<<10 {
		t.Errorf("%d bytes free, were %d (%v)", after, before, err)
	}
}

// With no byte left: calls fail with the reason, GC makes room, a lie is still a lie.
func TestFullDiskElse(t *testing.T) {
	dir := smallDisk(t)
	s := openStore(t, dir, boot1)
	f, evil := makeFake(1, 2*SpanBytes, SpanBytes), makeFake(2, 4*testSpan, testSpan).lying(1)
	l := acquire(t, s, f)
	putAll(t, l, f)
	must(t, l.Release())
	le := acquire(t, s, evil)
	putAll(t, le, evil)
	filler := fill(t, dir)

	if _, err := s.Acquire(t.Context(), makeFake(3, SpanBytes, SpanBytes).meta, nil); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("acquire: %v", err)
	}
	if err := s.Pin("me", f.meta.Blob); !errors.Is(err, syscall.ENOSPC) || len(s.Owners()) != 0 {
		t.Errorf("pin: %v", err)
	}
	var de *DiffIDError
	if err := le.Finish(t.Context()); !errors.As(err, &de) || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("finish: %v", err)
	}
	if le.HaveBytes() != 0 || !s.Quarantined(evil.meta.Blob, evil.meta.TableDigest()) {
		t.Error("the lie is believed")
	}
	must(t, le.Release())
	if removed, err := s.GC(t.Context(), nil); err != nil || len(removed) != 1 {
		t.Errorf("collected %v, %v", removed, err)
	}
	must(t, os.Remove(filler))
	must(t, s.Close())
	must(t, openStore(t, dir, boot1).Close())
}
