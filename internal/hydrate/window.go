package hydrate

import (
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/thaw-project/thaw/internal/index"
)

// windowChunk is how much of a layer's windows is fetched at a time: the
// windows of some hundred spans, in less time than the spans themselves take.
const windowChunk = 256 << 10

// windows keeps the window records of a layer, fetched when first wanted.
type windows struct {
	blob Blob
	size int64           // of the section
	ctx  context.Context // of the layer: a fetch serves all who wait for it
	wg   sync.WaitGroup

	mu     sync.Mutex // guards chunks
	chunks map[int64]*windowFetch
}

type windowFetch struct {
	done chan struct{}
	data []byte
	err  error
}

// read returns the window record of each span; records of spans without one
// are empty. The spans are neighbours, so their records lie together.
func (w *windows) read(ctx context.Context, spans []index.Span) ([][]byte, error) {
	records := make([][]byte, len(spans))
	start, end := int64(-1), int64(0)
	for _, s := range spans {
		if s.BytesWindow == 0 {
			continue
		}
		if start < 0 || s.OffsetWindow < start {
			start = s.OffsetWindow
		}
		end = max(end, s.OffsetWindow+s.BytesWindow)
	}
	if start < 0 {
		return records, nil
	}
	data, err := w.bytes(ctx, start, end-start)
	if err != nil {
		return nil, err
	}
	for i, s := range spans {
		if s.BytesWindow > 0 {
			records[i] = data[s.OffsetWindow-start:][:s.BytesWindow]
		}
	}
	return records, nil
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
		w.chunks[i] = f
		w.wg.Go(func() { w.fetch(i, f) })
	}
	w.mu.Unlock()
	select {
	case <-f.done:
		return f.data, f.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (w *windows) fetch(i int64, f *windowFetch) {
	n := min(windowChunk, w.size-i*windowChunk)
	f.data, f.err = w.readBlob(i*windowChunk, n)
	if f.err != nil {
		f.err = fmt.Errorf("fetch windows at byte %d: %w", i*windowChunk, f.err)
		w.mu.Lock()
		delete(w.chunks, i)
		w.mu.Unlock()
	}
	close(f.done)
}

func (w *windows) readBlob(off, n int64) ([]byte, error) {
	if n <= 0 {
		return nil, io.ErrUnexpectedEOF
	}
	body, err := w.blob.ReadRange(w.ctx, off, n)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	data := make([]byte, n)
	_, err = io.ReadFull(body, data)
	return data, err
}
