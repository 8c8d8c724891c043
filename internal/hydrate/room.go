package hydrate

import (
	"context"
	"time"
)

const (
	// roomInterval is how often a full disk is looked at again.
	roomInterval = time.Second
	// roomBytes is the room that is asked for: what a run of the background
	// unpacks to, if it packs well.
	roomBytes = 4 * runBytes
)

// full is what is known of a disk without room. Guarded by Scheduler.mu.
type full struct {
	err   error     // why the background must not write; nil: it may
	since time.Time // that it is so
	again time.Time // look again
}

// checkRoom asks whether the background may write. A full disk is asked about by
// one worker every roomInterval.
func (s *Scheduler) checkRoom(ctx context.Context) {
	if s.opts.Room == nil {
		return
	}
	s.mu.Lock()
	if s.full.err != nil && time.Now().Before(s.full.again) {
		s.mu.Unlock()
		return
	}
	s.full.again = time.Now().Add(roomInterval)
	s.mu.Unlock()
	err := s.opts.Room(ctx, roomBytes)
	if ctx.Err() != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err != nil && s.full.err == nil:
		s.full.since = time.Now()
		s.opts.Log.Warn("background hydration stops until there is room; only readers who wait are served", "missing_bytes", s.missing(), "err", err)
	case err == nil && s.full.err != nil:
		s.opts.Log.Info("there is room, background hydration goes on", "stopped", time.Since(s.full.since).Round(time.Second).String())
		s.wake.Broadcast()
	}
	s.full.err, s.full.again = err, time.Now().Add(roomInterval)
}

// missing is how many bytes of all layers are not here. Called with mu held.
func (s *Scheduler) missing() (n int64) {
	for _, l := range s.layers {
		n += l.missing()
	}
	return n
}

func (l *Layer) missing() int64 { return l.c.Store.Meta().TarBytes - l.c.Store.HaveBytes() }

// noRoom returns why the layer's background stands still for lack of room, if it
// has for a while. Called with s.mu held.
func (l *Layer) noRoom() error {
	full := l.s.full
	if full.err == nil || time.Since(full.since) < roomInterval || l.concluded || l.missing() == 0 || l.c.RateBytes < 0 && !l.hurry.Load() {
		return nil
	}
	return full.err
}

// waitRoom holds a stream up while there is no room and no reader waits for it.
func (l *Layer) waitRoom(ctx context.Context) error {
	for {
		l.s.checkRoom(ctx)
		l.s.mu.Lock()
		full := l.s.full.err != nil
		l.s.mu.Unlock()
		if !full || l.waiting.Load() > 0 {
			return nil
		}
		t := time.NewTimer(roomInterval)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		}
	}
}
