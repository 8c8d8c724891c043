package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync/atomic"

	"github.com/docker/go-units"
	digest "github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/thaw-project/thaw/internal/config"
	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/index"
	"github.com/thaw-project/thaw/internal/indexer"
	"github.com/thaw-project/thaw/internal/indexstore"
	"github.com/thaw-project/thaw/internal/oci"
	"github.com/thaw-project/thaw/internal/registry"
)

func newIndexCommand(g *globalOptions) *cobra.Command {
	return group(&cobra.Command{
		Use:   "index",
		Short: "Make, inspect, verify and sign the index of an image",
		Long: `Make, inspect, verify and sign the index of an image. None of these needs root, a daemon
or a mount.`,
	}, newIndexBuildCommand(g), newIndexInspectCommand(g), newIndexVerifyCommand(g), newIndexSignCommand(g), newIndexWatchCommand(g))
}

// indexTask is what the index commands share: an image, its repository and the
// local index store.
type indexTask struct {
	cfg    config.Config
	client *registry.Client
	repo   registry.Repository
	img    *oci.Image
	store  *indexstore.Store
}

func (g *globalOptions) indexTask(ctx context.Context, image string, plainHTTP bool) (*indexTask, error) {
	cfg, err := g.load()
	if err != nil {
		return nil, err
	}
	ref, err := oci.ParseReference(image)
	if err != nil {
		return nil, usageError{err}
	}
	insecure := cfg.Insecure
	if plainHTTP {
		insecure = append(insecure, ref.Registry)
	}
	t := &indexTask{cfg: cfg, client: registry.New(registry.Options{Insecure: insecure, Mirrors: cfg.Mirrors, UserAgent: "thaw/" + buildVersion()})}
	if t.repo, err = t.client.Repository(ref); err != nil {
		return nil, err
	}
	if t.img, err = registry.ResolveImage(ctx, t.repo, ref, v1.Platform{}); err != nil {
		return nil, err
	}
	t.store, err = indexstore.Open(filepath.Join(cfg.Root, "index"))
	return t, err
}

type indexBuildOptions struct {
	push, force, plainHTTP, json bool
	trace                        string
}

func newIndexBuildCommand(g *globalOptions) *cobra.Command {
	var opts indexBuildOptions
	cmd := &cobra.Command{
		Use:   "build IMAGE",
		Short: "Make an image's index in one pass over its layers",
		Long: `Make an image's index in one pass over its layers and keep it in the local index
store; with --push also beside the image, where every node finds it. Layers whose
index is known already are not read again.

With --trace the index also gets a start-up bundle: what a recorded start read, in
order, as one blob, which a later start on any node streams in first. auto takes
what this node recorded of the image's starts (thaw trace ls), or else of another
image of its repository, by the files that both have; a FILE is what thaw trace
export wrote. thaw optimize records a start and does all of it.`,
		Example: `  thaw index build --push registry.example.com/app:1.2
  thaw index build --push --trace auto registry.example.com/app:1.2`,
		Args: exactArgs("IMAGE"),
		RunE: func(cmd *cobra.Command, args []string) error { return runIndexBuild(cmd, g, &opts, args[0]) },
	}
	cmd.Flags().BoolVar(&opts.push, "push", false, "put the index beside the image, as its referrer")
	cmd.Flags().BoolVar(&opts.force, "force", false, "read every layer, also those whose index is known")
	cmd.Flags().BoolVar(&opts.plainHTTP, "plain-http", false, "speak plain http to the image's registry")
	cmd.Flags().BoolVar(&opts.json, "json", false, "print the result as JSON")
	cmd.Flags().StringVar(&opts.trace, "trace", "", "make a start-up bundle of this recording: auto or FILE")
	return cmd
}

// builtIndex is the result of index build.
type builtIndex struct {
	Image      string        `json:"image"`
	Manifest   digest.Digest `json:"manifest"` // of the image
	Index      digest.Digest `json:"index"`    // of the index' manifest
	Pushed     bool          `json:"pushed"`
	ImageBytes int64         `json:"imageBytes"`
	IndexBytes int64         `json:"indexBytes"`
	HeadBytes  int64         `json:"headBytes"` // of IndexBytes: what a start needs
	// The start-up bundle is not part of IndexBytes.
	Bundle      digest.Digest `json:"bundle,omitempty"`
	BundleBytes int64         `json:"bundleBytes,omitempty"`
}

func runIndexBuild(cmd *cobra.Command, g *globalOptions, opts *indexBuildOptions, image string) error {
	t, err := g.indexTask(cmd.Context(), image, opts.plainHTTP)
	if err != nil {
		return err
	}
	defer t.client.Close()
	made, err := t.build(cmd.Context(), opts.force, newProgress(cmd.ErrOrStderr(), image))
	if err != nil {
		return err
	}
	if opts.trace != "" {
		tr, err := t.loadTrace(opts.trace, made)
		if err != nil {
			return err
		}
		if err := t.addBundle(cmd.Context(), made, tr, ""); err != nil {
			return err
		}
	}
	out, err := t.keep(cmd.Context(), made, opts.push)
	if err != nil {
		return err
	}
	if opts.json {
		return printJSON(cmd, out)
	}
	out.print(cmd.OutOrStdout())
	return nil
}

// keep puts an index into the local store, and beside the image where it is to
// be pushed.
func (t *indexTask) keep(ctx context.Context, made *indexer.Result, push bool) (*builtIndex, error) {
	a := made.Artifact
	manifest := t.img.ManifestDescriptor.Digest
	if err := t.store.Put(manifest, &indexstore.Image{Manifest: a.Manifest, Head: a.Head, Local: true}); err != nil {
		return nil, err
	}
	if a.Bundle != nil {
		if err := t.store.PutBundle(manifest, a.Bundle.Digest, a.Bundle.Blob); err != nil {
			return nil, err
		}
	}
	if push {
		if err := indexer.Push(ctx, t.repo, a); err != nil {
			return nil, err
		}
	}
	out := &builtIndex{Image: t.img.Reference.String(), Manifest: manifest, Index: a.Descriptor.Digest, Pushed: push,
		HeadBytes: int64(len(a.Head)), IndexBytes: int64(len(a.Head) + len(a.Manifest))}
	for _, l := range a.Layers {
		out.IndexBytes += int64(len(l.Bytes))
		out.ImageBytes += l.BlobBytes
	}
	if a.Bundle != nil {
		out.Bundle, out.BundleBytes = a.Bundle.Digest, a.Bundle.Bytes
	}
	return out, nil
}

func (b *builtIndex) print(w io.Writer) {
	where := "in the local store"
	if b.Pushed {
		where = "beside the image"
	}
	fmt.Fprintf(w, "%s: index %s %s, %s: %.2f %% of the image's %s; a start needs %s of it\n", b.Image, b.Index, where,
		units.HumanSize(float64(b.IndexBytes)), 100*float64(b.IndexBytes)/float64(max(b.ImageBytes, 1)),
		units.HumanSize(float64(b.ImageBytes)), units.HumanSize(float64(b.HeadBytes)))
	if b.BundleBytes > 0 {
		fmt.Fprintf(w, "start-up bundle: %s\n", units.HumanSize(float64(b.BundleBytes)))
	}
}

func (t *indexTask) build(ctx context.Context, force bool, p *progress) (*indexer.Result, error) {
	total := int64(0)
	for _, l := range t.img.Layers {
		total += l.Descriptor.Size
	}
	defer p.clear()
	var done, shown atomic.Int64
	read := func(n int) {
		at := done.Add(int64(n))
		if last := shown.Load(); at-last > total/200 && shown.CompareAndSwap(last, at) {
			p.event(api.Event{Progress: &api.Progress{Step: "index", Done: at, Total: total}})
		}
	}
	return indexer.Image(ctx, t.img, func(ctx context.Context, i int) (*index.LayerBlob, error) {
		l := t.img.Layers[i]
		if !force {
			if known, err := t.store.Layer(l.Descriptor.Digest); err == nil && known.DiffID == l.DiffID {
				read(int(l.Descriptor.Size))
				return known, nil
			}
		}
		blob, err := indexer.Layer(ctx, t.repo, l, indexer.Sink{Read: read})
		if err != nil {
			return nil, err
		}
		return blob, t.store.PutLayer(blob)
	})
}

// foundIndex is an index with where it was found.
type foundIndex struct {
	where    string
	digest   digest.Digest
	manifest []byte
	head     []byte
}

// find returns the image's index, from the local store or from beside it.
func (t *indexTask) find(ctx context.Context) (*foundIndex, error) {
	subject := t.img.ManifestDescriptor.Digest
	if local, err := t.store.Get(subject); err == nil {
		return &foundIndex{"local store", local.Digest, local.Manifest, local.Head}, nil
	}
	found, err := t.repo.Referrers(ctx, subject, index.ArtifactType)
	if err != nil {
		return nil, err
	}
	for _, desc := range found {
		f, ferr := t.fetch(ctx, desc)
		if ferr == nil {
			return f, nil
		}
		err = errors.Join(err, fmt.Errorf("index %s: %w", desc.Digest, ferr))
	}
	if err != nil {
		return nil, err
	}
	return nil, api.Errorf(api.CodeNoIndex, "thaw index build "+t.img.Reference.String()+" makes one", "image %s has no index, here or in its registry", t.img.Reference)
}

func (t *indexTask) fetch(ctx context.Context, desc v1.Descriptor) (*foundIndex, error) {
	manifest, _, err := t.repo.Manifest(ctx, desc.Digest.String())
	if err != nil {
		return nil, err
	}
	m, err := index.ParseManifest(manifest, t.img.ManifestDescriptor.Digest)
	if err != nil {
		return nil, err
	}
	b, err := t.repo.Blob(ctx, m.Head)
	if err != nil {
		return nil, err
	}
	return &foundIndex{"registry", desc.Digest, manifest, b}, nil
}
