package layerstore

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ingestDirect writes a layer span by span, past the page cache.
func ingestDirect(t testing.TB, s *Store, f *fake) *Ingest {
	t.Helper()
	s.directFrom = 0
	g, err := s.Ingest(t.Context(), f.meta.Blob, f.meta.BlobBytes, f.meta.DiffID)
	must(t, err)
	if g.direct == nil {
		t.Fatal("no direct writes on the file system of the tests")
	}
	for i := range f.meta.Spans() {
		for len(g.direct.free) == 0 { // it would go through the page cache
			runtime.Gosched()
		}
		must(t, second(g.Write(f.span(i))))
	}
	return g
}

func second(_ int, err error) error { return err }

func TestIngestDirect(t *testing.T) {
	for _, n := range []int{0, SpanBytes - 1, SpanBytes, 40*SpanBytes + 4097} {
		dir, f := t.TempDir(), makeFake(1, n, SpanBytes)
		s := openStore(t, dir, boot1)
		l, err := ingestDirect(t, s, f).Commit(t.Context(), f.meta.SpanDigests)
		must(t, err)
		if !l.Complete() {
			t.Error("not complete")
		}
		if cached := cachedPages(t, l.File(), n); n > 2*SpanBytes && cached > 2*SpanBytes/os.Getpagesize() {
			t.Errorf("%d pages of %d bytes are in the page cache", cached, n)
		}
		checkBelieved(t, l, f)
		noTemps(t, s)
		kill(s)
		s = openStore(t, dir, boot2)
		if l = acquire(t, s, f); !l.Complete() {
			t.Error("not durable")
		}
		checkBelieved(t, l, f)
	}
}

func cachedPages(t *testing.T, f *os.File, n int) (pages int) {
	t.Helper()
	if n == 0 {
		return 0
	}
	m, err := unix.Mmap(int(f.Fd()), 0, n, unix.PROT_READ, unix.MAP_SHARED)
	must(t, err)
	defer unix.Munmap(m)
	in := make([]byte, (n+os.Getpagesize()-1)/os.Getpagesize())
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&m[0])), uintptr(n), uintptr(unsafe.Pointer(&in[0])))
	if errno != 0 {
		t.Fatal(errno)
	}
	return bytes.Count(in, []byte{1})
}

// TestDirectWriterFallsBack: what the disk is too slow for, or does not take so,
// goes through the page cache.
func TestDirectWriterFallsBack(t *testing.T) {
	dir := t.TempDir()
	f, err := createTar(dir)
	must(t, err)
	defer f.Close()
	w := newDirectWriter(dir, f)
	if w == nil {
		t.Fatal("no direct writes on the file system of the tests")
	}
	data := bytes.Repeat([]byte("thaw"), directBytes/4)
	var taken [directBuffers][]byte
	for i := range taken {
		taken[i] = <-w.free
	}
	if w.offer(data, 0) {
		t.Error("taken with no buffer free")
	}
	for _, b := range taken {
		w.free <- b
	}
	if !w.offer(data, 512+1) { // no direct write begins there
		t.Error("not taken")
	}
	w.close()
	if e := w.failed.Load(); e != nil {
		t.Errorf("failed: %v", e.err)
	}
	got, err := os.ReadFile(filepath.Join(dir, tarName))
	must(t, err)
	if !bytes.Equal(got, append(make([]byte, 512+1), data...)) {
		t.Errorf("%d bytes are not what was written", len(got))
	}
}

// TestFullDiskDirect: an error that comes late is still the ingest's.
func TestFullDiskDirect(t *testing.T) {
	s := openStore(t, smallDisk(t), boot1)
	s.directFrom = 0
	f := makeFake(1, 12*SpanBytes, SpanBytes)
	g, err := s.Ingest(t.Context(), f.meta.Blob, 1, f.meta.DiffID)
	must(t, err)
	var we *WriteError
	for i := range f.meta.Spans() {
		if _, err = g.Write(f.span(i)); err != nil {
			break
		}
	}
	if err != nil && (!errors.As(err, &we) || !errors.Is(err, syscall.ENOSPC)) {
		t.Errorf("write: %v", err)
	}
	if _, err := g.Commit(t.Context(), f.meta.SpanDigests); !errors.As(err, &we) || !errors.Is(err, syscall.ENOSPC) || we.MissingBytes <= 0 {
		t.Errorf("commit: %v", err)
	}
	noTemps(t, s)
}
