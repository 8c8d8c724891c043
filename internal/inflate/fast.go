package inflate

import "encoding/binary"

// What fast needs ahead of it. An iteration refills the bit buffer twice, seven
// bytes each at most, and loads eight; it writes at most three
// literals and a match, whose last copy may run 15 bytes over.
const (
	fastIn  = 7 + 8
	fastOut = 3 + maxMatch + 16
)

func load64(b []byte, i int) uint64 { return binary.LittleEndian.Uint64(b[i : i+8 : i+8]) }

// fast decodes symbols while there is plenty of input and of room for output.
//
// The bit buffer holds nbits bits in its low end; the ones above are either
// zero or already the input's next ones, so that a refill may or in eight bytes
// whatever nbits is. nbits is kept modulo 64, with garbage above: an entry is
// subtracted whole, and bits 0-7 of it cannot borrow as no more is consumed
// than is there.
func (d *inflater) fast() error {
	in, out := d.in, d.out
	pos, n := d.pos, d.n
	bits, nbits := d.bits, uint32(d.nbits)
	lastIn, lastOut := len(in)-fastIn, len(out)-fastOut
	var reason string
	var err error
	for pos <= lastIn && n <= lastOut {
		bits |= load64(in, pos) << (nbits & 63)
		pos += int(^nbits >> 3 & 7)
		nbits |= 56
		e := d.lit[bits&litMask]
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
					continue
				}
			}
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
					continue
				}
			}
			if e&litEnd != 0 {
				bits >>= e & 63
				nbits -= e
				d.endBlock()
				break
			}
			if e&litException != 0 {
				reason = "no such literal or length code"
				break
			}
		}
		saved := bits
		bits >>= e & 63
		nbits -= e
		length := int(e>>16) + int(saved&(1<<(e&63)-1)>>(e>>8&15))

		if nbits&63 < 28 {
			bits |= load64(in, pos) << (nbits & 63)
			pos += int(^nbits >> 3 & 7)
			nbits |= 56
		}
		e = d.dist[bits&distMask]
		if e&distException != 0 {
			if e&distBad == 0 {
				bits >>= distBits
				nbits -= distBits
				e = d.dist[(e>>16+uint32(bits)&(1<<(e>>8&15)-1))&(distSize-1)]
			}
			if e&distException != 0 {
				reason = "no such distance code"
				break
			}
		}
		saved = bits
		bits >>= e & 63
		nbits -= e
		dist := int(e>>16) + int(saved&(1<<(e&63)-1)>>(e>>8&15))

		if dist > n-d.lo {
			d.n = n
			if err = d.copyMatch(dist, length); err != nil {
				break
			}
			n = d.n
			continue
		}
		s := n - dist
		end := n + length
		switch {
		case dist >= 16:
			for {
				*(*[16]byte)(out[n : n+16 : n+16]) = *(*[16]byte)(out[s : s+16 : s+16])
				n += 16
				s += 16
				if n >= end {
					break
				}
			}
		case dist >= 8:
			for n < end {
				binary.LittleEndian.PutUint64(out[n:n+8:n+8], load64(out, s))
				n += 8
				s += 8
			}
		case dist == 1:
			v := uint64(out[s]) * 0x0101010101010101
			for n < end {
				binary.LittleEndian.PutUint64(out[n:n+8:n+8], v)
				n += 8
			}
		default:
			for n < end {
				binary.LittleEndian.PutUint64(out[n:n+8:n+8], load64(out, s))
				n += dist
				s += dist
			}
		}
		n = end
	}
	d.pos, d.n, d.bits = pos, n, bits
	d.nbits = uint(nbits & 63)
	d.bits &= 1<<d.nbits - 1
	if reason != "" {
		return d.corrupt(reason)
	}
	return err
}
