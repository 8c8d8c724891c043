package index

import (
	"encoding/binary"
	"fmt"

	"github.com/thaw-project/thaw/internal/inflate"
)

// SpanBytes is the uncompressed size of every span but a layer's last.
//
// 1 MiB: a random 64 KiB read decodes 0.5 MiB on average (about 1.5 ms) and the
// windows stay within the index' budget; see docs/decisions.
const SpanBytes = 1 << 20

// spanRecordBytes is the size of one record of the span table:
//
//	offset size
//	0      8    offset of the first compressed byte in the layer blob
//	8      8    number of compressed bytes that decode the span
//	16     8    bytes to discard after decoding starts (Kind member)
//	24     8    offset of the window record in the windows section
//	32     4    size of the window record, 0 for none
//	36     1    kind of access point (inflate.Kind)
//	37     3    zero
//	40     32   sha256 of the span's uncompressed bytes
const spanRecordBytes = 72

// maxWindowRaw bounds a window record: state length, state, 32 KiB window.
const maxWindowRaw = 2 + 4096 + 32<<10

// maxWindowStored bounds a window record as stored: one that does not compress
// has a frame header and block headers more.
const maxWindowStored = maxWindowRaw + 1<<10

// Span is one row of a layer's span table. The uncompressed range follows from
// its position: span i covers [i*SpanBytes, (i+1)*SpanBytes).
type Span struct {
	OffsetCompressed int64 // of the first byte in the layer blob
	BytesCompressed  int64 // that decode the span
	Kind             inflate.Kind
	Skip             int64 // output bytes to discard first
	OffsetWindow     int64 // of the window record, from the start of the windows section
	BytesWindow      int64 // 0: no window record
	Digest           [32]byte
}

func encodeSpans(b []byte, spans []Span) []byte {
	for _, s := range spans {
		b = binary.LittleEndian.AppendUint64(b, uint64(s.OffsetCompressed))
		b = binary.LittleEndian.AppendUint64(b, uint64(s.BytesCompressed))
		b = binary.LittleEndian.AppendUint64(b, uint64(s.Skip))
		b = binary.LittleEndian.AppendUint64(b, uint64(s.OffsetWindow))
		b = binary.LittleEndian.AppendUint32(b, uint32(s.BytesWindow))
		b = append(b, byte(s.Kind), 0, 0, 0)
		b = append(b, s.Digest[:]...)
	}
	return b
}

// decodeSpans reads the n records of one layer whose blob has blobBytes bytes
// and whose windows section has windowsBytes.
func decodeSpans(b []byte, n, blobBytes, windowsBytes int64) ([]Span, error) {
	if n < 0 || n > int64(len(b))/spanRecordBytes {
		return nil, corrupt("span table", -1, "%d spans in %d bytes", n, len(b))
	}
	spans := make([]Span, n)
	for i := range spans {
		r := b[i*spanRecordBytes:]
		s := Span{
			OffsetCompressed: int64(binary.LittleEndian.Uint64(r)),
			BytesCompressed:  int64(binary.LittleEndian.Uint64(r[8:])),
			Kind:             inflate.Kind(r[36]),
			Skip:             int64(binary.LittleEndian.Uint64(r[16:])),
			OffsetWindow:     int64(binary.LittleEndian.Uint64(r[24:])),
			BytesWindow:      int64(binary.LittleEndian.Uint32(r[32:])),
		}
		copy(s.Digest[:], r[40:])
		if s.Kind > inflate.KindBlock || s.OffsetCompressed < 0 || s.BytesCompressed < 0 || s.OffsetCompressed > blobBytes-s.BytesCompressed ||
			s.Skip < 0 || s.Skip > int64(i)*SpanBytes ||
			s.BytesWindow > maxWindowStored || s.OffsetWindow < 0 || s.OffsetWindow > windowsBytes-s.BytesWindow {
			return nil, corrupt("span table", int64(i)*spanRecordBytes, "span %d is of no known kind or lies outside the layer or its windows", i)
		}
		spans[i] = s
	}
	return spans, nil
}

// encodeWindow packs the state and window of an access point; nil when it has
// neither.
func encodeWindow(p inflate.Point) []byte {
	if len(p.State) == 0 && len(p.Window) == 0 {
		return nil
	}
	raw := make([]byte, 0, 2+len(p.State)+len(p.Window))
	raw = binary.LittleEndian.AppendUint16(raw, uint16(len(p.State)))
	raw = append(raw, p.State...)
	raw = append(raw, p.Window...)
	return windowEncoderOnce().EncodeAll(raw, nil)
}

// Point makes the access point of span i of a layer from its window record,
// which is empty for spans without one. The record may be hostile: decoding
// from a wrong window gives wrong bytes, which the span's digest finds.
func (s Span) Point(i int, window []byte) (inflate.Point, error) {
	p := inflate.Point{Kind: s.Kind, OffsetUncompressed: int64(i) * SpanBytes, OffsetCompressed: s.OffsetCompressed, Skip: s.Skip}
	if int64(len(window)) != s.BytesWindow {
		return p, corrupt("window", s.OffsetWindow, "%d bytes, want %d", len(window), s.BytesWindow)
	}
	if len(window) == 0 {
		return p, nil
	}
	raw, err := decoderOnce().DecodeAll(window, make([]byte, 0, maxWindowRaw))
	if err != nil {
		return p, corrupt("window", s.OffsetWindow, "%v", err)
	}
	if len(raw) < 2 {
		return p, corrupt("window", s.OffsetWindow, "too short")
	}
	n := int(binary.LittleEndian.Uint16(raw))
	if 2+n > len(raw) || len(raw)-2-n > 32<<10 {
		return p, corrupt("window", s.OffsetWindow, "state of %d bytes in %d", n, len(raw))
	}
	p.State, p.Window = raw[2:2+n], raw[2+n:]
	return p, nil
}

// SpanError reports a span whose bytes are not those that the index promises.
type SpanError struct {
	Layer string // blob digest
	Span  int
	Err   error
}

func (e *SpanError) Error() string {
	return fmt.Sprintf("layer %s span %d: %v", e.Layer, e.Span, e.Err)
}
func (e *SpanError) Unwrap() error { return e.Err }
