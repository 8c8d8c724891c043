package layertar

import (
	"bytes"
	"math"
	"strconv"
)

// sparseKind is how a file's map of stored parts is written.
type sparseKind uint8

const (
	sparseNone sparseKind = iota
	sparseOld             // GNU: in the header block and extension blocks behind it
	sparsePAX0            // GNU.sparse 0.0 and 0.1: in PAX records
	sparsePAX1            // GNU.sparse 1.0: in blocks in front of the data
)

// sparseMap gathers a sparse file's map: offset and length in turn.
type sparseMap struct {
	pairs     []int64
	metaBytes int // of the map, against Limits.MetaBytes

	// PAX 1.0: decimal numbers, a line each; the first is the count of pairs.
	number   int64
	digits   int
	want     int64 // numbers still to come; -1: the count is
	finished bool
}

func (m *sparseMap) reset() { *m = sparseMap{pairs: m.pairs[:0], want: -1} }

// sparseKindOf says how the entry's map is stored.
func sparseKindOf(h *header, r *paxRecords) (k sparseKind, reason string) {
	if h.typ == 'S' {
		// star has an 'S' with another layout.
		if h.format != formatGNU {
			return 0, "sparse file in a header that is not GNU's"
		}
		return sparseOld, ""
	}
	major, minor := string(r.sparseMajor), string(r.sparseMinor)
	switch {
	case major == "1" && minor == "0":
		return sparsePAX1, ""
	case major == "0" && (minor == "0" || minor == "1"):
		return sparsePAX0, ""
	case major != "" || minor != "":
		return 0, "sparse format " + strconv.Quote(major+"."+minor) + " is unknown"
	case len(r.sparseMap) > 0 || len(r.sparsePairs) > 0:
		return sparsePAX0, "" // early writers gave no version
	}
	return sparseNone, ""
}

// addOld adds the pairs of a header or extension block up to the first empty one.
func (m *sparseMap) addOld(b []byte, pairs int) (reason string) {
	m.metaBytes += BlockBytes
	for ; pairs > 0 && b[0] != 0; pairs-- {
		offset, ok1 := parseNumber(b[:12])
		length, ok2 := parseNumber(b[12:24])
		if !ok1 || !ok2 {
			return "sparse map holds what is not a number"
		}
		m.pairs = append(m.pairs, offset, length)
		b = b[lenSparsePair:]
	}
	return ""
}

// addPAX0 takes the map of GNU.sparse 0.0 or 0.1 from the records.
func (m *sparseMap) addPAX0(r *paxRecords) (reason string) {
	add := func(b []byte) bool {
		x, err := strconv.ParseInt(string(b), 10, 64)
		m.pairs = append(m.pairs, x)
		return err == nil
	}
	ok := true
	if len(r.sparsePairs) > 0 {
		for _, b := range r.sparsePairs {
			ok = add(b) && ok
		}
	} else if len(r.sparseMap) > 0 {
		for b := range bytes.SplitSeq(r.sparseMap, []byte(",")) {
			ok = add(b) && ok
		}
	}
	count, err := strconv.ParseInt(string(r.sparseBlocks), 10, 64)
	if !ok || err != nil {
		return "sparse map holds what is not a number"
	}
	if len(m.pairs)%2 != 0 || count != int64(len(m.pairs)/2) {
		return "sparse map has not as many parts as it says"
	}
	return ""
}

// addPAX1 takes one block of a GNU.sparse 1.0 map; m.finished says it was the last.
func (m *sparseMap) addPAX1(b []byte) (reason string) {
	m.metaBytes += len(b)
	for _, c := range b {
		switch {
		case c >= '0' && c <= '9' && m.digits < 19:
			m.number = m.number*10 + int64(c-'0')
			m.digits++
			continue
		case c != '\n' || m.digits == 0 || m.number < 0: // 19 digits may just overflow
			return "sparse map holds what is not a number"
		}
		if m.want < 0 {
			if m.number > math.MaxInt64/2 {
				return "sparse map has too many parts"
			}
			m.want = 2 * m.number
		} else {
			m.pairs = append(m.pairs, m.number)
			m.want--
		}
		m.number, m.digits = 0, 0
		if m.want == 0 {
			m.finished = true
			return "" // the rest of the block is padding
		}
	}
	return ""
}

// segments turns the map into segments of a file of size bytes whose stored bytes
// are the storedBytes at offsetTar. Neighbours become one. File systems read the
// tar in place in blocks, so a segment that does not start and end on one (or at
// the file's end) cannot be used; GNU tar and Go write none.
func (m *sparseMap) segments(size, offsetTar, storedBytes int64) (segs []Segment, reason string) {
	var end, stored int64
	for i := 0; i+1 < len(m.pairs); i += 2 {
		offset, length := m.pairs[i], m.pairs[i+1]
		switch {
		case offset < 0 || length < 0 || offset > size || length > size-offset:
			return nil, "sparse map reaches out of the file"
		case offset < end:
			return nil, "sparse map has parts that overlap"
		}
		end = offset + length
		if length == 0 {
			continue
		}
		if n := len(segs); n > 0 && segs[n-1].Offset+segs[n-1].Length == offset {
			segs[n-1].Length += length
		} else {
			segs = append(segs, Segment{Offset: offset, Length: length, OffsetTar: offsetTar + stored})
		}
		stored += length
	}
	if stored != storedBytes {
		return nil, "sparse map does not match the stored bytes"
	}
	for _, s := range segs {
		if s.Offset%BlockBytes != 0 || s.OffsetTar%BlockBytes != 0 {
			return nil, "sparse part does not start on a 512-byte block"
		}
		if s.Length%BlockBytes != 0 && s.Offset+s.Length != size {
			return nil, "sparse part does not end on a 512-byte block"
		}
	}
	switch {
	case size == 0, len(segs) == 1 && segs[0].Length == size:
		return nil, ""
	case len(segs) == 0:
		return []Segment{{OffsetTar: offsetTar}}, ""
	}
	return segs, ""
}
