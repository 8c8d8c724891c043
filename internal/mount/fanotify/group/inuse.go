package group

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// InUse says whether anybody but the descriptor fd (and its duplicates, in whatever process) has the file open: a mount
// in any mount namespace, a reader, an event's descriptor. Only when nobody has may a mark on a file with holes go.
// A caller that opens the file itself, or mounts it, excludes that while it asks.
func InUse(fd int) (bool, error) {
	// A write lease is granted only to the single opener of a file. It is given back at once; whoever opens
	// the file in between waits for that.
	_, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_WRLCK)
	if errors.Is(err, unix.EAGAIN) {
		return true, nil
	}
	if err != nil {
		return true, fmt.Errorf("ask who has the file open: %w", err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_UNLCK); err != nil {
		return true, fmt.Errorf("give back file lease: %w", err)
	}
	return false, nil
}
