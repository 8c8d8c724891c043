package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	digest "github.com/opencontainers/go-digest"

	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/hydrate"
	"github.com/thaw-project/thaw/internal/index"
	"github.com/thaw-project/thaw/internal/layerstore"
	"github.com/thaw-project/thaw/internal/oci"
)

// pinOwner is who pins a pulled image's layers.
func pinOwner(ref oci.Reference) string { return "image:" + ref.String() }

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
	if err := d.store.Unpin(pinOwner(ref)); err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("forget image %s: %w", ref, err)
	}
	// The index of what is mounted stays: the next daemon needs it to go on.
	if stored != nil && !d.isMounted(stored.Digest) {
		if err := d.indexes.Remove(stored.Digest); err != nil {
			return nil, err
		}
	}
	return d.gc(ctx)
}

// isMounted reports whether a mount uses the image with that manifest.
func (d *Daemon) isMounted(manifest digest.Digest) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.ContainsFunc(d.images(), func(img *image) bool { return img.digest == manifest })
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
		err := d.store.Remove(ctx, dgst)
		if errors.Is(err, layerstore.ErrInUse) || errors.Is(err, layerstore.ErrPinned) {
			return nil, api.Errorf(api.CodeInUse, "end what uses it, or thaw cache rm the image that pins it", "%v", err)
		}
		return []layerstore.Info{info}, err
	}
	return nil, api.Errorf(api.CodeNotFound, "thaw cache ls lists what is here", "layer %s is not on this node", dgst)
}

// gc removes the layers that no mount uses and no image pins, and the metadata
// and indexes that then nothing refers to.
func (d *Daemon) gc(ctx context.Context) ([]layerstore.Info, error) {
	removed, err := d.store.GC(ctx, func(layerstore.Info) bool { return false })
	if err != nil {
		return removed, err
	}
	needed, err := d.indexedLayers()
	if err != nil {
		return removed, err
	}
	for _, info := range removed {
		if needed[info.Blob] {
			continue
		}
		if err := d.indexes.RemoveLayer(info.Blob); err != nil {
			return removed, err
		}
	}
	return removed, d.gcMetadata()
}

// indexedLayers are those that an image's index on this node refers to. Without
// their own index, whose windows may be nowhere else, they could not be read.
func (d *Daemon) indexedLayers() (map[digest.Digest]bool, error) {
	images, err := d.indexes.Images()
	if err != nil {
		return nil, err
	}
	layers := map[digest.Digest]bool{}
	for _, dgst := range images {
		im, err := d.indexes.Get(dgst)
		if err != nil {
			continue // damaged, or removed meanwhile
		}
		head, err := index.DecodeImage(im.Head)
		if err != nil {
			continue
		}
		for i := range head.Layers {
			layers[head.Layers[i].Blob] = true
		}
	}
	return layers, nil
}

// gcMetadata removes EROFS images that no mount uses; one that is wanted again
// is made from the index.
func (d *Daemon) gcMetadata() error {
	d.mu.Lock()
	used := map[string]bool{}
	for _, img := range d.images() {
		used[img.head.ErofsDigest.Encoded()+".erofs"] = true
	}
	d.mu.Unlock()
	dir := filepath.Join(d.cfg.Root, "metadata")
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("list metadata: %w", err)
	}
	for _, e := range entries {
		if used[e.Name()] || strings.HasPrefix(e.Name(), ".tmp-") {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("remove metadata: %w", err)
		}
	}
	return nil
}

// waits sums what the mount's readers waited since it was made.
func (m *mounted) waits() hydrate.Stats {
	var hs []*hydrate.Layer
	seen := map[*layer]bool{}
	for _, l := range m.layers {
		if !seen[l] {
			seen[l] = true
			hs = append(hs, l.hydrate)
		}
	}
	return hydrate.Since(m.Created, hs...)
}
