// Package cloud asks AWS and Kubernetes, through a program of its own.
//
// [Ask] runs the program thaw-cloud, whose main function is [Serve]. They talk JSON, a
// line a message: one [Request] on the program's standard input, then [Answer]s on its
// standard output, the last of which says that it is done or what went wrong. When
// its standard input ends, or the context of who asks, it gives up.
//
// The official clients (package cloud/aws, cloud/kube) are linked into that program
// only: they would triple thaw, and cost each start of it milliseconds.
package cloud

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

// Program is the name of the program.
const Program = "thaw-cloud"

// Request is what the program is asked for.
type Request struct {
	Call string          `json:"call"` // CallECS, ...
	Args json.RawMessage `json:"args,omitempty"`
}

// Answer is a line of the program's output.
type Answer struct {
	Document json.RawMessage `json:"document,omitempty"`
	Done     bool            `json:"done,omitempty"`
	Error    *Error          `json:"error,omitempty"`
}

// Error is why a call failed.
type Error struct {
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"` // the way out, such as the permission that is missing
}

func (e *Error) Error() string { return e.Message }

// Calls.
const (
	CallECS        = "ecs"        // ECS
	CallKubernetes = "kubernetes" // Kubernetes
)

// ECS are the arguments of CallECS. The answers are documents as package sources/ecs
// reads them.
type ECS struct {
	Region  string `json:"region,omitempty"` // default the environment's
	Profile string `json:"profile,omitempty"`
	Cluster string `json:"cluster,omitempty"` // default the account's default cluster
	Service string `json:"service,omitempty"` // all of the cluster's tasks, if empty
	// Watch is for how long to look again and again, in milliseconds: for tasks that come,
	// and for the load balancer's word on their targets. 0: once.
	WatchMs int64 `json:"watch_ms,omitempty"`
}

// Kubernetes are the arguments of CallKubernetes. The answers are lists as kubectl
// prints them.
type Kubernetes struct {
	Kubeconfig string `json:"kubeconfig,omitempty"`
	Context    string `json:"context,omitempty"`
	Namespace  string `json:"namespace,omitempty"` // default the context's
	Selector   string `json:"selector,omitempty"`  // of labels
	WatchMs    int64  `json:"watch_ms,omitempty"`
}

// maxDocument bounds what is read of the program at once.
const maxDocument = 64 << 20

// Ask runs the program and hands each document to each. What the program says went
// wrong is an [*Error].
func Ask(ctx context.Context, program, call string, args any, each func(document []byte) error) error {
	raw, err := json.Marshal(args)
	if err != nil {
		return err
	}
	line, err := json.Marshal(Request{Call: call, Args: raw})
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, program)
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true} // a terminal's Ctrl-C is for us
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", program, err)
	}
	_, err = stdin.Write(append(line, '\n'))
	if err == nil {
		err = answers(stdout, each)
	}
	_ = stdin.Close() // it gives up, if it has not ended
	if err != nil {
		_, _ = io.Copy(io.Discard, stdout) // nothing of it is wanted any more
	}
	end := cmd.Wait()
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, errNoEnd):
		return fmt.Errorf("%s ended without an answer: %w: %s", program, errors.Join(end), strings.TrimSpace(stderr.String()))
	}
	return err
}

var errNoEnd = errors.New("no end")

// answers reads the program's lines until the last one.
func answers(r io.Reader, each func([]byte) error) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxDocument)
	for lines.Scan() {
		var a Answer
		if err := json.Unmarshal(lines.Bytes(), &a); err != nil {
			return fmt.Errorf("read answer: %w", err)
		}
		switch {
		case a.Error != nil:
			return a.Error
		case a.Done:
			return nil
		case each != nil:
			if err := each(a.Document); err != nil {
				return err
			}
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	return errNoEnd
}

// Handler answers a call: send takes what is marshalled as a document.
type Handler func(ctx context.Context, args json.RawMessage, send func(document any) error) error

// Serve answers the call on in. Its error is one of talking; what goes wrong with the
// call is said to who asked.
func Serve(ctx context.Context, in io.Reader, out io.Writer, handlers map[string]Handler) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	dec := json.NewDecoder(in)
	var r Request
	if err := dec.Decode(&r); err != nil {
		return fmt.Errorf("read request: %w", err)
	}
	go func() { // who asked is gone, or does not want it any more
		_, _ = io.Copy(io.Discard, in)
		cancel()
	}()
	enc := json.NewEncoder(out)
	err := fmt.Errorf("unknown call %q: the program and thaw are of different versions", r.Call)
	if handle := handlers[r.Call]; handle != nil {
		err = handle(ctx, r.Args, func(document any) error {
			raw, err := json.Marshal(document)
			if err != nil {
				return err
			}
			return enc.Encode(Answer{Document: raw})
		})
	}
	if err == nil {
		return enc.Encode(Answer{Done: true})
	}
	var e *Error
	if !errors.As(err, &e) {
		e = &Error{Message: err.Error()}
	}
	return enc.Encode(Answer{Error: e})
}
