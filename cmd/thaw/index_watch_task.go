package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"time"

	"github.com/docker/go-units"
	digest "github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/singleflight"

	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/index"
	"github.com/thaw-project/thaw/internal/indexer"
	"github.com/thaw-project/thaw/internal/indexstore"
	"github.com/thaw-project/thaw/internal/oci"
	"github.com/thaw-project/thaw/internal/registry"
	"github.com/thaw-project/thaw/internal/trace"
	"github.com/thaw-project/thaw/internal/watch"
)

// layerIndexAge is how long index watch remembers the indexes of layers, for
// the next images that have them.
const layerIndexAge = 7 * 24 * time.Hour

// maxNested bounds image indexes within image indexes, maxManifests all that is
// looked at for one that was pushed.
const (
	maxNested    = 4
	maxManifests = 1000
)

// watchTask looks at pushed manifests, and indexes what is worth it.
type watchTask struct {
	opts      *indexWatchOptions
	root      string // state directory: its traces
	minSize   int64
	platforms []v1.Platform
	client    *registry.Client
	store     *indexstore.Store // its own: of layers only
	own       func(manifest digest.Digest)
	log       *slog.Logger
	// An image is pushed by itself and then within its image index: at once, with
	// several workers.
	flight singleflight.Group
}

// sweep forgets the indexes of layers that were made long ago.
func (t *watchTask) sweep() {
	layers, err := t.store.Layers()
	if err != nil {
		t.log.Warn("indexes of layers are not swept", "err", err)
	}
	for blob, made := range layers {
		if time.Since(made) < layerIndexAge {
			continue
		}
		if err := t.store.RemoveLayer(blob); err != nil {
			t.log.Warn("index of a layer is not swept", "err", err)
		}
	}
}

// index is a watch.IndexFunc.
func (t *watchTask) index(ctx context.Context, ref oci.Reference) ([]watch.Outcome, error) {
	repo, err := t.client.Repository(ref)
	if err != nil {
		return nil, err
	}
	return t.manifest(ctx, &pushedTree{repo: repo, seen: map[digest.Digest]bool{}}, ref, "", 0)
}

// pushedTree is what was pushed, and what of it was looked at: each manifest once,
// however often image indexes name it.
type pushedTree struct {
	repo registry.Repository
	seen map[digest.Digest]bool
}

// manifest looks at a manifest, and at all of an image index.
func (t *watchTask) manifest(ctx context.Context, tree *pushedTree, ref oci.Reference, platform string, depth int) ([]watch.Outcome, error) {
	tree.seen[ref.Digest] = true
	b, desc, err := tree.repo.Manifest(ctx, ref.Digest.String())
	var unsupported *oci.UnsupportedError
	if errors.As(err, &unsupported) {
		return []watch.Outcome{skipped(ref, platform, watch.ReasonNotImage, unsupported.Error())}, nil
	}
	if err != nil {
		return nil, err
	}
	if !oci.IsImageIndex(desc.MediaType) {
		o, err := t.once(ctx, tree.repo, ref, b)
		if err != nil {
			return nil, err
		}
		if platform != "" {
			o.Platform = platform
		}
		return []watch.Outcome{o}, nil
	}
	idx, err := oci.ParseImageIndex(b)
	if err != nil {
		return nil, err
	}
	if depth == maxNested {
		return nil, fmt.Errorf("image indexes nested more than %d deep", maxNested)
	}
	var all []watch.Outcome
	var failed error
	for _, d := range idx.Manifests {
		child := ref
		child.Digest = d.Digest
		if tree.seen[d.Digest] {
			continue
		}
		if o, no := t.unwanted(child, d); no {
			all = append(all, o)
			continue
		}
		if len(tree.seen) >= maxManifests {
			failed = errors.Join(failed, fmt.Errorf("image index of more than %d manifests", maxManifests))
			break
		}
		name := platform
		if d.Platform != nil {
			name = oci.FormatPlatform(*d.Platform)
		}
		out, err := t.manifest(ctx, tree, child, name, depth+1)
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s %s: %w", d.Digest, name, err))
			continue // the others need not wait for it
		}
		all = append(all, out...)
	}
	if failed != nil && ctx.Err() == nil && !watch.Retryable(failed) {
		return append(all, watch.Outcome{Image: ref.String(), Result: watch.ResultFailed, Reason: watch.ReasonError, Detail: failed.Error()}), nil
	}
	if failed != nil {
		return nil, failed
	}
	return all, nil
}

// unwanted judges an entry of an image index by its descriptor.
func (t *watchTask) unwanted(ref oci.Reference, d v1.Descriptor) (watch.Outcome, bool) {
	switch {
	case !oci.IsImageManifest(d.MediaType) && !oci.IsImageIndex(d.MediaType):
		return skipped(ref, "", watch.ReasonNotImage, "media type "+d.MediaType), true
	case oci.CheckDigest(d.Digest) != nil:
		return skipped(ref, "", watch.ReasonNotImage, oci.CheckDigest(d.Digest).Error()), true
	case d.Platform == nil:
		return watch.Outcome{}, false
	}
	name := oci.FormatPlatform(*d.Platform)
	switch {
	case d.Platform.OS == "unknown": // as build attestations are listed
		return skipped(ref, "", watch.ReasonNotImage, "platform "+name), true
	case !t.wanted(*d.Platform):
		return skipped(ref, name, watch.ReasonPlatform, ""), true
	}
	return watch.Outcome{}, false
}

// wanted reports whether a platform is among those of --platform. A variant counts
// where both name one.
func (t *watchTask) wanted(p v1.Platform) bool {
	return (p.OS == "linux" || p.OS == "") && (len(t.platforms) == 0 || slices.ContainsFunc(t.platforms, func(w v1.Platform) bool {
		return w.Architecture == p.Architecture && (w.Variant == "" || p.Variant == "" || w.Variant == p.Variant)
	}))
}

func skipped(ref oci.Reference, platform string, why watch.Reason, detail string) watch.Outcome {
	return watch.Outcome{Image: ref.String(), Platform: platform, Result: watch.ResultSkipped, Reason: why, Detail: detail}
}

// once does an image once, if it is asked for twice at the same time.
func (t *watchTask) once(ctx context.Context, repo registry.Repository, ref oci.Reference, manifest []byte) (watch.Outcome, error) {
	v, err, _ := t.flight.Do(ref.Name()+"@"+ref.Digest.String(), func() (any, error) { return t.image(ctx, repo, ref, manifest) })
	if err != nil {
		return watch.Outcome{}, err
	}
	o := v.(watch.Outcome)
	o.Image = ref.String() // with this one's tag
	return o, nil
}

// image judges an image, and indexes it.
func (t *watchTask) image(ctx context.Context, repo registry.Repository, ref oci.Reference, manifest []byte) (watch.Outcome, error) {
	if why, detail := artifact(manifest); why != "" {
		return skipped(ref, "", why, detail), nil
	}
	m, _, err := oci.ParseManifest(manifest)
	var unsupported *oci.UnsupportedError
	if errors.As(err, &unsupported) { // such as an attestation, whose config is an image's
		return skipped(ref, "", watch.ReasonNotImage, unsupported.Error()), nil
	}
	if err != nil {
		return watch.Outcome{}, err
	}
	config, err := repo.Blob(ctx, m.Config)
	if err != nil {
		return watch.Outcome{}, err
	}
	var p v1.Platform
	if err := json.Unmarshal(config, &p); err != nil {
		return watch.Outcome{}, fmt.Errorf("decode config %s: %w", m.Config.Digest, err)
	}
	platform := oci.FormatPlatform(p)
	if !t.wanted(p) {
		return skipped(ref, platform, watch.ReasonPlatform, ""), nil
	}
	img, err := oci.ParseImage(manifest, config)
	if err != nil {
		return watch.Outcome{}, err
	}
	img.Reference = ref
	skip := func(why watch.Reason, detail string) (watch.Outcome, error) {
		o := skipped(ref, platform, why, detail)
		o.ImageBytes = img.SizeBytes()
		return o, nil
	}
	if n := img.SizeBytes(); n < t.minSize {
		return skip(watch.ReasonTooSmall, fmt.Sprintf("layers of %s, less than %s", units.HumanSize(float64(n)), units.HumanSize(float64(t.minSize))))
	}
	task := &indexTask{client: t.client, repo: repo, img: img, store: t.store}
	task.cfg.Root = t.root
	if d, err := task.indexed(ctx); err != nil {
		return watch.Outcome{}, err
	} else if d != "" {
		o, err := skip(watch.ReasonIndexed, "")
		o.Index = d
		return o, err
	}
	made, err := task.build(ctx, false, newProgress(io.Discard, ""))
	if err != nil {
		return watch.Outcome{}, err
	}
	tr, err := t.recorded(task, made)
	if err != nil {
		return watch.Outcome{}, err
	}
	if share := readShare(tr, made.Image); share > t.opts.maxRead {
		return skip(watch.ReasonMostRead, fmt.Sprintf("recorded starts read %.0f %% of it, more than %.0f %%", 100*share, 100*t.opts.maxRead))
	}
	if tr != nil && t.opts.bundle {
		if err := task.addBundle(ctx, made, tr, ""); err != nil {
			return watch.Outcome{}, err
		}
	}
	t.own(made.Artifact.Descriptor.Digest) // before the registry can tell of it
	if err := indexer.Push(ctx, repo, made.Artifact); err != nil {
		return watch.Outcome{}, err
	}
	o := watch.Outcome{Image: ref.String(), Platform: platform, Result: watch.ResultIndexed, Index: made.Artifact.Descriptor.Digest,
		ImageBytes: img.SizeBytes(), IndexBytes: int64(len(made.Artifact.Head) + len(made.Artifact.Manifest)), Bundle: made.Artifact.Bundle != nil}
	for _, l := range made.Artifact.Layers {
		o.IndexBytes += int64(len(l.Bytes))
	}
	return o, nil
}

// artifact says why a manifest is not of an image, or nothing.
func artifact(manifest []byte) (watch.Reason, string) {
	var m struct {
		ArtifactType string         `json:"artifactType"`
		Subject      *v1.Descriptor `json:"subject"`
		Config       v1.Descriptor  `json:"config"`
	}
	if err := json.Unmarshal(manifest, &m); err != nil {
		return watch.ReasonNotImage, err.Error()
	}
	switch {
	case m.ArtifactType == index.ArtifactType:
		return watch.ReasonOwnIndex, ""
	case m.Subject != nil:
		return watch.ReasonNotImage, "it is about " + m.Subject.Digest.String()
	case m.ArtifactType != "":
		return watch.ReasonNotImage, fmt.Sprintf("artifact type %.100q", m.ArtifactType)
	case m.Config.MediaType != v1.MediaTypeImageConfig && m.Config.MediaType != oci.MediaTypeDockerConfig:
		return watch.ReasonNotImage, fmt.Sprintf("config of media type %.100q", m.Config.MediaType)
	}
	return "", ""
}

// indexed returns the digest of an index that the image has in its registry, or
// nothing. One that cannot be read is none.
func (t *indexTask) indexed(ctx context.Context) (digest.Digest, error) {
	found, err := t.repo.Referrers(ctx, t.img.ManifestDescriptor.Digest, index.ArtifactType)
	if err != nil {
		return "", err
	}
	for _, d := range found {
		_, err := t.fetch(ctx, d)
		if err == nil {
			return d.Digest, nil
		}
		if registry.Retryable(err) || ctx.Err() != nil {
			return "", err
		}
	}
	return "", nil
}

// recorded returns what starts of the image read, or of another of its
// repository; nil where none was recorded on this node.
func (t *watchTask) recorded(task *indexTask, made *indexer.Result) (*trace.Trace, error) {
	node := *task
	var err error
	if node.store, err = indexstore.Open(filepath.Join(t.root, "index")); err != nil { // the files of the other image
		return nil, err
	}
	tr, err := node.recorded(filepath.Join(t.root, "traces"), made)
	var none *api.Error
	if errors.As(err, &none) && none.Code == api.CodeNotFound {
		return nil, nil
	}
	return tr, err
}

// readShare is how much of an image's bytes a start read.
func readShare(tr *trace.Trace, img *index.Image) float64 {
	if tr == nil {
		return 0
	}
	var all, read int64
	bytes := map[digest.Digest]int64{}
	for i := range img.Layers {
		l := &img.Layers[i]
		bytes[l.Blob] = l.TarBytes
		all += l.TarBytes
	}
	for _, a := range trace.Merge([]*trace.Trace{tr}, trace.MergeOptions{}).Accesses { // every byte once
		read += max(0, min(a.Offset+a.Length, bytes[a.Layer])-a.Offset)
	}
	return float64(read) / float64(max(all, 1))
}
