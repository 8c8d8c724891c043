package erofs

import "strings"

// Info is an inode as an image has it.
type Info struct {
	NID    uint64 // the same for all names of one file
	Nlink  uint32
	Inode  // without Children; Extents are sorted and merged
	layout uint8
	u      uint32
	pos    int64 // of the inode
	end    int64 // of the inode and its xattrs
}

func (in *Info) kind() uint32 { return in.Mode & ModeType }

// inode reads an inode without what lies behind it.
func (img *Image) inode(nid uint64) (*Info, error) {
	in := new(Info)
	if err := img.readInode(nid, in); err != nil {
		return nil, err
	}
	return in, nil
}

// readInode is inode into what the caller has. The room for extents is used again.
func (img *Image) readInode(nid uint64, in *Info) error {
	if nid > uint64(img.size)/nidUnit {
		return corrupt(superOffset, "inode %d is outside of the image", nid)
	}
	*in = Info{NID: nid, pos: img.base + int64(nid)*nidUnit, Inode: Inode{Extents: in.Extents[:0]}}
	b, err := img.bytes(in.pos, compactSize)
	if err != nil {
		return err
	}
	format := le.Uint16(b[inFormat:])
	in.layout = uint8(format >> 1)
	in.end = in.pos + compactSize
	if format&formatExtended != 0 {
		in.end = in.pos + extendedSize
		if b, err = img.bytes(in.pos, extendedSize); err != nil {
			return err
		}
	}
	if n := int64(le.Uint16(b[inXattrICount:])); n > 0 {
		in.end += xattrHeaderSize + 4*(n-1)
	}
	in.Mode = uint32(le.Uint16(b[inMode:]))
	in.u = le.Uint32(b[inU:])
	if format&formatExtended != 0 {
		in.SizeBytes = int64(le.Uint64(b[inSize:]))
		in.UID, in.GID = le.Uint32(b[inExtendedUID:]), le.Uint32(b[inExtendedGID:])
		in.MtimeSec, in.MtimeNsec = int64(le.Uint64(b[inExtendedMtime:])), le.Uint32(b[inExtendedMtimeNsec:])
		in.Nlink = le.Uint32(b[inExtendedNlink:])
	} else {
		in.SizeBytes = int64(le.Uint32(b[inSize:]))
		in.UID, in.GID = uint32(le.Uint16(b[inCompactUID:])), uint32(le.Uint16(b[inCompactGID:]))
		in.MtimeSec, in.MtimeNsec = img.epoch.sec, img.epoch.nsec
		in.Nlink = uint32(le.Uint16(b[inCompactNlink:]))
	}
	// Linux 6.15 gave meaning to these: high bits of an address, a time.
	if format&formatExtended != 0 && le.Uint16(b[inExtendedHi:]) != 0 || format&formatExtended == 0 && le.Uint32(b[inCompactMtime:]) != 0 {
		return corrupt(in.pos, "reserved field of an inode is set")
	}
	return img.checkInode(in, format)
}

func (img *Image) checkInode(in *Info, format uint16) error {
	layoutOK := in.layout == layoutFlatPlain
	switch in.kind() {
	case ModeRegular:
		layoutOK = layoutOK || in.layout == layoutChunkBased
	case ModeDir, ModeSymlink:
		layoutOK = layoutOK || in.layout == layoutFlatInline
	case ModeChar, ModeBlock:
		in.DevMajor, in.DevMinor = decodeDev(in.u)
	case ModeFifo, ModeSocket:
	default:
		return corrupt(in.pos, "mode %o has no file type", in.Mode)
	}
	switch {
	case format>>4 != 0 || !layoutOK:
		return corrupt(in.pos, "inode format %#x of mode %o is not supported", format, in.Mode)
	case in.SizeBytes < 0 || in.MtimeNsec >= 1e9 || in.Nlink == 0:
		return corrupt(in.pos, "size %d, nanoseconds %d or %d links out of range", in.SizeBytes, in.MtimeNsec, in.Nlink)
	}
	return nil
}

// load reads what lies behind an inode, but not a directory's entries, and
// returns the number of bytes that took.
func (img *Image) load(in *Info) (cost int64, err error) {
	cost = in.end - in.pos
	if in.Xattrs, err = img.xattrs(in); err != nil {
		return cost, err
	}
	switch in.kind() {
	case ModeRegular:
		var n int64
		n, err = img.extents(in)
		cost += n
	case ModeSymlink:
		in.Link, err = img.link(in)
		cost += in.SizeBytes
		in.SizeBytes = 0
	default:
		in.SizeBytes = 0
	}
	return cost, err
}

func (img *Image) xattrs(in *Info) ([]Xattr, error) {
	start := in.pos + compactSize
	b, err := img.bytes(in.pos, compactSize)
	if err != nil {
		return nil, err
	}
	if b[inFormat]&formatExtended != 0 {
		start = in.pos + extendedSize
	}
	if start == in.end {
		return nil, nil
	}
	if b, err = img.bytes(start, int(in.end-start)); err != nil {
		return nil, err
	}
	if b[4] != 0 {
		return nil, corrupt(start, "shared xattrs are not supported")
	}
	var xs []Xattr
	for b = b[xattrHeaderSize:]; len(b) > 0; {
		nameLen, valueLen := int(b[0]), int(le.Uint16(b[2:]))
		n := roundUp(xattrEntrySize+nameLen+valueLen, 4)
		if n > len(b) {
			return nil, corrupt(start, "xattr leaves its inode")
		}
		rest := b[xattrEntrySize:][:nameLen+valueLen]
		name, ok := joinXattr(b[1], string(rest[:nameLen]))
		if !ok || len(xs) > 0 && xs[len(xs)-1].Name >= name {
			return nil, corrupt(start, "xattr %d:%q is unknown or out of order", b[1], rest[:nameLen])
		}
		xs = append(xs, Xattr{name, append([]byte{}, rest[nameLen:]...)})
		b = b[n:]
	}
	return xs, nil
}

// link reads a symlink's target.
func (img *Image) link(in *Info) (string, error) {
	if in.SizeBytes == 0 || in.SizeBytes > maxLink {
		return "", corrupt(in.pos, "link of %d bytes", in.SizeBytes)
	}
	var link strings.Builder
	for off := int64(0); off < in.SizeBytes; off += blockSize {
		b, _, err := img.block(in, off)
		if err != nil {
			return "", err
		}
		link.Write(b)
	}
	if strings.IndexByte(link.String(), 0) >= 0 {
		return "", corrupt(in.pos, "NUL in a link")
	}
	return link.String(), nil
}

// block returns the block at off of a directory's or link's data, cut at its end,
// and where that is in the image.
func (img *Image) block(in *Info, off int64) ([]byte, int64, error) {
	n := min(blockSize, in.SizeBytes-off)
	at := int64(in.u)<<blockBits + off
	if in.layout == layoutFlatInline && n < blockSize {
		at = in.end
		if at&(blockSize-1)+n > blockSize {
			return nil, at, corrupt(at, "inline data cross a block")
		}
	}
	b, err := img.bytes(at, int(n))
	return b, at, err
}

// extents reads where a regular file's data lies.
func (img *Image) extents(in *Info) (cost int64, err error) {
	switch {
	case in.layout == layoutChunkBased:
		return img.chunks(in)
	case in.SizeBytes != 0:
		return 0, corrupt(in.pos, "a file of %d bytes in the plain layout is not supported", in.SizeBytes)
	}
	return 0, nil
}

func (img *Image) chunks(in *Info) (cost int64, err error) {
	if in.u&^uint32(chunkBitsMax) != chunkIndexes || in.SizeBytes == 0 {
		return 0, corrupt(in.pos, "chunk format %#x is not supported", in.u)
	}
	bits := blockBits + in.u&chunkBitsMax
	count := (in.SizeBytes-1)>>bits + 1
	start := roundUp(in.end, chunkUnit)
	if count > MaxChunks || count*chunkUnit > img.size-start {
		return 0, corrupt(in.pos, "%d chunks are too many", count)
	}
	for i := range count {
		b, err := img.bytes(start+i*chunkUnit, chunkUnit)
		if err != nil {
			return 0, err
		}
		block := le.Uint32(b[4:])
		if block == nullAddr {
			continue
		}
		e := Extent{i << bits, min(1<<bits, in.SizeBytes-i<<bits), le.Uint16(b[2:]), int64(block) << blockBits}
		if le.Uint16(b) != 0 || e.Device == 0 || int(e.Device) > len(img.devices) || e.Length > img.devices[e.Device-1].SizeBytes-e.OffsetDevice {
			return 0, corrupt(start+i*chunkUnit, "chunk of %d bytes at %d leaves device %d", e.Length, e.OffsetDevice, e.Device)
		}
		in.addExtent(e)
	}
	return count * chunkUnit, nil
}

func (in *Info) addExtent(e Extent) {
	if n := len(in.Extents); n > 0 {
		last := &in.Extents[n-1]
		if last.Device == e.Device && last.Offset+last.Length == e.Offset && last.OffsetDevice+last.Length == e.OffsetDevice {
			last.Length += e.Length
			return
		}
	}
	in.Extents = append(in.Extents, e)
}
