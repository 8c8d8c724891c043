package daemon

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/thaw-project/thaw/internal/report"
)

// newTestWeb is a web of a daemon that has nothing else.
func newTestWeb(t *testing.T) (*web, *httptest.Server) {
	t.Helper()
	d := metricsDaemon(t)
	d.cfg.Root = t.TempDir()
	d.ctx, d.cancel = context.WithCancel(t.Context())
	d.web = newWeb(d)
	srv := httptest.NewServer(d.web.handler())
	t.Cleanup(func() {
		d.cancel()
		srv.CloseClientConnections()
		srv.Close()
		d.wg.Wait()
	})
	return d.web, srv
}

// listen returns the lines that begin with "data: " of a new listener.
func listen(t *testing.T, srv *httptest.Server) *bufio.Scanner {
	t.Helper()
	resp, err := http.Get(srv.URL + "/events")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("%s, %s", resp.Status, resp.Header.Get("Content-Type"))
	}
	return bufio.NewScanner(resp.Body)
}

// next waits for a start whose JSON has some text.
func next(t *testing.T, lines *bufio.Scanner, text string) {
	t.Helper()
	for lines.Scan() {
		if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok && strings.Contains(data, text) {
			return
		}
	}
	t.Fatalf("no event has %q: %v", text, lines.Err())
}

// TestWebEvents: listeners get what was there and what comes, one that is behind is
// sent away and connects anew, and there are only so many.
func TestWebEvents(t *testing.T) {
	w, srv := newTestWeb(t)
	w.put(report.Start{ID: "before", Image: "<b>"})
	first := listen(t, srv)
	next(t, first, `"before"`)
	w.put(report.Start{ID: "after", Image: "a\nevent: fake\ndata: x"}) // no line of its own
	next(t, first, `a\nevent: fake`)

	slow := make(chan []byte, maxBehind)
	w.mu.Lock()
	w.listeners[slow] = true
	w.mu.Unlock()
	for i := range maxBehind + 1 {
		w.put(report.Start{ID: "many", State: fmt.Sprint("number ", i)})
		next(t, first, fmt.Sprint("number ", i)) // so that it is not behind too
	}
	w.mu.Lock()
	if w.listeners[slow] {
		t.Error("a listener that is behind is kept")
	}
	w.mu.Unlock()

	for range maxListeners - 1 {
		listen(t, srv)
	}
	resp, err := http.Get(srv.URL + "/events")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("one listener more than there may be: %s", resp.Status)
	}
}

// TestWebStarts: a start that failed is kept for the next daemon, and there are only so
// many.
func TestWebStarts(t *testing.T) {
	w, srv := newTestWeb(t)
	begun := time.Now()
	id, failed := w.begun("registry.example.com/<script>", begun)
	failed(errors.New("it is </script> gone"))
	w.d.wg.Wait()
	again := newWeb(w.d)
	again.load()
	if len(again.starts) != 1 || again.starts[0].ID != id || again.starts[0].State != report.StateFailed || !strings.HasPrefix(again.starts[0].Error, "it is </script> gone, after ") || !again.starts[0].Kept {
		t.Errorf("the next daemon has %+v", again.starts)
	}
	for path, want := range map[string]int{"/": 200, "/starts/" + id: 200, "/starts/20260101-000000-0000": 404, "/starts/": 404, "/x": 404} {
		resp, err := http.Get(srv.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: %s, want %d", path, resp.Status, want)
		}
	}
	for i := range maxStarts + 10 {
		w.put(report.Start{ID: fmt.Sprint(i)})
	}
	if len(w.starts) != maxStarts || w.starts[maxStarts-1].ID != fmt.Sprint(maxStarts+9) {
		t.Errorf("%d starts", len(w.starts))
	}
	var none *web
	if id, failed := none.begun("x", begun); id != "" {
		t.Error("nobody is shown a start")
	} else {
		failed(errors.New("x"))
	}
}
