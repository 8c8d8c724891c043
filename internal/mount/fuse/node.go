package fuse

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"strconv"
	"sync"
	"sync/atomic"

	protocol "github.com/hanwen/go-fuse/v2/fuse"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/mount"
)

// node is a layer file in the FUSE file system.
type node struct {
	blob      digest.Digest
	id        uint64
	sizeBytes int64
	fd        int // a duplicate of the layer's first descriptor
	complete  atomic.Bool
	// opens counts what the kernel has open. Of an earlier daemon's opens those of the mounts that were adopted are in it, but not those of
	// mounts that it had detached: these may see EIO, once nothing that is known uses the node.
	opens   atomic.Int64
	awaited bool // of an earlier daemon's mount that has not been adopted yet; guarded by Mounter.mu

	mu        sync.Mutex // guards what follows
	reads     int        // of fd, in progress
	forgotten bool       // fd is closed, or will be when the last read has ended
	backing   int32      // the kernel's number for fd; 0: none
	noBacking bool       // it cannot have one
}

// nodeID is the number, and in hexadecimal the name, of a layer's file. It is made from the digest, so that a later daemon finds the layers
// that the kernel means.
func nodeID(blob digest.Digest) uint64 {
	sum := sha256.Sum256([]byte(blob))
	return binary.BigEndian.Uint64(sum[:])>>1 | 1<<62 // 1 is the root; the highest numbers are special to go-fuse
}

func nodeName(id uint64) string { return strconv.FormatUint(id, 16) }

// path is where the kernel finds a node when it mounts.
func (m *Mounter) path(n *node) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", m.treeFD, nodeName(n.id))
}

func (m *Mounter) node(id uint64) *node { return (*m.nodes.Load())[id] }

// add returns the layer's node, made where there is none. Its caller holds mu.
func (m *Mounter) add(layer mount.Layer, inherited bool) (*node, error) {
	id := nodeID(layer.Blob)
	known := m.node(id)
	if known != nil && known.blob != layer.Blob {
		return nil, fmt.Errorf("serve layer %s: its number is that of %s", layer.Blob, known.blob)
	}
	fd, err := layerFD(layer)
	if err != nil {
		return nil, fmt.Errorf("serve layer %s: %w", layer.Blob, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("serve layer %s: stat: %w", layer.Blob, err)
	}
	if st.Size != layer.SizeBytes {
		unix.Close(fd)
		return nil, fmt.Errorf("serve layer %s: file has %d bytes, the layer %d", layer.Blob, st.Size, layer.SizeBytes)
	}
	if known != nil {
		defer unix.Close(fd)
		var old unix.Stat_t
		if err := unix.Fstat(known.fd, &old); err != nil || old.Dev != st.Dev || old.Ino != st.Ino {
			return nil, fmt.Errorf("serve layer %s: another file of it is still in use: %w", layer.Blob, errors.Join(unix.EBUSY, err))
		}
		if layer.Complete {
			known.complete.Store(true)
		}
		return known, nil
	}
	n := &node{blob: layer.Blob, id: id, sizeBytes: layer.SizeBytes, fd: fd, awaited: inherited}
	n.complete.Store(layer.Complete)
	nodes := maps.Clone(*m.nodes.Load())
	nodes[id] = n
	m.nodes.Store(&nodes)
	return n, nil
}

// layerFD returns a descriptor of the layer file, the caller's to close.
func layerFD(layer mount.Layer) (int, error) {
	if layer.File == nil {
		if !layer.Complete {
			return -1, errors.New("not complete, and no descriptor given")
		}
		fd, err := unix.Open(layer.Path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		if err != nil {
			return -1, &os.PathError{Op: "open", Path: layer.Path, Err: err}
		}
		return fd, nil
	}
	fd, err := mount.RawFD(layer.File)
	if err != nil {
		return -1, err
	}
	if fd, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		return -1, fmt.Errorf("duplicate descriptor: %w", err)
	}
	return fd, nil
}

// tidy forgets the layers that no mount uses and the kernel has not open. Its caller holds mu.
func (m *Mounter) tidy() {
	if m.closed {
		return
	}
	used := make(map[uint64]bool)
	for _, ids := range m.mounts {
		for _, id := range ids {
			used[id] = true
		}
	}
	nodes := maps.Clone(*m.nodes.Load())
	var unused []*node
	for id, n := range nodes {
		if !used[id] && !n.awaited && n.opens.Load() <= 0 {
			delete(nodes, id)
			unused = append(unused, n)
		}
	}
	m.nodes.Store(&nodes)
	for _, n := range unused {
		n.close(m)
	}
}

func (n *node) close(m *Mounter) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.backing != 0 {
		m.closeBacking(n.id, n.backing)
	}
	n.backing, n.noBacking, n.forgotten = 0, true, true
	if n.reads == 0 {
		unix.Close(n.fd)
	}
}

// hold keeps the descriptor open until letGo; false: it is too late.
func (n *node) hold() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.forgotten {
		return false
	}
	n.reads++
	return true
}

func (n *node) letGo() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.reads--; n.reads == 0 && n.forgotten {
		unix.Close(n.fd)
	}
}

// passthrough returns the kernel's number for the layer file, or 0 where reads must come to us. A file that was passed through once is
// from then on: it was complete, and the kernel allows nothing else while that open lasts.
func (n *node) passthrough(m *Mounter) int32 {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.backing != 0 || n.noBacking || !n.complete.Load() {
		return n.backing
	}
	number, err := m.device.openBacking(n.fd)
	if err == nil {
		if err = m.backings.put(n.id, number); err != nil {
			m.device.closeBacking(number)
		}
	}
	if err != nil {
		n.noBacking = true
		m.log.Debug("no FUSE passthrough for layer", "layer", n.blob, "err", err)
		return 0
	}
	n.backing = number
	return n.backing
}

func (m *Mounter) closeBacking(node uint64, number int32) {
	if err := m.backings.drop(node); err != nil {
		m.log.Error("forget layer", "err", err)
	}
	m.device.closeBacking(number)
}

// files is what the kernel sees: a directory of layer files. Nothing ever changes in it, so it is told to remember all for ever.
type files struct {
	protocol.RawFileSystem // says ENOSYS to all else
	m                      *Mounter
}

const forever = 1 << 40 // seconds

func (f *files) String() string { return "thaw" }

// Lookup implements protocol.RawFileSystem.
func (f *files) Lookup(_ <-chan struct{}, header *protocol.InHeader, name string, out *protocol.EntryOut) protocol.Status {
	id, err := strconv.ParseUint(name, 16, 64)
	n := f.m.node(id)
	if err != nil || n == nil || header.NodeId != protocol.FUSE_ROOT_ID {
		return protocol.ENOENT
	}
	*out = protocol.EntryOut{NodeId: id, Generation: 1, EntryValid: forever, AttrValid: forever}
	n.attr(&out.Attr)
	return protocol.OK
}

func (n *node) attr(a *protocol.Attr) {
	*a = protocol.Attr{Ino: n.id, Size: uint64(n.sizeBytes), Blocks: uint64(n.sizeBytes+511) / 512, Mode: unix.S_IFREG | 0o400, Nlink: 1, Blksize: 4096}
}

// GetAttr implements protocol.RawFileSystem.
func (f *files) GetAttr(_ <-chan struct{}, in *protocol.GetAttrIn, out *protocol.AttrOut) protocol.Status {
	if in.NodeId == protocol.FUSE_ROOT_ID {
		*out = protocol.AttrOut{AttrValid: forever, Attr: protocol.Attr{Ino: protocol.FUSE_ROOT_ID, Mode: unix.S_IFDIR | 0o500, Nlink: 2}}
		return protocol.OK
	}
	n := f.m.node(in.NodeId)
	if n == nil {
		return protocol.Status(unix.ESTALE)
	}
	*out = protocol.AttrOut{AttrValid: forever}
	n.attr(&out.Attr)
	return protocol.OK
}

// Open implements protocol.RawFileSystem. Where the kernel cannot read the file itself it caches nothing: EROFS does, and the
// layer file's own file system.
func (f *files) Open(_ <-chan struct{}, in *protocol.OpenIn, out *protocol.OpenOut) protocol.Status {
	n := f.m.node(in.NodeId)
	if n == nil {
		return protocol.Status(unix.ESTALE)
	}
	if in.Flags&unix.O_ACCMODE != unix.O_RDONLY {
		return protocol.EROFS
	}
	n.opens.Add(1)
	*out = protocol.OpenOut{OpenFlags: protocol.FOPEN_DIRECT_IO}
	if id := n.passthrough(f.m); id != 0 {
		*out = protocol.OpenOut{OpenFlags: protocol.FOPEN_PASSTHROUGH, BackingID: id}
	}
	return protocol.OK
}

// Release implements protocol.RawFileSystem.
func (f *files) Release(_ <-chan struct{}, in *protocol.ReleaseIn) {
	if n := f.m.node(in.NodeId); n != nil && n.opens.Add(-1) <= 0 {
		f.m.released()
	}
}
