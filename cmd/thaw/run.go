package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"github.com/docker/go-units"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/container"
	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/measure/gate"
)

type runOptions struct {
	mountFlags
	ready         string
	readyTimeout  time.Duration
	env           []string
	volumes       []string
	workDir       string
	user          string
	entrypoint    string
	noEntrypoint  bool // --entrypoint "" was given
	name          string
	hostname      string
	interactive   bool
	tty           bool
	readOnly      bool
	memory        string
	cpus          float64
	network       string
	runtime       string
	timeline      bool
	timelineFile  string
	exitWhenReady bool
	exitDelay     time.Duration
	record        bool
	observer      int // descriptor of the gate to who observes the run; negative: nobody does
}

func newRunCommand(g *globalOptions) *cobra.Command {
	var opts runOptions
	cmd := &cobra.Command{
		Use:   "run [flags] IMAGE [CMD...]",
		Short: "Run a container, starting before its image has arrived",
		Long: `Run a container in the foreground. It starts as soon as its image can be mounted;
what it reads is fetched when it reads it, and the rest in the background. An image
without an index is brought whole, and its index made on the way.

Exit codes: the container's own; 125 it could not be started, 126 its command
cannot be executed, 127 its command was not found, 124 it was not --ready in time.`,
		Example: `  thaw run registry.example.com/app:1.2
  thaw run -it --entrypoint /bin/sh registry.example.com/app:1.2
  thaw run --ready http://127.0.0.1:8080/healthz --timeline -m 512m registry.example.com/app:1.2`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{errors.New("want an IMAGE; see thaw run --help")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.noEntrypoint = opts.entrypoint == "" && cmd.Flags().Changed("entrypoint")
			return runRun(cmd, g, &opts, args[0], args[1:])
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false) // what follows IMAGE is the container's
	opts.bind(cmd)
	f.StringVar(&opts.ready, "ready", "", "the container is ready when this answers: http://HOST:PORT/PATH, or tcp:[HOST:]PORT")
	f.DurationVar(&opts.readyTimeout, "ready-timeout", 0, "stop the container if it is not ready in time (default: wait)")
	f.StringArrayVarP(&opts.env, "env", "e", nil, "environment variable KEY=VALUE, or KEY to pass on")
	f.StringArrayVarP(&opts.volumes, "volume", "v", nil, "bind mount SRC:DST[:ro]")
	f.StringVarP(&opts.workDir, "workdir", "w", "", "working directory (default the image's)")
	f.StringVarP(&opts.user, "user", "u", "", "USER[:GROUP], by name or number (default the image's)")
	f.StringVar(&opts.entrypoint, "entrypoint", "", "replace the image's entrypoint; empty string for none")
	f.StringVar(&opts.name, "name", "", "name of the container (default a random one)")
	f.StringVar(&opts.hostname, "hostname", "", "host name in the container (default this machine's)")
	f.BoolVarP(&opts.interactive, "interactive", "i", false, "connect standard input")
	f.BoolVarP(&opts.tty, "tty", "t", false, "give the container a terminal")
	f.BoolVar(&opts.readOnly, "read-only", false, "make the root file system read-only")
	f.StringVarP(&opts.memory, "memory", "m", "", "memory limit, such as 512m")
	f.Float64Var(&opts.cpus, "cpus", 0, "limit of CPUs, such as 1.5")
	f.StringVar(&opts.network, "network", container.NetworkHost, "host or none")
	f.StringVar(&opts.runtime, "runtime", "", "OCI runtime: a name or path (default crun or runc, which is installed)")
	f.BoolVar(&opts.timeline, "timeline", false, "print when each phase of the start was over, and what it cost")
	f.StringVar(&opts.timelineFile, "timeline-file", "", "write the timeline as JSON to this file")
	f.BoolVar(&opts.exitWhenReady, "exit-when-ready", false, "stop the container once it is ready (with --ready), or started")
	f.DurationVar(&opts.exitDelay, "exit-delay", 0, "with --exit-when-ready: go on for that long before stopping")
	f.BoolVar(&opts.record, "record", true, "record what the container reads until it is ready, for thaw trace (default by the configuration)")
	f.IntVar(&opts.observer, "observer-fd", -1, "descriptor of a socket to who observes the run")
	_ = f.MarkHidden("observer-fd") // it is there
	complete(cmd, "network", container.NetworkHost, container.NetworkNone)
	return cmd
}

func runRun(cmd *cobra.Command, g *globalOptions, opts *runOptions, image string, args []string) error {
	begun := time.Now()
	observer, err := opts.openGate()
	if err != nil {
		return err
	}
	spec, err := opts.container(args)
	if err != nil {
		return err
	}
	if spec.Runtime, err = container.FindRuntime(opts.runtime); err != nil {
		return &exitError{container.CodeNotStarted, err}
	}
	go container.Prefetch(cmd.Context(), spec.Runtime)
	req, err := opts.mountRequest(image)
	if err != nil {
		return err
	}
	if err := opts.checkReady(cmd.Context()); err != nil {
		return err
	}
	req.Container, req.Runtime = opts.name, spec.Runtime
	cfg, err := g.load()
	if err != nil {
		return err
	}
	if !cmd.Flags().Changed("record") {
		opts.record = cfg.Record
	}
	c, err := g.connect(cmd.Context())
	if err != nil {
		return &exitError{container.CodeNotStarted, err}
	}
	if opts.record {
		req.Record = &api.Record{Entrypoint: spec.Entrypoint, Args: spec.Args, Age: time.Since(begun), Ready: opts.ready != ""}
	}
	p := newProgress(cmd.ErrOrStderr(), image)
	m, err := c.Mount(cmd.Context(), req, p.event)
	p.clear()
	if err != nil {
		if cmd.Context().Err() != nil {
			return cmd.Context().Err()
		}
		return &exitError{container.CodeNotStarted, err}
	}
	r := &runner{global: g, cmd: cmd, opts: opts, client: c, mount: m, line: newTimeline(begun, m), gate: observer}
	code, err := r.run(spec)
	if code == 0 && err == nil {
		return nil
	}
	if err != nil && code == 0 {
		code = exitFailed
	}
	return &exitError{code, err}
}

// answerTime is how long something that is not to be there may take to answer.
const answerTime = 100 * time.Millisecond

// checkReady refuses a --ready that answers before the container runs: whatever
// is there would be measured.
func (o *runOptions) checkReady(ctx context.Context) error {
	if o.ready == "" {
		return nil
	}
	if err := container.CheckReady(o.ready); err != nil {
		return usageError{err}
	}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	if err := container.Answers(ctx, o.ready); err == nil {
		return api.Errorf(api.CodeInUse, "end what listens there, or let the container use another port", "%s answers already, before the container runs", o.ready)
	}
	return nil
}

// container makes the wishes of the command line into a container's.
func (o *runOptions) container(args []string) (container.Options, error) {
	c := container.Options{Args: args, Env: o.env, WorkDir: o.workDir, User: o.user, Hostname: o.hostname, Network: o.network,
		ReadOnly: o.readOnly, CPUs: o.cpus, TTY: o.tty, OpenStdin: o.interactive}
	if len(args) == 0 {
		c.Args = nil
	}
	if o.entrypoint != "" {
		c.Entrypoint = []string{o.entrypoint}
	} else if o.noEntrypoint {
		c.Entrypoint = []string{}
	}
	if o.memory != "" {
		n, err := units.RAMInBytes(o.memory)
		if err != nil || n <= 0 {
			return c, usageError{fmt.Errorf("--memory %q: want a size such as 512m", o.memory)}
		}
		c.MemoryBytes = n
	}
	if o.cpus < 0 {
		return c, usageError{fmt.Errorf("--cpus %v: want a positive number", o.cpus)}
	}
	if o.network != container.NetworkHost && o.network != container.NetworkNone {
		return c, usageError{fmt.Errorf("--network %q: use host or none", o.network)}
	}
	if o.exitWhenReady && o.readyTimeout == 0 {
		o.readyTimeout = 10 * time.Minute
	}
	for _, v := range o.volumes {
		m, err := parseVolume(v)
		if err != nil {
			return c, usageError{err}
		}
		c.Mounts = append(c.Mounts, m)
	}
	return c, nil
}

func parseVolume(s string) (container.Mount, error) {
	parts := strings.Split(s, ":")
	if len(parts) < 2 || len(parts) > 3 || parts[0] == "" || !filepath.IsAbs(parts[1]) || len(parts) == 3 && parts[2] != "ro" && parts[2] != "rw" {
		return container.Mount{}, fmt.Errorf("volume %q: want SRC:DST or SRC:DST:ro, DST absolute", s)
	}
	src, err := filepath.Abs(parts[0])
	if err != nil {
		return container.Mount{}, err
	}
	return container.Mount{Source: src, Target: parts[1], ReadOnly: len(parts) == 3 && parts[2] == "ro"}, nil
}

// runner runs a container on its mount.
type runner struct {
	global *globalOptions
	cmd    *cobra.Command
	opts   *runOptions
	client *api.Client
	mount  *api.Mount
	gate   *gate.Conn // nil where nobody observes the run
	line   *timeline
	times  api.Times // only those that have passed are set; of the goroutine that marks them
}

// run starts the container, follows it to its end and takes its mount away.
func (r *runner) run(spec container.Options) (code int, err error) {
	var config v1.Image
	if err := json.Unmarshal(r.mount.Config, &config); err != nil {
		return container.CodeNotStarted, errors.Join(fmt.Errorf("read image config: %w", err), r.unmount())
	}
	if err := r.passGate(); err != nil {
		return container.CodeNotStarted, errors.Join(err, r.unmount())
	}
	spec.ID, spec.Bundle, spec.Rootfs, spec.Config = r.mount.ID, r.mount.Bundle, r.mount.Dir, config.Config
	spec.Stdin, spec.Stdout, spec.Stderr = r.cmd.InOrStdin(), r.cmd.OutOrStdout(), r.cmd.ErrOrStderr()
	spec.Created = func(t time.Time) {
		r.mark(phaseCreate, t)
		r.tellCreated()
	}
	spec.Started = func(t time.Time) { r.mark(phaseStart, t) }
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2)
	defer signal.Stop(signals)
	spec.Signals = signals

	// The container gets Ctrl-C itself; only readiness may end it from here.
	ctx, stop := context.WithCancelCause(context.WithoutCancel(r.cmd.Context()))
	watched := make(chan struct{})
	started := spec.Started
	spec.Started = func(t time.Time) {
		started(t)
		go func() {
			defer close(watched)
			r.tell(ctx)
			if r.gate != nil {
				r.watchObserved(ctx, stop)
				return
			}
			r.watch(ctx, stop)
		}()
	}
	code, err = container.Run(ctx, spec)
	cause := context.Cause(ctx)
	stop(nil)
	if r.line.has(phaseStart) {
		<-watched
	}
	switch {
	case errors.Is(cause, errReady):
		code = 0
	case errors.Is(cause, errNotReady):
		code, err = codeNotReady, errors.Join(fmt.Errorf("container was not ready within %s", r.opts.readyTimeout), err)
	}
	err = errors.Join(err, r.finish())
	return code, errors.Join(err, r.unmount())
}

// codeNotReady is the exit code when --ready-timeout passes, as timeout(1)'s.
const codeNotReady = 124

var (
	errReady    = errors.New("ready")
	errNotReady = errors.New("not ready in time")
)

// watch waits for the container to be ready, tells the timeline, and stops the
// container if that was all that was wanted.
func (r *runner) watch(ctx context.Context, stop context.CancelCauseFunc) {
	if r.opts.ready != "" {
		wait, cancel := ctx, context.CancelFunc(func() {})
		if r.opts.readyTimeout > 0 {
			wait, cancel = context.WithTimeout(ctx, r.opts.readyTimeout)
		}
		err := container.WaitReady(wait, r.opts.ready)
		cancel()
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			stop(errNotReady)
			return
		}
		r.mark(phaseReady, time.Now())
		r.tell(ctx)
	}
	r.snapshot(ctx)
	if r.opts.exitWhenReady {
		select {
		case <-time.After(r.opts.exitDelay):
		case <-ctx.Done():
		}
		stop(errReady)
		return
	}
	r.follow(ctx)
}

// mark notes when a phase was over.
func (r *runner) mark(phase string, at time.Time) {
	r.line.mark(phase, at)
	d := at.Sub(r.line.begun)
	switch phase {
	case phaseCreate:
		r.times.Created = d
	case phaseStart:
		r.times.Started = d
	case phaseReady:
		r.times.Ready = d
	}
}

// tell tells the daemon what was marked, for its recording, for what it says of starts
// and, once the container is ready, for what it holds back until then. A daemon that
// died meanwhile does none of that.
func (r *runner) tell(ctx context.Context) {
	// Also of a container that has ended already.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tellTimeout)
	defer cancel()
	r.times.Begun, r.times.ReadyComes = r.line.begun, r.opts.ready != ""
	_ = r.client.Tell(ctx, r.mount.ID, r.times)
}

// tellTimeout bounds what a daemon that hangs costs.
const tellTimeout = 2 * time.Second

// snapshot notes what the start has cost so far and prints the timeline.
func (r *runner) snapshot(ctx context.Context) {
	if m, err := r.client.Inspect(ctx, r.mount.ID); err == nil {
		r.line.atReady(m.Stats)
	}
	if r.opts.timeline {
		r.line.print(r.cmd.ErrOrStderr())
	}
	r.write()
}

// follow notes when the image is complete.
func (r *runner) follow(ctx context.Context) {
	if !r.opts.timeline && r.opts.timelineFile == "" {
		return
	}
	m, err := r.client.WaitComplete(ctx, r.mount.ID)
	if err != nil || !m.Stats.Complete {
		return
	}
	r.line.mark(phaseComplete, m.Stats.CompletedAt)
	r.line.atEnd(m.Stats)
	if r.opts.timeline {
		r.line.printComplete(r.cmd.ErrOrStderr())
	}
	r.write()
}

// finish writes the timeline of a container that ended before it was ready.
func (r *runner) finish() error {
	if r.opts.timelineFile == "" {
		return nil
	}
	return r.line.writeFile(r.opts.timelineFile)
}

func (r *runner) write() {
	if r.opts.timelineFile == "" {
		return
	}
	if err := r.line.writeFile(r.opts.timelineFile); err != nil {
		fmt.Fprintf(r.cmd.ErrOrStderr(), "thaw: warning: %v\n", err)
	}
}

// restartPatience is how long the keeper is given to start a daemon.
const restartPatience = 3 * time.Second

// unmountTimeout bounds the cleaning up after a container.
const unmountTimeout = 30 * time.Second

// unmount takes the container's mount away. The daemon may have died meanwhile;
// the keeper starts another one.
func (r *runner) unmount() error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.cmd.Context()), unmountTimeout)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	begun := time.Now()
	for {
		err := r.client.Unmount(ctx, r.mount.ID)
		if errors.Is(err, api.ErrNotRunning) && time.Since(begun) > restartPatience {
			_, err = r.global.connect(ctx) // a new daemon cleans up after the dead one
			if err == nil {
				continue
			}
		}
		var known *api.Error
		if err == nil || errors.As(err, &known) && known.Code == api.CodeNotFound {
			return nil
		}
		if errors.As(err, &known) {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return err
		}
	}
}
