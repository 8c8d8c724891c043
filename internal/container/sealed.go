package container

import (
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"

	"github.com/containerd/go-runc"
	"golang.org/x/sys/unix"
)

// memfdName is what crun calls such a copy where it makes one itself: tools that
// watch what is executed from memory may know it.
const memfdName = "crun_cloned:/proc/self/exe"

func init() { runc.Monitor = sealingMonitor{hybridMonitor{runc.Monitor}} }

// sealingMonitor runs crun from a sealed copy in memory. So that no container can
// overwrite it by /proc/self/exe (CVE-2019-5736), crun otherwise mounts itself
// read-only, unmounts that and executes itself anew, each time: 2 ms, and more on
// busy CPUs, whose state the unmount waits for. From what is sealed it just runs.
type sealingMonitor struct{ runc.ProcessMonitor }

// Start implements [runc.ProcessMonitor]. Where the copy cannot be executed crun
// runs as it is; an error names that, and not the copy.
func (m sealingMonitor) Start(c *exec.Cmd) (chan runc.Exit, error) {
	plain := *c
	f := useSealed(c)
	if f == nil {
		return m.ProcessMonitor.Start(c)
	}
	defer f.Close() // the process has it by then
	exit, err := m.ProcessMonitor.Start(c)
	if err == nil {
		return exit, nil
	}
	*c = plain
	if exit, err = m.ProcessMonitor.Start(c); err == nil {
		refused.Store(true)
	}
	return exit, err
}

// refused is set once something on this machine, such as a security module, has
// not let a sealed copy run.
var refused atomic.Bool

// useSealed has a command that is crun run from a sealed copy, the file it
// returns, which is to be closed once the command has started. Where that cannot be
// done the command stays as it is, and the file is nil.
func useSealed(c *exec.Cmd) *os.File {
	if filepath.Base(c.Path) != "crun" || refused.Load() {
		return nil
	}
	// Not /proc/self: the child may have another file by this number. Nor
	// os.Getpid: /proc may be that of another PID namespace.
	self, err := os.Readlink("/proc/self")
	if err != nil {
		return nil
	}
	f, err := seal(c.Path)
	if err != nil {
		return nil
	}
	c.Path = fmt.Sprintf("/proc/%s/fd/%d", self, f.Fd())
	return f
}

// seal copies a program into memory where nobody can change it.
func seal(path string) (*os.File, error) {
	program, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer program.Close()
	info, err := program.Stat()
	if err != nil {
		return nil, err
	}
	if !isELF(program) { // a script is opened by its interpreter, after the copy is closed
		return nil, fmt.Errorf("%s is not an ELF file", path)
	}
	fd, err := unix.MemfdCreate(memfdName, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if err == unix.EINVAL { // before Linux 6.3 there is no other kind
		fd, err = unix.MemfdCreate(memfdName, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), path)
	if err := copySealed(f, program, info.Size()); err != nil {
		f.Close()
		return nil, fmt.Errorf("copy %s: %w", path, err)
	}
	return f, nil
}

func isELF(f *os.File) bool {
	magic := make([]byte, len(elf.ELFMAG))
	_, err := f.ReadAt(magic, 0)
	return err == nil && string(magic) == elf.ELFMAG
}

func copySealed(to, from *os.File, size int64) error {
	for size > 0 {
		n, err := unix.Sendfile(int(to.Fd()), int(from.Fd()), nil, int(size))
		if err != nil {
			return os.NewSyscallError("sendfile", err)
		}
		if n == 0 {
			return fmt.Errorf("it has %d bytes less than it had", size)
		}
		size -= int64(n)
	}
	// These and no others, or crun makes a copy of its own.
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	_, err := unix.FcntlInt(to.Fd(), unix.F_ADD_SEALS, seals)
	return os.NewSyscallError("fcntl", err)
}
