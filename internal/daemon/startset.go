package daemon

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"time"
	"unsafe"

	digest "github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/erofs"
	"github.com/thaw-project/thaw/internal/index"
	"github.com/thaw-project/thaw/internal/startup"
)

// headerPatience is how long a mount waits for the header of its start-up bundle
// once all else is ready. It is asked for together with the index, and small.
const headerPatience = 50 * time.Millisecond

// startSet is what of a mount's files a start-up bundle brings. They are read
// through devices of their own, which cost nothing to read from the moment when
// all of the bundle is here: an answer to each of a start's thousands of reads is
// a good part of the start.
type startSet struct {
	header *startup.Header
	ranges map[digest.Digest][]tarRange // of the layers, which the bundle has without a gap
}

// tarRange is a range of a layer's tar, without gaps to others.
type tarRange struct {
	off, end int64
	chosen   bool // a file in it is read through the start-up set's devices
}

func newStartSet(h *startup.Header) *startSet {
	s := &startSet{header: h, ranges: make(map[digest.Digest][]tarRange, len(h.Layers))}
	for i, l := range h.Layers {
		var list []tarRange
		for _, at := range h.LayerPieces(i) {
			p := &h.Pieces[at]
			if n := len(list); n > 0 && list[n-1].end == p.Offset {
				list[n-1].end += p.Length
				continue
			}
			list = append(list, tarRange{off: p.Offset, end: p.Offset + p.Length})
		}
		s.ranges[l.Blob] = list
	}
	return s
}

// choose returns what decides whether a chunk of a file is a part of the set: the
// bundle has all of its blocks.
func (s *startSet) choose(layers []index.ImageLayer) func(erofs.Extent) bool {
	devices := make([][]tarRange, len(layers))
	for i := range layers {
		devices[i] = s.ranges[layers[i].Blob]
	}
	return func(e erofs.Extent) bool {
		const block = 512
		list, end := devices[e.Device-1], e.OffsetDevice+(e.Length+block-1)&^(block-1)
		i := sort.Search(len(list), func(i int) bool { return list[i].end > e.OffsetDevice })
		if i == len(list) || list[i].off > e.OffsetDevice || list[i].end < end {
			return false
		}
		list[i].chosen = true
		return true
	}
}

// here reports whether all of the set is, as readers are told.
func (s *startSet) here(layers []*layer) bool {
	for _, l := range layers {
		for _, r := range s.ranges[l.blob] {
			if r.chosen && !l.hydrate.Have(r.off, r.end-r.off) {
				return false
			}
		}
	}
	return true
}

// startMetadata makes the metadata of a mount whose start-up set is known, for
// this mount alone; the path is "" when nothing is to be read through devices of
// its own.
func (d *Daemon) startMetadata(m *mounted, metadata []byte) (path string, err error) {
	h := m.bundle.awaitHeader()
	if h == nil {
		return "", nil
	}
	if err := m.img.head.CheckDevices(metadata); err != nil {
		return "", d.badMetadata(m.img, err)
	}
	s := newStartSet(h)
	b, err := erofs.Redirect(metadata, s.choose(m.img.head.Layers))
	if err != nil {
		return "", nil // whatever is wrong with it is found on the other way
	}
	path = m.path("start.erofs")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		return "", fmt.Errorf("write EROFS metadata: %w", err)
	}
	m.startSet = s
	return path, nil
}

// silence has reads of the mount's start-up set cost nothing once its bundle is
// here.
func (d *Daemon) silence(ctx context.Context, m *mounted) {
	select {
	case <-m.bundle.done:
	case <-ctx.Done():
		return
	}
	if state, lie := m.bundle.status(); state != api.BundleApplied || lie != nil || !m.startSet.here(m.layers) {
		return
	}
	if err := d.fanotify.Load().Silence(m.ImageDir); err != nil {
		if ctx.Err() == nil {
			d.log.Warn("start-up set is read as slowly as all else", "mount", m.ID, "err", err)
		}
		return
	}
	if !m.startSet.here(m.layers) { // taken back before revoked could know
		d.revoked(m.layers[0].blob)
		return
	}
	if rec := m.recording.Load(); rec != nil {
		rec.silent(time.Now())
	}
	d.log.Info("reads of the start-up set are not watched any more", "mount", m.ID)
}

// revoked is told that something of a layer is not believed any more. It is
// called with locks of the layer store held.
func (d *Daemon) revoked(blob digest.Digest) {
	if f := d.fanotify.Load(); f != nil {
		f.Unsilence(blob)
	}
}

// unseen adds to a recording what the start read of its set after that was silent:
// what of it the kernel has in memory. When each was read is not known; they are
// put in the bundle's order between then and when the container was ready.
func (d *Daemon) unseen(m *mounted, rec *recording) {
	since, until := rec.silence()
	if since == 0 || m.startSet == nil {
		return
	}
	files, err := m.img.head.Files()
	if err != nil {
		d.log.Warn("recording lacks what was not watched", "mount", m.ID, "err", err)
		return
	}
	var reads []read
	c := cachedPages{root: m.ImageDir}
	defer c.close()
	h := m.startSet.header
	for i := range h.Pieces {
		p := &h.Pieces[i]
		blob := h.Layers[p.Layer].Blob
		for _, part := range files.Split(blob, p.Offset, p.Length) {
			if part.Path == "" {
				continue
			}
			for from, to := range c.runs(part.Path, part.In, part.In+part.Length) {
				reads = append(reads, read{layer: blob, off: part.Offset + from - part.In, n: to - from})
			}
		}
	}
	for i := range reads {
		reads[i].at = since + (until-since)*time.Duration(i)/time.Duration(len(reads))
	}
	rec.addAll(reads)
}

// cachedPages says what of files the page cache has.
type cachedPages struct {
	root string
	path string // of the file that was asked about last
	b    []byte // it, mapped; nil: it cannot be
}

// runs yields the parts of [off, end) of a file that are in memory.
func (c *cachedPages) runs(path string, off, end int64) func(yield func(from, to int64) bool) {
	return func(yield func(from, to int64) bool) {
		if path != c.path {
			c.close()
			c.path, c.b = path, mapFile(filepath.Join(c.root, path))
		}
		page := int64(os.Getpagesize())
		first := off / page * page
		if end = min(end, int64(len(c.b))); off >= end {
			return
		}
		part := c.b[first:end]
		vec := make([]byte, (end-first+page-1)/page)
		if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&part[0])), uintptr(len(part)), uintptr(unsafe.Pointer(&vec[0]))); errno != 0 {
			return
		}
		for i := 0; i < len(vec); {
			if vec[i]&1 == 0 {
				i++
				continue
			}
			j := i
			for j < len(vec) && vec[j]&1 != 0 {
				j++
			}
			if !yield(max(off, first+int64(i)*page), min(end, first+int64(j)*page)) {
				return
			}
			i = j
		}
	}
}

func (c *cachedPages) close() {
	if c.b != nil {
		_ = unix.Munmap(c.b)
		c.b = nil
	}
}

// mapFile maps a file that may be gone by now, which is nil.
func mapFile(path string) []byte {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Size() == 0 || int64(int(info.Size())) != info.Size() {
		return nil
	}
	b, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_NONE, unix.MAP_SHARED)
	if err != nil {
		return nil
	}
	return b
}
