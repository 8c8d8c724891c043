package daemon

import (
	"context"
	"fmt"
	"io"

	"github.com/thaw-project/thaw/internal/layertar"
)

// compareIndex reads the entries of a mount's layers from their files, which
// are complete and proven, and compares them with what the index says.
func (d *Daemon) compareIndex(ctx context.Context, m *mounted) error {
	d.checking.Lock() // one at a time: it is nobody's hurry
	defer d.checking.Unlock()
	entries := make([][]layertar.Entry, len(m.layers))
	for i, l := range m.layers {
		meta := l.store.Meta()
		r := contextReaderAt{ctx, l.store.File()}
		var err error
		if entries[i], err = layertar.ReadAllAt(r, meta.TarBytes, layertar.DefaultLimits()); err != nil {
			return fmt.Errorf("read entries of layer %s: %w", l.blob, err)
		}
	}
	return m.img.head.CheckFiles(entries)
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
