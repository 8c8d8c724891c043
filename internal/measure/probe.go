package measure

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/measure/clock"
)

const (
	// probeEvery is the time between two probes of a server that takes connections,
	// and probeRefused between two of one that does not yet.
	probeEvery   = 10 * time.Millisecond
	probeRefused = 2 * time.Millisecond
	// probeTimeout bounds one probe. One that hangs does not keep another from being
	// made, up to probesAtOnce.
	probeTimeout = 10 * time.Second
	probesAtOnce = 2
)

// Prober asks a container until it answers.
type Prober struct {
	// Target is http://HOST:PORT/PATH, good when its status is 2xx or 3xx, or
	// tcp:[HOST:]PORT, good when it takes a connection.
	Target string
	// Pid is a process in whose network the target is; 0: ours.
	Pid int
}

// Port is the one that is probed.
func (p Prober) Port() int {
	_, port, _ := net.SplitHostPort(p.address())
	n, _ := strconv.Atoi(port)
	return n
}

// address is HOST:PORT.
func (p Prober) address() string {
	if rest, ok := strings.CutPrefix(p.Target, "tcp:"); ok {
		rest = strings.TrimPrefix(rest, "//")
		if !strings.Contains(rest, ":") {
			rest = "127.0.0.1:" + rest
		}
		return rest
	}
	u, err := url.Parse(p.Target)
	if err != nil {
		return ""
	}
	if u.Port() == "" {
		return net.JoinHostPort(u.Hostname(), map[string]string{"https": "443"}[u.Scheme]+map[string]string{"http": "80"}[u.Scheme])
	}
	return u.Host
}

// Answer is a probe that was good.
type Answer struct {
	At     time.Duration // when it was answered, of the monotonic clock
	Probes int           // that were made
	Denied int           // that were answered, but not well
}

// Wait probes until the answer is good, and returns the context's error when that ends
// first.
func (p Prober) Wait(ctx context.Context) (Answer, error) {
	ctx, cancel := context.WithCancel(ctx)
	type result struct {
		at  time.Duration
		err error
	}
	results := make(chan result, probesAtOnce)
	out, last := Answer{}, error(nil)
	running := 0
	defer func() {
		cancel()
		for ; running > 0; running-- {
			<-results
		}
	}()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return out, fmt.Errorf("wait for %s: %w (last probe: %v)", p.Target, context.Cause(ctx), last)
		case <-timer.C:
			timer.Reset(probeEvery)
			if running == probesAtOnce {
				continue
			}
			running++
			out.Probes++
			go func() {
				at, err := p.once(ctx)
				results <- result{at, err}
			}()
		case r := <-results:
			running--
			if r.err == nil {
				out.At = r.at
				return out, nil
			}
			last = r.err
			var denied statusError
			if errors.As(r.err, &denied) {
				out.Denied++
			} else if errors.Is(r.err, unix.ECONNREFUSED) {
				timer.Reset(probeRefused)
			}
		}
	}
}

// statusError is an answer that is not good.
type statusError string

func (e statusError) Error() string { return string(e) }

// once makes one probe.
func (p Prober) once(ctx context.Context) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	if strings.HasPrefix(p.Target, "tcp:") {
		c, err := p.dial(ctx)
		if err != nil {
			return 0, err
		}
		return clock.Now(), c.Close()
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.Target, nil)
	if err != nil {
		return 0, err
	}
	resp, err := p.client().Do(req)
	if err != nil {
		return 0, err
	}
	at := clock.Now()
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, 4<<10) // be polite to a simple server; the status is what counts
	if resp.StatusCode >= 400 {
		return 0, statusError(resp.Status)
	}
	return at, nil
}

// client makes each request over a connection of its own.
func (p Prober) client() *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return p.dial(ctx) },
			DisableKeepAlives: true,
			TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, // a probe, as the kubelet's
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// dial connects to the target, in its network.
func (p Prober) dial(ctx context.Context) (net.Conn, error) {
	d := &net.Dialer{}
	if p.Pid == 0 {
		return d.DialContext(ctx, "tcp", p.address())
	}
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread stays in that network, and ends
		if err := enterNetwork(p.Pid); err != nil {
			done <- result{nil, err}
			return
		}
		d.FallbackDelay = -1 // of addresses at once: they would be dialled by other threads
		conn, err := d.DialContext(ctx, "tcp", p.address())
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}

func enterNetwork(pid int) error {
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/net", pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("find network of process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network of process %d: %w", pid, err)
	}
	return nil
}

// requestTimeout bounds a request.
const requestTimeout = time.Minute

// Request makes a request over a connection of its own, to the target's host and port
// whatever the URL names, and reads all of its answer.
func (p Prober) Request(ctx context.Context, method, url string) (begun, ended time.Duration, status int, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return 0, 0, 0, err
	}
	client := p.client()
	begun = clock.Now()
	resp, err := client.Do(req)
	if err != nil {
		return begun, clock.Now(), 0, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return begun, clock.Now(), resp.StatusCode, err
}
