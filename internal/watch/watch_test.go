package watch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"go.uber.org/goleak"

	"github.com/thaw-project/thaw/internal/oci"
	"github.com/thaw-project/thaw/internal/registry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// options of a watcher that indexes everything at once.
func options(t testing.TB) Options {
	return Options{
		Dir: t.TempDir(), Queue: 10, Workers: 1, Attempts: 3, Backoff: time.Second, Drain: time.Minute,
		Log: slog.New(slog.DiscardHandler),
		Index: func(_ context.Context, ref oci.Reference) ([]Outcome, error) {
			return []Outcome{{Image: ref.String(), Result: ResultIndexed, ImageBytes: 5}}, nil
		},
	}
}

func newWatcher(t testing.TB, opts Options) *Watcher {
	t.Helper()
	w, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

// push is distribution's notification of so many images.
func push(first, n int) string {
	var events []string
	for i := range n {
		events = append(events, fmt.Sprintf(`{"action":"push","target":{"mediaType":%q,"digest":%q,"repository":"team/app","tag":"t%d"},"request":{"host":"example.com"}}`,
			oci.MediaTypeDockerManifest, digest.FromString(fmt.Sprint(first+i)), first+i))
	}
	return `{"events":[` + strings.Join(events, ",") + `]}`
}

func image(i int) string {
	return fmt.Sprintf("example.com/team/app:t%d@%s", i, digest.FromString(fmt.Sprint(i)))
}

// reply is what an HTTP request was answered with.
type reply struct {
	status int
	header http.Header
	body   string
	answer
}

// post sends a notification without a server.
func (w *Watcher) post(t testing.TB, path, body string, header ...string) reply {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, path, strings.NewReader(body))
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	rec := httptest.NewRecorder()
	w.Handler().ServeHTTP(rec, r)
	out := reply{status: rec.Code, header: rec.Header(), body: rec.Body.String()}
	if err := json.Unmarshal(rec.Body.Bytes(), &out.answer); err != nil {
		t.Fatalf("answer %q: %v", out.body, err)
	}
	return out
}

// results are the answer's images in short.
func (r reply) results() []string {
	var out []string
	for _, o := range r.Images {
		out = append(out, strings.TrimSpace(o.Result+" "+string(o.Reason)))
	}
	return out
}

// serve runs a watcher; what it returns ends it and waits. There is no port:
// notifications are posted to its handler.
func (w *Watcher) serve(t testing.TB) (end func()) { return w.serveUntil(t, nil) }

func (w *Watcher) serveUntil(t testing.TB, kill <-chan struct{}) (end func()) {
	l := newNoListener()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Serve(ctx, l, nil, kill) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// noListener has no connections.
type noListener struct {
	once   sync.Once
	closed chan struct{}
}

func newNoListener() *noListener { return &noListener{closed: make(chan struct{})} }

func (l *noListener) Accept() (net.Conn, error) { <-l.closed; return nil, net.ErrClosed }
func (l *noListener) Close() error              { l.once.Do(func() { close(l.closed) }); return nil }
func (l *noListener) Addr() net.Addr            { return &net.TCPAddr{} }

func TestNotify(t *testing.T) {
	opts := options(t)
	opts.Match = []string{"team/*", "other.example/x"}
	w := newWatcher(t, opts)
	got := w.post(t, "/notify", push(1, 2))
	if diff := cmp.Diff([]string{"queued", "queued"}, got.results()); got.status != http.StatusAccepted || diff != "" {
		t.Errorf("%d %s", got.status, diff)
	}
	// The same again, with another tag: the digest is the image.
	got = w.post(t, "/notify", strings.ReplaceAll(push(1, 2), `"t1"`, `"other"`))
	if diff := cmp.Diff([]string{"queued in-queue", "queued in-queue"}, got.results()); diff != "" {
		t.Error(diff)
	}
	// A name that is not wanted; an artifact and an index of ours; a list of referrers.
	w.Own(digest.FromString("3"))
	own := strings.Replace(push(3, 2), `"t4"`, `"sha256-`+strings.Repeat("a", 64)+`"`, 1)
	got = w.post(t, "/notify", strings.Replace(own, `]}`, ","+strings.TrimPrefix(strings.Replace(push(5, 1), "team/app", "a/b/c", 1), `{"events":[`), 1))
	if diff := cmp.Diff([]string{"ignored own-index", "ignored not-an-image", "ignored not-matched"}, got.results()); diff != "" {
		t.Error(diff)
	}
	artifact := w.post(t, "/notify", string(recorded(t, "ecr-push-artifact")))
	if diff := cmp.Diff([]string{"ignored own-index"}, artifact.results()); diff != "" {
		t.Error(diff)
	}
	if n := w.Queued(); n != 2 {
		t.Errorf("%d in the queue", n)
	}
	for _, c := range []struct {
		path, body string
		status     int
	}{{"/notify", "{}", 400}, {"/notify", "nonsense", 400}, {"/notify", push(1, 1) + strings.Repeat(" ", maxBody), 413}, {"/notify?wait=1year", push(1, 1), 400}} {
		if got := w.post(t, c.path, c.body); got.status != c.status || !strings.Contains(got.body, `"error":"`) {
			t.Errorf("POST %s of %.20q: %d %s", c.path, c.body, got.status, got.body)
		}
	}
}

// TestFull: as long as there is room a notification is taken whole, and else refused
// whole. Of one that has more images than the queue has room for, parts would be
// the same part each time it comes again.
func TestFull(t *testing.T) {
	opts := options(t)
	opts.Queue = 3
	w := newWatcher(t, opts)
	if got := w.post(t, "/notify", push(1, 5)); got.status != http.StatusAccepted || len(got.Images) != 5 {
		t.Errorf("%d %s", got.status, got.body)
	}
	if got := w.post(t, "/notify", push(1, 5)); got.status != http.StatusAccepted || w.Queued() != 5 {
		t.Errorf("again: %d %s", got.status, got.body)
	}
	got := w.post(t, "/notify", push(5, 2))
	if got.status != http.StatusServiceUnavailable || got.header.Get("Retry-After") != "30" {
		t.Errorf("%d, Retry-After %q: %s", got.status, got.header.Get("Retry-After"), got.body)
	}
	end := w.serve(t)
	eventually(t, "there is room", func() bool { return w.Queued() == 0 })
	if got := w.post(t, "/notify?wait=1m", push(6, 2)); got.status != http.StatusAccepted || !cmp.Equal(got.results(), []string{"indexed", "indexed"}) {
		t.Errorf("%d %s", got.status, got.body)
	}
	end()
	metrics := w.get(t, "/metrics", "").body
	for _, line := range []string{
		`thaw_watch_images_total{result="indexed",reason=""} 7`, `thaw_watch_indexed_bytes_total 35`, `thaw_watch_refused_total 1`,
		`thaw_watch_events_total{format="distribution",decision="queued"} 7`, `thaw_watch_queue_limit_images 3`, `thaw_watch_queue_images 0`,
	} {
		if !strings.Contains(metrics, "\n"+line+"\n") {
			t.Errorf("metrics lack %s:\n%s", line, metrics)
		}
	}
	problems, err := promlint.New(strings.NewReader(metrics)).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("metrics: %v, %v", problems, err)
	}
	if got := w.post(t, "/notify", push(9, 1)); got.status != http.StatusServiceUnavailable || got.header.Get("Retry-After") == "" {
		t.Errorf("after its end: %d", got.status)
	}
}

// get asks something without a server.
func (w *Watcher) get(t testing.TB, path, authorization string) reply {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil)
	r.Header.Set("Authorization", authorization)
	rec := httptest.NewRecorder()
	w.Handler().ServeHTTP(rec, r)
	return reply{status: rec.Code, header: rec.Header(), body: rec.Body.String()}
}

// TestBrowser: pages of other sites cannot send notifications.
func TestBrowser(t *testing.T) {
	w := newWatcher(t, options(t))
	for name, value := range map[string]string{"Sec-Fetch-Site": "cross-site", "Origin": "https://example.org"} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/notify", strings.NewReader(push(1, 1)))
		r.Header.Set(name, value)
		rec := httptest.NewRecorder()
		if w.Handler().ServeHTTP(rec, r); rec.Code != http.StatusForbidden || w.Queued() != 0 {
			t.Errorf("%s: %d, %d in the queue", name, rec.Code, w.Queued())
		}
	}
}

func TestSecret(t *testing.T) {
	opts := options(t)
	opts.Secrets = []string{"open-sesame", "the-next-one"}
	w := newWatcher(t, opts)
	basic := func(password string) string {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.SetBasicAuth("thaw", password)
		return r.Header.Get("Authorization")
	}
	for given, want := range map[string]int{
		"Bearer open-sesame": 202, "bearer the-next-one": 202, "open-sesame": 202, basic("open-sesame"): 202,
		"": 401, "Bearer": 401, "Bearer ": 401, "Bearer open-sesam": 401, "Bearer open-sesame2": 401, "Basic open-sesame": 401, basic("x"): 401, basic(""): 401,
	} {
		got := w.post(t, "/notify", push(1, 1), "Authorization", given)
		if got.status != want {
			t.Errorf("%q: %d, want %d", given, got.status, want)
		}
		if want == 401 && (got.header.Get("WWW-Authenticate") == "" || strings.Contains(got.body, "sesame")) {
			t.Errorf("%q: %v %s", given, got.header, got.body)
		}
	}
	for path, want := range map[string]int{"/status": 401, "/metrics": 200, "/healthz": 200} {
		if got := w.get(t, path, ""); got.status != want {
			t.Errorf("GET %s without the secret: %d, want %d", path, got.status, want)
		}
	}
	if got := w.get(t, "/status", "Bearer open-sesame"); got.status != 200 || !strings.Contains(got.body, image(1)) {
		t.Errorf("status: %d %s", got.status, got.body)
	}
}

// retryableError is what the registry client says of a server that is not well.
var errRetryable = &registry.Error{Op: "fetch manifest", Status: 503, Retryable: true}

func TestRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opts := options(t)
		var at []time.Duration
		begun := time.Now()
		fail := map[string][]error{
			image(1): {errRetryable, errRetryable, errRetryable},
			image(2): {errRetryable, nil},
			image(3): {errors.New("layer 3 is damaged")},
			image(4): {&registry.Error{Status: 404}, &registry.Error{Status: 404}, &registry.Error{Status: 404}},
			image(5): {&registry.Error{Status: 401}, nil},
		}
		opts.Index = func(_ context.Context, ref oci.Reference) ([]Outcome, error) {
			if ref.String() == image(1) {
				at = append(at, time.Since(begun))
			}
			err := fail[ref.String()][0]
			fail[ref.String()] = fail[ref.String()][1:]
			return []Outcome{{Image: ref.String(), Result: ResultIndexed}}[:map[bool]int{true: 1}[err == nil]], err
		}
		got := map[string]string{}
		opts.Done = func(o Outcome) { got[o.Image] = fmt.Sprint(o.Result, " ", o.Reason, " ", o.Attempts) }
		w := newWatcher(t, opts)
		end := w.serve(t)
		w.post(t, "/notify", push(1, 5))
		for w.Queued() > 0 {
			time.Sleep(time.Second) // of the bubble's time
		}
		end()
		want := map[string]string{image(1): "failed error 3", image(2): "indexed  2", image(3): "failed error 1", image(4): "skipped gone 3", image(5): "indexed  2"}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		// A second, then four, each give or take a quarter.
		if len(at) != 3 || at[1] < 750*time.Millisecond || at[1] > 1250*time.Millisecond || at[2]-at[1] < 3*time.Second || at[2]-at[1] > 5*time.Second {
			t.Errorf("attempts at %v", at)
		}
	})
}

func TestBackoff(t *testing.T) {
	for attempts, want := range map[int]time.Duration{1: 5 * time.Second, 2: 20 * time.Second, 3: 80 * time.Second, 9: time.Hour, 1000: time.Hour} {
		for range 100 {
			if d := backoff(5*time.Second, attempts); d < want*3/4 || d > want*5/4 {
				t.Fatalf("after %d attempts %v, want %v", attempts, d, want)
			}
		}
	}
}

// TestDrain: told to end, it finishes what it has, but for what waits for another
// attempt; the next process has that.
func TestDrain(t *testing.T) {
	opts := options(t)
	opts.Backoff = time.Hour
	begun, goOn := make(chan struct{}, 10), make(chan struct{})
	opts.Index = func(ctx context.Context, ref oci.Reference) ([]Outcome, error) {
		if ref.String() == image(1) {
			return nil, errRetryable
		}
		begun <- struct{}{}
		select {
		case <-goOn:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		return []Outcome{{Image: ref.String(), Result: ResultIndexed}}, nil
	}
	w := newWatcher(t, opts)
	end := w.serve(t)
	w.post(t, "/notify", push(1, 3))
	<-begun
	ended := make(chan struct{})
	go func() { end(); close(ended) }()
	eventually(t, "it is ending", func() bool { return w.get(t, "/healthz", "").status == http.StatusServiceUnavailable })
	close(goOn)
	<-ended
	w.Close()
	next := newWatcher(t, opts)
	if got := next.queue.list(); len(got) != 1 || got[0].Image != image(1) || got[0].Attempts != 1 {
		t.Errorf("left %+v", got)
	}
}

// TestKilled: work that is cut off, by the end of its time or of the process, is
// the next one's, and an image that kills processes is not tried for ever.
func TestKilled(t *testing.T) {
	opts := options(t)
	opts.Drain = time.Hour
	begun := make(chan struct{}, 10)
	block := func(ctx context.Context, _ oci.Reference) ([]Outcome, error) {
		begun <- struct{}{}
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	opts.Index = block
	w := newWatcher(t, opts)
	kill := make(chan struct{})
	end := w.serveUntil(t, kill)
	w.post(t, "/notify", push(1, 2))
	<-begun
	if b, err := os.ReadFile(filepath.Join(opts.Dir, "queue.json")); err != nil || !strings.Contains(string(b), `"attempts":1`) {
		t.Errorf("while it works: %s, %v", b, err) // what a process that is killed now leaves
	}
	if _, err := New(opts); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("two have the queue: %v", err)
	}
	close(kill) // as a second Ctrl-C does
	end()
	w.Close()

	var got []string
	opts.Index = func(_ context.Context, ref oci.Reference) ([]Outcome, error) {
		got = append(got, ref.String())
		return nil, errRetryable
	}
	file := fmt.Sprintf(`{"version":1,"images":[{"image":%q,"attempts":3},{"image":%q}]}`, image(1), image(2))
	if b, err := os.ReadFile(filepath.Join(opts.Dir, "queue.json")); err != nil || strings.Contains(string(b), "attempts") || strings.Count(string(b), "example.com") != 2 {
		t.Fatalf("left: %s, %v", b, err)
	}
	if err := os.WriteFile(filepath.Join(opts.Dir, "queue.json"), []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	var failed []string
	opts.Done = func(o Outcome) { failed = append(failed, o.Image+" "+o.Result) }
	opts.Backoff = time.Hour
	next := newWatcher(t, opts)
	end = next.serve(t)
	eventually(t, "the poison is given up, and the other one waits", func() bool {
		list := next.queue.list()
		return len(list) == 1 && list[0].Next != nil
	})
	end()
	if !cmp.Equal(failed, []string{image(1) + " failed"}) || !cmp.Equal(got, []string{image(2)}) {
		t.Errorf("failed %v, tried %v", failed, got)
	}
}

func TestDamagedQueue(t *testing.T) {
	opts := options(t)
	file := filepath.Join(opts.Dir, "queue.json")
	if err := os.WriteFile(file, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	w := newWatcher(t, opts)
	if got := w.post(t, "/notify", push(1, 1)); got.status != http.StatusAccepted {
		t.Errorf("%d %s", got.status, got.body)
	}
	if b, err := os.ReadFile(file + ".damaged"); err != nil || string(b) != "half" {
		t.Errorf("put aside: %q, %v", b, err)
	}
}

// TestNotKept: what cannot be kept is not taken.
func TestNotKept(t *testing.T) {
	opts := options(t)
	opts.Dir = filepath.Join(opts.Dir, "d")
	w := newWatcher(t, opts)
	if err := os.RemoveAll(opts.Dir); err != nil {
		t.Fatal(err)
	}
	if got := w.post(t, "/notify", push(1, 1)); got.status != http.StatusServiceUnavailable || got.header.Get("Retry-After") == "" || w.Queued() != 0 {
		t.Errorf("%d %s, %d in the queue", got.status, got.body, w.Queued())
	}
}

// TestOverHTTP: through a real connection, with an answer that waits longer than
// a request may take to arrive.
func TestOverHTTP(t *testing.T) {
	opts := options(t)
	opts.Secrets = []string{"s"}
	goOn := make(chan struct{})
	opts.Index = func(_ context.Context, ref oci.Reference) ([]Outcome, error) {
		<-goOn
		return []Outcome{{Image: ref.String(), Result: ResultSkipped, Reason: ReasonTooSmall, Detail: "small"}}, nil
	}
	w := newWatcher(t, opts)
	w.readTimeout = 200 * time.Millisecond
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- w.Serve(ctx, l, nil, nil) }()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+l.Addr().String()+"/notify?wait=1m", strings.NewReader(push(1, 1)))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer s")
	go func() {
		eventually(t, "it is in the queue", func() bool { return w.Queued() == 1 })
		<-time.After(4 * w.readTimeout)
		close(goOn)
	}()
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || resp.StatusCode != http.StatusAccepted || !strings.Contains(string(b), `"result":"skipped","reason":"too-small","detail":"small"`) {
		t.Errorf("%d %s %v", resp.StatusCode, b, err)
	}
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// eventually polls until ok.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !ok() {
		if time.Now().After(deadline) {
			t.Errorf("waited until %s", what)
			return
		}
		time.Sleep(time.Millisecond)
	}
}
