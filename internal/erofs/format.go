package erofs

import (
	"encoding/binary"
	"hash/crc32"
)

// On-disk layout, as in Linux fs/erofs/erofs_fs.h. All integers little endian.
const (
	blockBits = 9
	blockSize = 1 << blockBits // a tar record: data of a tar is addressed in place

	superOffset = 1024
	superSize   = 128
	superMagic  = 0xE0F5E1E2

	compatSBChksum = 0x1 // checksum field is set
	compatMtime    = 0x2 // inode times are modification times

	incompatChunkedFile = 0x4
	incompatDeviceTable = 0x8

	deviceSlotSize = 128
	deviceTagSize  = 64

	nidUnit      = 32 // an inode number counts 32-byte slots
	compactSize  = 32
	extendedSize = 64

	formatExtended = 0x1 // i_format: bit 0 version, bits 1-3 data layout

	layoutFlatPlain  = 0
	layoutFlatInline = 2
	layoutChunkBased = 4

	chunkBitsMax  = 31   // log2(chunk / block)
	chunkIndexes  = 0x20 // 8-byte indexes with a device number, not 4-byte block numbers
	chunkUnit     = 8
	nullAddr      = 0xFFFFFFFF // chunk that is a hole
	maxChunkBytes = int64(blockSize) << chunkBitsMax

	xattrHeaderSize = 12
	xattrEntrySize  = 4

	direntSize = 12
	maxName    = 255
	maxLink    = 4095 // page_get_link reads one page
)

// Superblock fields, relative to superOffset.
const (
	sbMagic           = 0
	sbChecksum        = 4
	sbFeatureCompat   = 8
	sbBlkSzBits       = 12
	sbExtSlots        = 13
	sbRootNID         = 14
	sbInos            = 16
	sbEpoch           = 24
	sbFixedNsec       = 32
	sbBlocks          = 36
	sbMetaBlkAddr     = 40
	sbUUID            = 48
	sbFeatureIncompat = 80
	sbExtraDevices    = 86
	sbDevtSlotOff     = 88
	sbDirBlkBits      = 90
)

// Device slot fields.
const (
	dsBlocks  = 64
	dsUniAddr = 68 // and what is behind it: 0
)

// Inode fields. Both versions share the first three and i_u at 16.
const (
	inFormat      = 0
	inXattrICount = 2
	inMode        = 4
	inSize        = 8
	inU           = 16

	inCompactNlink = 6
	inCompactMtime = 12 // reserved before Linux 6.15
	inCompactUID   = 24
	inCompactGID   = 26

	inExtendedHi        = 6 // reserved before Linux 6.15
	inExtendedUID       = 24
	inExtendedGID       = 28
	inExtendedMtime     = 32
	inExtendedMtimeNsec = 40
	inExtendedNlink     = 44
)

// Limits of the images this package writes; see docs/formats/erofs.md.
const (
	// MaxDevices is the highest number of devices of an image.
	MaxDevices = 4096
	// MaxChunks is the highest number of chunk indexes of one sparse file.
	MaxChunks = 1 << 22
	// MaxPathBytes is the longest path of an inode, its slashes included.
	MaxPathBytes = 64 << 10

	maxImageBytes  = 4 << 30
	maxDeviceBytes = int64(nullAddr) << blockBits
)

var le = binary.LittleEndian

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// superChecksum is the superblock's crc32c: over the rest of its block, with the
// checksum field zero, seeded with ~0 and (as in the kernel) not inverted.
func superChecksum(block []byte) uint32 {
	var zero [4]byte
	crc := crc32.Update(0, castagnoli, block[:sbChecksum])
	crc = crc32.Update(crc, castagnoli, zero[:])
	return ^crc32.Update(crc, castagnoli, block[sbChecksum+4:])
}

// File types in directory entries, indexed by mode >> 12.
var direntTypes = [16]uint8{0o01: 5, 0o02: 3, 0o04: 2, 0o06: 4, 0o10: 1, 0o12: 7, 0o14: 6}

// encodeDev is the kernel's new_encode_dev: 12 bits of major, 20 of minor.
func encodeDev(major, minor uint32) uint32 {
	return minor&0xff | major<<8 | (minor&^0xff)<<12
}

func decodeDev(dev uint32) (major, minor uint32) {
	return dev >> 8 & 0xfff, dev&0xff | dev>>12&0xfff00
}

func roundUp[T int | int64](n, unit T) T { return (n + unit - 1) &^ (unit - 1) }

func blocksOf(n int64) int64 { return n>>blockBits + min(n&(blockSize-1), 1) }
