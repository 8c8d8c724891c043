// Package layertartest makes tars for tests: synthetic layers that together hold
// everything a layer may, hostile ones, and an independent unpacker as the judge of
// what they mean.
//
// The [Builder] writes raw header blocks, so it can write what archive/tar cannot:
// sparse files, base-256 numbers, v7 headers, wrong checksums, names that no tool
// would give. It does not check anything.
package layertartest

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
)

const blockBytes = 512

// Magics of a header block.
const (
	MagicPOSIX = "ustar\x0000"
	MagicGNU   = "ustar  \x00"
	MagicV7    = "\x00"
)

// ModTime is the time, in seconds since 1970, of entries that are not about time.
const ModTime = 1_700_000_000

// Header is one header block. Numbers that do not fit in octal are written in base-256.
type Header struct {
	Type               byte   // as in the block: '0', '5', 'S', ...
	Name, Prefix, Link string // cut off at the field's length
	Mode               int64
	UID, GID           int64
	Size               int64
	ModTime            int64 // 0 is written as [ModTime]
	DevMajor, DevMinor int64
	Magic              string             // "" is MagicPOSIX
	Edit               func(b *[512]byte) // changes the block before its checksum is made
	Break              func(b *[512]byte) // changes the block afterwards
}

// Builder writes a tar in memory. The zero value is an empty one.
type Builder struct{ buf bytes.Buffer }

// Bytes returns what was written so far; the end blocks are only there after End.
func (b *Builder) Bytes() []byte { return b.buf.Bytes() }

// Len returns the bytes written so far.
func (b *Builder) Len() int { return b.buf.Len() }

// End writes the two zero blocks of an archive's end.
func (b *Builder) End() *Builder {
	b.buf.Write(make([]byte, 2*blockBytes))
	return b
}

// Raw writes bytes as they are.
func (b *Builder) Raw(p []byte) *Builder {
	b.buf.Write(p)
	return b
}

// Data writes an entry's data and its padding.
func (b *Builder) Data(p []byte) *Builder {
	b.buf.Write(p)
	b.buf.Write(make([]byte, -len(p)&(blockBytes-1)))
	return b
}

func putNumber(field []byte, x int64) {
	if digits := len(field) - 1; x >= 0 && x < 1<<(3*min(digits, 20)) {
		copy(field, fmt.Sprintf("%0*o\x00", digits, x))
		return
	}
	for i := len(field) - 1; i >= 0; i-- {
		field[i] = byte(x)
		x >>= 8
	}
	field[0] |= 0x80
}

// Header writes a header block.
func (b *Builder) Header(h Header) *Builder {
	var blk [512]byte
	if h.ModTime == 0 {
		h.ModTime = ModTime
	}
	if h.Magic == "" {
		h.Magic = MagicPOSIX
	}
	copy(blk[0:100], h.Name)
	putNumber(blk[100:108], h.Mode)
	putNumber(blk[108:116], h.UID)
	putNumber(blk[116:124], h.GID)
	putNumber(blk[124:136], h.Size)
	putNumber(blk[136:148], h.ModTime)
	blk[156] = h.Type
	copy(blk[157:257], h.Link)
	copy(blk[257:265], h.Magic)
	if h.Magic != MagicV7 {
		putNumber(blk[329:337], h.DevMajor)
		putNumber(blk[337:345], h.DevMinor)
	}
	copy(blk[345:500], h.Prefix)
	if h.Edit != nil {
		h.Edit(&blk)
	}
	Checksum(&blk)
	if h.Break != nil {
		h.Break(&blk)
	}
	b.buf.Write(blk[:])
	return b
}

// Checksum sets a block's checksum (of unsigned bytes).
func Checksum(blk *[512]byte) {
	copy(blk[148:156], "        ")
	sum := 0
	for _, c := range blk {
		sum += int(c)
	}
	copy(blk[148:156], fmt.Sprintf("%06o\x00 ", sum))
}

// Entry writes a header with data; its size is set to that of the data.
func (b *Builder) Entry(h Header, data []byte) *Builder {
	h.Size = int64(len(data))
	return b.Header(h).Data(data)
}

// File writes a regular file with mode 0644.
func (b *Builder) File(name string, data []byte) *Builder {
	return b.Entry(Header{Type: '0', Name: name, Mode: 0o644}, data)
}

// Dir writes a directory with mode 0755.
func (b *Builder) Dir(name string) *Builder {
	return b.Header(Header{Type: '5', Name: name, Mode: 0o755})
}

// Symlink writes a symlink.
func (b *Builder) Symlink(name, target string) *Builder {
	return b.Header(Header{Type: '2', Name: name, Link: target, Mode: 0o777})
}

// Hardlink writes a hardlink with mode 0644.
func (b *Builder) Hardlink(name, target string) *Builder {
	return b.Header(Header{Type: '1', Name: name, Link: target, Mode: 0o644})
}

// Whiteout writes a whiteout of the path.
func (b *Builder) Whiteout(path string) *Builder {
	i := strings.LastIndexByte(path, '/') + 1
	return b.Header(Header{Type: '0', Name: path[:i] + ".wh." + path[i:], Mode: 0o600})
}

// Opaque writes the marker that makes a directory ("" is the root) opaque.
func (b *Builder) Opaque(dir string) *Builder {
	if dir != "" {
		dir += "/"
	}
	return b.Header(Header{Type: '0', Name: dir + ".wh..wh..opq", Mode: 0o600})
}

// PAX writes an 'x' header of the keys and values that are given in turn.
func (b *Builder) PAX(keyValues ...string) *Builder { return b.PAXType('x', keyValues...) }

// PAXType writes an extended header of the type, 'x' or 'g'.
func (b *Builder) PAXType(typ byte, keyValues ...string) *Builder {
	var records []byte
	for i := 0; i+1 < len(keyValues); i += 2 {
		records = append(records, record(keyValues[i], keyValues[i+1])...)
	}
	return b.Entry(Header{Type: typ, Name: "PaxHeaders.0/x", Mode: 0o644}, records)
}

func record(key, value string) string {
	body := " " + key + "=" + value + "\n"
	n := len(body)
	for len(strconv.Itoa(n))+len(body) != n {
		n = len(strconv.Itoa(n)) + len(body)
	}
	return strconv.Itoa(n) + body
}

// LongName writes a GNU long name for the next entry.
func (b *Builder) LongName(name string) *Builder {
	return b.Entry(Header{Type: 'L', Name: "././@LongLink", Magic: MagicGNU}, []byte(name+"\x00"))
}

// LongLink writes a GNU long link target for the next entry.
func (b *Builder) LongLink(target string) *Builder {
	return b.Entry(Header{Type: 'K', Name: "././@LongLink", Magic: MagicGNU}, []byte(target+"\x00"))
}

// Part is a stored part of a sparse file.
type Part struct {
	Offset int64
	Data   []byte
}

func stored(parts []Part) []byte {
	var all []byte
	for _, p := range parts {
		all = append(all, p.Data...)
	}
	return all
}

// SparseGNU writes a sparse file in GNU's old format, 'S', with as many extension
// blocks as the parts take.
func (b *Builder) SparseGNU(name string, size int64, parts []Part) *Builder {
	data, rest := stored(parts), parts
	put := func(field []byte, n int) {
		for ; n > 0 && len(rest) > 0; n-- {
			putNumber(field[:12], rest[0].Offset)
			putNumber(field[12:24], int64(len(rest[0].Data)))
			field, rest = field[24:], rest[1:]
		}
	}
	b.Header(Header{Type: 'S', Name: name, Mode: 0o644, Magic: MagicGNU, Size: int64(len(data)), Edit: func(blk *[512]byte) {
		put(blk[386:], 4)
		putNumber(blk[483:495], size)
		if len(rest) > 0 {
			blk[482] = 1
		}
	}})
	for len(rest) > 0 {
		var blk [512]byte
		put(blk[:], 21)
		if len(rest) > 0 {
			blk[504] = 1
		}
		b.Raw(blk[:])
	}
	return b.Data(data)
}

// SparsePAX writes a sparse file in a PAX format: version "0.0", "0.1" or "1.0".
// more are further records (key, value, ...) of its header.
func (b *Builder) SparsePAX(version, name string, size int64, parts []Part, more ...string) *Builder {
	data := stored(parts)
	real, count := strconv.FormatInt(size, 10), strconv.Itoa(len(parts))
	pax := more
	h := Header{Type: '0', Name: "GNUSparseFile.0/x", Mode: 0o644}
	switch version {
	case "0.0":
		h.Name = name
		pax = append(pax, "GNU.sparse.size", real, "GNU.sparse.numblocks", count)
		for _, p := range parts {
			pax = append(pax, "GNU.sparse.offset", strconv.FormatInt(p.Offset, 10), "GNU.sparse.numbytes", strconv.Itoa(len(p.Data)))
		}
	case "0.1":
		var m []string
		for _, p := range parts {
			m = append(m, strconv.FormatInt(p.Offset, 10), strconv.Itoa(len(p.Data)))
		}
		pax = append(pax, "GNU.sparse.size", real, "GNU.sparse.numblocks", count, "GNU.sparse.name", name, "GNU.sparse.map", strings.Join(m, ","))
	case "1.0":
		pax = append(pax, "GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.name", name, "GNU.sparse.realsize", real)
		m := count + "\n"
		for _, p := range parts {
			m += strconv.FormatInt(p.Offset, 10) + "\n" + strconv.Itoa(len(p.Data)) + "\n"
		}
		m += strings.Repeat("\x00", -len(m)&(blockBytes-1))
		data = append([]byte(m), data...)
	}
	return b.PAX(pax...).Entry(h, data)
}

// Fill returns n bytes that differ from place to place and from seed to seed, and
// compress about as well as code does.
func Fill(seed, n int) []byte {
	b := make([]byte, n)
	x := uint64(seed)*0x9e3779b97f4a7c15 + 1
	for i := 0; i < n; i += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		var w [8]byte
		binary.LittleEndian.PutUint64(w[:], x&0x0f0f0f0f0f0f0f0f+0x4040404040404040)
		copy(b[i:], w[:])
	}
	return b
}

// Gzip compresses b into the number of gzip members, of about the same input each.
func Gzip(b []byte, members int) []byte {
	var out bytes.Buffer
	for i := range members {
		part := b[len(b)*i/members : len(b)*(i+1)/members]
		w := gzip.NewWriter(&out)
		if _, err := w.Write(part); err != nil {
			panic(err) // a bytes.Buffer does not fail
		}
		if err := w.Close(); err != nil {
			panic(err)
		}
	}
	return out.Bytes()
}
