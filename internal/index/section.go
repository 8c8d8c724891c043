package index

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"slices"
	"sync"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"
)

// The container of both blobs: a header, a section table, the sections.
//
//	offset size
//	0      8    magic "thawindx"
//	8      2    version, 1
//	10     2    kind: 1 head of an image, 2 layer
//	12     4    number of sections, at most 64
//	16     32*n section table: type u32, encoding u32, offset u64, stored bytes u64, raw bytes u64
//
// All integers are little-endian. Sections lie in table order without overlap.
const (
	magic          = "thawindx"
	version        = 1
	headerBytes    = 16
	sectionBytes   = 32
	maxSections    = 64
	maxSectionRaw  = 1 << 30
	maxRatio       = 512 // raw to stored bytes, of sections over freeRaw
	freeRaw        = 1 << 20
	kindImage      = 1
	kindLayer      = 2
	encodingRaw    = 0
	encodingZstd   = 1
	encodingFrames = 2 // zstd frames of frameRaw bytes each, that can be unpacked side by side
	frameRaw       = 1 << 20
	sectionMeta    = 1 // JSON
	sectionSpans   = 2 // span records
	sectionEntries = 3 // entries of a layer's tar
	sectionWindows = 4 // window records, in span order
	sectionErofs   = 5 // EROFS metadata image
)

// CorruptError reports an index blob that does not follow the format.
type CorruptError struct {
	Where  string // part of the blob, such as "section table"
	Offset int64  // byte in the blob or section, -1 when unknown
	Reason string
}

func (e *CorruptError) Error() string {
	if e.Offset < 0 {
		return fmt.Sprintf("corrupt index: %s: %s", e.Where, e.Reason)
	}
	return fmt.Sprintf("corrupt index: %s at byte %d: %s", e.Where, e.Offset, e.Reason)
}

func corrupt(where string, offset int64, format string, args ...any) error {
	return &CorruptError{Where: where, Offset: offset, Reason: fmt.Sprintf(format, args...)}
}

// section is one part of a blob, as stored.
type section struct {
	kind     uint32
	encoding uint32
	rawBytes int64
	stored   []byte
}

var (
	encoderOnce = sync.OnceValue(func() *zstd.Encoder { return newEncoder(zstd.SpeedBetterCompression, 2*frameRaw) })
	// Windows are many and encoded while a layer streams by: the better level
	// makes them 3 % smaller and costs half as much again.
	windowEncoderOnce = sync.OnceValue(func() *zstd.Encoder { return newEncoder(zstd.SpeedDefault, windowHistory) })
	decoderOnce       = sync.OnceValue(func() *zstd.Decoder {
		d, err := zstd.NewReader(nil, zstd.WithDecoderMaxMemory(maxSectionRaw), zstd.WithDecoderConcurrency(0),
			zstd.WithDecodeAllCapLimit(true))
		if err != nil {
			panic(err) // the options are constants
		}
		return d
	})
)

func newEncoder(level zstd.EncoderLevel, history int) *zstd.Encoder {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(level), zstd.WithWindowSize(history), zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true))
	if err != nil {
		panic(err) // the options are constants
	}
	return e
}

// windowHistory is the encoder's memory of a window record, which is smaller.
const windowHistory = 64 << 10

// packed makes a compressed section, unless a reader would take it for a bomb.
// A large one is cut into frames, because a start waits for it.
func packed(kind uint32, raw []byte) section {
	if len(raw) > 2*frameRaw {
		if s, ok := packedFrames(kind, raw); ok {
			return s
		}
	}
	stored := encoderOnce().EncodeAll(raw, nil)
	if !plausibleRatio(len(stored), int64(len(raw))) {
		return plain(kind, raw)
	}
	return section{kind: kind, encoding: encodingZstd, rawBytes: int64(len(raw)), stored: stored}
}

// packedFrames makes a section of frames: for each its stored size (u32), then
// all of them. Each covers frameRaw bytes, the last one what is left.
func packedFrames(kind uint32, raw []byte) (section, bool) {
	var sizes, frames []byte
	for part := range slices.Chunk(raw, frameRaw) {
		frame := encoderOnce().EncodeAll(part, nil)
		sizes = binary.LittleEndian.AppendUint32(sizes, uint32(len(frame)))
		frames = append(frames, frame...)
	}
	stored := append(sizes, frames...)
	return section{kind: kind, encoding: encodingFrames, rawBytes: int64(len(raw)), stored: stored}, plausibleRatio(len(stored), int64(len(raw)))
}

// unpackFrames undoes packedFrames, on all CPUs.
func unpackFrames(stored []byte, rawBytes int64) ([]byte, error) {
	count := (rawBytes + frameRaw - 1) / frameRaw
	if !plausibleRatio(len(stored), rawBytes) || 4*count > int64(len(stored)) {
		return nil, fmt.Errorf("%d bytes claim to unpack to %d", len(stored), rawBytes)
	}
	out := make([]byte, rawBytes)
	frames := stored[4*count:]
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i := range count {
		n := binary.LittleEndian.Uint32(stored[4*i:])
		if int64(n) > int64(len(frames)) {
			g.Wait()
			return nil, fmt.Errorf("frame %d of %d bytes, %d are left", i, n, len(frames))
		}
		frame, at := frames[:n], out[i*frameRaw:min((i+1)*frameRaw, rawBytes)]
		frames = frames[n:]
		g.Go(func() error {
			part, err := decoderOnce().DecodeAll(frame, at[:0:len(at)])
			if err == nil && len(part) != len(at) {
				err = fmt.Errorf("unpacks to %d bytes, want %d", len(part), len(at))
			}
			if err != nil {
				return fmt.Errorf("frame %d: %w", i, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if len(frames) != 0 {
		return nil, fmt.Errorf("%d bytes after the last frame", len(frames))
	}
	return out, nil
}

// plausibleRatio bounds what a small blob can make its reader unpack.
func plausibleRatio(storedBytes int, rawBytes int64) bool {
	return rawBytes >= 0 && rawBytes <= maxSectionRaw && rawBytes <= max(freeRaw, int64(storedBytes)*maxRatio)
}

func plain(kind uint32, raw []byte) section {
	return section{kind: kind, encoding: encodingRaw, rawBytes: int64(len(raw)), stored: raw}
}

// raw returns the section's bytes, decompressed. The size is bounded by what
// the table claims, and the claim by maxSectionRaw.
func (s section) raw() ([]byte, error) {
	if s.encoding == encodingRaw {
		return s.stored, nil
	}
	unpack := unpack
	if s.encoding == encodingFrames {
		unpack = unpackFrames
	}
	out, err := unpack(s.stored, s.rawBytes)
	if err != nil {
		return nil, corrupt(fmt.Sprintf("section %d", s.kind), -1, "%v", err)
	}
	return out, nil
}

// unpack decompresses one zstd frame into exactly rawBytes bytes.
func unpack(stored []byte, rawBytes int64) ([]byte, error) {
	if !plausibleRatio(len(stored), rawBytes) {
		return nil, fmt.Errorf("%d bytes claim to unpack to %d", len(stored), rawBytes)
	}
	out, err := decoderOnce().DecodeAll(stored, make([]byte, 0, rawBytes))
	if err != nil {
		return nil, err
	}
	if int64(len(out)) != rawBytes {
		return nil, fmt.Errorf("unpacks to %d bytes, want %d", len(out), rawBytes)
	}
	return out, nil
}

// encodeSections lays the sections out and returns the blob and the offset of
// each section in it.
func encodeSections(kind uint16, sections []section) ([]byte, []int64) {
	size := int64(headerBytes + sectionBytes*len(sections))
	offsets := make([]int64, len(sections))
	for i, s := range sections {
		offsets[i] = size
		size += int64(len(s.stored))
	}
	b := make([]byte, 0, size)
	b = append(b, magic...)
	b = binary.LittleEndian.AppendUint16(b, version)
	b = binary.LittleEndian.AppendUint16(b, kind)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(sections)))
	for i, s := range sections {
		b = binary.LittleEndian.AppendUint32(b, s.kind)
		b = binary.LittleEndian.AppendUint32(b, s.encoding)
		b = binary.LittleEndian.AppendUint64(b, uint64(offsets[i]))
		b = binary.LittleEndian.AppendUint64(b, uint64(len(s.stored)))
		b = binary.LittleEndian.AppendUint64(b, uint64(s.rawBytes))
	}
	for _, s := range sections {
		b = append(b, s.stored...)
	}
	return b, offsets
}

// decodeSections reads the container. The sections alias b.
func decodeSections(b []byte, kind uint16) ([]section, []int64, error) {
	if len(b) < headerBytes || string(b[:8]) != magic {
		return nil, nil, corrupt("header", 0, "not a thaw index")
	}
	if v := binary.LittleEndian.Uint16(b[8:]); v != version {
		return nil, nil, corrupt("header", 8, "version %d, this thaw reads version %d", v, version)
	}
	if k := binary.LittleEndian.Uint16(b[10:]); k != kind {
		return nil, nil, corrupt("header", 10, "kind %d, want %d", k, kind)
	}
	n := int64(binary.LittleEndian.Uint32(b[12:]))
	if n > maxSections || headerBytes+sectionBytes*n > int64(len(b)) {
		return nil, nil, corrupt("header", 12, "%d sections in %d bytes", n, len(b))
	}
	sections, offsets := make([]section, n), make([]int64, n)
	end := uint64(headerBytes + sectionBytes*n)
	for i := range sections {
		at := headerBytes + sectionBytes*i
		r := b[at:]
		offset, stored, raw := binary.LittleEndian.Uint64(r[8:]), binary.LittleEndian.Uint64(r[16:]), binary.LittleEndian.Uint64(r[24:])
		if offset != end || stored > uint64(len(b)) || offset+stored > uint64(len(b)) {
			return nil, nil, corrupt("section table", int64(at), "section at %d+%d of %d bytes", offset, stored, len(b))
		}
		s := section{kind: binary.LittleEndian.Uint32(r), encoding: binary.LittleEndian.Uint32(r[4:]), stored: b[offset : offset+stored]}
		if raw > maxSectionRaw && s.kind != sectionWindows || s.encoding == encodingRaw && raw != stored {
			return nil, nil, corrupt("section table", int64(at), "section claims %d raw bytes", raw)
		}
		s.rawBytes = int64(raw)
		sections[i], offsets[i], end = s, int64(offset), offset+stored
	}
	if end != uint64(len(b)) {
		return nil, nil, corrupt("section table", -1, "%d bytes after the last section", uint64(len(b))-end)
	}
	return sections, offsets, nil
}

// find returns the one section of a kind that a blob must have.
func find(sections []section, kind uint32) (section, int, error) {
	at := -1
	for i, s := range sections {
		if s.kind == kind {
			if at >= 0 {
				return section{}, 0, corrupt("section table", -1, "section %d stands twice", kind)
			}
			at = i
		}
	}
	if at < 0 {
		return section{}, 0, corrupt("section table", -1, "section %d is missing", kind)
	}
	if s := sections[at]; s.encoding > encodingFrames {
		return section{}, 0, corrupt("section table", -1, "section %d has unknown encoding %d", kind, s.encoding)
	}
	return sections[at], at, nil
}

// unknown returns the sections that this version does not know. They are
// written again by Encode, so that a newer index survives an older tool.
func unknown(sections []section, known ...uint32) []section {
	var rest []section
next:
	for _, s := range sections {
		for _, k := range known {
			if s.kind == k {
				continue next
			}
		}
		rest = append(rest, s)
	}
	return rest
}
