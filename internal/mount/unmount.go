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

// UnmountEROFS is Unmount for the EROFS mount on dir, and for nothing else: what somebody else has mounted there stays. Where
// it hides the EROFS mount that is an error (EBUSY). dir has no symbolic links.
func UnmountEROFS(ctx context.Context, dir string) (detached bool, err error) {
	under, err := ListUnder(dir)
	if err != nil {
		return false, fmt.Errorf("unmount %s: %w", dir, err)
	}
	var top Info
	found := false
	for _, info := range under {
		if info.Dir == dir {
			top = info
			found = found || info.Type == "erofs"
		}
	}
	if !found {
		return false, nil
	}
	if top.Type != "erofs" {
		return false, fmt.Errorf("unmount %s: %s (%s) is mounted over it: %w", dir, top.Source, top.Type, unix.EBUSY)
	}
	return Unmount(ctx, dir)
}
