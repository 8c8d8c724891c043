package bench

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// backedBytes is more than a start writes and reads.
	backedBytes = 4 << 30
	// backedAhead is how much more memory is free than there was: what is free for
	// longer is given back, so it is not all freed at once.
	backedAhead = 512 << 20
	backedStep  = 32 << 20
	backedPoll  = 5 * time.Millisecond
)

// Backed is memory for a start. See [BackMemory].
type Backed struct {
	all   []byte // the mapping
	held  []byte // its end, not freed yet
	free  uint64 // bytes that were free when all was held
	end   chan struct{}
	ended chan error
}

// BackMemory touches up to 4 GiB of free memory, a quarter of it at most, and
// frees it again bit by bit, as fast as memory is used, until it is closed. A
// virtual machine gives free memory back to its host, and the first touch of such
// a page then waits for the host: up to ten times what the start's own writes
// cost, in some runs and not in others. Pages given back are not files: nothing
// gets warm.
func BackMemory() (*Backed, error) {
	free, err := freeMemory()
	if err != nil {
		return nil, err
	}
	b := &Backed{end: make(chan struct{}), ended: make(chan error, 1)}
	if n := int(min(backedBytes, free/4)) &^ (backedStep - 1); n > 0 {
		b.held, err = unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
		if err != nil {
			return nil, fmt.Errorf("touch free memory: %w", err)
		}
		b.all = b.held
	}
	if b.free, err = freeMemory(); err == nil {
		err = b.keepAhead()
	}
	if err != nil {
		return nil, errors.Join(err, b.unmap())
	}
	go func() { b.ended <- b.follow() }()
	return b, nil
}

// Close frees what is left.
func (b *Backed) Close() error {
	close(b.end)
	return errors.Join(<-b.ended, b.unmap())
}

func (b *Backed) unmap() error {
	if b.all == nil {
		return nil
	}
	if err := unix.Munmap(b.all); err != nil {
		return fmt.Errorf("free touched memory: %w", err)
	}
	return nil
}

func (b *Backed) follow() error {
	tick := time.NewTicker(backedPoll)
	defer tick.Stop()
	for {
		select {
		case <-b.end:
			return nil
		case <-tick.C:
			if err := b.keepAhead(); err != nil {
				return err
			}
		}
	}
}

// keepAhead frees so much that more is free than when all was held.
func (b *Backed) keepAhead() error {
	for len(b.held) > 0 {
		free, err := freeMemory()
		if err != nil || free >= b.free+backedAhead {
			return err
		}
		n := min(backedStep, len(b.held))
		if err := unix.Madvise(b.held[:n], unix.MADV_DONTNEED); err != nil {
			return fmt.Errorf("free touched memory: %w", err)
		}
		b.held = b.held[n:]
	}
	return nil
}

func freeMemory() (uint64, error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0, os.NewSyscallError("sysinfo", err)
	}
	return info.Freeram * uint64(info.Unit), nil
}
