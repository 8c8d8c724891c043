package hydrate

import (
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/thaw-project/thaw/internal/index"
	"github.com/thaw-project/thaw/internal/registry"
)

// windowChunk is how much of a layer's windows is fetched at a time: the
// windows of some hundred spans, in less time than the spans themselves take.
const windowChunk = 256 << 10

// maxWindowChunks bounds the chunks that a layer keeps.
const maxWindowChunks = 64

// windows keeps the window records of a layer, fetched when first wanted.
type windows struct {
	blob Blob
	size int64           // of the section
	ctx  context.Context // of the layer: a fetch serves all who wait for it
	wg   *sync.WaitGroup // of the scheduler
	own  sync.WaitGroup

	mu     sync.Mutex // guards the rest
	chunks map[int64]*windowFetch
	wary   bool // a window was wrong: do not ask mirrors
}

type windowFetch struct {
	done chan struct{}
	data []byte
	err  error
}

// read returns the window record of each span; records of spans without one
// are empty.
func (w *windows) read(ctx context.Context, spans []index.Span) ([][]byte, error) {
	records := make([][]byte, len(spans))
	for i, s := range spans {
		if s.BytesWindow == 0 {
			continue
		}
		var err error
		if records[i], err = w.bytes(ctx, s.OffsetWindow, s.BytesWindow); err != nil {
			return nil, err
		}
	}
	return records, nil
}

// distrust drops the window of a span that came out wrong: it may be what is
// damaged.
func (w *windows) distrust(s index.Span) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wary = true
	if s.BytesWindow == 0 {
		return
	}
	for i := s.OffsetWindow / windowChunk; i <= (s.OffsetWindow+s.BytesWindow-1)/windowChunk; i++ {
		delete(w.chunks, i)
	}
}

// bytes returns [off, off+n) of the windows section.
func (w *windows) bytes(ctx context.Context, off, n int64) ([]byte, error) {
	out := make([]byte, 0, n)
	for at := off; at < off+n; {
		i := at / windowChunk
		chunk, err := w.chunk(ctx, i)
		if err != nil {
			return nil, err
		}
		lo := at - i*windowChunk
		hi := min(int64(len(chunk)), off+n-i*windowChunk)
		if lo >= hi {
			return nil, fmt.Errorf("windows end at byte %d, want %d", i*windowChunk+int64(len(chunk)), off+n)
		}
		out = append(out, chunk[lo:hi]...)
		at = i*windowChunk + hi
	}
	return out, nil
}

// chunk returns chunk i, fetching it once however many ask. A failure is told
// to all who wait and then forgotten.
func (w *windows) chunk(ctx context.Context, i int64) ([]byte, error) {
	w.mu.Lock()
	f := w.chunks[i]
	if f == nil {
		f = &windowFetch{done: make(chan struct{})}
		if w.chunks == nil {
			w.chunks = map[int64]*windowFetch{}
		}
		w.makeRoom()
		w.chunks[i] = f
		ctx := w.ctx
		if w.wary {
			ctx = registry.FromOrigin(ctx)
		}
		w.wg.Add(1) // the caller has a count of its own: Wait cannot have returned
		w.own.Go(func() {
			defer w.wg.Done()
			w.fetch(ctx, i, f)
		})
	}
	w.mu.Unlock()
	select {
	case <-f.done:
		return f.data, f.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// forgetPending has what is being fetched fetched anew by who wants it next.
func (w *windows) forgetPending() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, f := range w.chunks {
		select {
		case <-f.done:
		default:
			delete(w.chunks, i)
		}
	}
}

// makeRoom forgets a chunk where there are too many. Called with mu held.
func (w *windows) makeRoom() {
	for i := range w.chunks {
		if len(w.chunks) < maxWindowChunks {
			return
		}
		delete(w.chunks, i) // who waits for it has it
	}
}

func (w *windows) fetch(ctx context.Context, i int64, f *windowFetch) {
	n := min(windowChunk, w.size-i*windowChunk)
	f.data, f.err = w.readBlob(ctx, i*windowChunk, n)
	if f.err != nil {
		f.err = &sourceError{fmt.Errorf("fetch windows at byte %d: %w", i*windowChunk, f.err)}
		w.mu.Lock()
		if w.chunks[i] == f {
			delete(w.chunks, i)
		}
		w.mu.Unlock()
	}
	close(f.done)
}

func (w *windows) readBlob(ctx context.Context, off, n int64) ([]byte, error) {
	if n <= 0 {
		return nil, io.ErrUnexpectedEOF
	}
	body, err := w.blob.ReadRange(registry.WithPatience(ctx, attemptGiveUp, pauseReader), off, n)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	data := make([]byte, n)
	_, err = io.ReadFull(body, data)
	return data, err
}
