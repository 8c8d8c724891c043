package erofs

import "crypto/sha256"

// Write returns the image of the tree under root, whose files' data lies in
// devices. It does not change the tree, and keeps nothing of it. Errors about
// one file are [*InputError].
func Write(root *Inode, devices []Device) ([]byte, error) {
	p, err := newPlan(root, devices)
	if err != nil {
		return nil, err
	}
	img := make([]byte, p.size)
	for i := range p.nodes {
		p.putNode(img, i)
	}
	p.putDevices(img)
	p.putSuper(img)
	return img, nil
}

func (p *plan) putDevices(img []byte) {
	for i, d := range p.devices {
		slot := img[superOffset+superSize+deviceSlotSize*i:]
		copy(slot[:deviceTagSize], d.Tag)
		le.PutUint32(slot[dsBlocks:], uint32(d.SizeBytes>>blockBits))
	}
}

func (p *plan) putSuper(img []byte) {
	sb := img[superOffset:]
	le.PutUint32(sb[sbMagic:], superMagic)
	le.PutUint32(sb[sbFeatureCompat:], compatSBChksum|compatMtime)
	sb[sbBlkSzBits] = blockBits
	le.PutUint16(sb[sbRootNID:], uint16(p.nodes[0].pos/nidUnit))
	le.PutUint64(sb[sbInos:], uint64(len(p.nodes)))
	le.PutUint64(sb[sbEpoch:], uint64(p.epoch.sec))
	le.PutUint32(sb[sbFixedNsec:], p.epoch.nsec)
	le.PutUint32(sb[sbBlocks:], uint32(p.size>>blockBits))
	le.PutUint32(sb[sbFeatureIncompat:], incompatChunkedFile|incompatDeviceTable)
	le.PutUint16(sb[sbExtraDevices:], uint16(len(p.devices)))
	le.PutUint16(sb[sbDevtSlotOff:], (superOffset+superSize)/deviceSlotSize)

	// The UUID is that of the content: version 8, which leaves the rest to us.
	sum := sha256.Sum256(img)
	uuid := sb[sbUUID : sbUUID+16]
	copy(uuid, sum[:])
	uuid[6] = uuid[6]&0x0f | 0x80
	uuid[8] = uuid[8]&0x3f | 0x80
	le.PutUint32(sb[sbChecksum:], superChecksum(sb[:blockSize]))
}

// putNode writes an inode and all that belongs to it.
func (p *plan) putNode(img []byte, i int) {
	n := &p.nodes[i]
	b := img[n.pos:]
	p.putInode(b, n)
	if n.xattrBytes > 0 {
		putXattrs(b[n.inodeBytes():], n.in.Xattrs)
	}
	end := n.inodeBytes() + int(n.xattrBytes)
	if n.layout == layoutChunkBased {
		putChunks(b[roundUp(end, chunkUnit):], n)
		return
	}
	b = b[end:]
	out := img[int64(n.dataBlock)<<blockBits:]
	switch n.kind() {
	case ModeSymlink:
		full := copy(out[:len(n.in.Link)-int(n.tailBytes)], n.in.Link)
		copy(b, n.in.Link[full:])
	case ModeDir:
		d := newDirEntries(n.dir.kids)
		for from := 0; from < d.len(); {
			to, _ := d.block(from)
			block := b
			if to < d.len() || n.tailBytes == 0 {
				block, out = out, out[blockSize:]
			}
			p.putBlock(block, i, d, from, to)
			from = to
		}
	}
}

func (p *plan) putInode(b []byte, n *node) {
	in := n.in
	size := n.dataBytes
	u := n.dataBlock
	switch n.kind() {
	case ModeRegular:
		size = in.SizeBytes
		if size > 0 {
			u = chunkIndexes | uint32(n.chunkBits)
		}
	case ModeChar, ModeBlock:
		u = encodeDev(in.DevMajor, in.DevMinor)
	}
	format := uint16(n.layout) << 1
	if !n.compact {
		format |= formatExtended
	}
	le.PutUint16(b[inFormat:], format)
	if n.xattrBytes > 0 {
		le.PutUint16(b[inXattrICount:], uint16((n.xattrBytes-xattrHeaderSize)/4+1))
	}
	le.PutUint16(b[inMode:], uint16(in.Mode))
	le.PutUint32(b[inU:], u)
	// i_ino stays 0: it is for 32-bit systems only, and zeros compress.
	if n.compact {
		le.PutUint16(b[inCompactNlink:], uint16(n.nlink))
		le.PutUint32(b[inSize:], uint32(size))
		le.PutUint16(b[inCompactUID:], uint16(in.UID))
		le.PutUint16(b[inCompactGID:], uint16(in.GID))
		return
	}
	le.PutUint64(b[inSize:], uint64(size))
	le.PutUint32(b[inExtendedUID:], in.UID)
	le.PutUint32(b[inExtendedGID:], in.GID)
	le.PutUint64(b[inExtendedMtime:], uint64(in.MtimeSec))
	le.PutUint32(b[inExtendedMtimeNsec:], in.MtimeNsec)
	le.PutUint32(b[inExtendedNlink:], n.nlink)
}
