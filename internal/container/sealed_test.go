package container

import (
	"bytes"
	"context"
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/go-runc"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/testenv"
)

// A container's first process is crun until it is started: one that nobody can
// write to, and that has not made a copy of its own.
func TestSealed(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, opts Options) {
		if filepath.Base(opts.Runtime) != "crun" {
			return
		}
		var seals int
		var link string
		opts.Args = []string{"exit", "0"}
		opts.Created = func(time.Time) {
			pid, err := os.ReadFile(filepath.Join(opts.Bundle, "pid"))
			if err != nil {
				t.Error(err)
				return
			}
			exe := "/proc/" + strings.TrimSpace(string(pid)) + "/exe"
			if link, err = os.Readlink(exe); err != nil {
				t.Error(err)
			}
			f, err := os.Open(exe)
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			if seals, err = unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0); err != nil {
				t.Error(err)
			}
		}
		if code, err := Run(t.Context(), opts); err != nil || code != 0 {
			t.Fatalf("code %d, error %v", code, err)
		}
		if !strings.Contains(link, memfdName) {
			t.Errorf("it runs %s", link)
		}
		if want := unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE; seals != want {
			t.Errorf("seals %#x, want %#x", seals, want)
		}
	})
}

// What is sealed is the program, and runs.
func TestSealedCopy(t *testing.T) {
	needCrun(t)
	path, err := FindRuntime("crun")
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(path, "--version")
	f := useSealed(c)
	if f == nil {
		t.Fatal("it is not sealed")
	}
	defer f.Close()
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("/proc/self/fd/" + strconv.Itoa(int(f.Fd())))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%d bytes, and not those of the %d of %s", len(got), len(want), path)
	}
	if _, err := f.WriteAt([]byte("x"), 0); err == nil {
		t.Error("it can be written to")
	}
	if out, err := c.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// Another runtime, a crun that is not there and one that is a script, which its
// interpreter opens later, are run as they are.
func TestSealedNot(t *testing.T) {
	script := filepath.Join(t.TempDir(), "crun")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/usr/sbin/runc", filepath.Join(t.TempDir(), "crun"), script} {
		c := &exec.Cmd{Path: path}
		if f := useSealed(c); f != nil || c.Path != path {
			t.Errorf("%s became %s", path, c.Path)
		}
	}
}

// Where a sealed copy may not be executed, crun runs as it is.
func TestSealedRefused(t *testing.T) {
	needCrun(t)
	defer refused.Store(false)
	path, err := FindRuntime("crun")
	if err != nil {
		t.Fatal(err)
	}
	m := sealingMonitor{refusingMonitor{runc.Monitor.(sealingMonitor).ProcessMonitor}}
	var out bytes.Buffer
	for range 2 { // the second time it is known
		out.Reset()
		c := exec.Command(path, "--version")
		c.Stdout = &out
		exit, err := m.Start(c)
		if err != nil {
			t.Fatal(err)
		}
		if e := <-exit; e.Status != 0 || !strings.HasPrefix(out.String(), "crun") {
			t.Errorf("status %d: %s", e.Status, &out)
		}
		if !refused.Load() {
			t.Error("it was not refused")
		}
	}
}

// What runs in the place of a copy ends with its context as well.
func TestSealedRefusedContext(t *testing.T) {
	testenv.NeedTool(t, "sleep")
	defer refused.Store(false)
	path, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	crun := filepath.Join(t.TempDir(), "crun")
	if err := os.WriteFile(crun, program, 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	c := exec.CommandContext(ctx, crun, "1000")
	c.Args[0] = "sleep" // some are many programs
	m := sealingMonitor{refusingMonitor{runc.Monitor.(sealingMonitor).ProcessMonitor}}
	exit, err := m.Start(c)
	if err != nil {
		t.Fatal(err)
	}
	if c.Path != crun || c.Process == nil {
		t.Errorf("%s has process %v", c.Path, c.Process)
	}
	cancel()
	if e := <-exit; e.Status == 0 {
		t.Error("it ended by itself")
	}
}

// An error names the program, and is no reason not to try the next copy.
func TestSealedError(t *testing.T) {
	path := filepath.Join(t.TempDir(), "crun")
	if err := os.WriteFile(path, []byte(elf.ELFMAG+"garbage"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := runc.Monitor.Start(exec.Command(path)); err == nil || !strings.Contains(err.Error(), path) || refused.Load() {
		t.Errorf("refused %t, error %v", refused.Load(), err)
	}
}

// In a PID namespace with another's /proc no other process's file is executed.
func TestSealedPIDNamespace(t *testing.T) {
	testenv.NeedRoot(t)
	needCrun(t)
	c := exec.Command("/proc/self/exe", "-test.run=^TestSealedCopy$")
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	if out, err := c.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// refusingMonitor does what a security module does to programs in memory.
type refusingMonitor struct{ runc.ProcessMonitor }

func (m refusingMonitor) Start(c *exec.Cmd) (chan runc.Exit, error) {
	if strings.HasPrefix(c.Path, "/proc/") {
		if err := os.Chmod(c.Path, 0o600); err != nil {
			return nil, err
		}
	}
	return m.ProcessMonitor.Start(c)
}
