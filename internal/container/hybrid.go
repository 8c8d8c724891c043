package container

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/containerd/go-runc"
	"golang.org/x/sys/unix"
)

// unifiedDir is where version 2 of cgroups is mounted beside version 1.
const unifiedDir = "/sys/fs/cgroup/unified"

// unified returns the controllers that version 2 of cgroups has on a machine
// that uses both ("hybrid"); elsewhere none.
func unified() []string {
	b, err := os.ReadFile(filepath.Join(unifiedDir, "cgroup.controllers"))
	if err != nil {
		return nil
	}
	return strings.Fields(string(b))
}

// crunCan reports whether crun can make containers here. It refuses machines
// where version 2 has any controller beside version 1 ("cgroups in hybrid mode
// not supported"), also those that no container of ours needs; these are hidden
// from it, see [hybridMonitor].
func crunCan() bool {
	return !slices.ContainsFunc(unified(), func(name string) bool {
		return slices.Contains([]string{"cpu", "cpuset", "io", "memory", "pids"}, name)
	})
}

// hybridMonitor starts crun where it does not see version 2 of cgroups, if it
// would refuse to run because of it.
type hybridMonitor struct{ runc.ProcessMonitor }

// Start implements [runc.ProcessMonitor].
func (m hybridMonitor) Start(c *exec.Cmd) (chan runc.Exit, error) {
	if filepath.Base(c.Args[0]) != "crun" || len(unified()) == 0 {
		return m.ProcessMonitor.Start(c)
	}
	type started struct {
		exit chan runc.Exit
		err  error
	}
	done := make(chan started, 1)
	go onThread(func() {
		err := hideUnified()
		if err != nil {
			done <- started{nil, fmt.Errorf("hide %s from crun: %w", unifiedDir, err)}
			return
		}
		exit, err := m.ProcessMonitor.Start(c)
		done <- started{exit, err}
	})
	s := <-done
	return s.exit, s.err
}

// onThread calls f on a thread that ends afterwards, and its mount namespace with it
// and what f has started. That cannot be the process's first thread: it never ends, and
// /proc/self shows its namespace.
func onThread(f func()) {
	runtime.LockOSThread() // for good: the thread ends with this goroutine
	if unix.Gettid() != unix.Getpid() {
		f()
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		onThread(f)
	}()
	<-done
	runtime.UnlockOSThread()
}

// hideUnified gives this thread a mount namespace of its own without version 2
// of cgroups. What is unmounted on the machine is unmounted in it too.
func hideUnified() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return os.NewSyscallError("mount", err)
	}
	return os.NewSyscallError("umount", unix.Unmount(unifiedDir, unix.MNT_DETACH))
}
