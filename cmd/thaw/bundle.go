package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	digest "github.com/opencontainers/go-digest"

	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/hydrate"
	"github.com/thaw-project/thaw/internal/index"
	"github.com/thaw-project/thaw/internal/indexer"
	"github.com/thaw-project/thaw/internal/layerstore"
	"github.com/thaw-project/thaw/internal/oci"
	"github.com/thaw-project/thaw/internal/registry"
	"github.com/thaw-project/thaw/internal/startup"
	"github.com/thaw-project/thaw/internal/trace"
	"github.com/thaw-project/thaw/internal/tracestore"
)

// traceAuto asks for what this node recorded.
const traceAuto = "auto"

// loadTrace reads the trace that --trace names: a file, or with traceAuto what
// was recorded on this node of the image's starts, or else of those of another
// image of its repository, carried over by the files that both have.
func (t *indexTask) loadTrace(name string, made *indexer.Result) (*trace.Trace, error) {
	if name == traceAuto {
		return t.recorded(filepath.Join(t.cfg.Root, "traces"), made)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("read trace: %w", err)
	}
	defer f.Close()
	tr, err := trace.Decode(f, trace.Limits{})
	if err != nil || tr.Image == t.img.ManifestDescriptor.Digest {
		return tr, err
	}
	return t.carry(tr, made)
}

// recorded returns the newest merged trace in a store of traces.
func (t *indexTask) recorded(dir string, made *indexer.Result) (*trace.Trace, error) {
	store, err := tracestore.Open(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	keys, err := store.List()
	if err != nil {
		return nil, err
	}
	var same, other *trace.Trace
	for _, k := range keys {
		tr, err := store.Merged(k)
		if errors.Is(err, tracestore.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		switch {
		case k.Image == t.img.ManifestDescriptor.Digest:
			same = newer(same, tr)
		case oci.SameRepository(tr.Reference, t.img.Reference):
			other = newer(other, tr)
		}
	}
	if same != nil {
		return same, nil
	}
	if other == nil {
		return nil, api.Errorf(api.CodeNotFound, "thaw optimize "+t.img.Reference.String()+" records one", "no start of %s was recorded on this node", t.img.Reference)
	}
	return t.carry(other, made)
}

func newer(a, b *trace.Trace) *trace.Trace {
	if a != nil && a.Created.After(b.Created) {
		return a
	}
	return b
}

// carry carries a trace of another image over to this one.
func (t *indexTask) carry(tr *trace.Trace, made *indexer.Result) (*trace.Trace, error) {
	files, err := made.Image.Files()
	if err != nil {
		return nil, err
	}
	old := trace.NewFiles(nil) // without its index, only layers in common are carried over
	if known, err := t.store.Get(tr.Image); err == nil {
		head, err := index.DecodeImage(known.Head)
		if err == nil {
			old, err = head.Files()
		}
		if err != nil {
			return nil, fmt.Errorf("files of image %s: %w", tr.Image, err)
		}
	}
	return trace.Map(tr, t.img.ManifestDescriptor.Digest, old, files), nil
}

// addBundle makes the start-up bundle of an index. Layers that are here are read
// from store, the state directory of a daemon that is not running; what is not is
// fetched through the index, and verified by it.
func (t *indexTask) addBundle(ctx context.Context, made *indexer.Result, tr *trace.Trace, store string) error {
	if store == "" {
		dir, err := t.scratch()
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

// scratch makes a directory to put layers into, in the state directory. Those of
// processes that were killed are removed: they may be as large as an image.
func (t *indexTask) scratch() (string, error) {
	const prefix = ".tmp-layers-"
	if err := os.MkdirAll(t.cfg.Root, 0o700); err != nil {
		return "", err
	}
	left, _ := filepath.Glob(filepath.Join(t.cfg.Root, prefix+"*")) // the pattern is right
	for _, dir := range left {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), prefix), "-")
		if _, err := os.Stat("/proc/" + pid); errors.Is(err, fs.ErrNotExist) {
			_ = os.RemoveAll(dir) // the next one tries again
		}
	}
	return os.MkdirTemp(t.cfg.Root, fmt.Sprintf("%s%d-*", prefix, os.Getpid()))
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

// openBundle reads the header of an index' start-up bundle and returns the rest
// of it; nil where there is none.
func (t *indexTask) openBundle(ctx context.Context, f *foundIndex) (*startup.Header, io.ReadCloser, error) {
	if f.manifest == nil {
		return nil, nil, nil
	}
	subject := t.img.ManifestDescriptor.Digest
	m, err := index.ParseManifest(f.manifest, subject)
	if err != nil || m.Bundle == nil {
		return nil, nil, err
	}
	var body io.ReadCloser
	if file, err := t.store.OpenBundle(subject, m.Bundle.Digest); err == nil {
		body = file
	} else {
		body = registry.Stream(ctx, t.repo, m.Bundle.Descriptor(), registry.StreamOptions{})
	}
	h, _, err := startup.ReadHeader(body, *m.Bundle)
	if err != nil {
		body.Close()
		return nil, nil, err
	}
	return h, body, nil
}

// verifyBundle compares every piece of an index' start-up bundle with the layers,
// read through an index that was made of them just now.
func (t *indexTask) verifyBundle(ctx context.Context, f *foundIndex, made *indexer.Result) (what string, err error) {
	h, body, err := t.openBundle(ctx, f)
	if err != nil || h == nil {
		return "", err
	}
	defer body.Close()
	if err := h.Check(made.Image); err != nil {
		return "", err
	}
	dir, err := t.scratch()
	if err != nil {
		return "", fmt.Errorf("verify start-up bundle: %w", err)
	}
	defer os.RemoveAll(dir)
	layers, err := t.openLayers(ctx, made, dir)
	if err != nil {
		return "", err
	}
	defer layers.close()
	u, err := startup.NewUnpacker(runtime.NumCPU(), 0)
	if err != nil {
		return "", err
	}
	err = h.Apply(ctx, body, u, nil, func(int) bool { return true }, func(frame int, raw []byte) error {
		for i := h.Frames[frame].First; i < h.Frames[frame].End; i++ {
			p := &h.Pieces[i]
			want, blob := make([]byte, p.Length), h.Layers[p.Layer].Blob
			if err := layers.read(ctx, blob, p.Offset, want); err != nil {
				return err
			}
			if !bytes.Equal(want, raw[:p.Length]) || sha256.Sum256(want) != p.Digest {
				return fmt.Errorf("start-up bundle: %d bytes at %d of layer %s are not what the layer has", p.Length, p.Offset, blob)
			}
			raw = raw[p.Length:]
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf(", with a start-up bundle of %d pieces", len(h.Pieces)), nil
}
