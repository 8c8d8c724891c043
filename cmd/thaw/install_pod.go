package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/config"
	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/install"
)

// Of a pod that installs thaw on its node.
const (
	nodeLabel      = "thaw.dev/node=true" // of nodes that want it
	uninstallRetry = 5 * time.Second      // while something uses it
	tellInterval   = 10 * time.Second     // between two looks at fallbacks
)

// runPod installs on the host of a pod, waits for the pod's end, and takes the
// installation back if that is the end of the DaemonSet, or of the node's wish.
func runPod(cmd *cobra.Command, g *globalOptions, opts *installOptions) error {
	log, err := g.logger(cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	cluster, err := install.InCluster()
	if err == nil {
		cluster.Node, cluster.Namespace, cluster.DaemonSet, cluster.Label = os.Getenv("NODE_NAME"), os.Getenv("POD_NAMESPACE"), os.Getenv("DAEMONSET"), nodeLabel
		_, err = cluster.Wanted(cmd.Context())
	}
	if err != nil {
		log.Warn("what is installed stays when the DaemonSet is removed", "err", err)
		if errors.Is(err, install.ErrNoCluster) {
			cluster = nil
		}
	}
	args := []string{"--containerd-config", opts.config, "--socket", opts.socket}
	if opts.whole {
		args = append(args, "--default")
	}
	if err := onHost(cmd, opts.hostArgs(g, "install", args...)); err != nil {
		return err
	}
	log.Info("thaw is installed on the node")
	var telling sync.WaitGroup
	if cluster != nil {
		telling.Go(func() { cluster.TellAll(cmd.Context(), tellInterval, hostFallbacks(g, opts), log) })
	}
	<-cmd.Context().Done()
	telling.Wait()
	if cluster == nil {
		return nil
	}
	// The pod is ended for good when its grace period is over.
	ctx := context.WithoutCancel(cmd.Context())
	wanted, err := cluster.Wanted(ctx)
	if err != nil || wanted {
		log.Info("thaw stays on the node", "err", err)
		return nil
	}
	return endOnHost(cmd, opts.hostArgs(g, "uninstall"), log)
}

// hostFallbacks asks the node's daemon what was not started the best way, though not
// what was not to be.
func hostFallbacks(g *globalOptions, opts *installOptions) func(context.Context) ([]install.Happening, error) {
	root := cmp.Or(g.root, config.DefaultRoot)
	c := api.NewClient(filepath.Join(cmp.Or(opts.destdir, "/proc/1/root"), root))
	return func(ctx context.Context) ([]install.Happening, error) {
		all, err := c.Fallbacks(ctx)
		if err != nil {
			return nil, err
		}
		var found []install.Happening
		for _, f := range all {
			if f.Reason != "configured" {
				found = append(found, happening(f))
			}
		}
		return found, nil
	}
}

// happening says a fallback in the words of Kubernetes' events.
func happening(f api.Fallback) install.Happening {
	h := install.Happening{Reason: "ImageNotLazy", Action: "BringWhole", Key: f.Image + " " + f.Manifest.String() + " " + f.Action + " " + f.Reason,
		First: f.First, Last: f.Last, Count: f.Count}
	done := "was brought whole before it started"
	switch f.Action {
	case "plain":
		h.Action, done = "LeaveToContainerd", "is left to containerd, which downloads and unpacks it"
	case "fuse":
		h.Reason, h.Action, done = "ImageThroughFUSE", "UseFUSE", "is mounted through FUSE"
	}
	h.Note = fmt.Sprintf("%s %s: %s", cmp.Or(f.Image, "an image"), done, f.Reason)
	if f.Detail != "" {
		h.Note += ": " + f.Detail
	}
	h.Note += "; " + f.Hint
	return h
}

// hostArgs are the arguments of the same command on the host.
func (o *installOptions) hostArgs(g *globalOptions, verb string, args ...string) []string {
	all := []string{verb, "containerd"}
	if g.root != "" {
		all = append([]string{"--root", g.root}, all...)
	}
	if o.destdir != "" {
		return append(append(all, args...), "--destdir", o.destdir)
	}
	return append(append(all, args...), "--restart")
}

// endOnHost uninstalls, and tries again while something on the node uses thaw.
func endOnHost(cmd *cobra.Command, args []string, log *slog.Logger) error {
	for {
		err := onHost(cmd, args)
		if err == nil {
			log.Info("thaw is gone from the node")
			return nil
		}
		log.Warn("thaw cannot be taken from the node yet", "err", err)
		time.Sleep(uninstallRetry)
	}
}

// onHost runs thaw in the mount namespace of process 1, which is the host's in a
// pod with hostPID. The program itself is found through /proc, wherever it is.
func onHost(cmd *cobra.Command, args []string) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread is of no use to others
		done <- func() error {
			ns, err := os.Open("/proc/1/ns/mnt")
			if err != nil {
				return fmt.Errorf("enter the host: %w", err)
			}
			defer ns.Close()
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return fmt.Errorf("enter the host: %w", err)
			}
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
				return fmt.Errorf("enter the host (is the pod privileged, with hostPID?): %w", err)
			}
			c := exec.Command("/proc/self/exe", args...)
			c.Dir = "/"
			c.Env = append(os.Environ(), "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
			c.Stdout, c.Stderr = cmd.OutOrStdout(), cmd.ErrOrStderr()
			if err := c.Run(); err != nil {
				return fmt.Errorf("on the host: %w", err)
			}
			return nil
		}()
	}()
	return <-done
}
