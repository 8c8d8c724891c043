package bench

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Residue is what of the image could still be on the node: files of the
// directories that hold layers, and how much of them the page cache has.
type Residue struct {
	Files       int   `json:"files"`
	StoredBytes int64 `json:"stored_bytes"` // allocated on disk
	CachedBytes int64 `json:"cached_bytes"` // cachestat(2)
}

// coldBytes is how much may be there of a node that has nothing of the image:
// locks, logs, an empty store.
const coldBytes = 256 << 10

// Cold reports whether there is nothing of an image.
func (r Residue) Cold() bool { return max(r.StoredBytes, r.CachedBytes) <= coldBytes }

func (r Residue) add(o Residue) Residue {
	return Residue{r.Files + o.Files, r.StoredBytes + o.StoredBytes, r.CachedBytes + o.CachedBytes}
}

// MeasureResidue looks at all files below directories; those that are missing,
// or that go away meanwhile, have nothing.
func MeasureResidue(dirs ...string) (Residue, error) {
	var r Residue
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			one, err := residueOf(path)
			r = r.add(one)
			return err
		})
		if err != nil {
			return r, fmt.Errorf("look at what is cached: %w", err)
		}
	}
	return r, nil
}

func residueOf(path string) (Residue, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Residue{}, nil
	}
	if err != nil {
		return Residue{}, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return Residue{}, &fs.PathError{Op: "fstat", Path: path, Err: err}
	}
	var cached unix.Cachestat_t // Len 0: to the end of the file
	if err := unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{}, &cached, 0); err != nil {
		return Residue{}, &fs.PathError{Op: "cachestat", Path: path, Err: err}
	}
	return Residue{1, st.Blocks * 512, int64(cached.Cache) * int64(os.Getpagesize())}, nil
}

// DropCaches has the kernel forget every file that is not in use: pages, names
// and inodes of the whole machine. Needs root. It waits for every mount that is
// being made or taken away, however long that takes, and cannot be interrupted
// then: when the context ends it is left to itself.
func DropCaches(ctx context.Context) error {
	done := make(chan error, 1)
	go func() {
		unix.Sync() // dirty pages are not dropped
		done <- os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
	}()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("drop the page cache: %w", err)
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
