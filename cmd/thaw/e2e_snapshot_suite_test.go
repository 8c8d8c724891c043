package main

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"github.com/containerd/containerd/v2/pkg/filters"
	"github.com/containerd/errdefs"

	"github.com/thaw-project/thaw/internal/layertar/layertartest"
)

// TestSnapshotSuite is containerd's own suite over the daemon's socket, with every snapshot on a lazily
// mounted image. That image is empty, so the suite does not notice.
func TestSnapshotSuite(t *testing.T) {
	eachLazyMode(t, func(t *testing.T, mode string) {
		layout := t.TempDir()
		writeImage(t, layout, "empty", compressions[0], [][]byte{new(layertartest.Builder).End().Bytes()})
		ref := newLab(t, layout, "none").Addr() + "/empty:latest"
		n := newSnapNode(t, mode)
		n.pushIndex(ref)
		img := n.image(layout, "empty", ref)
		n.pull(img)
		testsuite.SnapshotterSuite(t, "thaw", func(_ context.Context, root string) (snapshots.Snapshotter, func() error, error) {
			return &onImage{n.sn, img.top(), filepath.Base(filepath.Dir(root))}, nil, nil
		})
		t.Run("empty", func(t *testing.T) { // after the parallel ones
			n := &snapNode{node: n.in(t), sn: n.sn}
			if err := n.sn.Walk(t.Context(), func(ctx context.Context, info snapshots.Info) error {
				return n.sn.Remove(ctx, info.Name)
			}, "kind==active"); err != nil {
				t.Error(err)
			}
		})
	})
}

// onImage is a part of a snapshotter, the names in which begin with space. What has no parent
// stands on an image.
type onImage struct {
	sn    snapshots.Snapshotter
	image string
	space string
}

func (o *onImage) in(key string) string {
	if key == "" {
		return o.image
	}
	return o.space + "|" + key
}

// out is what the user of the part knows of a snapshot; false if that is another's.
func (o *onImage) out(info snapshots.Info) (snapshots.Info, bool) {
	strip := func(key string) (string, bool) {
		if key == o.image {
			return "", true
		}
		prefix := o.space + "|"
		return key[min(len(key), len(prefix)):], len(key) > len(prefix) && key[:len(prefix)] == prefix
	}
	var mine, parents bool
	info.Name, mine = strip(info.Name)
	info.Parent, parents = strip(info.Parent)
	return info, mine && parents && info.Name != ""
}

func (o *onImage) Stat(ctx context.Context, key string) (snapshots.Info, error) {
	if key == "" {
		return snapshots.Info{}, errdefs.ErrNotFound
	}
	info, err := o.sn.Stat(ctx, o.in(key))
	info, _ = o.out(info)
	return info, err
}

func (o *onImage) Update(ctx context.Context, info snapshots.Info, fieldpaths ...string) (snapshots.Info, error) {
	info.Name = o.in(info.Name)
	info, err := o.sn.Update(ctx, info, fieldpaths...)
	info, _ = o.out(info)
	return info, err
}

func (o *onImage) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	return o.sn.Usage(ctx, o.in(key))
}

func (o *onImage) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	return o.sn.Mounts(ctx, o.in(key))
}

func (o *onImage) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return o.sn.Prepare(ctx, o.in(key), o.in(parent), opts...)
}

func (o *onImage) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return o.sn.View(ctx, o.in(key), o.in(parent), opts...)
}

func (o *onImage) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	return o.sn.Commit(ctx, o.in(name), o.in(key), opts...)
}

func (o *onImage) Remove(ctx context.Context, key string) error { return o.sn.Remove(ctx, o.in(key)) }

func (o *onImage) Walk(ctx context.Context, fn snapshots.WalkFunc, filter ...string) error {
	match, err := filters.ParseAll(filter...)
	if err != nil {
		return err
	}
	return o.sn.Walk(ctx, func(ctx context.Context, info snapshots.Info) error {
		info, mine := o.out(info)
		if !mine || !match.Match(filters.AdapterFunc(func(path []string) (string, bool) { return field(info, path) })) {
			return nil
		}
		return fn(ctx, info)
	})
}

// field is what filters ask of a snapshot.
func field(info snapshots.Info, path []string) (string, bool) {
	switch path[0] {
	case "name":
		return info.Name, true
	case "parent":
		return info.Parent, true
	case "kind":
		return strings.ToLower(info.Kind.String()), true
	case "labels":
		v, ok := info.Labels[strings.Join(path[1:], ".")]
		return v, ok
	}
	return "", false
}

func (o *onImage) Close() error { return nil }
