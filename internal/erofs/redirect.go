package erofs

// Redirect returns a copy of an image that has each device twice: device n+i is device i of n once more. The chunks of files that
// choose chooses are on the second ones, at the same place; it is asked once for each, with its extent on the first. All else is as it
// was, and data is not changed.
//
// All of the image is checked on the way, as by [Image.Check]. Errors are [*CorruptError], also for an image that the kernel could
// read but [Write] does not write.
func Redirect(data []byte, choose func(Extent) bool) ([]byte, error) {
	img, err := Open(data)
	if err != nil {
		return nil, err
	}
	count := len(img.devices)
	const table = superOffset + superSize
	tableBytes := int64(count) * deviceSlotSize
	sb := data[superOffset:]
	switch {
	case 2*count > MaxDevices:
		return nil, corrupt(superOffset, "%d devices are too many to have twice", count)
	case int64(le.Uint16(sb[sbDevtSlotOff:]))*deviceSlotSize != table || table+tableBytes > img.size:
		return nil, corrupt(superOffset, "the device table is not behind the superblock")
	}
	r := redirect{img: img, choose: choose, behind: table + tableBytes, shift: roundUp(tableBytes, blockSize)}
	if img.size+r.shift > maxImageBytes {
		return nil, corrupt(superOffset, "%d devices are too many to have twice", count)
	}
	r.out = make([]byte, img.size+r.shift)
	copy(r.out, data[:r.behind])
	copy(r.out[r.behind:], data[table:r.behind])
	copy(r.out[r.behind+r.shift:], data[r.behind:img.size])

	sb = r.out[superOffset:]
	le.PutUint16(sb[sbExtraDevices:], uint16(2*count))
	le.PutUint32(sb[sbMetaBlkAddr:], uint32((img.base+r.shift)>>blockBits))
	le.PutUint32(sb[sbBlocks:], uint32(int64(len(r.out))>>blockBits))

	w := newWalker(img, nil)
	w.each = r.inode
	if err := w.walk(); err != nil {
		return nil, err
	}
	le.PutUint32(sb[sbChecksum:], superChecksum(sb[:blockSize]))
	return r.out, nil
}

// redirect is one Redirect: what lay behind the device table lies shift bytes further on.
type redirect struct {
	img           *Image
	choose        func(Extent) bool
	out           []byte
	behind, shift int64
}

// inode mends an inode that is where it belongs already.
func (r *redirect) inode(in *Info) error {
	if in.pos < r.behind {
		return corrupt(in.pos, "an inode lies in the device table")
	}
	switch in.kind() {
	case ModeDir, ModeSymlink:
		if in.u == 0 {
			return nil // all of it is behind the inode
		}
		if int64(in.u)<<blockBits < r.behind {
			return corrupt(in.pos, "data of an inode lie in the device table")
		}
		le.PutUint32(r.out[in.pos+r.shift+inU:], in.u+uint32(r.shift>>blockBits))
	case ModeRegular:
		if in.layout == layoutChunkBased {
			r.chunks(in)
		}
	}
	return nil
}

// chunks moves the chosen chunks of a file, which were checked, to the second devices.
func (r *redirect) chunks(in *Info) {
	bits := blockBits + in.u&chunkBitsMax
	start := roundUp(in.end, chunkUnit) + r.shift
	for off := int64(0); off < in.SizeBytes; off += 1 << bits {
		idx := r.out[start+off>>bits*chunkUnit:][:chunkUnit]
		block, device := le.Uint32(idx[4:]), le.Uint16(idx[2:])
		if block != nullAddr && r.choose(Extent{off, min(1<<bits, in.SizeBytes-off), device, int64(block) << blockBits}) {
			le.PutUint16(idx[2:], device+uint16(len(r.img.devices)))
		}
	}
}
