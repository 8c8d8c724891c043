package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
)

// Remove implements snapshots.Snapshotter.
func (s *Snapshotter) Remove(ctx context.Context, key string) error {
	var id string
	var wasLazy, onPart bool
	err := s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		_, info, _, err := storage.GetInfo(ctx, key)
		if err != nil {
			return err
		}
		_, wasLazy = lazyOf(info)
		_, bottom, err := below(ctx, info)
		if err != nil {
			return err
		}
		onPart = bottom != nil && bottom.Layers < bottom.All
		id, _, err = storage.Remove(ctx, key)
		return err
	})
	if err != nil {
		return err
	}
	// It is gone; what is left of it is found again by Cleanup.
	ctx = context.WithoutCancel(ctx)
	if !wasLazy {
		if err := os.RemoveAll(filepath.Join(s.snapshotsDir(), id)); err != nil {
			s.log.Warn("remove directory of snapshot", "snapshot", key, "err", err)
		}
	}
	if !wasLazy && !onPart {
		return nil // the mount of a whole image stays with the image
	}
	if err := s.keep(ctx); err != nil {
		s.log.Warn("let go of what a snapshot stood on", "snapshot", key, "err", err)
	}
	return nil
}

// Cleanup implements snapshots.Cleaner.
func (s *Snapshotter) Cleanup(ctx context.Context) error {
	var rubbish []string
	// In a transaction that writes, so that nobody makes a snapshot meanwhile.
	err := s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		ids := map[string]string{}
		if err := walk(ctx, func(ctx context.Context, info snapshots.Info) error {
			id, _, _, err := storage.GetInfo(ctx, info.Name)
			ids[id] = info.Name
			return err
		}); err != nil {
			return err
		}
		entries, err := os.ReadDir(s.snapshotsDir())
		if err != nil {
			return fmt.Errorf("list directories of snapshots: %w", err)
		}
		for _, e := range entries {
			if _, ok := ids[e.Name()]; !ok {
				rubbish = append(rubbish, filepath.Join(s.snapshotsDir(), e.Name()))
			}
		}
		// Under names that no snapshot will have.
		for i, dir := range rubbish {
			if err := os.Rename(dir, s.rubbishPath(dir)); err == nil {
				rubbish[i] = s.rubbishPath(dir)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range rubbish {
		errs = append(errs, os.RemoveAll(dir))
	}
	return errors.Join(append(errs, s.keep(ctx))...)
}

// rubbishPath is where a directory goes that is to be removed.
func (s *Snapshotter) rubbishPath(dir string) string {
	if name := filepath.Base(dir); len(name) > 4 && name[:4] == "old-" {
		return dir
	}
	return filepath.Join(s.snapshotsDir(), "old-"+filepath.Base(dir))
}

// walk is storage.WalkInfo, also of a store that nothing was ever put in.
func walk(ctx context.Context, fn snapshots.WalkFunc, filters ...string) error {
	if _, err := storage.IDMap(ctx); errdefs.IsNotFound(err) {
		return nil
	}
	return storage.WalkInfo(ctx, fn, filters...)
}

// keep lets go of what no snapshot needs.
func (s *Snapshotter) keep(ctx context.Context) error {
	return s.images.Keep(ctx, func() ([]Key, map[digest.Digest]int, error) { return s.wanted(ctx) })
}

// wanted returns the mounts that snapshots need, and how many layers of which images.
func (s *Snapshotter) wanted(ctx context.Context) ([]Key, map[digest.Digest]int, error) {
	mounts, images := map[Key]bool{}, map[digest.Digest]int{}
	err := s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		return walk(ctx, func(ctx context.Context, info snapshots.Info) error {
			if l, ok := lazyOf(info); ok {
				images[l.Manifest] = max(images[l.Manifest], l.Layers)
				if l.Layers == l.All {
					mounts[l.key()] = true // a container may come at any time
				}
				return nil
			}
			_, bottom, err := below(ctx, info)
			if bottom != nil {
				mounts[bottom.key()] = true
			}
			return err
		})
	})
	if err != nil {
		return nil, nil, fmt.Errorf("list snapshots: %w", err)
	}
	return slices.Collect(maps.Keys(mounts)), images, nil
}
