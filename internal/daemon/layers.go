package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"sync"
	"sync/atomic"
	"time"

	digest "github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/hydrate"
	"github.com/thaw-project/thaw/internal/index"
	"github.com/thaw-project/thaw/internal/layerstore"
	"github.com/thaw-project/thaw/internal/registry"
)

// layer is a layer in use, shared by all mounts and pulls that need it.
type layer struct {
	blob    digest.Digest
	store   *layerstore.Layer
	hydrate *hydrate.Layer
	counter registry.Counter
	known   bool // was complete when it was taken into use

	// Guarded by layers.mu.
	users int
	index digest.Digest // of the image that came first
	mixed bool          // images with other indexes use it, or did

	waited waitLog // of its readers

	mu  sync.Mutex // guards err
	err error      // why the layer cannot be completed
}

func (l *layer) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = err
}

func (l *layer) failure() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// layers are the layers in use. It is the mounters' mount.Handler.
type layers struct {
	mu     sync.Mutex // guards changes of byBlob and layer.users
	byBlob atomic.Pointer[map[digest.Digest]*layer]
	disk   fullDisk
	counts *counts
}

// fullDisk is what to do about a disk without room.
type fullDisk interface {
	// stillFull returns why nothing can be written, if that is known.
	stillFull() error
	// makeReaderRoom is told that a reader's bytes could not be written, and
	// reports whether to try again.
	makeReaderRoom(ctx context.Context, l *layer, cause error) bool
}

func (ls *layers) init(disk fullDisk, c *counts) {
	ls.byBlob.Store(&map[digest.Digest]*layer{})
	ls.disk, ls.counts = disk, c
}

func (ls *layers) get(blob digest.Digest) *layer { return (*ls.byBlob.Load())[blob] }

func (ls *layers) list() []*layer {
	var all []*layer
	for _, l := range *ls.byBlob.Load() {
		all = append(all, l)
	}
	return all
}

// change replaces the map by a changed copy: Have reads it without a lock.
func (ls *layers) change(f func(map[digest.Digest]*layer)) {
	m := maps.Clone(*ls.byBlob.Load())
	f(m)
	ls.byBlob.Store(&m)
}

// Have implements mount.Handler.
func (ls *layers) Have(blob digest.Digest, off, n int64) bool {
	l := ls.get(blob)
	if l == nil || !l.hydrate.Have(off, n) {
		return false
	}
	ls.counts.served.Add(n)
	return true
}

// Fetch implements mount.Handler.
func (ls *layers) Fetch(ctx context.Context, blob digest.Digest, off, n int64) error {
	l := ls.get(blob)
	if l == nil {
		return fmt.Errorf("layer %s is not in use", blob)
	}
	if l.hydrate.Have(off, n) {
		return nil
	}
	if err := ls.disk.stillFull(); err != nil {
		ls.counts.fail(failRead)
		return fmt.Errorf("fetch layer %s: %w", blob, err) // without asking its registry in vain
	}
	begun := time.Now()
	defer func() { l.waited.add(off, n, begun, time.Now()) }()
	err := l.hydrate.Fetch(ctx, off, n)
	if errors.Is(err, unix.ENOSPC) && ls.disk.makeReaderRoom(ctx, l, err) {
		err = l.hydrate.Fetch(ctx, off, n)
	}
	switch {
	case err == nil:
		ls.counts.waited.Add(n)
	case ctx.Err() == nil:
		ls.counts.fail(failRead)
	}
	return err
}

func (ls *layers) closeAll() {
	for _, l := range ls.list() {
		l.hydrate.Close()
		l.store.Release()
	}
}

// blobReader reads ranges of one blob of a repository.
type blobReader struct {
	repo    registry.Repository
	desc    v1.Descriptor
	offset  int64 // added to every range
	counter *registry.Counter
}

func (b blobReader) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	return b.repo.ReadRange(registry.WithCounter(ctx, b.counter), b.desc, b.offset+off, n)
}

// fileReader reads ranges of a local file.
type fileReader struct {
	path   string
	offset int64
}

func (r fileReader) ReadRange(_ context.Context, off, n int64) (io.ReadCloser, error) {
	f, err := os.Open(r.path)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(f, r.offset+off, n), f}, nil
}

// use returns layer i of an image for one more user, hydrating unless it is
// complete. first is its descriptor from the keeper, or nil.
func (d *Daemon) use(ctx context.Context, img *image, i int, first *os.File) (*layer, error) {
	il := &img.head.Layers[i]
	d.layers.mu.Lock()
	defer d.layers.mu.Unlock()
	meta := hydrate.StoreMeta(il)
	if l := d.layers.get(il.Blob); l != nil {
		if err := d.sameLayer(ctx, l, meta); err != nil {
			return nil, err
		}
		if l.index != img.index && !l.mixed {
			l.mixed = true
			l.store.DropPieces()
		}
		l.users++
		return l, nil
	}
	if first == nil && d.fanotify.Load() != nil {
		// A layer may be watched for longer than it was mounted; its file must not
		// be opened a second time then.
		var err error
		if first, err = d.fanotify.Load().First(il.Blob); err != nil {
			return nil, err
		}
	}
	stored, err := d.store.Acquire(ctx, meta, first)
	if err != nil {
		if first != nil {
			first.Close()
		}
		return nil, err
	}
	stored.DropPieces() // of an index whose last mount is just letting go of it
	stored.OnRevoke(func() { d.revoked(il.Blob) })
	l := &layer{blob: il.Blob, store: stored, users: 1, index: img.index, known: stored.Complete()}
	data := blobReader{repo: img.repo, desc: img.oci.Layers[i].Descriptor, counter: &l.counter}
	l.hydrate = d.sched.Add(hydrate.Config{
		Store: stored, Source: img.source(), Format: il.Format, Spans: il.Spans, Data: data,
		Windows: d.windows(img, i, &l.counter), BytesWindows: il.BytesWindows,
		Stream: func(ctx context.Context) io.ReadCloser {
			return registry.Stream(registry.WithCounter(ctx, &l.counter), img.repo, data.desc, registry.StreamOptions{})
		},
		NoRanges:  func() bool { return registry.NoRanges(img.repo) },
		RateBytes: img.background,
		Finished:  func(err error) { d.layerFinished(l, err) },
	})
	d.layers.change(func(m map[digest.Digest]*layer) { m[il.Blob] = l })
	return l, nil
}

// sameLayer refuses to share a layer with an image that describes it otherwise:
// one of the two descriptions lies, and the layer holds what the first one says.
func (d *Daemon) sameLayer(ctx context.Context, l *layer, m layerstore.Meta) error {
	same, err := d.store.Acquire(ctx, m, nil)
	if err != nil {
		return fmt.Errorf("share layer %s with what uses it now: %w", l.blob, err)
	}
	if err := same.Release(); err != nil {
		return err
	}
	if same != l.store {
		return fmt.Errorf("share layer %s with what uses it now: %w", l.blob, layerstore.ErrQuarantined)
	}
	return nil
}

// windows is where the access points' windows of a layer are: in the local
// index store, else beside the image.
func (d *Daemon) windows(img *image, i int, counter *registry.Counter) hydrate.Blob {
	il := &img.head.Layers[i]
	if path, ok := d.indexes.LayerPath(il.Blob, il.Index); ok {
		return fileReader{path: path, offset: il.OffsetWindows}
	}
	desc := v1.Descriptor{MediaType: index.MediaTypeLayer, Digest: il.Index, Size: il.IndexBytes}
	return blobReader{repo: img.repo, desc: desc, offset: il.OffsetWindows, counter: counter}
}

// drop ends one use of a layer.
func (d *Daemon) drop(l *layer) {
	d.layers.mu.Lock()
	l.users--
	last := l.users == 0
	if last {
		d.layers.change(func(m map[digest.Digest]*layer) { delete(m, l.blob) })
		l.hydrate.Close()
	}
	d.layers.mu.Unlock()
	if !last {
		return
	}
	// Without the lock: others need not wait for the disk.
	if err := l.store.Release(); err != nil {
		d.log.Error("sync layer", "layer", l.blob, "err", err)
	}
	d.released()
}

// layerFinished is told by the scheduler that a layer is complete, or that it
// is not what the image's config promises.
func (d *Daemon) layerFinished(l *layer, err error) {
	if err != nil {
		d.counts.fail(failLayer)
		d.log.Error("layer is not what its image promises; it is quarantined", "layer", l.blob, "err", err)
		l.fail(err)
		return
	}
	d.unwatch(l)
	if !l.known {
		d.log.Info("layer is complete", "layer", l.blob)
	}
}
