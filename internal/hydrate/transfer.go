package hydrate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/thaw-project/thaw/internal/index"
	"github.com/thaw-project/thaw/internal/inflate"
)

var decoders = sync.Pool{New: func() any { return new(inflate.Decoder) }}

var spanBuffers = sync.Pool{New: func() any { b := make([]byte, index.SpanBytes); return &b }}

// transfer fetches the spans [first, end) in one ranged request, decodes each
// as soon as its bytes are here and gives it to the layer store.
func (l *Layer) transfer(first, end int, urgent bool) error {
	err := l.transferOnce(first, end, urgent)
	var wrong *index.SpanError
	if errors.As(err, &wrong) {
		// Bytes may be damaged on the way; ask once more before saying so.
		l.s.opts.Log.Warn("span arrived damaged, fetching it again", "layer", l.c.Store.Meta().Blob, "span", wrong.Span, "err", wrong.Err)
		err = l.transferOnce(wrong.Span, end, urgent)
	}
	return err
}

func (l *Layer) transferOnce(first, end int, urgent bool) error {
	first = l.skipLocal(first, end)
	if first == end {
		return nil
	}
	start, stop := l.c.Spans[first].OffsetCompressed, int64(0)
	for i := first; i < end; i++ {
		start = min(start, l.c.Spans[i].OffsetCompressed)
		stop = max(stop, l.c.Spans[i].OffsetCompressed+l.c.Spans[i].BytesCompressed)
	}
	size := stop - start
	if size > l.s.opts.MemoryBytes/2 {
		return l.transferSplit(first, end, size, urgent)
	}
	if err := l.s.memory.Acquire(l.ctx, size); err != nil {
		return err
	}
	defer l.s.memory.Release(size)
	g, ctx := errgroup.WithContext(l.ctx)
	var records [][]byte
	haveWindows := make(chan struct{})
	g.Go(func() (err error) {
		defer close(haveWindows)
		records, err = l.windows.read(ctx, l.c.Spans[first:end])
		return err
	})
	g.Go(func() error {
		return l.receive(ctx, first, end, start, size, urgent, func(i int, src []byte) error {
			<-haveWindows
			if records == nil {
				return nil // the window's error is the one to report
			}
			return l.span(ctx, i, src, records[i-first])
		})
	})
	return g.Wait()
}

// transferSplit halves a run that is too large for the buffers; one span alone
// must fit.
func (l *Layer) transferSplit(first, end int, size int64, urgent bool) error {
	if end-first < 2 {
		return fmt.Errorf("layer %s span %d: needs %d compressed bytes, the buffers hold %d",
			l.c.Store.Meta().Blob, first, size, l.s.opts.MemoryBytes/2)
	}
	mid := (first + end) / 2
	if err := l.transferOnce(first, mid, urgent); err != nil {
		return err
	}
	return l.transferOnce(mid, end, urgent)
}

// skipLocal returns the first span of the run that has to be fetched: spans on
// disk that were not believed are verified and believed.
func (l *Layer) skipLocal(first, end int) int {
	for first < end {
		if ok, _ := l.c.Store.Recheck(first); !ok {
			return first
		}
		l.arrived(first)
		first++
	}
	return first
}

// receive reads size bytes of the blob from start and calls decode for each
// span of [first, end) once all of its bytes are here. Decoding goes on beside
// reading.
func (l *Layer) receive(ctx context.Context, first, end int, start, size int64, urgent bool, decode func(i int, src []byte) error) error {
	body, err := l.c.Data.ReadRange(ctx, start, size)
	if err != nil {
		return fmt.Errorf("fetch layer %s spans %d-%d: %w", l.c.Store.Meta().Blob, first, end-1, err)
	}
	defer body.Close()
	buf := make([]byte, size)
	have := int64(0)
	g, ctx := errgroup.WithContext(ctx)
	for i := first; i < end; i++ {
		span := l.c.Spans[i]
		from, need := span.OffsetCompressed-start, span.OffsetCompressed+span.BytesCompressed-start
		for have < need {
			if !urgent {
				l.s.yield(ctx)
			}
			n, err := io.ReadFull(body, buf[have:min(need, have+128<<10)])
			have += int64(n)
			if err != nil {
				g.Wait()
				return fmt.Errorf("fetch layer %s span %d: %w", l.c.Store.Meta().Blob, i, err)
			}
		}
		g.Go(func() error { return decode(i, buf[from:need]) })
	}
	l.stats.fetched(size)
	return g.Wait()
}

// span decodes one span and stores it.
func (l *Layer) span(ctx context.Context, i int, src, window []byte) error {
	if l.c.Store.Have(i) {
		l.arrived(i)
		return nil
	}
	if err := l.s.decode.Acquire(ctx, 1); err != nil {
		return err
	}
	defer l.s.decode.Release(1)
	blob := string(l.c.Store.Meta().Blob)
	point, err := l.c.Spans[i].Point(i, window)
	if err != nil {
		return &index.SpanError{Layer: blob, Span: i, Err: err}
	}
	buf := *spanBuffers.Get().(*[]byte)
	defer spanBuffers.Put(&buf)
	data := buf[:min(index.SpanBytes, l.c.Store.Meta().TarBytes-int64(i)*index.SpanBytes)]
	d := decoders.Get().(*inflate.Decoder)
	defer decoders.Put(d)
	if _, err := d.Decode(data, point, src); err != nil {
		return &index.SpanError{Layer: blob, Span: i, Err: err}
	}
	if err := l.c.Store.Put(i, data); err != nil {
		return err
	}
	l.arrived(i)
	return nil
}
