package inflate

import "encoding/binary"

// What a kernel needs ahead of it. An iteration refills the bit buffer twice,
// seven bytes each at most, and loads eight; it writes at most three literals
// and a match, whose last copy may run 31 bytes over.
const (
	fastIn  = 7 + 8
	fastOut = 3 + maxMatch + 31
)

// fastCall bounds the output of a kernel's call: the runtime cannot interrupt
// assembly, which takes some 0.2 ms for this.
const fastCall = 128 << 10

// A stop says why a kernel has returned.
type stop int

const (
	stopEdge    stop = iota // past lastIn or lastOut
	stopEnd                 // the block's end, which is consumed
	stopNoLit               // bits that are no literal or length code
	stopNoDist              // bits that are no distance code, after a length
	stopFarBack             // a match that begins before lo; it is consumed but not copied
)

// fast decodes symbols while there is plenty of input and of room for output.
func (d *inflater) fast() error {
	lastIn, lastOut := len(d.in)-fastIn, len(d.out)-fastOut
	for d.pos <= lastIn && d.n <= lastOut {
		var why stop
		var length, distance int
		if useAsm {
			why, length, distance = symbolsAsm(d, lastIn, min(lastOut, d.n+fastCall))
		} else {
			why, length, distance = symbolsGo(d, lastIn, min(lastOut, d.n+fastCall))
		}
		d.nbits &= 63
		d.bits &= 1<<d.nbits - 1
		switch why {
		case stopEnd:
			d.endBlock()
			return nil
		case stopNoLit:
			return d.corrupt("no such literal or length code")
		case stopNoDist:
			return d.corrupt("no such distance code")
		case stopFarBack:
			if err := d.copyMatch(distance, length); err != nil {
				return err
			}
		}
	}
	return nil
}

func load64(b []byte, i int) uint64 { return binary.LittleEndian.Uint64(b[i : i+8 : i+8]) }

// symbolsGo is the portable kernel, and the reference of the one in assembly: it
// decodes symbols until pos is past lastIn or n past lastOut (which they are not
// when it is called), or something comes that is not for it. Of nbits the low 6
// bits are good when it returns, of bits the low nbits. Length and distance are
// those of stopFarBack.
//
// The bit buffer holds nbits bits in its low end; the ones above are either
// zero or already the input's next ones, so that a refill may or in eight bytes
// whatever nbits is, and all 64 are right then. nbits is kept modulo 64, with
// garbage above: an entry is subtracted whole, and bits 0-7 of it cannot borrow
// as no more is consumed than is there.
//
// An entry is loaded as soon as its bits are known. The 56 bits or more after a
// refill are enough for four literals from the primary table and a look-up
// (4*11 + 11), the 64 for a match and a look-up (15+5 + 15+13 + 11).
func symbolsGo(d *inflater, lastIn, lastOut int) (why stop, length, distance int) {
	in, out := d.in, d.out
	pos, n, lo := d.pos, d.n, d.lo
	bits, nbits := d.bits, uint32(d.nbits)
	bits |= load64(in, pos) << (nbits & 63)
	pos += int(^nbits >> 3 & 7)
	nbits |= 56
	e := d.lit[bits&litMask]
	for pos <= lastIn && n <= lastOut {
		bits |= load64(in, pos) << (nbits & 63)
		pos += int(^nbits >> 3 & 7)
		nbits |= 56
		if e&litFlag != 0 {
			bits >>= e & 63
			nbits -= e
			out[n] = byte(e >> 8)
			n++
			e = d.lit[bits&litMask]
			if e&litFlag != 0 {
				bits >>= e & 63
				nbits -= e
				out[n] = byte(e >> 8)
				n++
				e = d.lit[bits&litMask]
				if e&litFlag != 0 {
					bits >>= e & 63
					nbits -= e
					out[n] = byte(e >> 8)
					n++
					e = d.lit[bits&litMask]
					if e&litFlag != 0 {
						bits >>= e & 63
						nbits -= e
						out[n] = byte(e >> 8)
						n++
						e = d.lit[bits&litMask]
						continue
					}
				}
			}
			bits |= load64(in, pos) << (nbits & 63)
			pos += int(^nbits >> 3 & 7)
			nbits |= 56
		}
		if e&litException != 0 {
			if e&litSub != 0 {
				bits >>= litBits
				nbits -= litBits
				e = d.lit[(e>>16+uint32(bits)&(1<<(e>>8&15)-1))&(litSize-1)]
				if e&litFlag != 0 {
					bits >>= e & 63
					nbits -= e
					out[n] = byte(e >> 8)
					n++
					e = d.lit[bits&litMask]
					continue
				}
			}
			if e&litEnd != 0 {
				bits >>= e & 63
				nbits -= e
				why = stopEnd
				break
			}
			if e&litException != 0 {
				why = stopNoLit
				break
			}
		}
		saved := bits
		bits >>= e & 63
		nbits -= e
		length = int(e>>16) + int(saved&(1<<(e&63)-1)>>(e>>8&15))

		e = d.dist[bits&distMask]
		if e&distException != 0 {
			if e&distBad == 0 {
				bits >>= distBits
				nbits -= distBits
				e = d.dist[(e>>16+uint32(bits)&(1<<(e>>8&15)-1))&(distSize-1)]
			}
			if e&distException != 0 {
				why = stopNoDist
				break
			}
		}
		saved = bits
		bits >>= e & 63
		nbits -= e
		distance = int(e>>16) + int(saved&(1<<(e&63)-1)>>(e>>8&15))

		if distance > n-lo {
			why = stopFarBack
			break
		}
		e = d.lit[bits&litMask]
		s := n - distance
		end := n + length
		switch {
		case distance >= 16:
			for {
				to, from := out[n:n+32:n+32], out[s:s+32:s+32]
				*(*[16]byte)(to) = *(*[16]byte)(from)
				*(*[16]byte)(to[16:]) = *(*[16]byte)(from[16:])
				n += 32
				s += 32
				if n >= end {
					break
				}
			}
		case distance >= 8:
			for n < end {
				binary.LittleEndian.PutUint64(out[n:n+8:n+8], load64(out, s))
				n += 8
				s += 8
			}
		case distance == 1:
			v := uint64(out[s]) * 0x0101010101010101
			for n < end {
				binary.LittleEndian.PutUint64(out[n:n+8:n+8], v)
				n += 8
			}
		default:
			for n < end {
				binary.LittleEndian.PutUint64(out[n:n+8:n+8], load64(out, s))
				n += distance
				s += distance
			}
		}
		n = end
	}
	d.pos, d.n, d.bits, d.nbits = pos, n, bits, uint(nbits)
	return why, length, distance
}
