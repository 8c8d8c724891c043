package lab

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Pacing is by virtual clocks, not by ticking: each connection and the shared
// line know when they are free again, a chunk moves both clocks on by its size
// over their rate, and is released when its last byte would have arrived. One
// sleep a chunk, and a late wake-up is made good by the next chunk since the
// clocks run on schedule and not on when we woke.
const (
	chunkMin     = 16 << 10  // first chunk after a pause, so that a first byte is not held for a large one
	chunkMax     = 256 << 10 // ramped up to this ...
	chunkTime    = 2 * time.Millisecond
	idleGap      = 2 * time.Millisecond  // a shorter pause between two writes is the server's own and may be caught up
	creditMax    = 50 * time.Millisecond // most that is caught up
	sleepMin     = 250 * time.Microsecond
	backpressure = 5 * time.Millisecond // a write blocked for longer: the reader is slow, that time is lost
)

// link is the line all connections share. Connections reserve one chunk at a
// time and wait for it, so they share fairly, first come first served.
type link struct {
	rate int64 // bytes a second, 0 unlimited

	mu      sync.Mutex // guards all below
	next    time.Time  // when everything reserved so far has been sent
	senders int
	left    time.Time // when senders fell to zero
}

func newLink(rate int64) *link { return &link{rate: rate} }

func (l *link) enter(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.senders == 0 && now.Sub(l.left) > idleGap {
		l.next = later(l.next, now)
	}
	l.senders++
}

func (l *link) leave(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.senders--
	l.left = now
}

// reserve returns when n more bytes will have been sent.
func (l *link) reserve(n int, now time.Time) time.Time {
	if l.rate == 0 {
		return time.Time{}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.next = later(l.next, now.Add(-creditMax)).Add(duration(n, l.rate))
	return l.next
}

// duration is the time n bytes take at rate bytes a second; 0 is no limit.
func duration(n int, rate int64) time.Duration {
	if rate == 0 {
		return 0
	}
	return time.Duration(float64(n) / float64(rate) * float64(time.Second))
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// conn is a connection whose writes take as long as on the network given.
type conn struct {
	net.Conn
	network Network
	line    *link
	ready   time.Time // when the client's handshakes are over
	chunkTo int       // largest chunk
	closed  chan struct{}
	once    sync.Once

	mu    sync.Mutex // guards all below, held during a write
	hold  time.Time  // nothing is sent before
	next  time.Time  // when all of this connection's bytes have been sent
	left  time.Time  // end of the last write
	chunk int
	timer *time.Timer
}

func newConn(inner net.Conn, network Network, line *link) *conn {
	slowest := network.ConnRate
	if network.Rate > 0 && (slowest == 0 || network.Rate < slowest) {
		slowest = network.Rate
	}
	chunkTo := chunkMax
	if slowest > 0 {
		chunkTo = min(max(int(float64(slowest)*chunkTime.Seconds()), 1<<10), chunkMax)
	}
	return &conn{
		Conn:    inner,
		network: network,
		line:    line,
		ready:   time.Now().Add(network.Connect),
		chunkTo: chunkTo,
		closed:  make(chan struct{}),
	}
}

// request starts the wait for the first byte of an answer: the network's time,
// and extra.
func (c *conn) request(arrived time.Time, extra time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hold = later(arrived, c.ready).Add(c.network.TTFB + extra)
}

// Write sends p at the network's speed.
func (c *conn) Write(p []byte) (int, error) {
	total := 0
	err := c.send(int64(len(p)), func(n int) (int64, error) {
		m, err := c.Conn.Write(p[total : total+n])
		total += m
		return int64(m), err
	})
	return total, err
}

// ReadFrom sends what r holds at the network's speed. A file, or a part of one,
// goes to a TCP connection without passing through this process.
func (c *conn) ReadFrom(r io.Reader) (int64, error) {
	rf, ok := c.Conn.(io.ReaderFrom)
	limited, isLimited := r.(*io.LimitedReader)
	if !ok || !isLimited {
		return io.Copy(struct{ io.Writer }{c}, r)
	}
	var total int64
	err := c.send(limited.N, func(n int) (int64, error) {
		m, err := rf.ReadFrom(&io.LimitedReader{R: limited.R, N: int64(n)})
		total += m
		limited.N -= m
		return m, err
	})
	if err == io.EOF {
		err = nil // r was shorter than its limit
	}
	return total, err
}

// send calls write for one chunk of left bytes after the other, each in its
// time. It returns io.EOF when write moved less than it was told.
func (c *conn) send(left int64, write func(n int) (int64, error)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if left <= 0 {
		return nil
	}
	now := time.Now()
	if c.hold.After(now) {
		if err := c.sleepUntil(c.hold); err != nil {
			return err
		}
		// The schedule, not the wake-up: oversleeping is caught up.
		c.next, c.left, c.chunk = c.hold, c.hold, chunkMin
		now = time.Now()
	} else if now.Sub(c.left) > idleGap {
		c.next, c.chunk = later(c.next, now), chunkMin
	}
	c.line.enter(now)
	defer func() {
		c.left = time.Now()
		c.line.leave(c.left)
	}()
	for left > 0 {
		n := int(min(left, int64(min(c.chunk, c.chunkTo))))
		c.chunk = min(c.chunk*2, c.chunkTo)
		if err := c.pace(n); err != nil {
			return err
		}
		before := time.Now()
		m, err := write(n)
		if now := time.Now(); now.Sub(before) > backpressure {
			c.next = later(c.next, now)
		}
		if err != nil {
			return err
		}
		if m < int64(n) {
			return io.EOF
		}
		left -= m
	}
	return nil
}

// pace waits until n more bytes may have arrived at the client.
func (c *conn) pace(n int) error {
	now := time.Now()
	c.next = later(c.next, now.Add(-creditMax)).Add(duration(n, c.network.ConnRate))
	// Time lost waiting for the line is not credit for this connection.
	c.next = later(c.next, c.line.reserve(n, now))
	return c.sleepUntil(c.next)
}

func (c *conn) sleepUntil(t time.Time) error {
	d := time.Until(t)
	if d < sleepMin {
		return nil
	}
	if c.timer == nil {
		c.timer = time.NewTimer(d)
	} else {
		c.timer.Reset(d)
	}
	select {
	case <-c.timer.C:
		return nil
	case <-c.closed:
		c.timer.Stop()
		return net.ErrClosed
	}
}

// Close ends a waiting write as well.
func (c *conn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// CloseWrite sends a FIN; net/http looks for it.
func (c *conn) CloseWrite() error {
	if tcp, ok := c.Conn.(*net.TCPConn); ok {
		return tcp.CloseWrite()
	}
	return c.Close()
}

// abort closes with an RST: the client sees "connection reset by peer".
func (c *conn) abort() {
	if tcp, ok := c.Conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = c.Close()
}

// shapedListener shapes what it accepts.
type shapedListener struct {
	net.Listener
	network  Network
	line     *link
	accepted *atomic.Int64
}

func (l *shapedListener) Accept() (net.Conn, error) {
	inner, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.accepted.Add(1)
	return newConn(inner, l.network, l.line), nil
}
