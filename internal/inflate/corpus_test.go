package inflate

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	kgzip "github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/thaw-project/thaw/internal/testenv"
)

type corpusLayer struct {
	path      string
	sizeBytes int64
	diffID    string
}

// corpusLayers returns the layers of the corpus, small ones first, each once.
func corpusLayers(t testing.TB) []corpusLayer {
	t.Helper()
	dir := filepath.Join(testenv.Corpus(t), "oci")
	blob := func(digest string) string { return filepath.Join(dir, "blobs", "sha256", digest[len("sha256:"):]) }
	load := func(path string, v any) {
		t.Helper()
		b, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(b, v)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var index struct{ Manifests []struct{ Digest string } }
	load(filepath.Join(dir, "index.json"), &index)
	seen := map[string]corpusLayer{}
	for _, m := range index.Manifests {
		var manifest struct {
			Config struct{ Digest string }
			Layers []struct {
				Digest string
				Size   int64
			}
		}
		var config struct {
			RootFS struct {
				DiffIDs []string `json:"diff_ids"`
			}
		}
		load(blob(m.Digest), &manifest)
		load(blob(manifest.Config.Digest), &config)
		for i, l := range manifest.Layers {
			seen[l.Digest] = corpusLayer{blob(l.Digest), l.Size, config.RootFS.DiffIDs[i]}
		}
	}
	var layers []corpusLayer
	for _, l := range seen {
		layers = append(layers, l)
	}
	slices.SortFunc(layers, func(a, b corpusLayer) int { return cmp.Compare(a.sizeBytes, b.sizeBytes) })
	return layers
}

// TestCorpus checks whole layers against the diffIDs in their image's config.
func TestCorpus(t *testing.T) {
	for _, l := range corpusLayers(t) {
		t.Run(filepath.Base(l.path)[:12], func(t *testing.T) {
			if testing.Short() && l.sizeBytes > 64<<20 {
				t.Skip("a large layer")
			}
			f, err := os.Open(l.path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			h := sha256.New()
			res, err := Scan(t.Context(), f, ScanOptions{Format: Gzip, Prove: true}, func(s *Span) error {
				h.Write(s.Data)
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if got := "sha256:" + hex.EncodeToString(h.Sum(nil)); got != l.diffID {
				t.Errorf("output has digest %s, want %s", got, l.diffID)
			}
			if res.BytesCompressed != l.sizeBytes {
				t.Errorf("%d compressed bytes, want %d", res.BytesCompressed, l.sizeBytes)
			}
		})
	}
}

// benchLayer returns a layer of moderate size.
func benchLayer(b *testing.B) []byte {
	b.Helper()
	layers := corpusLayers(b)
	i := max(0, slices.IndexFunc(layers, func(l corpusLayer) bool { return l.sizeBytes > 20<<20 }))
	data, err := os.ReadFile(layers[i].path)
	if err != nil {
		b.Fatal(err)
	}
	return data
}

func BenchmarkScan(b *testing.B) {
	blob := benchLayer(b)
	for _, prove := range []bool{false, true} {
		b.Run(fmt.Sprintf("prove=%v", prove), func(b *testing.B) {
			for b.Loop() {
				res, err := Scan(b.Context(), bytes.NewReader(blob), ScanOptions{Format: Gzip, Prove: prove},
					func(*Span) error { return nil })
				if err != nil {
					b.Fatal(err)
				}
				b.SetBytes(res.BytesUncompressed)
			}
		})
	}
	b.Run("stdlib", func(b *testing.B) {
		for b.Loop() {
			r, err := gzip.NewReader(bytes.NewReader(blob))
			if err != nil {
				b.Fatal(err)
			}
			benchCopy(b, r)
		}
	})
	b.Run("klauspost", func(b *testing.B) {
		for b.Loop() {
			r, err := kgzip.NewReader(bytes.NewReader(blob))
			if err != nil {
				b.Fatal(err)
			}
			benchCopy(b, r)
		}
	})
}

func benchCopy(b *testing.B, r io.Reader) {
	b.Helper()
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{r}, make([]byte, 1<<20))
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(n)
}

// BenchmarkDecode decodes every span of a layer from its access point.
func BenchmarkDecode(b *testing.B) {
	blob := benchLayer(b)
	spans := collect(b, blob, ScanOptions{Format: Gzip})
	dst := make([]byte, DefaultSpanBytes)
	var dec Decoder
	b.ReportAllocs()
	for b.Loop() {
		n := int64(0)
		for _, s := range spans {
			m, err := dec.Decode(dst[:len(s.Data)], s.Point, blob[s.Point.OffsetCompressed:s.EndCompressed])
			if err != nil {
				b.Fatal(err)
			}
			n += int64(m)
		}
		b.SetBytes(n)
	}
}

// BenchmarkPoints reports what access points cost: state and window of every
// span, each compressed alone as an index stores them, in percent of the layer.
func BenchmarkPoints(b *testing.B) {
	blob := benchLayer(b)
	for _, spanBytes := range []int64{1 << 20, 2 << 20, 4 << 20} {
		b.Run(fmt.Sprintf("span=%dMiB", spanBytes>>20), func(b *testing.B) {
			spans := collect(b, blob, ScanOptions{Format: Gzip, SpanBytes: spanBytes})
			enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBetterCompression), zstd.WithEncoderCRC(false))
			if err != nil {
				b.Fatal(err)
			}
			var state, window, compressed int
			for b.Loop() {
				state, window, compressed = 0, 0, 0
				for _, s := range spans {
					state += len(s.Point.State)
					window += len(s.Point.Window)
					compressed += len(enc.EncodeAll(slices.Concat(s.Point.State, s.Point.Window), nil))
				}
			}
			percent := func(n int) float64 { return float64(n) * 100 / float64(len(blob)) }
			b.ReportMetric(percent(state), "state-%")
			b.ReportMetric(percent(window), "window-%")
			b.ReportMetric(percent(compressed), "zstd-%")
		})
	}
}
