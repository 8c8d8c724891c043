package mount

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// unmountPatience is how long Unmount waits for a mount in use to become unused.
const unmountPatience = 200 * time.Millisecond

// Unmount takes away what is mounted on dir. Nothing mounted there, or no such directory, is not an error. A mount in use is tried again
// for a fifth of a second (a process that just exited may still hold it), or until the context ends, and is then detached: it has left the
// tree, but its open files live on. detached says so.
func Unmount(ctx context.Context, dir string) (detached bool, err error) {
	deadline := time.Now().Add(unmountPatience)
	for wait := time.Millisecond; ; wait *= 2 {
		err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
		switch {
		case err == nil, errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
			return false, nil
		case !errors.Is(err, unix.EBUSY):
			return false, fmt.Errorf("unmount %s: %w", dir, err)
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
			if time.Now().Before(deadline) {
				continue
			}
		case <-ctx.Done():
			timer.Stop()
		}
		if err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			return false, fmt.Errorf("detach %s: %w", dir, err)
		}
		return true, nil
	}
}
