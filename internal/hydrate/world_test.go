package hydrate

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"

	"github.com/thaw-project/thaw/internal/index"
	"github.com/thaw-project/thaw/internal/layerstore"
	"github.com/thaw-project/thaw/internal/layertar/layertartest"
	"github.com/thaw-project/thaw/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// source is a layer and its index.
type source struct {
	tar, blob []byte
	index     *index.LayerBlob
}

// bigTar is a layer of 13 spans.
func bigTar() []byte {
	b := new(layertartest.Builder)
	for i := range 3 {
		b.File(string(rune('a'+i)), layertartest.Fill(i, 4<<20))
	}
	return b.End().Bytes()
}

var gzipSource = sync.OnceValue(func() *source { t := bigTar(); return newSource(t, layertartest.Gzip(t, 1)) })

func zstdFrame(tar []byte) []byte {
	w, err := zstd.NewWriter(nil)
	if err != nil {
		panic(err)
	}
	defer w.Close()
	return w.EncodeAll(tar, nil)
}

func newSource(tar, blob []byte) *source {
	l, err := index.BuildLayer(context.Background(), bytes.NewReader(blob), index.BuildInput{
		Blob: digest.FromBytes(blob), BlobBytes: int64(len(blob)), DiffID: digest.FromBytes(tar)})
	if err != nil {
		panic(err)
	}
	lb, err := index.EncodeLayer(l)
	if err != nil {
		panic(err)
	}
	for i, s := range lb.Spans { // also makes the decoder outside of any bubble
		if _, err := s.Point(i, lb.Windows[s.OffsetWindow:][:s.BytesWindow]); err != nil {
			panic(err)
		}
	}
	return &source{tar, blob, lb}
}

func (s *source) meta() layerstore.Meta {
	m := layerstore.Meta{Blob: s.index.Blob, BlobBytes: s.index.BlobBytes, DiffID: s.index.DiffID, TarBytes: s.index.TarBytes, SpanBytes: index.SpanBytes}
	for _, span := range s.index.Spans {
		m.SpanDigests = append(m.SpanDigests, span.Digest)
	}
	return m
}

type request struct{ off, n int64 }

// scripted is a Blob that does what a test wants and remembers what was asked.
type scripted struct {
	b []byte
	// answer may replace the body of request i, or fail it.
	answer func(ctx context.Context, i int, r request, body []byte) (io.Reader, error)

	mu          sync.Mutex
	requests    []request
	inFlight    int64
	maxInFlight int64
}

func (s *scripted) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	s.mu.Lock()
	i := len(s.requests)
	r := request{off, n}
	s.requests = append(s.requests, r)
	s.inFlight += n
	s.maxInFlight = max(s.maxInFlight, s.inFlight)
	s.mu.Unlock()
	done := func() {
		s.mu.Lock()
		s.inFlight -= n
		s.mu.Unlock()
	}
	body := bytes.Clone(s.b[off : off+n])
	if s.answer == nil {
		return &closer{bytes.NewReader(body), done}, nil
	}
	rd, err := s.answer(ctx, i, r, body)
	if err != nil {
		done()
		return nil, err
	}
	return &closer{rd, done}, nil
}

func (s *scripted) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.requests)
}

// line is a network: 20 ms to the first byte, 60 MB/s a connection, 250 MB/s in all.
type line struct {
	mu   sync.Mutex
	free time.Time
}

func (l *line) answer(_ context.Context, _ int, _ request, body []byte) (io.Reader, error) {
	time.Sleep(20 * time.Millisecond)
	return &lineBody{line: l, b: body}, nil
}

type lineBody struct {
	line *line
	b    []byte
}

func (r *lineBody) Read(b []byte) (int, error) {
	if len(r.b) == 0 {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), 64<<10)], r.b)
	r.b = r.b[n:]
	bits := func(rate float64) time.Duration { return time.Duration(float64(n) / rate * 1e9) }
	r.line.mu.Lock()
	now := time.Now()
	r.line.free = later(r.line.free, now).Add(bits(250e6))
	until := later(r.line.free, now.Add(bits(60e6)))
	r.line.mu.Unlock()
	time.Sleep(time.Until(until))
	return n, nil
}

type closer struct {
	io.Reader
	done func()
}

func (c *closer) Close() error { c.done(); return nil }

// gated blocks until the gate is open or the context ends.
func gated(ctx context.Context, gate <-chan struct{}, body []byte) (io.Reader, error) {
	select {
	case <-gate:
		return bytes.NewReader(body), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// world is a scheduler with one layer.
type world struct {
	t        *testing.T
	src      *source
	store    *layerstore.Store
	stored   *layerstore.Layer
	sched    *Scheduler
	layer    *Layer
	data     *scripted
	windows  *scripted
	finished chan error
}

type setup struct {
	opts    Options
	config  func(c *Config)
	dir     string
	bootID  string
	answer  func(ctx context.Context, i int, r request, body []byte) (io.Reader, error)
	windows func(ctx context.Context, i int, r request, body []byte) (io.Reader, error)
	sched   *Scheduler // of another world
	held    bool       // the background is held back when the layer is added
}

func newWorld(t *testing.T, src *source, o setup) *world {
	t.Helper()
	if o.dir == "" {
		o.dir = t.TempDir()
	}
	store, err := layerstore.Open(o.dir, layerstore.Options{BootID: o.bootID})
	if err != nil {
		t.Fatal(err)
	}
	stored, err := store.Acquire(t.Context(), src.meta(), nil)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, src: src, store: store, stored: stored, finished: make(chan error, 10)}
	w.data = &scripted{b: src.blob, answer: o.answer}
	w.windows = &scripted{b: src.index.Windows, answer: o.windows}
	c := Config{Store: stored, Format: src.index.Format, Spans: src.index.Spans, Data: w.data, Windows: w.windows,
		BytesWindows: int64(len(src.index.Windows)), Finished: func(err error) { w.finished <- err },
		Stream: func(context.Context) io.ReadCloser { return io.NopCloser(bytes.NewReader(src.blob)) }}
	if o.config != nil {
		o.config(&c)
	}
	if w.sched = o.sched; w.sched == nil {
		w.sched = New(o.opts)
	}
	if o.held {
		w.sched.AwaitFeed()
	}
	w.layer = w.sched.Add(c)
	t.Cleanup(w.close)
	return w
}

func (w *world) close() {
	if w.sched == nil {
		return
	}
	w.layer.Close()
	w.sched.Close()
	if err := w.stored.Release(); err != nil {
		w.t.Error(err)
	}
	if err := w.store.Close(); err != nil {
		w.t.Error(err)
	}
	w.sched = nil
	if n := len(w.finished); n > 1 {
		w.t.Errorf("finished %d times", n)
	}
}

func off(c *Config) { c.RateBytes = -1 }

// fetch has span i fetched.
func (w *world) fetch(i int) error {
	return w.layer.Fetch(w.t.Context(), int64(i)*index.SpanBytes+7, 10)
}

// mustFetch also compares the bytes.
func (w *world) mustFetch(i int) {
	w.t.Helper()
	if err := w.fetch(i); err != nil {
		w.t.Fatal(err)
	}
	w.check(i)
}

func (w *world) check(i int) {
	w.t.Helper()
	want := w.src.tar[i*index.SpanBytes : min(len(w.src.tar), (i+1)*index.SpanBytes)]
	got := make([]byte, len(want))
	if _, err := w.stored.File().ReadAt(got, int64(i)*index.SpanBytes); err != nil || !bytes.Equal(got, want) {
		w.t.Errorf("span %d is wrong (%v)", i, err)
	}
}

// complete waits until the layer is proven.
func (w *world) complete() {
	w.t.Helper()
	w.layer.Hurry()
	<-w.layer.Done()
	if err := <-w.finished; err != nil {
		w.t.Fatal(err)
	}
	if !w.stored.Complete() {
		w.t.Error("layer is finished and not complete")
	}
	for i := range w.src.index.Spans {
		w.check(i)
	}
}

var errTest = errors.New("test")

// corruptFile changes one byte of a file.
func corruptFile(t *testing.T, path string, off int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}
