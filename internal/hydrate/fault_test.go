package hydrate

import (
	"bytes"
	"context"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	digest "github.com/opencontainers/go-digest"

	"github.com/thaw-project/thaw/internal/index"
	"github.com/thaw-project/thaw/internal/layerstore"
)

func TestFailureIsForgotten(t *testing.T) {
	for name, c := range map[string]struct {
		first func(body []byte) (io.Reader, error)
		want  error
	}{
		"refused": {func([]byte) (io.Reader, error) { return nil, errTest }, errTest},
		"broken": {func(b []byte) (io.Reader, error) {
			return io.MultiReader(bytes.NewReader(b[:10]), failing{}), nil
		}, errTest},
		"short": {func(b []byte) (io.Reader, error) { return bytes.NewReader(b[:len(b)-1]), nil }, io.ErrUnexpectedEOF},
		"empty": {func([]byte) (io.Reader, error) { return bytes.NewReader(nil), nil }, io.EOF},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, gzipSource(), setup{config: off, answer: func(_ context.Context, i int, _ request, body []byte) (io.Reader, error) {
				if i == 0 {
					return c.first(body)
				}
				return bytes.NewReader(body), nil
			}})
			err := w.fetch(2)
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), w.src.index.Blob.String()) {
				t.Errorf("error %v, want %v and the layer's name", err, c.want)
			}
			w.mustFetch(2)
		})
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errTest }

func TestFailingWindows(t *testing.T) {
	w := newWorld(t, gzipSource(), setup{config: off, windows: func(_ context.Context, i int, _ request, body []byte) (io.Reader, error) {
		if i == 0 {
			return nil, errTest
		}
		return bytes.NewReader(body), nil
	}})
	if err := w.fetch(2); !errors.Is(err, errTest) {
		t.Errorf("error %v", err)
	}
	w.mustFetch(2)
	w.mustFetch(9)
	if n := w.windows.count(); n != 2 {
		t.Errorf("%d requests for windows, want 2", n)
	}
}

// flip damages the compressed bytes of a span, if the request has them.
func flip(src *source, span int, r request, body []byte) {
	s := src.index.Spans[span]
	if at := s.OffsetCompressed + s.BytesCompressed/2 - r.off; at >= 0 && at < int64(len(body)) {
		body[at] ^= 0x55
	}
}

func TestFlippedByteOnce(t *testing.T) {
	src := gzipSource()
	w := newWorld(t, src, setup{config: off, answer: func(_ context.Context, i int, r request, body []byte) (io.Reader, error) {
		if i == 0 {
			flip(src, 4, r, body)
		}
		return bytes.NewReader(body), nil
	}})
	if err := w.layer.Fetch(t.Context(), 3<<20, 4<<20); err != nil {
		t.Fatal(err)
	}
	for i := 3; i < 7; i++ {
		w.check(i)
	}
}

func TestFlippedByteAlways(t *testing.T) {
	src := gzipSource()
	w := newWorld(t, src, setup{answer: func(_ context.Context, i int, r request, body []byte) (io.Reader, error) {
		flip(src, 4, r, body)
		return bytes.NewReader(body), nil
	}})
	err := w.fetch(4)
	var wrong *index.SpanError
	if !errors.As(err, &wrong) || wrong.Span != 4 || wrong.Layer != src.index.Blob.String() {
		t.Errorf("error %v", err)
	}
	if w.stored.Have(4) {
		t.Error("a wrong span is here")
	}
	for i := range src.index.Spans { // it harms no other
		if i != 4 {
			w.mustFetch(i)
		}
	}
}

func TestFlippedWindow(t *testing.T) {
	src := gzipSource()
	w := newWorld(t, src, setup{config: off, windows: func(_ context.Context, i int, r request, body []byte) (io.Reader, error) {
		s := src.index.Spans[5]
		if at := s.OffsetWindow + s.BytesWindow/2 - r.off; i == 0 && at >= 0 && at < int64(len(body)) {
			for j := range body {
				body[j] ^= 0x55
			}
		}
		return bytes.NewReader(body), nil
	}})
	w.mustFetch(5)
}

// TestBadSpanStarvesNothing: the background brings all the rest, and tells those
// who wait for the whole layer.
func TestBadSpanStarvesNothing(t *testing.T) {
	src := gzipSource()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, src, setup{answer: func(_ context.Context, i int, r request, body []byte) (io.Reader, error) {
			flip(src, 0, r, body)
			return bytes.NewReader(body), nil
		}})
		defer w.close()
		for start := time.Now(); w.layer.Err() == nil; time.Sleep(time.Second) {
			if time.Since(start) > time.Minute {
				t.Fatal("nobody is told")
			}
		}
		var wrong *index.SpanError
		if err := w.layer.Err(); !errors.As(err, &wrong) || wrong.Span != 0 {
			t.Errorf("error %v", err)
		}
		for i := 1; i < len(src.index.Spans); i++ {
			if !w.stored.Have(i) {
				t.Errorf("span %d is missing", i)
			}
		}
	})
}

func TestBackgroundRetries(t *testing.T) {
	src := gzipSource()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, src, setup{answer: func(_ context.Context, i int, _ request, body []byte) (io.Reader, error) {
			if i < 12 {
				return nil, errTest
			}
			return bytes.NewReader(body), nil
		}})
		defer w.close()
		w.complete()
		if err := w.layer.Err(); err != nil {
			t.Errorf("error %v after all is well", err)
		}
	})
}

// TestLyingIndex: every span is as the index says, and the layer is not what
// its image's config promises.
func TestLyingIndex(t *testing.T) {
	src := *gzipSource()
	lb := *src.index
	layer := *src.index.Layer
	lb.Layer = &layer
	lb.DiffID = digest.FromString("another")
	src.index = &lb
	w := newWorld(t, &src, setup{})
	w.layer.Hurry()
	<-w.layer.Done()
	var wrong *layerstore.DiffIDError
	if err := <-w.finished; !errors.As(err, &wrong) {
		t.Errorf("error %v", err)
	}
	meta := src.meta()
	if !w.store.Quarantined(meta.Blob, meta.TableDigest()) {
		t.Error("the index is not quarantined")
	}
	if err := w.fetch(1); !errors.Is(err, layerstore.ErrQuarantined) {
		t.Errorf("a read of it: error %v", err)
	}
}

// TestLyingSpan: the index has a wrong digest for a span.
func TestLyingSpan(t *testing.T) {
	src := *gzipSource()
	lb := *src.index
	lb.Layer = &index.Layer{LayerMeta: src.index.LayerMeta, Windows: src.index.Windows, Spans: append([]index.Span{}, src.index.Spans...)}
	lb.Spans[6].Digest[0] ^= 1
	src.index = &lb
	w := newWorld(t, &src, setup{config: off})
	var wrong *index.SpanError
	if err := w.fetch(6); !errors.As(err, &wrong) || wrong.Span != 6 {
		t.Errorf("error %v", err)
	}
}

// TestSuspectSpans: after a boot what is on disk is verified, not fetched.
func TestSuspectSpans(t *testing.T) {
	const boot1, boot2 = "11111111-2222-4333-8444-555555555555", "aaaaaaaa-2222-4333-8444-555555555555"
	dir := t.TempDir()
	w := newWorld(t, gzipSource(), setup{dir: dir, bootID: boot1, config: off})
	for i := range w.src.index.Spans[:10] {
		w.mustFetch(i)
	}
	path := w.stored.Path()
	w.close()
	corruptFile(t, path, 4*index.SpanBytes+99)
	w = newWorld(t, gzipSource(), setup{dir: dir, bootID: boot2, config: off})
	if w.layer.Have(0, 1) {
		t.Error("believed before it was verified")
	}
	if err := w.layer.Fetch(t.Context(), 0, 7<<20); err != nil {
		t.Fatal(err)
	}
	for i := range 7 {
		w.check(i)
	}
	s := w.src.index.Spans[4]
	if d := cmp.Diff([]request{{s.OffsetCompressed, s.BytesCompressed}}, w.data.requests, cmp.AllowUnexported(request{})); d != "" {
		t.Errorf("requests: %s", d)
	}
}

// TestDiskSpoilsSpans: what the disk lost before the proof is fetched again.
func TestDiskSpoilsSpans(t *testing.T) {
	w := newWorld(t, gzipSource(), setup{config: off})
	for i := range w.src.index.Spans {
		w.mustFetch(i)
	}
	corruptFile(t, w.stored.Path(), 5*index.SpanBytes+1)
	w.layer.Hurry()
	for !w.stored.Complete() {
		for i := range w.src.index.Spans {
			if err := w.fetch(i); err != nil {
				t.Fatal(err)
			}
		}
		w.layer.Hurry()
		w.layer.checkFinished()
		runtime.Gosched()
	}
	w.complete()
}
