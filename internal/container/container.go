// Package container runs one container in the foreground with an OCI runtime.
//
// [Run] turns an image config and the wishes of a user into a bundle, has runc
// or crun create and start it, forwards signals and the terminal, and gives
// back the exit code; when it returns nothing of the container is left. All
// that a container leaves on the machine lies in its bundle directory and in
// its cgroup below /thaw, so that [Cleanup] can do the same for a process that
// died in between.
//
// The defaults are Docker's: capabilities, seccomp profile, masked paths,
// mounts, a read-write root, no new limits. It deliberately does not mount the
// root file system, make networks, restart, log to files or run more processes
// in a container; and it does not use systemd for cgroups.
package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/go-runc"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// Networks a container may have.
const (
	NetworkHost = "host" // the machine's own
	NetworkNone = "none" // only a loopback interface
)

// Exit codes of a container that did not start, as shells and Docker have them.
const (
	CodeNotStarted    = 125
	CodeNotExecutable = 126
	CodeNotFound      = 127
)

// StopTimeout is how long a container may take to end after its stop signal.
const StopTimeout = 10 * time.Second

// Mount is a directory or file of the machine to be seen in the container.
type Mount struct {
	Source   string // must exist
	Target   string // absolute
	ReadOnly bool
}

// Options is a container to run.
type Options struct {
	ID     string // a file name, unique on this machine
	Bundle string // existing directory for the container's state, to be removed by the caller afterwards
	Rootfs string // mounted root file system; written to unless it is a read-only mount

	Config     v1.ImageConfig
	Entrypoint []string // nil: the image's. Otherwise the image's Cmd is not used either
	Args       []string // nil: the image's Cmd
	Env        []string // KEY=VALUE, or KEY to take it from this process
	Mounts     []Mount
	WorkDir    string // empty: the image's
	User       string // empty: the image's. USER, UID, USER:GROUP, UID:GID
	Hostname   string // empty: this machine's
	Network    string // NetworkHost (also when empty) or NetworkNone

	ReadOnly    bool    // root file system is not writable
	MemoryBytes int64   // 0: no limit
	CPUs        float64 // 0: no limit

	Runtime string // name or path of the OCI runtime; empty or auto: see FindRuntime

	TTY       bool      // give it a terminal; Stdin and Stdout are its other side
	OpenStdin bool      // connect Stdin; otherwise it reads nothing
	Stdin     io.Reader // an *os.File is handed to the container as it is, without a TTY
	Stdout    io.Writer // likewise
	Stderr    io.Writer // likewise; not used with a TTY

	// Signals are forwarded to the container's first process. SIGWINCH and
	// SIGCHLD are not: they are about this process's terminal and children.
	Signals <-chan os.Signal
	// StopTimeout is the time between the stop signal and SIGKILL, once the
	// context has ended. 0: the constant of this name.
	StopTimeout time.Duration

	Created func(time.Time) // called when the container exists
	Started func(time.Time) // called when its process runs
}

func (o *Options) check() error {
	switch {
	case o.ID == "" || o.ID != filepath.Base(o.ID) || o.ID[0] == '.' || strings.ContainsAny(o.ID, " \t\n"):
		return fmt.Errorf("container id %q is not a file name", o.ID)
	case !filepath.IsAbs(o.Bundle):
		return fmt.Errorf("bundle %q is not an absolute path", o.Bundle)
	case !filepath.IsAbs(o.Rootfs):
		return fmt.Errorf("root file system %q is not an absolute path", o.Rootfs)
	case o.Network != "" && o.Network != NetworkHost && o.Network != NetworkNone:
		return fmt.Errorf("network %q is neither host nor none", o.Network)
	case o.MemoryBytes < 0 || o.CPUs < 0:
		return errors.New("negative limit")
	}
	return nil
}

// Run runs a container and waits for its end. The exit code is that of its first
// process, 128+n if signal n ended it. When the context ends, the container is
// sent the image's stop signal, and SIGKILL if it has not ended in time; that is
// not an error. An error means that the container did not start (the code then
// is 125, 126 or 127) or that something of it could not be cleaned up.
//
// This process becomes a subreaper, and stays one: the runtime's children must
// be its own for their exit status to be had.
func Run(ctx context.Context, opts Options) (code int, err error) {
	spec, err := Spec(opts)
	if err != nil {
		return CodeNotStarted, err
	}
	client, err := newClient(opts.Runtime, opts.Bundle)
	if err != nil {
		return CodeNotStarted, err
	}
	addFilter(spec, client.Command)
	if err := writeBundle(opts, spec); err != nil {
		return CodeNotStarted, fmt.Errorf("write bundle %s: %w", opts.Bundle, err)
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return CodeNotStarted, fmt.Errorf("become a subreaper: %w", err)
	}
	streams, err := openStreams(opts)
	if err != nil {
		return CodeNotStarted, err
	}
	process, err := create(ctx, client, opts, streams)
	if err != nil {
		err = errors.Join(err, cleanup(ctx, client, opts.ID, opts.Bundle))
		streams.close()
		return exitCode(err), err
	}
	code, err = supervise(ctx, client, opts, process)
	// Delete first: it ends what still holds the other ends of our pipes.
	err = errors.Join(err, cleanup(ctx, client, opts.ID, opts.Bundle))
	streams.close()
	return code, err
}

// create makes the container and returns its first process, which waits to be started.
func create(ctx context.Context, client *runc.Runc, opts Options, s *streams) (*os.Process, error) {
	pidFile := filepath.Join(opts.Bundle, "pid")
	err := client.Create(ctx, opts.ID, opts.Bundle, &runc.CreateOpts{
		IO: s, PidFile: pidFile, ConsoleSocket: s.consoleSocket(),
	})
	if err != nil {
		return nil, runtimeError(ctx, "create", client, opts, err)
	}
	if err := s.created(); err != nil {
		return nil, fmt.Errorf("create container %s: %w", opts.ID, err)
	}
	b, err := os.ReadFile(pidFile)
	if err != nil {
		return nil, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return nil, fmt.Errorf("parse pid file: %w", err)
	}
	process, err := os.FindProcess(pid)
	if err != nil {
		return nil, err
	}
	if opts.Created != nil {
		opts.Created(time.Now())
	}
	return process, nil
}

// supervise starts the created container and sees it to its end.
func supervise(ctx context.Context, client *runc.Runc, opts Options, process *os.Process) (int, error) {
	ended := make(chan exit, 1)
	go func() {
		state, err := process.Wait()
		ended <- exit{state, err}
	}()
	err := context.Cause(ctx)
	if err == nil {
		// Not to be cut off: the process may run before the runtime says so, and
		// then is to be stopped as a running one.
		err = client.Start(context.WithoutCancel(ctx), opts.ID)
	}
	if err != nil {
		_ = process.Kill() // it may have ended by itself
		<-ended
		err = runtimeError(ctx, "start", client, opts, err)
		return exitCode(err), err
	}
	if opts.Started != nil {
		opts.Started(time.Now())
	}
	stop, kill := ctx.Done(), (<-chan time.Time)(nil)
	for {
		select {
		case e := <-ended:
			return e.code()
		case sig, ok := <-opts.Signals:
			if !ok {
				opts.Signals = nil
			} else if sig != unix.SIGWINCH && sig != unix.SIGCHLD && sig != unix.SIGURG {
				_ = process.Signal(sig) // it may have ended by itself
			}
		case <-stop:
			stop = nil
			_ = process.Signal(stopSignal(opts.Config.StopSignal))
			timeout := opts.StopTimeout
			if timeout == 0 {
				timeout = StopTimeout
			}
			kill = time.After(timeout)
		case <-kill:
			_ = process.Kill()
		}
	}
}

type exit struct {
	state *os.ProcessState
	err   error
}

func (e exit) code() (int, error) {
	if e.err != nil {
		return CodeNotStarted, fmt.Errorf("wait for container: %w", e.err)
	}
	status := e.state.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	return status.ExitStatus(), nil
}

// stopSignal reads an image's StopSignal: a name with or without SIG, or a number.
func stopSignal(s string) os.Signal {
	if n, err := strconv.Atoi(s); err == nil && n > 0 && n < 65 {
		return syscall.Signal(n)
	}
	name := strings.ToUpper(s)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if base, offset, ok := strings.Cut(name, "+"); ok && base == "SIGRTMIN" {
		if n, err := strconv.Atoi(offset); err == nil && n >= 0 && n <= 30 {
			return syscall.Signal(34 + n) // as glibc numbers them
		}
	}
	if sig := unix.SignalNum(name); sig != 0 {
		return sig
	}
	return unix.SIGTERM
}

// StartError is a container that the runtime could not create or start.
type StartError struct {
	ID      string
	Verb    string // create or start
	Message string // the runtime's own
	Code    int    // 125, 126 or 127
}

func (e *StartError) Error() string {
	return fmt.Sprintf("%s container %s: %s", e.Verb, e.ID, e.Message)
}

func exitCode(err error) int {
	var start *StartError
	if errors.As(err, &start) {
		return start.Code
	}
	return CodeNotStarted
}

// runtimeError finds the runtime's message in its log; what it returns by itself
// is no more than that it failed.
func runtimeError(ctx context.Context, verb string, client *runc.Runc, opts Options, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s container %s: %w", verb, opts.ID, context.Cause(ctx))
	}
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("%s container %s: %w", verb, opts.ID, err)
	}
	message := lastError(client.Log)
	if message == "" {
		message = err.Error()
	}
	e := &StartError{ID: opts.ID, Verb: verb, Message: message, Code: CodeNotStarted}
	switch {
	case strings.Contains(message, "executable file") && strings.Contains(message, "not found"),
		strings.Contains(message, "exec") && strings.Contains(message, "no such file or directory"):
		e.Code = CodeNotFound
	case strings.Contains(message, "exec") && strings.Contains(strings.ToLower(message), "permission denied"),
		strings.Contains(strings.ToLower(message), "exec format error"):
		e.Code = CodeNotExecutable
	}
	return e
}

// lastError returns the last error of a runtime's JSON log.
func lastError(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	message := ""
	for line := range strings.Lines(string(b)) {
		var entry struct{ Level, Msg string }
		if json.Unmarshal([]byte(line), &entry) == nil && entry.Msg != "" && entry.Level != "warning" && entry.Level != "debug" && entry.Level != "info" {
			message = entry.Msg
		}
	}
	return message
}

// notifyResize tells of changes of the terminal's size until stop is called.
func notifyResize() (<-chan os.Signal, func()) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, unix.SIGWINCH)
	return c, func() { signal.Stop(c); close(c) }
}
