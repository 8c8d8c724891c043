package container

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/go-runc"
	"golang.org/x/sys/unix"
)

// runtimes are tried in this order, the faster one first.
var runtimes = []string{"crun", "runc"}

// cgroupParent is the cgroup all containers lie in.
const cgroupParent = "/thaw"

// Cgroup is the path of a container's cgroup in every hierarchy, from where this
// process's lies.
func Cgroup(id, bundle string) string { return path.Join(cgroupParent, cgroupName(id, bundle)) }

// cgroupName is a container's cgroup in there. Containers of two state
// directories may have one name, but not one bundle.
func cgroupName(id, bundle string) string {
	sum := sha256.Sum256([]byte(filepath.Clean(bundle)))
	return fmt.Sprintf("%s-%x", id, sum[:4])
}

// FindRuntime returns the path of an OCI runtime: the named one, or with auto or
// an empty name the one that starts containers fastest and can do so here.
// Runtimes in sbin directories are found even if the PATH has none.
func FindRuntime(name string) (string, error) {
	names := runtimes
	if name != "" && name != "auto" {
		names = []string{name}
	} else if !crunCan() {
		names = []string{"runc"}
	}
	for _, n := range names {
		for _, candidate := range []string{n, "/usr/local/sbin/" + n, "/usr/sbin/" + n} {
			if path, err := exec.LookPath(candidate); err == nil {
				return path, nil
			}
		}
	}
	return "", fmt.Errorf("find OCI runtime: %s: %w", strings.Join(names, ", "), exec.ErrNotFound)
}

func newClient(runtime, bundle string) (*runc.Runc, error) {
	command, err := FindRuntime(runtime)
	if err != nil {
		return nil, err
	}
	return &runc.Runc{
		Command: command,
		// The runtime's own state goes with the bundle.
		Root:      filepath.Join(bundle, "runtime"),
		Log:       filepath.Join(bundle, "runtime.log"),
		LogFormat: runc.JSON,
	}, nil
}

// Cleanup ends a container with SIGKILL and removes what there is of it: its
// processes, the runtime's state and its cgroups. The bundle directory is the
// caller's. It may be called at any time, for a container that never was, and
// again.
func Cleanup(ctx context.Context, runtime, id, bundle string) error {
	client, err := newClient(runtime, bundle)
	if err != nil {
		return err
	}
	return cleanup(ctx, client, id, bundle)
}

// cleanup outlives its context: a cancelled run leaves nothing behind either.
func cleanup(ctx context.Context, client *runc.Runc, id, bundle string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
	defer cancel()
	defer lockBundle(ctx, bundle)()
	state := filepath.Join(client.Root, id)
	var deleted error
	if _, err := os.Lstat(state); err == nil {
		deleted = client.Delete(ctx, id, &runc.DeleteOpts{Force: true})
	}
	// A runtime killed half-way knows less than its cgroups do.
	if err := removeCgroups(ctx, cgroupName(id, bundle)); err != nil {
		return fmt.Errorf("clean up container %s: %w", id, errors.Join(deleted, err))
	}
	if err := os.RemoveAll(state); err != nil {
		return fmt.Errorf("clean up container %s: %w", id, err)
	}
	return nil
}

// lockBundle waits until nobody else cleans up the container, and returns what
// ends that: a daemon may, and a thaw run whose daemon had died. The one that comes
// second finds nothing to delete; a runtime that was at it when the other removed the
// bundle would make its directories anew. One that hangs is not waited for long.
func lockBundle(ctx context.Context, bundle string) (unlock func()) {
	f, err := os.Open(bundle)
	if err != nil {
		return func() {} // it is gone
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == unix.EWOULDBLOCK {
		select {
		case <-time.After(2 * time.Millisecond):
			continue
		case <-ctx.Done():
		}
		break
	}
	return func() { f.Close() }
}

// cgroupRoots returns where cgroup hierarchies of either version are mounted.
func cgroupRoots() ([]string, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var roots []string
	for line := range strings.Lines(string(b)) {
		// 36 35 98:0 /root /mount/point options [optional ...] - type source options
		before, after, ok := strings.Cut(line, " - ")
		fields := strings.Fields(before)
		if !ok || len(fields) < 5 {
			continue
		}
		if kind, _, _ := strings.Cut(after, " "); kind == "cgroup" || kind == "cgroup2" {
			roots = append(roots, fields[4])
		}
	}
	slices.Sort(roots)
	return slices.Compact(roots), nil
}

// removeCgroups kills what is in a container's cgroups and removes them. The
// kernel needs some time to let go of killed processes.
func removeCgroups(ctx context.Context, name string) error {
	roots, err := cgroupRoots()
	if err != nil {
		return err
	}
	for _, root := range roots {
		dir := filepath.Join(root, cgroupParent, name)
		wait := time.Millisecond
		for {
			err := removeCgroup(dir)
			if err == nil {
				break
			}
			select {
			case <-time.After(wait):
				wait = min(2*wait, 50*time.Millisecond)
			case <-ctx.Done():
				return fmt.Errorf("remove cgroup %s: %w", dir, err)
			}
		}
	}
	return nil
}

func removeCgroup(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeCgroup(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs")); err == nil {
		for field := range strings.FieldsSeq(string(procs)) {
			if pid, err := strconv.Atoi(field); err == nil && pid > 1 {
				_ = unix.Kill(pid, unix.SIGKILL) // gone already is as good
			}
		}
	}
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
