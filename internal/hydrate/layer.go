package hydrate

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/thaw-project/thaw/internal/index"
)

const (
	// runBytes is the compressed size of a background transfer: large enough
	// that a round trip of 20 ms does not dominate at 60 MB/s a connection,
	// small enough that a reader never waits long behind one.
	runBytes = 2 << 20
	// aheadMax bounds how many spans a sequential reader is given at once.
	aheadMax = 16
	// streamSkip is the output that may be discarded to reach a span; beyond,
	// the layer is hydrated as a stream.
	streamSkip = 16 << 20
	// giveUpFailures is how often the background fails in a row before those
	// who wait for the whole layer are told.
	giveUpFailures = 2
)

// flight is a span that is being fetched. err is set before done is closed.
type flight struct {
	done chan struct{}
	err  error
}

// Layer is a layer that is being hydrated.
type Layer struct {
	s       *Scheduler
	c       Config
	windows windows
	limit   *rate.Limiter // of the background
	ctx     context.Context
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	stream  bool // cannot be entered in its middle; guarded by s.mu

	// Guarded by s.mu.
	flights   map[int]*flight
	cursor    int // background: spans before it are here or in flight
	streaming bool
	finishing bool
	closed    bool
	lastMiss  int // last span of the last foreground run
	ahead     int // spans of the next sequential foreground run
	failures  int // of the background in a row
	lastErr   error
	retryAt   time.Time

	finished chan struct{} // closed once Finished was called
	stats    stats
}

func newLayer(s *Scheduler, c Config) *Layer {
	l := &Layer{s: s, c: c, flights: map[int]*flight{}, lastMiss: -2, limit: limiter(c.RateBytes), finished: make(chan struct{})}
	l.ctx, l.cancel = context.WithCancel(s.ctx)
	l.windows.blob, l.windows.size, l.windows.ctx = c.Windows, c.BytesWindows, l.ctx
	for _, span := range c.Spans {
		if span.Skip > streamSkip {
			l.stream = true
		}
	}
	return l
}

// Done is closed when the layer is finished: proven, or refused.
func (l *Layer) Done() <-chan struct{} { return l.finished }

// Close stops the layer's transfers and waits for them. Waiting readers get
// ErrClosed.
func (l *Layer) Close() {
	l.s.mu.Lock()
	l.closed = true
	l.s.mu.Unlock()
	l.cancel()
	l.s.remove(l)
	l.wg.Wait()
	l.windows.wg.Wait()
}

// spanRange returns the spans that cover [off, off+n), clipped to the layer.
func (l *Layer) spanRange(off, n int64) (int, int) {
	first, end := off/index.SpanBytes, (off+n+index.SpanBytes-1)/index.SpanBytes
	count := int64(len(l.c.Spans))
	return int(min(max(first, 0), count)), int(min(max(end, 0), count))
}

// Have reports whether [off, off+n) of the layer is here. It never blocks.
func (l *Layer) Have(off, n int64) bool {
	first, end := l.spanRange(off, n)
	for i := first; i < end; i++ {
		if !l.c.Store.Have(i) {
			return false
		}
	}
	return true
}

// Fetch makes [off, off+n) of the uncompressed layer be here, ahead of all
// that nobody waits for. It returns when the last byte is, or with the first
// error; parts that arrived stay.
func (l *Layer) Fetch(ctx context.Context, off, n int64) error {
	if l.Have(off, n) {
		return nil
	}
	start := time.Now()
	l.s.waiting.Add(1)
	defer func() {
		if l.s.waiting.Add(-1) == 0 {
			l.s.mu.Lock()
			l.s.wake.Broadcast()
			l.s.mu.Unlock()
		}
		l.stats.wait(start, time.Since(start))
	}()
	first, end := l.spanRange(off, n)
	for _, f := range l.claim(first, end) {
		select {
		case <-f.done:
			if f.err != nil {
				return f.err
			}
		case <-ctx.Done():
			return fmt.Errorf("wait for layer %s: %w", l.c.Store.Meta().Blob, ctx.Err())
		}
	}
	return nil
}

// claim returns the flights of all spans of [first, end) that are not here,
// starting those that nobody has started.
func (l *Layer) claim(first, end int) []*flight {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	var flights []*flight
	run := -1 // first span of the run that is to be started
	flush := func(i int) {
		if run >= 0 {
			l.start(run, i)
		}
		run = -1
	}
	for i := first; i < end; i++ {
		if l.c.Store.Have(i) {
			flush(i)
			continue
		}
		f := l.flights[i]
		if f != nil {
			flush(i)
		} else {
			f = &flight{done: make(chan struct{})}
			l.flights[i] = f
			if run < 0 {
				run = i
			}
		}
		flights = append(flights, f)
	}
	if run >= 0 {
		end = l.readAhead(run, end)
	}
	flush(end)
	return flights
}

// readAhead extends a foreground run that goes on where the last one ended,
// twice as far each time. Called with s.mu held.
func (l *Layer) readAhead(run, end int) int {
	if run == l.lastMiss+1 {
		l.ahead = min(max(2*l.ahead, 1), aheadMax)
	} else {
		l.ahead = 0
	}
	for range l.ahead {
		if end >= len(l.c.Spans) || l.flights[end] != nil || l.c.Store.Have(end) {
			break
		}
		l.flights[end] = &flight{done: make(chan struct{})}
		end++
	}
	l.lastMiss = end - 1
	return end
}

// start fetches the claimed run [first, end) for a reader. Called with s.mu
// held.
func (l *Layer) start(first, end int) {
	if l.closed || l.s.closed {
		l.land(first, end, ErrClosed)
		return
	}
	if l.stream {
		l.startStream()
		return
	}
	l.s.wg.Add(1)
	l.wg.Go(func() {
		defer l.s.wg.Done()
		err := l.s.readers.Acquire(l.ctx, 1)
		if err == nil {
			err = l.transfer(first, end, true)
			l.s.readers.Release(1)
		}
		l.settle(first, end, err)
	})
}

// settle ends the flights of a run: those whose span is here well, the others
// with err.
func (l *Layer) settle(first, end int, err error) {
	if err == nil {
		err = errors.New("span did not arrive")
	} else if l.ctx.Err() != nil {
		err = ErrClosed
	}
	l.s.mu.Lock()
	l.land(first, end, err)
	l.s.mu.Unlock()
	l.checkFinished()
}

// land ends the flights of [first, end) that are still in the air. Called with
// s.mu held.
func (l *Layer) land(first, end int, err error) {
	for i := first; i < end; i++ {
		f := l.flights[i]
		if f == nil {
			continue
		}
		if !l.c.Store.Have(i) {
			f.err = err
			l.cursor = min(l.cursor, i)
		}
		delete(l.flights, i)
		close(f.done)
	}
}

// arrived ends the flight of a span that is here now.
func (l *Layer) arrived(i int) {
	l.s.mu.Lock()
	l.land(i, i+1, nil)
	l.s.mu.Unlock()
}

// checkFinished proves the layer once all its spans are here.
func (l *Layer) checkFinished() {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	if l.finishing || l.closed || l.s.closed || len(l.flights) > 0 {
		return
	}
	for i := l.cursor; i < len(l.c.Spans); i++ {
		if !l.c.Store.Have(i) {
			return
		}
		l.cursor = i + 1
	}
	l.finishing = true
	l.s.wg.Add(1)
	l.wg.Go(func() {
		defer l.s.wg.Done()
		var err error
		if !l.c.Store.Complete() {
			err = l.c.Store.Finish(l.ctx)
		}
		if l.ctx.Err() != nil {
			return // shut down: a later scheduler proves it
		}
		l.s.remove(l)
		if l.c.Finished != nil {
			l.c.Finished(err)
		}
		close(l.finished)
	})
}

// Err returns why the background made no progress of late, or nil.
func (l *Layer) Err() error {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	if l.failures < giveUpFailures {
		return nil
	}
	return l.lastErr
}

// FetchedBytes is how many compressed bytes of the layer were fetched.
func (l *Layer) FetchedBytes() int64 {
	l.stats.mu.Lock()
	defer l.stats.mu.Unlock()
	return l.stats.fetchedBytes
}
