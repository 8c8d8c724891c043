package measure

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/thaw-project/thaw/internal/measure/clock"
	"github.com/thaw-project/thaw/internal/profile"
)

// TestProber: it waits until the status is good, and says how often it was not.
func TestProber(t *testing.T) {
	var asked atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if asked.Add(1) < 5 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer s.Close()
	before := clock.Now()
	a, err := Prober{Target: s.URL + "/ready"}.Wait(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if a.Denied < 3 || a.At < before || a.At > clock.Now() || a.Reached < before || a.Reached >= a.At || a.Late != 0 {
		t.Errorf("answer %+v", a)
	}
	port := s.Listener.Addr().(*net.TCPAddr).Port
	for _, target := range []string{fmt.Sprintf("tcp:%d", port), fmt.Sprintf("tcp:127.0.0.1:%d", port)} {
		p := Prober{Target: target}
		if _, err := p.Wait(t.Context()); err != nil || p.Port() != port {
			t.Errorf("%s: port %d, %v", target, p.Port(), err)
		}
	}
}

// TestProberRefused: nobody listens, and then the context ends.
func TestProberRefused(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if a, err := (Prober{Target: fmt.Sprintf("tcp:%d", port)}).Wait(ctx); err == nil || a.Probes == 0 {
		t.Errorf("%+v, %v", a, err)
	}
}

// TestProberReached: it says when somebody listened, and until when nobody did.
func TestProberReached(t *testing.T) {
	for range 20 { // the prober may come to its first probe too late to be refused
		listened, a := reach(t)
		if a.At <= a.Reached || a.Reached-a.Late > listened {
			t.Fatalf("listened at %v: %+v", listened, a)
		}
		if a.Late > 0 {
			return
		}
	}
	t.Error("no probe was refused")
}

// reach probes a server that listens some time later, and says when.
func reach(t *testing.T) (listened time.Duration, a Answer) {
	t.Helper()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr().String()
	free.Close()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	s.Listener.Close()
	done := make(chan error, 1)
	go func() {
		for range 100 {
			if c, err := net.Dial("tcp", addr); err == nil {
				c.Close()
			}
		}
		l, err := net.Listen("tcp", addr)
		if err == nil {
			s.Listener, listened = l, clock.Now()
			s.Start()
		}
		done <- err
	}()
	a, err = Prober{Target: "http://" + addr}.Wait(t.Context())
	if err := errors.Join(err, <-done); err != nil {
		t.Fatal(err)
	}
	s.Close()
	return listened, a
}

func TestProberPort(t *testing.T) {
	for target, want := range map[string]int{"http://h/x": 80, "https://h": 443, "http://h:8080/": 8080, "tcp:81": 81, "tcp://h:82": 82, "x": 0} {
		if got := (Prober{Target: target}).Port(); got != want {
			t.Errorf("%s: port %d, want %d", target, got, want)
		}
	}
}

func TestListens(t *testing.T) {
	const table = `  sl  local_address rem_address   st tx_queue rx_queue
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000
   1: 0100007F:1F91 0100007F:1F92 01 00000000:00000000
`
	for port, want := range map[int]bool{8080: true, 8081: false, 80: false} {
		if listens([]byte(table), port) != want {
			t.Errorf("port %d: not %v", port, want)
		}
	}
}

// TestPoll: listening is found in /proc.
func TestPoll(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p := pollListen(os.Getpid(), l.Addr().(*net.TCPAddr).Port)
	<-p.done
	if at, late := p.found(); at == 0 || late <= 0 {
		t.Errorf("found at %v, late by %v", at, late)
	}
	p.close()
}

// TestPollLate: on a busy machine nobody may have looked before the container was ready;
// it listened by then.
func TestPollLate(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	zero := clock.Now()
	p := &poll{pid: os.Getpid(), port: l.Addr().(*net.TCPAddr).Port, looked: zero}
	target := (&Observer{}).Target()
	target.polls, target.port = p, p.port
	run := &profile.Run{Events: []profile.Event{{Name: profile.EventReady, AtMs: 0.25}}}
	for clock.Now() < zero+time.Millisecond { // it is later than that
		runtime.Gosched()
	}
	target.Fill(run, zero)
	if e := run.Event(profile.EventListen); e == nil || e.AtMs != 0.25 || e.PrecisionMs != milliseconds(pollEvery) {
		t.Errorf("listening: %+v", e)
	}
}

// TestMissing: without tracing and without a root, signals say why.
func TestMissing(t *testing.T) {
	o := &Observer{traceErr: fmt.Errorf("no tracing here")}
	target := o.Target()
	defer target.Close()
	got := map[string]string{}
	for _, s := range target.Signals() {
		if s.Used {
			t.Errorf("%s is used", s.Name)
		}
		got[s.Name] = s.Reason
	}
	if !strings.Contains(got["tracefs"], "no tracing here") || got["opens"] == "" || got["proc"] == "" {
		t.Errorf("reasons %v", got)
	}
}
