package hydrate

import (
	"errors"
	"math/rand/v2"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/thaw-project/thaw/internal/index"
)

const (
	// retryFirst and retryMost are the waits between two tries of those who wait
	// for a layer whose source fails; in between they double. They have the bytes
	// soon after the source is back.
	retryFirst = 50 * time.Millisecond
	retryMost  = time.Second
	// retryBackground is the longest such wait of the background.
	retryBackground = 4 * time.Second
	// attemptGiveUp is how long one transfer goes on by itself without any progress:
	// not for long, since it holds a connection and memory. Who waits for it tries
	// again.
	attemptGiveUp = 2 * time.Second
	// pauseReader and pauseBackground are how long a server's wish to be asked
	// later (Retry-After) is kept to.
	pauseReader     = 2500 * time.Millisecond
	pauseBackground = 15 * time.Second
	// giveUpAfter is how long those who wait for a whole layer, such as a pull, sit
	// an outage out, where that is not longer than a reader does.
	giveUpAfter = 20 * time.Second
	// sayAfter is what an outage of one failure has to last to be told of.
	sayAfter = 3 * time.Second
	// sayEvery is how often a lasting outage is logged.
	sayEvery = time.Minute
	// sayDamagedEvery is how often damaged spans of one layer are.
	sayDamagedEvery = 10 * time.Second
)

// upstream is what layers get their bytes from, such as a registry. It may not have
// all of the readers' connections and memory: when it hangs, they hang, and what
// other sources have is to be read nevertheless.
type upstream struct {
	name            string
	readers, memory *semaphore.Weighted

	// Guarded by Scheduler.mu.
	path   path
	out    map[*Layer]bool // layers that cannot be had at the moment
	trying int             // background transfers of such layers
	ahead  int64           // compressed bytes that were asked for ahead of readers and have not come
	since  time.Time       // when the first of them failed
	said   time.Time       // when it was logged last; zero when it is over
}

// upstream returns the source of that name. There are few of them, so they are
// kept. Called with s.mu held.
func (s *Scheduler) upstream(name string) *upstream {
	src := s.upstreams[name]
	if src == nil {
		memory := s.opts.MemoryBytes - s.opts.MemoryBytes/backgroundShare
		src = &upstream{name: name, out: map[*Layer]bool{},
			readers: semaphore.NewWeighted(int64(max(1, s.opts.Readers*3/4))),
			memory:  semaphore.NewWeighted(memory * 3 / 4)}
		s.upstreams[name] = src
	}
	return src
}

// sourceError says that a source did not give what was asked for. That may pass.
type sourceError struct{ error }

func (e *sourceError) Unwrap() error { return e.error }

func fromSource(err error) bool {
	var e *sourceError
	return errors.As(err, &e)
}

// outage is a time in which a layer's source does not give its bytes. Guarded by
// Scheduler.mu.
type outage struct {
	since    time.Time
	err      error // the last one
	failures int
	trying   bool          // a reader tries on behalf of all who wait
	next     time.Time     // nobody tries before
	changed  chan struct{} // closed and replaced at every change, closed at the end
}

// retryWait is the wait after so many failures in a row.
func retryWait(failures int) time.Duration {
	wait := min(retryFirst<<min(failures, 10), retryMost)
	return wait/2 + rand.N(wait/2)
}

func (o *outage) change() {
	close(o.changed)
	o.changed = make(chan struct{})
}

// hiccup reports whether an outage that lasts until now is not worth a word.
func (o *outage) hiccup(now time.Time) bool { return o.failures < 2 && now.Sub(o.since) < sayAfter }

// Outage describes an outage of a layer's source.
type Outage struct {
	Since time.Time
	Until time.Time // zero: it lasts
	Err   error     // the last answer
}

// sourceFailed notes that a transfer failed for want of its source. Called with
// s.mu held.
func (l *Layer) sourceFailed(err error) {
	if !fromSource(err) || l.ctx.Err() != nil || l.closed {
		return
	}
	now := time.Now()
	o := l.out
	if o == nil {
		o = &outage{since: now, changed: make(chan struct{})}
		l.out = o
		if len(l.upstream.out) == 0 {
			l.upstream.since = now
		}
		l.upstream.out[l] = true
	}
	o.err = err
	if !now.Before(o.next) { // transfers that fail at once are one failure
		o.failures++
		o.next = now.Add(retryWait(o.failures))
	}
	o.trying = false
	o.change()
	l.s.sayOutage(l, o, now)
}

// sayOutage logs an outage that is more than a hiccup, now and then. Called with
// s.mu held.
func (s *Scheduler) sayOutage(l *Layer, o *outage, now time.Time) {
	src := l.upstream
	if o.hiccup(now) || now.Sub(src.said) < sayEvery {
		return
	}
	src.said = now
	s.opts.Log.Warn("no bytes come, who needs them waits", "source", src.name, "since", now.Sub(src.since).Round(time.Second).String(),
		"layers", len(src.out), "waiting", s.waiting.Load(), "layer", l.c.Store.Meta().Blob, "last_answer", o.err)
}

// sourceAnswered notes that a layer's source has given bytes: the layer's outage
// is over, and that of others of the source may be.
func (l *Layer) sourceAnswered() {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	o := l.out
	if o == nil {
		return
	}
	now := time.Now()
	l.endOutage()
	if !o.hiccup(now) {
		l.healed = Outage{Since: o.since, Until: now, Err: o.err}
	}
	if fromSource(l.lastErr) {
		l.failures, l.lastErr = 0, nil
	}
	l.retryAt = time.Time{}
	clear(l.denied)
	for other := range l.upstream.out {
		other.retryAt, other.out.next = time.Time{}, now
		other.out.change()
	}
	l.s.wake.Broadcast()
	if len(l.upstream.out) == 0 && !l.upstream.said.IsZero() {
		l.upstream.said = time.Time{}
		l.s.opts.Log.Info("bytes come again", "source", l.upstream.name, "after", now.Sub(l.upstream.since).Round(time.Millisecond).String(),
			"waiting", l.s.waiting.Load())
	}
}

// endOutage forgets the layer's outage. Called with s.mu held.
func (l *Layer) endOutage() {
	if l.out != nil {
		close(l.out.changed)
		l.out = nil
	}
	delete(l.upstream.out, l)
}

// Outage returns the layer's outage, or its last one; nil if there was none.
func (l *Layer) Outage() *Outage {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	switch {
	case l.out != nil && !l.out.hiccup(time.Now()):
		return &Outage{Since: l.out.since, Err: l.out.err}
	case l.healed.Since.IsZero():
		return nil
	}
	healed := l.healed
	return &healed
}

// sayDamaged logs a damaged span, but not each of thousands.
func (l *Layer) sayDamaged(msg string, wrong *index.SpanError) {
	l.s.mu.Lock()
	d := &l.damaged
	if time.Since(d.said) < sayDamagedEvery {
		d.unsaid++
		l.s.mu.Unlock()
		return
	}
	unsaid := d.unsaid
	d.said, d.unsaid = time.Now(), 0
	l.s.mu.Unlock()
	l.s.opts.Log.Warn(msg, "layer", wrong.Layer, "span", wrong.Span, "err", wrong.Err, "others_since_last", unsaid)
}
