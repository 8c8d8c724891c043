package index

import (
	"encoding/binary"
	"strings"

	"github.com/thaw-project/thaw/internal/layertar"
)

// Limits of a decoded entries section; layertar refuses more than these when
// an index is built.
const (
	maxEntries     = 10_000_000
	maxEntryString = 1 << 16
	maxEntryXattrs = 1 << 15
	maxSegments    = 1 << 20
	// maxEntriesBytes bounds all entries of a layer in memory, counted as
	// layertar.Limits.TotalBytes is.
	maxEntriesBytes   = 1 << 30
	entryBytes        = 128
	entrySegmentBytes = 24
)

// encodeEntries writes the entries of a layer's tar, in tar order. All numbers
// are varints (zigzag where they may be negative), strings carry their length;
// a path is stored as the length it shares with the path before and the rest.
func encodeEntries(entries []layertar.Entry) []byte {
	b := make([]byte, 0, 64*len(entries))
	last, lastOffset := "", int64(0)
	for i := range entries {
		e := &entries[i]
		shared := 0
		for shared < len(e.Path) && shared < len(last) && e.Path[shared] == last[shared] {
			shared++
		}
		b = binary.AppendUvarint(b, uint64(shared))
		b = appendString(b, e.Path[shared:])
		b = append(b, byte(e.Type))
		b = binary.AppendUvarint(b, uint64(e.Mode))
		b = binary.AppendUvarint(b, uint64(e.UID))
		b = binary.AppendUvarint(b, uint64(e.GID))
		b = binary.AppendVarint(b, e.SizeBytes)
		b = binary.AppendVarint(b, e.ModTimeSec)
		b = binary.AppendUvarint(b, uint64(e.ModTimeNsec))
		b = appendString(b, e.Link)
		b = binary.AppendUvarint(b, uint64(e.DevMajor))
		b = binary.AppendUvarint(b, uint64(e.DevMinor))
		b = binary.AppendVarint(b, e.OffsetHeader-lastOffset)
		b = binary.AppendVarint(b, e.OffsetTar-e.OffsetHeader)
		b = binary.AppendUvarint(b, uint64(len(e.Xattrs)))
		for _, x := range e.Xattrs {
			b = appendString(b, x.Name)
			b = binary.AppendUvarint(b, uint64(len(x.Value)))
			b = append(b, x.Value...)
		}
		// 0: one extent; n+1: n segments, so that a file of holes is told apart.
		if e.Segments == nil {
			b = append(b, 0)
		} else {
			b = binary.AppendUvarint(b, uint64(len(e.Segments))+1)
		}
		for _, s := range e.Segments {
			b = binary.AppendVarint(b, s.Offset)
			b = binary.AppendVarint(b, s.Length)
			b = binary.AppendVarint(b, s.OffsetTar)
		}
		last, lastOffset = e.Path, e.OffsetHeader
	}
	return b
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// entryReader reads varints and strings, and remembers the first fault.
type entryReader struct {
	b   []byte
	at  int
	bad bool
}

func (r *entryReader) uvarint(limit uint64) uint64 {
	v, n := binary.Uvarint(r.b[r.at:])
	if n <= 0 || v > limit {
		r.bad = true
		return 0
	}
	r.at += n
	return v
}

func (r *entryReader) varint() int64 {
	v, n := binary.Varint(r.b[r.at:])
	if n <= 0 {
		r.bad = true
		return 0
	}
	r.at += n
	return v
}

func (r *entryReader) bytes() []byte {
	n := int(r.uvarint(maxEntryString))
	if n > len(r.b)-r.at {
		r.bad = true
		return nil
	}
	r.at += n
	return r.b[r.at-n : r.at]
}

func (r *entryReader) byte() byte {
	if r.at >= len(r.b) {
		r.bad = true
		return 0
	}
	r.at++
	return r.b[r.at-1]
}

// decodeEntries reads n entries of a layer of tarBytes bytes.
func decodeEntries(b []byte, n, tarBytes int64) ([]layertar.Entry, error) {
	const minEntryBytes = 14
	if n < 0 || n > maxEntries || n > int64(len(b))/minEntryBytes {
		return nil, corrupt("entries", -1, "%d entries in %d bytes", n, len(b))
	}
	r := entryReader{b: b}
	entries := make([]layertar.Entry, n)
	last, lastOffset, total := "", int64(0), int64(0)
	for i := range entries {
		start := r.at
		e := &entries[i]
		r.entry(e, last, lastOffset)
		if r.bad || !plausible(e, tarBytes) {
			return nil, corrupt("entries", int64(start), "entry %d", i)
		}
		total += entryBytes + int64(len(e.Path)) + entrySegmentBytes*int64(len(e.Segments))
		if total += int64(r.at - start); total > maxEntriesBytes {
			return nil, corrupt("entries", int64(start), "entries take more than %d bytes", maxEntriesBytes)
		}
		last, lastOffset = e.Path, e.OffsetHeader
	}
	if r.at != len(b) {
		return nil, corrupt("entries", int64(r.at), "%d bytes after the last entry", len(b)-r.at)
	}
	return entries, nil
}

func (r *entryReader) entry(e *layertar.Entry, last string, lastOffset int64) {
	shared := int(r.uvarint(uint64(len(last))))
	e.Path = last[:shared] + string(r.bytes())
	e.Type = layertar.Type(r.byte())
	e.Mode = uint32(r.uvarint(07777))
	e.UID = uint32(r.uvarint(1<<32 - 1))
	e.GID = uint32(r.uvarint(1<<32 - 1))
	e.SizeBytes = r.varint()
	e.ModTimeSec = r.varint()
	e.ModTimeNsec = uint32(r.uvarint(999_999_999))
	e.Link = string(r.bytes())
	e.DevMajor = uint32(r.uvarint(1<<32 - 1))
	e.DevMinor = uint32(r.uvarint(1<<32 - 1))
	e.OffsetHeader = lastOffset + r.varint()
	e.OffsetTar = e.OffsetHeader + r.varint()
	for range r.uvarint(maxEntryXattrs) {
		if r.bad {
			return
		}
		e.Xattrs = append(e.Xattrs, layertar.Xattr{Name: string(r.bytes()), Value: append([]byte{}, r.bytes()...)})
	}
	segments := r.uvarint(maxSegments)
	if segments > 0 {
		e.Segments = []layertar.Segment{}
	}
	for range max(segments, 1) - 1 {
		if r.bad {
			return
		}
		e.Segments = append(e.Segments, layertar.Segment{Offset: r.varint(), Length: r.varint(), OffsetTar: r.varint()})
	}
}

// plausible checks what later code relies on: clean paths, data inside the tar.
func plausible(e *layertar.Entry, tarBytes int64) bool {
	if len(e.Path) > 4096 || e.SizeBytes < 0 || e.OffsetHeader < 0 || e.OffsetTar < 0 || !cleanPath(e.Path) {
		return false
	}
	if e.Type == layertar.TypeHardlink && !cleanPath(e.Link) {
		return false
	}
	if e.Segments == nil {
		return e.Type != layertar.TypeReg || e.SizeBytes == 0 ||
			e.OffsetTar%512 == 0 && e.OffsetTar <= tarBytes && e.SizeBytes <= tarBytes-e.OffsetTar
	}
	end := int64(0)
	for _, s := range e.Segments {
		if s.Offset < end || s.Offset%512 != 0 || s.OffsetTar%512 != 0 || s.Length < 0 || s.Length > e.SizeBytes-s.Offset ||
			s.OffsetTar < 0 || s.OffsetTar > tarBytes || s.Length > tarBytes-s.OffsetTar {
			return false
		}
		end = s.Offset + s.Length
	}
	return true
}

// cleanPath reports whether every component of p is a plain name.
func cleanPath(p string) bool {
	for name := range strings.SplitSeq(p, "/") {
		if name == ".." || name == "." || name == "" && p != "" || len(name) > 255 || strings.IndexByte(name, 0) >= 0 {
			return false
		}
	}
	return true
}
