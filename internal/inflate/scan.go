package inflate

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Scan reads a blob once and calls fn for each of its spans, in order. Spans
// have exactly opts.SpanBytes of output, but for the last; together they are
// the whole output. There is none for empty output.
//
// Gzip members are checked against their checksums and sizes; zeros may follow
// the last one, anything else is an error. Errors are those of r, fn and ctx
// (asked before every read), *CorruptError, ErrTooLarge and ErrNotProven. A
// span that was handed to fn is not thereby right: that is only known when Scan
// returns nil.
//
// r is read on the caller's goroutine only; with opts.Prove fn is called on
// another one. Scan returns when both are done.
func Scan(ctx context.Context, r io.Reader, opts ScanOptions, fn func(*Span) error) (Result, error) {
	if opts.SpanBytes == 0 {
		opts.SpanBytes = DefaultSpanBytes
	}
	if opts.SpanBytes < MinSpanBytes || opts.SpanBytes > MaxSpanBytes {
		return Result{}, fmt.Errorf("span of %d bytes is not from %d to %d", opts.SpanBytes, MinSpanBytes, MaxSpanBytes)
	}
	var s scanner
	switch opts.Format {
	case Plain:
		s = &plainScanner{r: contextReader{ctx, r}}
	case Gzip:
		s = newGzipScanner(ctx, r, opts)
	case Zstd:
		var err error
		if s, err = newZstdScanner(ctx, r, opts); err != nil {
			return Result{}, err
		}
	default:
		return Result{}, fmt.Errorf("scan %s: unknown format", opts.Format)
	}
	if opts.MaxBytes > 0 {
		s = &limitScanner{scanner: s, left: opts.MaxBytes}
	}
	if opts.Prove && opts.Format == Gzip {
		return scanProving(ctx, s, opts, fn)
	}
	return scanSpans(ctx, s, opts, fn)
}

// A scanner makes spans of one format.
type scanner interface {
	// next fills b with the next span, or returns io.EOF.
	next(b *spanBuffer) error
	result() Result
}

// A spanBuffer holds a span and what it refers to.
type spanBuffer struct {
	span   Span
	data   []byte // all of it is to be filled
	state  []byte
	window [windowBytes]byte
	marks  [windowBytes]byte // 0xff for bytes of window that the span refers to
	src    []byte            // the compressed bytes, if they are to be kept
}

func newSpanBuffer(opts ScanOptions) *spanBuffer {
	b := new(spanBuffer)
	if opts.Buffers == nil {
		b.data = make([]byte, opts.SpanBytes)
	}
	return b
}

// renew takes memory for the next span, unless Scan has its own.
func (b *spanBuffer) renew(ctx context.Context, opts ScanOptions) error {
	if opts.Buffers == nil {
		return nil
	}
	select {
	case b.data = <-opts.Buffers:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func scanSpans(ctx context.Context, s scanner, opts ScanOptions, fn func(*Span) error) (Result, error) {
	b := newSpanBuffer(opts)
	for {
		err := b.renew(ctx, opts)
		if err == nil {
			err = s.next(b)
		}
		if err == io.EOF {
			return s.result(), nil
		}
		if err == nil {
			err = fn(&b.span)
		}
		if err != nil {
			return s.result(), err
		}
	}
}

// proveAhead is how many spans are in memory: one being decoded, one being
// proven or used, one between.
const proveAhead = 3

// scanProving decodes on this goroutine, and proves and hands out on another.
func scanProving(ctx context.Context, s scanner, opts ScanOptions, fn func(*Span) error) (Result, error) {
	free, full := make(chan *spanBuffer, proveAhead), make(chan *spanBuffer, proveAhead)
	for range proveAhead {
		free <- newSpanBuffer(opts)
	}
	done := make(chan error, 1)
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		err := proveSpans(full, free, opts.ProveBytes, fn)
		done <- err
		if err != nil {
			stop()
		}
	}()
	decodeErr := func() error {
		defer close(full)
		for {
			select {
			case b := <-free:
				if err := b.renew(ctx, opts); err != nil {
					return err
				}
				if err := s.next(b); err != nil {
					return err
				}
				full <- b
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}()
	if err := <-done; err != nil {
		return s.result(), err
	}
	if decodeErr != io.EOF {
		return s.result(), decodeErr
	}
	return s.result(), nil
}

// proveSpans proves spans, or their first proveBytes unless that is 0, and hands
// them to fn, until there are no more or one fails.
func proveSpans(full <-chan *spanBuffer, free chan<- *spanBuffer, proveBytes int64, fn func(*Span) error) error {
	var dec Decoder
	var again []byte
	for b := range full {
		if again == nil {
			again = make([]byte, cap(b.data))
		}
		want := b.span.Data
		if proveBytes > 0 && int64(len(want)) > proveBytes {
			want = want[:proveBytes]
		}
		again = again[:len(want)]
		if _, err := dec.Decode(again, b.span.Point, b.src); err != nil {
			return fmt.Errorf("%w: output offset %d: %w", ErrNotProven, b.span.Point.OffsetUncompressed, err)
		}
		if !bytes.Equal(again, want) {
			return fmt.Errorf("%w: output offset %d", ErrNotProven, b.span.Point.OffsetUncompressed)
		}
		if err := fn(&b.span); err != nil {
			return err
		}
		free <- b
	}
	return nil
}

// limitScanner ends with ErrTooLarge after more than left bytes.
type limitScanner struct {
	scanner
	left int64
}

func (s *limitScanner) next(b *spanBuffer) error {
	err := s.scanner.next(b)
	if err != nil {
		return err
	}
	if s.left -= int64(len(b.span.Data)); s.left < 0 {
		return fmt.Errorf("%w of uncompressed bytes", ErrTooLarge)
	}
	return nil
}

// contextReader asks ctx before every read.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

type plainScanner struct {
	r      io.Reader
	offset int64
	spans  int
}

func (s *plainScanner) next(b *spanBuffer) error {
	n, err := readAtLeast(s.r, b.data, len(b.data))
	if err != nil && (err != io.EOF || n == 0) {
		return err
	}
	p := Point{Kind: KindPlain, OffsetUncompressed: s.offset, OffsetCompressed: s.offset}
	s.offset += int64(n)
	s.spans++
	b.span = Span{Point: p, Data: b.data[:n], EndCompressed: s.offset}
	return nil
}

func (s *plainScanner) result() Result {
	return Result{BytesCompressed: s.offset, BytesUncompressed: s.offset, Spans: s.spans}
}

// readAtLeast fills p with at least least bytes. It returns io.EOF after fewer
// at the end only: unlike io.ReadAtLeast it does not confuse that with r's own
// io.ErrUnexpectedEOF, which is what a broken connection returns.
func readAtLeast(r io.Reader, p []byte, least int) (n int, err error) {
	idle := 0
	for n < least {
		m, err := r.Read(p[n:])
		n += m
		if err != nil {
			return n, err
		}
		if idle++; m > 0 {
			idle = 0
		}
		if idle == 100 {
			return n, io.ErrNoProgress
		}
	}
	return n, nil
}

// Scanning reads chunks of readBytes, and goes on with what has come as soon as
// it is leastBytes. The buffer has room for a member's header besides.
const (
	readBytes  = 256 << 10
	leastBytes = 32 << 10
	inputBytes = readBytes + maxGzipHeader + lookahead
)

// compressedLimit bounds the compressed bytes of a span. DEFLATE never needs
// more than a few thousandths over the output, but empty blocks and members may go on
// for ever.
func compressedLimit(spanBytes int64) int64 { return spanBytes + spanBytes/8 + 4<<20 }

type gzipScanner struct {
	ctx     context.Context
	r       io.Reader
	d       *inflater
	input   []byte
	history [windowBytes]byte
	keep    bool // compressed bytes in spanBuffer.src
	kept    int  // input before this is there
	limit   int64
	offset  int64 // of output
	spans   int
}

func newGzipScanner(ctx context.Context, r io.Reader, opts ScanOptions) *gzipScanner {
	s := &gzipScanner{
		ctx: ctx, r: r, d: new(inflater), input: make([]byte, inputBytes),
		keep: opts.Prove, limit: compressedLimit(opts.SpanBytes),
	}
	s.d.reset(s.input[:0], 0, false)
	s.d.checkCRC = true
	return s
}

func (s *gzipScanner) next(b *spanBuffer) error {
	d := s.d
	p := Point{Kind: KindMember, OffsetUncompressed: s.offset, OffsetCompressed: d.offset()}
	if d.phase != phaseMember {
		p.Kind = KindBlock
		b.state = d.appendState(b.state[:0])
		p.State = b.state
	}
	d.window = b.window[windowBytes-copy(b.window[windowBytes-len(d.window):], d.window):]
	clear(b.marks[:])
	d.marks = b.marks[:]
	d.setOut(b.data)
	b.src = b.src[:0]
	s.kept = int(p.OffsetCompressed - d.base)
	end, err := s.run(b, p.OffsetCompressed)
	if err != nil {
		return err
	}
	d.updateCRC()
	d.window = d.slideWindow(&s.history)
	if p.Kind == KindBlock {
		p.Window = b.thinWindow()
	}
	s.offset += int64(d.n)
	s.spans++
	b.span = Span{Point: p, Data: b.data[:d.n], EndCompressed: end}
	return nil
}

// run decodes the span that begins at the blob offset from, and returns where
// it ends. The last one ends with its member: padding is not part of it.
func (s *gzipScanner) run(b *spanBuffer, from int64) (end int64, err error) {
	d := s.d
	var st status
	for {
		if st, err = d.run(); err != nil {
			return 0, err
		}
		if st != statusInput {
			break
		}
		if err := s.fill(b, from); err != nil {
			return 0, err
		}
	}
	if d.n == 0 {
		return 0, io.EOF
	}
	end = d.base + int64(d.pos)
	if st == statusEnd {
		end = d.end
	}
	if s.keep {
		b.src = append(b.src, d.in[s.kept:d.pos]...)[:end-from]
	}
	return end, nil
}

// fill reads more input, and gives up on a span that began at the blob offset
// from if it takes too much. The byte before pos stays: it has the next bits.
func (s *gzipScanner) fill(b *spanBuffer, from int64) error {
	if err := s.ctx.Err(); err != nil {
		return err
	}
	d := s.d
	if d.base+int64(d.pos)-from > s.limit && d.phase != phasePadding {
		return d.corrupt("too many compressed bytes for too little output")
	}
	if s.keep && (d.phase != phasePadding || from+int64(len(b.src)) < d.end) {
		b.src = append(b.src, d.in[s.kept:d.pos]...)
	}
	gone := max(0, d.pos-1)
	have := copy(s.input, d.in[gone:])
	d.base += int64(gone)
	d.pos -= gone
	s.kept = d.pos
	n, err := readAtLeast(s.r, s.input[have:min(len(s.input), have+readBytes)], min(leastBytes, len(s.input)-have))
	d.in = s.input[:have+n]
	if errors.Is(err, io.EOF) {
		d.eof = true
		return nil
	}
	return err
}

func (s *gzipScanner) result() Result {
	return Result{
		BytesCompressed: s.d.base + int64(len(s.d.in)), BytesUncompressed: s.offset,
		Spans: s.spans, Members: s.d.members,
	}
}

// thinWindow zeroes the bytes of the window that the span did not refer to, and
// returns it from the first one that it did.
func (b *spanBuffer) thinWindow() []byte {
	first := windowBytes
	for i := windowBytes - 8; i >= 0; i -= 8 {
		used := binary.LittleEndian.Uint64(b.marks[i:])
		w := b.window[i : i+8]
		binary.LittleEndian.PutUint64(w, binary.LittleEndian.Uint64(w)&used)
		if used != 0 {
			first = i
		}
	}
	for first < windowBytes && b.marks[first] == 0 {
		first++
	}
	return b.window[first:]
}
