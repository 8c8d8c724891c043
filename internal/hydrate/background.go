package hydrate

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/thaw-project/thaw/internal/index"
	"github.com/thaw-project/thaw/internal/registry"
)

const (
	// runBytes is the largest compressed size of a transfer, see path: large enough that a round
	// trip of 20 ms does not dominate at 60 MB/s a connection, small enough that
	// a reader never waits long behind one, and room for two spans that do not compress.
	runBytes = 2<<20 + 64<<10
	// giveUpFailures is how often the background fails in a row before those
	// who wait for the whole layer are told.
	giveUpFailures = 2
	// advanceBytes is how much of a layer is hashed ahead of its end after each
	// background transfer: more than the transfer brought.
	advanceBytes = 16 << 20
	// quiet is how long no reader may have waited before work is done that nobody
	// needs soon: hashing what is here.
	quiet = time.Second
	// yieldShare is how many times as long as it received the background pauses
	// while a reader waits: it has a fifth of a connection's time then, however
	// fast the network is, and cannot starve behind readers who always wait.
	yieldShare = 4
	yieldLeast = 2 * time.Millisecond
	yieldMost  = 100 * time.Millisecond
	// maxBackgroundStreams bounds the layers that are streamed with nobody waiting.
	maxBackgroundStreams = 2
)

// backlog is what the background has to do for a layer. Guarded by s.mu.
type backlog struct {
	near     []int        // spans that come before all others, see Neighbours
	cursor   int          // spans before it are here, in flight or bad
	bad      map[int]bool // arrived wrong twice; tried again when the rest is here
	badAt    time.Time    // not before
	retryAt  time.Time    // nothing of the layer before
	failures int          // in a row
	lastErr  error
}

// delay is how long to wait after the failures so far.
func (b *backlog) delay() time.Duration { return time.Second << min(max(b.failures-1, 0), 5) }

// background is one worker: it takes the next run of any layer and fetches it,
// until the scheduler is closed.
func (s *Scheduler) background() {
	for {
		s.checkRoom(s.ctx)
		l, r, ok := s.take()
		if !ok {
			return
		}
		if l == nil {
			continue
		}
		err := l.transfer(r)
		s.transferred()
		l.backOff(err)
		l.settle(r, err)
		l.tried(r)
		if final(err) {
			l.conclude(err)
		}
		if err == nil && (l.hurry.Load() || s.quietFor() >= quiet) {
			if _, err := l.c.Store.Advance(l.ctx, advanceBytes); err != nil && l.ctx.Err() == nil {
				s.opts.Log.Warn("hash layer ahead", "layer", l.c.Store.Meta().Blob, "err", err)
			}
		}
		l.wg.Done()
	}
}

// quietFor is how long no reader has waited.
func (s *Scheduler) quietFor() time.Duration {
	if s.waiting.Load() > 0 {
		return 0
	}
	return time.Since(time.Unix(0, s.lastWait.Load()))
}

// take waits for the next run of the background and claims it. The layer is
// nil when it is time to look for room again; not ok: the scheduler is closed.
func (s *Scheduler) take() (_ *Layer, _ *run, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if s.closed {
			return nil, nil, false
		}
		if s.full.err != nil && !time.Now().Before(s.full.again) {
			return nil, nil, true
		}
		if l, r := s.nextWanted(); r != nil {
			l.wg.Add(1)
			s.transfers++
			return l, r, true
		}
		var soonest time.Time
		for n := range s.layers {
			at := (s.next + n) % len(s.layers)
			l := s.layers[at]
			r, again := l.nextRun()
			if r != nil {
				s.next = at + 1 // the next layer's turn
				l.wg.Add(1)
				s.transfers++
				return l, r, true
			}
			if !again.IsZero() && (soonest.IsZero() || again.Before(soonest)) {
				soonest = again
			}
		}
		if soonest.IsZero() {
			s.wake.Wait()
			continue
		}
		t := time.AfterFunc(time.Until(soonest), func() { s.mu.Lock(); s.wake.Broadcast(); s.mu.Unlock() })
		s.wake.Wait()
		t.Stop()
	}
}

// transferred ends a transfer of the background.
func (s *Scheduler) transferred() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.transfers--
	if time.Now().Before(s.streamUntil) {
		s.wake.Broadcast()
	}
}

// nextRun claims the next spans that the background should fetch, or says when
// to ask again (zero: when something changes). Called with s.mu held.
func (l *Layer) nextRun() (*run, time.Time) {
	now := time.Now()
	l.tryFinish()
	switch {
	case l.closed || l.concluded:
		return nil, time.Time{}
	case now.Before(l.finishAt):
		return nil, l.finishAt
	case l.finishing || l.c.RateBytes < 0 && !l.hurry.Load():
		return nil, time.Time{}
	case now.Before(l.retryAt):
		return nil, l.retryAt
	case l.out != nil && l.upstream.trying > 0: // one finds out for all
		return nil, now.Add(retryMost)
	case l.s.full.err != nil:
		return nil, l.s.full.again
	case now.Before(l.s.feedUntil):
		return nil, l.s.feedUntil
	case now.Before(l.s.holdUntil) && !l.hurry.Load():
		return nil, l.s.holdUntil
	case now.Before(l.s.streamUntil) && l.s.transfers > 0 && !l.hurry.Load(): // one, so that it does not starve
		return nil, l.s.streamUntil
	case l.streams():
		if l.front < len(l.c.Spans) && l.s.streams < maxBackgroundStreams {
			l.startStream()
		}
		return nil, time.Time{}
	}
	if r := l.claimNext(); r != nil {
		if l.out != nil {
			r.tries = true
			l.upstream.trying++
		}
		return r, time.Time{}
	}
	if len(l.bad) == 0 {
		return nil, time.Time{}
	}
	if now.Before(l.badAt) {
		return nil, l.badAt
	}
	l.cursor = slices.Min(slices.Collect(maps.Keys(l.bad)))
	clear(l.bad)
	return l.claimNext(), time.Time{}
}

// tried ends the background's transfer of a layer in an outage.
func (l *Layer) tried(r *run) {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	if r.tries {
		r.tries = false
		l.upstream.trying--
	}
}

// claimNext claims the next of the neighbours, or else the run at the cursor.
func (l *Layer) claimNext() *run {
	if r := l.claimNear(); r != nil {
		return r
	}
	for l.cursor < len(l.c.Spans) && !l.free(l.cursor) {
		l.cursor++
	}
	if l.cursor == len(l.c.Spans) {
		return nil
	}
	r, most := newRun(l.cursor, l.cursor+1), l.upstream.path.runBytes(l.s.runBytes)
	for r.end < len(l.c.Spans) && l.free(r.end) && l.runSize(r.first, r.end+1) <= most {
		r.end++
	}
	l.claimRun(r)
	l.cursor = r.end
	return r
}

// backOff delays the layer's background after a failure, longer each time. A
// span that is wrong delays only itself.
func (l *Layer) backOff(err error) {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	if err == nil {
		l.failures, l.lastErr = 0, nil
		return
	}
	if l.ctx.Err() != nil || errors.Is(err, registry.ErrNoRanges) {
		return
	}
	l.failures, l.lastErr = l.failures+1, err
	if fromSource(err) { // sourceFailed logs it
		l.retryAt = time.Now().Add(min(l.backlog.delay(), retryBackground))
		return
	}
	at := time.Now().Add(l.backlog.delay())
	var wrong *index.SpanError
	if errors.As(err, &wrong) {
		l.badAt = at
	} else {
		l.retryAt = at
	}
	l.s.opts.Log.Warn("background hydration paused", "layer", l.c.Store.Meta().Blob, "err", err, "retry_in", l.backlog.delay().String())
}

// Err returns why the background made no progress of late, or nil.
func (l *Layer) Err() error {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	if l.failures < giveUpFailures {
		return l.noRoom()
	}
	if l.out != nil && time.Since(later(l.out.since, l.hurryAt)) < min(giveUpAfter, l.s.opts.ReadTimeout) {
		return nil
	}
	return l.lastErr
}

// pace makes the background keep its rates: n compressed bytes come next. It
// stops waiting when urgent is closed.
func (l *Layer) pace(ctx context.Context, urgent <-chan struct{}, n int64) error {
	for n > 0 {
		part, now := int(min(n, l.s.runBytes)), time.Now()
		wait := max(l.limit.ReserveN(now, part).DelayFrom(now), l.s.limit.ReserveN(now, part).DelayFrom(now))
		n -= int64(part)
		if wait <= 0 {
			continue
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-urgent:
			t.Stop()
			return nil
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		}
	}
	return nil
}

// yield pauses a background transfer of the layer, whose last n bytes took that
// long, while a reader waits, unless for it (urgent is closed): its connection fills
// up and the network is the reader's. What has come into the connection's buffer by
// then takes no time, which a sequential reader would notice: while there is one it
// counts what those bytes took to come.
func (l *Layer) yield(ctx context.Context, urgent <-chan struct{}, took time.Duration, n int) {
	s := l.s
	s.mu.Lock()
	streaming, rate := time.Now().Before(s.streamUntil), l.upstream.path.rate
	s.mu.Unlock()
	if s.waiting.Load() == 0 && !streaming {
		return
	}
	if streaming && rate > 0 {
		took = max(took, time.Duration(float64(n)/rate*float64(time.Second)))
	}
	t := time.NewTimer(min(max(yieldShare*took, yieldLeast), yieldMost))
	defer t.Stop()
	select {
	case <-t.C:
	case <-urgent:
	case <-ctx.Done():
	}
}
