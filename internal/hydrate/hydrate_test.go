package hydrate

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/thaw-project/thaw/internal/index"
	"github.com/thaw-project/thaw/internal/layertar/layertartest"
	"github.com/thaw-project/thaw/internal/registry"
)

func TestBackgroundCompletes(t *testing.T) {
	big, tar := bigTar(), new(layertartest.Builder).File("f", layertartest.Fill(1, 4<<20)).End().Bytes()
	for name, c := range map[string]struct{ tar, blob []byte }{
		"plain": {tar, tar}, "gzip": {tar, layertartest.Gzip(tar, 1)}, "gzip members": {tar, layertartest.Gzip(tar, 5)},
		"zstd frames": {tar, append(zstdFrame(tar[:3<<20]), zstdFrame(tar[3<<20:])...)},
		"zstd frame":  {big, zstdFrame(big)}, // too long to be entered in its middle
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, newSource(c.tar, c.blob), setup{})
			w.mustFetch(3)
			w.complete()
			if w.layer.FetchedBytes() < int64(len(c.blob)) {
				t.Errorf("%d bytes fetched of %d", w.layer.FetchedBytes(), len(c.blob))
			}
		})
	}
}

func TestEmptyLayer(t *testing.T) {
	w := newWorld(t, newSource(nil, nil), setup{})
	w.complete()
	if err := w.layer.Fetch(t.Context(), 0, 1<<40); err != nil {
		t.Error(err)
	}
}

func TestOneFetchHoweverManyWait(t *testing.T) {
	gate := make(chan struct{})
	w := newWorld(t, gzipSource(), setup{config: off, answer: func(ctx context.Context, _ int, _ request, body []byte) (io.Reader, error) {
		return gated(ctx, gate, body)
	}})
	var wg sync.WaitGroup
	started := make(chan struct{}, 30)
	for range 30 {
		wg.Go(func() {
			started <- struct{}{}
			if err := w.layer.Fetch(t.Context(), 3*index.SpanBytes-5, 10); err != nil { // two spans
				t.Error(err)
			}
		})
	}
	for range 30 {
		<-started
	}
	close(gate)
	wg.Wait()
	w.check(2)
	w.check(3)
	if n := w.data.count(); n != 1 {
		t.Errorf("%d requests %v, want 1", n, w.data.requests)
	}
}

// TestReaderBeforeBackground: the background is stuck with all its workers and
// memory; a reader is served.
func TestReaderBeforeBackground(t *testing.T) {
	gate := make(chan struct{})
	stuck := make(chan struct{}, 10)
	var mu sync.Mutex
	readers := false
	w := newWorld(t, gzipSource(), setup{opts: Options{Background: 3, MemoryBytes: 3 << 20, Decoders: 1},
		answer: func(ctx context.Context, i int, r request, body []byte) (io.Reader, error) {
			mu.Lock()
			defer mu.Unlock()
			if readers {
				return bytes.NewReader(body), nil
			}
			stuck <- struct{}{}
			return &blocking{ctx, gate, bytes.NewReader(body)}, nil
		}})
	<-stuck // one holds all memory of the background
	mu.Lock()
	readers = true
	mu.Unlock()
	// Also where the background has claimed a span and waits for memory.
	stop := w.data.requests[0].off + w.data.requests[0].n
	for i, s := range w.src.index.Spans {
		if s.OffsetCompressed >= stop {
			w.mustFetch(i)
		}
	}
	close(gate)
	w.complete()
}

// TestReaderOvertakesRate: the background has claimed a span and waits for its
// rate; a reader who wants it does not.
func TestReaderOvertakesRate(t *testing.T) {
	src := gzipSource()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, src, setup{opts: Options{RateBytes: 1000, MemoryBytes: 3 << 20, Background: 2}})
		defer w.close()
		synctest.Wait()
		start := time.Now()
		for i := range src.index.Spans {
			w.mustFetch(i)
		}
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("a reader waited %v", took)
		}
	})
}

// blocking gives nothing before the gate opens.
type blocking struct {
	ctx  context.Context
	gate <-chan struct{}
	r    io.Reader
}

func (b *blocking) Read(p []byte) (int, error) {
	select {
	case <-b.gate:
		return b.r.Read(p)
	case <-b.ctx.Done():
		return 0, b.ctx.Err()
	}
}

func TestCancelOneWaiter(t *testing.T) {
	gate, asked := make(chan struct{}), make(chan struct{})
	w := newWorld(t, gzipSource(), setup{config: off, answer: func(ctx context.Context, i int, _ request, body []byte) (io.Reader, error) {
		close(asked)
		return gated(ctx, gate, body)
	}})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := w.layer.Fetch(ctx, 0, 1); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v of the cancelled", err)
		}
	})
	<-asked
	other := make(chan error, 1)
	go func() { other <- w.fetch(0) }()
	cancel()
	wg.Wait()
	close(gate)
	if err := <-other; err != nil {
		t.Errorf("error %v of the other", err)
	}
	if n := w.data.count(); n != 1 {
		t.Errorf("%d requests", n)
	}
}

func TestCloseWithWaiters(t *testing.T) {
	for _, what := range []string{"layer", "scheduler"} {
		t.Run(what, func(t *testing.T) {
			asked := make(chan struct{}, 20)
			never := make(chan struct{})
			w := newWorld(t, gzipSource(), setup{answer: func(ctx context.Context, _ int, _ request, body []byte) (io.Reader, error) {
				asked <- struct{}{}
				return gated(ctx, never, body)
			}})
			errs := make(chan error, 10)
			for i := range 10 {
				go func() { errs <- w.fetch(i) }()
			}
			<-asked
			if what == "layer" {
				w.layer.Close()
			} else {
				w.sched.Close()
			}
			for range 10 {
				if err := <-errs; !errors.Is(err, ErrClosed) {
					t.Errorf("error %v", err)
				}
			}
			if err := w.fetch(11); !errors.Is(err, ErrClosed) {
				t.Errorf("error %v after close", err)
			}
			w.layer.Close() // again
		})
	}
}

// TestReadAhead: a reader that goes on in order asks ever less often.
func TestReadAhead(t *testing.T) {
	var b layertartest.Builder
	tar := b.File("f", layertartest.Fill(1, 70<<20)).End().Bytes()
	w := newWorld(t, newSource(tar, tar), setup{config: off})
	for i := range w.src.index.Spans {
		w.mustFetch(i)
	}
	runs := w.data.count()
	if runs > len(w.src.index.Spans)*2/3 { // plain: a run has two spans
		t.Errorf("%d requests for %d spans", runs, len(w.src.index.Spans))
	}
	var tl tails
	now := time.Now()
	nothing := func(int) bool { return false }
	got := []int{}
	next := 0
	for range 6 { // each time at what comes after what it was given
		x := tl.follow(next, next+1, now, nothing)
		got = append(got, x.ahead)
		next += 1 + x.ahead
		x.next = next
	}
	if d := cmp.Diff([]int{0, 1, 4, 32, aheadMax, aheadMax}, got); d != "" {
		t.Error(d)
	}
	for i := range 20 { // readers at random places, and the old one goes on, where it was given something too
		at := 1000 + 100*i
		if x := tl.follow(at, at+1, now, nothing); x.ahead != 0 {
			t.Errorf("%d spans ahead of a random reader", x.ahead)
		}
		x := tl.follow(next-aheadMax/2, next-aheadMax/2+1, now, nothing)
		if !x.streams() || x.next != next {
			t.Fatalf("the sequential reader is at %+v, was given all before span %d", x, next)
		}
		next++
		x.next = next
	}
	if x := tl.follow(next+tailSlack, next+tailSlack+1, now, func(int) bool { return true }); !x.streams() {
		t.Errorf("%d spans ahead of a reader who found some here", x.ahead)
	}
	if x := tl.follow(next-1, next, now, nothing); x.ahead != 0 {
		t.Errorf("%d spans ahead of a reader who went back", x.ahead)
	}
}

// TestStreamFillsTheLine: who reads in order has all of the network, without too much
// being asked for at once, and the background of other layers goes on beside it, slowly.
func TestStreamFillsTheLine(t *testing.T) {
	fill := func(seed int) *source {
		tar := new(layertartest.Builder).File("f", layertartest.Fill(seed, 100<<20)).End().Bytes()
		return newSource(tar, tar)
	}
	src, other := fill(1), fill(2)
	t.Run("alone", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, src, setup{config: off, answer: new(line).answer})
			var begun time.Time
			const from = 40 // it is known to read in order by then
			for i := range src.index.Spans {
				if i == from {
					begun = time.Now()
				}
				if err := w.fetch(i); err != nil {
					t.Fatal(err)
				}
			}
			if rate := float64(len(src.tar)-from*index.SpanBytes) / time.Since(begun).Seconds() / 1e6; rate < 0.94*250 {
				t.Errorf("a reader in order has %.0f MB/s of 250", rate)
			}
		})
	})
	synctest.Test(t, func(t *testing.T) {
		var net line
		w := newWorld(t, src, setup{config: off, answer: net.answer})
		behind := newWorld(t, other, setup{sched: w.sched, answer: net.answer})
		time.Sleep(50 * time.Millisecond) // the background has begun
		before := behind.layer.FetchedBytes()
		begun := time.Now()
		for i := range src.index.Spans {
			if err := w.fetch(i); err != nil {
				t.Fatal(err)
			}
		}
		took := time.Since(begun)
		rate := float64(len(src.tar)) / took.Seconds() / 1e6
		beside := float64(behind.layer.FetchedBytes()-before) / took.Seconds() / 1e6
		t.Logf("%.0f MB/s of 250, %.1f MB/s beside it; %d bytes asked for at most", rate, beside, w.data.maxInFlight)
		if rate < 0.7*250 { // 100 MB with the time that it takes to see that it is one
			t.Errorf("a reader in order has %.0f MB/s of 250", rate)
		}
		if beside == 0 || beside > 60 {
			t.Errorf("the background has %.1f MB/s beside it", beside)
		}
		if most := int64(2*aheadBytes + 2*runBytes); w.data.maxInFlight > most { // what has come of transfers under way counts too
			t.Errorf("%d bytes asked for at once, want %d at most", w.data.maxInFlight, most)
		}
		w.sched.mu.Lock()
		defer w.sched.mu.Unlock()
		if n := w.layer.upstream.ahead; n != 0 {
			t.Errorf("%d bytes are counted as under way when nothing is", n)
		}
	})
}

func TestRandomReadsFetchOnlyTheirs(t *testing.T) {
	w := newWorld(t, gzipSource(), setup{config: off})
	for _, i := range []int{11, 3, 8} {
		w.mustFetch(i)
	}
	for i := range w.src.index.Spans {
		if want := i == 11 || i == 3 || i == 8; w.stored.Have(i) != want {
			t.Errorf("span %d: here %v", i, !want)
		}
	}
}

func TestNoRangesStreams(t *testing.T) {
	src := gzipSource()
	for name, known := range map[string]bool{"found out": false, "known": true} {
		t.Run(name, func(t *testing.T) {
			streams := make(chan struct{}, 10)
			w := newWorld(t, src, setup{
				config: func(c *Config) {
					c.Stream = func(context.Context) io.ReadCloser {
						streams <- struct{}{}
						return io.NopCloser(bytes.NewReader(src.blob))
					}
					if known {
						c.NoRanges = func() bool { return true }
					}
				},
				answer: func(context.Context, int, request, []byte) (io.Reader, error) {
					return nil, &registry.Error{Op: "fetch blob", Err: registry.ErrNoRanges}
				}})
			var wg sync.WaitGroup
			for i := range src.index.Spans {
				wg.Go(func() {
					if err := w.fetch(i); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			w.complete()
			if n := len(streams); n != 1 {
				t.Errorf("%d streams", n)
			}
			if n := w.data.count(); known && n > 0 {
				t.Errorf("%d requests for ranges", n)
			}
		})
	}
}

func TestStreamFails(t *testing.T) {
	tar := bigTar()
	src := newSource(tar, zstdFrame(tar))
	var mu sync.Mutex
	n := 0
	w := newWorld(t, src, setup{config: func(c *Config) {
		c.RateBytes = -1
		c.Stream = func(context.Context) io.ReadCloser {
			mu.Lock()
			defer mu.Unlock()
			if n++; n == 1 {
				return io.NopCloser(io.MultiReader(bytes.NewReader(src.blob[:len(src.blob)/2]), failing{}))
			}
			return io.NopCloser(bytes.NewReader(src.blob))
		}
	}})
	last := len(src.index.Spans) - 1
	if err := w.fetch(last); !errors.Is(err, errTest) {
		t.Errorf("error %v", err)
	}
	w.mustFetch(last)
	w.complete()
}

func TestRate(t *testing.T) {
	src := gzipSource()
	for name, c := range map[string]struct {
		opts  Options
		layer int64
	}{"scheduler": {Options{RateBytes: 100_000}, 0}, "layer": {Options{}, 100_000}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				c.opts.MemoryBytes = 768 << 10 // a third is the most that comes at once
				w := newWorld(t, src, setup{opts: c.opts, config: func(cf *Config) { cf.RateBytes = c.layer }})
				defer w.close()
				w.complete()
				least := time.Duration(int64(len(src.blob))-256<<10) * time.Second / 100_000
				if took := time.Since(start); took < least || took > 2*least+10*time.Second {
					t.Errorf("%d bytes took %v, want %v at least", len(src.blob), took, least)
				}
			})
		})
	}
}

func TestBackgroundOff(t *testing.T) {
	src := gzipSource()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, src, setup{config: off})
		defer w.close()
		time.Sleep(time.Hour)
		if n := w.data.count(); n != 0 {
			t.Errorf("%d requests", n)
		}
		for i := range src.index.Spans { // readers alone complete it as well
			w.mustFetch(i)
		}
		w.complete()
	})
}

func TestMemoryBound(t *testing.T) {
	var b layertartest.Builder
	tar := b.File("f", layertartest.Fill(1, 40<<20)).End().Bytes()
	const bound = 9 << 20
	w := newWorld(t, newSource(tar, tar), setup{opts: Options{MemoryBytes: bound}})
	var wg sync.WaitGroup
	for i := range w.src.index.Spans {
		wg.Go(func() {
			if err := w.fetch(i); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	w.complete()
	if w.data.maxInFlight > bound {
		t.Errorf("%d bytes in flight, bound is %d", w.data.maxInFlight, bound)
	}
}

// TestHugeSpan: an index may claim that a span takes gigabytes; it is streamed.
func TestHugeSpan(t *testing.T) {
	src := *gzipSource()
	lb := *src.index
	lb.Layer = &index.Layer{LayerMeta: src.index.LayerMeta, Windows: src.index.Windows, Spans: append([]index.Span{}, src.index.Spans...)}
	lb.Spans[3].BytesCompressed = 1 << 40
	src.index = &lb
	w := newWorld(t, &src, setup{})
	w.mustFetch(3)
	w.complete()
	if n := w.data.count(); n != 0 {
		t.Errorf("%d requests for ranges", n)
	}
}

func TestStats(t *testing.T) {
	w := newWorld(t, gzipSource(), setup{config: off})
	w.mustFetch(1)
	w.mustFetch(1)
	w.mustFetch(8)
	before := w.layer.Waits()
	if n := before.Count(); n != 2 || before.Quantile(.99) < before.Quantile(.5) || before.Total() <= 0 {
		t.Errorf("waits %+v", before)
	}
	if since := (Waits{}).Plus(w.layer.Waits(), before); since.Count() != 0 || since.Total() != 0 || since.Quantile(.5) != 0 {
		t.Errorf("waits since %+v", since)
	}
	w.mustFetch(4)
	if since := (Waits{}).Plus(w.layer.Waits(), before); since.Count() != 1 || since.Quantile(.5) == 0 {
		t.Errorf("waits since %+v", since)
	}
	s := w.sched.Stats()
	if s.Waits.Count() != 3 || s.Fetched.Readers != w.layer.FetchedBytes() || s.Fetched.Background != 0 || s.Waiting != 0 || s.Outages != 0 {
		t.Errorf("all layers: %+v", s)
	}
}

// TestPrefetch: the background brings first what is wanted, in its order.
func TestPrefetch(t *testing.T) {
	gzipSource() // made outside of any bubble
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, gzipSource(), setup{opts: Options{Background: 1}, held: true})
		defer w.close()
		const mib = index.SpanBytes
		w.sched.Prefetch([]Want{{w.layer, 9 * mib, 10}, {w.layer, 4*mib + 5, 2 * mib}, {w.layer, 9*mib + 5, 10}, {w.layer, 1 << 40, 5}})
		w.complete()
		first := func(i int) int64 { return w.src.index.Spans[i].OffsetCompressed }
		if r := w.data.requests; len(r) < 3 || r[0].off != first(9) || r[1].off != first(4) || r[1].n < first(7)-first(4) || r[2].off != 0 {
			t.Errorf("requests %v", r)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, gzipSource(), setup{opts: Options{Background: 1}, held: true})
		defer w.close()
		const mib = index.SpanBytes
		w.sched.Neighbours([]Want{{w.layer, 9 * mib, 10}, {w.layer, 4*mib + 5, 2 * mib}, {w.layer, 9*mib + 5, 10}, {w.layer, 1 << 40, 5}})
		w.sched.Prefetch([]Want{{w.layer, 2 * mib, 10}, {w.layer, 9 * mib, 10}})
		w.complete()
		first := func(i int) int64 { return w.src.index.Spans[i].OffsetCompressed }
		if r := w.data.requests; len(r) < 4 || r[0].off != first(2) || r[1].off != first(9) || r[2].off != first(4) || r[2].n < first(7)-first(4) || r[3].off != 0 {
			t.Errorf("requests %v", r)
		}
	})
	w := newWorld(t, gzipSource(), setup{config: off})
	w.sched.Prefetch([]Want{{w.layer, 0, 1 << 40}})
	w.mustFetch(3)
	if n := w.data.count(); n != 1 {
		t.Errorf("%d requests of a layer without a background", n)
	}
}
