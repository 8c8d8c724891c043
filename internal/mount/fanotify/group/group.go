// Package group speaks to a fanotify pre-content event group: it makes one,
// marks files, parses its events and answers them.
//
// The model: a group is one descriptor. A marked file raises an event before a
// range of it is read; the reader sleeps in the kernel until somebody answers
// the event by its descriptor *number* on the group. Answers are Allow or deny
// with EIO; no other errno is ever sent, because one the kernel does not expect
// leaves the event pending for ever. A group is read by one process at a time,
// though several may hold its descriptor.
//
// It decides nothing: which range is there, and who may read the group, is the
// business of packages fanotify and keeper.
//
// Source: fanotify(7), fanotify_mark(2), include/uapi/linux/fanotify.h (Linux 6.14 or newer).
package group

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// MaxFiles is the highest number of descriptors that a process which reads a
// group may have. Events that a dead reader left unanswered are found by trying
// every number below it, see Sweep.
const MaxFiles = 64 << 10

const (
	initFlags = unix.FAN_CLASS_PRE_CONTENT | unix.FAN_UNLIMITED_QUEUE | unix.FAN_UNLIMITED_MARKS |
		unix.FAN_CLOEXEC | unix.FAN_NONBLOCK
	// Event descriptors only name the file: nothing is read or written through them. Read-only ones are cheaper
	// (no write access to take and give back) and cannot fail on a file system that went read-only.
	eventFlags = unix.O_RDONLY | unix.O_LARGEFILE | unix.O_CLOEXEC

	responseAllow = uint32(unix.FAN_ALLOW)
	responseDeny  = uint32(unix.FAN_DENY) | uint32(unix.EIO)<<unix.FAN_ERRNO_SHIFT
)

// New makes an event group: pre-content class, unlimited queue and marks, close-on-exec, non-blocking.
// It needs CAP_SYS_ADMIN.
func New() (*os.File, error) {
	fd, err := unix.FanotifyInit(initFlags, eventFlags)
	if err != nil {
		return nil, fmt.Errorf("create fanotify group: %w", err)
	}
	return os.NewFile(uintptr(fd), "fanotify"), nil
}

// Mark asks for pre-content events of the file behind fd. Descriptors of the file that
// were opened before raise none, later ones do. Marking twice is harmless.
func Mark(group, fd int) error {
	// No path: the mark goes to what fd refers to, whatever its name is by now.
	err := unix.FanotifyMark(group, unix.FAN_MARK_ADD, unix.FAN_PRE_ACCESS, fd, "")
	if err != nil {
		return fmt.Errorf("mark file for pre-content events: %w", err)
	}
	return nil
}

// Unmark ends the events of the file behind fd; what is a hole in it reads as zeros from now on.
// A file that has no mark is not an error.
func Unmark(group, fd int) error {
	err := unix.FanotifyMark(group, unix.FAN_MARK_REMOVE, unix.FAN_PRE_ACCESS, fd, "")
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove pre-content mark: %w", err)
	}
	return nil
}

// ignore asks for no events of what is opened through a mount, whatever marks the files have, also when those are written to.
const ignore = unix.FAN_MARK_MOUNT | unix.FAN_MARK_IGNORE | unix.FAN_MARK_IGNORED_SURV_MODIFY

// Silence ends the events of marked files that were opened through a mount. tree is a descriptor of a directory of it, which may be one of
// a mount that is attached nowhere (open_tree(2)). The mark goes when the mount does.
func Silence(group, tree int) error {
	// By a name: an O_PATH descriptor itself is not taken.
	if err := unix.FanotifyMark(group, unix.FAN_MARK_ADD|ignore, unix.FAN_PRE_ACCESS, tree, "."); err != nil {
		return fmt.Errorf("ignore pre-content events of mount: %w", err)
	}
	return nil
}

// Unsilence takes Silence back. A mount that has no such mark is not an error.
func Unsilence(group, tree int) error {
	err := unix.FanotifyMark(group, unix.FAN_MARK_REMOVE|ignore, unix.FAN_PRE_ACCESS, tree, ".")
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("ask for pre-content events of mount again: %w", err)
	}
	return nil
}

// UnsilenceAll takes Silence back for all mounts.
func UnsilenceAll(group int) error {
	if err := unix.FanotifyMark(group, unix.FAN_MARK_FLUSH|unix.FAN_MARK_MOUNT, 0, unix.AT_FDCWD, "/"); err != nil {
		return fmt.Errorf("ask for pre-content events of all mounts again: %w", err)
	}
	return nil
}

// Allow lets the reader of the event with this descriptor number go on. The descriptor must still be
// open, and be closed afterwards: its number must not come back before the answer.
// An event whose reader was killed meanwhile is not an error.
func Allow(group int, fd int32) error { return respond(group, fd, responseAllow) }

// Deny lets the read fail with EIO. Otherwise it is as Allow.
func Deny(group int, fd int32) error { return respond(group, fd, responseDeny) }

func respond(group int, fd int32, response uint32) error {
	var b [8]byte
	binary.NativeEndian.PutUint32(b[0:], uint32(fd))
	binary.NativeEndian.PutUint32(b[4:], response)
	for {
		_, err := unix.Write(group, b[:])
		switch {
		case err == unix.EINTR:
			continue
		case err == nil, err == unix.ENOENT: // ENOENT: nobody waits under that number (any more)
			return nil
		}
		return fmt.Errorf("answer fanotify event %d: %w", fd, err)
	}
}

// Sweep denies the events that an earlier reader of the group took and did not answer, those in spare excepted. The kernel
// knows them only by the number that their descriptor had in that process, so all numbers are tried. It must be done
// before the first read by a new process: an event of ours with the same number would otherwise be mixed up with the old one.
func Sweep(group int, spare []Stale) error {
	for fd := range int32(MaxFiles) {
		if len(spare) > 0 && spare[0].FD == fd { // in order, as Reserve returns them
			spare = spare[1:]
			continue
		}
		if err := Deny(group, fd); err != nil {
			return fmt.Errorf("deny stale events: %w", err)
		}
	}
	return nil
}

// LimitFiles sets this process's limit of open descriptors to MaxFiles, or to the hard limit where that is lower and
// may not be raised. Every process that reads a group calls it first.
func LimitFiles() error {
	limit := unix.Rlimit{Cur: MaxFiles, Max: MaxFiles}
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		return fmt.Errorf("read limit of open files: %w", err)
	}
	if old.Max > MaxFiles {
		limit.Max = old.Max
	}
	err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
	if errors.Is(err, unix.EPERM) {
		limit.Max = old.Max
		limit.Cur = min(old.Max, MaxFiles)
		err = unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
	}
	if err != nil {
		return fmt.Errorf("set limit of open files: %w", err)
	}
	return nil
}
