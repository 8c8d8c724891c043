package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/daemon/api"
)

// upgradeTimeout bounds an upgrade, with what the keeper does when it fails.
const upgradeTimeout = 2 * time.Minute

// upgradePoll is how often to look whether there is a daemon again.
const upgradePoll = 20 * time.Millisecond

func runUpgrade(cmd *cobra.Command, g *globalOptions) error {
	c, err := g.client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), upgradeTimeout)
	defer cancel()
	before, err := c.Status(ctx)
	if errors.Is(err, api.ErrNotRunning) {
		fmt.Fprintf(cmd.ErrOrStderr(), "no daemon is running: the next one is version %s\n", buildVersion())
		return nil
	}
	if err != nil {
		return err
	}
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own program: %w", err)
	}
	if err := c.Upgrade(ctx, exe); err != nil {
		return err
	}
	after, err := waitOther(ctx, c, before)
	if err != nil {
		return api.Errorf("", "see daemon.log and keeper.log in "+c.Root()+"; the next command starts a daemon", "upgrade daemon: none answers: %v", err)
	}
	if !runsThis(after.Pid) {
		return api.Errorf("", "its readers waited and went on; see daemon.log and keeper.log in "+c.Root(),
			"upgrade daemon: %s did not live, version %s is there again", exe, after.Version)
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "daemon %d is version %s now, it was %s\n", after.Pid, after.Version, before.Version)
	return nil
}

// waitOther returns the status of a daemon that is not the one before.
func waitOther(ctx context.Context, c *api.Client, before *api.Status) (*api.Status, error) {
	tick := time.NewTicker(upgradePoll)
	defer tick.Stop()
	for {
		s, err := c.Status(ctx)
		if err == nil && !s.Started.Equal(before.Started) {
			return s, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), err)
		}
	}
}

// runsThis says whether a process runs the same program file as this one.
func runsThis(pid int) bool {
	mine, err := os.Stat("/proc/self/exe")
	if err != nil {
		return false
	}
	theirs, err := os.Stat(fmt.Sprintf("/proc/%d/exe", pid))
	return err == nil && os.SameFile(mine, theirs)
}

// become makes this process another program, with the same arguments and
// environment, or should that be impossible itself once more.
func become(executable string, log *slog.Logger) error {
	err := unix.Exec(executable, os.Args, os.Environ())
	log.Error("become another program: this one begins again", "executable", executable, "err", err)
	return errors.Join(err, unix.Exec("/proc/self/exe", os.Args, os.Environ()))
}
