package registry

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	dialTimeout = 5 * time.Second
	// commitTimeout is how long a registry may think after an upload's last byte.
	commitTimeout = 60 * time.Second
	laneCount     = 8
)

// requestInfo travels with a request's context down the chain.
type requestInfo struct {
	endpoint   *endpoint
	repository string
	scope      string        // "pull" or "pull,push"
	idle       time.Duration // overrides the client's idle timeout when > 0
}

type infoKey struct{}

func withInfo(ctx context.Context, info *requestInfo) context.Context {
	return context.WithValue(ctx, infoKey{}, info)
}

func infoFrom(ctx context.Context) *requestInfo {
	info, _ := ctx.Value(infoKey{}).(*requestInfo)
	return info
}

// stallTransport cancels a request that makes no progress: no header, or no
// byte of the body while someone reads, for the idle timeout. A reader that
// takes its time is not a stall.
type stallTransport struct {
	next http.RoundTripper
	idle time.Duration
}

func (t *stallTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	idle := t.idle
	if info := infoFrom(req.Context()); info != nil && info.idle > 0 {
		idle = min(idle, info.idle)
	}
	ctx, cancel := context.WithCancelCause(req.Context())
	watch := &watchdog{ctx: ctx, cancel: cancel, timer: time.AfterFunc(idle, func() { cancel(errStalled) })}
	out := req.WithContext(ctx)
	if req.Body != nil && req.Body != http.NoBody {
		out.Body = &sendBody{ReadCloser: req.Body, watch: watch, idle: idle}
	}
	resp, err := t.next.RoundTrip(out)
	watch.timer.Stop()
	if err != nil {
		err = watch.explain(err)
		cancel(nil)
		return nil, err
	}
	resp.Body = &stallBody{ReadCloser: resp.Body, watch: watch, idle: idle}
	return resp, nil
}

type watchdog struct {
	ctx    context.Context // of the request; stored because it dies with the body
	cancel context.CancelCauseFunc
	timer  *time.Timer
}

// explain puts the reason of a cancellation in place of "context canceled".
func (w *watchdog) explain(err error) error {
	if context.Cause(w.ctx) == errStalled {
		return errStalled
	}
	return err
}

type sendBody struct {
	io.ReadCloser
	watch *watchdog
	idle  time.Duration
}

func (b *sendBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.watch.timer.Reset(max(commitTimeout, b.idle))
	} else {
		b.watch.timer.Reset(b.idle)
	}
	return n, err
}

type stallBody struct {
	io.ReadCloser
	watch *watchdog
	idle  time.Duration
}

func (b *stallBody) Read(p []byte) (int, error) {
	b.watch.timer.Reset(b.idle)
	n, err := b.ReadCloser.Read(p)
	b.watch.timer.Stop()
	if err != nil && err != io.EOF {
		err = b.watch.explain(err)
	}
	return n, err
}

func (b *stallBody) Close() error {
	b.watch.timer.Stop()
	err := b.ReadCloser.Close()
	b.watch.cancel(nil)
	return err
}

// logTransport counts, and writes one debug line a request, without query
// strings and headers: both may hold secrets.
type logTransport struct {
	next   http.RoundTripper
	client *Client
}

func (t *logTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	counts := counters(req.Context())
	t.client.stats.Requests.Add(1)
	for _, c := range counts {
		c.Requests.Add(1)
	}
	start := time.Now()
	resp, err := t.next.RoundTrip(req)
	if err != nil {
		t.client.stats.answered(0)
	} else {
		t.client.stats.answered(resp.StatusCode)
	}
	if t.client.log.Enabled(req.Context(), slog.LevelDebug) {
		attrs := []any{"method", req.Method, "url", cleanURL(req.URL), "range", req.Header.Get("Range"), "took", time.Since(start)}
		if err != nil {
			attrs = append(attrs, "err", err)
		} else {
			attrs = append(attrs, "status", resp.StatusCode, "proto", resp.Proto)
		}
		t.client.log.DebugContext(req.Context(), "registry request", attrs...)
	}
	if err != nil {
		return nil, err
	}
	resp.Body = &countBody{ReadCloser: resp.Body, stats: &t.client.stats, counters: counts}
	return resp, nil
}

type countBody struct {
	io.ReadCloser
	stats    *Stats
	counters []*Counter
}

func (b *countBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.stats.BytesRead.Add(int64(n))
	for _, c := range b.counters {
		c.BytesRead.Add(int64(n))
	}
	return n, err
}

// lanes spreads parallel requests to one host over several connection pools:
// an HTTP/2 pool puts all its requests on one connection, and clouds cap the
// speed of a connection. The least loaded lane is taken, the first of equals,
// so that requests one after the other stay on one connection.
type lanes struct {
	pools [laneCount]*http.Transport

	mu       sync.Mutex // guards inFlight
	inFlight map[string]*[laneCount]int
}

func newLanes() *lanes {
	l := &lanes{inFlight: make(map[string]*[laneCount]int)}
	for i := range l.pools {
		l.pools[i] = newTransport()
	}
	return l
}

func newTransport() *http.Transport {
	dialer := &net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}
	return &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            dialer.DialContext,
		TLSHandshakeTimeout:    dialTimeout,
		MaxIdleConnsPerHost:    16,
		MaxIdleConns:           64,
		IdleConnTimeout:        90 * time.Second,
		ExpectContinueTimeout:  time.Second,
		DisableCompression:     true,
		ForceAttemptHTTP2:      true,
		MaxResponseHeaderBytes: 64 << 10,
		ReadBufferSize:         32 << 10,
		WriteBufferSize:        32 << 10,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: 10 * time.Second, PingTimeout: dialTimeout},
	}
}

func (l *lanes) RoundTrip(req *http.Request) (*http.Response, error) {
	lane := l.enter(req.URL.Host)
	resp, err := l.pools[lane].RoundTrip(req)
	if err != nil {
		l.leave(req.URL.Host, lane)
		return nil, err
	}
	resp.Body = &laneBody{ReadCloser: resp.Body, leave: sync.OnceFunc(func() { l.leave(req.URL.Host, lane) })}
	return resp, nil
}

func (l *lanes) enter(host string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n, ok := l.inFlight[host]
	if !ok {
		n = new([laneCount]int)
		l.inFlight[host] = n
	}
	best := 0
	for i := range n {
		if n[i] < n[best] {
			best = i
		}
	}
	n[best]++
	return best
}

func (l *lanes) leave(host string, lane int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.inFlight[host]
	n[lane]--
	if *n == ([laneCount]int{}) {
		delete(l.inFlight, host)
	}
}

// CloseIdleConnections closes the idle connections of every lane.
func (l *lanes) CloseIdleConnections() {
	for _, p := range l.pools {
		p.CloseIdleConnections()
	}
}

type laneBody struct {
	io.ReadCloser
	leave func()
}

func (b *laneBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.leave()
	}
	return n, err
}

func (b *laneBody) Close() error {
	err := b.ReadCloser.Close()
	b.leave()
	return err
}
