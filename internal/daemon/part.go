package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/thaw-project/thaw/internal/index"
	"github.com/thaw-project/thaw/internal/layertar"
	"github.com/thaw-project/thaw/internal/registry"
)

// part returns the image without the layers above its first n, as something to mount.
// Its files are merged from the entries in the layers' indexes.
func (d *Daemon) part(ctx context.Context, t *task, img *image, n int) (*image, error) {
	ctx = registry.WithCounter(ctx, &t.counter)
	entries := make([][]layertar.Entry, n)
	for i := range entries {
		var err error
		if entries[i], err = d.entries(ctx, img, i); err != nil {
			return nil, fmt.Errorf("read files of layer %s: %w", img.head.Layers[i].Blob, err)
		}
	}
	metadata, err := index.Metadata(img.head.Layers[:n], entries)
	if err != nil {
		return nil, err
	}
	return img.cut(index.NewImage(img.head.Layers[:n:n], metadata)), nil
}

// cut returns the image with only the layers of a head.
func (img *image) cut(head *index.Image) *image {
	whole := *img.oci
	whole.Layers = whole.Layers[:len(head.Layers):len(head.Layers)]
	return &image{ref: img.ref, repo: img.repo, digest: img.digest, resolved: img.resolved, oci: &whole, heads: img.heads,
		head: head, whole: img.head, index: img.index, manifest: img.manifest, headDigest: img.headDigest, origin: img.origin,
		blobs: img.blobs, background: img.background}
}

// entries returns the files of one layer of an image: from the layer itself, if it is
// all here, else from its index.
func (d *Daemon) entries(ctx context.Context, img *image, i int) ([]layertar.Entry, error) {
	il := &img.head.Layers[i]
	if local, err := d.indexes.Layer(il.Blob); err == nil && local.DiffID == il.DiffID {
		return local.Entries, nil
	}
	if l, err := d.use(ctx, img, i, nil); err == nil {
		defer d.drop(l)
		if l.store.Complete() {
			return layertar.ReadAllAt(contextReaderAt{ctx, l.store.File()}, il.TarBytes, layertar.DefaultLimits())
		}
	}
	b, err := img.repo.Blob(ctx, v1.Descriptor{MediaType: index.MediaTypeLayer, Digest: il.Index, Size: il.IndexBytes})
	if err != nil {
		return nil, err
	}
	layer, err := index.DecodeLayer(b)
	if err != nil {
		return nil, err
	}
	if layer.Blob != il.Blob || layer.DiffID != il.DiffID || layer.TarBytes != il.TarBytes {
		return nil, fmt.Errorf("its index is about layer %s (%s)", layer.Blob, layer.DiffID)
	}
	return layer.Entries, nil
}

// reloadPart cuts the image of a mount that an earlier daemon left.
func (d *Daemon) reloadPart(m *mounted, img *image) (*image, error) {
	if m.Layers == 0 {
		return img, nil
	}
	if m.Layers > len(img.head.Layers) {
		return nil, errors.New("its image has fewer layers")
	}
	metadata, err := os.ReadFile(filepath.Join(d.cfg.Root, "metadata", m.Metadata))
	if err != nil {
		return nil, err
	}
	return img.cut(index.NewImage(img.head.Layers[:m.Layers:m.Layers], metadata)), nil
}

// keepPart is keepFiles for a part of an image, which a task is about to mount; it returns what ends it.
func (d *Daemon) keepPart(img *image) func() {
	d.mu.Lock()
	defer d.mu.Unlock()
	img.erofs = metadataName(img)
	d.making[img] = true
	if d.kept != nil {
		d.kept[img] = true
	}
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.making, img)
	}
}
