// Package snapshotter is containerd's snapshotter contract over images that are
// mounted lazily.
//
// Its model: a snapshot is plain or lazy. A plain one is a directory, as in
// containerd's own overlayfs snapshotter: what an unpacked layer, or a
// container, has changed. A lazy one is committed from the start and has no
// directory: it says that a chain of layers is the first n of an image, and its
// root is what [Images] mounts for those, merged. containerd is told that such a
// snapshot exists already when it is about to unpack the layer, so it does not
// download it. Plain snapshots may stand on lazy ones, never the other way round.
//
// All state is in containerd's MetaStore (bbolt): what a lazy snapshot stands for
// is in labels of it, which nobody else can change. Directories and mounts
// without a snapshot are rubbish that [Snapshotter.Cleanup] takes away; mounts
// that are missing, after a reboot, are made again when they are asked for.
//
// The package fetches and mounts nothing: that is done by who implements Images.
package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/continuity/fs"
	"github.com/containerd/errdefs"
)

// Options of a snapshotter.
type Options struct {
	Root   string // directory of all that it keeps
	Images Images
	// Content is asked for what containerd knows of images; nil: nobody is.
	Content *Content
	// Declined is told of each layer that is left to containerd, and why; nil: nobody is.
	Declined func(image Image, err error)
	Log      *slog.Logger
}

// Snapshotter implements containerd's snapshots.Snapshotter and snapshots.Cleaner.
type Snapshotter struct {
	root     string
	images   Images
	content  *Content
	declined func(Image, error)
	log      *slog.Logger
	ms       *storage.MetaStore

	closing sync.Once
	closed  error
}

var (
	_ snapshots.Snapshotter = (*Snapshotter)(nil)
	_ snapshots.Cleaner     = (*Snapshotter)(nil)
)

// New opens the snapshotter of a directory, and removes what an earlier one was
// about to make or to remove when it was killed.
func New(ctx context.Context, opts Options) (*Snapshotter, error) {
	s := &Snapshotter{root: opts.Root, images: opts.Images, content: opts.Content, declined: opts.Declined, log: opts.Log}
	if s.declined == nil {
		s.declined = func(Image, error) {}
	}
	if err := os.MkdirAll(s.snapshotsDir(), 0o700); err != nil {
		return nil, fmt.Errorf("make directory of snapshots: %w", err)
	}
	if ok, err := fs.SupportsDType(opts.Root); err != nil || !ok {
		return nil, errors.Join(err, fmt.Errorf("snapshots in %s: its file system has no d_type (xfs: ftype=1), overlayfs cannot use it", opts.Root))
	}
	var err error
	if s.ms, err = storage.NewMetaStore(filepath.Join(opts.Root, "metadata.db")); err != nil {
		return nil, fmt.Errorf("open state of snapshots: %w", err)
	}
	if err := s.Cleanup(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Close implements snapshots.Snapshotter. Snapshots stay, and so do mounts.
func (s *Snapshotter) Close() error {
	s.closing.Do(func() { s.closed = s.ms.Close() })
	return s.closed
}

func (s *Snapshotter) snapshotsDir() string   { return filepath.Join(s.root, "snapshots") }
func (s *Snapshotter) fsDir(id string) string { return filepath.Join(s.root, "snapshots", id, "fs") }
func (s *Snapshotter) workDir(id string) string {
	return filepath.Join(s.root, "snapshots", id, "work")
}

// Stat implements snapshots.Snapshotter.
func (s *Snapshotter) Stat(ctx context.Context, key string) (info snapshots.Info, err error) {
	err = s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		_, info, _, err = storage.GetInfo(ctx, key)
		return err
	})
	return info, err
}

// Update implements snapshots.Snapshotter. Labels that say what a snapshot is stay.
func (s *Snapshotter) Update(ctx context.Context, info snapshots.Info, fieldpaths ...string) (updated snapshots.Info, err error) {
	err = s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		_, now, _, err := storage.GetInfo(ctx, info.Name)
		if err != nil {
			return err
		}
		info.Labels = keepOwn(now.Labels, info.Labels)
		updated, err = storage.UpdateInfo(ctx, info, fieldpaths...)
		return err
	})
	return updated, err
}

// Usage implements snapshots.Snapshotter: what is on disk now.
func (s *Snapshotter) Usage(ctx context.Context, key string) (usage snapshots.Usage, err error) {
	var info snapshots.Info
	var id string
	err = s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		id, info, usage, err = storage.GetInfo(ctx, key)
		return err
	})
	if err != nil {
		return usage, err
	}
	if l, ok := lazyOf(info); ok {
		bytes, err := s.images.Usage(l.Blob)
		return snapshots.Usage{Inodes: 1, Size: bytes}, err
	}
	if info.Kind != snapshots.KindActive {
		return usage, nil
	}
	du, err := fs.DiskUsage(ctx, s.fsDir(id))
	return snapshots.Usage(du), err
}

// Prepare implements snapshots.Snapshotter.
func (s *Snapshotter) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	var base snapshots.Info
	for _, opt := range opts {
		if err := opt(&base); err != nil {
			return nil, err
		}
	}
	if target := base.Labels[labelTarget]; target != "" {
		taken, err := s.take(ctx, key, parent, target, base.Labels)
		if err != nil {
			return nil, err
		}
		if taken {
			return nil, fmt.Errorf("snapshot %s: %w", target, errdefs.ErrAlreadyExists)
		}
	}
	return s.create(ctx, snapshots.KindActive, key, parent, opts)
}

// View implements snapshots.Snapshotter.
func (s *Snapshotter) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return s.create(ctx, snapshots.KindView, key, parent, opts)
}

// create makes a plain snapshot.
func (s *Snapshotter) create(ctx context.Context, kind snapshots.Kind, key, parent string, opts []snapshots.Opt) ([]mount.Mount, error) {
	var st *stack
	err := s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		snap, err := storage.CreateSnapshot(ctx, kind, key, parent, append(opts, withoutOwn)...)
		if err != nil {
			return err
		}
		if st, err = s.stackOf(ctx, key); err != nil {
			return err
		}
		// Within the transaction: if it is undone, the next one has this id.
		if err := s.makeDir(st); err != nil {
			return errors.Join(err, os.RemoveAll(filepath.Join(s.snapshotsDir(), snap.ID)))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	mounts, err := s.mountsOf(ctx, st)
	if err == nil && st.lazy != nil && len(st.plain) == 0 {
		err = chownAs(s.fsDir(st.id), st.lazyDir)
	}
	if err != nil {
		return nil, errors.Join(err, s.Remove(context.WithoutCancel(ctx), key))
	}
	return mounts, nil
}

// makeDir makes a new snapshot's directory.
func (s *Snapshotter) makeDir(st *stack) error {
	dir := filepath.Dir(s.fsDir(st.id))
	if err := os.RemoveAll(dir); err != nil { // of a transaction that was undone by a crash
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if err := os.Mkdir(s.fsDir(st.id), 0o755); err != nil {
		return err
	}
	if err := os.Chmod(s.fsDir(st.id), 0o755); err != nil { // whatever the umask
		return err
	}
	if st.kind == snapshots.KindActive {
		if err := os.Mkdir(s.workDir(st.id), 0o711); err != nil {
			return err
		}
	}
	if len(st.plain) == 0 {
		return nil
	}
	return chownAs(s.fsDir(st.id), s.fsDir(st.plain[0]))
}

// chownAs gives a snapshot's root the owner that its parent's has.
func chownAs(dir, parent string) error {
	info, err := os.Stat(parent)
	if err != nil {
		return err
	}
	st := info.Sys().(*syscall.Stat_t)
	return os.Lchown(dir, int(st.Uid), int(st.Gid))
}

// Mounts implements snapshots.Snapshotter.
func (s *Snapshotter) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	var st *stack
	err := s.ms.WithTransaction(ctx, false, func(ctx context.Context) (err error) {
		st, err = s.stackOf(ctx, key)
		return err
	})
	if err != nil {
		return nil, err
	}
	return s.mountsOf(ctx, st)
}

// Commit implements snapshots.Snapshotter.
func (s *Snapshotter) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	return s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		id, _, _, err := storage.GetInfo(ctx, key)
		if err != nil {
			return err
		}
		usage, err := fs.DiskUsage(ctx, s.fsDir(id))
		if err != nil {
			return err
		}
		_, err = storage.CommitActive(ctx, key, name, snapshots.Usage(usage), append(opts, withoutOwn)...)
		return err
	})
}

// Walk implements snapshots.Snapshotter.
func (s *Snapshotter) Walk(ctx context.Context, fn snapshots.WalkFunc, filters ...string) error {
	return s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		return walk(ctx, fn, filters...)
	})
}
