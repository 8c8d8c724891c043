package main

import (
	"context"
	"errors"
	"fmt"

	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/daemon/api"
)

// startTimeout bounds the start of a daemon.
const startTimeout = time.Minute

// startAgain is how long to wait before another attempt where a daemon runs but
// does not answer.
const startAgain = 200 * time.Millisecond

// logName is where a daemon that was started by a command logs.
const logName = "daemon.log"

// connect returns a client of the daemon of the state directory, which is
// started where none runs.
func (g *globalOptions) connect(ctx context.Context) (*api.Client, error) {
	c, err := g.client()
	if err != nil {
		return nil, err
	}
	if _, err := c.Status(ctx); !errors.Is(err, api.ErrNotRunning) {
		return c, err
	}
	if os.Geteuid() != 0 {
		return nil, api.Errorf(api.CodeUnsupported, "use sudo", "mounting needs root")
	}
	return c, g.startDaemon(ctx, c)
}

// client returns a client without making sure that there is a daemon.
func (g *globalOptions) client() (*api.Client, error) {
	cfg, err := g.load()
	if err != nil {
		return nil, err
	}
	root, err := filepath.Abs(cfg.Root)
	if err != nil {
		return nil, err
	}
	return api.NewClient(root), nil
}

func (g *globalOptions) startDaemon(ctx context.Context, c *api.Client) error {
	if err := os.MkdirAll(c.Root(), 0o700); err != nil {
		return fmt.Errorf("make state directory: %w", err)
	}
	log, err := os.OpenFile(filepath.Join(c.Root(), logName), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open log of daemon: %w", err)
	}
	defer log.Close()
	exited := make(chan error, 1)
	spawn := func() error {
		cmd := exec.Command("/proc/self/exe", g.daemonArgs(c.Root())...)
		cmd.Args[0] = "thaw"
		cmd.Dir = "/"
		cmd.Stdout, cmd.Stderr = log, log
		cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
		if err := cmd.Start(); err != nil {
			return fmt.Errorf("start daemon: %w", err)
		}
		go func() { exited <- cmd.Wait() }()
		return nil
	}
	if err := spawn(); err != nil {
		return err
	}
	var again <-chan time.Time
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if _, err := c.Status(ctx); !errors.Is(err, api.ErrNotRunning) {
				return err
			}
		case err := <-exited:
			// Another command may have started one at the same moment, which
			// does not answer yet; or one that does not answer any more is
			// about to end.
			var exit *exec.ExitError
			if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != exitRunning) {
				return api.Errorf("", "its log is "+log.Name(), "start daemon: %v", err)
			}
			again = time.After(startAgain)
		case <-again:
			if err := spawn(); err != nil {
				return err
			}
		case <-ctx.Done():
			return api.Errorf("", "its log is "+log.Name(), "start daemon: it does not answer: %v", ctx.Err())
		}
	}
}

func (g *globalOptions) daemonArgs(root string) []string {
	args := []string{"daemon", "--root", root, "--log-level", "info"}
	if g.format == logJSON {
		args = append(args, "--log-format", g.format)
	}
	if g.config != "" {
		args = append(args, "--config", g.config)
	}
	return args
}
