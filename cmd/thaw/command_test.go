package main

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/config"
)

// TestHelp: each command says with what it exits, and no line of it is too long to read.
func TestHelp(t *testing.T) {
	var look func(cmd *cobra.Command)
	look = func(cmd *cobra.Command) {
		if n := strings.Count(cmd.Long, "Exit codes: "); n != 1 {
			t.Errorf("%s says %d times what its exit codes are, want once", cmd.CommandPath(), n)
		}
		for line := range strings.Lines(cmd.Long + "\n" + cmd.Example) {
			if len(line) > 100 {
				t.Errorf("%s has a line of %d characters in its help: %s", cmd.CommandPath(), len(line), line)
			}
		}
		for _, c := range cmd.Commands() {
			look(c)
		}
	}
	look(newRootCommand())
}

// TestWriteFile: a file is replaced, and what is none is written to: /dev/null is to be
// what it was, also for root.
func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	file, link, pipe := filepath.Join(dir, "file"), filepath.Join(dir, "link"), filepath.Join(dir, "pipe")
	if err := errors.Join(os.Symlink("file", link), unix.Mkfifo(pipe, 0o600)); err != nil {
		t.Fatal(err)
	}
	reader, err := unix.Open(pipe, unix.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(reader)
	for _, path := range []string{pipe, link, file, link} {
		if err := writeFile(path, []byte("to "+path)); err != nil {
			t.Fatal(err)
		}
	}
	got := make([]byte, 4096)
	if n, err := unix.Read(reader, got); err != nil || string(got[:n]) != "to "+pipe {
		t.Errorf("the pipe got %q, %v", got[:max(n, 0)], err)
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "to "+link {
		t.Errorf("the file has %q, %v", b, err)
	}
	for path, want := range map[string]os.FileMode{link: os.ModeSymlink, pipe: os.ModeNamedPipe, file: 0} {
		if info, err := os.Lstat(path); err != nil || info.Mode().Type() != want {
			t.Errorf("%s is %v, %v", path, info.Mode(), err)
		}
	}
	if err := writeFile(dir, nil); err == nil {
		t.Error("a directory was replaced")
	}
}

// TestIdleExit: a flag beats the file, and 0 says never in both.
func TestIdleExit(t *testing.T) {
	for _, c := range []struct {
		name string
		file time.Duration
		args []string
		want time.Duration
		next []string // of a daemon that takes over
	}{
		{"file", 5 * time.Minute, nil, 5 * time.Minute, nil},
		{"file says never", 0, nil, 0, nil},
		{"negative in the file", -1, nil, 0, nil},
		{"flag", 5 * time.Minute, []string{"--idle-exit=2s"}, 2 * time.Second, []string{"--idle-exit", "2s"}},
		{"flag says never", 5 * time.Minute, []string{"--idle-exit=0s"}, 0, []string{"--idle-exit", "0s"}},
		{"negative flag", 5 * time.Minute, []string{"--idle-exit=-1s"}, 0, []string{"--idle-exit", "-1s"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var opts daemonOptions
			cmd := &cobra.Command{}
			opts.bind(cmd)
			if err := cmd.ParseFlags(c.args); err != nil {
				t.Fatal(err)
			}
			opts.idleExitSet = cmd.Flags().Changed("idle-exit")
			cfg := config.Default()
			cfg.Root, cfg.IdleExit = t.TempDir(), config.Duration(c.file)
			got, err := opts.config(&globalOptions{}, cfg, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			if got.IdleExit != c.want {
				t.Errorf("idle exit %v, want %v", got.IdleExit, c.want)
			}
			if diff := cmp.Diff(c.next, opts.args()); diff != "" {
				t.Errorf("arguments of the next daemon (-want +got):\n%s", diff)
			}
		})
	}
}
