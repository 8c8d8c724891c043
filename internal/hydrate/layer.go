package hydrate

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/thaw-project/thaw/internal/index"
)

// maxSkipBytes is the output that may be discarded, and the compressed bytes
// that may be read, to get one span; beyond, the layer is hydrated as a stream.
const maxSkipBytes = 8 << 20

// Layer is a layer that is being hydrated.
type Layer struct {
	s        *Scheduler
	upstream *upstream
	c        Config
	windows  windows
	limit    *rate.Limiter // of the background
	ctx      context.Context
	cancel   context.CancelFunc
	wg       sync.WaitGroup
	waiting  atomic.Int64 // readers in Fetch
	hurry    atomic.Bool  // somebody waits for the whole layer
	feed     atomic.Pointer[layerFeed]

	// Guarded by s.mu.
	stream    bool // cannot be entered in its middle
	noRanges  bool // the same, until its source is asked again
	flights   map[int]*flight
	tails     tails
	streaming bool
	finishing bool
	concluded bool
	closed    bool
	front     int // spans before it are here
	backlog
	finishAt time.Time // not before, after a failure
	out      *outage   // nil while bytes come
	healed   Outage    // the last one that is over
	denied   map[int]denied
	hurryAt  time.Time
	damaged  struct { // what was logged of spans that arrived damaged
		said   time.Time
		unsaid int
	}

	finished chan struct{} // closed once Finished was called
	stats    stats
}

func newLayer(s *Scheduler, c Config) *Layer {
	l := &Layer{s: s, c: c, flights: map[int]*flight{}, limit: s.limiter(c.RateBytes), finished: make(chan struct{})}
	l.bad, l.denied = map[int]bool{}, map[int]denied{}
	s.mu.Lock()
	l.upstream = s.upstream(c.Source)
	s.mu.Unlock()
	l.ctx, l.cancel = context.WithCancel(s.ctx)
	l.windows.blob, l.windows.size, l.windows.ctx, l.windows.wg = c.Windows, c.BytesWindows, l.ctx, &s.wg
	largest := min(maxSkipBytes, s.opts.MemoryBytes/backgroundShare)
	for _, span := range c.Spans {
		if span.Skip > maxSkipBytes || span.BytesCompressed > largest {
			l.stream = true
		}
	}
	return l
}

// streams reports whether the layer is hydrated as a stream. Called with s.mu
// held.
func (l *Layer) streams() bool {
	if !l.stream && l.c.NoRanges != nil && l.c.NoRanges() {
		l.noRanges = true
	}
	return (l.stream || l.noRanges) && l.c.Stream != nil
}

// Done is closed when the layer is finished: proven, or refused.
func (l *Layer) Done() <-chan struct{} { return l.finished }

// Hurry says that somebody waits for the whole layer: from now on its
// background may use all CPUs, and it is proven as soon as it is here. A layer
// without a background gets one.
func (l *Layer) Hurry() {
	l.hurry.Store(true)
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	l.finishAt, l.hurryAt = time.Time{}, time.Now()
	l.s.wake.Broadcast()
}

// Close stops the layer's transfers and waits for them. Waiting readers get
// ErrClosed. It must not be called from Config.Finished.
func (l *Layer) Close() {
	l.s.mu.Lock()
	l.closed = true
	l.endOutage()
	l.s.mu.Unlock()
	l.cancel()
	l.s.remove(l)
	l.wg.Wait()
	l.windows.own.Wait()
}

// spanRange returns the spans that cover [off, off+n), clipped to the layer.
func (l *Layer) spanRange(off, n int64) (int, int) {
	tar := l.c.Store.Meta().TarBytes
	if off < 0 || n <= 0 || off >= tar {
		return 0, 0
	}
	end := off + min(n, tar-off)
	return int(off / index.SpanBytes), int(min((end+index.SpanBytes-1)/index.SpanBytes, int64(len(l.c.Spans))))
}

// Have reports whether [off, off+n) of the layer is here. It never blocks.
func (l *Layer) Have(off, n int64) bool {
	if off < 0 {
		return true
	}
	return l.c.Store.HaveRange(off, n)
}

// Fetch makes [off, off+n) of the uncompressed layer be here, ahead of all
// that nobody waits for; what lies outside the layer does not count. It returns
// when the last byte is, or with an error; parts that arrived stay. While the
// layer's source fails it waits, for Options.ReadTimeout, and returns a
// *ReadError then. An error is of this call only: a later Fetch tries anew.
func (l *Layer) Fetch(ctx context.Context, off, n int64) error {
	if l.Have(off, n) {
		return nil
	}
	start := time.Now()
	l.s.waiting.Add(1)
	l.waiting.Add(1)
	defer func() {
		l.waiting.Add(-1)
		l.s.lastWait.Store(time.Now().UnixNano())
		l.s.waiting.Add(-1)
		l.waited(time.Since(start))
	}()
	if _, frame := l.lastFrame(off, n); frame >= 0 {
		l.claim(off, n, true) // what the stream will not bring is asked for at once
		l.awaitFeed(ctx, off, n)
		if l.Have(off, n) {
			return nil
		}
	}
	return l.await(ctx, off, n)
}

// claim returns the flights of all spans that [off, off+n) needs, starting those
// that nobody has started. With unfed it leaves those out whose part of the range
// a stream brings.
func (l *Layer) claim(off, n int64, unfed bool) []*flight {
	first, end := l.spanRange(off, n)
	n = min(n, l.c.Store.Meta().TarBytes-off)
	needed := make([]bool, end-first)
	for i := first; i < end; i++ {
		from := max(off, int64(i)*index.SpanBytes)
		to := min(off+n, int64(i+1)*index.SpanBytes)
		needed[i-first] = !l.c.Store.HaveRange(from, to-from)
		if needed[i-first] && unfed {
			needed[i-first] = !l.fed(from, to-from)
		}
	}
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	here := func(i int) bool { return l.c.Store.Have(i) || l.flights[i] != nil }
	var runs []*run
	wait, last := -1, -1 // spans that are needed
	for i := first; i < end; i++ {
		if !needed[i-first] {
			continue
		}
		if last = i; wait < 0 {
			wait = i
		}
		if !here(i) {
			runs = l.extend(runs, i)
		}
	}
	if last >= 0 {
		now := time.Now()
		x := l.tails.follow(wait, last+1, now, here)
		if x.streams() {
			l.s.streamUntil = now.Add(streamMemory)
		}
		runs = l.readAhead(runs, x)
	}
	var flights []*flight
	for _, r := range runs {
		r.promote()
		l.claimRun(r)
	}
	for i := first; i < end; i++ {
		if f := l.flights[i]; f != nil && needed[i-first] {
			f.run.promote() // the background may have been first
			flights = append(flights, f)
		}
	}
	for _, r := range runs {
		l.start(r)
	}
	return flights
}

// readAhead adds what a reader is given beyond what it waits for. One who streams is
// given whole transfers, and the background leaves the network to it. Called with
// s.mu held.
func (l *Layer) readAhead(runs []*run, x *tail) []*run {
	if x.ahead == 0 {
		return runs
	}
	up, needed := l.upstream, len(runs)
	most := up.path.runBytes(l.s.runBytes)
	end := min(x.at+1+x.ahead, len(l.c.Spans))
	i := x.at + 1
	for ; i < end; i++ {
		if f := l.flights[i]; f != nil && x.streams() {
			f.run.promote()
		}
		n := len(runs)
		if l.flights[i] != nil || l.c.Store.Have(i) || n > 0 && i < runs[n-1].end {
			continue
		}
		size := l.runSize(i, i+1)
		if up.ahead+size > aheadBytes {
			break
		}
		runs = l.extend(runs, i)
		runs[len(runs)-1].ahead += size
		up.ahead += size
	}
	if n := len(runs); n > needed && x.streams() && i < len(l.c.Spans) && 2*runs[n-1].ahead < most {
		up.ahead -= runs[n-1].ahead // later, with what follows it
		runs = runs[:n-1]
	}
	if n := len(runs); n > 0 {
		x.next = max(x.next, runs[n-1].end)
	}
	return runs
}

// came notes that n bytes of a run have come. What was asked for ahead of a reader
// who streams makes room for more of that: a transfer begins before another ends, so
// that the line is never idle for a round trip.
func (l *Layer) came(r *run, n int) {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	if r.ahead == 0 {
		return
	}
	came := min(int64(n), r.ahead)
	r.ahead -= came
	l.upstream.ahead -= came
	now := time.Now()
	if l.upstream.ahead+l.upstream.path.runBytes(l.s.runBytes) > aheadBytes || !now.Before(l.s.streamUntil) {
		return
	}
	for i := range l.tails.list {
		x := &l.tails.list[i]
		if !x.streams() || now.Sub(x.when) > streamMemory {
			continue
		}
		for _, r := range l.readAhead(nil, x) {
			r.promote()
			l.claimRun(r)
			l.start(r)
		}
	}
}

// extend adds span i to the last run, or to a new one where it does not follow
// or the last is full: runs are fetched side by side.
func (l *Layer) extend(runs []*run, i int) []*run {
	if n := len(runs); n > 0 {
		if r := runs[n-1]; r.end == i && l.runSize(r.first, i+1) <= l.upstream.path.runBytes(l.s.runBytes) {
			r.end++
			return runs
		}
	}
	return append(runs, newRun(i, i+1))
}

// runSize is the number of compressed bytes that decode [first, end).
func (l *Layer) runSize(first, end int) int64 {
	start, stop := l.compressed(first, end)
	return stop - start
}

// compressed returns the range of the blob that decodes [first, end).
func (l *Layer) compressed(first, end int) (start, stop int64) {
	start = l.c.Spans[first].OffsetCompressed
	for _, s := range l.c.Spans[first:end] {
		start, stop = min(start, s.OffsetCompressed), max(stop, s.OffsetCompressed+s.BytesCompressed)
	}
	return start, stop
}
