package layertar

import (
	"bytes"
	"encoding/binary"
)

// Fields of a header block: POSIX.1-2017 pax "ustar Interchange Format", and
// <tar.h> of GNU tar and star for what differs from it behind the magic.
const (
	offName, lenName         = 0, 100
	offMode, lenMode         = 100, 8
	offUID, lenUID           = 108, 8
	offGID, lenGID           = 116, 8
	offSize, lenSize         = 124, 12
	offMtime, lenMtime       = 136, 12
	offChecksum, lenChecksum = 148, 8
	offType                  = 156
	offLink, lenLink         = 157, 100
	offMagic, lenMagic       = 257, 8 // magic and version
	offDevMajor, lenDev      = 329, 8
	offDevMinor              = 337
	offPrefix, lenPrefix     = 345, 155
	lenPrefixStar            = 131
	offTrailerStar           = 508
	offGNUAtime, lenGNUTime  = 345, 12
	offGNUCtime              = 357
	offGNUSparse             = 386 // 4 pairs of 12-byte numbers
	offGNUExtended           = 482
	offGNURealSize           = 483
	offExtExtended           = 504 // of an extension block: 21 pairs, then the flag
	sparsePairsHeader        = 4
	sparsePairsExt           = 21
	lenSparsePair            = 24
)

const (
	magicPOSIX = "ustar\x00"
	magicGNU   = "ustar  \x00"
	magicStar  = "tar\x00"
)

type format uint8

const (
	formatV7 format = iota
	formatUSTAR
	formatSTAR
	formatGNU
)

type block = [BlockBytes]byte

// header is a decoded header block. Its slices alias the block (or the scanner's
// buffers, once PAX and GNU headers were merged into it).
type header struct {
	format     format
	typ        byte
	name, link []byte
	mode       int64
	uid, gid   int64
	size       int64
	mtime      int64
	mtimeNsec  int64
}

func isZero(b *block) bool {
	for i := 0; i < BlockBytes; i += 64 {
		w := binary.LittleEndian.Uint64(b[i:]) | binary.LittleEndian.Uint64(b[i+8:]) |
			binary.LittleEndian.Uint64(b[i+16:]) | binary.LittleEndian.Uint64(b[i+24:]) |
			binary.LittleEndian.Uint64(b[i+32:]) | binary.LittleEndian.Uint64(b[i+40:]) |
			binary.LittleEndian.Uint64(b[i+48:]) | binary.LittleEndian.Uint64(b[i+56:])
		if w != 0 {
			return false
		}
	}
	return true
}

// checksumOK compares the header's checksum with the sum of its bytes, the checksum
// field taken as spaces. Some old writers (Sun) summed signed bytes: both are fine.
func checksumOK(b *block) bool {
	want, ok := parseOctal(b[offChecksum : offChecksum+lenChecksum])
	if !ok {
		return false
	}
	// Eight bytes at a time, in four 16-bit lanes: 64 words * 2 * 255 does not overflow.
	const mask = 0x00ff00ff00ff00ff
	var lanes uint64
	for i := 0; i < BlockBytes; i += 8 {
		w := binary.LittleEndian.Uint64(b[i:])
		lanes += w&mask + w>>8&mask
	}
	sum := int64(lanes&0xffff + lanes>>16&0xffff + lanes>>32&0xffff + lanes>>48)
	for _, c := range b[offChecksum : offChecksum+lenChecksum] {
		sum += ' ' - int64(c)
	}
	if sum == want {
		return true
	}
	for i, c := range b {
		if c >= 0x80 && (i < offChecksum || i >= offChecksum+lenChecksum) {
			sum -= 256
		}
	}
	return sum == want
}

func cstring(b []byte) []byte {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		return b[:i]
	}
	return b
}

// parseOctal reads an octal number that may have spaces and NULs around it.
// An empty field is 0.
func parseOctal(b []byte) (int64, bool) {
	for len(b) > 0 && (b[0] == ' ' || b[0] == 0) {
		b = b[1:]
	}
	var x int64
	for i, c := range b {
		switch {
		case c >= '0' && c <= '7':
			x = x<<3 | int64(c-'0') // at most 12 digits
		case c == 0:
			return x, true // what follows a NUL is not looked at
		case c == ' ':
			return x, len(bytes.Trim(b[i:], " \x00")) == 0
		default:
			return 0, false
		}
	}
	return x, true
}

// parseNumber reads an octal or, where the first bit is set, a base-256 (two's
// complement, big-endian) number. false: garbage, or it does not fit in an int64.
func parseNumber(b []byte) (int64, bool) {
	if b[0]&0x80 == 0 {
		return parseOctal(b)
	}
	var invert byte
	if b[0]&0x40 != 0 {
		invert = 0xff
	}
	var x uint64
	for i, c := range b {
		c ^= invert
		if i == 0 {
			c &= 0x7f
		}
		if x>>56 != 0 {
			return 0, false
		}
		x = x<<8 | uint64(c)
	}
	if x>>63 != 0 {
		return 0, false
	}
	if invert != 0 {
		return ^int64(x), true
	}
	return int64(x), true
}

func detectFormat(b *block) format {
	switch magic := b[offMagic : offMagic+lenMagic]; {
	case string(magic[:len(magicPOSIX)]) == magicPOSIX:
		if string(b[offTrailerStar:]) == magicStar {
			return formatSTAR
		}
		return formatUSTAR
	case string(magic) == magicGNU:
		return formatGNU
	}
	return formatV7
}

// parseHeader decodes a block whose checksum holds. nameBuf is scratch for a name
// with a prefix. A reason means it is not a header; h.name is set as far as known.
func parseHeader(b *block, nameBuf []byte) (h header, buf []byte, reason string) {
	h.format = detectFormat(b)
	h.typ = b[offType]
	h.name = cstring(b[offName : offName+lenName])
	h.link = cstring(b[offLink : offLink+lenLink])
	if prefix := headerPrefix(b, h.format); len(prefix) > 0 {
		nameBuf = append(append(append(nameBuf[:0], prefix...), '/'), h.name...)
		h.name = nameBuf
	}
	for _, f := range [...]struct {
		to     *int64
		off, n int
		name   string
	}{
		{&h.mode, offMode, lenMode, "mode"},
		{&h.uid, offUID, lenUID, "uid"},
		{&h.gid, offGID, lenGID, "gid"},
		{&h.size, offSize, lenSize, "size"},
		{&h.mtime, offMtime, lenMtime, "mtime"},
	} {
		var ok bool
		if *f.to, ok = parseNumber(b[f.off : f.off+f.n]); !ok {
			return h, nameBuf, f.name + " field is not a number"
		}
	}
	return h, nameBuf, ""
}

// headerPrefix returns the directory part that a long name was split into.
func headerPrefix(b *block, f format) []byte {
	switch f {
	case formatUSTAR:
		return cstring(b[offPrefix : offPrefix+lenPrefix])
	case formatSTAR:
		return cstring(b[offPrefix : offPrefix+lenPrefixStar])
	case formatGNU:
		// GNU has times here, but Go before 1.8 wrote a prefix into GNU headers, and
		// images from then are still around: https://golang.org/issue/12594.
		if b[offGNUAtime] == 0 && b[offGNUCtime] == 0 {
			return nil
		}
		if gnuTimeOK(b[offGNUAtime:offGNUAtime+lenGNUTime]) && gnuTimeOK(b[offGNUCtime:offGNUCtime+lenGNUTime]) {
			return nil
		}
		prefix := cstring(b[offPrefix : offPrefix+lenPrefix])
		for _, c := range prefix {
			if c >= 0x80 {
				return nil
			}
		}
		return prefix
	}
	return nil
}

func gnuTimeOK(b []byte) bool {
	if b[0] == 0 {
		return true
	}
	_, ok := parseNumber(b)
	return ok
}
