package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	digest "github.com/opencontainers/go-digest"

	"github.com/thaw-project/thaw/internal/index"
	"github.com/thaw-project/thaw/internal/layerstore"
	"github.com/thaw-project/thaw/internal/tracestore"
)

const (
	// localIndexAge is how long after its last use an index is kept that was made
	// on this node, and that no image here needs: it costs the whole image.
	localIndexAge = 7 * 24 * time.Hour
	// looseIndexAge is how long a layer's index is kept that belongs to no image's:
	// another process may be making that.
	looseIndexAge = time.Hour
	// traceAge is how long after its last run a trace is kept of an image that is
	// not known any more: should it be started again, nothing of it is here, and
	// the trace, of some KiB, says what to fetch first.
	traceAge = 30 * 24 * time.Hour
)

// gc removes the layers that no mount uses and no image pins, forgets the images
// that are neither pulled nor in use, and removes the indexes and metadata that
// then nothing refers to.
func (d *Daemon) gc(ctx context.Context) ([]layerstore.Info, error) {
	d.settle(ctx)
	removed, err := d.store.GC(ctx, d.watched)
	if err != nil {
		return removed, err
	}
	d.collecting.Lock()
	defer d.collecting.Unlock()
	d.mu.Lock()
	d.kept = map[*image]bool{}
	for _, img := range d.imagesInUse() {
		d.kept[img] = true
	}
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.kept = nil
	}()
	remembered, err := d.forgetImages()
	if err != nil {
		return removed, err
	}
	layers, err := d.collectHeads(remembered)
	if err != nil {
		return removed, err
	}
	if err := d.collectLayerIndexes(removed, layers); err != nil {
		return removed, err
	}
	d.indexes.Sweep()
	old := func(k tracestore.Key) bool { return !remembered[k.Image] && time.Since(d.traces.LastRun(k)) > traceAge }
	return removed, errors.Join(d.collectTraces(old), d.collectMetadata())
}

// unlessUsed calls remove unless an image of which used is true is in use, or was
// since the collection began: its record is newer than what the collection read.
// Nobody comes between the two.
func (d *Daemon) unlessUsed(used func(*image) bool, remove func() error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for img := range d.kept {
		if used(img) {
			return nil
		}
	}
	return remove()
}

func hasManifest(dgst digest.Digest) func(*image) bool {
	return func(img *image) bool { return img.digest == dgst }
}

// forgetImages removes the records of images that are neither pulled, nor
// containerd's, nor in use, and returns the manifests of the others.
func (d *Daemon) forgetImages() (map[digest.Digest]bool, error) {
	left := map[digest.Digest]bool{}
	for path, stored := range d.rememberedImages() {
		gone := false
		if stored == nil || !stored.Pulled && !stored.Snapshots {
			manifest := digest.Digest("")
			if stored != nil {
				manifest = stored.Digest
			}
			if err := d.unlessUsed(hasManifest(manifest), func() error { gone = true; return os.Remove(path) }); err != nil {
				return nil, fmt.Errorf("forget image: %w", err)
			}
		}
		if !gone {
			left[stored.Digest] = true
		}
	}
	return left, nil
}

// rememberedImages are the images that this node knows by a reference, by their
// records' paths; nil for a record that cannot be read.
func (d *Daemon) rememberedImages() map[string]*storedImage {
	files, _ := filepath.Glob(filepath.Join(d.cfg.Root, "images", "*.json")) // the pattern is right
	all := map[string]*storedImage{}
	for _, f := range files {
		stored, err := readImage(f)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		all[f] = stored
	}
	return all
}

// collectHeads removes the indexes of images that are neither remembered nor in
// use, and returns the layers of the others.
func (d *Daemon) collectHeads(remembered map[digest.Digest]bool) (map[digest.Digest]bool, error) {
	images, err := d.indexes.Images()
	if err != nil {
		return nil, err
	}
	layers := map[digest.Digest]bool{}
	for _, dgst := range images {
		im, err := d.indexes.Peek(dgst)
		recent := err == nil && im.Local && time.Since(d.indexes.LastUse(dgst)) < localIndexAge
		gone := false
		if !remembered[dgst] && !recent {
			if err := d.unlessUsed(hasManifest(dgst), func() error { gone = true; return d.indexes.Remove(dgst) }); err != nil {
				return nil, err
			}
		}
		if gone || err != nil {
			continue // removed, or damaged
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

// collectLayerIndexes removes the indexes of layers that no image's index on
// this node refers to. Those that are referred to stay, also without their layer:
// without its windows, which may be nowhere else, it could not be read.
func (d *Daemon) collectLayerIndexes(removed []layerstore.Info, referred map[digest.Digest]bool) error {
	stored, err := d.indexes.Layers()
	if err != nil {
		return err
	}
	gone := map[digest.Digest]bool{}
	for _, info := range removed {
		gone[info.Blob] = true
	}
	for blob, at := range stored {
		if referred[blob] || !gone[blob] && time.Since(at) < looseIndexAge {
			continue
		}
		if err := d.unlessUsed(hasLayer(blob), func() error { return d.indexes.RemoveLayer(blob) }); err != nil {
			return err
		}
	}
	return nil
}

// hasLayer reports of an image whether it has a layer, or may have.
func hasLayer(blob digest.Digest) func(*image) bool {
	return func(img *image) bool {
		select {
		case <-img.resolved:
		default:
			return true // nobody knows yet
		}
		if img.err != nil {
			return false
		}
		for _, l := range img.oci.Layers {
			if l.Descriptor.Digest == blob {
				return true
			}
		}
		return false
	}
}

// collectMetadata removes EROFS images that no mount uses; one that is wanted
// again is made from the index.
func (d *Daemon) collectMetadata() error {
	dir := filepath.Join(d.cfg.Root, "metadata")
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("list metadata: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".tmp-") {
			continue // being written; those of a dead daemon went when this one started
		}
		// erofs is written before the image is among those in use with it, under mu.
		used := func(img *image) bool { return img.erofs == e.Name() }
		if err := d.unlessUsed(used, func() error { return os.Remove(filepath.Join(dir, e.Name())) }); err != nil {
			return fmt.Errorf("remove metadata: %w", err)
		}
	}
	return nil
}

// keepFiles keeps an image's record, index and metadata from being removed until
// the task is over.
func (d *Daemon) keepFiles(t *task, img *image) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if img.head != nil {
		img.erofs = metadataName(img)
	}
	t.image = img
	d.making[img] = true
	if d.kept != nil {
		d.kept[img] = true
	}
}

// dropFiles ends keepFiles.
func (d *Daemon) dropFiles(t *task) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.making, t.image)
}

// imagesInUse are those that are mounted or about to be. Called with mu held.
func (d *Daemon) imagesInUse() []*image {
	all := slices.Collect(maps.Keys(d.making))
	for _, m := range d.mounts {
		all = append(all, m.img)
	}
	return all
}

// restorePins pins the layers of pulled images again after the store's pins were
// damaged. What else those kept, nobody knows: the store's own owner has it.
func (d *Daemon) restorePins() {
	owners := d.store.Owners()
	if !slices.Contains(owners, layerstore.LostPins) {
		return
	}
	for _, stored := range d.rememberedImages() {
		if stored == nil {
			continue
		}
		for owner, pins := range map[string]bool{ownerImage + stored.Ref: stored.Pulled, snapshotOwner(stored.Digest): stored.Snapshots} {
			if !pins || slices.Contains(owners, owner) {
				continue
			}
			blobs, err := stored.layers()
			if err == nil {
				err = d.store.Pin(owner, blobs...)
			}
			if err != nil {
				d.log.Error("pin image again", "image", stored.Ref, "err", err)
			}
		}
	}
	d.log.Warn("pins were damaged: those of pulled images are made again, and all layers that were here are kept until: thaw cache unpin " + layerstore.LostPins)
}
