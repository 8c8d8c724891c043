package erofs

// Redirect returns a copy of an image that has each device twice: device n+i is device i of n once more. The chunks of files that
// choose chooses are on the second ones, at the same place; it is asked once for each, with its extent on the first. All else is as it
// was, and data is not changed.
//
// All of the image is checked on the way, as by [Image.Check], and that no two structures share bytes: what is changed for one of them
// would be another's. Errors are [*CorruptError], also for an image that the kernel could read but [Write] does not write.
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
	r := redirect{img: img, choose: choose, behind: table + tableBytes, shift: roundUp(tableBytes, blockSize),
		used: make([]uint64, img.size/nidUnit/64+1)}
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
	used          []uint64 // bit set of the slots of nidUnit bytes that are some structure's
}

// inode mends an inode that is where it belongs already; size is of its data.
func (r *redirect) inode(in *Info, size int64) error {
	end, blocks := in.end, int64(0) // of what lies in one piece with the inode, and of what does not
	switch in.kind() {
	case ModeDir, ModeSymlink:
		blocks = size
		if in.layout == layoutFlatInline {
			blocks &^= blockSize - 1
			end += size - blocks
		}
	case ModeRegular:
		if in.layout == layoutChunkBased {
			end = roundUp(end, chunkUnit) + ((in.SizeBytes-1)>>(blockBits+in.u&chunkBitsMax)+1)*chunkUnit
		}
	}
	if err := r.use(in.pos, end-in.pos); err != nil {
		return err
	}
	if blocks > 0 {
		if err := r.use(int64(in.u)<<blockBits, blocks); err != nil {
			return err
		}
		le.PutUint32(r.out[in.pos+r.shift+inU:], in.u+uint32(r.shift>>blockBits))
	}
	if in.kind() == ModeRegular && in.layout == layoutChunkBased {
		r.chunks(in)
	}
	return nil
}

// use refuses bytes of a structure that lie before what is shifted, or are another one's.
func (r *redirect) use(off, n int64) error {
	if off < r.behind || n > r.img.size-off {
		return corrupt(off, "%d bytes are outside of the image, or in its device table", n)
	}
	for slot := off / nidUnit; slot*nidUnit < off+n; slot++ {
		word, bit := &r.used[slot/64], uint64(1)<<(slot%64)
		if *word&bit != 0 {
			return corrupt(off, "structures overlap")
		}
		*word |= bit
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
