package erofs

import (
	"fmt"
	"math/bits"
)

// mergeNext takes the first extent of es and all that continue it in both the
// file and the device, and returns it with the rest.
func mergeNext(es []Extent) (Extent, []Extent) {
	e := es[0]
	es = es[1:]
	for len(es) > 0 && es[0].Device == e.Device && es[0].Offset == e.Offset+e.Length && es[0].OffsetDevice == e.OffsetDevice+e.Length {
		e.Length += es[0].Length
		es = es[1:]
	}
	return e, es
}

// checkExtents decides how a regular file is mapped: nothing for an empty one, else
// by chunks of the largest size whose multiples all borders are, see chunkBitsFor.
func (p *plan) checkExtents(n *node) (reason string) {
	size := n.in.SizeBytes
	if size < 0 {
		return fmt.Sprintf("size %d", size)
	}
	end, borders := int64(0), int64(0)
	var e Extent
	for es := n.in.Extents; len(es) > 0; {
		e, es = mergeNext(es)
		if reason := p.checkExtent(e, end, size); reason != "" {
			return reason
		}
		end = e.Offset + e.Length
		borders |= e.Offset
		if end < size {
			borders |= end
		}
	}
	if size == 0 {
		return ""
	}
	n.layout = layoutChunkBased
	n.chunkBits = chunkBitsFor(borders, size, len(n.in.Extents) > 0)
	chunks := (size-1)>>(blockBits+n.chunkBits) + 1
	if chunks > MaxChunks {
		return fmt.Sprintf("sparse file needs %d chunks of %d bytes, at most %d are possible", chunks, blockSize<<n.chunkBits, MaxChunks)
	}
	n.chunks = int32(chunks)
	return ""
}

// checkExtent checks one extent of a file that is mapped up to end.
func (p *plan) checkExtent(e Extent, end, size int64) (reason string) {
	switch {
	case e.Length <= 0 || e.Offset < end || e.Offset > size || e.Length > size-e.Offset:
		return fmt.Sprintf("extent [%d, +%d) overlaps another, is out of order or leaves the file of %d bytes", e.Offset, e.Length, size)
	case (e.Offset|e.OffsetDevice)&(blockSize-1) != 0, e.Length&(blockSize-1) != 0 && e.Offset+e.Length != size:
		return fmt.Sprintf("extent [%d, +%d) at %d of device %d is not made of whole %d-byte blocks", e.Offset, e.Length, e.OffsetDevice, e.Device, blockSize)
	case e.Device == 0 || int(e.Device) > len(p.devices):
		return fmt.Sprintf("extent on device %d, there are %d", e.Device, len(p.devices))
	}
	// The kernel reads whole blocks, and fails if the device ends within one.
	blocks := p.devices[e.Device-1].SizeBytes >> blockBits
	if first := e.OffsetDevice >> blockBits; first < 0 || first > blocks || blocksOf(e.Length) > blocks-first {
		return fmt.Sprintf("extent of %d bytes at %d leaves the %d blocks of device %d", e.Length, e.OffsetDevice, blocks, e.Device)
	}
	return ""
}

// A chunk has wantedChunk bytes at most, so that parts of a file can be placed by
// themselves ([Redirect]), but a file has no more than wantedChunks for that.
const (
	wantedChunk  = 128 << 10
	wantedChunks = 1 << 16
)

// chunkBitsFor returns the largest chunk size (as log2 of blocks) that divides
// all borders, given as their bitwise or, and is not larger than is wanted of a
// file with data, or than the file needs.
func chunkBitsFor(borders, size int64, data bool) uint8 {
	n := bits.Len64(uint64(size-1)) - blockBits
	if data {
		n = min(n, max(bits.Len64(wantedChunk-1), bits.Len64(uint64(size-1)/wantedChunks))-blockBits)
	}
	if borders != 0 {
		n = min(n, bits.TrailingZeros64(uint64(borders))-blockBits)
	}
	return uint8(max(0, min(n, chunkBitsMax)))
}

// putChunks writes the chunk indexes of a file.
func putChunks(b []byte, n *node) {
	chunkBytes := int64(blockSize) << n.chunkBits
	var e Extent
	es := n.in.Extents
	for i := range int64(n.chunks) {
		off := i * chunkBytes
		for e.Offset+e.Length <= off && len(es) > 0 {
			e, es = mergeNext(es)
		}
		idx := b[i*chunkUnit:]
		if off < e.Offset || off >= e.Offset+e.Length {
			le.PutUint32(idx[4:], nullAddr)
			continue
		}
		le.PutUint16(idx[2:], e.Device)
		le.PutUint32(idx[4:], uint32((e.OffsetDevice+off-e.Offset)>>blockBits))
	}
}
