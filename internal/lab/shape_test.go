package lab

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/thaw-project/thaw/internal/testenv"
)

const mb = 1_000_000

// pipe returns a shaped writing end whose other end is read by nobody yet.
func pipe(t *testing.T, network Network, line *link) (*conn, net.Conn) {
	t.Helper()
	near, far := net.Pipe()
	c := newConn(near, network, line)
	t.Cleanup(func() { c.Close(); far.Close() })
	return c, far
}

// send writes n bytes and returns how long they took to arrive.
func send(t *testing.T, c *conn, far io.Reader, n int64) time.Duration {
	t.Helper()
	start := time.Now()
	var group sync.WaitGroup
	group.Go(func() {
		if _, err := c.Write(make([]byte, n)); err != nil {
			t.Error(err)
		}
	})
	if _, err := io.CopyN(io.Discard, far, n); err != nil {
		t.Error(err)
	}
	took := time.Since(start)
	group.Wait()
	return took
}

func near(got, want time.Duration, percent float64) bool {
	return (got - want).Abs().Seconds() <= want.Seconds()*percent/100
}

func TestOneConnectionHasItsRate(t *testing.T) {
	cases := []struct {
		net  string
		size int64
		want time.Duration
	}{
		{"cloud", 60 * mb, time.Second},
		{"slow", 10 * mb, time.Second},
		{"fast", 200 * mb, time.Second},
		{"cloud", 600_000, 10 * time.Millisecond},
	}
	for _, c := range cases {
		t.Run(c.net, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				network, err := Profile(c.net)
				if err != nil {
					t.Fatal(err)
				}
				w, far := pipe(t, network, newLink(network.Rate))
				if got := send(t, w, far, c.size); !near(got, c.want, 3) {
					t.Errorf("%d bytes took %v, want %v", c.size, got, c.want)
				}
			})
		})
	}
}

func TestConnectionsShareTheLineFairly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network, err := Profile("cloud")
		if err != nil {
			t.Fatal(err)
		}
		line := newLink(network.Rate)
		const each = 250 * mb / 8
		took := make([]time.Duration, 8)
		var group sync.WaitGroup
		for i := range took {
			w, far := pipe(t, network, line)
			group.Go(func() { took[i] = send(t, w, far, each) })
		}
		group.Wait()
		for i, got := range took {
			if !near(got, time.Second, 3) {
				t.Errorf("connection %d took %v of the 1 s all should", i, got)
			}
		}
	})
}

// TestPauseGivesNoCredit: who was silent may not send faster afterwards.
func TestPauseGivesNoCredit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := Network{ConnRate: 10 * mb, Rate: 10 * mb}
		w, far := pipe(t, network, newLink(network.Rate))
		for range 5 {
			if got := send(t, w, far, mb); !near(got, 100*time.Millisecond, 1) {
				t.Errorf("1 MB took %v, want 100 ms", got)
			}
			time.Sleep(time.Second)
		}
	})
}

// TestLateWakeUpsAreCaughtUp: a writer that is delayed by a busy machine within
// the catch-up limit still has the rate on average.
func TestLateWakeUpsAreCaughtUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := Network{ConnRate: 10 * mb}
		near1, far := net.Pipe()
		defer far.Close()
		w := newConn(&lateConn{Conn: near1, late: 4 * time.Millisecond}, network, newLink(0))
		defer w.Close()
		if got := send(t, w, far, 5*mb); !near(got, 500*time.Millisecond, 3) {
			t.Errorf("5 MB took %v, want 500 ms", got)
		}
	})
}

type lateConn struct {
	net.Conn
	late time.Duration
	n    int
}

func (c *lateConn) Write(p []byte) (int, error) {
	if c.n++; c.n%4 == 0 {
		time.Sleep(c.late)
	}
	return c.Conn.Write(p)
}

func TestFirstByteIsHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := Network{TTFB: 20 * time.Millisecond, Connect: 15 * time.Millisecond}
		w, far := pipe(t, network, newLink(0))
		for i, want := range []time.Duration{35 * time.Millisecond, 20 * time.Millisecond, 20 * time.Millisecond} {
			w.request(time.Now(), 0)
			if got := send(t, w, far, 100); got != want {
				t.Errorf("request %d: first byte after %v, want %v", i, got, want)
			}
		}
		w.request(time.Now(), time.Second)
		if got, want := send(t, w, far, 100), 1020*time.Millisecond; got != want {
			t.Errorf("delayed request: first byte after %v, want %v", got, want)
		}
	})
}

func TestCloseEndsAWaitingWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _ := pipe(t, Network{TTFB: time.Hour}, newLink(0))
		w.request(time.Now(), 0)
		done := make(chan error, 1)
		go func() {
			_, err := w.Write([]byte("x"))
			done <- err
		}()
		synctest.Wait()
		w.Close()
		if err := <-done; err == nil {
			t.Error("write on a closed connection succeeded")
		}
	})
}

// TestRealTime reads through real sockets. A busy machine can only make it
// slower, so the best of a few tries counts, without the time in which it was busy.
func TestRealTime(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	network, err := Profile("cloud")
	if err != nil {
		t.Fatal(err)
	}
	s := newServer(t, Options{Dir: dir, Network: network})
	dgst := pushBlob(t, s, make([]byte, 60*mb))
	for range 10 {
		watch := testenv.Start()
		resp := get(t, blobURL(s, dgst), nil)
		if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != 60*mb {
			t.Fatalf("read %d bytes: %v", n, err)
		}
		resp.Body.Close()
		took := watch.Took() - network.TTFB
		if took < 950*time.Millisecond {
			t.Fatalf("60 MB at 60 MB/s took %v after the first byte, want 1 s", took)
		}
		over, starved := watch.Over(network.TTFB + 1050*time.Millisecond)
		if !over {
			return
		}
		t.Logf("60 MB at 60 MB/s took %v after the first byte, want 1 s; the machine was busy for %v", took, starved)
	}
	t.Error("it never took 1 s")
}
