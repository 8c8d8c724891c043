package main

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"golang.org/x/sys/unix"
)

// lockProgram keeps this program in memory: readers wait for the daemon, which is
// not to wait for a disk then. Commands are the same program. Where locking is
// forbidden (RLIMIT_MEMLOCK) things go on as without.
func lockProgram(log *slog.Logger) {
	if err := lockFile("/proc/self/exe"); err != nil {
		log.Debug("the daemon's program is not kept in memory", "err", err)
	}
}

// lockFile keeps the pages of a file that is mapped in memory as long as this
// process lives. path is a link to it.
func lockFile(path string) error {
	name, err := os.Readlink(path)
	if err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return err
	}
	for _, m := range mappings(maps, name) {
		err = errors.Join(err, m.lock(f))
	}
	return err
}

// mapping is where this process has a part of a file.
type mapping struct {
	begin, end uintptr // in memory
	writable   bool
	offset     int64 // in the file
}

// mappings returns those of a file. maps is /proc/self/maps, see proc_pid_maps(5).
func mappings(maps []byte, name string) []mapping {
	var found []mapping
	for line := range bytes.Lines(maps) {
		// 00400000-00452000 r-xp 00000000 08:02 173521      /usr/bin/dbus-daemon
		var m mapping
		var permissions string
		n, _ := fmt.Sscanf(string(line), "%x-%x %s %x", &m.begin, &m.end, &permissions, &m.offset)
		if n == 4 && m.begin < m.end && len(permissions) == 4 && bytes.HasSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte(" "+name)) {
			m.writable = permissions[1] == 'w'
			found = append(found, m)
		}
	}
	return found
}

// lock has the kernel keep the file's pages.
func (m mapping) lock(f *os.File) error {
	if !m.writable {
		_, _, errno := unix.Syscall(unix.SYS_MLOCK, m.begin, m.end-m.begin, 0)
		if errno != 0 {
			return os.NewSyscallError("mlock", errno)
		}
		return nil
	}
	// The process has copies of its own of what it wrote to.
	b, err := unix.Mmap(int(f.Fd()), m.offset, int(m.end-m.begin), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return os.NewSyscallError("mmap", err)
	}
	if err := unix.Mlock(b); err != nil {
		return errors.Join(os.NewSyscallError("mlock", err), unix.Munmap(b))
	}
	return nil
}
