package hydrate

import (
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"regexp"
	"strconv"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/thaw-project/thaw/internal/index"
	"github.com/thaw-project/thaw/internal/layertar/layertartest"
)

var peakRegexp = regexp.MustCompile(`VmHWM:\s*(\d+) kB`)

// residentPeakMiB forgets the highest memory use so far, runs f, and returns the one since.
func residentPeakMiB(t *testing.T, f func()) int64 {
	t.Helper()
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		t.Skipf("reset the peak of the memory: %v", err)
	}
	read := func() int64 {
		b, err := os.ReadFile("/proc/self/status")
		if err != nil {
			t.Fatal(err)
		}
		m := peakRegexp.FindSubmatch(b)
		if m == nil {
			t.Fatal("no peak")
		}
		n, _ := strconv.ParseInt(string(m[1]), 10, 64)
		return n >> 10
	}
	before := read()
	f()
	return read() - before
}

// TestBombs: a span whose compressed bytes unpack to 128 MiB, in one member, in
// many, or in a zstd frame, costs no more than any other and is refused; so is one
// that claims all of a huge blob.
func TestBombs(t *testing.T) {
	tar := new(layertartest.Builder).File("f", make([]byte, 3<<20)).End().Bytes()
	good := newSource(tar, layertartest.Gzip(tar, 1))
	bomb := func(more func(w io.Writer)) []byte {
		var b bytes.Buffer
		more(&b)
		return b.Bytes()
	}
	megabytes := func(w io.Writer) {
		zeros := bytes.Repeat([]byte{1}, 1<<20)
		for range 128 {
			w.Write(zeros)
		}
	}
	for name, blob := range map[string][]byte{
		"gzip": bomb(func(w io.Writer) { z := gzip.NewWriter(w); megabytes(z); z.Close() }),
		"members": bytes.Repeat(bomb(func(w io.Writer) {
			z := gzip.NewWriter(w)
			z.Write(bytes.Repeat([]byte{1}, 1<<20))
			z.Close()
		}), 128),
		"zstd": bomb(func(w io.Writer) { z, _ := zstd.NewWriter(w); megabytes(z); z.Close() }),
	} {
		for _, claim := range []string{"some", "all"} {
			t.Run(name+", "+claim, func(t *testing.T) {
				src := &source{tar: tar, blob: blob, index: &index.LayerBlob{Layer: new(index.Layer)}}
				*src.index.Layer = *good.index.Layer
				src.index.Spans = append([]index.Span(nil), good.index.Spans...)
				src.index.BlobBytes = int64(len(blob))
				for i := range src.index.Spans {
					s := &src.index.Spans[i]
					s.OffsetCompressed, s.BytesWindow, s.Kind, s.Skip = 0, 0, 1, int64(i)*index.SpanBytes
					s.BytesCompressed = int64(len(blob))
					if claim == "some" {
						s.BytesCompressed = min(s.BytesCompressed, 64<<10)
					}
				}
				w := newWorld(t, src, setup{config: off, opts: Options{MemoryBytes: 8 << 20}})
				peak := residentPeakMiB(t, func() {
					for i := range src.index.Spans {
						if err := w.fetch(i); err == nil {
							t.Errorf("span %d of a bomb is good", i)
						}
					}
				})
				t.Logf("%d KiB of bomb: %d MiB more", len(blob)>>10, peak)
				if peak > 96 {
					t.Errorf("%d MiB more at the peak", peak)
				}
				if w.stored.HaveBytes() > 0 {
					t.Error("something of it is believed")
				}
			})
		}
	}
}
