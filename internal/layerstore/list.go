package layerstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
)

// Info is what the store knows of one layer, or of one quarantined index of it.
type Info struct {
	Blob         digest.Digest
	BlobBytes    int64
	DiffID       digest.Digest // empty if the layer's meta is damaged
	Table        digest.Digest // Meta.TableDigest
	TarBytes     int64
	HereBytes    int64 // believed
	SuspectBytes int64 // may be here; Recheck would tell
	DiskBytes    int64 // allocated by the tar
	Complete     bool  // all bytes are here
	Proven       bool  // and the diffID holds, durably
	InUse        bool
	Pins         []string  // owners, sorted
	LastUse      time.Time // to the second
	Quarantined  string    // the reason; such an entry has no data
}

// List tells of all layers, in order of their blob digests, and then of the
// quarantined ones. It opens no tar.
func (s *Store) List() ([]Info, error) {
	blobs, err := s.blobs()
	if err != nil {
		return nil, fmt.Errorf("list layers: %w", err)
	}
	var out []Info
	for _, blob := range blobs {
		info, err := s.info(blob)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("list layer %s: %w", blob, err)
		}
		out = append(out, info)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, key := range sortedKeys(s.quarantined) {
		out = append(out, s.quarantined[key])
	}
	return out, nil
}

func (s *Store) info(blob digest.Digest) (Info, error) {
	info := Info{Blob: blob, Pins: s.pins.owners(blob)}
	dir := s.layerDir(blob)
	st, err := os.Stat(filepath.Join(dir, tarName))
	if err != nil && (!errors.Is(err, fs.ErrNotExist) || !exists(dir)) {
		return info, err
	}
	if err == nil {
		info.LastUse = st.ModTime()
		if sys, ok := st.Sys().(*syscall.Stat_t); ok {
			info.DiskBytes = sys.Blocks * 512
		}
	}
	if st, err := os.Stat(filepath.Join(dir, metaName)); err == nil {
		info.LastUse = st.ModTime()
	}
	l := s.open(blob)
	if l == nil {
		m, err := readMeta(dir)
		if err != nil {
			return info, nil // a torn layer: it can be removed, and that is all
		}
		l = newLayer(s, m, nil) // to count with; it is nobody's
		h, _ := s.readHave(dir, &m)
		l.believeMap(h)
	} else {
		info.InUse = true
	}
	l.describe(&info)
	return info, nil
}

func (l *Layer) describe(info *Info) {
	m := &l.meta
	info.BlobBytes, info.DiffID, info.Table, info.TarBytes = m.BlobBytes, m.DiffID, m.TableDigest(), m.TarBytes
	info.HereBytes = l.HaveBytes()
	for i := range m.Spans() {
		if l.Suspect(i) {
			_, n := m.Span(i)
			info.SuspectBytes += n
		}
	}
	info.Complete, info.Proven = info.HereBytes == m.TarBytes, l.Complete()
}

// Remove removes a layer that is neither in use nor pinned (*BusyError). One
// that is not here is ErrNotFound.
func (s *Store) Remove(ctx context.Context, blob digest.Digest) error {
	return s.remove(ctx, blob, nil)
}

// remove is Remove, of a layer that keep does not want: asked when nobody can
// acquire the layer any more.
func (s *Store) remove(ctx context.Context, blob digest.Digest, keep func(digest.Digest) bool) error {
	if err := checkDigest(blob); err != nil {
		return fmt.Errorf("remove layer: %w", err)
	}
	e, err := s.lockEntry(ctx, blob)
	if err != nil {
		return fmt.Errorf("remove layer: %w", err)
	}
	defer e.unlock()
	// Held over the removal: no pin comes between.
	s.pins.mu.Lock()
	defer s.pins.mu.Unlock()
	busy := &BusyError{Layer: blob, Owners: s.pins.ownersLocked(blob)}
	if l := e.layer.Load(); l != nil {
		busy.Users = l.users
	}
	if busy.Users > 0 || len(busy.Owners) > 0 {
		return busy
	}
	if keep != nil && keep(blob) {
		return fmt.Errorf("remove layer %s: %w", blob, ErrInUse)
	}
	dir := s.layerDir(blob)
	if !exists(dir) {
		return fmt.Errorf("remove layer %s: %w", blob, ErrNotFound)
	}
	if err := s.trash(dir); err != nil {
		return fmt.Errorf("remove layer %s: %w", blob, err)
	}
	return nil
}

// GC removes every layer that has no pins and no users and that keep (nil: none)
// does not want, and returns those. An error does not keep it from the others.
func (s *Store) GC(ctx context.Context, keep func(digest.Digest) bool) ([]Info, error) {
	infos, err := s.List()
	if err != nil {
		return nil, err
	}
	var removed []Info
	var errs []error
	for _, info := range infos {
		if err := ctx.Err(); err != nil {
			return removed, errors.Join(append(errs, fmt.Errorf("remove layers: %w", err))...)
		}
		if info.Quarantined != "" || info.InUse || len(info.Pins) > 0 {
			continue
		}
		err := s.remove(ctx, info.Blob, keep)
		switch {
		case err == nil:
			removed = append(removed, info)
		case errors.Is(err, ErrInUse), errors.Is(err, ErrPinned), errors.Is(err, ErrNotFound):
			// someone was quicker
		default:
			errs = append(errs, err)
		}
	}
	return removed, errors.Join(errs...)
}
