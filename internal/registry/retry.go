package registry

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"
)

const (
	backoffBase   = 100 * time.Millisecond
	backoffCap    = 5 * time.Second
	retryAfterCap = 15 * time.Second
	// neverUpGiveUp is the budget for a host that refuses connections and has
	// not answered once: most likely a mistyped port.
	neverUpGiveUp = 5 * time.Second
	// A registry at which the last operation was given up is gone: for goneQuiet
	// ranges fail at once, and until goneMemory operations get goneGiveUp only.
	// Who reads on after an error is not to wait anew for each read, and the
	// kernel tries a failed read again page by page.
	goneQuiet  = 3 * time.Second
	goneGiveUp = time.Second
	goneMemory = 30 * time.Second
	// resumeBytes is how much must have come for a broken body to be resumed
	// without a wait.
	resumeBytes = 64 << 10
	// digestAttempts is how often an object whose bytes are wrong is fetched.
	digestAttempts = 3
)

// budget decides whether an operation goes on after a failure. It is not safe
// for concurrent use.
type budget struct {
	giveUp      time.Duration
	progress    time.Time // last time bytes came
	attempts    int       // failed attempts in all
	fruitless   int       // failed attempts since the last progress
	wrongDigest int
	since       int64 // bytes since the last failure
	last        bool  // the attempt under way is the last one
	spent       bool  // given up for want of an answer
	own         bool  // by WithPatience: waits that are too long are left to the caller
}

func newBudget(giveUp time.Duration, own bool) *budget {
	return &budget{giveUp: giveUp, progress: time.Now(), own: own}
}

// advance notes that n bytes came.
func (b *budget) advance(n int) {
	b.progress, b.fruitless, b.last = time.Now(), 0, false
	b.since += int64(n)
}

// remaining is the time left without further progress.
func (b *budget) remaining() time.Duration {
	return time.Until(b.progress.Add(b.giveUp))
}

// pause waits before the next attempt and returns nil, or returns the error to
// give up with: err itself when retrying is not worth while or the budget is
// spent, or the context's cause. known is false while the host has never
// answered.
func (b *budget) pause(ctx context.Context, err *Error, known bool) error {
	b.attempts++
	b.fruitless++
	err.Attempts = b.attempts
	var wrong *DigestError
	if errors.As(err, &wrong) {
		b.wrongDigest++
	}
	if !err.Retryable || b.last || b.wrongDigest >= digestAttempts {
		b.spent = err.Retryable && b.last
		return err
	}
	left := b.remaining()
	if !known && neverUp(err) {
		left = min(left, time.Until(b.progress.Add(neverUpGiveUp)))
	}
	if left <= 0 {
		b.spent = true
		return err
	}
	wait := backoff(b.fruitless)
	if b.since >= resumeBytes {
		wait = 0 // a connection that broke is simply opened again
	}
	b.since = 0
	if err.RetryAfter > 0 {
		// Jitter on top: those who were told the same second do not come together.
		wait = min(err.RetryAfter, retryAfterCap) + rand.N(backoffBase)
	}
	if wait >= left && b.own {
		b.spent = true
		return err
	}
	if wait >= left {
		wait, b.last = left, true
	}
	if werr := sleep(ctx, wait); werr != nil {
		err.Retryable, err.Err = false, werr
		return err
	}
	return nil
}

// backoff is exponential, capped, with full jitter; fruitless is 1 or more.
func backoff(fruitless int) time.Duration {
	limit := backoffCap
	if shift := fruitless - 1; shift < 10 {
		limit = min(backoffCap, backoffBase<<shift)
	}
	return rand.N(limit)
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
