package hydrate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/thaw-project/thaw/internal/index"
	"github.com/thaw-project/thaw/internal/inflate"
	"github.com/thaw-project/thaw/internal/layerstore"
	"github.com/thaw-project/thaw/internal/registry"
)

var (
	decoders    = sync.Pool{New: func() any { return new(inflate.Decoder) }}
	spanBuffers = make(freeList, 8)
	runBuffers  = make(freeList, 8)
)

// freeList keeps a few buffers of one size. A sync.Pool would be emptied by
// every garbage collection, of which there are many in little memory.
type freeList chan []byte

// get returns a buffer of n bytes; those of up to size bytes come from the list.
func (f freeList) get(n, size int64) []byte {
	if n > size {
		return make([]byte, n)
	}
	select {
	case b := <-f:
		return b[:n]
	default:
		return make([]byte, n, size)
	}
}

// put takes a buffer of get back, which nobody uses any more.
func (f freeList) put(b []byte, size int64) {
	if int64(cap(b)) != size {
		return
	}
	select {
	case f <- b:
	default:
	}
}

// readChunk is how much of a body is read at a time.
const readChunk = 128 << 10

// transfer brings a run: what is on disk and not believed is verified, the rest
// fetched.
func (l *Layer) transfer(r *run) error {
	store := l.c.Store
	for first := r.first; first < r.end; {
		if l.ctx.Err() != nil {
			return l.ctx.Err()
		}
		if ok, err := store.Recheck(first); ok {
			l.arrived(first)
			first++
			continue
		} else if err != nil && final(err) {
			return err
		}
		end := first + 1
		for end < r.end && !store.Have(end) && !store.Suspect(end) {
			end++
		}
		if err := l.fetch(r, first, end); err != nil {
			return err
		}
		first = end
	}
	return nil
}

// fetch fetches spans, and those that arrive damaged once more, past mirrors
// and with windows of their own.
func (l *Layer) fetch(r *run, first, end int) error {
	damaged, err := l.fetchOnce(l.ctx, r, first, end)
	if err != nil {
		return err
	}
	for _, wrong := range damaged {
		l.sayDamaged("span arrived damaged, fetching it again", wrong)
		l.windows.distrust(l.c.Spans[wrong.Span])
		again, ferr := l.fetchOnce(registry.FromOrigin(l.ctx), r, wrong.Span, wrong.Span+1)
		if ferr == nil && len(again) > 0 {
			l.refused(r, again[0])
			ferr = again[0]
		}
		if ferr != nil {
			err = ferr
		}
	}
	return err
}

// fetchOnce fetches the spans [first, end) in one ranged request, decodes each
// as soon as its bytes are here and gives it to the layer store. Spans whose
// bytes are wrong are returned.
func (l *Layer) fetchOnce(ctx context.Context, r *run, first, end int) ([]*index.SpanError, error) {
	start, stop := l.compressed(first, end)
	size := stop - start
	if !r.isUrgent() {
		if err := l.pace(ctx, r.urgent, size); err != nil {
			return nil, err
		}
	}
	release, err := l.acquire(ctx, r, size)
	if err != nil {
		return nil, err
	}
	defer release()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	l.begin(r, cancel)
	defer l.begin(r, nil)
	t := &receiver{l: l, run: r, first: first, end: end, start: start, buf: runBuffers.get(size, runBytes), haveWindows: make(chan struct{})}
	defer runBuffers.put(t.buf, runBytes) // all that use it have ended
	pause := pauseBackground
	if r.isUrgent() {
		pause = pauseReader
	}
	outer := ctx
	g, ctx := errgroup.WithContext(registry.WithPatience(ctx, attemptGiveUp, pause))
	g.Go(func() (err error) {
		defer close(t.haveWindows)
		t.windows, err = l.windows.read(ctx, l.c.Spans[first:end])
		return err
	})
	g.Go(func() error { return t.receive(ctx) })
	err = g.Wait()
	switch {
	case context.Cause(outer) == errStuck:
		return nil, &sourceError{errStuck}
	case err != nil:
		return nil, err
	}
	l.sourceAnswered()
	return t.damaged, t.err
}

// acquire takes memory for a run: the background's, unless someone waits for
// it or comes to while it is waiting.
func (l *Layer) acquire(ctx context.Context, r *run, size int64) (release func(), err error) {
	s := l.s
	if !r.isUrgent() {
		background := func() { s.memoryBackground.Release(size) }
		if s.memoryBackground.TryAcquire(size) {
			return background, nil
		}
		wait, cancel := context.WithCancel(ctx)
		var wg sync.WaitGroup
		wg.Go(func() {
			select {
			case <-r.urgent:
				cancel()
			case <-wait.Done():
			}
		})
		err := s.memoryBackground.Acquire(wait, size)
		cancel()
		wg.Wait()
		if err == nil {
			return background, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	if err := l.upstream.memory.Acquire(ctx, size); err != nil {
		return nil, err
	}
	if err := s.memory.Acquire(ctx, size); err != nil {
		l.upstream.memory.Release(size)
		return nil, err
	}
	return func() { s.memory.Release(size); l.upstream.memory.Release(size) }, nil
}

// receiver takes in one ranged request.
type receiver struct {
	l           *Layer
	run         *run
	first, end  int
	start       int64 // offset of buf in the blob
	buf         []byte
	haveWindows chan struct{} // closed when windows is set, or its error is on its way
	windows     [][]byte

	mu      sync.Mutex // guards damaged and err
	damaged []*index.SpanError
	err     error // of the disk
}

// receive reads the body and decodes each span beside reading, once all of its
// bytes are here.
func (t *receiver) receive(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	blob := t.l.c.Store.Meta().Blob
	asked := time.Now()
	body, err := t.l.c.Data.ReadRange(ctx, t.start, int64(len(t.buf)))
	if err != nil {
		return &sourceError{fmt.Errorf("fetch layer %s spans %d-%d: %w", blob, t.first, t.end-1, err)}
	}
	defer body.Close()
	answered := time.Now()
	have, took, got := int64(0), time.Duration(0), 0
	for i := t.first; i < t.end; i++ {
		span := t.l.c.Spans[i]
		from := span.OffsetCompressed - t.start
		need := from + span.BytesCompressed
		for have < need {
			if !t.run.prefetch {
				t.l.yield(ctx, t.run.urgent, took, got)
			}
			begun := time.Now()
			n, err := io.ReadFull(body, t.buf[have:min(need, have+readChunk)])
			took, got = time.Since(begun), n
			have += int64(n)
			t.l.fetched(int64(n), t.run.isUrgent())
			if n > 0 {
				t.run.progress.Store(time.Now().UnixNano())
				t.l.came(t.run, n)
			}
			if err != nil {
				return &sourceError{fmt.Errorf("fetch layer %s span %d: %w", blob, i, err)}
			}
		}
		wg.Go(func() { t.span(ctx, i, t.buf[from:need]) })
	}
	t.l.measured(answered.Sub(asked), time.Since(answered), have)
	return nil
}

// span decodes and stores one span. Spans do not fail each other.
func (t *receiver) span(ctx context.Context, i int, src []byte) {
	<-t.haveWindows
	if t.windows == nil {
		return // the windows' error is the one to report
	}
	err := t.l.decodeSpan(ctx, t.run, i, src, t.windows[i-t.first])
	if err == nil {
		t.l.arrived(i)
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	var wrong *index.SpanError
	if errors.As(err, &wrong) {
		t.damaged = append(t.damaged, wrong)
	} else {
		t.err = err
	}
}

// decodeSpan decodes one span and stores it.
func (l *Layer) decodeSpan(ctx context.Context, r *run, i int, src, window []byte) error {
	if l.c.Store.Have(i) {
		return nil
	}
	if !l.hurry.Load() && !r.prefetch {
		// Turns are given in order: what the background has to decode queues up
		// here, not before a reader's span.
		select {
		case l.s.spare <- struct{}{}:
			defer func() { <-l.s.spare }()
		case <-r.urgent:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := l.s.decode.Acquire(ctx, 1); err != nil {
		return err
	}
	defer l.s.decode.Release(1)
	meta := l.c.Store.Meta()
	point, err := l.c.Spans[i].Point(i, window)
	if err != nil {
		return &index.SpanError{Layer: meta.Blob.String(), Span: i, Err: err}
	}
	buf := spanBuffers.get(index.SpanBytes, index.SpanBytes)
	defer spanBuffers.put(buf, index.SpanBytes)
	_, n := meta.Span(i)
	data := buf[:n]
	d := decoders.Get().(*inflate.Decoder)
	defer decoders.Put(d)
	if _, err := d.Decode(data, point, src); err != nil {
		return &index.SpanError{Layer: meta.Blob.String(), Span: i, Err: err}
	}
	return l.put(i, data)
}

// put gives a span to the layer store. Wrong bytes are an *index.SpanError.
func (l *Layer) put(i int, data []byte) error {
	err := l.c.Store.Put(i, data)
	var wrong *layerstore.SpanError
	if errors.As(err, &wrong) {
		return &index.SpanError{Layer: wrong.Layer.String(), Span: i, Err: fmt.Errorf("bytes hash to %s, the index says %s", wrong.Got, wrong.Want)}
	}
	return err
}
