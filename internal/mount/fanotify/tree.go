package fanotify

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/mount"
	"github.com/thaw-project/thaw/internal/mount/fanotify/group"
)

// tree is a detached mount of the directory that all layers of a mount are below. An EROFS image whose second devices were opened through it
// reads them through it ever after.
type tree struct {
	fd     int
	paths  []string // of the layers, through it; good while it is open
	blobs  []digest.Digest
	silent bool
}

// newTree makes a tree of layers, which are watched.
func newTree(layers []mount.Layer) (*tree, error) {
	dir := commonDir(layers)
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, &os.PathError{Op: "open_tree", Path: dir, Err: err}
	}
	t := &tree{fd: fd}
	for _, layer := range layers {
		path := filepath.Join("/proc/self/fd", strconv.Itoa(fd), strings.TrimPrefix(layer.Path, dir))
		t.paths, t.blobs = append(t.paths, path), append(t.blobs, layer.Blob)
		if err := sameFile(path, layer.Path); err != nil { // not so with another file system mounted in between
			t.close()
			return nil, err
		}
	}
	return t, nil
}

// commonDir is the deepest directory that all layer files are in or below.
func commonDir(layers []mount.Layer) string {
	dir := "/"
	for i, layer := range layers {
		if i == 0 {
			dir = filepath.Dir(layer.Path)
		}
		for dir != "/" && dir != "." && !strings.HasPrefix(layer.Path, dir+"/") {
			dir = filepath.Dir(dir)
		}
	}
	return dir
}

func sameFile(a, b string) error {
	var as, bs unix.Stat_t
	for path, st := range map[string]*unix.Stat_t{a: &as, b: &bs} {
		if err := unix.Stat(path, st); err != nil {
			return &os.PathError{Op: "stat", Path: path, Err: err}
		}
	}
	if as.Dev != bs.Dev || as.Ino != bs.Ino {
		return fmt.Errorf("%s is another file in a clone of its mount", b)
	}
	return nil
}

// close may be called on nil.
func (t *tree) close() {
	if t != nil {
		unix.Close(t.fd)
	}
}

// Silence ends what it costs to read a mount's second devices (mount.Spec.Twice): the Handler is not asked about such reads, and nobody sees
// them, until Unsilence. All that the image has on those devices is there. A mount that has none, or that is gone, is an error.
//
// What is there may be lost again, so the caller first silences, then makes sure that all is there still, and else takes it back.
func (m *Mounter) Silence(dir string) error {
	m.treesMu.Lock()
	defer m.treesMu.Unlock()
	t := m.trees[dir]
	if t == nil {
		return fmt.Errorf("silence %s: %w", dir, os.ErrNotExist)
	}
	if err := group.Silence(m.groupFD, t.fd); err != nil {
		return fmt.Errorf("silence %s: %w", dir, err)
	}
	t.silent = true
	return nil
}

// Unsilence takes Silence back for all mounts that have the layer: a byte of it is not believed any more. It does not block.
func (m *Mounter) Unsilence(blob digest.Digest) {
	m.treesMu.Lock()
	defer m.treesMu.Unlock()
	for dir, t := range m.trees {
		if slices.Contains(t.blobs, blob) {
			m.unsilence(dir, t)
		}
	}
}

// unsilence is called with treesMu held.
func (m *Mounter) unsilence(dir string, t *tree) {
	if !t.silent {
		return
	}
	err := group.Unsilence(m.groupFD, t.fd)
	if err != nil {
		err = group.UnsilenceAll(m.groupFD) // takes no path, and no memory
	}
	if err != nil {
		m.log.Error("reads are not watched that should be; unmount and mount again", "dir", dir, "err", err)
		return
	}
	t.silent = false
}

// dropTree ends what there is of a mount's tree.
func (m *Mounter) dropTree(dir string) {
	m.treesMu.Lock()
	defer m.treesMu.Unlock()
	if t := m.trees[dir]; t != nil {
		m.unsilence(dir, t)
		t.close()
		delete(m.trees, dir)
	}
}

// dropTrees ends what there is of all trees: nobody in this process can take silence back any more, and what is not believed
// is found out as long as anything goes on in it.
func (m *Mounter) dropTrees() {
	m.treesMu.Lock()
	defer m.treesMu.Unlock()
	for dir, t := range m.trees {
		m.unsilence(dir, t)
		t.close()
	}
	clear(m.trees)
}
