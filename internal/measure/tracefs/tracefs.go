// Package tracefs has the kernel's tracing say when programs are executed and end,
// when ports begin to listen, and when connections are made and taken: at the
// kernel's own time, whenever this process comes to read it.
//
// An [Instance] is a buffer of tracing apart from all others, so that nobody else's
// tracing is changed. It sees the whole machine; [Follow] finds what belongs to one
// container. tracefs is used through a mount that is attached nowhere. Instances of
// processes that died are removed by the next one.
//
// Needs root, and the machine's first PID namespace: tracing knows no others.
package tracefs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/measure/clock"
)

const (
	// prefix of instances' names; the process and the time of its start follow.
	prefix = "thaw-measure-"
	// bufferKiB are the buffers of all CPUs, and mostKiB and leastKiB those of one. A start
	// has some thousand events of 100 bytes.
	bufferKiB, mostKiB, leastKiB = 64 << 10, 4096, 256
	// pause between two looks into the buffer. Events have their time from the
	// kernel, so nothing needs to be woken for them.
	pause = 250 * time.Millisecond
	// maxEvents bounds what is kept, to some 100 MB.
	maxEvents = 1 << 20
)

// events are switched on, each with its filter; those that are missing are done
// without if they are optional.
var events = []struct {
	name, filter string
	optional     bool
}{
	{"sched/sched_process_fork", "", false},
	{"sched/sched_process_exec", "", false},
	{"sched/sched_process_exit", "", false},
	{"sock/inet_sock_set_state", "newstate == 10 || oldstate == 3 && newstate == 1", false},
	{"syscalls/sys_exit_accept4", "ret >= 0", true},
	{"syscalls/sys_exit_accept", "ret >= 0", true},
}

// Instance is a running trace.
type Instance struct {
	mount *os.File // of tracefs; nil where it is mounted anyway
	dir   string
	pipe  *os.File
	stop  chan struct{}
	done  chan struct{}

	incomplete atomic.Bool
	accepts    bool

	mu   sync.Mutex // guards what follows
	rest []byte     // of a line
	join joiner
	all  []Event
}

// number makes names of one process differ.
var number atomic.Int64

// Start begins to trace. The error says why this machine cannot.
func Start() (*Instance, error) {
	if err := firstNamespace(); err != nil {
		return nil, err
	}
	in := &Instance{stop: make(chan struct{}), done: make(chan struct{})}
	base, err := in.open()
	if err != nil {
		return nil, err
	}
	removeStale(base)
	in.dir = filepath.Join(base, "instances", fmt.Sprintf("%s%d-%d-%d", prefix, os.Getpid(), clock.Started(os.Getpid()), number.Add(1)))
	if err := os.Mkdir(in.dir, 0o700); err != nil {
		return nil, errors.Join(fmt.Errorf("make instance of tracefs: %w", err), in.mount.Close())
	}
	if err := in.begin(); err != nil {
		return nil, errors.Join(err, in.remove())
	}
	go in.follow()
	return in, nil
}

// firstNamespace says whether the kernel's process numbers are ours.
func firstNamespace() error {
	const first = "pid:[4026531836]" // PROC_PID_INIT_INO of include/linux/proc_ns.h
	ns, err := os.Readlink("/proc/self/ns/pid")
	if err == nil && ns != first {
		err = errors.New("this is not the machine's first PID namespace, whose process numbers tracing has")
	}
	return err
}

// open returns tracefs' directory.
func (in *Instance) open() (string, error) {
	fd, err := detached()
	if err == nil {
		in.mount = os.NewFile(uintptr(fd), "tracefs")
		return "/proc/self/fd/" + strconv.Itoa(fd), nil
	}
	for _, dir := range []string{"/sys/kernel/tracing", "/sys/kernel/debug/tracing"} {
		if _, serr := os.Stat(filepath.Join(dir, "instances")); serr == nil {
			return dir, nil
		}
	}
	return "", fmt.Errorf("mount tracefs: %w", err)
}

// detached mounts tracefs for this process alone.
func detached() (int, error) {
	ctx, err := unix.Fsopen("tracefs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(ctx)
	if err := unix.FsconfigCreate(ctx); err != nil {
		return -1, os.NewSyscallError("fsconfig", err)
	}
	fd, err := unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, 0)
	return fd, os.NewSyscallError("fsmount", err)
}

// removeStale removes instances of processes that are no more. One in use is busy.
func removeStale(base string) {
	all, err := os.ReadDir(filepath.Join(base, "instances"))
	if err != nil {
		return
	}
	for _, e := range all {
		rest, ours := strings.CutPrefix(e.Name(), prefix)
		pid, start, _ := strings.Cut(rest, "-")
		start, _, _ = strings.Cut(start, "-")
		n, err := strconv.Atoi(pid)
		if !ours || err != nil || strconv.FormatUint(clock.Started(n), 10) == start {
			continue
		}
		_ = os.Remove(filepath.Join(base, "instances", e.Name())) // busy: somebody has it open
	}
}

func (in *Instance) write(name, value string) error {
	return os.WriteFile(filepath.Join(in.dir, name), []byte(value), 0)
}

// begin switches all on.
func (in *Instance) begin() error {
	for _, s := range []struct{ name, value string }{
		{"tracing_on", "0"}, {"trace_clock", "mono"}, {"buffer_size_kb", strconv.Itoa(max(leastKiB, min(mostKiB, bufferKiB/runtime.NumCPU())))},
	} {
		if err := in.write(s.name, s.value); err != nil {
			return fmt.Errorf("set up tracing: %w", err)
		}
	}
	for _, e := range events {
		var err error
		if e.filter != "" {
			err = in.write("events/"+e.name+"/filter", e.filter)
		}
		if err == nil {
			err = in.write("events/"+e.name+"/enable", "1")
		}
		if err != nil && !e.optional {
			return fmt.Errorf("trace %s: %w", e.name, err)
		}
		if err == nil && e.optional {
			in.accepts = true
		}
	}
	fd, err := unix.Open(filepath.Join(in.dir, "trace_pipe"), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: "trace_pipe", Err: err}
	}
	in.pipe = os.NewFile(uintptr(fd), "trace_pipe")
	if err := in.write("tracing_on", "1"); err != nil {
		return fmt.Errorf("begin tracing: %w", err)
	}
	return nil
}

// follow reads until it is stopped.
func (in *Instance) follow() {
	defer close(in.done)
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			in.drain()
		case <-in.stop:
			return
		}
	}
}

// drain takes what is in the buffer now.
func (in *Instance) drain() {
	in.mu.Lock()
	defer in.mu.Unlock()
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.Read(int(in.pipe.Fd()), buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n <= 0 { // EAGAIN: that is all
			return
		}
		in.rest = append(in.rest, buf[:n]...)
		for {
			line, after, ok := bytes.Cut(in.rest, []byte("\n"))
			if !ok {
				break
			}
			in.take(string(line))
			in.rest = after
		}
		in.rest = bytes.Clone(in.rest) // let go of what was read
	}
}

func (in *Instance) take(line string) {
	if strings.HasPrefix(line, "CPU:") && strings.Contains(line, "LOST") {
		in.incomplete.Store(true)
		return
	}
	e, ok := in.join.take(line)
	if !ok {
		return
	}
	if len(in.all) >= maxEvents {
		in.incomplete.Store(true)
		return
	}
	in.all = append(in.all, e)
}

// Events returns all that was traced so far, by time.
func (in *Instance) Events() []Event {
	in.drain()
	in.mu.Lock()
	defer in.mu.Unlock()
	return append([]Event{}, in.all...)
}

// Forget lets go of what was traced before a time. Who traces for long calls it now and
// then, for neither the kernel nor this keeps all.
func (in *Instance) Forget(before time.Duration) {
	in.drain()
	in.mu.Lock()
	defer in.mu.Unlock()
	in.all = slices.DeleteFunc(in.all, func(e Event) bool { return e.At < before })
	if len(in.all) < cap(in.all)/4 {
		in.all = slices.Clone(in.all)
	}
}

// Incomplete reports whether events were lost.
func (in *Instance) Incomplete() bool { return in.incomplete.Load() }

// Accepts reports whether accepted connections are among the events.
func (in *Instance) Accepts() bool { return in.accepts }

// Close ends the trace and removes it.
func (in *Instance) Close() error {
	close(in.stop)
	<-in.done
	return in.remove()
}

func (in *Instance) remove() error {
	_ = in.write("tracing_on", "0") // it is removed in any case
	if in.pipe != nil {
		in.pipe.Close()
	}
	err := os.Remove(in.dir)
	if errors.Is(err, unix.EBUSY) { // an event that is being switched off
		for range 1000 { // 10 s: on a machine that has no time for it
			time.Sleep(10 * time.Millisecond)
			if err = os.Remove(in.dir); !errors.Is(err, unix.EBUSY) {
				break
			}
		}
	}
	if err != nil {
		err = fmt.Errorf("remove instance of tracefs: %w", err)
	}
	if in.mount != nil {
		in.mount.Close()
	}
	return err
}
