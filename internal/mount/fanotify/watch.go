package fanotify

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"os"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/mount"
	"github.com/thaw-project/thaw/internal/mount/fanotify/group"
)

// fileID is what tells one file from another on a node.
type fileID struct{ dev, ino uint64 }

// watch is a layer file with a mark, or that had one. It does not change.
type watch struct {
	blob      digest.Digest
	id        fileID
	sizeBytes int64
	fd        int // a duplicate of the first descriptor; -1 when complete
	// complete: the mark was removed because nothing is missing. Events that were raised before that are still in the queue,
	// so the entry stays. Should another layer get the inode number, its watch takes the entry's place.
	complete bool
}

func newWatch(blob digest.Digest, file *os.File) (*watch, error) {
	fd, err := mount.RawFD(file)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("stat layer file: %w", err)
	}
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate descriptor: %w", err)
	}
	return &watch{blob: blob, id: fileID{st.Dev, st.Ino}, sizeBytes: st.Size, fd: dup}, nil
}

// find returns the layer's watch or nil. Its caller holds mu.
func (m *Mounter) find(blob digest.Digest) *watch {
	for w := range m.live() {
		if w.blob == blob {
			return w
		}
	}
	return nil
}

// live yields the watches whose files have marks. Without mu held they may be gone the next moment.
func (m *Mounter) live() iter.Seq[*watch] {
	return func(yield func(*watch) bool) {
		for _, w := range *m.watches.Load() {
			if !w.complete && !yield(w) {
				return
			}
		}
	}
}

// watchAll makes sure that every layer that is not complete is held, known and marked, in this order: from the moment of the mark
// on its events must be answered, whatever happens to this process. Its caller holds mu.
func (m *Mounter) watchAll(ctx context.Context, layers []mount.Layer) error {
	known := make(map[digest.Digest]*watch)
	for w := range m.live() {
		known[w.blob] = w
	}
	fresh := make(map[digest.Digest]*watch)
	hold := make(map[digest.Digest]*os.File)
	err := func() error {
		for _, layer := range layers {
			if layer.Complete || fresh[layer.Blob] != nil {
				continue
			}
			w, err := watchable(layer, known[layer.Blob])
			if err != nil {
				return fmt.Errorf("watch layer %s: %w", layer.Blob, err)
			}
			if w != nil {
				fresh[layer.Blob], hold[layer.Blob] = w, layer.File
			}
		}
		if m.keeper == nil || len(hold) == 0 {
			return nil
		}
		return m.keeper.Hold(ctx, hold)
	}()
	if err != nil {
		m.abandon(fresh)
		return err
	}
	m.addWatches(fresh)
	for blob, w := range fresh {
		if err == nil {
			if err = group.Mark(m.groupFD, w.fd); err == nil {
				continue
			}
			err = fmt.Errorf("watch layer %s in %s: %w", blob, hold[blob].Name(), explain(err))
		}
		m.forget(w, false)
	}
	return err
}

// watchable checks what Mount was given; the watch is nil where there is one already.
func watchable(layer mount.Layer, known *watch) (*watch, error) {
	if layer.File == nil {
		if known != nil {
			return nil, nil
		}
		return nil, errors.New("not complete, and no descriptor given")
	}
	if known != nil {
		fd, err := mount.RawFD(layer.File)
		if err != nil {
			return nil, err
		}
		if !sameDescription(fd, known.fd) {
			return nil, mount.ErrNotFirst
		}
		return nil, nil
	}
	w, err := newWatch(layer.Blob, layer.File)
	if err != nil {
		return nil, err
	}
	if w.sizeBytes != layer.SizeBytes {
		unix.Close(w.fd)
		return nil, fmt.Errorf("file has %d bytes, the layer %d", w.sizeBytes, layer.SizeBytes)
	}
	return w, nil
}

// sameDescription says whether two descriptors are duplicates of each other; true where the kernel cannot tell.
func sameDescription(a, b int) bool {
	const kcmpFile = 0
	pid := uintptr(os.Getpid())
	order, _, errno := unix.Syscall6(unix.SYS_KCMP, pid, pid, kcmpFile, uintptr(a), uintptr(b), 0)
	return errno != 0 || order == 0
}

func (m *Mounter) abandon(watches map[digest.Digest]*watch) {
	for blob, w := range watches {
		unix.Close(w.fd)
		if m.keeper != nil {
			m.keeper.Drop(blob)
		}
	}
}

func (m *Mounter) addWatches(fresh map[digest.Digest]*watch) {
	watches := maps.Clone(*m.watches.Load())
	for _, w := range fresh {
		watches[w.id] = w
	}
	m.watches.Store(&watches)
}

// unwatch ends a watch; complete says that nothing of the layer is missing, otherwise nobody has it open. Its caller holds mu.
func (m *Mounter) unwatch(w *watch, complete bool) error {
	if err := group.Unmark(m.groupFD, w.fd); err != nil {
		return fmt.Errorf("unwatch layer %s: %w", w.blob, err)
	}
	m.forget(w, complete)
	return nil
}

func (m *Mounter) forget(w *watch, complete bool) {
	watches := maps.Clone(*m.watches.Load())
	delete(watches, w.id)
	if complete {
		watches[w.id] = &watch{blob: w.blob, id: w.id, sizeBytes: w.sizeBytes, fd: -1, complete: true}
	}
	m.watches.Store(&watches)
	if m.keeper != nil {
		m.keeper.Drop(w.blob)
	}
	unix.Close(w.fd)
}

// tidy ends the watches of layers that no mount uses, provided that nobody has the file open: a detached mount, or a copy of it in
// another mount namespace, still reads. Its caller holds mu, so nobody mounts it in between.
func (m *Mounter) tidy() (left int) {
	used := make(map[digest.Digest]bool)
	for _, blobs := range m.mounts {
		for _, blob := range blobs {
			used[blob] = true
		}
	}
	for w := range m.live() {
		if used[w.blob] {
			continue
		}
		inUse, err := group.InUse(w.fd)
		if err == nil && !inUse {
			err = m.unwatch(w, false)
		}
		if inUse || err != nil {
			left++
		}
		if err != nil {
			m.log.Warn("layer stays watched", "layer", w.blob, "err", err)
		}
	}
	return left
}
