package main

import (
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

// lockFile keeps the pages of a file in memory until this process ends.
func lockFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	b, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map %s: %w", path, err)
	}
	if err := unix.Mlock(b); err != nil {
		_ = unix.Munmap(b)
		return fmt.Errorf("lock %s: %w", path, err)
	}
	return nil
}
