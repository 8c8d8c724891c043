package registry

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

var errBusy = errors.New("no free request slot: all requests to the host hang")

// hostLimits bounds the requests in flight a host. The bound of a host that
// answers 429 or 503 is halved and grows back by one for every bound's worth
// of good answers.
type hostLimits struct {
	max    int
	giveUp time.Duration

	mu    sync.Mutex // guards hosts
	hosts map[string]*hostLimit
}

// hostLimit is the state of one host. Lock order: hostLimits.mu is never held
// with hostLimit.mu.
type hostLimit struct {
	max      int
	progress atomic.Int64 // Unix nanoseconds of the last byte from this host

	mu        sync.Mutex // guards the rest
	limit     int
	inUse     int
	good      int // good answers since limit changed
	halved    time.Time
	notBefore time.Time
	waiters   []chan struct{} // first come, first served; closed when the slot is given
}

func (l *hostLimits) host(name string) *hostLimit {
	l.mu.Lock()
	defer l.mu.Unlock()
	h, ok := l.hosts[name]
	if !ok {
		h = &hostLimit{max: l.max, limit: l.max}
		l.hosts[name] = h
	}
	return h
}

// acquire waits for a slot. It gives up with errBusy when the host has sent
// nothing to anyone for giveUp.
func (h *hostLimit) acquire(ctx context.Context, giveUp time.Duration) error {
	h.mu.Lock()
	if h.inUse < h.limit && len(h.waiters) == 0 {
		h.inUse++
		h.mu.Unlock()
		return h.obeyPause(ctx)
	}
	slot := make(chan struct{})
	h.waiters = append(h.waiters, slot)
	h.mu.Unlock()

	since := time.Now()
	timer := time.NewTimer(giveUp)
	defer timer.Stop()
	for {
		var err error
		select {
		case <-slot:
			return h.obeyPause(ctx)
		case <-ctx.Done():
			err = context.Cause(ctx)
		case <-timer.C:
			last := time.Unix(0, h.progress.Load())
			if last.Before(since) {
				last = since
			}
			if left := time.Until(last.Add(giveUp)); left > 0 {
				timer.Reset(left)
				continue
			}
			err = errBusy
		}
		h.leave(slot)
		return err
	}
}

// leave takes a waiter out of the queue, or gives the slot back that it was
// given meanwhile.
func (h *hostLimit) leave(slot chan struct{}) {
	h.mu.Lock()
	i := slices.Index(h.waiters, slot)
	if i >= 0 {
		h.waiters = slices.Delete(h.waiters, i, i+1)
	}
	h.mu.Unlock()
	if i < 0 {
		h.release()
	}
}

func (h *hostLimit) obeyPause(ctx context.Context) error {
	h.mu.Lock()
	wait := time.Until(h.notBefore)
	h.mu.Unlock()
	if p, ok := patienceOf(ctx); ok {
		wait = min(wait, p.maxPause)
	}
	if err := sleep(ctx, wait); err != nil {
		h.release()
		return err
	}
	return nil
}

func (h *hostLimit) release() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.inUse--
	for h.inUse < h.limit && len(h.waiters) > 0 {
		close(h.waiters[0])
		h.waiters = h.waiters[1:]
		h.inUse++
	}
}

// observe adapts the limit to an answer.
func (h *hostLimit) observe(status int, retryAfter time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	switch {
	case status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable:
		// The answers to one burst are one signal.
		if now.Sub(h.halved) >= time.Second {
			h.limit, h.halved, h.good = max(1, h.limit/2), now, 0
		}
		if until := now.Add(min(retryAfter, retryAfterCap)); until.After(h.notBefore) {
			h.notBefore = until
		}
	case status < 400:
		h.notBefore = time.Time{} // somebody asked all the same, see WithPatience, and was answered
		if h.good++; h.good >= h.limit && h.limit < h.max {
			h.limit, h.good = h.limit+1, 0
		}
	}
}

// limitTransport holds a slot of the host from the request to the end of the body.
type limitTransport struct {
	next   http.RoundTripper
	limits *hostLimits
}

func (t *limitTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	h := t.limits.host(req.URL.Host)
	if err := h.acquire(req.Context(), t.limits.giveUp); err != nil {
		closeRequest(req)
		return nil, err
	}
	resp, err := t.next.RoundTrip(req)
	if err != nil {
		h.release()
		return nil, err
	}
	now := time.Now()
	h.progress.Store(now.UnixNano())
	retryAfter, _ := parseRetryAfter(resp.Header.Get("Retry-After"), now)
	h.observe(resp.StatusCode, retryAfter)
	resp.Body = &limitBody{ReadCloser: resp.Body, host: h}
	return resp, nil
}

type limitBody struct {
	io.ReadCloser
	host *hostLimit
	once sync.Once
}

func (b *limitBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if n > 0 {
		b.host.progress.Store(time.Now().UnixNano())
	}
	if err != nil {
		b.once.Do(b.host.release)
	}
	return n, err
}

func (b *limitBody) Close() error {
	err := b.ReadCloser.Close()
	b.once.Do(b.host.release)
	return err
}

// closeRequest keeps http.RoundTripper's promise that the body is closed, on
// paths that never reach the transport.
func closeRequest(req *http.Request) {
	if req.Body != nil {
		req.Body.Close()
	}
}
