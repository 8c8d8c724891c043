package layerstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
)

// Ingest is a whole layer on its way in, written in order, by a caller who
// hashes what it writes. It is used by one goroutine, and ends with Seal, Commit or
// Abort; Abort after either of the first two does nothing, so that it can be deferred.
type Ingest struct {
	store     *Store
	blob      digest.Digest
	blobBytes int64
	diffID    digest.Digest
	dir       string
	file      *os.File
	direct    *directWriter // nil: all goes through the page cache
	off       int64
	flushed   int64
	err       error // sticky; ErrClosed once it is over
}

// Ingest begins to write a layer, beside whatever is known of it. Nothing of it
// can be seen before Seal or Commit, or is left behind by a crash.
func (s *Store) Ingest(ctx context.Context, blob digest.Digest, blobBytes int64, diffID digest.Digest) (*Ingest, error) {
	m := Meta{Blob: blob, BlobBytes: blobBytes, DiffID: diffID, SpanBytes: SpanBytes}
	if err := m.Validate(); err != nil {
		return nil, err
	}
	e, err := s.lockEntry(ctx, blob) // for the check that the store is open
	if err != nil {
		return nil, err
	}
	defer e.unlock()
	g := &Ingest{store: s, blob: blob, blobBytes: blobBytes, diffID: diffID}
	if g.dir, err = os.MkdirTemp(s.path(tmpDir), "ingest-"); err != nil {
		return nil, fmt.Errorf("ingest layer %s: %w", blob, err)
	}
	if g.file, err = createTar(g.dir); err != nil {
		return nil, fmt.Errorf("ingest layer %s: %w", blob, errors.Join(err, os.RemoveAll(g.dir)))
	}
	if blobBytes >= s.directFrom {
		g.direct = newDirectWriter(g.dir, g.file)
	}
	return g, nil
}

// Write appends to the tar. An error is a *WriteError and lasts: the ingest can
// then only be aborted.
func (g *Ingest) Write(p []byte) (int, error) {
	if g.err != nil {
		return 0, g.err
	}
	if g.direct != nil {
		if f := g.direct.failed.Load(); f != nil {
			return 0, g.failed(f.off, directBytes, f.err)
		}
		if g.off%directBytes == 0 && len(p) == directBytes && g.direct.offer(p, g.off) {
			g.off += directBytes
			return len(p), nil
		}
	}
	n, err := g.file.WriteAt(p, g.off)
	g.off += int64(n)
	if err != nil {
		return n, g.failed(g.off, int64(len(p)-n), err)
	}
	if dirty := g.off - g.flushed; dirty >= writebackBytes {
		// A hint: what is wrong with the disk, the sync will say.
		_ = startWriteback(g.file, g.flushed, dirty)
		g.flushed = g.off
	}
	return n, nil
}

// failed keeps the error of a write.
func (g *Ingest) failed(off, missing int64, err error) error {
	g.err = &WriteError{Layer: g.blob, Span: int(off / SpanBytes), Path: g.file.Name(), MissingBytes: missing, Err: err}
	return g.err
}

// settle waits for the writes past the page cache.
func (g *Ingest) settle() {
	if g.direct == nil {
		return
	}
	g.direct.close()
	if f := g.direct.failed.Load(); f != nil && g.err == nil {
		_ = g.failed(f.off, directBytes, f.err)
	}
	g.direct = nil
}

// Size returns how many bytes were written.
func (g *Ingest) Size() int64 { return g.off }

// Abort ends an ingest and removes what it wrote.
func (g *Ingest) Abort() error {
	if errors.Is(g.err, ErrClosed) {
		return nil
	}
	g.settle()
	g.err = ErrClosed
	return errors.Join(g.file.Close(), os.RemoveAll(g.dir))
}

// Commit is Seal and then Finish: the layer it returns is complete.
func (g *Ingest) Commit(ctx context.Context, spanDigests [][32]byte) (*Layer, error) {
	l, err := g.Seal(ctx, spanDigests)
	if err != nil {
		return nil, err
	}
	if err := l.Finish(ctx); err != nil {
		return nil, errors.Join(err, l.Release())
	}
	return l, nil
}

// Seal ends an ingest whose bytes are all written, and puts the layer in its place,
// without waiting for the disk. The caller has found the sha256 of what it wrote to be
// the diffID; spanDigests are those of the spans of SpanBytes in it. The layer
// is acquired; all its spans are here, and what is left to do is a Finish, which has
// nothing to hash.
//
// A layer that is there already is treated so: a complete one stays, and the
// ingest is dropped; one in use with the same span table gets the bytes; one in
// use with another span table is quarantined, since these bytes prove the other
// wrong; an incomplete one nobody uses is replaced. One that is complete, or in
// use, with another diffID is *ConflictError. Any error aborts.
func (g *Ingest) Seal(ctx context.Context, spanDigests [][32]byte) (*Layer, error) {
	g.settle()
	if err := g.err; err != nil {
		return nil, errors.Join(err, g.Abort())
	}
	l, err := g.seal(ctx, spanDigests)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("ingest layer %s: %w", g.blob, err), g.Abort())
	}
	return l, nil
}

func (g *Ingest) seal(ctx context.Context, spanDigests [][32]byte) (*Layer, error) {
	m := Meta{
		Blob: g.blob, BlobBytes: g.blobBytes, DiffID: g.diffID,
		TarBytes: g.off, SpanBytes: SpanBytes, SpanDigests: spanDigests,
	}
	if err := m.Validate(); err != nil {
		return nil, err
	}
	e, err := g.store.lockEntry(ctx, g.blob)
	if err != nil {
		return nil, err
	}
	l, feed, err := g.place(e, m)
	if err == nil {
		l.users++
		l.touch()
	}
	e.unlock()
	if err != nil {
		return nil, err
	}
	if feed {
		err = g.feed(ctx, l)
	}
	if l.file != g.file {
		err = errors.Join(err, g.Abort())
	}
	g.err = ErrClosed
	if err != nil {
		return nil, errors.Join(err, l.Release())
	}
	return l, nil
}

// place finds or makes the layer that the ingest becomes, with the entry's gate
// held; feed says that the bytes are still to be put into it.
func (g *Ingest) place(e *entry, m Meta) (l *Layer, feed bool, err error) {
	s := g.store
	if l := e.layer.Load(); l != nil {
		c := conflict(&l.meta, &m, l.Complete())
		if c == nil {
			return l, !l.Complete(), nil
		}
		if l.Complete() || l.meta.DiffID != m.DiffID {
			c.Owners = s.pins.owners(m.Blob)
			return nil, false, c
		}
		lie := fmt.Errorf("its %s %s is not that of the layer's bytes, %s", c.What, c.Stored, c.Given)
		if err := s.quarantineLocked(l, lie); err != nil {
			return nil, false, err
		}
	}
	dir := s.layerDir(m.Blob)
	if stored, err := readMeta(dir); err == nil {
		if h, _ := s.readHave(dir, &stored); h != nil && h.flags&flagComplete != 0 {
			l, err := s.load(m, nil) // the proven one, or a conflict, or, unpinned, made anew
			if err != nil {
				return nil, false, err
			}
			e.install(l)
			return l, !l.Complete(), nil
		}
	}
	l, err = g.install(m)
	if err == nil {
		e.install(l)
	}
	return l, false, err
}

// install renames the ingest's directory to the layer's.
func (g *Ingest) install(m Meta) (*Layer, error) {
	if err := writeMeta(g.dir, &m, false); err != nil {
		return nil, err
	}
	dir := g.store.layerDir(m.Blob)
	if exists(dir) {
		if err := g.store.trash(dir); err != nil {
			return nil, err
		}
	}
	if err := os.Rename(g.dir, dir); err != nil {
		return nil, err
	}
	l := newLayer(g.store, m, g.file)
	for i := range m.Spans() {
		setBit(l.have, i)
	}
	l.here.Store(m.TarBytes)
	l.put.Store(m.TarBytes)
	l.changes.Add(1)
	l.right = true
	l.hashed.Store(m.TarBytes)
	return l, nil
}

// feed puts the ingest's bytes into a layer that others use.
func (g *Ingest) feed(ctx context.Context, l *Layer) error {
	buf := make([]byte, l.meta.SpanBytes)
	for i := range l.meta.Spans() {
		if err := ctx.Err(); err != nil {
			return err
		}
		if l.Have(i) {
			continue
		}
		off, n := l.meta.Span(i)
		if _, err := g.file.ReadAt(buf[:n], off); err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read %s: %w", filepath.Join(g.dir, tarName), err)
		}
		if err := l.Put(i, buf[:n]); err != nil {
			return err
		}
	}
	return nil
}
