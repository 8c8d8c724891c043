package hydrate

import (
	"context"
	"errors"
	"sync/atomic"

	"golang.org/x/sync/semaphore"

	"github.com/thaw-project/thaw/internal/index"
	"github.com/thaw-project/thaw/internal/registry"
)

// run is spans [first, end) of a layer that are fetched together. Its flights
// are ended by it and by nobody else, but for a stream, which ends all.
type run struct {
	first, end int
	prefetch   bool          // does not make way for readers
	urgent     chan struct{} // closed once someone waits for one of its spans
	progress   atomic.Int64  // when the last byte came, in Unix ns

	// Guarded by Scheduler.mu.
	promoted bool                    // urgent is closed
	cancel   context.CancelCauseFunc // ends its transfer; nil while it has none
	asking   bool                    // somebody finds out whether it is stuck
	tries    bool                    // it is the background's and counted in upstream.trying
	ahead    int64                   // bytes to come of what was asked for ahead of a reader
}

func newRun(first, end int) *run { return &run{first: first, end: end, urgent: make(chan struct{})} }

// promote says that someone waits. Called with s.mu held, or before the run is
// shared.
func (r *run) promote() {
	if !r.promoted {
		r.promoted = true
		close(r.urgent)
	}
}

// isUrgent reports whether someone waits.
func (r *run) isUrgent() bool {
	select {
	case <-r.urgent:
		return true
	default:
		return false
	}
}

// flight is a span that is being fetched. err is set before done is closed.
type flight struct {
	done chan struct{}
	err  error
	run  *run
}

// claimRun puts the spans of a run in the air. Called with s.mu held; none of
// them is in the air or here.
func (l *Layer) claimRun(r *run) {
	for i := r.first; i < r.end; i++ {
		l.flights[i] = &flight{done: make(chan struct{}), run: r}
	}
}

// start fetches a claimed run for a reader. Called with s.mu held.
func (l *Layer) start(r *run) {
	if l.closed || l.s.closed || l.streams() {
		l.notAhead(r)
	}
	if l.closed || l.s.closed {
		l.land(r.first, r.end, nil, ErrClosed)
		return
	}
	if l.streams() {
		l.startStream()
		return
	}
	l.s.wg.Add(1)
	l.wg.Go(func() {
		defer l.s.wg.Done()
		l.settle(r, l.transferReader(r))
	})
}

// notAhead says that no more comes of what was asked for ahead of a reader. Called
// with s.mu held.
func (l *Layer) notAhead(r *run) {
	l.upstream.ahead -= r.ahead
	r.ahead = 0
}

// transferReader is transfer in one of the connections of readers.
func (l *Layer) transferReader(r *run) error {
	for _, slots := range []*semaphore.Weighted{l.upstream.readers, l.s.readers} {
		if err := slots.Acquire(l.ctx, 1); err != nil {
			return err
		}
		defer slots.Release(1)
	}
	return l.transfer(r)
}

// settle ends a run: spans that are here well, the others with err.
func (l *Layer) settle(r *run, err error) {
	l.s.mu.Lock()
	l.notAhead(r)
	if errors.Is(err, registry.ErrNoRanges) && l.c.Stream != nil && !l.closed && !l.s.closed {
		// The flights stay in the air: the stream brings them down.
		l.noRanges = true
		l.startStream()
		l.s.mu.Unlock()
		return
	}
	l.sourceFailed(err)
	l.land(r.first, r.end, r, l.reason(err))
	l.s.mu.Unlock()
	l.checkFinished()
}

// reason is what those are told whose span did not come.
func (l *Layer) reason(err error) error {
	switch {
	case l.ctx.Err() != nil:
		return ErrClosed
	case err == nil:
		return errors.New("span did not arrive")
	}
	return err
}

// land ends the flights of [first, end) that belong to a run, or with a nil one
// all of them. Called with s.mu held.
func (l *Layer) land(first, end int, r *run, err error) {
	missing := false
	for i := first; i < end; i++ {
		f := l.flights[i]
		if f == nil || r != nil && f.run != r {
			continue
		}
		if !l.c.Store.Have(i) {
			f.err = err
			missing = true
			var wrong *index.SpanError
			if errors.As(err, &wrong) {
				l.bad[i] = true
			} else {
				l.cursor = min(l.cursor, i)
			}
		}
		delete(l.flights, i)
		close(f.done)
	}
	if missing {
		l.s.wake.Broadcast()
	}
}

// arrived ends the flight of a span that is here now, whosever it is.
func (l *Layer) arrived(i int) {
	l.s.mu.Lock()
	l.land(i, i+1, nil, errors.New("span did not stay"))
	l.s.mu.Unlock()
}

// refused ends the flight of one span of a run with its own error, so that it
// is not told to those who wait for others.
func (l *Layer) refused(r *run, err *index.SpanError) {
	l.s.mu.Lock()
	l.land(err.Span, err.Span+1, r, err)
	l.s.mu.Unlock()
}
