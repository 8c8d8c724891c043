package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	digest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/fallback"
	"github.com/thaw-project/thaw/internal/index"
	"github.com/thaw-project/thaw/internal/layerstore"
	"github.com/thaw-project/thaw/internal/mount"
	"github.com/thaw-project/thaw/internal/oci"
	"github.com/thaw-project/thaw/internal/registry"
	"github.com/thaw-project/thaw/internal/snapshotter"
)

// Containerd is how the daemon serves containerd.
type Containerd struct {
	Listen string // socket of the snapshotter; empty: off
	// ImageService is the socket of CRI's image service, which forwards to Address,
	// containerd's own; empty: off.
	ImageService, Address string
	// Mode says how an image is had, by its reference: SnapshotLazy, SnapshotEager
	// or SnapshotOff; empty: no wish. nil: no wish for any.
	Mode func(ref string) string
}

// How containerd's images are had.
const (
	SnapshotLazy  = "lazy"
	SnapshotEager = "eager" // brought whole, by thaw, before the pull ends
	SnapshotOff   = "off"   // left to containerd
)

// modeLabel is an image's own wish: a label in its config.
const modeLabel = "thaw.dev/mode"

// imageSnapshots has images for containerd's snapshots. An image that was taken is
// remembered durably, its layers are pinned, and its first layers are mounted
// under an id that follows from its manifest: all that until no snapshot is of it.
type imageSnapshots struct {
	d *Daemon

	// Held while an image is taken, mounted or let go of; before all other locks.
	locks keyedLocks

	mu    sync.Mutex // guards what follows
	taken map[digest.Digest]*snapshotter.Taken
	fresh map[digest.Digest]time.Time // when it was last taken, or is just being
}

// freshFor is how long an image is kept that was taken and has no snapshot yet.
const freshFor = 10 * time.Second

// takingFor is how long taking an image may last: what is brought whole may be large.
const takingFor = 24 * time.Hour

// keyedLocks are locks by name.
type keyedLocks struct {
	mu  sync.Mutex // guards all
	all map[digest.Digest]*keyedLock
}

type keyedLock struct {
	held  chan struct{} // has room for one
	users int
}

// lock returns how to unlock, or the context's error.
func (k *keyedLocks) lock(ctx context.Context, key digest.Digest) (unlock func(), err error) {
	k.mu.Lock()
	l := k.all[key]
	if l == nil {
		if k.all == nil {
			k.all = map[digest.Digest]*keyedLock{}
		}
		l = &keyedLock{held: make(chan struct{}, 1)}
		k.all[key] = l
	}
	l.users++
	k.mu.Unlock()
	leave := func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(k.all, key)
		}
	}
	select {
	case l.held <- struct{}{}:
		return func() { <-l.held; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}

func newImageSnapshots(d *Daemon) *imageSnapshots {
	return &imageSnapshots{d: d, taken: map[digest.Digest]*snapshotter.Taken{}, fresh: map[digest.Digest]time.Time{}}
}

// reference is the name of an image's manifest.
func snapshotReference(ref string, manifest digest.Digest) (oci.Reference, error) {
	r, err := oci.ParseReference(ref)
	if err != nil {
		return r, err
	}
	if err := oci.CheckDigest(manifest); err != nil {
		return r, err
	}
	r.Digest = manifest
	return r, nil
}

// declined is an error with its reason.
type declined struct {
	reason fallback.Reason
	err    error
}

func (e *declined) Error() string { return e.err.Error() }
func (e *declined) Unwrap() error { return e.err }

// Take implements snapshotter.Images.
func (s *imageSnapshots) Take(ctx context.Context, image snapshotter.Image) (*snapshotter.Taken, error) {
	if image.Ref == "" || image.Manifest == "" {
		return nil, &declined{fallback.Unnamed, errors.New("containerd gave no name of the image with its layer")}
	}
	ref, err := snapshotReference(image.Ref, image.Manifest)
	if err != nil {
		return nil, &declined{fallback.Unsupported, err}
	}
	unlock, err := s.locks.lock(ctx, image.Manifest)
	if err != nil {
		return nil, err
	}
	defer unlock()
	s.mu.Lock()
	known := s.taken[image.Manifest]
	s.fresh[image.Manifest] = time.Now().Add(takingFor)
	s.mu.Unlock()
	defer s.takenNow(image.Manifest)
	if known != nil {
		return known, nil
	}
	mode := image.Mode
	if mode == "" && s.d.cfg.Containerd.Mode != nil {
		mode = s.d.cfg.Containerd.Mode(image.Ref)
	}
	if mode == SnapshotOff {
		return nil, &declined{fallback.Configured, errors.New("the configuration leaves it to containerd")}
	}
	taken, err := s.take(ctx, ref, image, mode)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	s.taken[image.Manifest] = taken
	return taken, nil
}

// takenNow ends the time in which an image is being taken.
func (s *imageSnapshots) takenNow(manifest digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fresh[manifest] = time.Now()
}

// take is Take for an image that was not taken since the daemon was started.
// All of it is mounted at once: a container is about to follow.
func (s *imageSnapshots) take(ctx context.Context, ref oci.Reference, image snapshotter.Image, mode string) (*snapshotter.Taken, error) {
	d := s.d
	defer d.start()()
	var said []string // why there is no index
	t := &task{req: d.snapshotRequest(ref), lazy: true, bundle: d.mode != api.ModeEager && mode != SnapshotEager,
		event: func(e api.Event) {
			if e.Warning != "" {
				said = append(said, e.Warning)
			}
		}}
	defer d.end(t)
	img, err := d.prepare(ctx, t)
	if err != nil {
		return nil, &declined{reasonOf(err), err}
	}
	defer func() { d.leaveBundle(img.run) }() // unless the mount has it
	if wish := img.oci.Config.Config.Labels[modeLabel]; mode == "" && wish == SnapshotOff {
		return nil, &declined{fallback.Configured, fmt.Errorf("the image's label %s leaves it to containerd", modeLabel)}
	} else if mode == "" {
		mode = wish
	}
	taken := takenLayers(img)
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
	if _, err := s.mount(ctx, t, img, req, snapshotter.Key{Ref: image.Ref, Manifest: img.digest, Layers: len(img.oci.Layers), All: len(img.oci.Layers)}); err != nil {
		return nil, &declined{reasonOf(err), err}
	}
	s.tell(image, img, mode, said)
	return taken, nil
}

// tell notes that an image was brought whole.
func (s *imageSnapshots) tell(image snapshotter.Image, img *image, mode string, said []string) {
	e := fallback.Event{Image: image.Ref, Manifest: image.Manifest, Action: fallback.Eager, Detail: strings.Join(said, "; ")}
	switch {
	case s.d.mode == api.ModeEager:
		e.Reason, e.Detail = fallback.Kernel, s.d.modeReason
	case mode == SnapshotEager:
		e.Reason = fallback.Configured
	case img.origin == originBuilt && len(said) > 0:
		e.Reason = fallback.BadIndex
	case img.origin == originBuilt:
		e.Reason = fallback.NoIndex
	default:
		return
	}
	s.d.fallbacks.Add(e)
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
	t := &task{req: d.snapshotRequest(ref), lazy: true, bundle: d.mode != api.ModeEager, event: func(api.Event) {}}
	defer d.end(t)
	img, err := d.prepare(ctx, t)
	if err != nil {
		return "", err
	}
	defer func() { d.leaveBundle(img.run) }()
	if err := img.waitKept(); err != nil {
		return "", err
	}
	m, err := s.mount(ctx, t, img, api.MountRequest{ImageRequest: t.req, Mode: api.ModeAuto}, key)
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
func (s *imageSnapshots) mount(ctx context.Context, t *task, img *image, req api.MountRequest, key snapshotter.Key) (*mounted, error) {
	if m := s.mounted(key); m != nil {
		return m, nil
	}
	d := s.d
	mode, err := d.modeFor(req.Mode)
	if err != nil {
		return nil, err
	}
	if key.Layers != len(img.oci.Layers) {
		return nil, fmt.Errorf("mount %d layers of %d: not possible yet", key.Layers, len(img.oci.Layers))
	}
	if err := d.checkLimits(img.head); err != nil {
		return nil, err
	}
	id, dir, err := d.newID(mountID(key))
	if err != nil {
		return nil, err
	}
	m := &mounted{img: img, dir: dir, asked: time.Now(), gone: make(chan struct{}), completed: make(chan struct{})}
	m.record = record{ID: id, Request: req, Manifest: img.digest, Mode: mode, Origin: img.origin, BootID: bootID(), Created: time.Now(),
		ImageDir: filepath.Join(dir, "image"), Snapshot: true}
	if err := os.Mkdir(m.ImageDir, 0o755); err != nil {
		return nil, errors.Join(fmt.Errorf("make mount directory: %w", err), os.Remove(dir))
	}
	return m, d.finishMount(ctx, t, m)
}

// Keep implements snapshotter.Images.
func (s *imageSnapshots) Keep(ctx context.Context, mounts []snapshotter.Key, images []digest.Digest) error {
	needed := map[string]bool{}
	for _, key := range mounts {
		needed[mountID(key)] = true
	}
	var errs []error
	s.d.mu.Lock()
	all := slices.Collect(maps.Values(s.d.mounts))
	s.d.mu.Unlock()
	for _, m := range all {
		if m.Snapshot && !needed[m.ID] && !s.isFresh(m.Manifest) {
			errs = append(errs, s.unmount(ctx, m))
		}
	}
	for path, stored := range s.d.rememberedImages() {
		if stored != nil && stored.Snapshots && !slices.Contains(images, stored.Digest) && !s.isFresh(stored.Digest) {
			errs = append(errs, s.letGo(ctx, path, stored))
		}
	}
	return errors.Join(errs...)
}

func (s *imageSnapshots) isFresh(manifest digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	at, ok := s.fresh[manifest]
	if ok && time.Since(at) > freshFor {
		delete(s.fresh, manifest)
		ok = false
	}
	return ok
}

func (s *imageSnapshots) unmount(ctx context.Context, m *mounted) error {
	unlock, err := s.locks.lock(ctx, m.Manifest)
	if err != nil {
		return err
	}
	defer unlock()
	if s.isFresh(m.Manifest) {
		return nil // meanwhile
	}
	return s.d.unmount(ctx, m)
}

// letGo forgets an image that no snapshot is of any more, with the layers that nothing else needs:
// its removal is to make room, as it does with other snapshotters.
func (s *imageSnapshots) letGo(ctx context.Context, path string, stored *storedImage) error {
	unlock, err := s.locks.lock(ctx, stored.Digest)
	if err != nil {
		return err
	}
	defer unlock()
	if s.isFresh(stored.Digest) {
		return nil
	}
	s.mu.Lock()
	delete(s.taken, stored.Digest)
	s.mu.Unlock()
	d := s.d
	if err := d.store.Unpin(snapshotOwner(stored.Digest)); err != nil {
		return err
	}
	blobs, err := stored.layers()
	if err != nil {
		return err
	}
	if stored.Snapshots = false; stored.Pulled {
		return writeJSON(path, stored)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("forget image %s: %w", stored.Ref, err)
	}
	errs := []error{d.dropIndex(stored.Digest)}
	for _, blob := range blobs {
		errs = append(errs, d.dropUnused(ctx, blob))
	}
	return errors.Join(errs...)
}

// Usage implements snapshotter.Images.
func (s *imageSnapshots) Usage(blob digest.Digest) (int64, error) { return s.d.store.DiskBytes(blob) }

// dropUnused removes a layer that nothing uses and nothing pins, with its index if no image's
// refers to that.
func (d *Daemon) dropUnused(ctx context.Context, blob digest.Digest) error {
	if d.watched(blob) {
		return nil // thaw cache gc has it later
	}
	err := d.store.Remove(ctx, blob)
	if errors.Is(err, layerstore.ErrInUse) || errors.Is(err, layerstore.ErrPinned) || errors.Is(err, layerstore.ErrNotFound) {
		return nil
	}
	return err
}

// reasonOf says why an image cannot be taken.
func reasonOf(err error) fallback.Reason {
	var e *api.Error
	var unsupported *oci.UnsupportedError
	var merge *index.MergeError
	switch {
	case errors.Is(err, registry.ErrUnauthorized):
		return fallback.NoLogin
	case errors.As(err, &unsupported), errors.As(err, &merge):
		return fallback.Unsupported
	case errors.Is(err, unix.ENOSPC):
		return fallback.NoSpace
	case errors.As(err, &e) && e.Code == api.CodeLimit:
		return fallback.Limit
	case errors.Is(err, layerstore.ErrQuarantined), errors.Is(err, layerstore.ErrConflict):
		return fallback.BadIndex
	case errors.Is(err, mount.ErrUnsupported):
		return fallback.Kernel
	}
	var failed *registry.Error
	if errors.As(err, &failed) {
		return fallback.Registry
	}
	return fallback.InternalFail
}

// declinedSnapshot is told of each layer that is left to containerd.
func (d *Daemon) declinedSnapshot(image snapshotter.Image, err error) {
	e := fallback.Event{Image: image.Ref, Manifest: image.Manifest, ChainID: image.ChainID, Action: fallback.Plain, Reason: fallback.InternalFail, Detail: err.Error()}
	var why *declined
	switch {
	case errors.Is(err, snapshotter.ErrPlainParent):
		e.Reason = fallback.PlainParent
	case errors.As(err, &why):
		e.Reason = why.reason
	}
	d.fallbacks.Add(e)
}

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

// serveContainerd answers containerd until the daemon leaves.
func (d *Daemon) serveContainerd() error {
	if d.cfg.Containerd.Listen == "" {
		return nil
	}
	s, err := snapshotter.New(d.ctx, snapshotter.Options{Root: filepath.Join(d.cfg.Root, "snapshotter"), Images: newImageSnapshots(d),
		Declined: d.declinedSnapshot, Log: d.log})
	if err != nil {
		return err
	}
	enter := func(ctx context.Context) (context.Context, func(), bool) {
		if !d.enter() {
			return nil, nil, false
		}
		// What is under way when the daemon stops is given up.
		ctx, cancel := context.WithCancel(ctx)
		stop := context.AfterFunc(d.ctx, cancel)
		return ctx, func() { stop(); cancel(); d.exit() }, true
	}
	srv, err := snapshotter.Listen(s, d.cfg.Containerd.Listen, enter)
	if err != nil {
		return errors.Join(err, s.Close())
	}
	d.wg.Go(func() {
		if err := srv.Serve(); err != nil {
			d.log.Error("containerd is not answered any more", "err", err)
		}
	})
	d.wg.Go(func() {
		<-d.ctx.Done()
		srv.Stop()
		if err := s.Close(); err != nil {
			d.log.Error("close state of snapshots", "err", err)
		}
	})
	d.log.Info("snapshotter is ready", "socket", d.cfg.Containerd.Listen)
	return nil
}

func (d *Daemon) serveFallbacks(w http.ResponseWriter, _ *http.Request) {
	all := []api.Fallback{}
	for _, e := range d.fallbacks.List() {
		all = append(all, api.Fallback{First: e.Time, Last: e.Last, Count: e.Count, Image: e.Image, Manifest: e.Manifest, ChainID: e.ChainID,
			Action: string(e.Action), Reason: string(e.Reason), Detail: e.Detail, Hint: e.Reason.Hint()})
	}
	answer(w, all, nil)
}
