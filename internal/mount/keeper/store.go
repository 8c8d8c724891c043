package keeper

import (
	"os"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/mount/fanotify/group"
)

// Names in a Store. A layer's is its digest with a dash for the colon, which service managers do not allow in names.
const (
	nameGroup   = "group"
	namePending = "pending"
)

func storeName(blob digest.Digest) string { return strings.Replace(blob.String(), ":", "-", 1) }

// takeStored is what a Store gave back; it owns the files.
func takeStored(files map[string]*os.File) held {
	got := held{group: -1, layers: map[digest.Digest]int{}}
	for name, f := range files {
		fd, err := duplicateHigh(f)
		f.Close()
		if err != nil {
			continue // as if it had not been kept
		}
		switch name {
		case nameGroup:
			got.group = fd
		case namePending:
			got.pending, _ = group.OpenPending(fd)
		default:
			got.layers[digest.Digest(strings.Replace(name, "-", ":", 1))] = fd
		}
	}
	return got
}

// duplicateHigh keeps low numbers free: those of events that nobody answered are to be reserved.
func duplicateHigh(f *os.File) (int, error) {
	low, err := duplicateFD(f)
	if err != nil {
		return -1, err
	}
	high, err := unix.FcntlInt(uintptr(low), unix.F_DUPFD_CLOEXEC, group.MaxFiles/2)
	if err != nil {
		return low, nil // the limit of open files is lower
	}
	unix.Close(low)
	return high, nil
}

func (c *Client) store(name string, fd int) {
	if c.opts.Store != nil {
		c.opts.Store.Remove(name)
		c.opts.Store.Put(name, fd)
	}
}

// storeAll makes the store hold exactly what this client does. It has what is kept already, which is left alone: between Remove and Put it would
// have nothing.
func (c *Client) storeAll(kept map[string]int) {
	if c.opts.Store == nil {
		return
	}
	want := held{group: c.group, pending: c.pending, layers: c.layers}.names()
	for name := range c.opts.Stored {
		if _, ok := want[name]; !ok {
			c.opts.Store.Remove(name)
		}
	}
	for name, fd := range want {
		if _, ok := kept[name]; !ok {
			c.store(name, fd)
		}
	}
}

// sameOpenFile says whether two descriptors are of one open file, which their inodes do not tell: all event groups have the same. Where the
// kernel does not say (kcmp(2)) they are not.
func sameOpenFile(a, b int) bool {
	const kcmpFile = 0 // KCMP_FILE
	pid := uintptr(os.Getpid())
	order, _, errno := unix.Syscall6(unix.SYS_KCMP, pid, pid, kcmpFile, uintptr(a), uintptr(b), 0)
	return errno == 0 && order == 0
}
