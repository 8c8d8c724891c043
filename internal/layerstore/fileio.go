package layerstore

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// control runs fn on f's descriptor while f cannot be closed, again on EINTR.
func control(f *os.File, fn func(fd int) error) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = conn.Control(func(fd uintptr) {
		for {
			if inner = fn(int(fd)); !errors.Is(inner, unix.EINTR) {
				return
			}
		}
	})
	return errors.Join(err, inner)
}

// fdatasync writes f's data and size to disk; its times may be left behind.
func fdatasync(f *os.File) error { return control(f, unix.Fdatasync) }

// startWriteback lets the disk begin with the dirty pages of a range (n 0: to
// the end) and waits for nothing, so that a later sync is short.
func startWriteback(f *os.File, off, n int64) error {
	return control(f, func(fd int) error { return unix.SyncFileRange(fd, off, n, unix.SYNC_FILE_RANGE_WRITE) })
}

// dropCache forgets the clean cached pages of a range (n 0: to the end).
func dropCache(f *os.File, off, n int64) error {
	return control(f, func(fd int) error { return unix.Fadvise(fd, off, n, unix.FADV_DONTNEED) })
}

// hasData reports whether any of [off, off+n) was ever written. A file system
// that cannot tell says yes.
func hasData(f *os.File, off, n int64) bool {
	data := off
	err := control(f, func(fd int) (err error) {
		data, err = unix.Seek(fd, off, unix.SEEK_DATA)
		return err
	})
	if errors.Is(err, unix.ENXIO) { // a hole up to the end
		return false
	}
	return err != nil || data < off+n
}

func fsyncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// makeDirs makes a directory and those above it. Their names are durable when it
// returns: a sync of what is put into them later does not see to that.
func makeDirs(dir string) error {
	err := os.Mkdir(dir, 0o700)
	parent := filepath.Dir(dir)
	if errors.Is(err, fs.ErrNotExist) && parent != dir {
		if err := makeDirs(parent); err != nil {
			return err
		}
		err = os.Mkdir(dir, 0o700)
	}
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return fsyncPath(parent)
}

// writeFile replaces a file in one step. Only when durable is set does it also
// wait until the new content, and its name, would survive a power cut.
func writeFile(path string, b []byte, durable bool) error {
	tmp := path + ".tmp" // one writer at a time: the store's lock and its own
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil && durable {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		os.Remove(tmp)
		return fmt.Errorf("write %s (%d bytes): %w", path, len(b), err)
	}
	if durable {
		return fsyncPath(filepath.Dir(path))
	}
	return nil
}

// readFile reads a whole file of at most limit bytes.
func readFile(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = &CorruptError{Path: path, Reason: "larger than the limit"}
	}
	return b, err
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// trash removes a directory. A crash in the middle leaves either all of it in
// its place or nothing there; on a disk too full even for the rename, the have
// file goes first, so that what is left is not believed.
func (s *Store) trash(dir string) error {
	tmp := s.path(tmpDir, fmt.Sprintf("trash-%d", s.serial.Add(1)))
	if err := os.Rename(dir, tmp); err == nil {
		return os.RemoveAll(tmp)
	}
	if err := os.Remove(filepath.Join(dir, haveName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.RemoveAll(dir)
}
