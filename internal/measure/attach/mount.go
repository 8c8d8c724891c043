package attach

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// shimDir is what is in the name of every directory of shims, wherever containerd's state
// is.
const shimDir = "/io.containerd.runtime.v2.task/"

// lookEvery bounds how long it is waited for the kernel's word that mounts changed, so
// that it is seen when nobody wants them any more.
const lookEvery = 100 // ms

// waitRoot waits until the root of a container is mounted in the mounts of containerd's
// process, and returns where we see it; false when the context ends before. The kernel
// tells of changes: whoever polls mountinfo is woken (proc_pid_mountinfo(5)).
func waitRoot(ctx context.Context, pid int, namespace, id string) (dir string, ok bool) {
	self := pid == 0 || sameMounts(pid)
	if pid == 0 {
		pid = os.Getpid()
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return "", false
	}
	defer f.Close()
	want := shimDir + namespace + "/" + id + "/rootfs"
	for ctx.Err() == nil {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return "", false
		}
		if dir, ok := findMount(f, want); ok {
			if !self {
				dir = fmt.Sprintf("/proc/%d/root%s", pid, dir)
			}
			return dir, true
		}
		fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}}
		if _, err := unix.Poll(fds, lookEvery); err != nil && !errors.Is(err, unix.EINTR) {
			return "", false
		}
	}
	return "", false
}

// sameMounts reports whether a process has our mounts.
func sameMounts(pid int) bool {
	a, err := os.Readlink("/proc/self/ns/mnt")
	b, err2 := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	return err == nil && err2 == nil && a == b
}

// maxLine bounds a line: an overlay's has all of its layers.
const maxLine = 4 << 20

// findMount finds a mount point by its end: the fifth field of a line.
func findMount(r io.Reader, end string) (string, bool) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		fields := strings.SplitN(lines.Text(), " ", 6)
		if len(fields) < 6 {
			continue
		}
		if point := unescape.Replace(fields[4]); strings.HasSuffix(point, end) {
			return point, true
		}
	}
	return "", false
}

// unescape undoes what the kernel does to names.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
