// Package indexer makes the index of an image from its layers as they stream
// by, and puts it beside the image.
//
// It joins the registry's streams to the builder of package index. What is done
// with the passing bytes, and where the index is kept, is the caller's choice.
package indexer

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync/atomic"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/thaw-project/thaw/internal/index"
	"github.com/thaw-project/thaw/internal/oci"
	"github.com/thaw-project/thaw/internal/registry"
)

// parallelLayers is how many layers are made at once: each decodes on one core
// and hashes on another, and has some 30 MB of buffers.
func parallelLayers() int { return min(max(runtime.NumCPU()/2, 2), 3) }

// proveBytes is how much of each span is decoded again when a start waits for
// the index: in that much all that an access point adds to the scan shows.
const proveBytes = 64 << 10

// Result is a new index.
type Result struct {
	Image    *index.Image
	Artifact *index.Artifact
}

// Image makes an image's index; layer returns the index of each of its layers,
// and is called from several goroutines, for the largest layers first.
func Image(ctx context.Context, img *oci.Image, layer func(ctx context.Context, i int) (*index.LayerBlob, error)) (*Result, error) {
	blobs, order := make([]*index.LayerBlob, len(img.Layers)), make([]int, len(img.Layers))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		return int(img.Layers[b].Descriptor.Size>>10 - img.Layers[a].Descriptor.Size>>10)
	})
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelLayers())
	var entriesBytes atomic.Int64
	for _, i := range order {
		g.Go(func() (err error) {
			if blobs[i], err = layer(gctx, i); err != nil {
				return err
			}
			if n := entriesBytes.Add(blobs[i].EntriesBytes()); n > index.MaxBuildBytes {
				return fmt.Errorf("index %s: the entries of its layers take more than %d MiB", img.Reference, index.MaxBuildBytes>>20)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	head, err := index.Assemble(blobs)
	if err != nil {
		return nil, fmt.Errorf("index %s: %w", img.Reference, err)
	}
	a, err := index.NewArtifact(img.ManifestDescriptor, head, blobs)
	if err != nil {
		return nil, err
	}
	return &Result{Image: head, Artifact: a}, nil
}

// Sink hears of a layer's bytes as they pass; either function may be nil.
type Sink struct {
	Read func(n int) // compressed bytes, from the network
	// Span gets the uncompressed bytes, in order, valid only during the call.
	Span func(data []byte) error
}

// Layer makes the index of one layer in one pass over its bytes.
func Layer(ctx context.Context, repo registry.Repository, l oci.Layer, sink Sink) (*index.LayerBlob, error) {
	body := registry.Stream(ctx, repo, l.Descriptor, registry.StreamOptions{})
	defer body.Close()
	in := index.BuildInput{Blob: l.Descriptor.Digest, BlobBytes: l.Descriptor.Size, DiffID: l.DiffID}
	if sink.Span != nil {
		in.ProveBytes = proveBytes
		in.Span = func(_ int, data []byte) error { return sink.Span(data) }
	}
	built, err := index.BuildLayer(ctx, &countingReader{body, sink.Read}, in)
	if err != nil {
		return nil, err
	}
	return index.EncodeLayer(built)
}

type countingReader struct {
	io.Reader
	read func(n int)
}

func (r *countingReader) Read(b []byte) (int, error) {
	n, err := r.Reader.Read(b)
	if r.read != nil {
		r.read(n)
	}
	return n, err
}

// Push puts an index into a repository: its blobs, then its manifest, which
// makes it a referrer of the image.
func Push(ctx context.Context, repo registry.Repository, a *index.Artifact) error {
	push := func(desc v1.Descriptor, b []byte) error {
		return repo.PushBlob(ctx, desc, func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil })
	}
	if err := push(v1.DescriptorEmptyJSON, []byte("{}")); err != nil {
		return fmt.Errorf("push index: %w", err)
	}
	if err := push(a.HeadDescriptor(), a.Head); err != nil {
		return fmt.Errorf("push index head: %w", err)
	}
	for _, l := range a.Layers {
		desc := v1.Descriptor{MediaType: index.MediaTypeLayer, Digest: l.Digest, Size: int64(len(l.Bytes))}
		if err := push(desc, l.Bytes); err != nil {
			return fmt.Errorf("push index of layer %s: %w", l.Blob, err)
		}
	}
	if a.Bundle != nil {
		if err := push(a.Bundle.Descriptor(), a.Bundle.Blob); err != nil {
			return fmt.Errorf("push start-up bundle: %w", err)
		}
	}
	if err := repo.PushManifest(ctx, a.Descriptor.Digest.String(), a.Descriptor.MediaType, a.Manifest); err != nil {
		return fmt.Errorf("push index manifest: %w", err)
	}
	return nil
}
