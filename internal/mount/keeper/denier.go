package keeper

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/mount/fanotify/group"
)

// fileID is what tells one file from another on a node.
type fileID struct{ dev, ino uint64 }

// denier reads the group and denies everything.
type denier struct {
	group *os.File
	names map[fileID]digest.Digest
	said  map[fileID]bool // a line a layer is enough
	log   *slog.Logger
	done  chan struct{}
}

// startDenier denies what the dead daemon left unanswered, then what comes, until close.
func startDenier(groupFD int, layers map[digest.Digest]int, log *slog.Logger) (*denier, error) {
	d := &denier{names: map[fileID]digest.Digest{}, said: map[fileID]bool{}, log: log, done: make(chan struct{})}
	for blob, fd := range layers {
		if IsFUSE(blob) {
			continue // to stat it might wait for the daemon
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return nil, fmt.Errorf("stat layer %s: %w", blob, err)
		}
		d.names[fileID{st.Dev, st.Ino}] = blob
	}
	dup, err := unix.FcntlInt(uintptr(groupFD), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate group: %w", err)
	}
	if err := group.Sweep(groupFD, nil); err != nil {
		unix.Close(dup)
		return nil, err
	}
	d.group = os.NewFile(uintptr(dup), "fanotify")
	go d.run(groupFD)
	return d, nil
}

// run reads through the Go file, whose deadline ends it, and answers on the keeper's own descriptor.
func (d *denier) run(groupFD int) {
	defer close(d.done)
	b := make([]byte, group.ReadBytes)
	for {
		n, err := d.group.Read(b)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		if err != nil {
			d.log.Error("read fanotify group", "err", err)
			time.Sleep(10 * time.Millisecond) // the kernel has denied the event that it could not deliver
			continue
		}
		err = group.ParseEvents(b[:n], func(e group.Event) { d.deny(groupFD, e) })
		if err != nil {
			d.log.Error("deny event", "err", err)
		}
	}
}

func (d *denier) deny(groupFD int, e group.Event) {
	if e.Overflow {
		d.log.Error("fanotify queue overflowed: reads may have returned zeros")
	}
	if e.FD < 0 {
		return
	}
	defer unix.Close(int(e.FD))
	var st unix.Stat_t
	if err := unix.Fstat(int(e.FD), &st); err == nil {
		if id := (fileID{st.Dev, st.Ino}); !d.said[id] {
			d.said[id] = true
			d.log.Error("denied a read: no daemon", "layer", d.names[id], "off", e.Off, "count", e.Count, "pid", e.PID)
		}
	}
	if err := group.Deny(groupFD, e.FD); err != nil {
		d.log.Error("deny event", "err", err)
	}
}

// close stops reading and returns when no event is in hand.
func (d *denier) close() {
	_ = d.group.SetReadDeadline(time.Unix(1, 0))
	<-d.done
	d.group.Close()
}
