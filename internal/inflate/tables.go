package inflate

import "math/bits"

// Limits of RFC 1951 and the sizes of the decoding tables. A table is indexed
// by the next litBits or distBits bits of input; longer codes go on in
// sub-tables behind it. The table arrays are powers of two larger than any code
// can need (2342 and 402 entries), so that a masked index is always in bounds.
const (
	maxCodeBits  = 15
	maxLitCodes  = 286 // used by dynamic blocks; the fixed code has 288
	maxDistCodes = 30
	endOfBlock   = 256
	windowBytes  = 1 << 15
	maxMatch     = 258

	litBits  = 11
	distBits = 8
	preBits  = 7
	litSize  = 4096
	distSize = 512
	litMask  = 1<<litBits - 1
	distMask = 1<<distBits - 1
)

// A literal/length table entry:
//
//	31     literal: 8-15 the byte, 0-7 bits to consume
//	30     exception: 29 sub-table (16-27 its start, 8-11 its index bits, 0-7 bits
//	       to consume), 28 end of block (0-7 bits to consume), else no such code
//	else   a length: 16-24 base, 8-11 code bits, 0-7 code and extra bits
//
// A distance entry is a length entry with a base of 16-30, and 31 for an
// exception: 30 no such code, else a sub-table as above.
const (
	litFlag       = 1 << 31
	litException  = 1 << 30
	litSub        = 1 << 29
	litEnd        = 1 << 28
	litInvalid    = litException
	distException = 1 << 31
	distBad       = 1 << 30
	distInvalid   = distException | distBad
)

var (
	litSyms  = makeLitSyms()
	distSyms = makeDistSyms()
)

// makeLitSyms returns each symbol's entry without its code length.
func makeLitSyms() (syms [288]uint32) {
	for i := range 256 {
		syms[i] = litFlag | uint32(i)<<8
	}
	syms[endOfBlock] = litException | litEnd
	base := uint32(3)
	for i := range 28 {
		extra := uint32(0)
		if i >= 8 {
			extra = uint32(i/4 - 1)
		}
		syms[257+i] = base<<16 | extra
		base += 1 << extra
	}
	syms[285] = maxMatch << 16
	syms[286], syms[287] = litInvalid, litInvalid
	return syms
}

func makeDistSyms() (syms [32]uint32) {
	base := uint32(1)
	for i := range maxDistCodes {
		extra := uint32(0)
		if i >= 4 {
			extra = uint32(i/2 - 1)
		}
		syms[i] = base<<16 | extra
		base += 1 << extra
	}
	syms[30], syms[31] = distInvalid, distInvalid
	return syms
}

// An alphabet is what a kind of table needs to know of its symbols.
type alphabet struct {
	bits    int      // of the table's index
	syms    []uint32 // the symbols' entries, without their code lengths
	sub     uint32   // what marks an entry that leads to a sub-table
	invalid uint32   // the entry of bits that are no code
	bare    uint32   // entries with one of these bits have no extra bits
}

var (
	litAlphabet  = alphabet{litBits, litSyms[:], litException | litSub, litInvalid, litFlag | litException}
	distAlphabet = alphabet{distBits, distSyms[:], distException, distInvalid, distException}
	preAlphabet  = alphabet{preBits, litSyms[:19], litException | litSub, litInvalid, litFlag}
)

// entry is symbol s with a code of n bits: n more bits to consume, and n as the
// place of the extra bits if there are any.
func (a *alphabet) entry(s, n int) uint32 {
	e := a.syms[s]
	if e&a.bare != 0 {
		return e + uint32(n)
	}
	return e + uint32(n) + uint32(n)<<8
}

// build fills table for the canonical code with the given lengths (RFC 1951
// section 3.2.2). A code that is over-subscribed or incomplete is refused,
// except, as zlib does, one of no or of a single one-bit symbol.
func (a *alphabet) build(table []uint32, lens []uint8) bool {
	var count, next lengthCounts
	for _, l := range lens {
		count[l&15]++
	}
	used := len(lens) - count[0]
	left := 1
	for n := 1; n <= maxCodeBits; n++ {
		left = left<<1 - count[n]
		if left < 0 {
			return false
		}
		next[n+1] = next[n] + count[n]
	}
	if left > 0 {
		if used > 1 || used == 1 && count[1] != 1 {
			return false
		}
		a.buildSingle(table, lens)
		return true
	}
	var sorted [288]uint16
	for s, l := range lens {
		if l != 0 {
			sorted[next[l&15]] = uint16(s)
			next[l&15]++
		}
	}
	n, code, s := a.fillPrimary(table, &count, sorted[:])
	a.fillSubTables(table, &count, sorted[s:], n, code)
	return true
}

// buildSingle fills table for a code of at most one symbol.
func (a *alphabet) buildSingle(table []uint32, lens []uint8) {
	for i := range table[:1<<a.bits] {
		table[i] = a.invalid
	}
	for s, l := range lens {
		if l != 0 {
			for i := 0; i < 1<<a.bits; i += 2 {
				table[i] = a.entry(s, 1)
			}
		}
	}
}

type lengthCounts [maxCodeBits + 2]int

// fillPrimary writes the codes that fit the primary table. Codes are walked in
// order of their length, as bit-reversed numbers because DEFLATE sends them from
// the top bit down. A table of n+1 bits is the one of n bits twice, so short
// codes spread by doubling what is there. It returns the next length, code and
// index into sorted.
func (a *alphabet) fillPrimary(table []uint32, count *lengthCounts, sorted []uint16) (n, code, s int) {
	for n = 1; n <= a.bits; n++ {
		if n > 1 {
			copy(table[1<<(n-1):1<<n], table[:1<<(n-1)])
		}
		for range count[n] {
			table[code] = a.entry(int(sorted[s]), n)
			code = nextCode(code, n)
			s++
		}
	}
	return n, code, s
}

// fillSubTables goes on with the longer codes: each prefix of a.bits bits gets a
// sub-table wide enough for the codes that share it.
func (a *alphabet) fillSubTables(table []uint32, count *lengthCounts, sorted []uint16, n, code int) {
	prefix, start, end := -1, 0, 1<<a.bits
	for ; n <= maxCodeBits; n++ {
		for left := count[n]; left > 0; left-- {
			if p := code & (1<<a.bits - 1); p != prefix {
				subBits := n - a.bits
				for space := left; space < 1<<subBits; {
					subBits++
					space = space<<1 + count[a.bits+subBits]
				}
				prefix, start, end = p, end, end+1<<subBits
				table[prefix] = a.sub | uint32(start)<<16 | uint32(subBits)<<8 | uint32(a.bits)
			}
			e := a.entry(int(sorted[0]), n-a.bits)
			for i := start + code>>a.bits; i < end; i += 1 << (n - a.bits) {
				table[i] = e
			}
			code = nextCode(code, n)
			sorted = sorted[1:]
		}
	}
}

// nextCode adds one to a bit-reversed number of n bits.
func nextCode(code, n int) int {
	zeros := code ^ (1<<n - 1)
	if zeros == 0 {
		return 0
	}
	top := 1 << (bits.Len(uint(zeros)) - 1)
	return code&(top-1) | top
}
