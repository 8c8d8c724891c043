package inflate

import "encoding/binary"

// Layout of Point.State, little-endian:
//
//	offset size
//	0      1    layout version, 1
//	1      1    bits 0-2 consumed bits of the first blob byte, bit 3 the block is
//	            the member's last, bits 4-6 phase, bit 7 the block has the fixed code
//	2      2    bytes left of a stored block; 0 unless the phase is 1
//	4      2    bytes left of a match, at most 257, 0 if none
//	6      2    distance of that match less one; 0 if none
//	8      2    n, literal and length codes of a dynamic block (257-286), 0 if none
//	10     1    m, distance codes of it (1-30), 0 if none
//	11     ...  n+m code lengths of 4 bits, low nibble first; an odd last one is
//	            padded with 0
//
// Phases are 0 block header next, 1 stored block, 2 Huffman-coded block, 3 gzip
// trailer next. Points at the start of a member are KindMember and have no state.
const (
	stateVersion     = 1
	stateHeaderBytes = 11

	// MaxStateBytes is the most that Point.State can have.
	MaxStateBytes = stateHeaderBytes + (maxLitCodes+maxDistCodes+1)/2
)

// appendState appends d's state to b. d stands between calls of run.
func (d *inflater) appendState(b []byte) []byte {
	flags := byte(8-d.nbits)&7 | byte(d.phase)<<4
	if d.final {
		flags |= 1 << 3
	}
	huffman := d.phase == phaseHuffman
	if huffman && d.nlit == 0 {
		flags |= 1 << 7
	}
	distance := max(d.distance-1, 0)
	if d.length == 0 {
		distance = 0
	}
	b = append(b, stateVersion, flags)
	b = binary.LittleEndian.AppendUint16(b, uint16(d.stored))
	b = binary.LittleEndian.AppendUint16(b, uint16(d.length))
	b = binary.LittleEndian.AppendUint16(b, uint16(distance))
	if !huffman {
		return append(b, 0, 0, 0)
	}
	b = binary.LittleEndian.AppendUint16(b, uint16(d.nlit))
	b = append(b, byte(d.ndist))
	lens := d.lens[:d.nlit+d.ndist]
	for i := 0; i < len(lens); i += 2 {
		v := lens[i]
		if i+1 < len(lens) {
			v |= lens[i+1] << 4
		}
		b = append(b, v)
	}
	return b
}

// setState makes d, which was reset at a point, go on from a state. Whatever b
// is, d stays safe to run.
func (d *inflater) setState(b []byte) error {
	if len(b) < stateHeaderBytes {
		return d.corrupt("access point state is too short")
	}
	if b[0] != stateVersion {
		return d.corrupt("access point state has an unknown version")
	}
	flags := b[1]
	d.phase, d.final = phase(flags>>4&7), flags&(1<<3) != 0
	d.stored = int(binary.LittleEndian.Uint16(b[2:]))
	d.length = int(binary.LittleEndian.Uint16(b[4:]))
	d.distance = int(binary.LittleEndian.Uint16(b[6:])) + 1
	d.nlit, d.ndist = int(binary.LittleEndian.Uint16(b[8:])), int(b[10])
	fixed := flags&(1<<7) != 0
	huffman := d.phase == phaseHuffman
	switch {
	case d.phase > phaseTrailer,
		d.stored > 0 && d.phase != phaseStored,
		d.length >= maxMatch || d.length > 0 && !huffman,
		d.distance > windowBytes,
		fixed && !huffman,
		huffman && fixed != (d.nlit == 0),
		(!huffman || fixed) && (d.nlit != 0 || d.ndist != 0),
		huffman && !fixed && (d.nlit <= endOfBlock || d.nlit > maxLitCodes || d.ndist < 1 || d.ndist > maxDistCodes),
		len(b) != stateHeaderBytes+(d.nlit+d.ndist+1)/2:
		d.phase = phaseMember
		return d.corrupt("access point state is inconsistent")
	}
	d.members = 1 // the one that the point is in
	if used := uint(flags & 7); used > 0 {
		if len(d.in) == 0 {
			return d.truncated("access point")
		}
		d.bits, d.nbits, d.pos = uint64(d.in[0])>>used, 8-used, 1
	}
	if !huffman {
		return nil
	}
	if fixed {
		d.useFixed()
		return nil
	}
	for i := range d.lens[:d.nlit+d.ndist] {
		d.lens[i] = b[stateHeaderBytes+i/2] >> (i % 2 * 4) & 15
	}
	return d.useDynamic()
}
