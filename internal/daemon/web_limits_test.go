package daemon

import (
	"bufio"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/thaw-project/thaw/internal/report"
)

func bareWeb(t *testing.T) *web {
	t.Helper()
	return newWeb(&Daemon{cfg: Config{Root: t.TempDir()}, ctx: t.Context(), log: slog.New(slog.DiscardHandler)})
}

// TestWebIDs: of many starts in one second each has an ID of its own.
func TestWebIDs(t *testing.T) {
	t.Parallel()
	w, begun, seen := bareWeb(t), time.Now(), map[string]bool{}
	for range maxStarts {
		id := w.newID(begun)
		if seen[id] {
			t.Fatalf("two starts are %s", id)
		}
		seen[id] = true
		w.put(report.Start{ID: id, Begun: begun})
	}
}

// TestWebPages: a page that nobody reads on holds up others, not the daemon.
func TestWebPages(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := bareWeb(t)
		h := w.handler()
		get := func() int {
			rec := httptest.NewRecorder()
			r := httptest.NewRequest(http.MethodGet, "/", nil)
			r.Host = "localhost"
			h.ServeHTTP(rec, r)
			return rec.Code
		}
		if code := get(); code != http.StatusOK || len(w.pages) != 0 {
			t.Errorf("%d, and %d pages are being made", code, len(w.pages))
		}
		for range maxPages {
			w.pages <- struct{}{}
		}
		if code := get(); code != http.StatusServiceUnavailable {
			t.Errorf("%d when all are taken", code)
		}
		codes := make(chan int)
		go func() { codes <- get() }()
		synctest.Wait()
		<-w.pages
		if code := <-codes; code != http.StatusOK {
			t.Errorf("%d when one is free again", code)
		}
	})
}

// TestFewConns: no more connections than there may be are open, and one that ends lets in
// the next.
func TestFewConns(t *testing.T) {
	t.Parallel()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := newFewConns(inner)
	var mu sync.Mutex
	open, most := 0, 0
	srv := &http.Server{Handler: bareWeb(t).handler(), ConnState: func(_ net.Conn, s http.ConnState) {
		mu.Lock()
		defer mu.Unlock()
		switch s {
		case http.StateNew:
			open++
			most = max(most, open)
		case http.StateClosed, http.StateHijacked:
			open--
		}
	}}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	var all []net.Conn
	ask := func() net.Conn {
		c, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, "GET /starts/x HTTP/1.1\r\nHost: localhost\r\n\r\n")
		all = append(all, c)
		return c
	}
	answered := func(c net.Conn) {
		t.Helper()
		if resp, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || resp.StatusCode != http.StatusNotFound {
			t.Fatalf("%+v, %v", resp, err)
		}
	}
	for range maxConnections {
		answered(ask())
	}
	one, two := ask(), ask()
	all[0].Close()
	answered(one)
	all[1].Close()
	answered(two)
	mu.Lock()
	if most > maxConnections+1 || len(l.taken) > maxConnections { // one that ends may be told of after its successor
		t.Errorf("%d were open at once", most)
	}
	mu.Unlock()
	one.Close()
	srv.Close()
	if err := <-served; err != http.ErrServerClosed {
		t.Error(err)
	}
	for _, c := range all {
		c.Close()
	}
}
