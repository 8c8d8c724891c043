package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/thaw-project/thaw/internal/container"
	"github.com/thaw-project/thaw/internal/indexer"
	"github.com/thaw-project/thaw/internal/indexstore"
)

type optimizeOptions struct {
	ready        string
	readyTimeout time.Duration
	after        time.Duration
	runs         int
	push         bool
	plainHTTP    bool
	json         bool
	env          []string
	volumes      []string
	memory       string
	network      string
	runtime      string
}

func newOptimizeCommand(g *globalOptions) *cobra.Command {
	var opts optimizeOptions
	cmd := &cobra.Command{
		Use:   "optimize [flags] IMAGE [CMD...]",
		Short: "Record a start of an image and put what it reads first beside the image",
		Long: `Record a start of an image and put what it reads first beside the image: its index
is made, where there is none; a container is run in a state directory of its own
until it is --ready, and a moment longer; and what it read becomes the start-up
bundle of the index, which later starts on any node stream in first.

With --runs what at least half of the runs read is taken. Without --push index and
bundle stay in the local store. It needs what thaw run needs.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.`,
		Example: "  thaw optimize --ready http://127.0.0.1:8080/healthz --push registry.example.com/app:1.2",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{errors.New("want an IMAGE; see thaw optimize --help")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return runOptimize(cmd, g, &opts, args[0], args[1:]) },
	}
	f := cmd.Flags()
	f.SetInterspersed(false) // what follows IMAGE is the container's
	f.StringVar(&opts.ready, "ready", "", "the container is ready when this answers: http://HOST:PORT/PATH, or tcp:[HOST:]PORT (default: when it has run for --after)")
	f.DurationVar(&opts.readyTimeout, "ready-timeout", 10*time.Minute, "give up if it is not ready in time")
	f.DurationVar(&opts.after, "after", 2*time.Second, "how long it goes on after it is ready")
	f.IntVar(&opts.runs, "runs", 1, "starts to record")
	f.BoolVar(&opts.push, "push", false, "put index and bundle beside the image, as its referrer")
	f.BoolVar(&opts.plainHTTP, "plain-http", false, "speak plain http to the image's registry")
	f.BoolVar(&opts.json, "json", false, "print the result as JSON")
	f.StringArrayVarP(&opts.env, "env", "e", nil, "environment variable KEY=VALUE, or KEY to pass on")
	f.StringArrayVarP(&opts.volumes, "volume", "v", nil, "bind mount SRC:DST[:ro]")
	f.StringVarP(&opts.memory, "memory", "m", "", "memory limit, such as 512m")
	f.StringVar(&opts.network, "network", "", "host or none (default host)")
	f.StringVar(&opts.runtime, "runtime", "", "OCI runtime: a name or path (default crun or runc, which is installed)")
	complete(cmd, "network", container.NetworkHost, container.NetworkNone)
	return cmd
}

func runOptimize(cmd *cobra.Command, g *globalOptions, opts *optimizeOptions, image string, args []string) error {
	if opts.runs < 1 || opts.after < 0 {
		return usageError{errors.New("--runs and --after: want at least 1, and no negative time")}
	}
	ctx := cmd.Context()
	t, err := g.indexTask(ctx, image, opts.plainHTTP)
	if err != nil {
		return err
	}
	defer t.client.Close()
	made, err := t.build(ctx, false, newProgress(cmd.ErrOrStderr(), image))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(t.cfg.Root, 0o700); err != nil {
		return fmt.Errorf("make state directory: %w", err)
	}
	box, err := os.MkdirTemp(t.cfg.Root, "optimize-*")
	if err != nil {
		return fmt.Errorf("make state directory: %w", err)
	}
	defer os.RemoveAll(box)
	if err := t.prepareBox(box, made); err != nil {
		return err
	}
	err = opts.record(ctx, g, box, image, args, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	tr, err := t.recorded(filepath.Join(box, "traces"), made)
	if err != nil {
		return err
	}
	if err := t.addBundle(ctx, made, tr, filepath.Join(box, "store")); err != nil {
		return err
	}
	out, err := t.keep(ctx, made, opts.push)
	if err != nil {
		return err
	}
	if opts.json {
		return printJSON(cmd, out)
	}
	out.print(cmd.OutOrStdout())
	return nil
}

// prepareBox gives a state directory the index.
func (t *indexTask) prepareBox(box string, made *indexer.Result) error {
	store, err := indexstore.Open(filepath.Join(box, "index"))
	if err != nil {
		return err
	}
	for _, l := range made.Artifact.Layers {
		if err := store.PutLayer(l); err != nil {
			return err
		}
	}
	return store.Put(t.img.ManifestDescriptor.Digest, &indexstore.Image{Manifest: made.Artifact.Manifest, Head: made.Artifact.Head, Local: true})
}

// record starts the container as often as is wanted, in the state directory box,
// by thaw run. What it reads comes when it reads it, and nothing else.
func (o *optimizeOptions) record(ctx context.Context, g *globalOptions, box, image string, command []string, stderr io.Writer) (err error) {
	self := func(ctx context.Context, args ...string) *exec.Cmd {
		global := []string{"--root", box}
		if g.config != "" {
			global = append(global, "--config", g.config)
		}
		c := exec.CommandContext(ctx, "/proc/self/exe", append(global, args...)...)
		c.Args[0] = "thaw"
		c.Stderr = stderr
		c.Cancel = func() error { return c.Process.Signal(os.Interrupt) }
		return c
	}
	defer func() {
		stop := self(context.WithoutCancel(ctx), "daemon", "stop", "--force")
		if serr := stop.Run(); serr != nil {
			err = errors.Join(err, fmt.Errorf("stop the daemon in %s: %w", box, serr))
		}
	}()
	for range o.runs {
		if err := self(ctx, o.runArgs(image, command)...).Run(); err != nil {
			return fmt.Errorf("record a start of %s: %w", image, err)
		}
	}
	return nil
}

func (o *optimizeOptions) runArgs(image string, command []string) []string {
	args := []string{"run", "--record", "--background=off", "--index=require", "--exit-when-ready", "--exit-delay", o.after.String()}
	if o.ready != "" {
		args = append(args, "--ready", o.ready, "--ready-timeout", o.readyTimeout.String())
	}
	for _, e := range o.env {
		args = append(args, "--env", e)
	}
	for _, v := range o.volumes {
		args = append(args, "--volume", v)
	}
	for flag, value := range map[string]string{"--memory": o.memory, "--network": o.network, "--runtime": o.runtime} {
		if value != "" {
			args = append(args, flag, value)
		}
	}
	if o.plainHTTP {
		args = append(args, "--plain-http")
	}
	return append(append(args, absLayout(image)), command...)
}
