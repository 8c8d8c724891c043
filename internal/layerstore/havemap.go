package layerstore

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
)

// The have file, little-endian; docs/formats/layerstore.md has the table.
const (
	haveMagic      = "thawhave"
	haveVersion    = 1
	haveHeaderSize = 80
	haveSumSize    = sha256.Size

	flagClean    = 1 << 0 // spans without a bit are not on disk
	flagComplete = 1 << 1 // the diffID holds
	flagsKnown   = flagClean | flagComplete
)

// bootID is the kernel's random name for its current run. The zero value means
// unknown and equals nothing.
type bootID [16]byte

func (b bootID) same(o bootID) bool { return b == o && b != bootID{} }

func parseBootID(s string) (bootID, error) {
	var b bootID
	raw, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(s), "-", ""))
	if err != nil || len(raw) != len(b) {
		return b, fmt.Errorf("parse boot id %q: not a UUID", s)
	}
	copy(b[:], raw)
	return b, nil
}

// haveMap is the content of a have file.
type haveMap struct {
	flags      uint16
	spans      int
	generation uint64
	mtimeNs    int64 // of the tar, for the flags
	boot       bootID
	table      [32]byte
	bits       []uint64 // ceil(spans/64) words; bits past spans are zero
}

func (h *haveMap) has(i int) bool { return h.bits[i>>6]&(1<<(i&63)) != 0 }

// full reports whether every span has its bit.
func (h *haveMap) full() bool {
	for i := range h.spans {
		if !h.has(i) {
			return false
		}
	}
	return true
}

func bitmapBytes(spans int) int { return (spans + 7) / 8 }
func bitmapWords(spans int) int { return (spans + 63) / 64 }

func encodeHave(h *haveMap) []byte {
	n := bitmapBytes(h.spans)
	b := make([]byte, haveHeaderSize, haveHeaderSize+len(h.bits)*8+haveSumSize)
	copy(b, haveMagic)
	binary.LittleEndian.PutUint16(b[8:], haveVersion)
	binary.LittleEndian.PutUint16(b[10:], h.flags)
	binary.LittleEndian.PutUint32(b[12:], uint32(h.spans))
	binary.LittleEndian.PutUint64(b[16:], h.generation)
	binary.LittleEndian.PutUint64(b[24:], uint64(h.mtimeNs))
	copy(b[32:48], h.boot[:])
	copy(b[48:80], h.table[:])
	for _, w := range h.bits {
		b = binary.LittleEndian.AppendUint64(b, w)
	}
	b = b[:haveHeaderSize+n]
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

func decodeHave(b []byte) (*haveMap, error) {
	if len(b) < haveHeaderSize+haveSumSize {
		return nil, &CorruptError{Reason: fmt.Sprintf("%d bytes are too few", len(b))}
	}
	if string(b[:8]) != haveMagic {
		return nil, &CorruptError{Reason: "wrong magic"}
	}
	if v := binary.LittleEndian.Uint16(b[8:]); v != haveVersion {
		return nil, &CorruptError{Reason: fmt.Sprintf("version %d is not known", v)}
	}
	body, sum := b[:len(b)-haveSumSize], b[len(b)-haveSumSize:]
	if got := sha256.Sum256(body); !bytes.Equal(got[:], sum) {
		return nil, &CorruptError{Reason: "checksum does not match"}
	}
	spans := binary.LittleEndian.Uint32(b[12:])
	if spans > maxSpans || len(body) != haveHeaderSize+bitmapBytes(int(spans)) {
		return nil, &CorruptError{Reason: fmt.Sprintf("%d spans in %d bytes", spans, len(b))}
	}
	h := &haveMap{
		flags:      binary.LittleEndian.Uint16(b[10:]),
		spans:      int(spans),
		generation: binary.LittleEndian.Uint64(b[16:]),
		mtimeNs:    int64(binary.LittleEndian.Uint64(b[24:])),
		boot:       bootID(b[32:48]),
		table:      [32]byte(b[48:80]),
		bits:       make([]uint64, bitmapWords(int(spans))),
	}
	if h.flags&^flagsKnown != 0 {
		return nil, &CorruptError{Reason: fmt.Sprintf("flags %#x are not known", h.flags)}
	}
	for i, c := range body[haveHeaderSize:] {
		h.bits[i>>3] |= uint64(c) << (i & 7 * 8)
	}
	if tail := h.spans & 63; tail != 0 && h.bits[len(h.bits)-1]>>tail != 0 {
		return nil, &CorruptError{Reason: "bits past the last span"}
	}
	if h.flags&flagComplete != 0 && !h.full() {
		return nil, &CorruptError{Reason: "complete with spans missing"}
	}
	return h, nil
}
