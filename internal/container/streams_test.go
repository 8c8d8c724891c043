package container

import (
	"bufio"
	"bytes"
	"errors"
	"strconv"
	"strings"
	"testing"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

func TestStreams(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, opts Options) {
		var out, stderr bytes.Buffer
		opts.Stdout, opts.Stderr, opts.Args = &out, &stderr, []string{"say"}
		if _, err := Run(t.Context(), opts); err != nil {
			t.Fatal(err)
		}
		if out.String() != "out\n" || stderr.String() != "err\n" {
			t.Errorf("stdout %q, stderr %q", &out, &stderr)
		}
		text := strings.Repeat("0123456789", 100_000)
		opts.Args, opts.OpenStdin, opts.Stdin = []string{"echo"}, true, strings.NewReader(text)
		out.Reset()
		if _, err := Run(t.Context(), opts); err != nil {
			t.Fatal(err)
		}
		if out.String() != text {
			t.Errorf("echo gave %d bytes of %d", out.Len(), len(text))
		}
		opts.OpenStdin = false // not connected: end of file at once
		out.Reset()
		if _, err := Run(t.Context(), opts); err != nil || out.Len() != 0 {
			t.Errorf("echo without stdin: %v, %d bytes", err, out.Len())
		}
	})
}

func TestTerminal(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, opts Options) {
		user, app, err := pty.Open()
		if err != nil {
			t.Fatal(err)
		}
		defer user.Close()
		defer app.Close()
		before, err := unix.IoctlGetTermios(int(app.Fd()), unix.TCGETS)
		if err != nil {
			t.Fatal(err)
		}
		opts.TTY, opts.OpenStdin, opts.Stdin, opts.Stdout = true, true, app, app
		opts.Args = []string{"tty"}
		done := make(chan error, 1)
		go func() {
			code, err := Run(t.Context(), opts)
			if code != 0 {
				err = errors.Join(err, errors.New("code "+strconv.Itoa(code)))
			}
			done <- err
		}()
		out := bufio.NewReader(user)
		expect(t, out, "hello")
		if _, err := user.WriteString("typed\n"); err != nil {
			t.Fatal(err)
		}
		expect(t, out, "typed") // the terminal's echo
		expect(t, out, "read typed")
		if err := <-done; err != nil {
			t.Error(err)
		}
		after, err := unix.IoctlGetTermios(int(app.Fd()), unix.TCGETS)
		if err != nil {
			t.Fatal(err)
		}
		if *before != *after {
			t.Error("terminal is not as it was")
		}
	})
}

// TestCtrlCOfATerminalEndsTheContainer: what is typed is the container's, also
// when nobody of it reads.
func TestCtrlCOfATerminalEndsTheContainer(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, opts Options) {
		user, app, err := pty.Open()
		if err != nil {
			t.Fatal(err)
		}
		defer user.Close()
		defer app.Close()
		opts.TTY, opts.OpenStdin, opts.Stdin, opts.Stdout = true, true, app, app
		opts.Args = []string{"wait"}
		done := make(chan int, 1)
		go func() {
			code, err := Run(t.Context(), opts)
			if err != nil {
				t.Error(err)
			}
			done <- code
		}()
		out := bufio.NewReader(user)
		expect(t, out, "waiting")
		if _, err := user.Write([]byte{3}); err != nil {
			t.Fatal(err)
		}
		expect(t, out, "^Cgot 2")
		if code := <-done; code != 40 {
			t.Errorf("code %d", code)
		}
	})
}
