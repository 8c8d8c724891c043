package index

import (
	"bytes"
	"encoding/binary"
	"errors"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	digest "github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/thaw-project/thaw/internal/inflate"
	"github.com/thaw-project/thaw/internal/layertar"
	"github.com/thaw-project/thaw/internal/layertar/layertartest"
)

// small returns a small layer blob and the head of an image of it.
func small(t testing.TB) (layer, head []byte) {
	t.Helper()
	tar := new(layertartest.Builder).Dir("dir").File("dir/a", layertartest.Fill(1, 2000)).Hardlink("dir/b", "dir/a").End().Bytes()
	blob := layertartest.Gzip(tar, 1)
	l, err := BuildLayer(t.Context(), bytes.NewReader(blob), inputFor(blob, tar))
	if err != nil {
		t.Fatal(err)
	}
	lb, err := EncodeLayer(l)
	if err != nil {
		t.Fatal(err)
	}
	im, err := Assemble([]*LayerBlob{lb})
	if err != nil {
		t.Fatal(err)
	}
	if head, err = im.Encode(); err != nil {
		t.Fatal(err)
	}
	return lb.Bytes, head
}

func isCorrupt(err error) bool {
	var c *CorruptError
	return errors.As(err, &c)
}

func TestHostileContainer(t *testing.T) {
	layer, _ := small(t)
	le := binary.LittleEndian
	spans, meta := sectionAt(t, layer, sectionSpans), sectionAt(t, layer, sectionMeta)
	for name, edit := range map[string]func(b []byte) []byte{
		"empty":              func(b []byte) []byte { return nil },
		"magic":              func(b []byte) []byte { b[0] ^= 1; return b },
		"version":            func(b []byte) []byte { b[8] = 2; return b },
		"kind":               func(b []byte) []byte { b[10] = kindImage; return b },
		"sections":           func(b []byte) []byte { le.PutUint32(b[12:], 1<<31); return b },
		"no sections":        func(b []byte) []byte { le.PutUint32(b[12:], 0); return b[:16] },
		"overlap":            func(b []byte) []byte { le.PutUint64(b[spans+8:], le.Uint64(b[meta+8:])); return b },
		"gap":                func(b []byte) []byte { le.PutUint64(b[spans+8:], le.Uint64(b[spans+8:])+1); return b },
		"offset overflow":    func(b []byte) []byte { le.PutUint64(b[spans+8:], 1<<64-1); return b },
		"size overflow":      func(b []byte) []byte { le.PutUint64(b[spans+16:], 1<<64-8); return b },
		"raw size huge":      func(b []byte) []byte { le.PutUint64(b[spans+24:], 1<<62); return b },
		"raw size large":     func(b []byte) []byte { le.PutUint64(b[spans+24:], maxSectionRaw); return b },
		"raw size small":     func(b []byte) []byte { le.PutUint64(b[spans+24:], 1); return b },
		"raw differs":        func(b []byte) []byte { le.PutUint64(b[meta+24:], 1); return b },
		"twice":              func(b []byte) []byte { le.PutUint32(b[spans:], sectionMeta); return b },
		"unknown encoding":   func(b []byte) []byte { le.PutUint32(b[spans+4:], 7); return b },
		"windows compressed": func(b []byte) []byte { le.PutUint32(b[sectionAt(t, b, sectionWindows)+4:], encodingZstd); return b },
		"cut":                func(b []byte) []byte { return b[:len(b)-1] },
		"longer":             func(b []byte) []byte { return append(b, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := DecodeLayer(edit(bytes.Clone(layer))); !isCorrupt(err) {
				t.Errorf("error %v", err)
			}
		})
	}
}

// TestHostileMeta changes what the layer says of itself.
func TestHostileMeta(t *testing.T) {
	layer, head := small(t)
	l, err := DecodeLayer(layer)
	if err != nil {
		t.Fatal(err)
	}
	im, err := DecodeImage(head)
	if err != nil {
		t.Fatal(err)
	}
	for name, edit := range map[string]func(m *LayerMeta){
		"2^60 bytes":      func(m *LayerMeta) { m.TarBytes = 1 << 60 },
		"2 TiB":           func(m *LayerMeta) { m.TarBytes = maxTarBytes },
		"negative":        func(m *LayerMeta) { m.TarBytes = -1 },
		"blob negative":   func(m *LayerMeta) { m.BlobBytes = -1 },
		"blob too small":  func(m *LayerMeta) { m.BlobBytes = 3 },
		"span size":       func(m *LayerMeta) { m.SpanBytes = 1 },
		"digest":          func(m *LayerMeta) { m.Blob = "sha256:../../x" },
		"diffID":          func(m *LayerMeta) { m.DiffID = "md5:00" },
		"format":          func(m *LayerMeta) { m.Format = 9 },
		"fewer tar bytes": func(m *LayerMeta) { m.TarBytes = 0 },
	} {
		t.Run(name, func(t *testing.T) {
			bad := *l
			edit(&bad.LayerMeta)
			b, _, err := bad.Encode()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := DecodeLayer(b); !isCorrupt(err) {
				t.Errorf("layer: error %v", err)
			}
			badHead := *im
			badHead.Layers = []ImageLayer{im.Layers[0]}
			edit(&badHead.Layers[0].LayerMeta)
			if b, err = badHead.Encode(); err != nil {
				t.Fatal(err)
			}
			if _, err := DecodeImage(b); !isCorrupt(err) {
				t.Errorf("head: error %v", err)
			}
		})
	}
}

func TestHostileSpans(t *testing.T) {
	good := Span{OffsetCompressed: 10, BytesCompressed: 20, Kind: inflate.KindBlock, OffsetWindow: 5, BytesWindow: 6}
	if got, err := decodeSpans(encodeSpans(nil, []Span{good}), 1, 30, 11); err != nil || got[0] != good {
		t.Fatalf("%v, %v", got, err)
	}
	for name, edit := range map[string]func(s *Span){
		"offset 2^60":   func(s *Span) { s.OffsetCompressed = 1 << 60 },
		"length 2^60":   func(s *Span) { s.BytesCompressed = 1 << 60 },
		"both overflow": func(s *Span) { s.OffsetCompressed, s.BytesCompressed = 1<<62, 1<<62 },
		"negative":      func(s *Span) { s.OffsetCompressed = -1 },
		"no length":     func(s *Span) { s.BytesCompressed = -20 },
		"past the end":  func(s *Span) { s.BytesCompressed = 21 },
		"skip":          func(s *Span) { s.Skip = 1 },
		"skip negative": func(s *Span) { s.Skip = -1 },
		"window":        func(s *Span) { s.BytesWindow = 7 },
		"window offset": func(s *Span) { s.OffsetWindow = 1 << 62 },
		"window before": func(s *Span) { s.OffsetWindow = -1 },
		"window huge":   func(s *Span) { s.OffsetWindow, s.BytesWindow = 0, 1<<32-1 },
		"unknown kind":  func(s *Span) { s.Kind = 9 },
	} {
		t.Run(name, func(t *testing.T) {
			s := good
			edit(&s)
			if _, err := decodeSpans(encodeSpans(nil, []Span{s}), 1, 30, 11); !isCorrupt(err) {
				t.Errorf("error %v", err)
			}
		})
	}
}

// TestHostileMemory: what a blob makes its reader hold is bounded by the blob.
func TestHostileMemory(t *testing.T) {
	var entries []layertar.Entry
	long := strings.Repeat(strings.Repeat("n", 255)+"/", 15)
	for range 400_000 { // 1.6 GB of paths in 6 MB
		entries = append(entries, layertar.Entry{Path: long + "x", Type: layertar.TypeReg})
	}
	raw := encodeEntries(entries)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := decodeEntries(raw, int64(len(entries)), 1<<40); !isCorrupt(err) {
		t.Errorf("error %v", err)
	}
	if _, err := unpack(make([]byte, 100), maxSectionRaw); err == nil {
		t.Error("100 bytes may claim a gigabyte")
	}
	zeros := packed(sectionErofs, make([]byte, 64<<20))
	if b, err := zeros.raw(); err != nil || len(b) != 64<<20 {
		t.Errorf("our own section of zeros cannot be read: %v", err)
	}
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > 1500<<20 {
		t.Errorf("%d bytes allocated", used)
	}
}

// TestHeadByteFlips: a damaged head is an error or means the same.
func TestHeadByteFlips(t *testing.T) {
	_, head := small(t)
	want, err := DecodeImage(head)
	if err != nil {
		t.Fatal(err)
	}
	metadata, err := want.Erofs()
	if err != nil {
		t.Fatal(err)
	}
	same := 0
	for i := range head {
		for _, bit := range []byte{1, 0x80} {
			b := bytes.Clone(head)
			b[i] ^= bit
			got, err := DecodeImage(b)
			if err != nil {
				continue
			}
			// The head as a whole has a digest; without it, only the EROFS image is
			// sure to be what it was.
			if e, err := got.Erofs(); err == nil && got.ErofsDigest == want.ErofsDigest && !bytes.Equal(e, metadata) {
				t.Errorf("byte %d: another EROFS image under the same digest", i)
			}
			same++
		}
	}
	t.Logf("%d of %d flips decode", same, 2*len(head))
}

func TestLayerByteFlips(t *testing.T) {
	layer, _ := small(t)
	for i := range layer {
		b := bytes.Clone(layer)
		b[i] ^= 0x10
		_, _ = DecodeLayer(b) // must return
	}
}

func TestParseManifest(t *testing.T) {
	layer, head := small(t)
	lb, err := OpenLayer(layer)
	if err != nil {
		t.Fatal(err)
	}
	im, err := DecodeImage(head)
	if err != nil {
		t.Fatal(err)
	}
	subject := v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: digest.FromString("image"), Size: 5}
	a, err := NewArtifact(subject, im, []*LayerBlob{lb, lb})
	if err != nil {
		t.Fatal(err)
	}
	if len(a.Layers) != 1 {
		t.Errorf("%d blobs, want each once", len(a.Layers))
	}
	parsed, err := ParseManifest(a.Manifest, subject.Digest)
	if err != nil {
		t.Fatal(err)
	}
	layers := parsed.Layers
	if d := cmp.Diff(a.HeadDescriptor(), parsed.Head); d != "" {
		t.Error(d)
	}
	if len(layers) != 2 || layers[0].Digest != lb.Digest || layers[1].Size != int64(len(layer)) {
		t.Errorf("layers %v", layers)
	}
	replace := func(from, to string) []byte { return bytes.ReplaceAll(a.Manifest, []byte(from), []byte(to)) }
	for name, b := range map[string][]byte{
		"no JSON":       []byte("{"),
		"other type":    replace(ArtifactType, "application/x"),
		"other image":   replace(subject.Digest.String(), digest.FromString("other").String()),
		"no head":       replace(MediaTypeHead, MediaTypeLayer),
		"bad digest":    replace(lb.Digest.String(), "sha256:xyz"),
		"negative size": replace(`"size":`, `"size":-`),
	} {
		if _, err := ParseManifest(b, subject.Digest); !isCorrupt(err) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

func FuzzDecodeLayer(f *testing.F) {
	layer, _ := small(f)
	f.Add(layer)
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := DecodeLayer(b)
		if err != nil {
			return
		}
		once, _, err := l.Encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := DecodeLayer(once)
		if err != nil {
			t.Fatalf("what was decoded and encoded cannot be decoded: %v", err)
		}
		twice, _, err := again.Encode()
		if err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("a second round changes the bytes (%v)", err)
		}
	})
}

func FuzzDecodeImage(f *testing.F) {
	_, head := small(f)
	f.Add(head)
	f.Fuzz(func(t *testing.T, b []byte) {
		im, err := DecodeImage(b)
		if err != nil {
			return
		}
		_, _ = im.Erofs()
		once, err := im.Encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := DecodeImage(once)
		if err != nil {
			t.Fatalf("what was decoded and encoded cannot be decoded: %v", err)
		}
		twice, err := again.Encode()
		if err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("a second round changes the bytes (%v)", err)
		}
	})
}

// FuzzDecodeEntries skips the compression around the entries, which hides them
// from the fuzzer, and merges what comes out.
func FuzzDecodeEntries(f *testing.F) {
	for _, tar := range append(layertartest.ThroughSymlinks(), testTar()) {
		entries, err := layertar.ReadAll(bytes.NewReader(tar), layertar.DefaultLimits())
		if err != nil {
			f.Fatal(err)
		}
		f.Add(encodeEntries(entries), uint16(len(entries)))
	}
	f.Fuzz(func(t *testing.T, b []byte, n uint16) {
		entries, err := decodeEntries(b, int64(n), 1<<30)
		if err != nil {
			return
		}
		if again, err := decodeEntries(encodeEntries(entries), int64(n), 1<<30); err != nil || !cmp.Equal(entries, again) {
			t.Fatalf("entries change in a round trip (%v):\n%s", err, cmp.Diff(entries, again))
		}
		layers := []ImageLayer{{LayerMeta: LayerMeta{TarBytes: 1 << 30, DiffID: digest.FromString("x")}}}
		_, _ = Metadata(layers, [][]layertar.Entry{entries})
	})
}

func FuzzPoint(f *testing.F) {
	f.Add([]byte{}, int64(0))
	f.Add(encodeWindow(inflate.Point{State: []byte("state"), Window: []byte("window")}), int64(100))
	f.Fuzz(func(t *testing.T, record []byte, skip int64) {
		s := Span{Kind: inflate.KindBlock, BytesWindow: int64(len(record)), Skip: skip}
		p, err := s.Point(1, record)
		if err != nil {
			return
		}
		if len(p.Window) > 32<<10 || len(p.State)+len(p.Window) > maxWindowRaw {
			t.Fatalf("state %d, window %d bytes", len(p.State), len(p.Window))
		}
		var d inflate.Decoder
		_, _ = d.Decode(make([]byte, 100), p, []byte("some compressed bytes"))
	})
}

func FuzzParseManifest(f *testing.F) {
	layer, head := small(f)
	lb, err := OpenLayer(layer)
	if err != nil {
		f.Fatal(err)
	}
	im, err := DecodeImage(head)
	if err != nil {
		f.Fatal(err)
	}
	subject := v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: digest.FromString("image"), Size: 5}
	a, err := NewArtifact(subject, im, []*LayerBlob{lb})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(a.Manifest)
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := ParseManifest(b, subject.Digest)
		if err != nil {
			return
		}
		if d := m.Bundle; d != nil && (d.HeaderBytes > d.Bytes || d.HeaderDigest.Validate() != nil) {
			t.Fatalf("accepted bundle %v", d)
		}
		for _, d := range append(m.Layers, m.Head) {
			if d.Size < 0 || d.Digest.Validate() != nil {
				t.Fatalf("accepted %v", d)
			}
		}
	})
}

func TestFrames(t *testing.T) {
	raw := make([]byte, 3*frameRaw+12345)
	for i := range raw {
		raw[i] = byte(i >> 8 * i)
	}
	s := packed(sectionErofs, raw)
	if s.encoding != encodingFrames {
		t.Fatalf("encoding %d, want frames", s.encoding)
	}
	got, err := s.raw()
	if err != nil || !bytes.Equal(got, raw) {
		t.Fatalf("got %d bytes, %v", len(got), err)
	}
	for name, damage := range map[string]func(section) section{
		"cut":             func(s section) section { s.stored = s.stored[:len(s.stored)-1]; return s },
		"longer":          func(s section) section { s.stored = append(bytes.Clone(s.stored), 0); return s },
		"no sizes":        func(s section) section { s.stored = s.stored[:7]; return s },
		"frame too large": func(s section) section { s.stored = bytes.Clone(s.stored); s.stored[3] = 0xff; return s },
		"claims more":     func(s section) section { s.rawBytes += frameRaw; return s },
		"claims less":     func(s section) section { s.rawBytes--; return s },
		"claims 2^60":     func(s section) section { s.rawBytes = 1 << 60; return s },
		"frames swapped": func(s section) section {
			s.stored = bytes.Clone(s.stored)
			copy(s.stored[8:12], s.stored[12:16])
			return s
		},
	} {
		if _, err := damage(s).raw(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
