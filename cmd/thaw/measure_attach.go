package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/thaw-project/thaw/internal/container"
	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/measure"
	"github.com/thaw-project/thaw/internal/measure/attach"
	"github.com/thaw-project/thaw/internal/profile"
)

// attachSettle is how long a container is followed after it is ready: for what the
// kernel has to say of it until then.
const attachSettle = 300 * time.Millisecond

// attachOptions are the flags of thaw measure --attach.
type attachOptions struct {
	on        bool
	address   string
	namespace string
	duration  time.Duration
	starts    int
}

func (o *attachOptions) bind(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVar(&o.on, "attach", false, "measure containers that somebody else starts through containerd: those of a NAME, ID or pattern of images, or all")
	f.StringVar(&o.address, "containerd-address", "", "containerd's socket, for --attach (default the configuration's containerd.address)")
	f.StringVar(&o.namespace, "namespace", "", "containerd's namespace, for --attach (default all)")
	f.DurationVar(&o.duration, "for", 0, "with --attach: watch for so long (default until Ctrl-C)")
	f.IntVar(&o.starts, "starts", 0, "with --attach: until so many starts were measured")
}

// measureAttached watches containerd, and returns what was measured until it was to end.
func measureAttached(cmd *cobra.Command, opts *attachOptions, what attach.Options, quiet bool) (*profile.Record, error) {
	switch {
	case opts.starts < 0 || opts.duration < 0:
		return nil, usageError{errors.New("--starts and --for are how many, and how long: not less than 0")}
	case len(what.Routes) > 0 && what.Ready == "":
		return nil, usageError{errors.New("--request takes --ready: before it is ready nothing is requested")}
	case what.Ready != "":
		if err := container.CheckReady(what.Ready); err != nil {
			return nil, usageError{err}
		}
	}
	if os.Geteuid() != 0 {
		return nil, &exitError{exitNoPrivileges, api.Errorf(api.CodeUnsupported, "use sudo", "seeing containers of others needs root")}
	}
	ctx := cmd.Context()
	if opts.duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, opts.duration)
		defer cancel()
	}
	ctx, enough := context.WithCancel(ctx)
	defer enough()
	observer := measure.Observe()
	w, err := attach.New(ctx, what, observer)
	if err != nil {
		return nil, errors.Join(err, observer.Close())
	}
	say := func(format string, args ...any) {
		if !quiet {
			fmt.Fprintf(cmd.ErrOrStderr(), "thaw: "+format+"\n", args...)
		}
	}
	say("watching containerd at %s", what.Address)
	var all []*attach.Started
	err = w.Watch(ctx, func(s *attach.Started) {
		if opts.starts > 0 && len(all) == opts.starts {
			return
		}
		all = append(all, s)
		if s.Run.Error != "" {
			say("%s of %s: %s", s.Names[len(s.Names)-1], s.Image, s.Run.Error)
		} else if s.Run.TotalMs != nil {
			say("%s of %s was ready after %.0f ms", s.Names[len(s.Names)-1], s.Image, *s.Run.TotalMs)
		} else {
			say("%s of %s was seen", s.Names[len(s.Names)-1], s.Image)
		}
		if len(all) == opts.starts {
			enough()
		}
	})
	if err = errors.Join(err, w.Close(), observer.Close()); err != nil {
		return nil, err
	}
	if len(all) == 0 {
		if cmd.Context().Err() != nil {
			return nil, cmd.Context().Err()
		}
		return nil, &exitError{exitInvalid, api.Errorf("", "start one meanwhile; --namespace and a pattern say which are meant", "no such container was started")}
	}
	return attach.Record(all, what.Ready), nil
}

// runMeasureAttach is thaw measure --attach.
func runMeasureAttach(cmd *cobra.Command, g *globalOptions, opts *measureOptions) error {
	cfg, err := g.load()
	if err != nil {
		return err
	}
	labels, err := opts.labelMap()
	if err != nil {
		return err
	}
	routes, err := opts.routes()
	if err != nil {
		return err
	}
	rec, err := measureAttached(cmd, &opts.attach, attach.Options{Address: cmp.Or(opts.attach.address, cfg.Containerd.Address), Namespace: opts.attach.namespace,
		Match: opts.image, Ready: opts.ready, Timeout: opts.readyTimeout, Settle: attachSettle, Routes: routes, Repeat: opts.repeat}, opts.quiet)
	if err != nil {
		return err
	}
	rec.ID, rec.Name, rec.Tool = profile.NewID(rec.Begun), opts.name, buildVersion()
	maps.Copy(rec.Labels, labels)
	cmd.SetContext(context.WithoutCancel(cmd.Context())) // Ctrl-C ends watching, not this
	return opts.finish(cmd, g, rec)
}
