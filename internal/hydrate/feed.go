package hydrate

import (
	"context"
	"sync"
	"time"

	"github.com/thaw-project/thaw/internal/index"
)

const (
	// feedPatience is how far away in a stream something may be that a reader
	// waits for, rather than have it fetched: about what a request of its own takes.
	feedPatience = 60 * time.Millisecond
	// feedFirstByte is how long a stream is given until its first bytes.
	feedFirstByte = 150 * time.Millisecond
	// feedSlack is how much later than foreseen something may come.
	feedSlack = 40 * time.Millisecond
	// feedStall is how long the background waits for a stream that brings nothing.
	feedStall = time.Second
	// maxHold bounds how long the background is held back at a stretch.
	maxHold = 15 * time.Second
)

// Feed is a stream that brings pieces of layers, frame by frame, in the order in
// which readers are expected to want them. While it goes on the background waits.
type Feed struct {
	s     *Scheduler
	begun time.Time

	mu       sync.Mutex // guards what follows
	ends     []int64    // of the frames, in the stream
	received int64      // bytes of the stream that are here
	first    time.Time  // when the first ones came
	changed  chan struct{}
	closed   bool
}

// layerFeed says in which frame each piece of a layer comes.
type layerFeed struct {
	feed   *Feed
	frames []int
}

// NewFeed announces a stream whose frames end at the given bytes of it.
func (s *Scheduler) NewFeed(ends []int64) *Feed {
	s.AwaitFeed()
	return &Feed{s: s, begun: time.Now(), ends: ends, changed: make(chan struct{})}
}

// Feed tells the layer that a stream brings its pieces: frames has the frame of
// each piece of the table that its store was given.
func (l *Layer) Feed(f *Feed, frames []int) { l.feed.Store(&layerFeed{f, frames}) }

// Received says that n more bytes of the stream are here.
func (f *Feed) Received(n int64) {
	now := time.Now()
	f.mu.Lock()
	if f.received == 0 {
		f.first = now
	}
	f.received += n
	f.mu.Unlock()
	if now.Sub(f.begun) < maxHold { // one that trickles does not hold all others back
		f.s.AwaitFeed()
	}
}

// Applied says that pieces have been put into their layers.
func (f *Feed) Applied() {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.changed)
	f.changed = make(chan struct{})
}

// Close ends the stream: nothing more comes by it. The background of layers whose
// whole nobody waits for stays back until then, unless Resume is called before.
func (f *Feed) Close(then time.Time) {
	f.mu.Lock()
	if !f.closed {
		f.closed = true
		close(f.changed)
		f.changed = make(chan struct{})
	}
	f.mu.Unlock()
	f.s.release(then)
}

// wait says when frame is expected, how long it is worth waiting for that, and
// what is closed when something came. Not worth it: 0.
func (f *Feed) wait(frame int) (time.Duration, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	switch {
	case f.closed:
		return 0, nil
	case f.received == 0:
		return max(0, feedFirstByte-now.Sub(f.begun)), f.changed
	}
	left := f.ends[frame] - f.received
	if left <= 0 {
		return feedSlack, f.changed // it is being unpacked
	}
	took := max(now.Sub(f.first), time.Millisecond)
	eta := time.Duration(float64(took) * float64(left) / float64(f.received))
	if eta > feedPatience {
		return 0, nil
	}
	return eta + feedSlack, f.changed
}

// fed reports whether a stream brings what is missing of [off, off+n), which is
// within one span.
func (l *Layer) fed(off, n int64) bool {
	if l.feed.Load() == nil {
		return false
	}
	_, enough := l.c.Store.MissingPieces(off, n)
	return enough
}

// lastFrame returns the last frame that brings anything of [off, off+n), spans
// aside that need more than pieces, and its feed; or -1.
func (l *Layer) lastFrame(off, n int64) (*Feed, int) {
	frame := -1
	lf := l.feed.Load()
	if lf == nil {
		return nil, frame
	}
	for end := off + min(n, l.c.Store.Meta().TarBytes-off); off < end; {
		border := min(end, (off/index.SpanBytes+1)*index.SpanBytes)
		if missing, enough := l.c.Store.MissingPieces(off, border-off); enough {
			for _, i := range missing {
				if i < len(lf.frames) { // else another table is in its place by now
					frame = max(frame, lf.frames[i])
				}
			}
		}
		off = border
	}
	return lf.feed, frame
}

// awaitFeed waits for what a stream brings of [off, off+n), as long as that is
// about to come and sooner than by a request of its own.
func (l *Layer) awaitFeed(ctx context.Context, off, n int64) {
	var until time.Time
	for {
		feed, frame := l.lastFrame(off, n)
		if frame < 0 {
			return
		}
		worth, changed := feed.wait(frame)
		if worth == 0 {
			return
		}
		if until.IsZero() {
			until = time.Now().Add(worth)
		}
		if _, again := l.lastFrame(off, n); again != frame {
			continue // it came before changed was made
		}
		t := time.NewTimer(time.Until(until))
		select {
		case <-changed:
			t.Stop()
		case <-t.C:
			return
		case <-ctx.Done():
			t.Stop()
			return
		case <-l.ctx.Done():
			t.Stop()
			return
		}
	}
}

// AwaitFeed keeps the background from starting anything for a moment: a feed is
// about to come, or brings something.
func (s *Scheduler) AwaitFeed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if now.After(s.feedUntil) && now.After(s.holdUntil) {
		s.held = now
	}
	s.feedUntil = s.bound(now.Add(feedStall))
}

// bound shortens a hold to what is allowed. Called with mu held.
func (s *Scheduler) bound(until time.Time) time.Time {
	if most := s.held.Add(maxHold); until.After(most) {
		return most
	}
	return until
}

// release ends the wait for feeds, and has idle layers wait until then.
func (s *Scheduler) release(then time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.feedUntil, s.holdUntil = time.Time{}, s.bound(then)
	s.wake.Broadcast()
}

// Resume lets the background go on that feeds hold back.
func (s *Scheduler) Resume() { s.release(time.Time{}) }
