package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	digest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"

	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/fallback"
	"github.com/thaw-project/thaw/internal/oci"
	"github.com/thaw-project/thaw/internal/snapshotter"
)

// How containerd's images are had.
const (
	SnapshotLazy  = "lazy"
	SnapshotEager = "eager" // brought whole, by thaw, before the pull ends
	SnapshotOff   = "off"   // left to containerd
)

// modeLabel is an image's own wish: a label in its config.
const modeLabel = "thaw.dev/mode"

var errLabelOff = &declined{fallback.Configured, fmt.Errorf("the image's label %s leaves it to containerd", modeLabel)}

// imageSnapshots has images for containerd's snapshots. An image that was taken is
// remembered durably, its layers are pinned, and its first layers are mounted
// under an id that follows from its manifest: all that until no snapshot is of it.
type imageSnapshots struct {
	d *Daemon

	// Held while an image is taken, mounted or let go of; before all other locks.
	locks keyedLocks

	mu     sync.Mutex // guards what follows
	taken  map[digest.Digest]*snapshotter.Taken
	taking map[digest.Digest]int       // calls under way
	used   map[digest.Digest]time.Time // when it was last taken or mounted
	late   map[digest.Digest]bool      // images whose layers were in use when they were to go
	wanted func() ([]snapshotter.Key, map[digest.Digest]int, error)
	// narrowed is how many of an image's layers are kept, since it was last taken.
	narrowed map[digest.Digest]int
}

// pullPatience is how long after a layer of it was asked for the mount of an image is kept whose topmost snapshot is
// still to come.
const pullPatience = 2 * time.Second

func newImageSnapshots(d *Daemon) *imageSnapshots {
	return &imageSnapshots{d: d, taken: map[digest.Digest]*snapshotter.Taken{}, taking: map[digest.Digest]int{}, used: map[digest.Digest]time.Time{},
		late: map[digest.Digest]bool{}, narrowed: map[digest.Digest]int{}}
}

// snapshotReference is the name of an image's manifest in its registry. A label
// does not make the daemon read a directory of this node.
func snapshotReference(ref string, manifest digest.Digest) (oci.Reference, error) {
	r, err := oci.ParseReference(ref)
	if err != nil {
		return r, err
	}
	if r.IsLayout() {
		return r, fmt.Errorf("image %s is of a directory, not of a registry", ref)
	}
	if err := oci.CheckDigest(manifest); err != nil {
		return r, err
	}
	r.Digest = manifest
	return r, nil
}

// Take implements snapshotter.Images.
func (s *imageSnapshots) Take(ctx context.Context, image snapshotter.Image, commit func(*snapshotter.Taken) error) error {
	if image.Ref == "" || image.Manifest == "" {
		return &declined{fallback.Unnamed, errors.New("containerd gave no name of the image with its layer")}
	}
	ref, err := snapshotReference(image.Ref, image.Manifest)
	if err != nil {
		return &declined{fallback.Unsupported, err}
	}
	if ref.Tag == "" { // found by its digest, perhaps
		ref = s.d.withPort(ref)
	}
	defer s.use(image.Manifest)()
	unlock, err := s.locks.lock(ctx, image.Manifest)
	if err != nil {
		return err
	}
	defer unlock()
	s.mu.Lock()
	taken := s.taken[image.Manifest]
	s.mu.Unlock()
	if taken == nil {
		if taken, err = s.take(ctx, ref, image); err != nil {
			return err
		}
		s.mu.Lock()
		s.taken[image.Manifest] = taken
		delete(s.late, image.Manifest)
		delete(s.narrowed, image.Manifest)
		s.mu.Unlock()
	}
	return commit(taken)
}

// use keeps an image until what it returns is called; from then on it is as good as its
// snapshots are.
func (s *imageSnapshots) use(manifest digest.Digest) (done func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taking[manifest]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.taking[manifest]--; s.taking[manifest] == 0 {
			delete(s.taking, manifest)
		}
		s.used[manifest] = time.Now()
	}
}

// unused reports whether nothing was done with an image since then, nor is now.
func (s *imageSnapshots) unused(manifest digest.Digest, since time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.taking[manifest] == 0 && s.used[manifest].Before(since)
}

// wish is how an image is to be had, before anything is known of it.
func (s *imageSnapshots) wish(image snapshotter.Image) string {
	if image.Mode == "" && s.d.cfg.Containerd.Mode != nil {
		return s.d.cfg.Containerd.Mode(image.Ref)
	}
	return image.Mode
}

// take is Take for an image that was not taken since the daemon was started.
// All of it is mounted at once: a container is about to follow.
func (s *imageSnapshots) take(ctx context.Context, ref oci.Reference, image snapshotter.Image) (*snapshotter.Taken, error) {
	mode := s.wish(image)
	if mode == SnapshotOff {
		return nil, &declined{fallback.Configured, errors.New("the configuration or a label leaves it to containerd")}
	}
	d := s.d
	defer d.start()()
	t := &task{req: d.snapshotRequest(ref), bundle: d.mode != api.ModeEager && mode != SnapshotEager, event: func(api.Event) {}}
	defer d.end(t)
	t.known = fromContainerd(ctx, ref, image)
	if t.known != nil && mode == "" && t.known.Config.Config.Labels[modeLabel] == SnapshotOff {
		return nil, errLabelOff // before all of it is brought here
	}
	img, err := d.prepare(ctx, t)
	if err != nil {
		return nil, &declined{reasonOf(err), err}
	}
	defer func() { d.leaveBundle(img.run) }() // unless the mount has it
	if wish := img.oci.Config.Config.Labels[modeLabel]; mode == "" && wish == SnapshotOff {
		return nil, errLabelOff
	} else if mode == "" {
		mode = wish
	}
	taken := takenLayers(img)
	taken.Ref = ref.String()
	if len(taken.Layers) == 0 {
		return nil, &declined{fallback.Unsupported, errors.New("it has no layers")}
	}
	// Before anything is here that somebody has to let go of.
	if err := errors.Join(img.waitKept(), d.rememberSnapshots(img)); err != nil {
		return nil, &declined{reasonOf(err), err}
	}
	if err := d.store.Pin(snapshotOwner(img.digest), img.blobs...); err != nil {
		return nil, &declined{reasonOf(err), err}
	}
	req := api.MountRequest{ImageRequest: t.req, Mode: api.ModeAuto}
	if mode == SnapshotEager {
		req.Mode = api.ModeEager
	}
	m, err := s.mount(ctx, t, img, req, image.Namespace, snapshotter.Key{Ref: taken.Ref, Manifest: img.digest, Layers: len(img.oci.Layers), All: len(img.oci.Layers)})
	if err != nil {
		return nil, &declined{reasonOf(err), err}
	}
	s.tell(image, m)
	return taken, nil
}

// snapshotRequest is how an image of containerd's is asked for.
func (d *Daemon) snapshotRequest(ref oci.Reference) api.ImageRequest {
	req := api.ImageRequest{Image: ref.String()}
	if dir := os.Getenv("DOCKER_CONFIG"); dir != "" {
		req.DockerConfig = dir
	} else if home, err := os.UserHomeDir(); err == nil {
		req.DockerConfig = filepath.Join(home, ".docker")
	}
	return req
}

// fromContainerd returns the image as containerd has it, or nil.
func fromContainerd(ctx context.Context, ref oci.Reference, image snapshotter.Image) *oci.Image {
	if image.Read == nil {
		return nil
	}
	manifest, err := image.Read(ctx, image.Manifest)
	if err != nil {
		return nil
	}
	m, desc, err := oci.ParseManifest(manifest)
	if err != nil {
		return nil
	}
	config, err := image.Read(ctx, m.Config.Digest)
	if err != nil {
		return nil
	}
	img, err := oci.ParseImage(manifest, config)
	if err != nil {
		return nil // whoever asks the registry says why
	}
	img.Reference, img.ManifestDescriptor = ref, desc
	return img
}

// withPort gives a registry that containerd told without its port the one that this
// node knows of it.
func (d *Daemon) withPort(ref oci.Reference) oci.Reference {
	hosts := slices.Concat(d.cfg.Insecure, slices.Sorted(maps.Keys(d.cfg.Mirrors)))
	for _, stored := range d.rememberedImages() {
		if stored == nil {
			continue
		}
		if known, err := oci.ParseReference(stored.Ref); err == nil {
			hosts = append(hosts, known.Registry)
		}
	}
	if slices.Contains(hosts, ref.Registry) {
		return ref
	}
	for _, host := range hosts {
		if name, _, err := net.SplitHostPort(host); err == nil && name == ref.Registry {
			ref.Registry = host
			return ref
		}
	}
	return ref
}

func takenLayers(img *image) *snapshotter.Taken {
	diffIDs := make([]digest.Digest, len(img.oci.Layers))
	for i, l := range img.oci.Layers {
		diffIDs[i] = l.DiffID
	}
	taken := &snapshotter.Taken{}
	for i, chainID := range identity.ChainIDs(diffIDs) {
		taken.Layers = append(taken.Layers, snapshotter.Layer{ChainID: chainID, Blob: img.oci.Layers[i].Descriptor.Digest})
	}
	return taken
}

// snapshotOwner is who pins the layers of an image that has snapshots.
func snapshotOwner(manifest digest.Digest) string { return ownerSnapshots + manifest.String() }

// ownerSnapshots begins the names of owners that are images of containerd's.
const ownerSnapshots = "containerd:"

// Mount implements snapshotter.Images.
func (s *imageSnapshots) Mount(ctx context.Context, key snapshotter.Key) (string, error) {
	defer s.use(key.Manifest)()
	unlock, err := s.locks.lock(ctx, key.Manifest)
	if err != nil {
		return "", err
	}
	defer unlock()
	if m := s.mounted(key); m != nil {
		return m.ImageDir, nil
	}
	ref, err := snapshotReference(key.Ref, key.Manifest)
	if err != nil {
		return "", err
	}
	d := s.d
	defer d.start()()
	t := &task{req: d.snapshotRequest(ref), bundle: d.mode != api.ModeEager, event: func(api.Event) {}}
	defer d.end(t)
	img, err := d.prepare(ctx, t)
	if err != nil {
		return "", err
	}
	defer func() { d.leaveBundle(img.run) }()
	if err := img.waitKept(); err != nil {
		return "", err
	}
	m, err := s.mount(ctx, t, img, api.MountRequest{ImageRequest: t.req, Mode: api.ModeAuto}, "", key)
	if err != nil {
		return "", err
	}
	return m.ImageDir, nil
}

// mountID is the id of a mount of an image's first layers.
func mountID(key snapshotter.Key) string {
	return fmt.Sprintf("snapshot-%.40s-%d", key.Manifest.Encoded(), key.Layers)
}

func (s *imageSnapshots) mounted(key snapshotter.Key) *mounted {
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	return s.d.mounts[mountID(key)]
}

// mount mounts the first layers of an image. Called with its lock held.
func (s *imageSnapshots) mount(ctx context.Context, t *task, img *image, req api.MountRequest, namespace string, key snapshotter.Key) (*mounted, error) {
	if m := s.mounted(key); m != nil {
		return m, nil
	}
	d := s.d
	mode, err := d.modeFor(req.Mode)
	if err != nil {
		return nil, err
	}
	var layers int
	var metadata string
	if key.Layers != len(img.oci.Layers) {
		if key.Layers < 1 || key.Layers > len(img.oci.Layers) {
			return nil, fmt.Errorf("it has %d layers", len(img.oci.Layers))
		}
		if img, err = d.part(ctx, t, img, key.Layers); err != nil {
			return nil, err
		}
		layers, metadata = key.Layers, metadataName(img)
		defer d.keepPart(img)()
	}
	if err := d.checkLimits(img.head); err != nil {
		return nil, err
	}
	img.background = d.backgroundRate(req.Background)
	id, dir, err := d.newID(mountID(key))
	if err != nil {
		return nil, err
	}
	m := newMounted(dir)
	m.img, m.asked = img, time.Now()
	m.record = record{ID: id, Request: req, Manifest: img.digest, Mode: mode, Origin: img.origin, BootID: bootID(), Created: time.Now(),
		ImageDir: filepath.Join(dir, "image"), Snapshot: true, Namespace: namespace, Layers: layers, Metadata: metadata}
	if err := os.Mkdir(m.ImageDir, 0o755); err != nil {
		return nil, errors.Join(fmt.Errorf("make mount directory: %w", err), os.Remove(dir))
	}
	return m, d.finishMount(ctx, t, m)
}

// Keep implements snapshotter.Images.
func (s *imageSnapshots) Keep(ctx context.Context, wanted func() ([]snapshotter.Key, map[digest.Digest]int, error)) error {
	asked := time.Now()
	s.mu.Lock()
	s.wanted = wanted
	s.mu.Unlock()
	mounts, images, err := wanted()
	if err != nil {
		return err
	}
	needed := map[string]bool{}
	for _, key := range mounts {
		needed[mountID(key)] = true
	}
	var errs []error
	s.d.mu.Lock()
	all := slices.Collect(maps.Values(s.d.mounts))
	s.d.mu.Unlock()
	for _, m := range all {
		since := asked
		if m.Layers == 0 && images[m.Manifest] > 0 {
			since = asked.Add(-pullPatience)
		}
		if m.Snapshot && !needed[m.ID] {
			errs = append(errs, s.ifUnused(ctx, m.Manifest, since, func(ctx context.Context) error { return s.unmount(ctx, m) }))
		}
	}
	for path, stored := range s.d.rememberedImages() {
		if stored == nil || !stored.Snapshots {
			continue
		}
		since, do := asked, func(ctx context.Context) error { return s.letGo(ctx, path, stored) }
		if n := images[stored.Digest]; n > 0 {
			since, do = asked.Add(-pullPatience), func(ctx context.Context) error { return s.narrow(ctx, stored, n) }
		}
		errs = append(errs, s.ifUnused(ctx, stored.Digest, since, do))
	}
	for _, owner := range s.d.store.Owners() { // of an image whose record was lost
		manifest, ok := strings.CutPrefix(owner, ownerSnapshots)
		if ok && images[digest.Digest(manifest)] == 0 {
			errs = append(errs, s.ifUnused(ctx, digest.Digest(manifest), asked, func(context.Context) error { return s.d.store.Unpin(owner) }))
		}
	}
	return errors.Join(errs...)
}

// unmount takes a mount away, and the metadata of a part of an image with it.
func (s *imageSnapshots) unmount(ctx context.Context, m *mounted) error {
	if err := s.d.unmount(ctx, m); err != nil || m.Layers == 0 {
		return err
	}
	return s.d.dropMetadata(m.Metadata)
}

// lockPatience is how often somebody who waits for an image's lock looks whether the image is used.
const lockPatience = 20 * time.Millisecond

// ifUnused does something to an image with which nothing was done since then. It waits for nobody
// who takes or mounts the image, which may take as long as its registry does; and what it began it
// ends, whoever asked for it.
func (s *imageSnapshots) ifUnused(ctx context.Context, manifest digest.Digest, since time.Time, do func(context.Context) error) error {
	for s.unused(manifest, since) {
		attempt, cancel := context.WithTimeout(ctx, lockPatience)
		unlock, err := s.locks.lock(attempt, manifest)
		cancel()
		if err == nil {
			defer unlock()
			if !s.unused(manifest, since) {
				return nil // meanwhile
			}
			return do(context.WithoutCancel(ctx))
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

// narrow lets go of the layers of an image above its first n: the image was removed, but others stand on
// snapshots of those. Called with its lock held.
func (s *imageSnapshots) narrow(ctx context.Context, stored *storedImage, n int) error {
	s.mu.Lock()
	done := s.narrowed[stored.Digest] == n
	s.mu.Unlock()
	if done {
		return nil
	}
	blobs, err := stored.layers()
	if err != nil {
		return err
	}
	var late []digest.Digest
	if n < len(blobs) {
		s.mu.Lock()
		delete(s.taken, stored.Digest) // who wants more of it has to pin that again
		s.mu.Unlock()
		if err := s.d.store.Repin(snapshotOwner(stored.Digest), blobs[:n]...); err != nil {
			return err
		}
		if late, err = s.d.dropUnused(ctx, blobs[n:]); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(late) > 0 {
		s.late[stored.Digest] = true
		return nil
	}
	delete(s.late, stored.Digest)
	s.narrowed[stored.Digest] = n
	return nil
}

// letGo forgets an image that no snapshot is of any more, with the layers that nothing else needs:
// its removal is to make room, as it does with other snapshotters. Called with its lock held.
func (s *imageSnapshots) letGo(ctx context.Context, path string, stored *storedImage) error {
	s.mu.Lock()
	delete(s.taken, stored.Digest)
	delete(s.used, stored.Digest)
	delete(s.narrowed, stored.Digest)
	s.mu.Unlock()
	d := s.d
	if err := d.store.Unpin(snapshotOwner(stored.Digest)); err != nil {
		return err
	}
	if stored.Pulled {
		stored.Snapshots = false
		return writeJSON(path, stored)
	}
	blobs, err := stored.layers()
	if err != nil {
		return err
	}
	var errs []error
	if name := d.metadataOf(stored.Digest); name != "" {
		errs = append(errs, d.dropMetadata(name))
	}
	late, err := d.dropUnused(ctx, blobs)
	if errs = append(errs, err); len(late) > 0 {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.late[stored.Digest] = true
		return errors.Join(errs...)
	}
	// The record goes last: by it the next daemon goes on with this.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, fmt.Errorf("forget image %s: %w", stored.Ref, err))
	}
	errs = append(errs, d.dropIndex(stored.Digest), d.dropLayerIndexes(blobs))
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.late, stored.Digest)
	return errors.Join(errs...)
}

// Usage implements snapshotter.Images.
func (s *imageSnapshots) Usage(blob digest.Digest) (int64, error) { return s.d.store.DiskBytes(blob) }

// rememberSnapshots keeps an image for as long as there are snapshots of it.
func (d *Daemon) rememberSnapshots(img *image) error {
	stored := img.stored(false)
	if old, err := readImage(d.imagePath(img.ref)); err == nil && old.Digest == img.digest {
		if old.Snapshots {
			return nil
		}
		stored.Pulled = old.Pulled
	}
	stored.Snapshots = true
	return writeJSON(d.imagePath(img.ref), stored)
}
