package container

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/thaw-project/thaw/internal/testenv"
)

func TestWaitReadyHTTP(t *testing.T) {
	cases := map[string]func(n int64, w http.ResponseWriter, r *http.Request){
		"at once": func(_ int64, w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") },
		"redirect": func(_ int64, w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "/away")
			w.WriteHeader(302)
		},
		"no content": func(_ int64, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) },
		"later": func(n int64, w http.ResponseWriter, _ *http.Request) {
			if n < 20 {
				w.WriteHeader(503)
			}
		},
		// The first attempt is accepted and never answered.
		"hangs first": func(n int64, _ http.ResponseWriter, r *http.Request) {
			if n == 1 {
				<-r.Context().Done()
			}
		},
		// A path that is not there is an answer, and not a good one.
		"not found first": func(n int64, w http.ResponseWriter, _ *http.Request) {
			if n < 3 {
				w.WriteHeader(404)
			}
		},
	}
	for name, answer := range cases {
		for _, start := range []func(http.Handler) *httptest.Server{httptest.NewServer, httptest.NewTLSServer} {
			var n atomic.Int64
			s := start(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { answer(n.Add(1), w, r) }))
			watch := testenv.Start()
			if err := WaitReady(t.Context(), s.URL+"/ready"); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if over, starved := watch.Over(5 * time.Second); over {
				t.Errorf("%s: took %v, the machine was busy for %v", name, watch.Took(), starved)
			}
			s.Close()
		}
	}
}

func TestWaitReadyTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{"tcp:" + port, "tcp:127.0.0.1:" + port, "tcp://127.0.0.1:" + port, "tcp:localhost:" + port} {
		if err := WaitReady(t.Context(), target); err != nil {
			t.Errorf("%s: %v", target, err)
		}
	}
}

// TestWaitReadySeesAServerThatComesLater measures how late it is noticed.
func TestWaitReadySeesAServerThatComesLater(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close() // refused from now on
	ready := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { ready <- WaitReady(ctx, "tcp:"+address) }()
	select {
	case err := <-ready:
		t.Fatalf("ready without a server: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	if l, err = net.Listen("tcp", address); err != nil {
		t.Skip("the port was taken meanwhile: ", err)
	}
	defer l.Close()
	up := testenv.Start()
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	if over, starved := up.Over(time.Second); over { // milliseconds on a machine that is not busy
		t.Errorf("noticed after %v, the machine was busy for %v", up.Took(), starved)
	}
}

func TestWaitReadyEndsWithTheContext(t *testing.T) {
	gone := errors.New("container ended")
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(10*time.Millisecond, func() { cancel(gone) })
	err := WaitReady(ctx, "tcp:127.0.0.1:1")
	if !errors.Is(err, gone) || !strings.Contains(err.Error(), "refused") {
		t.Errorf("error %v names neither the cause nor the last attempt", err)
	}
}

func TestCheckReady(t *testing.T) {
	for _, target := range []string{"http://127.0.0.1:80/x", "https://a", "tcp:80", "tcp:a:80", "tcp:[::1]:80"} {
		if err := CheckReady(target); err != nil {
			t.Errorf("%s: %v", target, err)
		}
	}
	for _, target := range []string{"", "80", "ftp://a", "http://", "tcp:", "tcp:0", "tcp:x", "tcp:a:b:80", "tcp:99999", "http:/ready"} {
		if err := CheckReady(target); err == nil {
			t.Errorf("%q is accepted", target)
		}
	}
}
