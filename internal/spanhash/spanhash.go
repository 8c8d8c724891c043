// Package spanhash hashes a stream, and each part of it for itself, in one pass.
//
// A layer's tar has a digest as a whole, its diffID, and one for each of its
// spans. Both need SHA-256 of the same bytes, whose message schedule is the same
// as long as parts begin at whole blocks; and the SHA instructions of a CPU wait for
// each other within one hash. So two hashes at once take hardly longer than one.
// Where there are no such instructions it is crypto/sha256 twice.
package spanhash

import (
	"crypto/sha256"
	"encoding"
	"encoding/binary"
	"hash"
)

// initial is the state that SHA-256 begins with (FIPS 180-4, 5.3.3).
var initial = [8]uint32{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19}

// A Stream is the SHA-256 of all parts given so far.
type Stream struct {
	state  [8]uint32 // after hashed bytes, whole blocks; until plain is there
	hashed uint64
	plain  hash.Hash // takes over from the first part that does not end with a block
}

// New returns the hash of nothing yet.
func New() *Stream {
	s := &Stream{state: initial}
	if !accelerated {
		s.plain = sha256.New()
	}
	return s
}

// Next adds a part to the stream, and returns the part's own SHA-256. It is fast
// as long as all parts are whole blocks of 64 bytes.
func (s *Stream) Next(part []byte) [sha256.Size]byte {
	if s.plain != nil {
		s.plain.Write(part)
		return sha256.Sum256(part)
	}
	whole, own := len(part)&^(sha256.BlockSize-1), initial
	blocks(&s.state, &own, part[:whole])
	s.hashed += uint64(whole)
	rest := part[whole:]
	if len(rest) > 0 {
		s.plain = resume(&s.state, s.hashed)
		s.plain.Write(rest)
	}
	h := resume(&own, uint64(whole))
	h.Write(rest)
	return [sha256.Size]byte(h.Sum(nil))
}

// Sum returns the SHA-256 of all parts. More may follow.
func (s *Stream) Sum() [sha256.Size]byte {
	h := s.plain
	if h == nil {
		h = resume(&s.state, s.hashed)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// resume returns crypto/sha256 after n bytes, whole blocks, that led to a state.
func resume(state *[8]uint32, n uint64) hash.Hash {
	b := append(make([]byte, 0, 108), "sha\x03"...) // as its MarshalBinary has it
	for _, v := range state {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	b = binary.BigEndian.AppendUint64(b[:4+sha256.Size+sha256.BlockSize], n)
	h := sha256.New()
	if err := h.(encoding.BinaryUnmarshaler).UnmarshalBinary(b); err != nil {
		panic("crypto/sha256 does not take a state: " + err.Error()) // the tests would have seen it
	}
	return h
}
