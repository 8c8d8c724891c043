package daemon

import (
	"context"
	"errors"
	"slices"

	digest "github.com/opencontainers/go-digest"

	"github.com/thaw-project/thaw/internal/layerstore"
)

// dropUnused removes layers that nothing uses and nothing pins, and their indexes if no image's index
// refers to them.
func (d *Daemon) dropUnused(ctx context.Context, blobs []digest.Digest) error {
	var errs []error
	for _, blob := range blobs {
		if d.watched(blob) {
			continue // thaw cache gc has it later
		}
		err := d.store.Remove(ctx, blob)
		if err != nil && !errors.Is(err, layerstore.ErrInUse) && !errors.Is(err, layerstore.ErrPinned) && !errors.Is(err, layerstore.ErrNotFound) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, d.dropLayerIndexes(blobs))...)
}

// dropLayerIndexes removes the indexes of layers that neither the index of an image on this node nor
// one in use refers to.
func (d *Daemon) dropLayerIndexes(blobs []digest.Digest) error {
	blobs = slices.DeleteFunc(slices.Clone(blobs), func(blob digest.Digest) bool { return !d.indexes.HasLayer(blob) })
	if len(blobs) == 0 {
		return nil
	}
	images, err := d.indexes.Images()
	if err != nil {
		return err
	}
	referred := map[digest.Digest]bool{}
	for _, dgst := range images {
		im, err := d.indexes.Peek(dgst)
		if err != nil {
			continue // damaged
		}
		if head, err := d.heads.decode(im.Head); err == nil {
			for i := range head.Layers {
				referred[head.Layers[i].Blob] = true
			}
		}
	}
	var errs []error
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, blob := range blobs {
		if !referred[blob] && !slices.ContainsFunc(d.imagesInUse(), hasLayer(blob)) {
			errs = append(errs, d.indexes.RemoveLayer(blob))
		}
	}
	return errors.Join(errs...)
}
