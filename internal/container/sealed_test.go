package container

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/go-runc"
	"golang.org/x/sys/unix"
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

// Another runtime, and a crun that is not there, are run as they are.
func TestSealedNot(t *testing.T) {
	for _, path := range []string{"/usr/sbin/runc", filepath.Join(t.TempDir(), "crun")} {
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
