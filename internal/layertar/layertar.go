// Package layertar reads the tar of an image layer and says what is in it and
// where: every entry with its attributes and the offset of its data.
//
// It is a push scanner. A [Scanner] is written the uncompressed layer in pieces
// of any size and calls back once an entry as soon as its headers are complete;
// file data is stepped over, never copied. Offsets are offsets in that stream, so
// file data can be read in place later: all of it is 512-byte aligned.
//
// What an archive means follows what image tools do, which is what Go's
// archive/tar does (containerd, Docker, umoci and Podman all stand on it):
//
//   - ustar, PAX, GNU (long names, base-256 numbers, sparse), star and v7 headers.
//     Of several 'x' headers before an entry the last one counts; 'g' headers are
//     checked and otherwise ignored, as no image tool applies them.
//   - Headers of links, directories and devices carry no data, whatever their size
//     field says. A link's own attributes are reported, but a file system has none.
//   - PAX beats ustar fields, GNU long names beat PAX, GNU.sparse.name beats both.
//   - Of duplicate names all are emitted, in order. Merging is the caller's task.
//   - A lone zero block before more data is an error; a missing end is not; what
//     follows two zero blocks is not looked at.
//   - Types that image tools do not know ('V', 'M', 'D', ...) are errors. '7' is a file.
//   - xattrs come from SCHILY.xattr and, where that is missing, LIBARCHIVE.xattr.
//     Those that Linux could not set are dropped, as unpackers do: names outside
//     user., trusted., security. and system.posix_acl_*; user.* on anything but files
//     and directories; ACLs on symlinks. ACLs in text form (SCHILY.acl.*) are ignored.
//   - `.wh.NAME` and `.wh..wh..opq` become [TypeWhiteout] and [TypeOpaque]; aufs's own
//     `.wh..wh.*` are skipped, except that links into .wh..wh.plnk become files.
//
// Input is hostile. A name with "..", an absolute one, a hardlink out of the root,
// NUL bytes, anything too long, too deep or too many is refused with an
// [*EntryError] that names the entry; memory is bounded by [Limits]. Symlink targets
// are never refused for where they lead: they are resolved inside the container's
// root. The package does not merge layers, does not resolve links and reads no data.
//
// Formats: POSIX.1-2017 pax, "Extended Format"; GNU tar manual, "Tar Internals";
// OCI image-spec layer.md for whiteouts.
package layertar

import (
	"fmt"
	"io"
)

// BlockBytes is the unit of tar: headers are one block, data starts at one.
const BlockBytes = 512

// Type is the kind of an [Entry].
type Type uint8

// The types of entries. Whiteouts are not files: they hide what lower layers hold.
const (
	TypeReg Type = iota + 1
	TypeDir
	TypeSymlink
	TypeHardlink
	TypeChar
	TypeBlock
	TypeFifo
	TypeWhiteout // hides Path and everything below it in lower layers
	TypeOpaque   // hides everything below the directory Path in lower layers
)

var typeNames = [...]string{"?", "file", "directory", "symlink", "hardlink", "char device", "block device", "fifo", "whiteout", "opaque"}

// String returns the type in words, for messages.
func (t Type) String() string {
	if int(t) >= len(typeNames) {
		return fmt.Sprintf("type(%d)", uint8(t))
	}
	return typeNames[t]
}

// Segment is a stored part of a sparse file.
type Segment struct {
	Offset    int64 // in the file, 512-aligned
	Length    int64 // in bytes; a multiple of 512 unless the segment ends with the file
	OffsetTar int64 // in the tar, 512-aligned
}

// Xattr is one extended attribute, with its full name ("user.x").
type Xattr struct {
	Name  string
	Value []byte
}

// Entry is one entry of a layer.
type Entry struct {
	// Path is clean and relative, without "./" or "/" at either end; "" is the root.
	// Its bytes are those of the tar (perhaps not UTF-8), no component is longer than 255.
	// For whiteouts it is what is hidden: the path, or (TypeOpaque) the directory.
	Path string
	Type Type
	Mode uint32 // permissions and setuid, setgid, sticky: 07777. 0777 for symlinks
	UID  uint32
	GID  uint32

	SizeBytes   int64 // of the file, holes included; 0 for all other types
	ModTimeSec  int64 // since 1970, may be negative
	ModTimeNsec uint32

	Link string // symlink: the target verbatim; hardlink: a clean relative path

	DevMajor, DevMinor uint32
	Xattrs             []Xattr // sorted by name, names are unique

	// OffsetTar is where a regular file's data starts, 512-aligned; 0 for other types.
	OffsetTar int64
	// Segments is nil for a file stored whole at OffsetTar. A sparse file has at least
	// one, in rising order; bytes in none are zero. A file that is nothing but a hole has
	// a single segment of length 0.
	Segments []Segment

	// OffsetHeader is where the entry's first block is, PAX and GNU long headers included.
	OffsetHeader int64
}

// Limits bound what a layer may hold. A field that is zero takes its default.
type Limits struct {
	Entries    int   // entries of a layer, ignored ones included; 10 million
	TotalBytes int64 // paths, links, xattrs and segments of all entries, with 128 an entry; 2 GiB
	PathBytes  int   // of one path or hardlink target; 4096
	Depth      int   // components of a path; 1024
	MetaBytes  int   // of one PAX header, GNU long name or sparse map; 1 MiB, as in archive/tar
	XattrBytes int   // names and values of one entry; 128 KiB. One value: 64 KiB, one name: 255
	FileBytes  int64 // size of one file, holes included; 16 TiB

	// AbsoluteNames takes names and hardlink targets that start with "/" as relative to
	// the root, as containerd does, instead of refusing them.
	AbsoluteNames bool
}

// DefaultLimits returns the limits that a zero [Limits] stands for.
func DefaultLimits() Limits {
	return Limits{
		Entries:    10_000_000,
		TotalBytes: 2 << 30,
		PathBytes:  4096,
		Depth:      1024,
		MetaBytes:  1 << 20,
		XattrBytes: 128 << 10,
		FileBytes:  16 << 40,
	}
}

func orDefault[T int | int64](v, d T) T {
	if v == 0 {
		return d
	}
	return v
}

func (l Limits) withDefaults() Limits {
	d := DefaultLimits()
	l.Entries = orDefault(l.Entries, d.Entries)
	l.TotalBytes = orDefault(l.TotalBytes, d.TotalBytes)
	l.PathBytes = orDefault(l.PathBytes, d.PathBytes)
	l.Depth = orDefault(l.Depth, d.Depth)
	l.MetaBytes = orDefault(l.MetaBytes, d.MetaBytes)
	l.XattrBytes = orDefault(l.XattrBytes, d.XattrBytes)
	l.FileBytes = orDefault(l.FileBytes, d.FileBytes)
	return l
}

// EntryError says why a tar was refused. It is final: the scanner stops with it.
type EntryError struct {
	Path         string // the entry's name as far as it is known, as in the tar; "" if it is not
	OffsetHeader int64  // of the entry's first block in the tar
	Reason       string
	Err          error // io.ErrUnexpectedEOF where the stream ended too early, else nil
}

// maxErrorPath keeps a hostile name from filling a log.
const maxErrorPath = 512

func (e *EntryError) Error() string {
	path := e.Path
	if len(path) > maxErrorPath {
		path = path[:maxErrorPath] + "..."
	}
	if path == "" {
		return fmt.Sprintf("refuse tar header at offset %d: %s", e.OffsetHeader, e.Reason)
	}
	return fmt.Sprintf("refuse tar entry %q at offset %d: %s", path, e.OffsetHeader, e.Reason)
}

func (e *EntryError) Unwrap() error { return e.Err }

// ReadAll returns all entries of the tar that r reads, in order. On an error it
// returns none; reading stops there.
func ReadAll(r io.Reader, limits Limits) ([]Entry, error) {
	var entries []Entry
	s := NewScanner(limits, func(e Entry) error {
		entries = append(entries, e)
		return nil
	})
	buf := make([]byte, 256<<10)
	for {
		n, err := r.Read(buf)
		if _, err := s.Write(buf[:n]); err != nil {
			return nil, err
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read tar: %w", err)
		}
	}
	if err := s.Close(); err != nil {
		return nil, err
	}
	return entries, nil
}
