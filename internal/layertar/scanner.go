package layertar

import (
	"errors"
	"fmt"
	"io"
)

// errClosed is what Write returns after Close.
var errClosed = errors.New("write tar: scanner is closed")

// state is what the scanner reads next, once skip bytes have gone by.
type state uint8

const (
	stateHeader    state = iota
	stateMeta            // the data of an 'x', 'g', 'L' or 'K' header
	stateSparseOld       // an extension block of an 'S' header
	stateSparseMap       // a block of a GNU.sparse 1.0 map
	stateEnd             // two zero blocks were seen
)

// Scanner finds the entries of a tar that is written to it. It is not for use by
// several goroutines at once.
type Scanner struct {
	limits Limits
	emit   func(Entry) error
	err    error // sticky

	state  state
	offset int64 // of the next byte in the tar
	skip   int64 // bytes to step over first
	pad    int64 // how many of those are padding, at the end
	blk    block // a block cut in two by Writes
	have   int   // bytes of it
	zero   bool  // the block before was all zero

	// The headers in front of an entry: where they start and what they said.
	first              int64
	inGroup            bool
	metaType           byte
	metaLeft           int64
	meta               *[]byte // where metaLeft bytes go: one of the following
	pax                paxRecords
	paxBuf, discardBuf []byte
	longName, longLink []byte
	nameBuf            []byte

	// The entry at hand: its name for messages, and what waits for its sparse map.
	name       []byte
	pending    Entry
	storedLeft int64 // stored bytes behind the blocks read so far
	sparse     sparseMap

	entries    int
	totalBytes int64
	aufsLinks  map[string]Entry // files in .wh..wh.plnk, by clean path
}

// NewScanner returns a scanner at the start of a tar. emit is called from Write with
// each entry as soon as its headers are complete, before its data has passed; what
// it is given is its to keep, and its error stops the scanner. Entries count only
// once Close has returned nil: the data of the last one may be missing.
func NewScanner(limits Limits, emit func(Entry) error) *Scanner {
	return &Scanner{limits: limits.withDefaults(), emit: emit}
}

// Write takes the next bytes of the tar and keeps none of p. After an error (an
// [*EntryError], or what emit returned) it takes no more and returns the same again.
func (s *Scanner) Write(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	total := len(p)
	for len(p) > 0 {
		n, err := s.step(p)
		s.offset += int64(n)
		p = p[n:]
		if err != nil {
			s.err = err
			break
		}
	}
	return total - len(p), s.err
}

// Close says that the tar is complete. It fails where the tar is not: in the middle
// of a header or of an entry's data (the [*EntryError] wraps io.ErrUnexpectedEOF).
// The end blocks may be missing, and so may the padding of the last entry.
func (s *Scanner) Close() error {
	switch {
	case errors.Is(s.err, errClosed):
		return nil
	case s.err != nil:
		return s.err
	}
	if s.state == stateEnd || (s.state == stateHeader && s.skip <= s.pad && s.have == 0) {
		s.err = errClosed
		return nil
	}
	e := s.refuse(s.name, "tar ends inside a header")
	if s.skip > s.pad {
		e.Reason = fmt.Sprintf("tar ends %d bytes before the entry's data does", s.skip-s.pad)
	} else if s.state == stateHeader {
		e.Path, e.OffsetHeader = "", s.offset-int64(s.have)
	}
	e.Err = io.ErrUnexpectedEOF
	s.err = e
	return e
}

// step takes at least one byte of p, and returns how many it took.
func (s *Scanner) step(p []byte) (int, error) {
	if s.skip > 0 {
		n := min(int64(len(p)), s.skip)
		s.skip -= n
		return int(n), nil
	}
	switch s.state {
	case stateEnd:
		return len(p), nil
	case stateMeta:
		n := min(int64(len(p)), s.metaLeft)
		*s.meta = append(*s.meta, p[:n]...)
		s.metaLeft -= n
		if s.metaLeft > 0 {
			return int(n), nil
		}
		return int(n), s.metaDone()
	}
	if s.have == 0 && len(p) >= BlockBytes {
		return BlockBytes, s.block((*block)(p), s.offset)
	}
	n := copy(s.blk[s.have:], p)
	s.have += n
	if s.have < BlockBytes {
		return n, nil
	}
	s.have = 0
	return n, s.block(&s.blk, s.offset+int64(n)-BlockBytes)
}

// block takes a whole block, which is at offset at.
func (s *Scanner) block(b *block, at int64) error {
	switch s.state {
	case stateSparseOld:
		return s.sparseOldBlock(b[:], sparsePairsExt, b[offExtExtended], at)
	case stateSparseMap:
		return s.sparseMapBlock(b, at)
	}
	if !s.inGroup {
		s.first = at
	}
	if isZero(b) {
		if s.zero {
			s.state = stateEnd
		}
		s.zero = true
		return nil
	}
	if s.zero {
		return s.refuse(nil, "data follows a zero block")
	}
	if !checksumOK(b) {
		return s.refuse(nil, "header checksum is wrong")
	}
	var h header
	var reason string
	h, s.nameBuf, reason = parseHeader(b, s.nameBuf)
	if reason != "" {
		return s.refuse(h.name, reason)
	}
	s.inGroup = true
	switch h.typ {
	case 'x', 'g', 'L', 'K':
		return s.metaHeader(&h)
	}
	return s.entry(b, &h, at)
}

// refuse makes the error about the entry at hand.
func (s *Scanner) refuse(name []byte, reason string) *EntryError {
	return &EntryError{Path: string(name), OffsetHeader: s.first, Reason: reason}
}

// metaHeader starts to gather the data of a header about the next entry.
func (s *Scanner) metaHeader(h *header) error {
	if h.size < 0 || h.size > int64(s.limits.MetaBytes) {
		return s.refuse(h.name, fmt.Sprintf("extended header of %d bytes (limit %d)", h.size, s.limits.MetaBytes))
	}
	s.name = append(s.name[:0], h.name...)
	s.metaType, s.metaLeft = h.typ, h.size
	switch h.typ {
	case 'x':
		s.meta = &s.paxBuf
	case 'g':
		s.meta = &s.discardBuf
	case 'L':
		s.meta = &s.longName
	case 'K':
		s.meta = &s.longLink
	}
	*s.meta = (*s.meta)[:0]
	s.state = stateMeta
	if s.metaLeft == 0 {
		return s.metaDone()
	}
	return nil
}

func (s *Scanner) metaDone() error {
	n := int64(len(*s.meta))
	s.state = stateHeader
	s.pad = -n & (BlockBytes - 1)
	s.skip = s.pad
	reason := ""
	switch s.metaType {
	case 'x':
		s.pax.reset()
		reason = s.pax.parse(s.paxBuf)
	case 'g':
		// No image tool applies these, so neither do we, but they part an entry
		// from the headers in front of them.
		s.endGroup()
		reason = s.pax.parse(s.discardBuf)
		s.pax.reset()
	case 'L':
		s.longName = cstring(s.longName)
	case 'K':
		s.longLink = cstring(s.longLink)
	}
	if reason != "" {
		return s.refuse(s.name, reason)
	}
	return nil
}

// endGroup forgets the headers in front of the entry.
func (s *Scanner) endGroup() {
	s.inGroup = false
	s.pax.reset()
	s.longName, s.longLink = s.longName[:0], s.longLink[:0]
}
