package container

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"

	"github.com/containerd/console"
	"github.com/containerd/go-runc"
	"golang.org/x/sys/unix"
)

// streams connects a container's stdin, stdout and stderr with those of the
// caller: files directly, anything else through pipes, and with a TTY the
// caller's with the terminal's other side. It is the IO that go-runc asks for.
type streams struct {
	child  [3]*os.File // what the runtime inherits
	owned  []*os.File  // to be closed once the runtime has them
	stdin  io.Reader
	stdout io.Writer

	socket *runc.Socket    // with a TTY: where the runtime sends the terminal
	remote console.Console // the terminal's other side ...
	master *os.File        // ... and for reading and writing
	far    chan received
	local  console.Console // the caller's terminal, when it is one
	resize func()          // ends following its size

	output sync.WaitGroup // copies that end with the container
	input  sync.WaitGroup // copies that end with wake
	wake   *os.File       // closed to end reading a file
	woken  *os.File
}

type received struct {
	console console.Console
	err     error
}

func openStreams(opts Options) (*streams, error) {
	s := &streams{stdin: opts.Stdin, stdout: opts.Stdout}
	if s.stdout == nil {
		s.stdout = io.Discard
	}
	err := s.open(opts)
	if err != nil {
		s.close()
		return nil, fmt.Errorf("open container streams: %w", err)
	}
	return s, nil
}

func (s *streams) open(opts Options) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	s.owned = append(s.owned, null)
	s.child = [3]*os.File{null, null, null}
	if !opts.OpenStdin {
		s.stdin = nil
	}
	if opts.TTY {
		return s.openTerminal(opts)
	}
	if s.stdin != nil {
		if s.child[0], err = s.reader(s.stdin); err != nil {
			return err
		}
	}
	for i, w := range []io.Writer{opts.Stdout, opts.Stderr} {
		if w == nil {
			continue
		}
		if s.child[i+1], err = s.writer(w); err != nil {
			return err
		}
	}
	return nil
}

// openTerminal makes the socket the terminal comes by.
func (s *streams) openTerminal(opts Options) error {
	// A unix socket's path has at most 107 bytes.
	path := filepath.Join(opts.Bundle, "console.sock")
	var err error
	if len(path) < 100 {
		_ = os.Remove(path) // of a run that was killed
		s.socket, err = runc.NewConsoleSocket(path)
	} else {
		s.socket, err = runc.NewTempConsoleSocket()
	}
	if err != nil {
		return err
	}
	s.far = make(chan received, 1)
	go func() {
		c, err := s.socket.ReceiveMaster()
		s.far <- received{c, err}
	}()
	return nil
}

// reader returns a file the container can read r by.
func (s *streams) reader(r io.Reader) (*os.File, error) {
	if f, ok := r.(*os.File); ok {
		return f, nil
	}
	near, far, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	s.owned = append(s.owned, near)
	// Not waited for: a Read of the caller's cannot be ended from here.
	go func() {
		_, _ = io.Copy(far, r) // the container need not read it all
		far.Close()
	}()
	return near, nil
}

// writer returns a file by which the container can write to w.
func (s *streams) writer(w io.Writer) (*os.File, error) {
	if f, ok := w.(*os.File); ok {
		return f, nil
	}
	near, far, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	s.owned = append(s.owned, far)
	s.output.Go(func() {
		defer near.Close()
		if _, err := io.Copy(w, near); err != nil {
			_, _ = io.Copy(io.Discard, near) // else the container would block for ever
		}
	})
	return far, nil
}

// Set, Close, Stdin, Stdout and Stderr are go-runc's IO.
func (s *streams) Set(cmd *exec.Cmd) {
	if s.socket != nil {
		// With a terminal the runtime's own streams are not the container's; left
		// empty go-runc reads them, as the message of an error.
		return
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = s.child[0], s.child[1], s.child[2]
}
func (s *streams) Close() error          { return nil }
func (s *streams) Stdin() io.WriteCloser { return nil }
func (s *streams) Stdout() io.ReadCloser { return nil }
func (s *streams) Stderr() io.ReadCloser { return nil }

func (s *streams) consoleSocket() runc.ConsoleSocket {
	if s.socket == nil {
		return nil // not a nil *Socket
	}
	return s.socket
}

// created drops this process's ends of what the container has now, and connects
// its terminal.
func (s *streams) created() error {
	s.closeOwned()
	if s.socket == nil {
		return nil
	}
	got := <-s.far
	s.far = nil
	if got.err != nil {
		return fmt.Errorf("receive terminal: %w", got.err)
	}
	s.remote = got.console
	master, err := pollable(got.console)
	if err != nil {
		return err
	}
	s.master = master
	s.output.Go(func() {
		// Ends with EIO when the last process with the terminal has ended.
		_, _ = io.Copy(s.stdout, master)
	})
	if s.stdin == nil {
		return nil
	}
	return s.connectInput()
}

// pollable returns the terminal's side as a file whose reads and writes can be
// ended by closing it.
func pollable(c console.Console) (*os.File, error) {
	fd, err := unix.FcntlInt(c.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("duplicate terminal: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "terminal"), nil
}

// connectInput passes on what is typed, raw when it comes from a terminal: its
// Ctrl-C is for the container. The container's terminal has the same size.
func (s *streams) connectInput() error {
	f, ok := s.stdin.(*os.File)
	if !ok {
		go func() { _, _ = io.Copy(s.master, s.stdin) }() // cannot be ended from here
		return nil
	}
	if local, err := console.ConsoleFromFile(f); err == nil {
		s.local = local
		if err := errors.Join(local.SetRaw(), plainOutput(f)); err != nil {
			return fmt.Errorf("set terminal to raw: %w", err)
		}
		_ = s.remote.ResizeFrom(local) // a terminal without a size
		changed, stop := notifyResize()
		s.resize = stop
		s.input.Go(func() {
			for range changed {
				_ = s.remote.ResizeFrom(local) // it may have ended
			}
		})
	}
	var err error
	if s.woken, s.wake, err = os.Pipe(); err != nil {
		return err
	}
	s.input.Go(func() { copyUntil(s.master, f, s.woken) })
	return nil
}

// plainOutput has a terminal show what it gets as it is, which console.SetRaw
// does not: the container's terminal has processed it already.
func plainOutput(f *os.File) error {
	state, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		return err
	}
	state.Oflag &^= unix.OPOST
	return unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, state)
}

// copyUntil copies from to to until stop is readable or closed. It waits in
// poll, for a blocked read of a terminal cannot be ended.
func copyUntil(to io.Writer, from, stop *os.File) {
	buf := make([]byte, 32<<10)
	fds := []unix.PollFd{{Fd: int32(from.Fd()), Events: unix.POLLIN}, {Fd: int32(stop.Fd()), Events: unix.POLLIN}}
	for {
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
		if fds[1].Revents != 0 {
			return
		}
		if fds[0].Revents == 0 {
			continue
		}
		n, err := from.Read(buf)
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (s *streams) closeOwned() {
	for _, f := range s.owned {
		f.Close()
	}
	s.owned = nil
}

// close waits for what the ended container has written, and gives the caller
// the terminal back as it was.
func (s *streams) close() {
	s.closeOwned()
	if s.socket != nil {
		s.socket.Close() // ends waiting for the terminal
		if s.far != nil {
			if got := <-s.far; got.err == nil {
				got.console.Close()
			}
		}
	}
	s.output.Wait()
	if s.master != nil {
		s.master.Close()
	}
	if s.resize != nil {
		s.resize()
	}
	if s.wake != nil {
		s.wake.Close()
	}
	s.input.Wait()
	if s.woken != nil {
		s.woken.Close()
	}
	if s.remote != nil {
		s.remote.Close()
	}
	if s.local != nil {
		_ = s.local.Reset() // the terminal may be gone
	}
}
