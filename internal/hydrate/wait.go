package hydrate

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	digest "github.com/opencontainers/go-digest"

	"github.com/thaw-project/thaw/internal/index"
	"github.com/thaw-project/thaw/internal/registry"
)

const (
	// damagedRounds is how often a reader has a span fetched that arrives damaged;
	// each round asks twice, the second time past mirrors.
	damagedRounds = 2
	damagedPause  = time.Second
	// damagedMemory is for how long a span that came damaged in all rounds gets one
	// round only, for the same reason.
	damagedMemory = 30 * time.Second
	// deniedMemory is for how long a span that did not come in time is not waited
	// for anew: the kernel tries a read-ahead that failed again page by page.
	deniedMemory = time.Second
	maxDenied    = 4096
)

var errReadTimeout = errors.New("read timeout")

// ReadError says that a reader did not get its bytes.
type ReadError struct {
	Layer       digest.Digest
	First, Last int // spans
	Source      string
	Waited      time.Duration
	Err         error // the last answer; nil if none came
}

func (e *ReadError) Error() string {
	text := fmt.Sprintf("layer %s span %d", e.Layer, e.First)
	if e.Last > e.First {
		text = fmt.Sprintf("layer %s spans %d-%d", e.Layer, e.First, e.Last)
	}
	text += fmt.Sprintf(" did not come from %s within %s", e.Source, e.Waited.Round(time.Millisecond))
	if e.Err == nil {
		return text + ": no answer"
	}
	return text + ": last answer: " + e.Err.Error()
}

func (e *ReadError) Unwrap() error { return e.Err }

// Hint says what can be done.
func (e *ReadError) Hint() string {
	var wrong *index.SpanError
	var answer *registry.Error
	switch {
	case errors.As(e.Err, &wrong):
		return "the registry, or a proxy before it, damages this blob, or the index is wrong: thaw index verify"
	case errors.Is(e.Err, registry.ErrUnauthorized):
		return "log in again, or have the registry's token server looked at; the next read tries again"
	case errors.As(e.Err, &answer) && answer.Status == http.StatusTooManyRequests:
		return "the registry limits this node: log in, use a mirror, or lower --background; the next read tries again"
	case errors.Is(e.Err, registry.ErrNotFound):
		return "the image may have been deleted from the registry: push it again; the next read tries again"
	}
	return "see whether this node reaches the registry; the next read tries again, and --read-timeout is how long it waits"
}

// await brings [off, off+n) and tries again while their source fails, as
// long as Options.ReadTimeout.
func (l *Layer) await(ctx context.Context, off, n int64) error {
	if l.s.opts.ReadTimeout <= 0 {
		return l.try(ctx, off, n)
	}
	first, end := l.spanRange(off, n)
	begun := time.Now()
	if err := l.wasDenied(first, end, begun); err != nil {
		return err
	}
	ctx, cancel := context.WithDeadlineCause(ctx, begun.Add(l.s.opts.ReadTimeout), errReadTimeout)
	defer cancel()
	var last error
	tooLate := func(err error) error {
		if context.Cause(ctx) != errReadTimeout {
			return err
		}
		return l.deny(first, end, begun, last)
	}
	failures := 0 // in a row
	for rounds := l.rounds(first, end, begun); ; {
		turn, err := l.turn(ctx)
		if err == nil {
			err = l.try(ctx, off, n)
			l.endTurn(turn)
		}
		var wrong *index.SpanError
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return tooLate(err)
		case errors.As(err, &wrong):
			last, failures = err, 0
			if rounds--; rounds == 0 || sleep(ctx, damagedPause) != nil {
				return l.deny(first, end, begun, last)
			}
		case fromSource(err):
			last = err
			// The outage is over as soon as anything of the layer comes, which may
			// not be what this reader needs.
			if failures++; failures < 2 {
				continue
			}
			if err := sleep(ctx, retryWait(failures)); err != nil {
				return tooLate(err)
			}
		default:
			return err
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// maxClaims is how often a try looks again for what was here when it began, in
// pieces, and is not any more.
const maxClaims = 3

// try has [off, off+n) fetched once.
func (l *Layer) try(ctx context.Context, off, n int64) error {
	for range maxClaims {
		if err := l.fly(ctx, off, n); err != nil {
			return err
		}
		if l.Have(off, n) {
			break
		}
	}
	return nil
}

// fly waits for the flights of all spans that are not here.
func (l *Layer) fly(ctx context.Context, off, n int64) error {
	tick := time.NewTicker(stuckAfter)
	defer tick.Stop()
	for _, f := range l.claim(off, n, false) {
		for done := false; !done; {
			select {
			case <-f.done:
				if f.err != nil {
					return f.err
				}
				done = true
			case <-tick.C:
				l.unstick(f.run)
			case <-ctx.Done():
				return fmt.Errorf("wait for layer %s: %w", l.c.Store.Meta().Blob, ctx.Err())
			}
		}
	}
	return nil
}

// turn returns when it is worth while to try: at once while all is well, and in
// an outage when it is over, or when this reader is to find out whether it is.
// The others wait meanwhile, without a connection or memory.
func (l *Layer) turn(ctx context.Context) (*outage, error) {
	for {
		l.s.mu.Lock()
		o := l.out
		if o == nil || l.closed || l.s.closed {
			l.s.mu.Unlock()
			return nil, nil
		}
		wait := time.Until(o.next)
		if !o.trying && wait <= 0 {
			o.trying = true
			l.s.mu.Unlock()
			return o, nil
		}
		changed, trying := o.changed, o.trying
		l.s.mu.Unlock()
		if trying {
			wait = l.s.opts.ReadTimeout // someone will tell
		}
		t := time.NewTimer(wait)
		var err error
		select {
		case <-changed:
		case <-t.C:
		case <-ctx.Done():
			err = ctx.Err()
		case <-l.ctx.Done():
			err = ErrClosed
		}
		t.Stop()
		if err != nil {
			return nil, err
		}
	}
}

// endTurn lets another reader try, should this one have left before it knew.
func (l *Layer) endTurn(o *outage) {
	if o == nil {
		return
	}
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	if l.out == o && o.trying {
		o.trying = false
		o.change()
	}
}

// denied is a span that a reader was told not to get.
type denied struct {
	at  time.Time
	err *ReadError
}

func (d denied) damaged() bool {
	var wrong *index.SpanError
	return errors.As(d.err, &wrong)
}

// rounds is how often damaged spans among these are to be fetched.
func (l *Layer) rounds(first, end int, now time.Time) int {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	for i := first; i < end && len(l.denied) > 0; i++ {
		if d, ok := l.denied[i]; ok && d.damaged() && now.Sub(d.at) < damagedMemory {
			return 1
		}
	}
	return damagedRounds
}

// deny makes the error for a reader, and remembers it.
func (l *Layer) deny(first, end int, begun time.Time, last error) error {
	now := time.Now()
	err := &ReadError{Layer: l.c.Store.Meta().Blob, First: first, Last: end - 1, Source: l.upstream.name, Waited: now.Sub(begun), Err: last}
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	if l.out != nil && err.Err == nil {
		err.Err = l.out.err
	}
	if len(l.denied)+end-first > maxDenied {
		clear(l.denied)
	}
	for i := first; i < end; i++ {
		if !l.c.Store.Have(i) {
			l.denied[i] = denied{now, err}
		}
	}
	return err
}

// wasDenied returns the error that was just given to a reader of one of these
// spans, if nothing came since.
func (l *Layer) wasDenied(first, end int, now time.Time) error {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	for i := first; i < end && len(l.denied) > 0; i++ {
		if d, ok := l.denied[i]; ok && !d.damaged() && now.Sub(d.at) < deniedMemory && !l.c.Store.Have(i) {
			return d.err
		}
	}
	return nil
}
