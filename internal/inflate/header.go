package inflate

// preOrder is the order of the code length code's lengths (RFC 1951, 3.2.7).
var preOrder = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// blockHeader reads a block's header (RFC 1951, 3.2.3).
func (d *inflater) blockHeader() error {
	v, err := d.take(3, "block header")
	if err != nil {
		return err
	}
	d.final = v&1 != 0
	switch v >> 1 {
	case 0:
		err = d.storedHeader()
	case 1:
		d.nlit, d.ndist = 0, 0
		d.useFixed()
		d.phase = phaseHuffman
	case 2:
		if err = d.dynamicHeader(); err == nil {
			d.phase = phaseHuffman
		}
	default:
		err = d.corrupt("no such block type")
	}
	d.align()
	return err
}

func (d *inflater) storedHeader() error {
	drop := d.nbits & 7
	d.bits >>= drop
	d.nbits -= drop
	v, err := d.take(32, "stored block header")
	if err != nil {
		return err
	}
	if v&0xffff != ^v>>16 {
		return d.corrupt("stored block length and its complement differ")
	}
	d.stored = int(v & 0xffff)
	d.phase = phaseStored
	return nil
}

// dynamicHeader reads a dynamic block's code lengths (RFC 1951, 3.2.7).
func (d *inflater) dynamicHeader() error {
	v, err := d.take(14, "dynamic block header")
	if err != nil {
		return err
	}
	nlit, ndist, npre := int(v&31)+257, int(v>>5&31)+1, int(v>>10)+4
	if nlit > maxLitCodes || ndist > maxDistCodes {
		return d.corrupt("too many codes")
	}
	var pre [19]uint8
	for _, s := range preOrder[:npre] {
		n, err := d.take(3, "code length code")
		if err != nil {
			return err
		}
		pre[s] = uint8(n)
	}
	if !preAlphabet.build(d.pre[:], pre[:]) {
		return d.corrupt("code length code is not a prefix code")
	}
	d.tables = tablesNone
	d.nlit, d.ndist = nlit, ndist
	if err := d.codeLengths(d.lens[:nlit+ndist]); err != nil {
		return err
	}
	return d.useDynamic()
}

// codeLengths reads run-length coded code lengths.
func (d *inflater) codeLengths(lens []uint8) error {
	for i := 0; i < len(lens); {
		d.fill()
		e := d.pre[d.bits&(1<<preBits-1)]
		if e&litFlag == 0 {
			return d.corrupt("no such code length code")
		}
		if _, err := d.take(uint(e&63), "code lengths"); err != nil {
			return err
		}
		s := uint8(e >> 8)
		if s < 16 {
			lens[i] = s
			i++
			continue
		}
		value, base, extra := uint8(0), 3, uint(3)
		switch s {
		case 16:
			if i == 0 {
				return d.corrupt("repeats a code length before the first")
			}
			value, extra = lens[i-1], 2
		case 18:
			base, extra = 11, 7
		}
		n, err := d.take(extra, "code lengths")
		if err != nil {
			return err
		}
		run := base + int(n)
		if run > len(lens)-i {
			return d.corrupt("too many code lengths")
		}
		for range run {
			lens[i] = value
			i++
		}
	}
	return nil
}

// useDynamic makes the tables for the code lengths in d.lens.
func (d *inflater) useDynamic() error {
	lit, dist := d.lens[:d.nlit], d.lens[d.nlit:d.nlit+d.ndist]
	d.tables = tablesNone
	if lit[endOfBlock] == 0 {
		return d.corrupt("no code for the end of the block")
	}
	if !litAlphabet.build(d.lit[:], lit) {
		return d.corrupt("literal and length code is not a prefix code")
	}
	if !distAlphabet.build(d.dist[:], dist) {
		return d.corrupt("distance code is not a prefix code")
	}
	d.tables = tablesDynamic
	return nil
}

// fixedTables holds the tables of the fixed code (RFC 1951, 3.2.6), made once
// and copied: blocks of a few bits must not cost a table each.
var fixedTables = func() *inflater {
	var lit [288]uint8
	for i := range lit {
		switch {
		case i < 144:
			lit[i] = 8
		case i < 256:
			lit[i] = 9
		case i < 280:
			lit[i] = 7
		default:
			lit[i] = 8
		}
	}
	var dist [32]uint8
	for i := range dist {
		dist[i] = 5
	}
	d := new(inflater)
	litAlphabet.build(d.lit[:], lit[:])
	distAlphabet.build(d.dist[:], dist[:])
	return d
}()

func (d *inflater) useFixed() {
	if d.tables == tablesFixed {
		return
	}
	copy(d.lit[:1<<litBits], fixedTables.lit[:])
	copy(d.dist[:1<<distBits], fixedTables.dist[:])
	d.tables = tablesFixed
}
