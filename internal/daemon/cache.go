package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	digest "github.com/opencontainers/go-digest"

	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/layerstore"
	"github.com/thaw-project/thaw/internal/oci"
)

// ownerImage begins the names of owners that are pulled images.
const ownerImage = "image:"

// pinOwner is who pins a pulled image's layers.
func pinOwner(ref oci.Reference) string { return ownerImage + ref.String() }

// pull brings a whole image here and pins it.
func (d *Daemon) pull(ctx context.Context, t *task) (*api.Pulled, error) {
	if t.req.Pull == "" {
		t.req.Pull = api.PullAlways
	}
	img, err := d.prepare(ctx, t)
	if err != nil {
		return nil, err
	}
	var layers []*layer
	defer func() {
		for _, l := range layers {
			d.drop(l)
		}
	}()
	blobs := make([]digest.Digest, 0, len(img.head.Layers))
	for i := range img.head.Layers {
		l, err := d.use(ctx, img, i, nil)
		if err != nil {
			return nil, err
		}
		layers, blobs = append(layers, l), append(blobs, l.blob)
	}
	if err := d.store.Pin(pinOwner(img.ref), blobs...); err != nil {
		return nil, err
	}
	if err := d.waitLayers(ctx, t, layers); err != nil {
		return nil, err
	}
	if err := errors.Join(img.waitKept(), d.keepPulled(img, blobs)); err != nil {
		return nil, err
	}
	p := &api.Pulled{Image: img.ref.String(), Manifest: img.digest, Layers: len(layers), Index: img.origin,
		Fetched: t.counter.BytesRead.Load()}
	for i, l := range layers {
		p.ImageBytes += img.oci.Layers[i].Descriptor.Size
		p.Fetched += l.counter.BytesRead.Load()
	}
	return p, nil
}

// keepPulled makes a pulled image, whose layers are pinned, what its reference
// names. The older image of that name is let go of only when this one is known.
func (d *Daemon) keepPulled(img *image, blobs []digest.Digest) error {
	if err := d.rememberImage(img, true); err != nil {
		return err
	}
	return d.store.Repin(pinOwner(img.ref), blobs...)
}

// remove forgets an image, and what then nobody needs, or one layer by its
// blob digest.
func (d *Daemon) remove(ctx context.Context, name string) ([]layerstore.Info, error) {
	if dgst, err := digest.Parse(name); err == nil {
		return d.removeLayer(ctx, dgst)
	}
	ref, err := oci.ParseReference(name)
	if err != nil {
		return nil, api.Errorf(api.CodeInvalid, "name an image or a layer's digest", "%v", err)
	}
	path := d.imagePath(ref)
	stored, err := readImage(path)
	// A pull that failed has pinned layers of an image that is not here.
	if err != nil && !slices.Contains(d.store.Owners(), pinOwner(ref)) {
		return nil, api.Errorf(api.CodeNotFound, "thaw cache ls lists what is here", "image %s is not on this node", ref)
	}
	if stored != nil && stored.Snapshots {
		return nil, api.Errorf(api.CodeInUse, "remove it from containerd", "containerd has snapshots of image %s", ref)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("forget image %s: %w", ref, err)
	}
	if err := d.store.Unpin(pinOwner(ref)); err != nil {
		return nil, err
	}
	if stored != nil {
		if err := errors.Join(d.dropIndex(stored.Digest), d.dropTraces(stored.Digest)); err != nil {
			return nil, err
		}
	}
	return d.gc(ctx)
}

// dropIndex removes the index of an image that was removed. That of one in use
// stays, since the next daemon needs it to go on, until it is not any more.
func (d *Daemon) dropIndex(manifest digest.Digest) error {
	for _, stored := range d.rememberedImages() {
		if stored != nil && stored.Digest == manifest {
			return nil // by another name
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if slices.ContainsFunc(d.imagesInUse(), hasManifest(manifest)) {
		d.removed[manifest] = true
		return nil
	}
	delete(d.removed, manifest)
	return d.indexes.Remove(manifest)
}

// unpin lets go of what a pulled image, or another owner of pins, keeps.
// Nothing is removed by that.
func (d *Daemon) unpin(name string) error {
	if slices.Contains(d.store.Owners(), name) && !strings.HasPrefix(name, ownerImage) {
		return d.store.Unpin(name)
	}
	ref, err := oci.ParseReference(strings.TrimPrefix(name, ownerImage))
	if err != nil {
		return api.Errorf(api.CodeInvalid, "name an image, or an owner that thaw cache ls lists under PINS", "%v", err)
	}
	if !slices.Contains(d.store.Owners(), pinOwner(ref)) {
		return api.Errorf(api.CodeNotFound, "thaw cache ls lists who pins", "image %s is not pinned", ref)
	}
	path := d.imagePath(ref)
	if stored, err := readImage(path); err == nil && stored.Pulled {
		stored.Pulled = false
		if err := writeJSON(path, stored); err != nil {
			return err
		}
	}
	return d.store.Unpin(pinOwner(ref))
}

func (d *Daemon) removeLayer(ctx context.Context, dgst digest.Digest) ([]layerstore.Info, error) {
	infos, err := d.store.List()
	if err != nil {
		return nil, err
	}
	for _, info := range infos {
		if info.Blob != dgst {
			continue
		}
		d.settle(ctx)
		if d.watched(dgst) {
			return nil, api.Errorf(api.CodeInUse, "end what reads it", "layer %s is still read through a mount that was detached", dgst)
		}
		err := d.store.Remove(ctx, dgst)
		if errors.Is(err, layerstore.ErrInUse) || errors.Is(err, layerstore.ErrPinned) {
			return nil, api.Errorf(api.CodeInUse, "end what uses it, or thaw cache rm the image that pins it", "%v", err)
		}
		return []layerstore.Info{info}, err
	}
	return nil, api.Errorf(api.CodeNotFound, "thaw cache ls lists what is here", "layer %s is not on this node", dgst)
}
