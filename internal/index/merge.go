package index

import (
	"errors"
	"fmt"
	"strings"

	"github.com/thaw-project/thaw/internal/erofs"
	"github.com/thaw-project/thaw/internal/layertar"
)

// maxLinks bounds the symlinks followed to reach one entry's directory, as the
// kernel does (path_resolution(7)).
const maxLinks = 40

// MergeError names the entry that cannot be applied to the layers below it.
type MergeError struct {
	Layer int    // counted from the bottom, from 0
	Path  string // of the entry, as in the tar
	Err   error
}

func (e *MergeError) Error() string {
	return fmt.Sprintf("layer %d: entry %q: %v", e.Layer, e.Path, e.Err)
}
func (e *MergeError) Unwrap() error { return e.Err }

var (
	errNotDir     = errors.New("a component of its path is not a directory")
	errLinks      = errors.New("too many symbolic links in its path")
	errNoTarget   = errors.New("hard link to a file that is not there")
	errDirTarget  = errors.New("hard link to a directory")
	errSelfTarget = errors.New("hard link to itself")
	errRootType   = errors.New("the root is not a directory")
)

// node is a file of the merged tree while layers are applied.
type node struct {
	inode    *erofs.Inode
	parent   *node
	children map[string]*node // of a directory; shared by no other node
}

const (
	modeType    = 0o170000
	modeDir     = 0o040000
	modeRegular = 0o100000
	modeSymlink = 0o120000
)

func (n *node) isDir() bool { return n.inode.Mode&modeType == modeDir }

func newDir(parent *node) *node {
	return &node{inode: &erofs.Inode{Mode: modeDir | 0o755}, parent: parent, children: map[string]*node{}}
}

// Merge applies the layers' entries, bottom first, and returns the root of the
// merged tree: whiteouts resolved, hard links shared, file data as extents of
// device i+1 for layer i. Rules are those of the OCI image specification
// (layer.md): a whiteout hides what lower layers have, wherever it stands in
// its tar. A directory that no layer describes has mode 0755, owner 0 and time
// 0. Where a lower layer has a symbolic link on an entry's way it is followed,
// within the root, as runtimes that unpack do.
func Merge(layers [][]layertar.Entry) (*erofs.Inode, error) {
	root := newDir(nil)
	for i, entries := range layers {
		m := merger{root: root, layer: i}
		for j := range entries {
			if err := m.hide(&entries[j]); err != nil {
				return nil, &MergeError{i, entries[j].Path, err}
			}
		}
		for j := range entries {
			if err := m.apply(&entries[j]); err != nil {
				return nil, &MergeError{i, entries[j].Path, err}
			}
		}
	}
	return link(root), nil
}

// merger applies one layer.
type merger struct {
	root  *node
	layer int
	last  string // directory that was found last, and its node
	dir   *node
}

// hide applies a whiteout to what lower layers have; other entries are left.
func (m *merger) hide(e *layertar.Entry) error {
	switch e.Type {
	case layertar.TypeWhiteout:
		dir, name, err := m.parent(e.Path, false)
		if err != nil || dir == nil {
			return err
		}
		delete(dir.children, name)
		m.dir = nil
	case layertar.TypeOpaque:
		dir, err := m.walk(e.Path, false)
		if err != nil || dir == nil {
			return err
		}
		clear(dir.children)
		m.dir = nil
	}
	return nil
}

// apply adds an entry to the tree.
func (m *merger) apply(e *layertar.Entry) error {
	if e.Type == layertar.TypeWhiteout {
		return nil
	}
	if e.Type == layertar.TypeOpaque {
		// An opaque directory exists, described or not. Over a file it says
		// nothing: the directory's own entry may be still to come.
		if _, err := m.walk(e.Path, true); !errors.Is(err, errNotDir) {
			return err
		}
		return nil
	}
	if e.Path == "" {
		if e.Type != layertar.TypeDir {
			return errRootType
		}
		describe(m.root.inode, e)
		return nil
	}
	dir, name, err := m.parent(e.Path, true)
	if err != nil {
		return err
	}
	old := dir.children[name]
	if e.Type == layertar.TypeDir && old != nil && old.isDir() {
		describe(old.inode, e)
		return nil
	}
	n := &node{parent: dir}
	switch e.Type {
	case layertar.TypeHardlink:
		target, err := m.target(e.Link)
		if err != nil {
			return err
		}
		if target == old {
			return errSelfTarget
		}
		n.inode = target.inode
	case layertar.TypeDir:
		n.inode = &erofs.Inode{}
		describe(n.inode, e)
		n.children = map[string]*node{}
	default:
		n.inode = &erofs.Inode{}
		describe(n.inode, e)
		m.extents(n.inode, e)
	}
	if old != nil {
		m.dir = nil // may lie below what is replaced, or be reached through it
	}
	dir.children[name] = n
	return nil
}

// target finds the file that a hard link names. Its directory may be reached
// through links, the file itself is not followed.
func (m *merger) target(path string) (*node, error) {
	dir, name, err := m.parent(path, false)
	if err != nil {
		return nil, err
	}
	if dir == nil || dir.children[name] == nil {
		return nil, errNoTarget
	}
	target := dir.children[name]
	if target.isDir() {
		return nil, errDirTarget
	}
	return target, nil
}

// parent finds the directory of path and the last name. Without create the
// directory is nil where it does not exist.
func (m *merger) parent(path string, create bool) (*node, string, error) {
	at := strings.LastIndexByte(path, '/')
	if at < 0 {
		return m.root, path, nil
	}
	if m.dir != nil && m.last == path[:at] {
		return m.dir, path[at+1:], nil
	}
	dir, err := m.walk(path[:at], create)
	if err == nil && dir != nil {
		m.last, m.dir = path[:at], dir
	}
	return dir, path[at+1:], err
}

// walk finds a directory, following symbolic links within the root.
func (m *merger) walk(path string, create bool) (*node, error) {
	n, rest, links := m.root, path, 0
	for rest != "" {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		switch name {
		case "", ".":
			continue
		case "..":
			if n.parent != nil {
				n = n.parent
			}
			continue
		}
		next := n.children[name]
		if next == nil {
			if !create {
				return nil, nil
			}
			next = newDir(n)
			n.children[name] = next
		}
		switch {
		case next.isDir():
			n = next
		case next.inode.Mode&modeType == modeSymlink:
			if links++; links > maxLinks {
				return nil, errLinks
			}
			if strings.HasPrefix(next.inode.Link, "/") {
				n = m.root
			}
			rest = next.inode.Link + "/" + rest
		case create:
			return nil, errNotDir
		default:
			return nil, nil
		}
	}
	return n, nil
}

var typeMode = map[layertar.Type]uint32{
	layertar.TypeReg:     modeRegular,
	layertar.TypeDir:     modeDir,
	layertar.TypeSymlink: modeSymlink,
	layertar.TypeChar:    0o020000,
	layertar.TypeBlock:   0o060000,
	layertar.TypeFifo:    0o010000,
}

// describe gives an inode the metadata of an entry, replacing all it had.
func describe(inode *erofs.Inode, e *layertar.Entry) {
	inode.Mode = typeMode[e.Type] | e.Mode
	inode.UID, inode.GID = e.UID, e.GID
	inode.MtimeSec, inode.MtimeNsec = e.ModTimeSec, e.ModTimeNsec
	inode.Xattrs = nil
	for _, x := range e.Xattrs {
		// An overlay over the tree would take these for its own: a redirect into
		// any directory, a file without data.
		if strings.HasPrefix(x.Name, "trusted.overlay.") {
			continue
		}
		inode.Xattrs = append(inode.Xattrs, erofs.Xattr{Name: x.Name, Value: x.Value})
	}
	switch e.Type {
	case layertar.TypeSymlink:
		inode.Mode = modeSymlink | 0o777
		inode.Link = e.Link
	case layertar.TypeReg:
		inode.SizeBytes = e.SizeBytes
	case layertar.TypeChar, layertar.TypeBlock:
		inode.DevMajor, inode.DevMinor = e.DevMajor, e.DevMinor
	}
}

func (m *merger) extents(inode *erofs.Inode, e *layertar.Entry) {
	if e.Type != layertar.TypeReg || e.SizeBytes == 0 {
		return
	}
	device := uint16(m.layer + 1)
	if e.Segments == nil {
		inode.Extents = []erofs.Extent{{Length: e.SizeBytes, Device: device, OffsetDevice: e.OffsetTar}}
		return
	}
	for _, s := range e.Segments {
		if s.Length > 0 {
			inode.Extents = append(inode.Extents, erofs.Extent{Offset: s.Offset, Length: s.Length, Device: device, OffsetDevice: s.OffsetTar})
		}
	}
}

// link turns the nodes into inodes with children. The tree may be deep: no
// recursion.
func link(root *node) *erofs.Inode {
	todo := []*node{root}
	for len(todo) > 0 {
		n := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		n.inode.Children = make([]erofs.Dirent, 0, len(n.children))
		for name, child := range n.children {
			n.inode.Children = append(n.inode.Children, erofs.Dirent{Name: name, Inode: child.inode})
			if child.isDir() {
				todo = append(todo, child)
			}
		}
	}
	return root.inode
}
