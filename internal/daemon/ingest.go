package daemon

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	digest "github.com/opencontainers/go-digest"

	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/index"
	"github.com/thaw-project/thaw/internal/indexer"
	"github.com/thaw-project/thaw/internal/indexstore"
	"github.com/thaw-project/thaw/internal/oci"
	"github.com/thaw-project/thaw/internal/registry"
)

// ingest brings every layer of an image that has no index, each in one pass in
// which its tar is written and its index made, and keeps the image's index.
// Layers whose index is known from another image are not passed: they are
// hydrated like all others. Two calls that need one layer share the work.
func (d *Daemon) ingest(ctx context.Context, t *task, img *image) error {
	progress := newProgress(t, img)
	defer progress.stop()
	ctx = registry.WithCounter(ctx, &d.counts.pulls)
	made, err := indexer.Image(ctx, img.oci, func(ctx context.Context, i int) (*index.LayerBlob, error) {
		l := img.oci.Layers[i]
		return d.pulls.do(ctx, l.Descriptor.Digest, func(ctx context.Context) (*index.LayerBlob, error) {
			return d.ingestLayer(ctx, t, img, l, progress)
		})
	})
	if err != nil {
		return err
	}
	t.pulledBytes = progress.done.Load()
	a := made.Artifact
	img.head, img.headDigest, img.origin = made.Image, digest.FromBytes(a.Head), originBuilt
	img.manifest, img.index = a.Manifest, a.Descriptor.Digest
	err = d.indexes.Put(img.digest, &indexstore.Image{Manifest: a.Manifest, Head: a.Head, Local: true})
	if err != nil || t.req.Index != api.IndexPush {
		return err
	}
	return t.phase("push index", func() (string, error) { return img.index.String(), indexer.Push(ctx, img.repo, a) })
}

func (d *Daemon) ingestLayer(ctx context.Context, t *task, img *image, l oci.Layer, progress *progress) (*index.LayerBlob, error) {
	if t.req.Index != api.IndexIgnore {
		if known, err := d.indexes.Layer(l.Descriptor.Digest); err == nil && known.DiffID == l.DiffID {
			return known, nil
		}
	}
	in, err := d.store.Ingest(ctx, l.Descriptor.Digest, l.Descriptor.Size, l.DiffID)
	if err != nil {
		return nil, err
	}
	defer in.Abort()
	blob, err := indexer.Layer(ctx, img.repo, l, indexer.Sink{Read: progress.add, Span: func(data []byte) error {
		if before := in.Size(); before/roomCheckBytes != (before+int64(len(data)))/roomCheckBytes {
			if err := d.makeRoom(ctx, roomCheckBytes); err != nil {
				return err
			}
		}
		_, err := in.Write(data)
		return err
	}})
	if err != nil {
		return nil, err
	}
	digests := make([][32]byte, len(blob.Spans))
	for i := range blob.Spans {
		digests[i] = blob.Spans[i].Digest
	}
	// Not Commit: the start does not wait for the disk. The scheduler finishes it.
	stored, err := in.Seal(ctx, digests)
	if err != nil {
		return nil, err
	}
	return blob, errors.Join(t.hold(stored), d.indexes.PutLayer(blob))
}

// roomCheckBytes is how often to look for room: what a layer without an index
// unpacks to, nobody knows before.
const roomCheckBytes = 32 << 20

// progress reports the compressed bytes of an image that have passed.
type progress struct {
	done   atomic.Int64
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

func newProgress(t *task, img *image) *progress {
	total := int64(0)
	for _, l := range img.oci.Layers {
		total += l.Descriptor.Size
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := &progress{cancel: cancel}
	p.wg.Go(func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				t.event(api.Event{Progress: &api.Progress{Step: "pull", Done: p.done.Load(), Total: total}})
			}
		}
	})
	return p
}

func (p *progress) add(n int) { p.done.Add(int64(n)) }

func (p *progress) stop() {
	p.cancel()
	p.wg.Wait()
}

// flights makes calls for the same layer share one run of the work. It goes on
// as long as one caller waits for it.
type flights struct {
	wg   sync.WaitGroup // runs of the work
	mu   sync.Mutex
	runs map[digest.Digest]*flightRun
}

type flightRun struct {
	cancel  context.CancelFunc
	waiting int // guarded by flights.mu
	done    chan struct{}
	result  *index.LayerBlob
	err     error
}

func (f *flights) do(ctx context.Context, key digest.Digest, work func(context.Context) (*index.LayerBlob, error)) (*index.LayerBlob, error) {
	f.mu.Lock()
	run := f.runs[key]
	if run == nil {
		wctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		run = &flightRun{cancel: cancel, done: make(chan struct{})}
		if f.runs == nil {
			f.runs = map[digest.Digest]*flightRun{}
		}
		f.runs[key] = run
		f.wg.Go(func() {
			run.result, run.err = work(wctx)
			cancel()
			f.mu.Lock()
			if f.runs[key] == run {
				delete(f.runs, key)
			}
			f.mu.Unlock()
			close(run.done)
		})
	}
	run.waiting++
	f.mu.Unlock()
	select {
	case <-run.done:
		return run.result, run.err
	case <-ctx.Done():
		f.mu.Lock()
		if run.waiting--; run.waiting == 0 {
			run.cancel()
			if f.runs[key] == run {
				delete(f.runs, key) // a later caller starts anew
			}
		}
		f.mu.Unlock()
		return nil, errors.Join(fmt.Errorf("bring layer %s", key), ctx.Err())
	}
}
