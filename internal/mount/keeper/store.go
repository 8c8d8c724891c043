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

// storeAll makes the store hold exactly what this client does.
func (c *Client) storeAll() {
	if c.opts.Store == nil {
		return
	}
	want := map[string]int{namePending: c.pending.FD()}
	if c.group >= 0 {
		want[nameGroup] = c.group
	}
	for blob, fd := range c.layers {
		want[storeName(blob)] = fd
	}
	for name := range c.opts.Stored {
		if _, ok := want[name]; !ok {
			c.opts.Store.Remove(name)
		}
	}
	for name, fd := range want {
		c.store(name, fd)
	}
}
