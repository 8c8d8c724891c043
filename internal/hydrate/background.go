package hydrate

import (
	"context"
	"errors"
	"time"

	"github.com/thaw-project/thaw/internal/inflate"
)

// background is one worker: it takes the next run of any layer and fetches it,
// until the scheduler is closed.
func (s *Scheduler) background() {
	for {
		l, first, end := s.take()
		if l == nil {
			return
		}
		size := l.c.Spans[end-1].OffsetCompressed + l.c.Spans[end-1].BytesCompressed - l.c.Spans[first].OffsetCompressed
		err := l.limit.WaitN(l.ctx, int(min(size, runBytes)))
		if err == nil {
			err = s.limit.WaitN(l.ctx, int(min(size, runBytes)))
		}
		if err == nil {
			err = l.transfer(first, end, false)
		}
		l.backOff(err)
		l.settle(first, end, err)
		l.wg.Done()
	}
}

// take waits for the next run of the background and claims it. The layer is
// nil when the scheduler is closed.
func (s *Scheduler) take() (*Layer, int, int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if s.closed {
			return nil, 0, 0
		}
		var soonest time.Time
		for n := range s.layers {
			l := s.layers[(s.next+n)%len(s.layers)]
			if l.closed || l.c.RateBytes < 0 {
				continue
			}
			if wait := time.Until(l.retryAt); wait > 0 {
				if soonest.IsZero() || l.retryAt.Before(soonest) {
					soonest = l.retryAt
				}
				continue
			}
			if first, end := l.nextRun(); first < end {
				s.next = (s.next + n) % len(s.layers)
				l.wg.Add(1)
				return l, first, end
			}
		}
		if !soonest.IsZero() {
			t := time.AfterFunc(time.Until(soonest), func() { s.mu.Lock(); s.wake.Broadcast(); s.mu.Unlock() })
			s.wake.Wait()
			t.Stop()
			continue
		}
		s.wake.Wait()
	}
}

// nextRun claims the next spans that are neither here nor in flight, up to
// runBytes compressed. Called with s.mu held.
func (l *Layer) nextRun() (int, int) {
	if l.stream {
		if !l.streaming && l.cursor < len(l.c.Spans) {
			l.startStream()
		}
		return 0, 0
	}
	for l.cursor < len(l.c.Spans) && (l.c.Store.Have(l.cursor) || l.flights[l.cursor] != nil) {
		l.cursor++
	}
	first, end, size := l.cursor, l.cursor, int64(0)
	for end < len(l.c.Spans) && !l.c.Store.Have(end) && l.flights[end] == nil {
		size += l.c.Spans[end].BytesCompressed
		if end > first && size > runBytes {
			break
		}
		l.flights[end] = &flight{done: make(chan struct{})}
		end++
	}
	l.cursor = end
	return first, end
}

// backOff delays the layer's background after a failure, longer each time.
func (l *Layer) backOff(err error) {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	if err == nil {
		l.failures, l.lastErr = 0, nil
		return
	}
	if l.ctx.Err() != nil {
		return
	}
	l.failures, l.lastErr = min(l.failures+1, 6), err
	l.retryAt = time.Now().Add(time.Second << (l.failures - 1))
	l.s.opts.Log.Warn("background hydration paused", "layer", l.c.Store.Meta().Blob, "err", err, "retry_in", time.Until(l.retryAt).Round(time.Second).String())
}

// yieldPause bounds one pause of the background, so that it cannot starve
// behind readers who always wait.
const yieldPause = 20 * time.Millisecond

// yield pauses a background transfer for a moment while a reader waits: its
// connection fills up and the network is the reader's.
func (s *Scheduler) yield(ctx context.Context) {
	if s.waiting.Load() == 0 {
		return
	}
	t := time.NewTimer(yieldPause)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// startStream hydrates the whole layer in order. Called with s.mu held; the
// flights of waiting readers are ended as their spans pass by.
func (l *Layer) startStream() {
	if l.streaming || l.closed || l.s.closed {
		return
	}
	l.streaming = true
	l.s.wg.Add(1)
	l.wg.Go(func() {
		defer l.s.wg.Done()
		err := l.streamAll()
		l.backOff(err)
		l.s.mu.Lock()
		l.streaming = false
		l.s.mu.Unlock()
		l.settle(0, len(l.c.Spans), err)
		l.s.mu.Lock()
		l.s.wake.Broadcast()
		l.s.mu.Unlock()
	})
}

func (l *Layer) streamAll() error {
	body := l.c.Stream(l.ctx)
	defer body.Close()
	i := 0
	result, err := inflate.Scan(l.ctx, body, inflate.ScanOptions{Format: l.c.Format, MaxBytes: l.c.Store.Meta().TarBytes}, func(s *inflate.Span) error {
		if i >= len(l.c.Spans) {
			return errors.New("layer unpacks to more than its index says")
		}
		if !l.c.Store.Have(i) {
			if err := l.c.Store.Put(i, s.Data); err != nil {
				return err
			}
		}
		l.arrived(i)
		i++
		return nil
	})
	l.stats.fetched(result.BytesCompressed)
	return err
}
