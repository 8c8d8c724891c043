package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/thaw-project/thaw/internal/layertar"
)

// compareIndex reads the entries of a mount's layers from their files, which
// are complete and proven, and compares them with what the index says. Once is enough: the
// digests of image and index say what is compared, and it reads through all layers, beside
// a program that is starting from the same disk.
func (d *Daemon) compareIndex(ctx context.Context, m *mounted) error {
	d.checking.Lock() // one at a time: it is nobody's hurry
	defer d.checking.Unlock()
	whole := m.img.whole == nil
	if whole && d.indexes.Compared(m.img.digest, m.img.headDigest) {
		return nil
	}
	entries := make([][]layertar.Entry, len(m.layers))
	for i, l := range m.layers {
		meta := l.store.Meta()
		r := contextReaderAt{ctx, l.store.File()}
		var err error
		if entries[i], err = layertar.ReadAllAt(r, meta.TarBytes, layertar.DefaultLimits()); err != nil {
			return fmt.Errorf("read entries of layer %s: %w", l.blob, err)
		}
	}
	if err := m.img.head.CheckFiles(entries); err != nil {
		return err
	}
	if whole {
		if err := d.indexes.SetCompared(m.img.digest, m.img.headDigest); err != nil && !errors.Is(err, fs.ErrNotExist) { // it may be collected
			d.log.Warn("the next mount compares the index again", "image", m.img.ref, "err", err)
		}
	}
	return nil
}

// contextReaderAt stops reading when its context ends.
type contextReaderAt struct {
	ctx context.Context
	r   io.ReaderAt
}

func (c contextReaderAt) ReadAt(b []byte, off int64) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.ReadAt(b, off)
}
