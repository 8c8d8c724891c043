package measure

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/measure/clock"
)

const (
	// probeEvery is the time between two probes of a server that takes connections. One that
	// does not yet is probed every probeRefused, or, if that is more, every 1/probeShare of the
	// time since the first probe.
	probeEvery   = 10 * time.Millisecond
	probeRefused = 2 * time.Millisecond
	probeShare   = 200
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
	At time.Duration // when it was answered, of the monotonic clock
	// Reached is when a probe had a connection, the first one that was not refused: by then
	// it listened, and Late before it did not, unless that is 0.
	Reached, Late time.Duration

	Probes int // that were made
	Denied int // that were answered, but not well
}

// Wait probes until the answer is good, and returns the context's error when that ends
// first.
func (p Prober) Wait(ctx context.Context) (Answer, error) {
	ctx, cancel := context.WithCancel(ctx)
	results := make(chan probe, probesAtOnce)
	out, last := Answer{}, error(nil)
	running, refused := 0, time.Duration(0)
	defer func() {
		cancel()
		for ; running > 0; running-- {
			<-results
		}
	}()
	at, begun := p.here(), clock.Now()
	again := func() time.Duration { return min(max(probeRefused, (clock.Now()-begun)/probeShare), probeEvery) }
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
			out.Probes++
			r := probe{begun: clock.Now()}
			if at != nil && out.Reached == 0 && running == 0 {
				if r.conn, last = knock(at); last != nil {
					refused = r.begun
					timer.Reset(again())
					continue
				}
			}
			running++
			go func() { results <- p.once(ctx, r) }()
		case r := <-results:
			running--
			if r.connected > 0 && out.Reached == 0 {
				out.Reached = r.connected
				if refused > 0 {
					out.Late = max(0, r.connected-refused)
				}
			}
			if r.err == nil {
				out.At = r.answered
				return out, nil
			}
			last = r.err
			var denied statusError
			if errors.As(r.err, &denied) {
				out.Denied++
			} else if errors.Is(r.err, unix.ECONNREFUSED) {
				refused = r.begun
				timer.Reset(again())
			}
		}
	}
}

// statusError is an answer that is not good.
type statusError string

func (e statusError) Error() string { return string(e) }

// probe is one of them: when it began, when it had a connection, when an answer.
type probe struct {
	begun, connected, answered time.Duration
	conn                       net.Conn // nil: it has none yet
	err                        error
}

// once makes one probe, or what is left of it.
func (p Prober) once(ctx context.Context, r probe) probe {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	if r.conn == nil {
		if r.conn, r.err = p.dial(ctx); r.err != nil {
			return r
		}
	}
	defer r.conn.Close()
	r.connected = clock.Now()
	if strings.HasPrefix(p.Target, "tcp:") {
		r.answered = r.connected
		return r
	}
	r.answered, r.err = p.get(ctx, r.conn)
	return r
}

// here is the target's address if it needs no looking up, and no other network; nil
// otherwise.
func (p Prober) here() unix.Sockaddr {
	at, err := netip.ParseAddrPort(p.address())
	switch {
	case err != nil || p.Pid != 0 || at.Addr().Zone() != "":
		return nil
	case at.Addr().Is4():
		return &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()}
}

// knock makes a connection, if it can be told at once whether there is one: most probes
// find nobody who listens, and are not to hold up a program that is starting. The error
// is that it was refused. Without either it is to be dialled.
func knock(at unix.Sockaddr) (net.Conn, error) {
	family := unix.AF_INET
	if _, is6 := at.(*unix.SockaddrInet6); is6 {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil
	}
	f := os.NewFile(uintptr(fd), "connection")
	defer f.Close() // the connection has its own
	if err = unix.Connect(fd, at); errors.Is(err, unix.EINPROGRESS) {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		if n, _ := unix.Poll(fds, 0); n == 1 {
			errno, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
			err = unix.Errno(errno)
		}
	}
	if errors.Is(err, unix.ECONNREFUSED) {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: err}
	}
	if err != nil && err != unix.Errno(0) {
		return nil, nil
	}
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, nil
	}
	if conn.LocalAddr().String() == conn.RemoteAddr().String() { // with itself, by chance
		conn.Close()
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: unix.ECONNREFUSED}
	}
	return conn, nil
}

// get makes a probe's request over its connection, and returns when it was answered.
func (p Prober) get(ctx context.Context, conn net.Conn) (time.Duration, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.Target, nil)
	if err != nil {
		return 0, err
	}
	resp, err := client(func(context.Context) (net.Conn, error) { return conn, nil }).Do(req)
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
func client(dial func(ctx context.Context) (net.Conn, error)) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
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
	c := client(p.dial)
	begun = clock.Now()
	resp, err := c.Do(req)
	if err != nil {
		return begun, clock.Now(), 0, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return begun, clock.Now(), resp.StatusCode, err
}
