// Package opens sees which files of a file system are opened, from whatever mount
// namespace, by fanotify: all of a container's, whose root is an overlay of its own.
//
// It sees names and times, not what is read. The kernel keeps the events until they
// are read, in their order, and they have no times. Reading each at once would tell its
// time, but a program that opens thousands of files would have this process wake up,
// and take a processor from it, for each. So while files are being opened a thread of
// high priority reads what there is every two milliseconds: what it reads together is
// spread over the time since it read before, and so known to two milliseconds. The
// first open after none for a while is read at once, and so are all after [Watcher.Exact].
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
	"unsafe"

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

// Batch is how long opens are left in the kernel's queue, and how far their times may
// be off.
const Batch = 2 * time.Millisecond

// Watcher watches a file system.
type Watcher struct {
	dir   string // where this process sees the file system
	group int    // descriptor of the fanotify group
	stop  int    // eventfd
	done  chan struct{}

	mu         sync.Mutex // guards what follows, and reading
	closed     bool
	exact      bool
	buf        []byte
	emptied    time.Duration // when all had been read
	batches    int           // that were read
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
	w := &Watcher{dir: filepath.Clean(dir), group: group, stop: stop, done: make(chan struct{}),
		buf: make([]byte, readBytes), emptied: clock.Now(), seen: map[string]bool{}}
	go w.follow()
	return w, nil
}

// follow reads events until it is stopped.
func (w *Watcher) follow() {
	defer close(w.done)
	runtime.LockOSThread() // and never unlocked: the thread ends, with its priority
	hurry()
	fds := []unix.PollFd{{Fd: int32(w.stop), Events: unix.POLLIN}, {Fd: int32(w.group), Events: unix.POLLIN}}
	for {
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			w.fail(os.NewSyscallError("poll", err))
			return
		}
		for w.drain() {
			rest()
		}
		if fds[0].Revents != 0 {
			return
		}
	}
}

// rest lets a batch of opens come together. Go's scheduler is not told that this thread
// sleeps: it would wake up others for it, three times as often as this one.
func rest() {
	t := unix.NsecToTimespec(int64(Batch))
	unix.RawSyscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&t)), 0, 0) // EINTR: then it is a little less
}

// hurry gives this thread priority over those that are not real-time: it takes
// microseconds, and is to see when a file was opened. Without, times are a little late.
func hurry() {
	attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1, Flags: unix.SCHED_FLAG_RESET_ON_FORK}
	_ = unix.SchedSetAttr(0, &attr, 0)
}

// Exact has opens from now on be read at once: their times are right to some ten
// microseconds, at the price of holding up the program.
func (w *Watcher) Exact() {
	w.drain()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.exact = true
}

// event is one of the kernel's.
type event struct {
	mask    uint64
	fd, pid int32
}

// drain reads what there is, and reports whether more may come that is to be left in the
// queue for a while.
func (w *Watcher) drain() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return false
	}
	var events []event
	for {
		n, err := unix.Read(w.group, w.buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && n > 0 {
			err = parse(w.buf[:n], func(mask uint64, fd, pid int32) { events = append(events, event{mask, fd, pid}) })
		}
		if err != nil && !errors.Is(err, unix.EAGAIN) {
			w.incomplete = os.NewSyscallError("read", err).Error()
		}
		if err != nil || n <= 0 {
			break
		}
	}
	if len(events) == 0 {
		w.emptied = clock.Now()
		return false
	}
	w.batches++
	now, from := clock.Now(), w.emptied
	if w.exact {
		from = now
	}
	w.take(events, max(from, now-Batch), now)
	w.emptied = now
	return !w.exact
}

func (w *Watcher) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.incomplete = err.Error()
}

// take notes events of a time, and closes their descriptors. Called with mu held.
func (w *Watcher) take(events []event, from, to time.Duration) {
	for i, e := range events {
		if e.mask&unix.FAN_Q_OVERFLOW != 0 {
			w.incomplete = "the kernel's queue overflowed"
		}
		if e.fd < 0 {
			continue
		}
		path, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(e.fd)))
		unix.Close(int(e.fd))
		if rest, here := strings.CutPrefix(path, w.dir+"/"); here {
			path = "/" + rest // before the runtime made it the container's root
		}
		if err != nil || !strings.HasPrefix(path, "/") || strings.HasSuffix(path, " (deleted)") || w.seen[path] {
			continue
		}
		if len(w.all) >= maxOpens {
			w.incomplete = fmt.Sprintf("more than %d files were opened", maxOpens)
			continue
		}
		w.seen[path] = true
		at := from + (to-from)*time.Duration(i+1)/time.Duration(len(events)) // the last one may be what was waited for
		w.all = append(w.all, Open{Path: path, At: at, Pid: int(e.pid), Exec: e.mask&unix.FAN_OPEN_EXEC != 0})
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
	w.drain()
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
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	unix.Close(w.stop)
	return os.NewSyscallError("close", unix.Close(w.group))
}
