package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	digest "github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"golang.org/x/sync/errgroup"

	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/fallback"
	"github.com/thaw-project/thaw/internal/index"
	"github.com/thaw-project/thaw/internal/indexstore"
	"github.com/thaw-project/thaw/internal/layerstore"
	"github.com/thaw-project/thaw/internal/oci"
	"github.com/thaw-project/thaw/internal/registry"
	"github.com/thaw-project/thaw/internal/trust"
)

// image is an image with the index that it is mounted by.
type image struct {
	ref    oci.Reference
	repo   registry.Repository
	digest digest.Digest // of its manifest

	resolved chan struct{} // closed when oci is there, or err says why not
	oci      *oci.Image
	err      error

	heads      *heads
	head       *index.Image
	whole      *index.Image            // of a part of an image: the head of all of it
	erofs      string                  // metadataName, once head is there; guarded by Daemon.mu
	index      digest.Digest           // of the index' manifest
	manifest   []byte                  // of the index
	headDigest digest.Digest           // of the head as it was read
	origin     string                  // of the index: originLocal, ...
	bundle     *index.BundleDescriptor // of the index; nil: none
	blobs      []digest.Digest         // of its layers
	run        *bundle                 // joined early, until the mount has it

	kept chan error // gets the outcome of keeping the index; nil when it was kept before

	background int64 // bytes/s, as hydrate.Config.RateBytes
}

// Where an index came from.
const (
	originLocal    = "local"    // built on this node before
	originStored   = "stored"   // fetched by this node before
	originRegistry = "registry" // fetched just now
	originBuilt    = "built"    // made just now from the passing bytes
)

// set gives an image what was known before.
func (img *image) set(known *oci.Image) {
	img.oci, img.digest = known, known.ManifestDescriptor.Digest
	img.blobs = manifestBlobs(known.ManifestBytes)
	close(img.resolved)
}

// source names where the image's bytes come from.
func (img *image) source() string {
	if img.ref.IsLayout() {
		return "oci:" + img.ref.LayoutDir
	}
	return img.ref.Registry
}

// waitKept returns when the index is in the local store, where the next daemon
// finds it.
func (img *image) waitKept() error {
	if img.kept == nil {
		return nil
	}
	err := <-img.kept
	img.kept = nil
	return err
}

// wait returns when the image's config is there.
func (img *image) wait() error {
	<-img.resolved
	return img.err
}

// task follows one call: its phases, its registry traffic and who wants to
// hear of its progress.
type task struct {
	req     api.ImageRequest
	counter registry.Counter
	phases  []api.Phase
	event   func(api.Event) // never nil
	known   *oci.Image      // what the reference names, if that is known
	shown   string          // id of the start that it is for, if that is shown

	image       *image // what Daemon.keepFiles keeps
	pulledBytes int64  // compressed layer bytes that passed to make the index
	bundle      bool   // the start-up bundle is of use

	lacks []lack // why the image's index is not used, or not there

	mu   sync.Mutex // guards held and over
	held []*layerstore.Layer
	over bool
}

// hold keeps a layer in use until the task is over. It may be so already, when
// another call waits for the same layer.
func (t *task) hold(l *layerstore.Layer) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over {
		return l.Release()
	}
	t.held = append(t.held, l)
	return nil
}

// release lets go of what was held.
func (t *task) release() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var errs []error
	for _, l := range t.held {
		errs = append(errs, l.Release())
	}
	t.held, t.over = nil, true
	return errors.Join(errs...)
}

// phase runs f as the named part of the task.
func (t *task) phase(name string, f func() (detail string, err error)) error {
	p := api.Phase{Name: name, Start: time.Now()}
	var err error
	p.Detail, err = f()
	p.End = time.Now()
	t.phases = append(t.phases, p)
	return err
}

// lack is why there is no index.
type lack struct {
	reason fallback.Reason
	detail string
}

// lack notes why an index is not used, and warns of it.
func (t *task) lack(reason fallback.Reason, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	t.lacks = append(t.lacks, lack{reason, text})
	t.event(api.Event{Warning: text})
}

// resolve finds out which image a reference names.
func (d *Daemon) resolve(ctx context.Context, t *task) (*image, error) {
	ref, err := oci.ParseReference(t.req.Image)
	if err != nil {
		return nil, api.Errorf(api.CodeInvalid, "", "%v", err)
	}
	repo, err := d.repository(ref, t.req)
	if err != nil {
		return nil, err
	}
	img := &image{ref: ref, repo: repo, heads: &d.heads, resolved: make(chan struct{})}
	known := t.known
	if known == nil {
		known = d.knownImage(ref)
	}
	if known != nil && !ref.IsLayout() && t.req.Pull != api.PullAlways {
		img.set(known)
		return img, nil
	}
	if t.req.Pull == api.PullNever && !ref.IsLayout() {
		return nil, api.Errorf(api.CodeNotFound, "leave out --pull=never, or pull it first", "image %s is not on this node", ref)
	}
	manifest, err := registry.ResolveManifest(ctx, repo, ref, v1.Platform{})
	if err != nil {
		return nil, err
	}
	img.digest, img.blobs = digest.FromBytes(manifest), manifestBlobs(manifest)
	// The config comes beside the index: both need only the manifest.
	go func() {
		defer close(img.resolved)
		img.oci, img.err = registry.FetchConfig(ctx, repo, ref, manifest)
	}()
	return img, nil
}

// clients are the registry clients of the daemon: one for each set of
// credentials and host that calls bring.
type clients struct {
	mu  sync.Mutex
	all map[clientKey]*registry.Client
}

type clientKey struct{ dockerConfig, plainHTTP string }

func (d *Daemon) repository(ref oci.Reference, req api.ImageRequest) (registry.Repository, error) {
	key := clientKey{dockerConfig: req.DockerConfig}
	insecure := d.cfg.Insecure
	if req.PlainHTTP {
		key.plainHTTP = ref.Registry
		insecure = append(slices.Clone(insecure), ref.Registry)
	}
	d.clients.mu.Lock()
	defer d.clients.mu.Unlock()
	c := d.clients.all[key]
	if c == nil {
		c = registry.New(registry.Options{Keychain: d.keychain(req.DockerConfig), Insecure: insecure, Mirrors: d.cfg.Mirrors,
			Log: d.log, UserAgent: "thaw/" + d.cfg.Version})
		if d.clients.all == nil {
			d.clients.all = map[clientKey]*registry.Client{}
		}
		d.clients.all[key] = c
	}
	return c.Repository(ref)
}

// sums are the requests to all registries, and the bytes that came from them.
func (c *clients) sums() (requests, bytes int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, client := range c.all {
		requests += client.Stats().Requests.Load()
		bytes += client.Stats().BytesRead.Load()
	}
	return requests, bytes
}

func (c *clients) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, client := range c.all {
		client.Close()
	}
}

// findIndex looks for the image's index on this node and then beside the image.
// The error is indexstore.ErrNotFound where there is none that can be used.
func (d *Daemon) findIndex(ctx context.Context, t *task, img *image) error {
	if t.req.Index == api.IndexIgnore {
		t.lacks = append(t.lacks, lack{fallback.Configured, "the index was to be ignored"})
		return indexstore.ErrNotFound
	}
	if local, err := d.indexes.Get(img.digest); err == nil {
		if err = d.trusts(local); err == nil {
			err = img.adopt(local.Manifest, local.Head)
		}
		if err == nil {
			img.origin = originStored
			if local.Local {
				img.origin = originLocal
			}
			if d.windowsHere(img) || t.req.Pull == api.PullNever {
				return nil
			}
			// Made here and never pushed, perhaps, and since damaged.
			if ferr := d.fetchIndex(ctx, t, img); ferr == nil || !errors.Is(ferr, indexstore.ErrNotFound) {
				return ferr
			}
			return indexstore.ErrNotFound
		}
		t.lacks = append(t.lacks, lack{fallback.BadIndex, "the one in the local store: " + err.Error()})
		d.log.Warn("index in the local store cannot be used", "image", img.ref, "err", err)
	}
	if t.req.Pull == api.PullNever {
		return indexstore.ErrNotFound
	}
	return d.fetchIndex(ctx, t, img)
}

// windowsHere reports whether the local store has what decoding in the middle
// of the image's layers needs, or the index is one that its registry has.
func (d *Daemon) windowsHere(img *image) bool {
	if img.origin != originLocal {
		return true
	}
	for i := range img.head.Layers {
		if _, ok := d.indexes.LayerPath(img.head.Layers[i].Blob, img.head.Layers[i].Index); !ok {
			return false
		}
	}
	return true
}

// maxReferrers bounds the indexes of one image that are looked at.
const maxReferrers = 8

func (d *Daemon) fetchIndex(ctx context.Context, t *task, img *image) error {
	if d.cfg.Trust == trust.Local {
		t.lack(fallback.Configured, "%s is brought whole: only indexes that this node built are trusted here (trust = %q)", img.ref, d.cfg.Trust)
		return indexstore.ErrNotFound
	}
	found, err := img.repo.Referrers(ctx, img.digest, index.ArtifactType)
	if err != nil && t.req.Index == api.IndexRequire {
		return fmt.Errorf("look for the index of %s: %w", img.ref, err)
	}
	if err != nil {
		t.lack(reasonOf(err), "the index of %s cannot be looked for, the image is brought whole: %v", img.ref, err)
		return indexstore.ErrNotFound
	}
	found = found[:min(len(found), maxReferrers)]
	slices.SortStableFunc(found, func(a, b v1.Descriptor) int { return cmp.Compare(bundleAge(b), bundleAge(a)) })
	for _, desc := range found {
		if d.indexes.Quarantined(desc.Digest) {
			t.lack(fallback.BadIndex, "index %s of %s was found to lie before and is not used", desc.Digest, img.ref)
			continue
		}
		if hint := index.BundleHint(desc); hint != nil && t.bundle && d.maybeNeeded(img) {
			img.run = d.joinBundle(img, *hint, true)
		}
		if err := d.fetchOne(ctx, img, desc); err != nil {
			d.leaveBundle(img.run)
			img.run = nil
			t.lack(fallback.BadIndex, "index %s of %s cannot be used: %v", desc.Digest, img.ref, err)
			d.log.Warn("index cannot be used", "image", img.ref, "index", desc.Digest, "err", err)
			continue
		}
		img.origin = originRegistry
		return nil
	}
	return indexstore.ErrNotFound
}

// bundleAge orders indexes: those with a start-up bundle first, the newest first.
func bundleAge(desc v1.Descriptor) int64 {
	if hint := index.BundleHint(desc); hint != nil {
		return max(hint.Created, 1)
	}
	return 0
}

func (d *Daemon) fetchOne(ctx context.Context, img *image, desc v1.Descriptor) error {
	var manifest, hinted []byte
	hint, ok := index.HeadHint(desc)
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		manifest, _, err = img.repo.Manifest(gctx, desc.Digest.String())
		return err
	})
	if ok {
		g.Go(func() (err error) {
			hinted, err = img.repo.Blob(gctx, hint)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	parsed, err := index.ParseManifest(manifest, img.digest)
	if err != nil {
		return err
	}
	head := hinted
	if !ok || parsed.Head.Digest != hint.Digest {
		if head, err = img.repo.Blob(ctx, parsed.Head); err != nil {
			return err
		}
	}
	if err := img.adopt(manifest, head); err != nil {
		return err
	}
	proof, err := d.fetchProof(ctx, img, desc.Digest)
	if err != nil {
		return err
	}
	// Kept while the start goes on: the disk is slower than the mount.
	img.kept = make(chan error, 1)
	d.wg.Go(func() {
		img.kept <- d.indexes.Put(img.digest, &indexstore.Image{Manifest: manifest, Head: head, Proof: proof})
	})
	return nil
}

// adopt takes an index for the image if it is about the image's layers.
func (img *image) adopt(manifest, head []byte) error {
	m, err := img.heads.decode(head)
	if err != nil {
		return err
	}
	if err := img.wait(); err != nil {
		return err
	}
	if len(m.Layers) != len(img.oci.Layers) {
		return fmt.Errorf("it has %d layers, the image %d", len(m.Layers), len(img.oci.Layers))
	}
	for i, l := range img.oci.Layers {
		il := &m.Layers[i]
		if il.Blob != l.Descriptor.Digest || il.DiffID != l.DiffID || il.BlobBytes != l.Descriptor.Size {
			return fmt.Errorf("its layer %d is %s (%s), the image's %s (%s)", i, il.Blob, il.DiffID, l.Descriptor.Digest, l.DiffID)
		}
	}
	img.head, img.headDigest, img.manifest, img.index = m, digest.FromBytes(head), manifest, digest.FromBytes(manifest)
	if parsed, err := index.ParseManifest(manifest, img.digest); err == nil { // without, all else works
		img.bundle = parsed.Bundle
	}
	return nil
}

// prepare resolves an image and finds its index; without one the whole image
// is brought here and an index made on the way.
func (d *Daemon) prepare(ctx context.Context, t *task) (*image, error) {
	ctx = registry.WithCounter(ctx, &t.counter)
	var img *image
	err := t.phase("resolve", func() (string, error) {
		var err error
		img, err = d.resolve(ctx, t)
		return t.req.Image, err
	})
	if err != nil {
		return nil, err
	}
	d.keepFiles(t, img)
	err = t.phase("index", func() (string, error) {
		err := d.findIndex(ctx, t, img)
		return img.origin, err
	})
	// The config's error explains more than what comes of it, and no goroutine
	// outlives the call.
	if werr := img.wait(); werr != nil {
		err = werr
	}
	if img.run != nil && (err != nil || img.bundle == nil || *img.bundle != img.run.desc) {
		d.leaveBundle(img.run) // the hint was wrong
		img.run = nil
	}
	if errors.Is(err, indexstore.ErrNotFound) {
		img.bundle = nil // of an index that could not be used
		err = d.withoutIndex(ctx, t, img)
	}
	if err != nil {
		return nil, err
	}
	d.keepFiles(t, img) // now with its metadata
	return img, nil
}

func (d *Daemon) withoutIndex(ctx context.Context, t *task, img *image) error {
	if t.req.Index == api.IndexRequire {
		return d.noIndex(t.req.Image, img)
	}
	return t.phase("pull", func() (string, error) { return "", d.ingest(ctx, t, img) })
}
