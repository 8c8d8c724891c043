package snapshotter

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
)

// stack is an active snapshot or a view with what it stands on.
type stack struct {
	id      string
	kind    snapshots.Kind
	plain   []string // ids of its plain parents, the nearest first
	lazy    *lazy    // what those stand on, or nil
	lazyDir string   // where that is mounted, once it is
}

// stackOf reads a snapshot that is active or a view. The context has a transaction.
func (s *Snapshotter) stackOf(ctx context.Context, key string) (*stack, error) {
	id, info, _, err := storage.GetInfo(ctx, key)
	if err != nil {
		return nil, err
	}
	if info.Kind != snapshots.KindActive && info.Kind != snapshots.KindView {
		return nil, fmt.Errorf("snapshot %s is neither active nor a view: %w", key, errdefs.ErrFailedPrecondition)
	}
	st := &stack{id: id, kind: info.Kind}
	st.plain, st.lazy, err = below(ctx, info)
	return st, err
}

// below returns what a snapshot stands on. The context has a transaction.
func below(ctx context.Context, info snapshots.Info) (plain []string, bottom *lazy, err error) {
	for info.Parent != "" {
		var id string
		if id, info, _, err = storage.GetInfo(ctx, info.Parent); err != nil {
			return nil, nil, fmt.Errorf("read parent of snapshot: %w", err)
		}
		if l, ok := lazyOf(info); ok {
			return plain, &l, nil
		}
		plain = append(plain, id)
	}
	return plain, nil, nil
}

// overlayOptions are those of every overlay, so that whatever one has written the
// next one can read. metacopy: a chmod is not to hydrate the file; it needs redirects.
var overlayOptions = []string{"index=off", "metacopy=on", "redirect_dir=on"}

// mountsOf returns what to mount to get at a snapshot. Its lazy parent is mounted.
func (s *Snapshotter) mountsOf(ctx context.Context, st *stack) ([]mount.Mount, error) {
	var lower []string
	for _, id := range st.plain {
		lower = append(lower, s.fsDir(id))
	}
	if st.lazy != nil {
		var err error
		if st.lazyDir, err = s.images.Mount(ctx, st.lazy.key()); err != nil {
			return nil, fmt.Errorf("mount %d layers of %s: %w", st.lazy.Layers, st.lazy.Ref, err)
		}
		lower = append(lower, st.lazyDir)
	}
	bind := func(dir, access string) []mount.Mount {
		return []mount.Mount{{Type: "bind", Source: dir, Options: []string{access, "rbind"}}}
	}
	switch {
	case len(lower) == 0 && st.kind == snapshots.KindActive:
		return bind(s.fsDir(st.id), "rw"), nil
	case len(lower) == 0:
		return bind(s.fsDir(st.id), "ro"), nil
	case st.kind == snapshots.KindView && len(lower) == 1 && st.lazy == nil:
		return bind(lower[0], "ro"), nil
	case st.kind == snapshots.KindView && len(lower) == 1:
		// Not a bind mount: that would have the image's nosuid and nodev. An overlay
		// has two at least; this one is empty.
		lower = append(lower, s.fsDir(st.id))
	}
	var options []string
	if st.kind == snapshots.KindActive {
		options = append(options, "workdir="+s.workDir(st.id), "upperdir="+s.fsDir(st.id))
	}
	options = append(options, "lowerdir="+strings.Join(lower, ":"))
	return []mount.Mount{{Type: "overlay", Source: "overlay", Options: slices.Concat(options, overlayOptions)}}, nil
}
