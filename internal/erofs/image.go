package erofs

import (
	"bytes"
	"fmt"
	"strings"
)

// Image is an opened image. Its methods check all that they read.
type Image struct {
	data    []byte
	size    int64 // of it that the superblock speaks of
	rootNID uint64
	base    int64 // byte of inode 0
	epoch   mtime
	inodes  uint64
	devices []Device
}

// Open checks the superblock and the device table of an image, and that it uses
// only what [Write] writes. What lies behind them is checked when it is read.
// Errors are [*CorruptError]. The image keeps data, which is not to be changed.
func Open(data []byte) (*Image, error) {
	size := int64(len(data))
	img := &Image{data: data, size: size}
	sb, err := img.bytes(superOffset, blockSize)
	if err != nil {
		return nil, err
	}
	incompat := le.Uint32(sb[sbFeatureIncompat:])
	switch {
	case le.Uint32(sb[sbMagic:]) != superMagic:
		return nil, corrupt(superOffset, "no EROFS magic")
	case le.Uint32(sb[sbFeatureCompat:])&compatSBChksum == 0 || le.Uint32(sb[sbChecksum:]) != superChecksum(sb):
		return nil, corrupt(superOffset, "superblock checksum does not match")
	case sb[sbBlkSzBits] != blockBits || sb[sbDirBlkBits] != 0:
		return nil, corrupt(superOffset, "block size is not %d", blockSize)
	case incompat&^(incompatChunkedFile|incompatDeviceTable) != 0 || sb[sbExtSlots] != 0:
		return nil, corrupt(superOffset, "features %#x are not supported", incompat)
	case le.Uint32(sb[sbFeatureCompat:])&^(compatSBChksum|compatMtime) != 0 || !allZero(sb[sbDirBlkBits:superSize]):
		return nil, corrupt(superOffset, "compatible features or fields are set that are not known")
	case int64(le.Uint32(sb[sbBlocks:]))<<blockBits > size:
		return nil, corrupt(superOffset, "image of %d blocks is cut at %d bytes", le.Uint32(sb[sbBlocks:]), size)
	}
	img.size = int64(le.Uint32(sb[sbBlocks:])) << blockBits
	img.rootNID = uint64(le.Uint16(sb[sbRootNID:]))
	img.base = int64(le.Uint32(sb[sbMetaBlkAddr:])) << blockBits
	img.epoch = mtime{int64(le.Uint64(sb[sbEpoch:])), le.Uint32(sb[sbFixedNsec:])}
	img.inodes = le.Uint64(sb[sbInos:])
	if err := img.readDevices(int64(le.Uint16(sb[sbDevtSlotOff:])), int(le.Uint16(sb[sbExtraDevices:]))); err != nil {
		return nil, err
	}
	root, err := img.inode(img.rootNID)
	if err != nil {
		return nil, err
	}
	if root.kind() != ModeDir {
		return nil, corrupt(root.pos, "root is not a directory")
	}
	return img, nil
}

func (img *Image) readDevices(slot int64, count int) error {
	if count > MaxDevices {
		return corrupt(superOffset, "%d devices", count)
	}
	for i := range int64(count) {
		off := (slot + i) * deviceSlotSize
		b, err := img.bytes(off, deviceSlotSize)
		if err != nil {
			return err
		}
		blocks := int64(le.Uint32(b[dsBlocks:]))
		if !allZero(b[dsUniAddr:]) { // it has no place in the unified space; Linux 6.15 has high bits there
			return corrupt(off, "field of a device is set that is not supported")
		}
		img.devices = append(img.devices, Device{strings.TrimRight(string(b[:deviceTagSize]), "\x00"), blocks << blockBits})
	}
	return nil
}

// Devices returns the image's devices; the slice is not to be changed.
func (img *Image) Devices() []Device { return img.devices }

// Inodes returns the number of inodes that the superblock claims.
func (img *Image) Inodes() uint64 { return img.inodes }

// bytes returns n bytes of the image, which are not to be changed.
func (img *Image) bytes(off int64, n int) ([]byte, error) {
	if off < 0 || off > img.size || int64(n) > img.size-off {
		return nil, corrupt(off, "%d bytes wanted, the image ends at %d", n, img.size)
	}
	return img.data[off:][:n:n], nil
}

func allZero(b []byte) bool { return len(bytes.TrimLeft(b, "\x00")) == 0 }

func corrupt(off int64, format string, args ...any) error {
	return &CorruptError{off, fmt.Sprintf(format, args...)}
}
