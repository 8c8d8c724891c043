package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	digest "github.com/opencontainers/go-digest"

	"github.com/thaw-project/thaw/internal/hydrate"
	"github.com/thaw-project/thaw/internal/indexer"
	"github.com/thaw-project/thaw/internal/layerstore"
	"github.com/thaw-project/thaw/internal/registry"
	"github.com/thaw-project/thaw/internal/startup"
	"github.com/thaw-project/thaw/internal/trace"
)

// loadTrace reads the trace that --trace names.
func (t *indexTask) loadTrace(name string) (*trace.Trace, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("read trace: %w", err)
	}
	defer f.Close()
	return trace.Decode(f, trace.Limits{})
}

// addBundle makes the start-up bundle of an index. Layers that are here are read
// from store, the state directory of a daemon that is not running; what is not is
// fetched through the index, and verified by it.
func (t *indexTask) addBundle(ctx context.Context, made *indexer.Result, tr *trace.Trace, store string) error {
	if store == "" {
		if err := os.MkdirAll(t.cfg.Root, 0o700); err != nil {
			return fmt.Errorf("make start-up bundle: %w", err)
		}
		dir, err := os.MkdirTemp(t.cfg.Root, ".tmp-bundle-*")
		if err != nil {
			return fmt.Errorf("make start-up bundle: %w", err)
		}
		defer os.RemoveAll(dir)
		store = filepath.Join(dir, "store")
	}
	r, err := t.openLayers(ctx, made, store)
	if err != nil {
		return err
	}
	defer r.close()
	b, err := startup.Build(ctx, tr, made.Image, r.read)
	if err != nil {
		return err
	}
	b.Created = tr.Created.Unix()
	return made.Artifact.SetBundle(b)
}

// layerReader reads verified bytes of an image's layers.
type layerReader struct {
	store  *layerstore.Store
	sched  *hydrate.Scheduler
	layers map[digest.Digest]*openLayer
}

type openLayer struct {
	stored  *layerstore.Layer
	hydrate *hydrate.Layer
}

func (t *indexTask) openLayers(ctx context.Context, made *indexer.Result, dir string) (*layerReader, error) {
	store, err := layerstore.Open(dir, layerstore.Options{})
	if err != nil {
		return nil, err
	}
	r := &layerReader{store: store, sched: hydrate.New(hydrate.Options{}), layers: map[digest.Digest]*openLayer{}}
	windows := map[digest.Digest][]byte{}
	for _, l := range made.Artifact.Layers {
		windows[l.Blob] = l.Windows
	}
	for i := range made.Image.Layers {
		il := &made.Image.Layers[i]
		if r.layers[il.Blob] != nil {
			continue
		}
		stored, err := store.Acquire(ctx, hydrate.StoreMeta(il), nil)
		if err != nil {
			r.close()
			return nil, err
		}
		desc := t.img.Layers[i].Descriptor
		r.layers[il.Blob] = &openLayer{stored, r.sched.Add(hydrate.Config{
			Store: stored, Format: il.Format, Spans: il.Spans,
			Data: rangeFunc(func(ctx context.Context, off, n int64) (io.ReadCloser, error) {
				return t.repo.ReadRange(ctx, desc, off, n)
			}),
			Windows: rangeFunc(func(_ context.Context, off, n int64) (io.ReadCloser, error) {
				return io.NopCloser(bytes.NewReader(windows[il.Blob][off : off+n])), nil
			}),
			BytesWindows: il.BytesWindows, RateBytes: -1,
			Stream: func(ctx context.Context) io.ReadCloser {
				return registry.Stream(ctx, t.repo, desc, registry.StreamOptions{})
			},
			NoRanges: func() bool { return registry.NoRanges(t.repo) },
		})}
	}
	return r, nil
}

type rangeFunc func(ctx context.Context, off, n int64) (io.ReadCloser, error)

func (f rangeFunc) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	return f(ctx, off, n)
}

// read is a startup.ReadFunc.
func (r *layerReader) read(ctx context.Context, blob digest.Digest, off int64, b []byte) error {
	l := r.layers[blob]
	if l == nil {
		return fmt.Errorf("read layer %s: the image does not have it", blob)
	}
	if err := l.hydrate.Fetch(ctx, off, int64(len(b))); err != nil {
		return err
	}
	if _, err := l.stored.File().ReadAt(b, off); err != nil {
		return fmt.Errorf("read layer %s: %w", blob, err)
	}
	return nil
}

func (r *layerReader) close() {
	for _, l := range r.layers {
		l.hydrate.Close()
	}
	r.sched.Close()
	for _, l := range r.layers {
		l.stored.Release()
	}
	r.store.Close()
}
