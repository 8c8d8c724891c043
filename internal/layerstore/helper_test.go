package layerstore

import (
	"bytes"
	"crypto/sha256"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
)

const (
	boot1 = "11111111-2222-4333-8444-555555555555"
	boot2 = "aaaaaaaa-2222-4333-8444-555555555555"

	testSpan = 4096
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		crashChild(dir)
	}
	os.Exit(m.Run())
}

// fake is a layer whose bytes are known.
type fake struct {
	meta Meta
	data []byte
}

// makeFake makes a layer of n bytes; every seventh span is all zeros.
func makeFake(seed uint64, n int, spanBytes int64) *fake {
	f := &fake{data: make([]byte, n)}
	rng := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	rng.Read(f.data)
	for i := int64(3); i*spanBytes < int64(n); i += 7 {
		clear(f.data[i*spanBytes : min(int64(n), (i+1)*spanBytes)])
	}
	f.meta = Meta{
		Blob: digest.FromBytes([]byte{'b', byte(seed), byte(seed >> 8)}), BlobBytes: int64(n) / 2,
		DiffID: digest.FromBytes(f.data), TarBytes: int64(n), SpanBytes: spanBytes,
	}
	f.meta.SpanDigests = spanDigests(f.data, spanBytes)
	return f
}

func spanDigests(data []byte, spanBytes int64) [][32]byte {
	out := [][32]byte{}
	for off := int64(0); off < int64(len(data)); off += spanBytes {
		out = append(out, sha256.Sum256(data[off:min(int64(len(data)), off+spanBytes)]))
	}
	return out
}

func (f *fake) span(i int) []byte {
	off, n := f.meta.Span(i)
	return f.data[off : off+n]
}

// lying returns a copy whose span i is other bytes, with a table that says so.
func (f *fake) lying(i int) *fake {
	c := &fake{meta: f.meta, data: bytes.Clone(f.data)}
	off, _ := f.meta.Span(i)
	c.data[off] ^= 1
	c.meta.SpanDigests = spanDigests(c.data, f.meta.SpanBytes)
	return c
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func openStore(t testing.TB, dir, boot string) *Store {
	t.Helper()
	s, err := Open(dir, Options{BootID: boot, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func acquire(t testing.TB, s *Store, f *fake) *Layer {
	t.Helper()
	l, err := s.Acquire(t.Context(), f.meta, nil)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func put(t testing.TB, l *Layer, f *fake, spans ...int) {
	t.Helper()
	for _, i := range spans {
		if err := l.Put(i, f.span(i)); err != nil {
			t.Fatal(err)
		}
	}
}

func putAll(t testing.TB, l *Layer, f *fake) {
	t.Helper()
	for i := range f.meta.Spans() {
		put(t, l, f, i)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// checkBelieved fails if the layer believes in a byte that is wrong.
func checkBelieved(t testing.TB, l *Layer, f *fake) {
	t.Helper()
	var here int64
	for i := range f.meta.Spans() {
		if !l.Have(i) {
			continue
		}
		off, n := f.meta.Span(i)
		here += n
		got := make([]byte, n)
		if _, err := l.File().ReadAt(got, off); err != nil || !bytes.Equal(got, f.span(i)) {
			t.Fatalf("span %d is believed and wrong (err %v)", i, err)
		}
	}
	if here != l.HaveBytes() {
		t.Errorf("HaveBytes %d, want %d", l.HaveBytes(), here)
	}
}

// state lists the spans: h here, s suspect, . missing.
func state(l *Layer) string {
	b := make([]byte, l.meta.Spans())
	for i := range b {
		switch {
		case l.Have(i):
			b[i] = 'h'
		case l.Suspect(i):
			b[i] = 's'
		default:
			b[i] = '.'
		}
	}
	return string(b)
}

// kill drops a store as SIGKILL would: nothing is saved, the lock is free.
func kill(s *Store) {
	s.mu.Lock()
	s.closed = true
	entries := s.entries
	s.mu.Unlock()
	for _, e := range entries {
		if l := e.layer.Load(); l != nil {
			l.closed.Store(true)
			l.file.Close()
		}
	}
	s.lock.Close()
}

func haveFile(s *Store, f *fake) string { return filepath.Join(s.layerDir(f.meta.Blob), haveName) }
func tarFile(s *Store, f *fake) string  { return filepath.Join(s.layerDir(f.meta.Blob), tarName) }

func noTemps(t testing.TB, s *Store) {
	t.Helper()
	ents, err := os.ReadDir(s.path(tmpDir))
	must(t, err)
	if len(ents) > 0 {
		t.Errorf("left in tmp: %v", ents)
	}
}
