package daemon

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// pidStart returns when a process started, in clock ticks since boot: with its
// pid it names the process for ever. 0: there is no such process.
func pidStart(pid int) uint64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The name (field 2) may hold anything but ends at the last parenthesis.
	_, rest, ok := bytes.Cut(b[bytes.LastIndexByte(b, ')')+1:], []byte(" "))
	fields := strings.Fields(string(rest))
	const startTime = 22 - 3 // proc_pid_stat(5), counted from field 3
	if !ok || len(fields) <= startTime {
		return 0
	}
	start, err := strconv.ParseUint(fields[startTime], 10, 64)
	if err != nil {
		return 0
	}
	return start
}

// waitProcess returns nil when the process has ended, or the context's error.
func waitProcess(ctx context.Context, pid int, start uint64) error {
	fd, err := unix.PidfdOpen(pid, unix.O_NONBLOCK)
	if err != nil {
		return nil // ended
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	defer f.Close()
	if pidStart(pid) != start {
		return nil // its pid is somebody else's now
	}
	stop := context.AfterFunc(ctx, func() { f.Close() })
	defer stop()
	raw, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("wait for process %d: %w", pid, err)
	}
	err = raw.Read(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 0)
		return err == nil && n == 1
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// bootID names this boot of the machine.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// residentBytes is the memory that a process has in RAM.
func residentBytes(pid int) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(b))
	if len(fields) < 2 {
		return 0
	}
	pages, err := strconv.ParseInt(fields[1], 10, 64)
	if err != nil {
		return 0
	}
	return pages * int64(os.Getpagesize())
}

// WaitGone returns when the process has ended.
func WaitGone(ctx context.Context, pid int) error {
	return waitProcess(ctx, pid, pidStart(pid))
}
