package fuse

import (
	"context"

	"github.com/thaw-project/thaw/internal/mount"
)

// Probe finds out whether this Mounter works for layer files in dir; see mount.Probe.
func Probe(ctx context.Context, dir string) error {
	return mount.Probe(ctx, dir, "FUSE", func(ctx context.Context, h mount.Handler) (mount.Mounter, error) {
		m, err := New(ctx, Options{Handler: h, Workers: 1})
		if err != nil {
			return nil, err
		}
		return m, nil
	})
}
