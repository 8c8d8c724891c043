// Package spans tells OpenTelemetry how starts went, through a program of its own.
//
// A [Start] is one start of an image with its phases. A [Sender] runs the program
// when the first one is to be told, and gives it each as a line of JSON; package
// export is the other end, which makes a trace of it. So the SDK is linked into
// that program, and who wants no traces pays nothing, at the start or in memory.
//
// Nothing waits for the program: what it does not take in time is dropped, with a
// word in the log.
package spans

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Program is the name of the program.
const Program = "thaw-otel"

// Start is what a trace says of a start.
type Start struct {
	// Name is the root span's; empty: "start", one of the daemon's own, of which all
	// that follows is known, and 0 is a number.
	Name string `json:"name,omitempty"`
	// ID is what the trace's and the spans' identities are made of, so that a start
	// that is told twice is the same trace. Empty: random ones.
	ID           string        `json:"id,omitempty"`
	End          time.Time     `json:"end,omitzero"` // zero: with the last phase
	Attributes   Attributes    `json:"attributes,omitempty"`
	Image        string        `json:"image"`
	Manifest     string        `json:"manifest,omitempty"`
	Mount        string        `json:"mount,omitempty"`
	Mode         string        `json:"mode,omitempty"`
	Index        string        `json:"index,omitempty"`
	Reasons      []string      `json:"reasons,omitempty"` // of fallbacks
	Begun        time.Time     `json:"begun"`
	Phases       []Phase       `json:"phases"`
	Waits        int           `json:"waits"` // reads that waited
	WaitTotal    time.Duration `json:"waitTotalNs"`
	NetworkBytes int64         `json:"networkBytes"`
	Requests     int64         `json:"requests"`
	Error        string        `json:"error,omitempty"`       // why it failed
	Traceparent  string        `json:"traceparent,omitempty"` // W3C trace context of who started it
}

// Phase is a span.
type Phase struct {
	Name       string     `json:"name"`
	Start      time.Time  `json:"start"`
	End        time.Time  `json:"end"`
	Detail     string     `json:"detail,omitempty"`
	Attributes Attributes `json:"attributes,omitempty"`
}

// Attributes are what else is said of a span: strings, truth values, and numbers. Those
// whose names end in _ms have fractions, others do not.
type Attributes map[string]any

// Wanted reports whether the environment asks for traces, in the words of the
// OpenTelemetry specification.
func Wanted(getenv func(string) string) bool {
	switch {
	case getenv("OTEL_SDK_DISABLED") == "true", getenv("OTEL_TRACES_EXPORTER") == "none":
		return false
	}
	return getenv("OTEL_TRACES_EXPORTER") != "" || getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") != ""
}

const (
	queued  = 256              // starts that wait for the program
	restart = 10 * time.Second // between two tries to run it
)

// Sender gives starts to the program. A nil one drops them.
type Sender struct {
	command []string
	log     *slog.Logger
	starts  chan Start
	done    chan struct{} // closed when the program is gone, after Close

	mu      sync.Mutex // guards what follows
	closed  bool
	dropped int
}

// NewSender returns a sender that runs command when there is something to be sent.
func NewSender(command []string, log *slog.Logger) *Sender {
	s := &Sender{command: command, log: log, starts: make(chan Start, queued), done: make(chan struct{})}
	go s.run()
	return s
}

// Send gives a start to the program, some time. It never blocks.
func (s *Sender) Send(start Start) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	select {
	case s.starts <- start:
	default:
		if s.dropped++; s.dropped&(s.dropped-1) == 0 { // 1, 2, 4, ...
			s.log.Warn("traces are dropped: their program does not take them", "count", s.dropped)
		}
	}
}

// Close has the program send what it has and end, and waits for that, but not
// longer than patience.
func (s *Sender) Close(patience time.Duration) {
	if s == nil {
		return
	}
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.starts)
	}
	s.mu.Unlock()
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case <-s.done:
	case <-t.C:
		s.log.Warn("traces may be lost: their program takes its time to end", "after", patience)
	}
}

// run gives starts to one program after another, until the sender is closed.
func (s *Sender) run() {
	defer close(s.done)
	var p *process
	var tried time.Time
	for start := range s.starts {
		if p == nil && time.Since(tried) < restart && !tried.IsZero() {
			continue // it was said why
		}
		if p == nil {
			tried = time.Now()
			var err error
			if p, err = s.start(); err != nil {
				s.log.Error("traces cannot be sent", "err", err)
				continue
			}
		}
		if err := json.NewEncoder(p.stdin).Encode(start); err != nil {
			s.log.Error("the program for traces is gone", "err", errors.Join(err, p.end()))
			p = nil
		}
	}
	if p != nil {
		if err := p.end(); err != nil {
			s.log.Error("the program for traces failed", "err", err)
		}
	}
}

// process is the program under way.
type process struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
}

func (s *Sender) start() (*process, error) {
	// Not with a context: it is to send what it has when the daemon ends.
	cmd := exec.CommandContext(context.Background(), s.command[0], s.command[1:]...)
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true} // a terminal's Ctrl-C is for us
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return &process{cmd, stdin}, nil
}

// end has the program end, by the end of its input, and waits for it.
func (p *process) end() error { return errors.Join(p.stdin.Close(), p.cmd.Wait()) }

// FlagStrict has the program fail when it cannot send what it was given, and wait longer
// for a collector that is slow.
const FlagStrict = "--strict"

// Deliver has the program send starts, and waits until it has: who tells a few starts
// and wants to know that they arrived. What the program says goes to stderr.
func Deliver(ctx context.Context, command []string, starts []Start, stderr io.Writer) error {
	var in bytes.Buffer
	enc := json.NewEncoder(&in)
	for i := range starts {
		if err := enc.Encode(&starts[i]); err != nil {
			return fmt.Errorf("encode start: %w", err)
		}
	}
	cmd := exec.CommandContext(ctx, command[0], slices.Concat(command[1:], []string{FlagStrict})...)
	cmd.Stdin, cmd.Stderr = &in, stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("send traces: %s: %w", Program, err)
	}
	return nil
}
