package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
)

// Labels that containerd gives with a layer that is to be unpacked
// (containerd's pkg/snapshotters; all clients use them, not only CRI).
const (
	labelTarget   = "containerd.io/snapshot.ref" // chainID
	labelRef      = "containerd.io/snapshot/cri.image-ref"
	labelManifest = "containerd.io/snapshot/cri.manifest-digest"
	labelLayer    = "containerd.io/snapshot/cri.layer-digest"
	// labelMode is a client's wish: of the labels that it sets on snapshots only
	// those with this prefix come through.
	labelMode = "containerd.io/snapshot/thaw.dev/mode"
)

// Our labels of a lazy snapshot say what it stands for.
const (
	ownPrefix   = "thaw.dev/"
	ownImage    = ownPrefix + "image"
	ownManifest = ownPrefix + "manifest"
	ownLayer    = ownPrefix + "layer"  // blob of the topmost layer
	ownLayers   = ownPrefix + "layers" // "3/5": the first three of five
)

// Image is an image as containerd names it.
type Image struct {
	Ref       string        // reference, as it was pulled
	Manifest  digest.Digest // of the image for one platform
	ChainID   digest.Digest // of the layers up to the one that is wanted
	Mode      string        // wanted by a label: lazy, eager or off; empty: no wish
	Namespace string        // containerd's
	// Read returns a manifest or config that containerd has; nil: nobody can be asked.
	Read func(ctx context.Context, dgst digest.Digest) ([]byte, error)
}

// Taken is an image that is served here from now on.
type Taken struct {
	Ref    string  // what it is known by
	Layers []Layer // lowest first
}

// Layer is one of an image's.
type Layer struct {
	ChainID digest.Digest // of it and all below
	Blob    digest.Digest
}

// Key names a mount: the first layers of an image.
type Key struct {
	Ref      string
	Manifest digest.Digest
	Layers   int
	All      int // layers that the image has
}

// Images is what the snapshotter needs of who has the images. Methods are called concurrently.
type Images interface {
	// Take makes an image one that can be mounted without containerd's help from now
	// on, lazily where that is possible, and calls commit, whose error it returns; until
	// then it is not let go of. Another error, without a call, says why it is left to
	// containerd.
	Take(ctx context.Context, image Image, commit func(*Taken) error) error
	// Mount returns where the image's first layers are mounted, read-only, and mounts
	// them if they are not.
	Mount(ctx context.Context, key Key) (dir string, err error)
	// Keep asks which mounts are needed and how many of the lowest layers of which images;
	// others, but for what was taken or mounted since it asked, are let go of.
	Keep(ctx context.Context, wanted func() (mounts []Key, images map[digest.Digest]int, err error)) error
	// Usage returns what a layer takes on disk now.
	Usage(blob digest.Digest) (bytes int64, err error)
}

// lazy is what a lazy snapshot stands for.
type lazy struct {
	Ref      string
	Manifest digest.Digest
	Blob     digest.Digest
	Layers   int // the image's first
	All      int // that it has
}

func (l *lazy) key() Key {
	return Key{Ref: l.Ref, Manifest: l.Manifest, Layers: l.Layers, All: l.All}
}

// labels are those that lazyOf reads.
func (l *lazy) labels() map[string]string {
	return map[string]string{ownImage: l.Ref, ownManifest: l.Manifest.String(), ownLayer: l.Blob.String(),
		ownLayers: fmt.Sprintf("%d/%d", l.Layers, l.All)}
}

// lazyOf says what a snapshot stands for, if it is a lazy one.
func lazyOf(info snapshots.Info) (lazy, bool) {
	first, all, ok := strings.Cut(info.Labels[ownLayers], "/")
	l := lazy{Ref: info.Labels[ownImage], Manifest: digest.Digest(info.Labels[ownManifest]), Blob: digest.Digest(info.Labels[ownLayer])}
	var err, aerr error
	l.Layers, err = strconv.Atoi(first)
	l.All, aerr = strconv.Atoi(all)
	return l, ok && info.Kind == snapshots.KindCommitted && err == nil && aerr == nil
}

// keepOwn returns labels with those of ours that a snapshot has, and no others of ours.
func keepOwn(now, labels map[string]string) map[string]string {
	kept := map[string]string{}
	maps.Copy(kept, labels)
	maps.DeleteFunc(kept, func(k, _ string) bool { return strings.HasPrefix(k, ownPrefix) })
	for k, v := range now {
		if strings.HasPrefix(k, ownPrefix) {
			kept[k] = v
		}
	}
	return kept
}

// withoutOwn takes away labels that only a lazy snapshot may have.
func withoutOwn(info *snapshots.Info) error {
	info.Labels = keepOwn(nil, info.Labels)
	return nil
}

// take makes the snapshot target, which containerd is about to unpack, a lazy one
// if that can be. An error is one that containerd has to know of.
func (s *Snapshotter) take(ctx context.Context, key, parent, target string, labels map[string]string) (bool, error) {
	info, err := s.Stat(ctx, target)
	if _, ok := lazyOf(info); err == nil && ok && info.Parent == parent {
		return true, nil
	}
	if err == nil {
		return false, nil // it stands on other snapshots, or is not ours
	}
	if !errdefs.IsNotFound(err) {
		return false, err
	}
	image := Image{Ref: labels[labelRef], Manifest: digest.Digest(labels[labelManifest]), ChainID: digest.Digest(target), Mode: labels[labelMode]}
	image.Namespace, _, _ = strings.Cut(key, "/") // containerd's metadata store puts it there
	if s.content != nil {
		if image.Ref == "" || image.Manifest == "" {
			if found, err := s.content.find(ctx, image.Namespace, image.ChainID); err == nil {
				image.Ref, image.Manifest = found.Ref, found.Manifest
			} else {
				s.log.Info("image of a layer is not known", "chain_id", image.ChainID, "namespace", image.Namespace, "err", err)
			}
		}
		image.Read = func(ctx context.Context, dgst digest.Digest) ([]byte, error) {
			ctx, cancel := context.WithTimeout(namespaces.WithNamespace(ctx, image.Namespace), contentPatience)
			defer cancel()
			return s.content.Read(ctx, dgst)
		}
	}
	taken := false
	var failed error
	if err = s.onImage(ctx, parent); err == nil {
		err = s.images.Take(ctx, image, func(all *Taken) error {
			at := slices.IndexFunc(all.Layers, func(l Layer) bool { return l.ChainID == image.ChainID })
			if at < 0 {
				return fmt.Errorf("image %s has no layers that make %s", image.Ref, image.ChainID)
			}
			l := lazy{Ref: all.Ref, Manifest: image.Manifest, Blob: all.Layers[at].Blob, Layers: at + 1, All: len(all.Layers)}
			taken, failed = s.commit(ctx, key, parent, target, labels, &l)
			return nil
		})
	}
	switch {
	case ctx.Err() != nil:
		return false, ctx.Err() // whoever asked is gone
	case err != nil:
		s.declined(image, err)
		return false, nil
	}
	return taken, failed
}

// onImage says whether a lazy snapshot may stand on a parent.
func (s *Snapshotter) onImage(ctx context.Context, parent string) error {
	if parent == "" {
		return nil
	}
	info, err := s.Stat(ctx, parent)
	if err != nil {
		return err
	}
	if _, ok := lazyOf(info); !ok {
		return ErrPlainParent
	}
	return nil
}

// ErrPlainParent is why a layer is declined that stands on one which containerd has unpacked.
var ErrPlainParent = errors.New("the layers below it were unpacked by containerd")

// commit makes a lazy snapshot, at once.
func (s *Snapshotter) commit(ctx context.Context, key, parent, target string, labels map[string]string, l *lazy) (bool, error) {
	all := snapshots.WithLabels(keepOwn(l.labels(), labels))
	err := s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		if _, err := storage.CreateSnapshot(ctx, snapshots.KindActive, key, parent, all); err != nil {
			return err
		}
		_, err := storage.CommitActive(ctx, key, target, snapshots.Usage{}, all)
		return err
	})
	if errdefs.IsAlreadyExists(err) {
		info, serr := s.Stat(ctx, target) // another was quicker
		return serr == nil && info.Parent == parent, nil
	}
	return err == nil, err
}
