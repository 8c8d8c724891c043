package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	digest "github.com/opencontainers/go-digest"

	"github.com/thaw-project/thaw/internal/layerstore"
)

// dropUnused removes layers that nothing pins. It returns those that are still in use.
func (d *Daemon) dropUnused(ctx context.Context, blobs []digest.Digest) (late []digest.Digest, err error) {
	var errs []error
	for _, blob := range blobs {
		if d.watched(blob) {
			late = append(late, blob)
			continue
		}
		err := d.store.Remove(ctx, blob)
		switch {
		case errors.Is(err, layerstore.ErrPinned), errors.Is(err, layerstore.ErrNotFound): // somebody wants it, or was quicker
		case errors.Is(err, layerstore.ErrInUse):
			late = append(late, blob)
		case err != nil:
			errs = append(errs, err)
		}
	}
	return late, errors.Join(errs...)
}

// dropMetadata removes a file of EROFS metadata, unless an image that is in use has it.
func (d *Daemon) dropMetadata(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if slices.ContainsFunc(d.imagesInUse(), func(img *image) bool { return img.erofs == name }) {
		return nil
	}
	if err := os.Remove(filepath.Join(d.cfg.Root, "metadata", name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove metadata: %w", err)
	}
	return nil
}

// metadataOf is the name of the metadata of an image by its index on this node, or "".
func (d *Daemon) metadataOf(manifest digest.Digest) string {
	im, err := d.indexes.Peek(manifest)
	if err != nil {
		return ""
	}
	head, err := d.heads.decode(im.Head)
	if err != nil {
		return ""
	}
	return metadataName(&image{head: head})
}

// lateInterval is how often it is tried again to remove layers that were in use when they were to go.
const lateInterval = 2 * time.Second

// keepLate tries again to let go of images whose layers were in use. A process that just made itself a mount
// namespace has copies of all mounts in it for a while.
func (s *imageSnapshots) keepLate() {
	tick := time.NewTicker(lateInterval)
	defer tick.Stop()
	for {
		select {
		case <-s.d.ctx.Done():
			return
		case <-tick.C:
		}
		s.mu.Lock()
		late, wanted := len(s.late), s.wanted
		s.mu.Unlock()
		if late == 0 {
			continue
		}
		if s.d.fanotify.Load() != nil {
			s.d.fanotify.Load().Tidy()
		}
		if err := s.Keep(s.d.ctx, wanted); err != nil && s.d.ctx.Err() == nil {
			s.d.log.Error("let go of images that are gone", "err", err)
		}
	}
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
