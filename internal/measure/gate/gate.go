// Package gate is what `thaw run` and who observes it say to each other, over a socket
// that the one inherits from the other: JSON lines.
//
// The run says where its container's root is, and waits: nothing has been opened in it
// yet. Told to go on it says which process was created, and is told in turn when the
// container was ready, instead of probing it as well. When the observer is gone the run
// ends: what it started for a measurement is of no use to anybody else.
package gate

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Message is a line. One field is set.
type Message struct {
	Mounted *Mounted  `json:"mounted,omitempty"` // by the run
	Created *Created  `json:"created,omitempty"`
	Go      bool      `json:"go,omitempty"` // by the observer
	Ready   time.Time `json:"ready,omitzero"`
}

// Mounted says that a container's root is there.
type Mounted struct {
	ID     string          `json:"id"`  // of the mount and the container
	Dir    string          `json:"dir"` // its root
	Bundle string          `json:"bundle"`
	Config json.RawMessage `json:"config,omitempty"` // of the image
}

// Created says that a container is there, and its program about to be executed.
type Created struct {
	Pid int `json:"pid"` // of its first process
}

// Conn is an end of the socket. Sending and receiving may go on at the same time.
type Conn struct {
	conn net.Conn
	dec  *json.Decoder
}

// Pair makes a socket: an end for this process, and the other's, to be inherited.
func Pair() (*Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	other := os.NewFile(uintptr(fds[1]), "gate")
	c, err := open(fds[0])
	if err != nil {
		other.Close()
		return nil, nil, err
	}
	return c, other, nil
}

// Inherited opens the end that this process was given as a descriptor. Nothing that
// this process starts inherits it.
func Inherited(fd int) (*Conn, error) {
	unix.CloseOnExec(fd)
	return open(fd)
}

func open(fd int) (*Conn, error) {
	f := os.NewFile(uintptr(fd), "gate")
	if f == nil {
		return nil, fmt.Errorf("open gate: %d is no descriptor", fd)
	}
	defer f.Close() // the connection has its own
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("open gate: %w", err)
	}
	return &Conn{conn, json.NewDecoder(conn)}, nil
}

// Send says something.
func (c *Conn) Send(m Message) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if _, err := c.conn.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("tell through gate: %w", err)
	}
	return nil
}

// ErrGone says that the other end is closed.
var ErrGone = errors.New("the other end of the gate is gone")

// Receive waits for what the other end says; ErrGone when it says nothing any more.
func (c *Conn) Receive() (Message, error) {
	var m Message
	err := c.dec.Decode(&m)
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, unix.ECONNRESET) {
		return m, ErrGone
	}
	return m, err
}

// Close closes this end; the other one's Receive returns ErrGone.
func (c *Conn) Close() error { return c.conn.Close() }
