package layerstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// lastUseGrain is how coarse LastUse is, to spare the disk.
const lastUseGrain = time.Second

// Acquire opens a layer, which is made (empty) where it is not here, and counts
// the caller as a user until Release. Everyone who acquires the same blob gets
// the same *Layer.
//
// first is the descriptor of the tar that was opened before it was marked and
// kept over a restart; it must be open read-write. Without one (nil) the tar is
// opened now, which must not happen while it is still marked. Acquire takes
// first over when it returns no error.
//
// A layer on disk with another span table than m's is handled so:
//   - complete, same diffID and size: it is proven, and used as it is;
//   - incomplete and neither in use nor handed over as first: m replaces the
//     table, and what is on disk becomes suspect;
//   - complete for another diffID, and not pinned: it is replaced;
//   - else *ConflictError.
//
// A span table that has lied before is *QuarantinedError.
func (s *Store) Acquire(ctx context.Context, m Meta, first *os.File) (*Layer, error) {
	if err := m.Validate(); err != nil {
		return nil, err
	}
	if err := s.refused(&m); err != nil {
		return nil, err
	}
	e, err := s.lockEntry(ctx, m.Blob)
	if err != nil {
		return nil, err
	}
	defer e.unlock()
	l := e.layer.Load()
	if l != nil {
		err = l.join(&m, first)
	} else if l, err = s.load(m, first); err == nil {
		e.install(l)
	}
	if err != nil {
		return nil, fmt.Errorf("acquire layer %s: %w", m.Blob, err)
	}
	l.users++
	l.touch()
	return l, nil
}

func (e *entry) install(l *Layer) {
	l.entry = e
	e.layer.Store(l)
}

// join checks that an open layer is what m describes.
func (l *Layer) join(m *Meta, first *os.File) error {
	if err := l.compatible(m); err != nil {
		return err
	}
	if first == nil || first == l.file {
		return nil
	}
	if err := sameFile(first, l.file.Stat); err != nil {
		return err
	}
	return first.Close() // another number for what we have
}

func (l *Layer) compatible(m *Meta) error {
	err := conflict(&l.meta, m, l.Complete())
	if err != nil {
		err.Owners = l.store.pins.owners(m.Blob)
		return err
	}
	return nil
}

// conflict compares what is stored with what is given; a proven tar needs no table.
func conflict(stored, given *Meta, proven bool) *ConflictError {
	c := &ConflictError{Layer: stored.Blob}
	switch {
	case stored.DiffID != given.DiffID:
		c.What, c.Stored, c.Given = "diffID", stored.DiffID.String(), given.DiffID.String()
	case stored.TarBytes != given.TarBytes:
		c.What, c.Stored, c.Given = "size", strconv.FormatInt(stored.TarBytes, 10), strconv.FormatInt(given.TarBytes, 10)
	case !proven && stored.tableSum() != given.tableSum():
		c.What, c.Stored, c.Given = "span table", stored.TableDigest().String(), given.TableDigest().String()
	default:
		return nil
	}
	return c
}

// load opens a layer nobody uses. The entry's gate is held.
func (s *Store) load(m Meta, first *os.File) (*Layer, error) {
	dir := s.layerDir(m.Blob)
	stored, err := readMeta(dir)
	if !exists(dir) {
		if first != nil {
			return nil, fmt.Errorf("descriptor kept for a layer that is not here: %w", ErrNotFound)
		}
		return s.create(m)
	}
	var corrupt *CorruptError
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.As(err, &corrupt) {
		return nil, err
	}
	if err != nil { // the crash that tore it left nothing to believe in either
		s.log.Warn("layer meta is damaged: its spans will be rechecked", "layer", m.Blob, "err", err)
		return s.reopen(m, first, true)
	}
	h, _ := s.readHave(dir, &stored)
	proven := h != nil && h.flags&flagComplete != 0
	c := conflict(&stored, &m, proven)
	if c == nil {
		return s.reopen(stored, first, false)
	}
	c.Owners = s.pins.owners(m.Blob)
	if first != nil || proven && len(c.Owners) > 0 {
		return nil, c
	}
	s.log.Warn("layer was kept under another description", "layer", m.Blob, "what", c.What, "stored", c.Stored, "given", c.Given)
	if proven {
		if err := s.trash(dir); err != nil {
			return nil, err
		}
		return s.create(m)
	}
	return s.reopen(m, first, true)
}

// create makes an empty layer. Nothing is synced: should the power fail before
// the first Sync, what is left of the directory claims nothing.
func (s *Store) create(m Meta) (*Layer, error) {
	tmp, err := os.MkdirTemp(s.path(tmpDir), "layer-")
	if err != nil {
		return nil, err
	}
	fail := func(err error) (*Layer, error) { return nil, errors.Join(err, os.RemoveAll(tmp)) }
	if err := writeMeta(tmp, &m, false); err != nil {
		return fail(err)
	}
	f, err := createTar(tmp)
	if err != nil {
		return fail(err)
	}
	err = f.Truncate(m.TarBytes)
	if err == nil {
		err = os.Rename(tmp, s.layerDir(m.Blob))
	}
	if err != nil {
		f.Close()
		return fail(err)
	}
	return newLayer(s, m, f), nil
}

func createTar(dir string) (*os.File, error) {
	return os.OpenFile(filepath.Join(dir, tarName), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
}

// reopen opens an existing layer directory; adopt writes m into it first, which
// makes its have file one of another table, so all of it suspect.
func (s *Store) reopen(m Meta, first *os.File, adopt bool) (*Layer, error) {
	dir := s.layerDir(m.Blob)
	if adopt {
		if err := writeMeta(dir, &m, false); err != nil {
			return nil, err
		}
	}
	f, err := openTar(dir, first)
	if err != nil {
		return nil, err
	}
	l := newLayer(s, m, f)
	h, herr := s.readHave(dir, &m)
	if herr != nil && !errors.Is(herr, fs.ErrNotExist) && !adopt {
		s.log.Warn("have file is not believed: the layer's spans will be rechecked", "layer", m.Blob, "err", herr)
	}
	st, err := f.Stat()
	if err == nil && st.Size() != m.TarBytes {
		h = nil
		err = f.Truncate(m.TarBytes)
	}
	if err != nil {
		if first == nil {
			f.Close()
		}
		return nil, err
	}
	l.believeMap(h)
	return l, nil
}

// openTar opens a layer's tar, or checks the descriptor that is handed over: it
// must be that file, readable and writable at any offset.
func openTar(dir string, first *os.File) (*os.File, error) {
	path := filepath.Join(dir, tarName)
	if first == nil {
		return os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	}
	if err := sameFile(first, func() (fs.FileInfo, error) { return os.Stat(path) }); err != nil {
		return nil, err
	}
	return first, control(first, func(fd int) error {
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		if err == nil && (flags&unix.O_ACCMODE != unix.O_RDWR || flags&(unix.O_APPEND|unix.O_PATH) != 0) {
			err = fmt.Errorf("descriptor kept for %s is not open for reading and writing", path)
		}
		return err
	})
}

func sameFile(first *os.File, other func() (fs.FileInfo, error)) error {
	a, err := first.Stat()
	if err != nil {
		return err
	}
	b, err := other()
	if err != nil {
		return err
	}
	if !os.SameFile(a, b) {
		return errors.New("descriptor kept for the layer is of another file")
	}
	return nil
}

func readMeta(dir string) (Meta, error) {
	path := filepath.Join(dir, metaName)
	b, err := readFile(path, maxMetaBytes)
	if err != nil {
		return Meta{}, err
	}
	m, err := decodeMeta(b)
	if err == nil && dirName(m.Blob) != filepath.Base(dir) {
		err = &CorruptError{Reason: "it describes " + m.Blob.String()}
	}
	return m, at(path, err)
}

func writeMeta(dir string, m *Meta, durable bool) error {
	b, err := encodeMeta(m)
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, metaName), b, durable)
}

// readHave reads a layer's have file and strips it of the flags that what it
// says of the tar does not bear out.
func (s *Store) readHave(dir string, m *Meta) (*haveMap, error) {
	path := filepath.Join(dir, haveName)
	b, err := readFile(path, haveHeaderSize+maxSpans/8+haveSumSize)
	if err != nil {
		return nil, err
	}
	h, err := decodeHave(b)
	if err != nil {
		return nil, at(path, err)
	}
	if h.table != m.tableSum() || h.spans != m.Spans() {
		return nil, &CorruptError{Path: path, Reason: "it belongs to another span table"}
	}
	st, err := os.Stat(filepath.Join(dir, tarName))
	if err != nil {
		return nil, err
	}
	if st.Size() != m.TarBytes || !sameMtime(h.mtimeNs, st.ModTime()) {
		h.flags = 0
	}
	return h, nil
}

// sameMtime compares a recorded time with a file's; some file systems keep whole
// seconds once the inode was out of memory.
func sameMtime(recordedNs int64, t time.Time) bool {
	return recordedNs == t.UnixNano() ||
		t.Nanosecond() == 0 && time.Unix(0, recordedNs).Unix() == t.Unix()
}

// at adds the path to a decoder's error.
func at(path string, err error) error {
	var c *CorruptError
	if errors.As(err, &c) && c.Path == "" {
		return &CorruptError{Path: path, Reason: c.Reason}
	}
	return err
}
