package inflate

import "hash/crc32"

// Field values of RFC 1952, section 2.3.
const (
	gzipID1, gzipID2 = 0x1f, 0x8b
	gzipDeflate      = 8

	gzipHeaderBytes  = 10
	gzipTrailerBytes = 8

	gzipHeaderCRC = 1 << 1
	gzipExtra     = 1 << 2
	gzipName      = 1 << 3
	gzipComment   = 1 << 4
	gzipReserved  = 0xe0
)

// maxGzipHeader bounds a member's header: 64 KiB of extra field, and about as
// much for name and comment, which have no limit of their own.
const maxGzipHeader = 128 << 10

// memberHeader reads what comes between members: a header, or zero padding up
// to the end of the input. statusFull means that a header was read.
func (d *inflater) memberHeader() (status, error) {
	rest := d.in[d.pos:]
	switch {
	case len(rest) == 0 && d.members == 0:
		return statusEnd, d.truncated("gzip header")
	case len(rest) == 0:
		return statusEnd, nil
	case rest[0] == 0 && d.members > 0:
		return d.padding()
	}
	n, reason := gzipHeader(rest)
	switch {
	case reason != "" && d.members > 0 && !hasPrefix(rest, gzipID1, gzipID2):
		return statusFull, d.corrupt("garbage after a gzip member")
	case reason != "":
		return statusFull, d.corrupt(reason)
	case n == 0 && len(rest) > maxGzipHeader:
		return statusFull, d.corrupt("gzip header is too long")
	case n == 0 && d.eof:
		return statusFull, d.truncated("gzip header")
	case n == 0:
		return statusInput, nil
	}
	d.pos += n
	d.members++
	d.startMember()
	return statusFull, nil
}

func (d *inflater) startMember() {
	d.phase = phaseBlock
	d.lo, d.window = d.n, nil
	d.crc, d.crcFrom, d.sizeBytes = 0, d.n, 0
}

// padding skips zeros, which must reach to the end of the input.
func (d *inflater) padding() (status, error) {
	for ; d.pos < len(d.in); d.pos++ {
		if d.in[d.pos] != 0 {
			return statusFull, d.corrupt("garbage after a gzip member")
		}
	}
	if d.eof {
		return statusEnd, nil
	}
	d.phase = phasePadding
	return statusInput, nil
}

// gzipHeader returns the length of the header that b begins with, 0 if b is too
// short to tell, and why if it is none.
func gzipHeader(b []byte) (n int, reason string) {
	for i, want := range [...]byte{gzipID1, gzipID2, gzipDeflate} {
		if i < len(b) && b[i] != want {
			return 0, "not a gzip header"
		}
	}
	if len(b) < gzipHeaderBytes {
		return 0, ""
	}
	flags := b[3]
	if flags&gzipReserved != 0 {
		return 0, "gzip header has reserved flags"
	}
	n = gzipHeaderBytes
	if flags&gzipExtra != 0 {
		if len(b) < n+2 {
			return 0, ""
		}
		n += 2 + int(b[n]) + int(b[n+1])<<8
	}
	for _, flag := range [...]byte{gzipName, gzipComment} {
		if flags&flag == 0 {
			continue
		}
		for {
			if n >= len(b) {
				return 0, ""
			}
			n++
			if b[n-1] == 0 {
				break
			}
		}
	}
	if flags&gzipHeaderCRC != 0 {
		n += 2
		if n <= len(b) && uint16(crc32.ChecksumIEEE(b[:n-2])) != uint16(b[n-2])|uint16(b[n-1])<<8 {
			return 0, "gzip header checksum differs"
		}
	}
	if n > len(b) {
		return 0, ""
	}
	return n, ""
}

// memberTrailer reads a member's checksum and size, and compares them where the
// whole member was decoded.
func (d *inflater) memberTrailer() error {
	d.align()
	d.bits, d.nbits = 0, 0
	if len(d.in)-d.pos < gzipTrailerBytes {
		return d.truncated("gzip trailer")
	}
	crc, size := load32(d.in[d.pos:]), load32(d.in[d.pos+4:])
	if d.checkCRC {
		d.updateCRC()
		if crc != d.crc {
			return d.corrupt("gzip checksum differs")
		}
		if size != d.sizeBytes {
			return d.corrupt("gzip size differs")
		}
	}
	d.pos += gzipTrailerBytes
	if d.n > d.endN {
		d.end, d.endN = d.offset(), d.n
	}
	d.phase = phaseMember
	return nil
}

// updateCRC takes the output so far into the checksum.
func (d *inflater) updateCRC() {
	b := d.out[d.crcFrom:d.n]
	d.crc = crc32.Update(d.crc, crc32.IEEETable, b)
	d.sizeBytes += uint32(len(b))
	d.crcFrom = d.n
}

func hasPrefix(b []byte, prefix ...byte) bool {
	for i, c := range prefix {
		if i >= len(b) || b[i] != c {
			return false
		}
	}
	return true
}
