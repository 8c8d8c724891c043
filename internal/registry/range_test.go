package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// abort ends the connection without ending the answer.
func abort() { panic(http.ErrAbortHandler) }

// record lets the registry answer into memory.
func record(r *http.Request, next http.Handler) *httptest.ResponseRecorder {
	rec := httptest.NewRecorder()
	next.ServeHTTP(rec, r)
	return rec
}

func copyHeader(w http.ResponseWriter, rec *httptest.ResponseRecorder) {
	for k, v := range rec.Header() {
		w.Header()[k] = v
	}
}

func status(code int, header ...string) faultFunc {
	return func(_ int, w http.ResponseWriter, _ *http.Request, _ http.Handler) bool {
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(code)
		return true
	}
}

// first applies a fault to the first n requests only.
func first(n int, f faultFunc) faultFunc {
	return func(i int, w http.ResponseWriter, r *http.Request, next http.Handler) bool {
		return i < n && f(i, w, r, next)
	}
}

// cutAfter sends only so many bytes of a longer body and then resets.
func cutAfter(bytes int) faultFunc {
	return func(_ int, w http.ResponseWriter, r *http.Request, next http.Handler) bool {
		rec := record(r, next)
		copyHeader(w, rec)
		w.WriteHeader(rec.Code)
		_, _ = w.Write(rec.Body.Bytes()[:min(bytes, rec.Body.Len())])
		if rec.Body.Len() > bytes {
			w.(http.Flusher).Flush()
			abort()
		}
		return true
	}
}

func withHeader(edit func(http.Header)) faultFunc {
	return func(_ int, w http.ResponseWriter, r *http.Request, next http.Handler) bool {
		rec := record(r, next)
		copyHeader(w, rec)
		edit(w.Header())
		w.WriteHeader(rec.Code)
		_, _ = w.Write(rec.Body.Bytes())
		return true
	}
}

// noRanges answers as if there were no Range header.
func noRanges(_ int, _ http.ResponseWriter, r *http.Request, _ http.Handler) bool {
	r.Header.Del("Range")
	return false
}

// stall sends a part and then nothing until the client goes away.
func stall(bytes int) faultFunc {
	return func(_ int, w http.ResponseWriter, r *http.Request, next http.Handler) bool {
		rec := record(r, next)
		if bytes >= 0 {
			copyHeader(w, rec)
			w.WriteHeader(rec.Code)
			_, _ = w.Write(rec.Body.Bytes()[:bytes])
			w.(http.Flusher).Flush()
		}
		<-r.Context().Done()
		abort()
		return true
	}
}

func TestReadRangeSurvives(t *testing.T) {
	blob := randomBytes(300_000)
	tests := []struct {
		name     string
		fault    faultFunc
		min, max time.Duration // how long it may take
		requests int           // 0: do not care
	}{
		{"nothing", nil, 0, 0, 1},
		{"reset at once", first(3, func(int, http.ResponseWriter, *http.Request, http.Handler) bool { abort(); return true }), 0, time.Second, 4},
		{"short body", first(2, cutAfter(70_000)), 0, 0, 3},
		{"short body, many small pieces", first(200, cutAfter(1000)), 0, 15 * time.Second, 201},
		{"short range", func(_ int, w http.ResponseWriter, r *http.Request, next http.Handler) bool {
			var a, b int
			_, _ = fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &a, &b)
			r.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", a, min(b, a+99_999)))
			return false
		}, 0, 0, 3},
		{"500", first(2, status(500)), 0, time.Second, 3},
		{"429 without Retry-After", first(1, status(429)), 0, time.Second, 2},
		{"429 with seconds", first(1, status(429, "Retry-After", "3")), 3 * time.Second, 3200 * time.Millisecond, 2},
		{"503 with a date", first(1, func(_ int, w http.ResponseWriter, r *http.Request, next http.Handler) bool {
			return status(503, "Retry-After", time.Now().Add(5*time.Second).UTC().Format(http.TimeFormat))(0, w, r, next)
		}), 4 * time.Second, 5200 * time.Millisecond, 2},
		{"Retry-After of an hour is capped", first(1, status(429, "Retry-After", "3600")), 15 * time.Second, 16 * time.Second, 2},
		{"wrong range", first(2, withHeader(func(h http.Header) { h.Set("Content-Range", "bytes 0-299998/300000") })), 0, time.Second, 3},
		{"no Content-Range", first(2, withHeader(func(h http.Header) { h.Del("Content-Range") })), 0, time.Second, 3},
		{"wrong total", first(1, withHeader(func(h http.Header) { h.Set("Content-Range", "bytes 1-299999/300001") })), 0, time.Second, 2},
		{"compressed", first(1, withHeader(func(h http.Header) { h.Set("Content-Encoding", "gzip") })), 0, time.Second, 2},
		{"200 for 206", noRanges, 0, 0, 1},
		{"no answer", first(1, stall(-1)), 10 * time.Second, 11 * time.Second, 2},
		{"stall in the body", first(1, stall(100_000)), 10 * time.Second, 11 * time.Second, 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				reg := newFakeRegistry()
				d := reg.addBlob(t, "a/b", v1.MediaTypeImageLayer, blob)
				if tt.fault != nil {
					reg.on("/blobs/", tt.fault)
				}
				w.serve("localhost:5000", reg)
				start := time.Now()
				got, err := readRange(t.Context(), w.repo(w.client(Options{}), "localhost:5000/a/b"), d, 1, d.Size-1)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got, blob[1:]) {
					t.Error("wrong bytes")
				}
				if took := time.Since(start); took < tt.min || took > tt.max {
					t.Errorf("took %v, want between %v and %v", took, tt.min, tt.max)
				}
				if n := reg.count("/blobs/"); tt.requests != 0 && n != tt.requests {
					t.Errorf("%d requests, want %d", n, tt.requests)
				}
			})
		})
	}
}

func TestReadRangeGivesUp(t *testing.T) {
	blob := randomBytes(9 << 20)
	tests := []struct {
		name      string
		fault     faultFunc
		want      string
		retryable bool
		is        error
		max       time.Duration
	}{
		{"always 500", status(500), "500 Internal Server Error, after", true, nil, 21 * time.Second},
		{"always reset", func(int, http.ResponseWriter, *http.Request, http.Handler) bool { abort(); return true }, "EOF", true, nil, 21 * time.Second},
		{"always stalls", stall(-1), "the server stopped sending, after", true, errStalled, 25 * time.Second},
		{"always wrong range", withHeader(func(h http.Header) { h.Set("Content-Range", "bytes 0-9/20971520") }), "another range", true, errRange, 21 * time.Second},
		{"always 429", status(429, "Retry-After", "7"), "asked to wait 7s", true, nil, 25 * time.Second},
		{"404", status(404), "404 Not Found", false, ErrNotFound, 0},
		{"403", status(403), "403 Forbidden", false, ErrUnauthorized, 0},
		{"401 without a challenge", status(401), "401 Unauthorized", false, ErrUnauthorized, 0},
		{"416", status(416), "not as long there", false, nil, 0},
		{"no ranges, far in", noRanges, "does not support ranges", false, ErrNoRanges, 0},
		{"redirect to plain http", status(307, "Location", "http://example.com/x?secret=1"), "plain http", false, nil, 0},
		{"redirect to nowhere", status(307), "without a usable location", false, nil, 0},
		{"redirect loop", func(_ int, w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
			http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
			return true
		}, "more than 5 redirects", false, nil, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				reg := newFakeRegistry()
				d := reg.addBlob(t, "a/b", v1.MediaTypeImageLayer, blob)
				reg.on("/blobs/", tt.fault)
				w.serve("localhost:5000", reg)
				repo := w.repo(w.client(Options{}), "localhost:5000/a/b")
				start := time.Now()
				_, err := readRange(t.Context(), repo, d, maxDiscardBytes+1, 100)
				var e *Error
				if !errors.As(err, &e) {
					t.Fatalf("got %v, want an *Error", err)
				}
				for _, want := range []string{tt.want, "fetch blob " + d.Digest.String(), "bytes 8388609-8388708", "localhost:5000/a/b"} {
					if !strings.Contains(err.Error(), want) {
						t.Errorf("%q does not say %q", err, want)
					}
				}
				if strings.Contains(err.Error(), "secret") {
					t.Errorf("%q tells a secret", err)
				}
				if e.Retryable != tt.retryable || Retryable(err) != tt.retryable {
					t.Errorf("Retryable is %v in %v", e.Retryable, err)
				}
				if tt.is != nil && !errors.Is(err, tt.is) {
					t.Errorf("%v is not %v", err, tt.is)
				}
				if took := time.Since(start); took > tt.max {
					t.Errorf("took %v, want at most %v", took, tt.max)
				}
				if got := NoRanges(repo); got != errors.Is(err, ErrNoRanges) {
					t.Errorf("NoRanges is %v", got)
				}
			})
		})
	}
}

// A registry that goes away for good while bytes flow is given up 20 s after
// the last byte, and one that comes back in time is not noticed.
func TestReadRangeOutage(t *testing.T) {
	blob := randomBytes(200_000)
	for _, back := range []bool{true, false} {
		t.Run(strconv.FormatBool(back), func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				reg := newFakeRegistry()
				d := reg.addBlob(t, "a/b", v1.MediaTypeImageLayer, blob)
				reg.on("/blobs/", first(1, stall(50_000)))
				stop := w.serve("localhost:5000", reg)
				r, err := w.repo(w.client(Options{}), "localhost:5000/a/b").ReadRange(t.Context(), d, 0, d.Size)
				if err != nil {
					t.Fatal(err)
				}
				defer r.Close()
				got := make([]byte, 50_000)
				if _, err := io.ReadFull(r, got); err != nil {
					t.Fatal(err)
				}
				start := time.Now()
				stop()
				if back {
					time.AfterFunc(12*time.Second, func() { w.serve("localhost:5000", reg) })
				}
				rest, err := io.ReadAll(r)
				took := time.Since(start)
				if back && (err != nil || !bytes.Equal(append(got, rest...), blob)) {
					t.Errorf("got %d bytes and %v after %v", len(rest), err, took)
				}
				if !back && (err == nil || !Retryable(err) || took < 19*time.Second || took > 21*time.Second) {
					t.Errorf("gave up with %v after %v", err, took)
				}
			})
		})
	}
}

func TestReadRangeContext(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		reg := newFakeRegistry()
		d := reg.addBlob(t, "a/b", v1.MediaTypeImageLayer, randomBytes(1000))
		reg.on("/blobs/", stall(10))
		w.serve("localhost:5000", reg)
		repo := w.repo(w.client(Options{}), "localhost:5000/a/b")
		cause := errors.New("had enough")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(3*time.Second, func() { cancel(cause) })
		start := time.Now()
		_, err := readRange(ctx, repo, d, 0, d.Size)
		if !errors.Is(err, cause) || Retryable(err) || time.Since(start) != 3*time.Second {
			t.Errorf("got %v after %v", err, time.Since(start))
		}
		if _, err := readRange(ctx, repo, d, 0, d.Size); !errors.Is(err, cause) {
			t.Errorf("with a dead context: %v", err)
		}
	})
}

func TestReadRangeBounds(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		reg := newFakeRegistry()
		d := reg.addBlob(t, "a/b", v1.MediaTypeImageLayer, randomBytes(1000))
		w.serve("localhost:5000", reg)
		repo := w.repo(w.client(Options{}), "localhost:5000/a/b")
		for _, r := range [][2]int64{{-1, 5}, {0, 1001}, {1000, 1}, {1, -1}, {5, 1<<63 - 1}} {
			if _, err := repo.ReadRange(t.Context(), d, r[0], r[1]); err == nil || Retryable(err) {
				t.Errorf("%v: got %v", r, err)
			}
		}
		if b, err := readRange(t.Context(), repo, d, 1000, 0); err != nil || len(b) != 0 {
			t.Errorf("empty range: %d bytes, %v", len(b), err)
		}
		if n := reg.count("/blobs/"); n != 0 {
			t.Errorf("%d requests", n)
		}
	})
}

// 429 halves the host's limit and good answers bring it back; nobody starts
// before Retry-After is over.
func TestHostLimitAdapts(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		reg := newFakeRegistry()
		d := reg.addBlob(t, "a/b", v1.MediaTypeImageLayer, randomBytes(1000))
		reg.on("/blobs/", first(1, status(429, "Retry-After", "4")))
		w.serve("localhost:5000", reg)
		c := w.client(Options{RequestsPerHost: 8})
		repo := w.repo(c, "localhost:5000/a/b")
		start := time.Now()
		if _, err := readRange(t.Context(), repo, d, 0, 10); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took < 4*time.Second {
			t.Errorf("took %v", took)
		}
		h := c.limits.host("localhost:5000")
		if h.limit != 4 {
			t.Errorf("limit is %d after a 429, want 4", h.limit)
		}
		for range 100 {
			if _, err := readRange(t.Context(), repo, d, 0, 10); err != nil {
				t.Fatal(err)
			}
		}
		if h.limit != 8 || h.inUse != 0 {
			t.Errorf("limit is %d with %d in use, want 8 and 0", h.limit, h.inUse)
		}
	})
}

func TestHostLimitBounds(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		reg := newFakeRegistry()
		d := reg.addBlob(t, "a/b", v1.MediaTypeImageLayer, randomBytes(1000))
		w.serve("localhost:5000", reg)
		repo := w.repo(w.client(Options{RequestsPerHost: 2, GiveUp: 5 * time.Second}), "localhost:5000/a/b")
		var open []io.ReadCloser
		reg.on("/blobs/", first(2, stall(10)))
		for range 2 {
			r, err := repo.ReadRange(t.Context(), d, 0, d.Size)
			if err != nil {
				t.Fatal(err)
			}
			open = append(open, r)
		}
		// Both slots are held by readers who do not read.
		if _, err := readRange(t.Context(), repo, d, 0, 10); !errors.Is(err, errBusy) {
			t.Errorf("got %v, want %v", err, errBusy)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := readRange(ctx, repo, d, 0, 10); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		time.AfterFunc(time.Second, func() { open[0].Close() })
		if _, err := readRange(t.Context(), repo, d, 0, 10); err != nil {
			t.Error(err)
		}
		open[1].Close()
	})
}

func TestCounters(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		reg := newFakeRegistry()
		d := reg.addBlob(t, "a/b", v1.MediaTypeImageLayer, randomBytes(100_000))
		w.serve("localhost:5000", reg)
		c := w.client(Options{})
		repo := w.repo(c, "localhost:5000/a/b")
		var outer, inner Counter
		ctx := WithCounter(t.Context(), &outer)
		if _, err := readRange(ctx, repo, d, 0, 1000); err != nil {
			t.Fatal(err)
		}
		if _, err := readRange(WithCounter(ctx, &inner), repo, d, 5, 200); err != nil {
			t.Fatal(err)
		}
		if _, err := readRange(t.Context(), repo, d, 5, 7); err != nil {
			t.Fatal(err)
		}
		got := []int64{inner.Requests.Load(), inner.BytesRead.Load(), outer.Requests.Load(), outer.BytesRead.Load(), c.Stats().Requests.Load(), c.Stats().BytesRead.Load()}
		want := []int64{1, 200, 2, 1200, 3, 1207}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("got %v, want %v", got, want)
		}
	})
}

// TestGoneRegistry: only the first of those who ask a registry that is gone
// waits for long, and it is forgotten when it is back.
func TestGoneRegistry(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		reg := newFakeRegistry()
		d := reg.addBlob(t, "a/b", v1.MediaTypeImageLayer, randomBytes(100_000))
		stop := w.serve("localhost:5000", reg)
		c := w.client(Options{})
		took := func() time.Duration {
			begun := time.Now()
			_, err := readRange(t.Context(), w.repo(c, "localhost:5000/a/b"), d, 0, 1000)
			if err == nil {
				return 0
			}
			return time.Since(begun).Round(time.Second)
		}
		steps := []struct {
			do   func()
			want time.Duration
		}{
			{func() {}, 0},
			{stop, 20 * time.Second},
			{func() {}, 0},
			{func() { time.Sleep(goneQuiet) }, time.Second},
			{func() {}, 0},
			{func() { time.Sleep(20 * time.Second) }, time.Second},
			{func() { time.Sleep(goneMemory) }, 20 * time.Second},
			{func() { stop = w.serve("localhost:5000", reg); time.Sleep(goneQuiet) }, 0},
			{func() { stop() }, 20 * time.Second},
		}
		for i, step := range steps {
			step.do()
			if got := took(); got != step.want {
				t.Errorf("step %d: took %v, want %v", i, got, step.want)
			}
		}
	})
}
