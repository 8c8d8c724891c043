package inflate

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

func scanErr(t *testing.T, r io.Reader, opts ScanOptions) error {
	t.Helper()
	_, err := Scan(t.Context(), r, opts, func(*Span) error { return nil })
	return err
}

// TestTruncated cuts blobs everywhere.
func TestTruncated(t *testing.T) {
	data := sample(4000)
	e := newEncoder(9)
	e.dynamicBlock(300, false)
	e.storedBlock(data[:200], false)
	e.fixedBlock(100, true)
	for name, blob := range map[string][]byte{
		"gzip": gzipped(t, data, 6), "handmade": e.member(), "stored": gzipped(t, data[:300], 0), "zstd": zstded(t, data),
	} {
		format := Detect(blob)
		for n := range blob {
			err := scanErr(t, bytes.NewReader(blob[:n]), ScanOptions{Format: format, SpanBytes: MinSpanBytes})
			var corrupt *CorruptError
			if !errors.As(err, &corrupt) || !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("%s cut at %d of %d: %v", name, n, len(blob), err)
			}
			if corrupt.Offset < 0 || corrupt.Offset > int64(n) {
				t.Fatalf("%s cut at %d: error says %d", name, n, corrupt.Offset)
			}
		}
	}
}

// TestFlipped flips bits. Checksums find whatever decoding does not.
func TestFlipped(t *testing.T) {
	data := sample(60_000)
	rng := rand.New(rand.NewPCG(5, 5))
	e := newEncoder(10)
	e.dynamicBlock(2000, false)
	e.fixedBlock(2000, true)
	for _, blob := range [][]byte{gzipped(t, data, 6), e.member(), zstded(t, data)} {
		format := Detect(blob)
		want := join(collect(t, blob, ScanOptions{Format: format}))
		for range 500 {
			bad := bytes.Clone(blob)
			bad[rng.IntN(len(bad))] ^= 1 << rng.IntN(8)
			spans, _, err := scanAll(t, bytes.NewReader(bad), ScanOptions{Format: format, SpanBytes: MinSpanBytes, Prove: true, MaxBytes: 1 << 20})
			if err == nil && !bytes.Equal(join(spans), want) {
				t.Fatal("wrong bytes and no error")
			}
			if errors.Is(err, ErrNotProven) {
				t.Fatal(err)
			}
		}
	}
}

// repeated reads head, then body for ever.
type repeated struct{ head, body []byte }

func (r *repeated) Read(p []byte) (int, error) {
	if len(r.head) == 0 {
		r.head = bytes.Repeat(r.body, 1000)
	}
	n := copy(p, r.head)
	r.head = r.head[n:]
	return n, nil
}

// TestEndless feeds input that never ends and hardly gives output.
func TestEndless(t *testing.T) {
	header := gzipped(t, nil, 6)[:gzipHeaderBytes]
	named := bytes.Clone(header)
	named[3] = gzipName
	e := newEncoder(1)
	e.dynamicBlock(0, false)
	e.align()
	fixed := &bitWriter{}
	for range 8 {
		fixed.write(2, 3)
		fixed.write(0, 7)
	}
	for name, c := range map[string]struct {
		r      *repeated
		format Format
		reason string
	}{
		"empty stored blocks":  {&repeated{header, []byte{0, 0, 0, 255, 255}}, Gzip, "too many compressed bytes"},
		"empty fixed blocks":   {&repeated{header, fixed.buf}, Gzip, "too many compressed bytes"},
		"empty dynamic blocks": {&repeated{header, slices.Concat(e.buf, []byte{0, 0, 0, 255, 255})}, Gzip, ""},
		"empty members":        {&repeated{nil, gzipped(t, nil, 6)}, Gzip, "too many compressed bytes"},
		"name":                 {&repeated{named, []byte("x")}, Gzip, "header is too long"},
		"zeros":                {&repeated{header, make([]byte, 300)}, Gzip, ""},
		"output":               {&repeated{gzipped(t, sample(1000), 6), gzipped(t, sample(1000), 6)}, Gzip, "exceeds the limit"},
		"zstd frames":          {&repeated{nil, []byte{0x28, 0xb5, 0x2f, 0xfd, 0x20, 0, 1, 0, 0}}, Zstd, "too many compressed bytes"},
		"zstd empty blocks":    {&repeated{[]byte{0x28, 0xb5, 0x2f, 0xfd, 0, 0x58}, []byte{0, 0, 0}}, Zstd, "too many compressed bytes"},
	} {
		err := scanErr(t, c.r, ScanOptions{Format: c.format, MaxBytes: 10 << 20, Prove: true})
		if err == nil || !strings.Contains(err.Error(), c.reason) {
			t.Errorf("%s: %v, want %q", name, err, c.reason)
		}
	}
}

func TestScanRefuses(t *testing.T) {
	good := gzipped(t, sample(100_000), 6)
	member := func(f func(e *encoder)) []byte {
		e := newEncoder(1)
		f(e)
		return e.member()
	}
	edit := func(at int, v byte) []byte {
		b := bytes.Clone(good)
		b[(at+len(b))%len(b)] ^= v
		return b
	}
	for _, c := range []struct {
		name, reason string
		blob         []byte
	}{
		{"garbage", "garbage after a gzip member", slices.Concat(good, []byte("garbage"))},
		{"garbage after padding", "garbage after a gzip member", slices.Concat(good, make([]byte, 2000), []byte("x"))},
		{"member after padding", "garbage after a gzip member", slices.Concat(good, make([]byte, 20), good)},
		{"half a header", "gzip header", slices.Concat(good, good[:5])},
		{"not gzip", "not a gzip header", []byte("this is no gzip at all")},
		{"method", "not a gzip header", edit(2, 1)},
		{"reserved flag", "reserved flags", edit(3, 0x20)},
		{"header checksum", "header checksum", slices.Concat([]byte{31, 139, 8, 2, 0, 0, 0, 0, 0, 255, 1, 1}, good[10:])},
		{"crc", "checksum differs", edit(-6, 1)},
		{"size", "size differs", edit(-1, 1)},
		{"block type", "no such block type", member(func(e *encoder) { e.header(true, 3) })},
		{"stored length", "complement", member(func(e *encoder) { e.header(true, 0); e.align(); e.write(7, 32) })},
		{"too far back", "reaches back too far", member(func(e *encoder) {
			e.storedBlock([]byte("abc"), false)
			e.header(true, 1)
			e.write(1<<6, 7)
			e.write(0b11000, 5)
		})},
		{"too many codes", "too many codes", member(func(e *encoder) { e.header(true, 2); e.write(30, 5); e.write(0, 9) })},
		{"bad length code", "code length code", member(func(e *encoder) { e.header(true, 2); e.write(0, 14); e.write(0b001001001001, 12) })},
		{"bad fixed length", "no such literal or length code", member(func(e *encoder) { e.header(true, 1); e.write(0b01100011, 8) })},
		{"back over a member", "reaches back too far", slices.Concat(good, member(func(e *encoder) {
			e.header(true, 1)
			e.write(1<<6, 7)
			e.write(0, 5)
		}))},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := scanErr(t, bytes.NewReader(c.blob), ScanOptions{Format: Gzip})
			var corrupt *CorruptError
			if !errors.As(err, &corrupt) || !strings.Contains(err.Error(), c.reason) {
				t.Errorf("got %v, want %q", err, c.reason)
			}
		})
	}
}

func TestScanErrors(t *testing.T) {
	blob := gzipped(t, sample(400_000), 1)
	mine := errors.New("mine")
	for _, prove := range []bool{false, true} {
		opts := ScanOptions{Format: Gzip, SpanBytes: MinSpanBytes, Prove: prove}
		calls := 0
		_, err := Scan(t.Context(), bytes.NewReader(blob), opts, func(*Span) error { calls++; return mine })
		if err != mine || calls != 1 {
			t.Errorf("fn: %v after %d calls", err, calls)
		}
		broken := io.MultiReader(bytes.NewReader(blob[:len(blob)/2]), iotest.ErrReader(io.ErrUnexpectedEOF))
		var corrupt *CorruptError
		if err := scanErr(t, broken, opts); !errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &corrupt) {
			t.Errorf("a reader's own error became %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		_, err = Scan(ctx, iotest.HalfReader(bytes.NewReader(blob)), opts, func(*Span) error { cancel(); return nil })
		if err != nil && !errors.Is(err, context.Canceled) { // the input may have been read by then
			t.Errorf("cancelled: %v", err)
		}
		cancel()
		_, err = Scan(ctx, bytes.NewReader(blob), opts, func(*Span) error { return nil })
		if !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled before: %v", err)
		}
		opts.MaxBytes = 400_000
		if err := scanErr(t, bytes.NewReader(blob), opts); err != nil {
			t.Errorf("output of the limit: %v", err)
		}
		opts.MaxBytes--
		if err := scanErr(t, bytes.NewReader(blob), opts); !errors.Is(err, ErrTooLarge) {
			t.Errorf("output over the limit: %v", err)
		}
	}
	for _, opts := range []ScanOptions{{SpanBytes: MinSpanBytes - 1}, {SpanBytes: MaxSpanBytes + 1}, {SpanBytes: -1}, {Format: 9}} {
		if err := scanErr(t, bytes.NewReader(blob), opts); err == nil {
			t.Errorf("%+v was accepted", opts)
		}
	}
}

// lyingScanner hands out a span with a window that is not right.
type lyingScanner struct{ scanner }

func (s lyingScanner) next(b *spanBuffer) error {
	err := s.scanner.next(b)
	if err == nil && len(b.span.Point.Window) > 0 {
		clear(b.span.Point.Window)
	}
	return err
}

func TestProve(t *testing.T) {
	blob := gzipped(t, sample(400_000), 6)
	opts := ScanOptions{Format: Gzip, SpanBytes: MinSpanBytes, Prove: true}
	s := lyingScanner{newGzipScanner(t.Context(), bytes.NewReader(blob), opts)}
	calls := 0
	_, err := scanProving(t.Context(), s, opts, func(*Span) error { calls++; return nil })
	if !errors.Is(err, ErrNotProven) || calls != 1 {
		t.Errorf("got %v after %d spans", err, calls)
	}
}

func TestDecodeRefuses(t *testing.T) {
	blob := gzipped(t, sample(200_000), 6)
	spans := collect(t, blob, ScanOptions{Format: Gzip, SpanBytes: MinSpanBytes})
	s := spans[2]
	src := blob[s.Point.OffsetCompressed:s.EndCompressed]
	for _, c := range []struct {
		name string
		edit func(p *Point)
	}{
		{"kind", func(p *Point) { p.Kind = 7 }},
		{"negative skip", func(p *Point) { p.Kind, p.Skip = KindMember, -1 }},
		{"no state", func(p *Point) { p.State = nil }},
		{"version", func(p *Point) { p.State[0]++ }},
		{"phase", func(p *Point) { p.State[1] |= 0x70 }},
		{"stored", func(p *Point) { p.State[2]++ }},
		{"match", func(p *Point) { p.State[5] = 2 }},
		{"distance", func(p *Point) { p.State[7] = 0x80 }},
		{"codes", func(p *Point) { p.State[8]++ }},
		{"more codes", func(p *Point) { p.State[9]++ }},
		{"distance codes", func(p *Point) { p.State[10] = 31 }},
		{"short", func(p *Point) { p.State = p.State[:len(p.State)-1] }},
		{"long", func(p *Point) { p.State = append(p.State, 0) }},
		{"lengths", func(p *Point) { p.State[stateHeaderBytes+40] ^= 3 }},
		{"long window", func(p *Point) { p.Window = make([]byte, windowBytes+1) }},
		{"no window", func(p *Point) { p.Window = nil }},
	} {
		p := s.Point
		p.State, p.Window = bytes.Clone(p.State), bytes.Clone(p.Window)
		c.edit(&p)
		var dec Decoder
		var corrupt *CorruptError
		if _, err := dec.Decode(make([]byte, len(s.Data)), p, src); !errors.As(err, &corrupt) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	var dec Decoder
	dst := make([]byte, len(s.Data))
	for n := range src {
		if _, err := dec.Decode(dst, s.Point, src[:n]); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("source cut at %d of %d: %v", n, len(src), err)
		}
	}
	if _, err := dec.Decode(dst, s.Point, src); err != nil || !bytes.Equal(dst, s.Data) {
		t.Errorf("a decoder used after errors: %v", err)
	}
}
