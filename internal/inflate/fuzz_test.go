package inflate

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
)

// fuzzSeeds are small gzip blobs: fuzzing wants many runs. Zeros make some of
// them longer than a span.
func fuzzSeeds(f *testing.F) [][]byte {
	f.Helper()
	zeros := make([]byte, 100_000)
	e := newEncoder(1)
	e.dynamicBlock(200, false)
	e.storedBlock([]byte("stored"), false)
	e.fixedBlock(100, true)
	small := gzipped(f, sample(1000), 6)
	return [][]byte{
		small, e.member(), gzipped(f, zeros, 6), gzipped(f, nil, 6), gzipped(f, sample(200), 0),
		gzipped(f, slices.Concat(sample(500), zeros, sample(500)), 9), slices.Concat(small, small, make([]byte, 20)),
	}
}

// FuzzScan scans hostile blobs. What stdlib accepts must be accepted, with the
// same output, and every point that is handed out must be proven.
func FuzzScan(f *testing.F) {
	for _, blob := range fuzzSeeds(f) {
		f.Add(blob)
	}
	f.Add(zstded(f, sample(1000)))
	f.Add(skippable(5))
	f.Add([]byte("plain"))
	f.Fuzz(func(t *testing.T, blob []byte) {
		format := Detect(blob)
		spans, _, err := scanAll(t, bytes.NewReader(blob), ScanOptions{Format: format, SpanBytes: MinSpanBytes, MaxBytes: 1 << 20, Prove: true})
		if errors.Is(err, ErrNotProven) {
			t.Fatal(err)
		}
		if format == Gzip && useAsm {
			scansAgree(t, blob, ScanOptions{Format: format, SpanBytes: MinSpanBytes, MaxBytes: 1 << 20})
		}
		if format != Gzip || errors.Is(err, ErrTooLarge) {
			return
		}
		want, stdErr := stdlibGunzip(blob)
		switch {
		case stdErr != nil: // it knows no padding, for one
		case err != nil && !strings.Contains(err.Error(), "reserved flags"):
			t.Fatalf("stdlib accepts it, but: %v", err)
		case err == nil && !bytes.Equal(join(spans), want):
			t.Fatal("output differs from stdlib's")
		}
	})
}

// FuzzDecode decodes with hostile points and input: it must return.
func FuzzDecode(f *testing.F) {
	for _, blob := range fuzzSeeds(f) {
		for _, s := range collect(f, blob, ScanOptions{Format: Gzip, SpanBytes: MinSpanBytes}) {
			p := s.Point
			f.Add(uint8(p.Kind), p.Skip, p.State, p.Window, blob[p.OffsetCompressed:s.EndCompressed], uint16(len(s.Data)))
		}
	}
	f.Add(uint8(KindMember), int64(30), []byte{}, []byte{}, zstded(f, sample(1000)), uint16(500))
	f.Fuzz(func(t *testing.T, kind uint8, skip int64, state, window, src []byte, size uint16) {
		var dec Decoder
		dst := make([]byte, size)
		p := Point{Kind: Kind(kind % 4), Skip: skip, State: state, Window: window}
		n, err := dec.Decode(dst, p, src)
		var corrupt *CorruptError
		if err != nil && !errors.As(err, &corrupt) {
			t.Fatalf("error is not a *CorruptError: %v", err)
		}
		if n < 0 || n > len(dst) || err == nil && n < len(dst) {
			t.Fatalf("%d of %d bytes, %v", n, len(dst), err)
		}
		if !useAsm || p.Kind != KindMember && p.Kind != KindBlock || Detect(src) == Zstd {
			return
		}
		again := make([]byte, size)
		withKernel(false, func() {
			m, err2 := dec.Decode(again, p, src)
			if m != n || !bytes.Equal(dst[:n], again[:m]) || !sameError(err, err2) {
				t.Fatalf("assembly: %d bytes, %v; Go: %d bytes, %v", n, err, m, err2)
			}
		})
	})
}
