package erofs

import "fmt"

// File type bits of Inode.Mode, as in stat(2).
const (
	ModeType    = 0o170000
	ModeFifo    = 0o010000
	ModeChar    = 0o020000
	ModeDir     = 0o040000
	ModeBlock   = 0o060000
	ModeRegular = 0o100000
	ModeSymlink = 0o120000
	ModeSocket  = 0o140000
)

// Inode is a file of any type. One that several [Dirent] point to is a hardlink;
// a directory has one Dirent only.
type Inode struct {
	Mode      uint32 // type bits | permission, setuid, setgid and sticky bits
	UID, GID  uint32
	MtimeSec  int64 // may be negative
	MtimeNsec uint32
	SizeBytes int64 // of a regular file; ignored for other types

	DevMajor, DevMinor uint32 // of a character or block device: 12 and 20 bits

	Link     string   // of a symlink: 1 to 4095 bytes, no NUL
	Xattrs   []Xattr  // in any order; each name once
	Extents  []Extent // of a regular file, by Offset; what none covers is a hole
	Children []Dirent // of a directory, in any order; each name once, no "." or ".."
}

// Dirent is a name in a directory: 1 to 255 bytes, any but NUL and '/'.
type Dirent struct {
	Name  string
	Inode *Inode
}

// Xattr is an extended attribute. See [KnownXattr] for the names that EROFS has
// and [MaxXattrValue]; all of an inode's take 256 KiB at most.
type Xattr struct {
	Name  string
	Value []byte
}

// Extent places Length bytes of a file at OffsetDevice of a device. Both offsets
// are multiples of 512; so is Length, but for an extent that ends the file: of it
// too the device must hold the whole last block.
type Extent struct {
	Offset, Length int64
	Device         uint16 // 1 is the first device
	OffsetDevice   int64
}

// Device is a file that holds data; images name it by its place in the mount's
// device list, not by Tag.
type Device struct {
	Tag       string // at most 64 bytes; for humans and tools
	SizeBytes int64  // at most 2 TiB; a last block that is not whole is not used
}

// InputError says which file of the tree cannot be written, and why.
type InputError struct {
	Path   string // relative to the root, which is ""
	Reason string
}

func (e *InputError) Error() string {
	return fmt.Sprintf("write erofs image: %q: %s", e.Path, e.Reason)
}

// CorruptError says where an image breaks the format, or uses a part of it that
// this package never writes.
type CorruptError struct {
	Offset int64 // of the broken structure in the image
	Reason string
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("read erofs image: at byte %d: %s", e.Offset, e.Reason)
}
