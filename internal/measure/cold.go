package measure

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/thaw-project/thaw/internal/bench"
	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/profile"
)

// warmShare is how much of what is on disk the page cache has to have for a start to be
// warm, and coldBytes how much it may have for one to be cold: a daemon's log and the
// like.
const (
	warmShare = 0.9
	coldBytes = 1 << 20
)

// NotColdError says that a run could not begin as it was to.
type NotColdError struct {
	Level   string
	Residue bench.Residue
	Dir     string
}

func (e *NotColdError) Error() string {
	return fmt.Sprintf("not %s: %d files with %d bytes, %d of them cached, are below %s", e.Level, e.Residue.Files, e.Residue.StoredBytes, e.Residue.CachedBytes, e.Dir)
}

// resets is how often it is tried to make things as cold as they are to be: others may
// read, or drop the page cache, at the same moment.
const resets = 3

// reset makes things as they are to be before a start, and proves it.
func (s *Subject) reset(ctx context.Context) (*profile.Coldness, error) {
	for n := 1; ; n++ {
		c, err := s.tryReset(ctx)
		var cold *NotColdError
		if !errors.As(err, &cold) || n == resets {
			return c, err
		}
	}
}

func (s *Subject) tryReset(ctx context.Context) (*profile.Coldness, error) {
	var err error
	switch s.Cold {
	case profile.ColdL0:
		if err = s.remove(ctx); err == nil {
			err = s.command(ctx, "cache", "ls") // nodes have a daemon running, as they have containerd
		}
	case profile.ColdL1:
		err = s.pull(ctx)
	case profile.ColdL2:
		if err = s.pull(ctx); err == nil {
			err = s.warmUp(ctx)
		}
	default:
		err = fmt.Errorf("no way to make things %s", s.Cold)
	}
	if err == nil && s.Cold != profile.ColdL2 {
		err = bench.DropCaches(ctx)
	}
	if err == nil && s.Registry != nil { // its disk is not what is measured
		err = s.Registry.Warm(ctx)
	}
	if err != nil {
		return nil, err
	}
	return s.prove()
}

// prove looks whether it is as cold as it is to be.
func (s *Subject) prove() (*profile.Coldness, error) {
	left, err := bench.MeasureResidue(s.Start.Root)
	if err != nil {
		return nil, err
	}
	c := &profile.Coldness{Level: s.Cold, Files: left.Files, StoredBytes: left.StoredBytes, CachedBytes: left.CachedBytes}
	switch s.Cold {
	case profile.ColdL0:
		c.Proven = left.Cold()
	case profile.ColdL1:
		c.Proven = !left.Cold() && left.CachedBytes <= coldBytes
	case profile.ColdL2:
		c.Proven = !left.Cold() && float64(left.CachedBytes) >= warmShare*float64(left.StoredBytes)
	}
	if !c.Proven {
		return c, &NotColdError{s.Cold, left, s.Start.Root}
	}
	return c, nil
}

// cacheDrops is how often the machine's page cache was dropped by hand since boot;
// negative where the kernel does not count that.
func cacheDrops() int64 {
	n, ok := readStat("/proc/vmstat")["drop_pagecache"]
	if !ok {
		return -1
	}
	return n
}

// imageFlags are those of a start. An image that is here has its index here too,
// whatever was to be done without one.
func (s *Subject) imageFlags() []string {
	if s.Cold == profile.ColdL0 {
		return s.Start.ImageFlags
	}
	return slices.DeleteFunc(slices.Clone(s.Start.ImageFlags), func(f string) bool { return strings.HasPrefix(f, "--index") })
}

// pull brings all of the image, once, and starts it once: its index is compared with its
// layers then, which the first of the starts that are measured would be slower by.
func (s *Subject) pull(ctx context.Context) error {
	if s.pulled {
		return nil
	}
	if err := s.remove(ctx); err != nil {
		return err
	}
	if err := s.command(ctx, slices.Concat([]string{"pull"}, s.Start.ImageFlags, []string{s.Start.Image})...); err != nil {
		return err
	}
	if err := s.rehearse(ctx); err != nil {
		return err
	}
	s.pulled = true
	return nil
}

// rehearse starts a container that is not measured, until it is ready and nothing goes on
// behind it.
func (s *Subject) rehearse(ctx context.Context) error {
	st, err := s.start(ctx, &Observer{}, false)
	if err == nil {
		_, err = st.waitReady(ctx)
	}
	if err == nil {
		_, err = st.client.WaitComplete(ctx, st.mounted.ID)
	}
	if st != nil {
		err = errors.Join(err, st.stop(ctx))
	}
	if err != nil {
		return fmt.Errorf("warm up: %w", err)
	}
	return nil
}

// warmUp starts a container that is not measured, and reads all that is on disk.
func (s *Subject) warmUp(ctx context.Context) error {
	if err := s.rehearse(ctx); err != nil {
		return err
	}
	return filepath.WalkDir(s.Start.Root, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(io.Discard, f)
		return err
	})
}

func (s *Subject) command(ctx context.Context, args ...string) error {
	return bench.RunThaw(ctx, s.Start.Exe, append([]string{"--root", s.Start.Root}, args...)...)
}

// remove ends the subject's daemon, and removes its state directory.
func (s *Subject) remove(ctx context.Context) error {
	return RemoveNode(ctx, s.Start.Exe, s.Start.Root)
}

// RemoveNode ends the daemon of a state directory, with all that it has mounted, and
// removes the directory. A command that was interrupted may have started a daemon that
// does not answer yet, and would outlive its directory: another command finds it, or
// starts one, and waits.
func RemoveNode(ctx context.Context, exe, root string) error {
	if _, err := os.Stat(root); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if _, err := api.NewClient(root).Status(ctx); errors.Is(err, api.ErrNotRunning) {
		if err := bench.RunThaw(ctx, exe, "--root", root, "cache", "ls"); err != nil {
			return err
		}
	}
	if err := bench.RunThaw(ctx, exe, "--root", root, "daemon", "stop", "--force"); err != nil {
		return err
	}
	if err := os.RemoveAll(root); err != nil {
		return fmt.Errorf("remove state directory: %w", err)
	}
	return nil
}
