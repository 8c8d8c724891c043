package powercut

import (
	"context"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Kinds of steps.
const (
	opLink     = "link"   // create or mkdir: a name for a new inode
	opRename   = "rename" // a name moves, and replaces another
	opUnlink   = "unlink" // or rmdir
	opWrite    = "write"
	opTruncate = "truncate"
	opTimes    = "times"
	opSync     = "fsync"
	opDataSync = "fdatasync"
	opMark     = "mark"
)

// step is one change, as it was done.
type step struct {
	op    string
	inode int // that is named, written or synced
	dir   int // that has the name
	name  string
	toDir int // of a rename
	to    string
	isDir bool // of a link
	off   int64
	data  []byte
	size  int64
	mtime time.Time // of the inode after the step
	mark  string
}

// inode is a file or directory as the record knows it; 0 is the root.
type inode struct {
	id   int
	kids map[string]*inode // nil: a file
}

// Recorder is a recording file system.
type Recorder struct {
	Dir string // where it is mounted

	server  *fuse.Server
	backing string

	mu    sync.Mutex // guards what follows, and holds changes apart
	steps []step
	root  *inode
	next  int
}

// Record mounts a recording file system over an empty directory. It needs root
// and /dev/fuse.
func Record(t testing.TB) *Recorder {
	t.Helper()
	r := &Recorder{Dir: t.TempDir(), backing: t.TempDir(), root: &inode{kids: map[string]*inode{}}, next: 1}
	data := &fs.LoopbackRoot{Path: r.backing}
	root := &node{LoopbackNode: &fs.LoopbackNode{RootData: data}, rec: r}
	data.RootNode = root
	var err error
	r.server, err = fs.Mount(r.Dir, root, &fs.Options{MountOptions: fuse.MountOptions{DirectMountStrict: true, FsName: "powercut", Name: "powercut"}})
	if err != nil {
		t.Fatalf("mount recording file system: %v", err)
	}
	t.Cleanup(func() { r.server.Unmount() })
	return r
}

// Mark notes that the program under test has been promised something: what holds
// at every crash from here on.
func (r *Recorder) Mark(mark string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.steps = append(r.steps, step{op: opMark, mark: mark})
}

// Stop unmounts and returns the record.
func (r *Recorder) Stop(t testing.TB) *Log {
	t.Helper()
	if err := r.server.Unmount(); err != nil {
		t.Fatalf("unmount recording file system: %v", err)
	}
	return &Log{steps: r.steps}
}

// find returns the inode at a path from the root. mu is held.
func (r *Recorder) find(p string) *inode {
	at := r.root
	for name := range strings.SplitSeq(p, "/") {
		if name == "" || name == "." || at == nil {
			continue
		}
		at = at.kids[name]
	}
	return at
}

// change does something and notes it, unless it fails.
func (r *Recorder) change(do func() syscall.Errno, note func() step) syscall.Errno {
	r.mu.Lock()
	defer r.mu.Unlock()
	errno := do()
	if errno == 0 {
		r.steps = append(r.steps, note())
	}
	return errno
}

// link notes a new name.
func (r *Recorder) link(p string, isDir bool) step {
	dir := r.find(path.Dir(p))
	n := &inode{id: r.next}
	r.next++
	if isDir {
		n.kids = map[string]*inode{}
	}
	dir.kids[path.Base(p)] = n
	return step{op: opLink, inode: n.id, dir: dir.id, name: path.Base(p), isDir: isDir, mtime: r.mtime(p)}
}

func (r *Recorder) unlink(p string) step {
	dir, name := r.find(path.Dir(p)), path.Base(p)
	n := dir.kids[name]
	delete(dir.kids, name)
	return step{op: opUnlink, inode: n.id, dir: dir.id, name: name}
}

func (r *Recorder) rename(from, to string) step {
	dir, toDir := r.find(path.Dir(from)), r.find(path.Dir(to))
	n := dir.kids[path.Base(from)]
	delete(dir.kids, path.Base(from))
	toDir.kids[path.Base(to)] = n
	return step{op: opRename, inode: n.id, dir: dir.id, name: path.Base(from), toDir: toDir.id, to: path.Base(to)}
}

func (r *Recorder) mtime(p string) time.Time {
	st, err := os.Lstat(filepath.Join(r.backing, p))
	if err != nil {
		return time.Time{}
	}
	return st.ModTime()
}

// node passes through to a file or directory of the backing directory.
type node struct {
	*fs.LoopbackNode
	rec *Recorder
}

// The changes that are noted.
var (
	_ fs.NodeWrapChilder    = (*node)(nil)
	_ fs.NodeMkdirer        = (*node)(nil)
	_ fs.NodeCreater        = (*node)(nil)
	_ fs.NodeOpener         = (*node)(nil)
	_ fs.NodeSetattrer      = (*node)(nil)
	_ fs.NodeRenamer        = (*node)(nil)
	_ fs.NodeUnlinker       = (*node)(nil)
	_ fs.NodeRmdirer        = (*node)(nil)
	_ fs.NodeLinker         = (*node)(nil)
	_ fs.NodeSymlinker      = (*node)(nil)
	_ fs.NodeOpendirHandler = (*node)(nil)
	_ fs.FileWriter         = (*file)(nil)
	_ fs.FileFsyncer        = (*file)(nil)
	_ fs.FileAllocater      = (*file)(nil)
	_ fs.FileFsyncdirer     = (*dirHandle)(nil)
)

func (n *node) WrapChild(_ context.Context, ops fs.InodeEmbedder) fs.InodeEmbedder {
	return &node{LoopbackNode: ops.(*fs.LoopbackNode), rec: n.rec}
}

func (n *node) at() string { return n.Path(n.Root()) }

func (n *node) child(name string) string { return path.Join(n.at(), name) }

func (n *node) Mkdir(ctx context.Context, name string, mode uint32, out *fuse.EntryOut) (ch *fs.Inode, errno syscall.Errno) {
	errno = n.rec.change(func() syscall.Errno {
		ch, errno = n.LoopbackNode.Mkdir(ctx, name, mode, out)
		return errno
	}, func() step { return n.rec.link(n.child(name), true) })
	return ch, errno
}

func (n *node) Create(ctx context.Context, name string, flags, mode uint32, out *fuse.EntryOut) (ch *fs.Inode, fh fs.FileHandle, ff uint32, errno syscall.Errno) {
	var f *file
	errno = n.rec.change(func() syscall.Errno {
		ch, fh, ff, errno = n.LoopbackNode.Create(ctx, name, flags, mode, out)
		return errno
	}, func() step {
		s := n.rec.link(n.child(name), false)
		f = &file{fh.(*fs.LoopbackFile), n.rec, s.inode}
		return s
	})
	if errno != 0 {
		return nil, nil, 0, errno
	}
	return ch, f, ff, 0
}

func (n *node) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	n.rec.mu.Lock()
	defer n.rec.mu.Unlock()
	fh, ff, errno := n.LoopbackNode.Open(ctx, flags) // the kernel truncates by Setattr
	if errno != 0 {
		return nil, 0, errno
	}
	return &file{fh.(*fs.LoopbackFile), n.rec, n.rec.find(n.at()).id}, ff, 0
}

func (n *node) Setattr(ctx context.Context, fh fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	f, _ := fh.(*file)
	s := step{op: opTimes}
	if size, ok := in.GetSize(); ok {
		s.op, s.size = opTruncate, int64(size)
	}
	return n.rec.change(func() syscall.Errno { return n.LoopbackNode.Setattr(ctx, fh, in, out) }, func() step {
		if f != nil {
			s.inode = f.inode
		} else {
			s.inode = n.rec.find(n.at()).id
		}
		s.mtime = time.Unix(int64(out.Mtime), int64(out.Mtimensec))
		return s
	})
}

func (n *node) Rename(ctx context.Context, name string, to fs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	if flags != 0 {
		return syscall.ENOTSUP
	}
	return n.rec.change(func() syscall.Errno {
		return n.LoopbackNode.Rename(ctx, name, to, newName, 0)
	}, func() step {
		return n.rec.rename(n.child(name), path.Join(to.EmbeddedInode().Path(n.Root()), newName))
	})
}

func (n *node) Unlink(ctx context.Context, name string) syscall.Errno {
	return n.rec.change(func() syscall.Errno { return n.LoopbackNode.Unlink(ctx, name) }, func() step { return n.rec.unlink(n.child(name)) })
}

func (n *node) Rmdir(ctx context.Context, name string) syscall.Errno {
	return n.rec.change(func() syscall.Errno { return n.LoopbackNode.Rmdir(ctx, name) }, func() step { return n.rec.unlink(n.child(name)) })
}

// Link and Symlink are not understood, so nobody may think that they were noted.
func (n *node) Link(context.Context, fs.InodeEmbedder, string, *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	return nil, syscall.ENOTSUP
}

// Symlink is refused, as Link is.
func (n *node) Symlink(context.Context, string, string, *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	return nil, syscall.ENOTSUP
}

func (n *node) OpendirHandle(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	ds, errno := fs.NewLoopbackDirStream(filepath.Join(n.RootData.Path, n.at()))
	if errno != 0 {
		return nil, 0, errno
	}
	return &dirHandle{ds, n}, 0, 0
}

// file is an open file.
type file struct {
	*fs.LoopbackFile
	rec   *Recorder
	inode int
}

// PassthroughFd refuses: what the kernel writes by itself is not noted.
func (f *file) PassthroughFd() (int, bool) { return 0, false }

func (f *file) Write(ctx context.Context, data []byte, off int64) (n uint32, errno syscall.Errno) {
	errno = f.rec.change(func() syscall.Errno {
		n, errno = f.LoopbackFile.Write(ctx, data, off)
		return errno
	}, func() step {
		return step{op: opWrite, inode: f.inode, off: off, data: append([]byte(nil), data[:n]...), mtime: f.mtime(ctx)}
	})
	return n, errno
}

func (f *file) Fsync(ctx context.Context, flags uint32) syscall.Errno {
	s := step{op: opSync, inode: f.inode}
	if flags&unixFsyncDataOnly != 0 {
		s.op = opDataSync
	}
	return f.rec.change(func() syscall.Errno { return 0 }, func() step {
		s.mtime = f.mtime(ctx)
		return s
	})
}

// unixFsyncDataOnly is FUSE_FSYNC_FDATASYNC.
const unixFsyncDataOnly = 1

// Allocate is refused: holes that are punched are not understood.
func (f *file) Allocate(context.Context, uint64, uint64, uint32) syscall.Errno { return unix.ENOTSUP }

func (f *file) mtime(ctx context.Context) time.Time {
	var out fuse.AttrOut
	if f.Getattr(ctx, &out) != 0 {
		return time.Time{}
	}
	return time.Unix(int64(out.Mtime), int64(out.Mtimensec))
}

// dirHandle is an open directory.
type dirHandle struct {
	fs.DirStream
	node *node
}

// Readdirent returns the next entry, or nil.
func (d *dirHandle) Readdirent(context.Context) (*fuse.DirEntry, syscall.Errno) {
	if !d.HasNext() {
		return nil, 0
	}
	e, errno := d.Next()
	return &e, errno
}

// Seekdir goes to a place that Readdirent gave.
func (d *dirHandle) Seekdir(ctx context.Context, off uint64) syscall.Errno {
	return d.DirStream.(fs.FileSeekdirer).Seekdir(ctx, off)
}

// Releasedir closes the directory.
func (d *dirHandle) Releasedir(context.Context, uint32) { d.Close() }

// Fsyncdir makes the directory's names sure.
func (d *dirHandle) Fsyncdir(context.Context, uint32) syscall.Errno {
	r := d.node.rec
	return r.change(func() syscall.Errno { return 0 }, func() step { return step{op: opSync, inode: r.find(d.node.at()).id} })
}
