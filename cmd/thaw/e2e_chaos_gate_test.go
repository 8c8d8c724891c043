package main

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"
)

// States of a gate.
const (
	gateUp   = iota
	gateDown // connections are refused, those that are there reset
	gateHole // nothing passes, and nobody is told
)

// chaosGate is a way to the registry that can be closed.
type chaosGate struct {
	addr, to string
	mu       sync.Mutex // guards what follows
	state    int
	opened   chan struct{} // closed when the state is not gateHole any more
	listener net.Listener
	conns    map[net.Conn]bool
}

func newChaosGate(t *testing.T, to string) *chaosGate {
	g := &chaosGate{to: to, addr: "127.0.0.1:" + freePort(t), state: gateDown, opened: make(chan struct{}), conns: map[net.Conn]bool{}}
	close(g.opened)
	g.set(gateUp)
	t.Cleanup(func() { g.set(gateDown) })
	return g
}

func (g *chaosGate) set(state int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.state == gateHole && state != gateHole {
		close(g.opened)
	}
	switch {
	case state == gateDown && g.listener == nil: // it is
	case state == gateDown:
		g.listener.Close()
		g.listener = nil
		for conn := range g.conns {
			conn.(*net.TCPConn).SetLinger(0)
			conn.Close()
		}
	case g.listener == nil:
		l, err := net.Listen("tcp", g.addr)
		for err != nil { // a connection may have the port for a moment
			time.Sleep(10 * time.Millisecond)
			l, err = net.Listen("tcp", g.addr)
		}
		g.listener, g.addr = l, l.Addr().String()
		go g.accept(l)
	}
	if state == gateHole {
		g.opened = make(chan struct{})
	}
	g.state = state
}

func (g *chaosGate) accept(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go g.pass(conn)
	}
}

func (g *chaosGate) pass(in net.Conn) {
	defer in.Close()
	out, err := new(net.Dialer).DialContext(context.Background(), "tcp", g.to)
	if err != nil {
		return
	}
	defer out.Close()
	g.mu.Lock()
	if g.state == gateDown {
		g.mu.Unlock()
		return
	}
	g.conns[in], g.conns[out] = true, true
	g.mu.Unlock()
	done := make(chan struct{}, 2)
	for _, way := range [][2]net.Conn{{in, out}, {out, in}} {
		go func() {
			g.copy(way[1], way[0])
			done <- struct{}{}
		}()
	}
	<-done
	g.mu.Lock()
	delete(g.conns, in)
	delete(g.conns, out)
	g.mu.Unlock()
}

func (g *chaosGate) copy(to, from net.Conn) {
	b := make([]byte, 64<<10)
	for {
		n, err := from.Read(b)
		g.mu.Lock()
		opened := g.opened
		hole := g.state == gateHole
		g.mu.Unlock()
		if hole {
			<-opened
		}
		if n > 0 {
			if _, err := to.Write(b[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
