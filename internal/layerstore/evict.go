package layerstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
)

// Usage is what the store's files take on disk, in bytes allocated: a layer that
// is only partly here counts as much as is here of it.
type Usage struct {
	Bytes     int64 // all of it, with what is being ingested
	Evictable int64 // of layers without users and pins
}

// stored is a layer as its directory's entries tell, without reading them.
type stored struct {
	blob      digest.Digest
	diskBytes int64
	lastUse   time.Time
	evictable bool
}

// Usage sums what is on disk. It reads no file, so it is cheap enough to be
// asked every few seconds.
func (s *Store) Usage() (Usage, error) {
	layers, err := s.usage()
	if err != nil {
		return Usage{}, err
	}
	var u Usage
	for _, l := range layers {
		u.Bytes += l.diskBytes
		if l.evictable {
			u.Evictable += l.diskBytes
		}
	}
	ents, err := os.ReadDir(s.path(tmpDir))
	if err != nil {
		return u, fmt.Errorf("measure layers: %w", err)
	}
	for _, e := range ents {
		n, _, err := s.measure(s.path(tmpDir, e.Name()))
		if err != nil {
			return u, fmt.Errorf("measure layers: %w", err)
		}
		u.Bytes += n
	}
	return u, nil
}

func (s *Store) usage() ([]stored, error) {
	blobs, err := s.blobs()
	if err != nil {
		return nil, fmt.Errorf("measure layers: %w", err)
	}
	out := make([]stored, 0, len(blobs))
	for _, blob := range blobs {
		l := stored{blob: blob, evictable: s.open(blob) == nil && len(s.pins.owners(blob)) == 0}
		if l.diskBytes, l.lastUse, err = s.measure(s.layerDir(blob)); err != nil {
			return nil, fmt.Errorf("measure layer %s: %w", blob, err)
		}
		out = append(out, l)
	}
	return out, nil
}

// measure returns what a layer's directory takes on disk and when the layer was
// last used. What is removed meanwhile counts nothing.
func (s *Store) measure(dir string) (diskBytes int64, lastUse time.Time, err error) {
	for _, name := range []string{tarName, haveName, metaName} {
		st, err := os.Stat(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
			continue
		}
		if err != nil {
			return 0, time.Time{}, err
		}
		if sys, ok := st.Sys().(*syscall.Stat_t); ok {
			diskBytes += sys.Blocks * 512
		}
		if name == metaName || lastUse.IsZero() {
			lastUse = st.ModTime()
		}
	}
	return diskBytes, lastUse, nil
}

// DiskBytes is what a layer takes on disk now; 0 for one that is not here.
func (s *Store) DiskBytes(blob digest.Digest) (int64, error) {
	if err := checkDigest(blob); err != nil {
		return 0, fmt.Errorf("measure layer: %w", err)
	}
	n, _, err := s.measure(s.layerDir(blob))
	if err != nil {
		return 0, fmt.Errorf("measure layer %s: %w", blob, err)
	}
	return n, nil
}

// Evict removes layers that have no users and no pins and that keep (nil: none)
// does not want, the least recently used first, until bytes of the disk are free
// again, and returns those. Too little that may go is no error.
//
// A layer that somebody acquires or pins meanwhile stays: the two cannot come
// between the last look and the removal, and an Acquire that comes after it makes
// the layer anew.
func (s *Store) Evict(ctx context.Context, bytes int64, keep func(digest.Digest) bool) ([]Info, error) {
	layers, err := s.usage()
	if err != nil {
		return nil, err
	}
	slices.SortFunc(layers, func(a, b stored) int {
		return cmp.Or(a.lastUse.Compare(b.lastUse), cmp.Compare(a.blob, b.blob))
	})
	var evicted []Info
	var errs []error
	for _, l := range layers {
		if bytes <= 0 {
			break
		}
		if !l.evictable {
			continue
		}
		if err := ctx.Err(); err != nil {
			return evicted, errors.Join(append(errs, fmt.Errorf("evict layers: %w", err))...)
		}
		info, err := s.info(l.blob)
		if err == nil {
			err = s.remove(ctx, l.blob, keep)
		}
		switch {
		case err == nil:
			evicted = append(evicted, info)
			bytes -= l.diskBytes
		case errors.Is(err, ErrInUse), errors.Is(err, ErrPinned), errors.Is(err, ErrNotFound), errors.Is(err, fs.ErrNotExist):
			// someone was quicker
		default:
			errs = append(errs, err)
		}
	}
	return evicted, errors.Join(errs...)
}
