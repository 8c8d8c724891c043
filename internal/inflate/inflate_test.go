package inflate

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
)

// collect scans a blob and keeps the spans.
func collect(t testing.TB, blob []byte, opts ScanOptions) []Span {
	t.Helper()
	spans, _, err := scanAll(t, bytes.NewReader(blob), opts)
	if err != nil {
		t.Fatal(err)
	}
	return spans
}

func scanAll(t testing.TB, r io.Reader, opts ScanOptions) ([]Span, Result, error) {
	t.Helper()
	var spans []Span
	res, err := Scan(t.Context(), r, opts, func(s *Span) error {
		c := *s
		c.Data = bytes.Clone(s.Data)
		c.Point.State = slices.Clone(s.Point.State)
		c.Point.Window = slices.Clone(s.Point.Window)
		spans = append(spans, c)
		return nil
	})
	return spans, res, err
}

func join(spans []Span) []byte {
	var b []byte
	for _, s := range spans {
		b = append(b, s.Data...)
	}
	return b
}

type gzipCase struct {
	name string
	blob []byte
}

// gzipCases are blobs of all the shapes DEFLATE and gzip streams have.
func gzipCases(t testing.TB) []gzipCase {
	t.Helper()
	var cases []gzipCase
	add := func(name string, blobs ...[]byte) {
		cases = append(cases, gzipCase{name, slices.Concat(blobs...)})
	}
	data := sample(700_000)
	for level := gzip.HuffmanOnly; level <= gzip.BestCompression; level++ {
		add(fmt.Sprintf("level %d", level), gzipped(t, data, level))
	}
	add("empty", gzipped(t, nil, 6))
	add("one byte", gzipped(t, []byte{7}, 6))
	add("one span exactly", gzipped(t, data[:MinSpanBytes], 6))
	add("three spans exactly", gzipped(t, data[:3*MinSpanBytes], 6))
	add("zeros", gzipped(t, make([]byte, 500_000), 9))
	add("noise", gzipped(t, noise(300_000), 6))
	add("noise stored", gzipped(t, noise(300_000), 0))

	var members [][]byte
	rng := rand.New(rand.NewPCG(3, 3))
	for i := range 200 {
		n := rng.IntN(5000)
		members = append(members, gzipped(t, data[i*3000:][:n], i%11-1))
	}
	add("members", members...)
	add("members of a span each", gzipped(t, data[:MinSpanBytes], 6), gzipped(t, data[MinSpanBytes:2*MinSpanBytes], 6),
		gzipped(t, data[2*MinSpanBytes:3*MinSpanBytes], 6))
	add("empty members between", gzipped(t, nil, 6), gzipped(t, data[:40_000], 6), gzipped(t, nil, 6), gzipped(t, nil, 0),
		gzipped(t, data[:40_000], 6), gzipped(t, nil, 6))
	add("padding", gzipped(t, data, 6), make([]byte, 600_000))

	header := []byte{gzipID1, gzipID2, gzipDeflate, gzipExtra | gzipName | gzipComment, 1, 2, 3, 4, 0, 3, 5, 0, 1, 2, 3, 4, 5}
	header = append(header, "name\x00a comment\x00"...)
	add("header fields", header, gzipped(t, data, 6)[gzipHeaderBytes:])

	e := newEncoder(1)
	e.dynamicBlock(200_000, true)
	add("one dynamic block", e.member())
	e = newEncoder(2)
	e.fixedBlock(100_000, true)
	add("one fixed block", e.member())
	e = newEncoder(3)
	e.storedBlock(data[:MinSpanBytes], true)
	one := e.member()
	add("stored, points before trailers", one, one, one)
	e = newEncoder(4)
	for i := range 300 {
		switch n := e.rng.IntN(3000); e.rng.IntN(4) {
		case 0:
			e.storedBlock(data[:n*5], false)
		case 1:
			e.fixedBlock(n, false)
		default:
			e.dynamicBlock(n, false)
		}
		if i%10 == 0 {
			e.storedBlock(nil, false)
			e.fixedBlock(0, false)
			e.dynamicBlock(0, false)
		}
	}
	e.fixedBlock(0, true)
	add("mixed blocks", e.member())
	return cases
}

func stdlibGunzip(blob []byte) ([]byte, error) {
	r, err := gzip.NewReader(bytes.NewReader(blob))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

func TestScanGzip(t *testing.T) {
	for _, c := range gzipCases(t) {
		t.Run(c.name, func(t *testing.T) {
			blob := c.blob
			want, err := stdlibGunzip(blob)
			if c.name == "padding" { // stdlib knows no padding
				want, err = sample(700_000), nil
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, spanBytes := range []int64{MinSpanBytes, 50_001, DefaultSpanBytes} {
				spans, res, err := scanAll(t, bytes.NewReader(blob), ScanOptions{Format: Gzip, SpanBytes: spanBytes, Prove: true})
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(join(spans), want) {
					t.Fatalf("span size %d: output differs from stdlib's", spanBytes)
				}
				if res.BytesCompressed != int64(len(blob)) || res.BytesUncompressed != int64(len(want)) || res.Spans != len(spans) {
					t.Errorf("result %+v, want %d compressed, %d uncompressed, %d spans", res, len(blob), len(want), len(spans))
				}
				checkSpans(t, blob, want, spans, spanBytes)
			}
		})
	}
}

// checkSpans decodes every span, and runs of several, from their points with no
// byte of the blob more than promised.
func checkSpans(t *testing.T, blob, want []byte, spans []Span, spanBytes int64) {
	t.Helper()
	var dec Decoder
	for i, s := range spans {
		p := s.Point
		if p.OffsetUncompressed != int64(i)*spanBytes {
			t.Fatalf("span %d is at %d", i, p.OffsetUncompressed)
		}
		if i < len(spans)-1 && int64(len(s.Data)) != spanBytes {
			t.Fatalf("span %d has %d bytes", i, len(s.Data))
		}
		if len(p.State) > MaxStateBytes || len(p.Window) > windowBytes {
			t.Fatalf("span %d: state of %d bytes, window of %d", i, len(p.State), len(p.Window))
		}
		for _, run := range []int{1, 3} {
			last := min(i+run, len(spans)) - 1
			end := spans[last].Point.OffsetUncompressed + int64(len(spans[last].Data))
			dst := make([]byte, end-p.OffsetUncompressed)
			n, err := dec.Decode(dst, p, blob[p.OffsetCompressed:spans[last].EndCompressed])
			if err != nil || n != len(dst) {
				t.Fatalf("decode spans %d-%d: %d of %d bytes, %v", i, last, n, len(dst), err)
			}
			if !bytes.Equal(dst, want[p.OffsetUncompressed:end]) {
				t.Fatalf("decode spans %d-%d: wrong bytes", i, last)
			}
		}
	}
}

// TestPointPlaces checks that points really lie everywhere they may.
func TestPointPlaces(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range gzipCases(t) {
		for _, s := range collect(t, c.blob, ScanOptions{Format: Gzip, SpanBytes: MinSpanBytes}) {
			p := s.Point
			if p.Kind == KindMember {
				seen["member"] = true
				continue
			}
			d := new(inflater)
			d.reset(c.blob[p.OffsetCompressed:], 0, true)
			if err := d.setState(p.State); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(p.State, d.appendState(nil)); diff != "" {
				t.Fatalf("state changed (-want +got):\n%s", diff)
			}
			seen[fmt.Sprintf("phase %d", d.phase)] = true
			seen["match"] = seen["match"] || d.length > 0
			seen["fixed"] = seen["fixed"] || d.phase == phaseHuffman && d.nlit == 0
			seen["dynamic"] = seen["dynamic"] || d.nlit > 0
			seen["mid byte"] = seen["mid byte"] || d.nbits > 0
			seen["thin"] = seen["thin"] || len(p.Window) < windowBytes
		}
	}
	want := map[string]bool{
		"member": true, "phase 0": true, "phase 1": true, "phase 2": true, "phase 3": true,
		"match": true, "fixed": true, "dynamic": true, "mid byte": true, "thin": true,
	}
	if diff := cmp.Diff(want, seen); diff != "" {
		t.Errorf("places of points (-want +got):\n%s", diff)
	}
}

// TestThinWindow checks that what a window leaves out is not needed, and what it
// keeps is.
func TestThinWindow(t *testing.T) {
	blob := gzipped(t, sample(300_000), 6)
	var dec Decoder
	for _, s := range collect(t, blob, ScanOptions{Format: Gzip, SpanBytes: 100_000})[1:] {
		dst := make([]byte, len(s.Data))
		src := blob[s.Point.OffsetCompressed:s.EndCompressed]
		used := 0
		for i, b := range s.Point.Window {
			if b == 0 || i%37 != 0 {
				continue
			}
			used++
			s.Point.Window[i] ^= 1
			if _, err := dec.Decode(dst, s.Point, src); err != nil {
				t.Fatal(err)
			}
			if bytes.Equal(dst, s.Data) {
				t.Fatalf("window byte %d is not needed", i)
			}
			s.Point.Window[i] ^= 1
		}
		if used == 0 {
			t.Error("nothing was checked")
		}
	}
}

// TestScanReaders checks that input may come in any pieces.
func TestScanReaders(t *testing.T) {
	data := sample(400_000)
	for _, blob := range [][]byte{gzipped(t, data, 6), zstded(t, data), data} {
		for name, wrap := range map[string]func(io.Reader) io.Reader{
			"one byte": iotest.OneByteReader, "half": iotest.HalfReader, "data with EOF": iotest.DataErrReader,
		} {
			format := Detect(blob)
			spans, _, err := scanAll(t, wrap(bytes.NewReader(blob)), ScanOptions{Format: format, SpanBytes: MinSpanBytes, Prove: true})
			if err != nil || !bytes.Equal(join(spans), data) {
				t.Errorf("%s, %s: wrong output or %v", format, name, err)
			}
		}
	}
}

func TestDecodeMemberSkip(t *testing.T) {
	data := sample(900_000)
	blob := slices.Concat(gzipped(t, data[:500_000], 6), gzipped(t, data[500_000:], 1))
	var dec Decoder
	for _, skip := range []int{0, 1, 32_767, 262_143, 262_144, 262_145, 480_000, 500_000, 530_000} {
		dst := make([]byte, 100_000)
		n, err := dec.Decode(dst, Point{Kind: KindMember, Skip: int64(skip)}, blob)
		if err != nil || !bytes.Equal(dst[:n], data[skip:skip+len(dst)]) {
			t.Errorf("skip %d: wrong output or %v", skip, err)
		}
	}
}

func TestPlain(t *testing.T) {
	data := sample(200_000)
	spans, res, err := scanAll(t, bytes.NewReader(data), ScanOptions{SpanBytes: 65_536})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Result{BytesCompressed: 200_000, BytesUncompressed: 200_000, Spans: 4}, res); diff != "" {
		t.Error(diff)
	}
	checkSpans(t, data, data, spans, 65_536)
	var dec Decoder
	n, err := dec.Decode(make([]byte, 10), Point{}, data[:4])
	if n != 4 || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("short plain data: %d, %v", n, err)
	}
}

func TestDetect(t *testing.T) {
	for _, c := range []struct {
		head string
		want Format
	}{
		{"\x1f\x8b\x08\x00", Gzip}, {"\x28\xb5\x2f\xfd", Zstd}, {"\x5e\x2a\x4d\x18", Zstd}, {"\x50\x2a\x4d\x18", Zstd},
		{"\x60\x2a\x4d\x18", Plain}, {"", Plain}, {"\x1f", Plain}, {"\x28\xb5\x2f", Plain}, {"usr/bin/", Plain},
	} {
		if got := Detect([]byte(c.head)); got != c.want {
			t.Errorf("Detect(%q) = %s, want %s", c.head, got, c.want)
		}
	}
}

// TestScanBuffers: memory that the caller gives for spans is the caller's again.
func TestScanBuffers(t *testing.T) {
	data := sample(9*MinSpanBytes + 5)
	for name, opts := range map[string]ScanOptions{
		"plain": {}, "gzip": {Format: Gzip}, "proven": {Format: Gzip, Prove: true}, "zstd": {Format: Zstd},
	} {
		t.Run(name, func(t *testing.T) {
			blob := data
			switch opts.Format {
			case Gzip:
				blob = gzipped(t, data, 6)
			case Zstd:
				blob = zstded(t, data)
			}
			buffers := make(chan []byte, 100)
			for range cap(buffers) {
				buffers <- make([]byte, MinSpanBytes)
			}
			opts.SpanBytes, opts.Buffers = MinSpanBytes, buffers
			var got [][]byte
			if _, err := Scan(t.Context(), bytes.NewReader(blob), opts, func(s *Span) error {
				got = append(got, s.Data)
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(bytes.Join(got, nil), data) {
				t.Error("what was handed out first changed later")
			}
			ctx, cancel := context.WithCancel(t.Context())
			opts.Buffers = make(chan []byte) // nobody gives any
			cancel()
			if _, err := Scan(ctx, bytes.NewReader(blob), opts, func(*Span) error { return nil }); !errors.Is(err, context.Canceled) {
				t.Errorf("without memory: %v", err)
			}
		})
	}
}
