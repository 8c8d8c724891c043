package inflate

import "encoding/binary"

func load32(b []byte) uint32 { return binary.LittleEndian.Uint32(b) }

// phase is where in the stream an inflater stands. The numbers are part of the
// format of Point.State.
type phase uint8

const (
	phaseBlock   phase = iota // a block header comes next
	phaseStored               // inside a stored block
	phaseHuffman              // inside a compressed block
	phaseTrailer              // the DEFLATE stream has ended, the gzip trailer comes next
	phaseMember               // a gzip header, padding or the end of input comes next
	phasePadding              // zeros come next, up to the end of the input
)

// A status says why an inflater stopped.
type status uint8

const (
	statusFull  status = iota // out is full
	statusInput               // more input is needed
	statusEnd                 // the input has ended where it may
)

// lookahead is the input an inflater wants to have before a step, unless the
// input ends: more than a dynamic block's header (14 + 19*3 + 316*14 bits).
const lookahead = 1024

// An inflater decodes gzip members into out. Its owner sets in, pos, eof and
// base (which move in together), out, n, lo and window; all the rest is state.
//
// Output before out is looked up in window, so what has been written so far need
// not be in one place: run returns when out is full and goes on in the next.
type inflater struct {
	in   []byte
	pos  int
	eof  bool  // nothing follows in
	base int64 // blob offset of in[0]

	bits  uint64 // of the input before pos, not consumed yet
	nbits uint   // how many; at most 7 between calls of run

	out    []byte
	n      int    // bytes of out written
	lo     int    // where in out the member's output begins; its window is void if it is > 0
	window []byte // the member's output before out
	marks  []byte // 0xff for bytes of the window that were used, aligned at their ends; nil to not care

	phase     phase
	final     bool // this block is the member's last
	stored    int  // bytes left of a stored block
	length    int  // bytes left of a match
	distance  int  // of that match
	lens      [maxLitCodes + maxDistCodes]uint8
	nlit      int       // lens[:nlit] are for literals and lengths, [nlit:nlit+ndist] for distances
	ndist     int       // both 0 when the block has the fixed code
	tables    tableKind // what the tables are for
	checkCRC  bool
	crc       uint32 // of the member's output up to crcFrom
	crcFrom   int    // in out
	sizeBytes uint32 // of that output, modulo 2^32
	members   int    // headers seen
	end       int64  // blob offset where the last member with output ends
	endN      int    // d.n there

	lit  [litSize]uint32
	dist [distSize]uint32
	pre  [1 << preBits]uint32
}

type tableKind uint8

const (
	tablesNone tableKind = iota
	tablesFixed
	tablesDynamic
)

// reset makes d ready for the member, block or gzip stream that begins at in[0].
func (d *inflater) reset(in []byte, base int64, eof bool) {
	d.in, d.pos, d.base, d.eof = in, 0, base, eof
	d.bits, d.nbits = 0, 0
	d.window, d.marks = nil, nil
	d.phase, d.final = phaseMember, false
	d.stored, d.length, d.distance = 0, 0, 0
	d.nlit, d.ndist, d.tables = 0, 0, tablesNone
	d.checkCRC, d.members, d.end = false, 0, 0
	d.setOut(nil)
}

// setOut makes out the place of the next output.
func (d *inflater) setOut(out []byte) { d.out, d.n, d.lo, d.crcFrom, d.endN = out, 0, 0, 0, 0 }

// offset is the blob offset of the byte that holds the next bit.
func (d *inflater) offset() int64 { return d.base + int64(d.pos) - int64(d.nbits+7)/8 }

func (d *inflater) corrupt(reason string) error {
	return &CorruptError{Offset: d.offset(), Reason: reason}
}

func (d *inflater) truncated(reason string) error { return truncated(d.base+int64(len(d.in)), reason) }

// run decodes until out is full, the input has ended or more input is needed.
// It consumes no bit beyond what the output needs.
func (d *inflater) run() (status, error) {
	for d.n < len(d.out) {
		if !d.eof && len(d.in)-d.pos < lookahead {
			return statusInput, nil
		}
		var err error
		switch d.phase {
		case phaseBlock:
			err = d.blockHeader()
		case phaseStored:
			err = d.copyStored()
		case phaseHuffman:
			err = d.huffman()
		case phaseTrailer:
			err = d.memberTrailer()
		case phaseMember:
			if s, err := d.memberHeader(); s != statusFull || err != nil {
				return s, err
			}
		case phasePadding:
			return d.padding()
		}
		if err != nil {
			return statusFull, err
		}
	}
	return statusFull, nil
}

// huffman decodes symbols until out is full, the block ends or input runs low.
func (d *inflater) huffman() error {
	if d.length > 0 {
		if err := d.copyMatch(d.distance, d.length); err != nil {
			return err
		}
	}
	err := d.fast()
	if err == nil {
		err = d.slow()
	}
	d.align()
	return err
}

// align gives whole bytes in the bit buffer back to the input.
func (d *inflater) align() {
	d.pos -= int(d.nbits >> 3)
	d.nbits &= 7
	d.bits &= 1<<d.nbits - 1
}

// fill tops the bit buffer up from the input, to 56 bits or more if there are;
// never to 64, which fast could not tell from none.
func (d *inflater) fill() {
	for d.nbits < 56 && d.pos < len(d.in) {
		d.bits |= uint64(d.in[d.pos]) << d.nbits
		d.pos++
		d.nbits += 8
	}
}

// take consumes n <= 32 bits.
func (d *inflater) take(n uint, what string) (uint32, error) {
	if d.nbits < n {
		d.fill()
		if d.nbits < n {
			return 0, d.truncated(what)
		}
	}
	v := uint32(d.bits & (1<<n - 1))
	d.bits >>= n
	d.nbits -= n
	return v, nil
}

// slow decodes a symbol at a time, at the edges of out and of the input.
func (d *inflater) slow() error {
	for d.n < len(d.out) && d.phase == phaseHuffman && d.length == 0 {
		if !d.eof && len(d.in)-d.pos < 16 {
			return nil
		}
		if err := d.symbol(); err != nil {
			return err
		}
		if d.n+fastOut <= len(d.out) && d.pos+fastIn <= len(d.in) {
			return nil
		}
	}
	return nil
}

// symbol decodes a literal, a match or the end of the block.
func (d *inflater) symbol() error {
	d.fill()
	e := d.lit[d.bits&litMask]
	if e&(litFlag|litException|litSub) == litException|litSub {
		if d.nbits < litBits {
			return d.truncated("code")
		}
		d.bits >>= litBits
		d.nbits -= litBits
		e = d.lit[(e>>16+uint32(d.bits)&(1<<(e>>8&15)-1))&(litSize-1)]
	}
	size := uint(e & 63)
	if e&(litFlag|litException) == litException && e&litEnd == 0 {
		return d.corrupt("no such literal or length code")
	}
	if d.nbits < size {
		return d.truncated("code")
	}
	saved := d.bits
	d.bits >>= size
	d.nbits -= size
	switch {
	case e&litFlag != 0:
		d.out[d.n] = byte(e >> 8)
		d.n++
		return nil
	case e&litException != 0:
		d.endBlock()
		return nil
	}
	length := int(e>>16) + int(saved&(1<<size-1)>>(e>>8&15))
	distance, err := d.matchDistance()
	if err != nil {
		return err
	}
	return d.copyMatch(distance, length)
}

// matchDistance decodes the distance code that follows a length.
func (d *inflater) matchDistance() (int, error) {
	d.fill()
	e := d.dist[d.bits&distMask]
	if e&(distException|distBad) == distException {
		if d.nbits < distBits {
			return 0, d.truncated("distance code")
		}
		d.bits >>= distBits
		d.nbits -= distBits
		e = d.dist[(e>>16+uint32(d.bits)&(1<<(e>>8&15)-1))&(distSize-1)]
	}
	if e&distException != 0 {
		return 0, d.corrupt("no such distance code")
	}
	size := uint(e & 63)
	if d.nbits < size {
		return 0, d.truncated("distance code")
	}
	distance := int(e>>16) + int(d.bits&(1<<size-1)>>(e>>8&15))
	d.bits >>= size
	d.nbits -= size
	return distance, nil
}

// endBlock moves on to what follows a block.
func (d *inflater) endBlock() {
	d.phase = phaseBlock
	if d.final {
		d.phase = phaseTrailer
	}
}

// copyMatch copies as much of a match as out has room for and keeps the rest
// of it for later.
func (d *inflater) copyMatch(distance, length int) error {
	d.distance = distance
	d.length = length
	length = min(length, len(d.out)-d.n)
	if back := distance - (d.n - d.lo); back > 0 {
		taken, err := d.copyWindow(back, length)
		if err != nil {
			return err
		}
		d.length -= taken
		length -= taken
	}
	d.length -= length
	copyOverlapping(d.out, d.n, distance, length)
	d.n += length
	return nil
}

// copyWindow copies up to length bytes from back bytes before the window's end.
func (d *inflater) copyWindow(back, length int) (int, error) {
	at := len(d.window) - back
	if d.lo > 0 || at < 0 {
		d.length = 0
		return 0, d.corrupt("match reaches back too far")
	}
	n := copy(d.out[d.n:d.n+length], d.window[at:])
	d.n += n
	if d.marks != nil {
		used := d.marks[len(d.marks)-back:]
		for i := range used[:n] {
			used[i] = 0xff
		}
	}
	return n, nil
}

// copyOverlapping copies length bytes to out[n:] from distance bytes before,
// where they may be the ones just written.
func copyOverlapping(out []byte, n, distance, length int) {
	for length > 0 {
		c := copy(out[n:n+min(length, distance)], out[n-distance:n])
		n += c
		length -= c
		distance += c
	}
}

// copyStored copies from a stored block.
func (d *inflater) copyStored() error {
	if d.stored == 0 {
		d.endBlock()
		return nil
	}
	c := copy(d.out[d.n:], d.in[d.pos:min(len(d.in), d.pos+d.stored)])
	if c == 0 {
		return d.truncated("stored block")
	}
	d.n += c
	d.pos += c
	d.stored -= c
	if d.stored == 0 {
		d.endBlock()
	}
	return nil
}
