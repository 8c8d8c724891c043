// Package opens sees which files of a file system are opened, from whatever mount
// namespace, by fanotify: all of a container's, whose root is an overlay of its own.
//
// It sees names and times, not what is read. The kernel keeps the events until they
// are read, and they have no times: a thread of high priority reads them at once.
// What is on other file systems, such as bind mounts, is not seen. Needs root.
package opens

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/measure/clock"
)

// Open is the first open of a file.
type Open struct {
	Path string        // from the file system's root, with a leading slash
	At   time.Duration // of the monotonic clock
	Pid  int           // as this process's namespace has it; 0: of another
	Exec bool          // the first one was to execute it
}

// maxOpens bounds the files that are remembered.
const maxOpens = 1 << 17

// readBytes is the buffer for events, of 24 bytes each.
const readBytes = 64 << 10

// Watcher watches a file system.
type Watcher struct {
	dir   string // where this process sees the file system
	group int    // descriptor of the fanotify group
	stop  int    // eventfd
	done  chan struct{}

	mu         sync.Mutex // guards what follows
	seen       map[string]bool
	all        []Open
	incomplete string // why
}

// Watch watches the file system that dir is the root of. All that is opened after it has
// returned is seen.
func Watch(dir string) (*Watcher, error) {
	group, err := unix.FanotifyInit(unix.FAN_CLASS_NOTIF|unix.FAN_UNLIMITED_QUEUE|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK,
		unix.O_RDONLY|unix.O_LARGEFILE|unix.O_CLOEXEC|unix.O_NOATIME|unix.O_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("fanotify_init", err)
	}
	err = unix.FanotifyMark(group, unix.FAN_MARK_ADD|unix.FAN_MARK_FILESYSTEM, unix.FAN_OPEN|unix.FAN_OPEN_EXEC, unix.AT_FDCWD, dir)
	if err != nil {
		unix.Close(group)
		return nil, fmt.Errorf("watch %s: %w", dir, os.NewSyscallError("fanotify_mark", err))
	}
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(group)
		return nil, os.NewSyscallError("eventfd", err)
	}
	w := &Watcher{dir: filepath.Clean(dir), group: group, stop: stop, done: make(chan struct{}), seen: map[string]bool{}}
	go w.follow()
	return w, nil
}

// follow reads events until it is stopped.
func (w *Watcher) follow() {
	defer close(w.done)
	runtime.LockOSThread() // and never unlocked: the thread ends, with its priority
	hurry()
	buf := make([]byte, readBytes)
	fds := []unix.PollFd{{Fd: int32(w.group), Events: unix.POLLIN}, {Fd: int32(w.stop), Events: unix.POLLIN}}
	for {
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			w.fail(os.NewSyscallError("poll", err))
			return
		}
		w.drain(buf)
		if fds[1].Revents != 0 {
			return
		}
	}
}

// hurry gives this thread priority over those that are not real-time: it takes
// microseconds, and is to see when a file was opened. Without, times are a little late.
func hurry() {
	attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1, Flags: unix.SCHED_FLAG_RESET_ON_FORK}
	_ = unix.SchedSetAttr(0, &attr, 0)
}

// drain reads what there is.
func (w *Watcher) drain(buf []byte) {
	for {
		n, err := unix.Read(w.group, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n <= 0 {
			if err != nil && !errors.Is(err, unix.EAGAIN) {
				w.fail(os.NewSyscallError("read", err))
			}
			return
		}
		w.take(buf[:n], clock.Now())
	}
}

func (w *Watcher) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.incomplete = err.Error()
}

// take notes events that were read at a time, and closes their descriptors.
func (w *Watcher) take(b []byte, at time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	err := parse(b, func(mask uint64, fd, pid int32) {
		if mask&unix.FAN_Q_OVERFLOW != 0 {
			w.incomplete = "the kernel's queue overflowed"
		}
		if fd < 0 {
			return
		}
		path, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(fd)))
		unix.Close(int(fd))
		if rest, here := strings.CutPrefix(path, w.dir+"/"); here {
			path = "/" + rest // before the runtime made it the container's root
		}
		if err != nil || !strings.HasPrefix(path, "/") || strings.HasSuffix(path, " (deleted)") || w.seen[path] {
			return
		}
		if len(w.all) >= maxOpens {
			w.incomplete = fmt.Sprintf("more than %d files were opened", maxOpens)
			return
		}
		w.seen[path] = true
		w.all = append(w.all, Open{Path: path, At: at, Pid: int(pid), Exec: mask&unix.FAN_OPEN_EXEC != 0})
	})
	if err != nil {
		w.incomplete = err.Error()
	}
}

// parse calls fn for each event of b: event_len u32, vers u8, reserved u8,
// metadata_len u16, mask u64, fd s32, pid s32, up to event_len.
func parse(b []byte, fn func(mask uint64, fd, pid int32)) error {
	const head = unix.FAN_EVENT_METADATA_LEN
	for len(b) > 0 {
		if len(b) < head {
			return fmt.Errorf("parse fanotify event: %d bytes", len(b))
		}
		size := binary.NativeEndian.Uint32(b)
		if size < head || int64(size) > int64(len(b)) || b[4] != unix.FANOTIFY_METADATA_VERSION {
			return fmt.Errorf("parse fanotify event: length %d of %d, version %d", size, len(b), b[4])
		}
		fn(binary.NativeEndian.Uint64(b[8:]), int32(binary.NativeEndian.Uint32(b[16:])), int32(binary.NativeEndian.Uint32(b[20:])))
		b = b[size:]
	}
	return nil
}

// Opens returns the files that were opened so far, in the order of their first opens.
func (w *Watcher) Opens() []Open {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]Open{}, w.all...)
}

// Incomplete says why opens were missed, or is empty.
func (w *Watcher) Incomplete() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.incomplete
}

// Close ends watching.
func (w *Watcher) Close() error {
	one := make([]byte, 8)
	binary.NativeEndian.PutUint64(one, 1)
	if _, err := unix.Write(w.stop, one); err != nil {
		return os.NewSyscallError("write", err)
	}
	<-w.done
	unix.Close(w.stop)
	return os.NewSyscallError("close", unix.Close(w.group))
}
