package container

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Prefetch makes what [Run] needs of any container while an image is waited for,
// and has the kernel read an OCI runtime's program and libraries, if they are not
// in memory: a runtime that was not used for long costs up to half of a container's
// creation. What fails here fails again, with an error, when it is used.
func Prefetch(ctx context.Context, runtime string) {
	_, _ = dockerProfile()
	f, err := os.Open(runtime)
	if err != nil {
		return
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || mostlyCached(f, info.Size()) {
		return
	}
	_ = unix.Fadvise(int(f.Fd()), 0, info.Size(), unix.FADV_WILLNEED)
	if name := filepath.Base(runtime); name != "crun" && name != "runc" {
		return // not known to have --version
	}
	c := exec.CommandContext(ctx, runtime, "--version") // for the libraries
	if sealed := useSealed(c); sealed != nil {
		defer sealed.Close()
	}
	_ = c.Run()
}

// mostlyCached reports whether half of a file is in the page cache. Kernels that
// cannot tell (before Linux 6.5) say no.
func mostlyCached(f *os.File, size int64) bool {
	var cached unix.Cachestat_t // Len 0: to the end of the file
	if err := unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{}, &cached, 0); err != nil {
		return false
	}
	return int64(cached.Cache)*int64(os.Getpagesize())*2 >= size
}
