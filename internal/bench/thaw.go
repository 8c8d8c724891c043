package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/daemon/api"
)

// ThawOptions is a way of starting an image with thaw.
type ThawOptions struct {
	Exe        string   // thaw
	Root       string   // state directory, of this way alone; it need not exist
	Image      string   // reference
	Ready      string   // target of container.WaitReady
	ImageFlags []string // of thaw run and thaw pull
	RunFlags   []string // of thaw run
	Args       []string // the container's command; none: the image's
	Warm       bool     // all of the image is here
	ColdDaemon bool     // starting the daemon is part of a start
	// First is done once, before everything else.
	First func(ctx context.Context) error
}

// thaw is thaw's command line as a way.
type thaw struct {
	ThawOptions
	client *api.Client
	pulled bool
}

// NewThaw returns a way of starting an image with thaw.
func NewThaw(opts ThawOptions) Way {
	return &thaw{ThawOptions: opts, client: api.NewClient(opts.Root)}
}

// Prepare implements [Way].
func (t *thaw) Prepare(ctx context.Context) error {
	if t.First == nil {
		return nil
	}
	return t.First(ctx)
}

// Reset implements [Way]. Nodes have a daemon running, as they have containerd
// running, so it is started here.
func (t *thaw) Reset(ctx context.Context) ([]string, error) {
	if t.Warm {
		return []string{t.Root}, t.warmUp(ctx)
	}
	if err := t.remove(ctx); err != nil {
		return nil, err
	}
	if t.ColdDaemon {
		return []string{t.Root}, nil
	}
	return []string{t.Root}, t.command(ctx, "cache", "ls")
}

// warmUp brings the image, and starts it once: other modes had the page cache
// dropped.
func (t *thaw) warmUp(ctx context.Context) error {
	if !t.pulled {
		if err := t.command(ctx, slices.Concat([]string{"pull"}, t.ImageFlags, []string{t.Image})...); err != nil {
			return err
		}
		t.pulled = true
	}
	s, err := t.Start(ctx)
	if err != nil {
		return err
	}
	return s.Stop(ctx)
}

// command runs thaw to its end.
func (t *thaw) command(ctx context.Context, args ...string) error {
	return RunThaw(ctx, t.Exe, append([]string{"--root", t.Root}, args...)...)
}

// RunThaw runs a command of thaw to its end, or until the context ends.
func RunThaw(ctx context.Context, exe string, args ...string) error {
	cmd := exec.CommandContext(ctx, exe, args...)
	cmd.Args[0] = "thaw"
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = stopPatience
	stderr := &Tail{}
	cmd.Stderr = stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("thaw %s: %w: %s", strings.Join(args, " "), err, said(stderr))
	}
	return nil
}

// stopPatience is how long what was told to end may take.
const stopPatience = 10 * time.Second

// readyPoll is how often it is looked whether thaw run has noted that the
// container is ready. What is measured is what it noted.
const readyPoll = time.Millisecond

// timeline is what is needed of docs/formats/timeline.md.
type timeline struct {
	ReadyMs  *float64  `json:"ready_ms"`
	Begun    time.Time `json:"begun"`
	Manifest string    `json:"manifest"`
	AtReady  *struct {
		NetworkBytes int64 `json:"network_bytes"`
		ImageBytes   int64 `json:"image_bytes"`
		Requests     int64 `json:"requests"`
	} `json:"at_ready"`
}

// Start implements [Way].
func (t *thaw) Start(ctx context.Context) (*Started, error) {
	if err := os.MkdirAll(t.Root, 0o700); err != nil {
		return nil, err
	}
	noted := filepath.Join(t.Root, "timeline.json")
	if err := os.RemoveAll(noted); err != nil {
		return nil, err
	}
	args := slices.Concat([]string{"--root", t.Root, "run", "--ready", t.Ready, "--timeline-file", noted},
		t.ImageFlags, t.RunFlags, []string{t.Image}, t.Args)
	cmd := exec.Command(t.Exe, args...)
	cmd.Args[0] = "thaw"
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true} // a terminal's Ctrl-C is for us
	stderr := &Tail{}
	cmd.Stderr = stderr
	begun := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start thaw run: %w", err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // what it said tells more
	}()
	line, err := waitNoted(ctx, noted, ended)
	if err == nil {
		var s *Started
		if s, err = t.started(ctx, begun, line); err == nil {
			s.Stop = func(ctx context.Context) error {
				err := t.stop(ctx, cmd, ended)
				if !t.Warm && err == nil { // nothing is to go on beside the next mode
					err = t.remove(ctx)
				}
				return err
			}
			return s, nil
		}
	}
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
	defer cancel()
	if ctx.Err() == nil {
		err = fmt.Errorf("thaw run: %w: %s", err, said(stderr))
	}
	return nil, errors.Join(err, t.stop(clean, cmd, ended))
}

// waitNoted returns the timeline of a container that is ready.
func waitNoted(ctx context.Context, path string, ended <-chan struct{}) (*timeline, error) {
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	for {
		var line timeline
		if b, err := os.ReadFile(path); err == nil {
			if err := json.Unmarshal(b, &line); err != nil {
				return nil, fmt.Errorf("read timeline: %w", err)
			}
			if line.ReadyMs != nil {
				return &line, nil
			}
		}
		select {
		case <-tick.C:
		case <-ended:
			return nil, errors.New("it ended before it was ready")
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (t *thaw) started(ctx context.Context, begun time.Time, line *timeline) (*Started, error) {
	// Wall clock: two processes of one machine, a moment apart.
	s := &Started{Ready: line.Begun.Sub(begun.Round(0)) + time.Duration(*line.ReadyMs*float64(time.Millisecond))}
	if c := line.AtReady; c != nil {
		s.Image = Image{Manifest: line.Manifest, LayerBytes: c.ImageBytes}
		s.Cost = &Cost{Bytes: c.NetworkBytes, Requests: c.Requests}
	}
	m, err := t.mounted(ctx)
	if err != nil {
		return nil, err
	}
	s.Root = m.Dir
	return s, nil
}

// mounted returns the one container of the state directory.
func (t *thaw) mounted(ctx context.Context) (*api.Mount, error) {
	status, err := t.client.Status(ctx)
	if err != nil {
		return nil, err
	}
	if len(status.Mounts) != 1 {
		return nil, fmt.Errorf("%d mounts in %s, not one", len(status.Mounts), t.Root)
	}
	return &status.Mounts[0], nil
}

// stop kills the container and waits for its thaw run.
func (t *thaw) stop(ctx context.Context, cmd *exec.Cmd, ended <-chan struct{}) error {
	_ = cmd.Process.Signal(unix.SIGTERM) // ends a run that has no container yet
	if m, err := t.mounted(ctx); err == nil && m.Bundle != "" {
		// Not every first process of a container minds SIGTERM.
		if b, err := os.ReadFile(filepath.Join(m.Bundle, "pid")); err == nil {
			if pid, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && pid > 1 {
				_ = unix.Kill(pid, unix.SIGKILL) // it may have ended by itself
			}
		}
	}
	select {
	case <-ended:
		return nil
	case <-time.After(stopPatience):
		_ = cmd.Process.Kill()
		<-ended
		return errors.New("end thaw run: it did not end, and was killed")
	}
}

// remove ends the daemon and removes the state directory. A command that was
// interrupted may have started a daemon that does not answer yet, and would
// outlive its directory: another command finds it, or starts one, and waits.
func (t *thaw) remove(ctx context.Context) error {
	if _, err := os.Stat(t.Root); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if _, err := t.client.Status(ctx); errors.Is(err, api.ErrNotRunning) {
		if err := t.command(ctx, "cache", "ls"); err != nil {
			return err
		}
	}
	if err := t.command(ctx, "daemon", "stop", "--force"); err != nil {
		return err
	}
	if err := os.RemoveAll(t.Root); err != nil {
		return fmt.Errorf("remove state directory: %w", err)
	}
	return nil
}

// Close implements [Way].
func (t *thaw) Close(ctx context.Context) error { return t.remove(ctx) }
