package inflate

import (
	"errors"
	"fmt"
	"io"
)

// Format is how a layer blob is compressed.
type Format uint8

// The formats of OCI layers.
const (
	Plain Format = iota // not compressed
	Gzip                // RFC 1952, one member or many
	Zstd                // RFC 8878, frames and skippable frames
)

// String returns the format's name as media types spell it.
func (f Format) String() string {
	switch f {
	case Plain:
		return "plain"
	case Gzip:
		return "gzip"
	case Zstd:
		return "zstd"
	}
	return fmt.Sprintf("format(%d)", uint8(f))
}

// Detect tells the format of a blob from its first bytes (4 are enough);
// whatever has no known magic number is Plain.
func Detect(head []byte) Format {
	switch {
	case len(head) >= 2 && head[0] == gzipID1 && head[1] == gzipID2:
		return Gzip
	case len(head) >= 4 && (load32(head) == zstdMagic || load32(head)&^15 == zstdSkippableMagic):
		return Zstd
	}
	return Plain
}

// Kind says what an access point needs to be entered.
type Kind uint8

// The kinds of access points.
const (
	KindPlain  Kind = iota // bytes are as they are
	KindMember             // the start of a gzip member or zstd frame, then Skip output bytes to discard
	KindBlock              // anywhere in a DEFLATE stream: State and Window are needed
)

// String returns the kind's name.
func (k Kind) String() string {
	switch k {
	case KindPlain:
		return "plain"
	case KindMember:
		return "member"
	case KindBlock:
		return "block"
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Point is an access point: all that is needed, besides the blob's bytes from
// OffsetCompressed on, to decode from OffsetUncompressed on.
type Point struct {
	Kind               Kind
	OffsetUncompressed int64  // in the layer's tar
	OffsetCompressed   int64  // of the first blob byte needed
	Skip               int64  // KindMember: output bytes to discard first
	State              []byte // KindBlock: decoder state, at most MaxStateBytes; layout in state.go
	// Window (KindBlock) is up to 32 KiB of the output before the point, newest
	// last. Bytes that the point's own span never refers to are zero, leading
	// ones are left out.
	Window []byte
}

// Span is a run of output with the access point it starts at.
type Span struct {
	Point         Point  // its slices are valid only during the call
	Data          []byte // the output; valid only during the call, unless it is from ScanOptions.Buffers
	EndCompressed int64  // blob bytes [Point.OffsetCompressed, EndCompressed) decode the span
}

// ScanOptions says what Scan is to do. The zero value scans plain data in
// spans of DefaultSpanBytes.
type ScanOptions struct {
	Format    Format
	SpanBytes int64 // output bytes a span, 0 is DefaultSpanBytes; from MinSpanBytes to MaxSpanBytes
	MaxBytes  int64 // more output than this is ErrTooLarge; 0 is no limit
	// Prove decodes every span of gzip once more from its access point, as a reader
	// will, and fails with ErrNotProven where that does not give the same bytes.
	// It runs beside the scan on a second goroutine, which then also calls fn.
	// Plain and zstd points need no proof: Scan itself starts afresh at them.
	Prove bool
	// ProveBytes ends a span's proof after so many bytes; 0 proves all of it. What
	// an access point adds to the stream (window, state of the block) shows in the
	// first 64 KiB: later output refers to output that is proven.
	ProveBytes int64
	// Buffers gives memory of SpanBytes for each span's Data, which from then on is
	// its receiver's. nil: Scan has its own.
	Buffers <-chan []byte
}

// Limits of ScanOptions.SpanBytes. A span shorter than a window would let a
// later span of the same read refer to bytes the first one's window left out.
const (
	DefaultSpanBytes = 1 << 20
	MinSpanBytes     = windowBytes
	MaxSpanBytes     = 64 << 20
)

// Result sums up a scan.
type Result struct {
	BytesCompressed   int64
	BytesUncompressed int64
	Spans             int
	Members           int // gzip members or zstd frames (skippable ones not counted)
}

// ErrTooLarge is returned when the output exceeds ScanOptions.MaxBytes.
var ErrTooLarge = errors.New("output exceeds the limit")

// ErrNotProven is returned when a span could not be decoded again from its
// access point: a defect of this package or of the machine, not of the input.
var ErrNotProven = errors.New("access point does not reproduce its span")

// CorruptError is returned for input that is not what it should be. Input that
// ends early wraps io.ErrUnexpectedEOF.
type CorruptError struct {
	Offset int64 // in the blob, where it was noticed
	Reason string
	Err    error // may be nil
}

func (e *CorruptError) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("corrupt compressed data at byte %d: %s: %v", e.Offset, e.Reason, e.Err)
	}
	return fmt.Sprintf("corrupt compressed data at byte %d: %s", e.Offset, e.Reason)
}

// Unwrap returns the cause, if any.
func (e *CorruptError) Unwrap() error { return e.Err }

func truncated(offset int64, reason string) error {
	return &CorruptError{Offset: offset, Reason: reason, Err: io.ErrUnexpectedEOF}
}
