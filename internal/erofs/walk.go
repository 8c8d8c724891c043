package erofs

import (
	"bytes"
	"fmt"
	"io/fs"
	"strings"
)

// entry is a name as a directory block has it.
type entry struct {
	name     string
	nid      uint64
	fileType uint8
}

// readDir calls fn with the entries of a directory, "." and ".." included. They
// are checked to be names, strictly sorted; the inodes they name are not.
func (img *Image) readDir(dir *Info, size int64, fn func(entry) error) error {
	in := *dir
	in.SizeBytes = size
	last := ""
	for off := int64(0); off < size; off += blockSize {
		b, at, err := img.block(&in, off)
		if err != nil {
			return err
		}
		entries, err := parseBlock(b, at)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if e.name <= last {
				return corrupt(at, "name %q is not sorted", e.name)
			}
			last = e.name
			if err := fn(e); err != nil {
				return err
			}
		}
	}
	return nil
}

func parseBlock(b []byte, at int64) ([]entry, error) {
	if len(b) < direntSize {
		return nil, corrupt(at, "directory block of %d bytes", len(b))
	}
	next := int(le.Uint16(b[8:]))
	count := next / direntSize
	if count == 0 || next%direntSize != 0 || next >= len(b) {
		return nil, corrupt(at, "first name at %d", next)
	}
	entries := make([]entry, count)
	text := string(b) // of all names
	for i := range entries {
		de := b[i*direntSize:]
		start, end := next, len(b)
		if i+1 < count {
			end = int(le.Uint16(de[direntSize+8:]))
		} else if nul := bytes.IndexByte(b[min(start, end):], 0); nul >= 0 {
			end = start + nul
		}
		if start >= end || end > len(b) || !validName(text[start:end]) {
			return nil, corrupt(at, "no name in bytes %d to %d", start, end)
		}
		entries[i] = entry{text[start:end], le.Uint64(de), de[10]}
		next = end
	}
	return entries, nil
}

// Walk calls fn for each name in the image: the root as "", then depth first,
// names sorted by their bytes. All names of one file get the same NID. An error
// of fn ends the walk and is returned.
//
// The memory and time a hostile image can cost are in proportion to its size.
func (img *Image) Walk(fn func(path string, info *Info) error) error {
	return newWalker(img, fn).walk()
}

// Check checks all of the image that a path leads to: what Walk would refuse, it
// refuses, and so does whoever hands an image to the kernel, which trusts more.
func (img *Image) Check() error {
	return newWalker(img, nil).walk()
}

func newWalker(img *Image, fn func(string, *Info) error) *walker {
	return &walker{img: img, fn: fn, budget: 2*img.size + 1<<16, seen: make([]uint64, img.size/nidUnit/64+1), links: map[uint64]*Info{}}
}

func (w *walker) walk() error {
	img := w.img
	root, size, err := w.visit("", entry{"", img.rootNID, direntTypes[ModeDir>>12]})
	if err != nil {
		return err
	}
	stack := []*walkDir{{info: root, size: size, parent: img.rootNID}}
	for len(stack) > 0 {
		top := stack[len(stack)-1]
		if !top.read {
			if err := w.list(top); err != nil {
				return err
			}
		}
		if len(top.kids) == 0 {
			stack = stack[:len(stack)-1]
			continue
		}
		kid := top.kids[0]
		top.kids = top.kids[1:]
		pathBytes := top.pathBytes + len(kid.name) + 1
		if pathBytes-1 > MaxPathBytes {
			return corrupt(top.info.pos, "a path has more than %d bytes", MaxPathBytes)
		}
		path := kid.name
		if top.path != "" && w.fn != nil {
			path = top.path + "/" + kid.name
		}
		info, size, err := w.visit(path, kid)
		if err != nil {
			return err
		}
		if info.kind() == ModeDir {
			stack = append(stack, &walkDir{path: path, pathBytes: pathBytes, info: info, size: size, parent: top.info.NID})
		}
	}
	return nil
}

type walker struct {
	img    *Image
	fn     func(string, *Info) error // nil: only check, with names for paths
	each   func(*Info, int64) error  // nil, or called for each inode once, with the size of its data; the Info is its only during the call
	budget int64                     // bytes that may yet be read: structures that overlap use it up
	seen   []uint64                  // bit set of the inodes visited
	links  map[uint64]*Info          // those of them that may have further names
	spare  Info                      // for inodes that nobody keeps
}

type walkDir struct {
	path      string
	pathBytes int // with a slash at its end, but for the root
	info      *Info
	size      int64
	parent    uint64
	read      bool
	kids      []entry
}

func (w *walker) spend(at, n int64) error {
	if w.budget -= n; w.budget < 0 {
		return corrupt(at, "structures overlap")
	}
	return nil
}

// visit reads the inode of an entry and hands it to fn; size is a directory's.
func (w *walker) visit(path string, e entry) (info *Info, size int64, err error) {
	word, bit := e.nid/64, uint64(1)<<(e.nid%64)
	switch {
	case word >= uint64(len(w.seen)) || w.seen[word]&bit == 0:
		info = &w.spare
		if w.fn != nil {
			info = new(Info)
		}
		if err := w.img.readInode(e.nid, info); err != nil {
			return nil, 0, err
		}
		size = info.SizeBytes
		cost, err := w.img.load(info)
		if err != nil {
			return nil, 0, err
		}
		if err := w.spend(info.pos, cost); err != nil {
			return nil, 0, err
		}
		w.seen[word] |= bit
		if w.each != nil {
			if err := w.each(info, size); err != nil {
				return nil, 0, err
			}
		}
		if info.kind() == ModeDir || info.Nlink > 1 {
			if info == &w.spare {
				kept := w.spare
				info, w.spare = &kept, Info{} // with its extents
			}
			if info.kind() != ModeDir {
				w.links[e.nid] = info
			}
		}
	default:
		if info = w.links[e.nid]; info == nil {
			return nil, 0, corrupt(superOffset, "%q: inode %d has more names than links", path, e.nid)
		}
	}
	if e.fileType != direntTypes[info.kind()>>12] {
		return nil, 0, corrupt(info.pos, "%q: mode %o is not of file type %d", path, info.Mode, e.fileType)
	}
	if w.fn == nil {
		return info, size, nil
	}
	return info, size, w.fn(path, info)
}

// list reads the entries of a directory.
func (w *walker) list(dir *walkDir) error {
	dir.read = true
	if err := w.spend(dir.info.pos, dir.size); err != nil {
		return err
	}
	dots := 0
	err := w.img.readDir(dir.info, dir.size, func(e entry) error {
		switch {
		case e.name == "." && e.nid == dir.info.NID, e.name == ".." && e.nid == dir.parent:
			dots++
		case e.name == "." || e.name == "..":
			return corrupt(dir.info.pos, "%q is inode %d", e.name, e.nid)
		default:
			dir.kids = append(dir.kids, e)
		}
		return nil
	})
	if err == nil && dots != 2 {
		return corrupt(dir.info.pos, "directory without . or ..")
	}
	return err
}

// Lookup returns the inode at a path relative to the root, which is "". Symlinks
// are not followed. The error is fs.ErrNotExist when there is none.
func (img *Image) Lookup(path string) (*Info, error) {
	info, err := img.inode(img.rootNID)
	if err != nil {
		return nil, err
	}
	for name := range strings.SplitSeq(path, "/") {
		if path == "" {
			break
		}
		if info, err = img.child(info, name); err != nil {
			return nil, fmt.Errorf("look up %q: %w", path, err)
		}
	}
	_, err = img.load(info)
	return info, err
}

func (img *Image) child(dir *Info, name string) (*Info, error) {
	if dir.kind() != ModeDir || name == "." || name == ".." {
		return nil, fs.ErrNotExist
	}
	if dir.SizeBytes > img.size {
		return nil, corrupt(dir.pos, "directory of %d bytes", dir.SizeBytes)
	}
	var found *entry
	err := img.readDir(dir, dir.SizeBytes, func(e entry) error {
		if e.name < name {
			return nil
		}
		if e.name == name {
			found = &e
		}
		return fs.SkipDir
	})
	if err != nil && err != fs.SkipDir {
		return nil, err
	}
	if found == nil {
		return nil, fs.ErrNotExist
	}
	return img.inode(found.nid)
}
