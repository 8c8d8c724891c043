package inflate

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// Field values of RFC 8878, section 3.1.
const (
	zstdMagic          = 0xfd2fb528
	zstdSkippableMagic = 0x184d2a50 // and the 15 numbers that follow

	zstdSingleSegment = 1 << 5
	zstdReserved      = 1 << 3
	zstdChecksum      = 1 << 2

	zstdMaxHeader = 18

	zstdBlockRLE      = 1
	zstdBlockReserved = 3
)

// MaxZstdWindow is the largest window of a zstd frame that is decoded: what the
// frame's decoder must keep in memory.
const MaxZstdWindow = 128 << 20

// newZstd returns a decoder that works on the caller's goroutine, so that it
// needs no closing and reads no block before its output is wanted.
func newZstd() (*zstd.Decoder, error) {
	return zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(MaxZstdWindow))
}

func zstdError(err error, offset int64) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return truncated(offset, "zstd frame")
	}
	return &CorruptError{Offset: offset, Reason: "zstd frame", Err: err}
}

// zstdScanner follows a blob's frames, and decodes them one at a time.
type zstdScanner struct {
	dec    *zstd.Decoder
	frames zstdFrames
	open   bool  // a frame is being decoded
	start  int64 // blob offset of the frame
	out    int64 // output offset where the frame's begins
	offset int64 // of output
	spans  int
	count  int // frames
	limit  int64
}

func newZstdScanner(ctx context.Context, r io.Reader, opts ScanOptions) (*zstdScanner, error) {
	dec, err := newZstd()
	if err != nil {
		return nil, err
	}
	return &zstdScanner{
		dec:    dec,
		frames: zstdFrames{r: bufio.NewReaderSize(contextReader{ctx, r}, readBytes)},
		limit:  compressedLimit(opts.SpanBytes),
	}, nil
}

func (s *zstdScanner) next(b *spanBuffer) error {
	s.frames.left = s.limit
	n := 0
	var p Point
	for n < len(b.data) {
		if !s.open {
			err := s.openFrame()
			if err == io.EOF {
				break
			}
			if err != nil {
				return err
			}
		}
		m, err := s.dec.Read(b.data[n:])
		if n == 0 && m > 0 {
			p = Point{
				Kind: KindMember, OffsetUncompressed: s.offset,
				OffsetCompressed: s.start, Skip: s.offset - s.out,
			}
		}
		n += m
		s.offset += int64(m)
		if err == io.EOF && s.frames.ended() {
			s.open = false
		} else if err != nil {
			return s.frames.explain(err)
		}
	}
	if n == 0 {
		return io.EOF
	}
	s.spans++
	b.span = Span{Point: p, Data: b.data[:n], EndCompressed: s.frames.offset}
	return nil
}

// openFrame begins with the next frame that has output, or returns io.EOF.
func (s *zstdScanner) openFrame() error {
	if err := s.frames.next(); err != nil {
		if err == io.EOF && s.count == 0 {
			return truncated(s.frames.offset, "no zstd frame")
		}
		return err
	}
	s.open = true
	s.count++
	s.start, s.out = s.frames.offset, s.offset
	return s.dec.Reset(&s.frames)
}

func (s *zstdScanner) result() Result {
	return Result{BytesCompressed: s.frames.offset, BytesUncompressed: s.offset, Spans: s.spans, Members: s.count}
}

// zstdFrames reads one frame after another: next finds a frame, Read returns
// its bytes and then io.EOF. It follows the headers of frames and blocks, as a
// frame's compressed length is written nowhere.
type zstdFrames struct {
	r        *bufio.Reader
	offset   int64 // of the blob byte that comes next
	left     int64 // bytes that may be read before the owner raises it
	part     int   // bytes left of a header, block or checksum
	state    zstdState
	checksum bool
	err      error // what made a Read fail
}

// zstdState is what follows the current part of a frame.
type zstdState uint8

const (
	zstdEnd zstdState = iota
	zstdBlock
	zstdTrailer
)

func (f *zstdFrames) ended() bool { return f.state == zstdEnd && f.part == 0 && f.err == nil }

// next goes to the next frame that is not skippable, or returns io.EOF.
func (f *zstdFrames) next() error {
	for {
		b, err := f.r.Peek(8)
		if err != nil && err != io.EOF {
			return fmt.Errorf("read zstd frame header: %w", err)
		}
		if len(b) == 0 {
			return io.EOF
		}
		if len(b) < 4 {
			return truncated(f.offset+int64(len(b)), "zstd frame header")
		}
		switch magic := load32(b); {
		case magic == zstdMagic:
			return f.header()
		case magic&^15 != zstdSkippableMagic:
			return &CorruptError{Offset: f.offset, Reason: "not a zstd frame"}
		case len(b) < 8:
			return truncated(f.offset+int64(len(b)), "zstd skippable frame")
		}
		if err := f.skip(8 + int64(load32(b[4:]))); err != nil {
			return err
		}
	}
}

// skip drops n bytes.
func (f *zstdFrames) skip(n int64) error {
	for n > 0 {
		m, err := f.r.Discard(int(min(n, readBytes)))
		f.offset += int64(m)
		n -= int64(m)
		if err == io.EOF {
			return truncated(f.offset, "zstd skippable frame")
		}
		if err != nil {
			return fmt.Errorf("read zstd skippable frame: %w", err)
		}
	}
	return nil
}

// header reads a frame's header (RFC 8878, 3.1.1.1).
func (f *zstdFrames) header() error {
	b, err := f.r.Peek(zstdMaxHeader)
	if err != nil && err != io.EOF {
		return fmt.Errorf("read zstd frame header: %w", err)
	}
	if len(b) < 5 {
		return truncated(f.offset+int64(len(b)), "zstd frame header")
	}
	flags := b[4]
	single := flags&zstdSingleSegment != 0
	contentBytes := [...]int{0, 2, 4, 8}[flags>>6]
	size := 5 + [...]int{0, 1, 2, 4}[flags&3] + contentBytes
	switch {
	case single && contentBytes == 0:
		size++
	case !single:
		size++
	}
	if flags&zstdReserved != 0 {
		return &CorruptError{Offset: f.offset, Reason: "zstd frame header has a reserved flag"}
	}
	if len(b) < size {
		return truncated(f.offset+int64(len(b)), "zstd frame header")
	}
	if window := zstdWindow(b[:size], single, contentBytes); window > MaxZstdWindow {
		return &CorruptError{
			Offset: f.offset,
			Reason: fmt.Sprintf("zstd frame needs a window of %d bytes, at most %d are allowed", window, MaxZstdWindow),
		}
	}
	f.part, f.state, f.checksum = size, zstdBlock, flags&zstdChecksum != 0
	return nil
}

// zstdWindow returns the window size a frame header b asks for.
func zstdWindow(b []byte, single bool, contentBytes int) uint64 {
	if !single {
		base := uint64(1) << (10 + b[5]>>3)
		return base + base/8*uint64(b[5]&7)
	}
	switch c := b[len(b)-max(contentBytes, 1):]; contentBytes {
	case 8:
		return binary.LittleEndian.Uint64(c)
	case 4:
		return uint64(load32(c))
	default:
		return 0 // at most 64 KiB
	}
}

// Read returns the frame's bytes, then io.EOF. It is the compressed side of
// the decoder, which reads no further than it needs.
func (f *zstdFrames) Read(p []byte) (int, error) {
	if f.err == nil && f.part == 0 {
		f.err = f.nextPart()
	}
	if f.err != nil {
		return 0, f.err
	}
	if f.part == 0 {
		return 0, io.EOF
	}
	n, err := f.r.Read(p[:min(len(p), f.part)])
	f.part -= n
	f.offset += int64(n)
	if f.left -= int64(n); f.left < 0 {
		err = &CorruptError{Offset: f.offset, Reason: "too many compressed bytes for too little output"}
	} else if err == io.EOF {
		err = truncated(f.offset, "zstd frame")
	}
	f.err = err
	return n, err
}

// nextPart finds the length of what comes next in the frame.
func (f *zstdFrames) nextPart() error {
	switch f.state {
	case zstdEnd:
		return nil
	case zstdTrailer:
		f.part, f.state = 4, zstdEnd
		return nil
	}
	b, err := f.r.Peek(3)
	if len(b) < 3 {
		if err == io.EOF {
			err = truncated(f.offset+int64(len(b)), "zstd block header")
		}
		return err
	}
	h := uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16
	f.part = 3 + int(h>>3)
	switch h >> 1 & 3 {
	case zstdBlockRLE:
		f.part = 4
	case zstdBlockReserved:
		return &CorruptError{Offset: f.offset, Reason: "no such zstd block type"}
	}
	if h&1 != 0 {
		f.state = zstdEnd
		if f.checksum {
			f.state = zstdTrailer
		}
	}
	return nil
}

// explain returns what made the frame's decoder fail: the input, or the frame.
func (f *zstdFrames) explain(err error) error {
	if f.err != nil {
		return f.err
	}
	return zstdError(err, f.offset)
}
