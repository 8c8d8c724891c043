package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"
)

// A way may be a program of its own, which keeps what it is linked with out of
// thaw. [NewProgram] runs one; its main function is [Serve]. They talk JSON, a
// line a message: a call with its name, and its answer. When the program's
// standard input ends it gives up what it does, removes what it has made and
// ends, with an error on its standard error and exit code 1 if it could not.

// Calls of a program.
const (
	callPrepare = "prepare"
	callReset   = "reset"
	callStart   = "start"
	callStop    = "stop"
)

type call struct {
	Call string `json:"call"`
}

type answer struct {
	Error string        `json:"error,omitempty"`
	Dirs  []string      `json:"dirs,omitempty"`
	Ready time.Duration `json:"ready_ns,omitempty"`
	Root  string        `json:"root,omitempty"`
}

// program is a Way in another process.
type program struct {
	path string
	args []string

	cmd     *exec.Cmd
	stdin   io.WriteCloser
	answers chan []byte // closed when the program says no more
	stderr  *Tail
}

// NewProgram returns the way that a program is.
func NewProgram(path string, args ...string) Way { return &program{path: path, args: args} }

// Prepare implements [Way].
func (p *program) Prepare(ctx context.Context) error {
	cmd := exec.Command(p.path, p.args...)
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true} // a terminal's Ctrl-C is for us
	p.stderr = &Tail{}
	cmd.Stderr = p.stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", p.path, err)
	}
	p.cmd, p.stdin, p.answers = cmd, stdin, make(chan []byte)
	go func() {
		defer close(p.answers)
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			p.answers <- append([]byte(nil), lines.Bytes()...)
		}
	}()
	_, err = p.call(ctx, callPrepare)
	return err
}

// call asks the program and waits for its answer, or the end of the context; the
// program then is of no more use.
func (p *program) call(ctx context.Context, name string) (*answer, error) {
	b, err := json.Marshal(call{name})
	if err != nil {
		return nil, err
	}
	if _, err := p.stdin.Write(append(b, '\n')); err != nil {
		return nil, fmt.Errorf("call %s: %w: %s", p.path, err, p.stderr)
	}
	select {
	case line, ok := <-p.answers:
		if !ok {
			return nil, fmt.Errorf("%s has ended: %s", p.path, p.stderr)
		}
		var a answer
		if err := json.Unmarshal(line, &a); err != nil {
			return nil, fmt.Errorf("read answer of %s: %w", p.path, err)
		}
		if a.Error != "" {
			return nil, errors.New(a.Error)
		}
		return &a, nil
	case <-ctx.Done():
		_ = p.stdin.Close() // it gives up; Close hears of errors
		return nil, ctx.Err()
	}
}

// Reset implements [Way].
func (p *program) Reset(ctx context.Context) ([]string, error) {
	a, err := p.call(ctx, callReset)
	if err != nil {
		return nil, err
	}
	return a.Dirs, nil
}

// Start implements [Way].
func (p *program) Start(ctx context.Context) (*Started, error) {
	a, err := p.call(ctx, callStart)
	if err != nil {
		return nil, err
	}
	return &Started{Ready: a.Ready, Root: a.Root, Stop: func(ctx context.Context) error {
		_, err := p.call(ctx, callStop)
		return err
	}}, nil
}

// Close implements [Way].
func (p *program) Close(ctx context.Context) error {
	if p.cmd == nil {
		return nil
	}
	_ = p.stdin.Close() // it may be closed already
	defer context.AfterFunc(ctx, func() { p.cmd.Process.Kill() })()
	for range p.answers { // to what was given up
	}
	if err := p.cmd.Wait(); err != nil {
		return fmt.Errorf("end %s: %w: %s", p.path, err, p.stderr)
	}
	return nil
}

// Serve makes a way a program that [NewProgram] runs: it answers calls until in
// ends, and then closes the way.
func Serve(ctx context.Context, w Way, in io.Reader, out io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	calls := make(chan call)
	go func() {
		defer cancel() // gives up what is under way
		for dec := json.NewDecoder(in); ; {
			var c call
			if dec.Decode(&c) != nil {
				return
			}
			select {
			case calls <- c:
			case <-ctx.Done():
				return
			}
		}
	}()
	s := server{way: w}
	enc := json.NewEncoder(out)
	for {
		select {
		case c := <-calls:
			a, err := s.do(ctx, c.Call)
			if err != nil {
				a = answer{Error: err.Error()}
			}
			if err := enc.Encode(a); err != nil {
				cancel() // nobody listens: close what there is
			}
		case <-ctx.Done():
			clean, done := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
			defer done()
			return w.Close(clean)
		}
	}
}

// server is a way and the container it runs.
type server struct {
	way     Way
	started *Started
}

func (s *server) do(ctx context.Context, name string) (a answer, err error) {
	switch {
	case name == callPrepare:
		err = s.way.Prepare(ctx)
	case name == callReset:
		a.Dirs, err = s.way.Reset(ctx)
	case name == callStart:
		if s.started, err = s.way.Start(ctx); err == nil {
			a.Ready, a.Root = s.started.Ready, s.started.Root
		}
	case name == callStop && s.started != nil:
		err = s.started.Stop(ctx)
	default:
		err = fmt.Errorf("unknown call %q", name)
	}
	return a, err
}
