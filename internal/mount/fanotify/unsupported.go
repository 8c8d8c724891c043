package fanotify

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/mount"
)

// explain turns the errors of a machine that cannot do this into ones that say what is missing.
func explain(err error) error {
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("%w: the file system has no pre-content events (ext4, xfs and btrfs have): %w", mount.ErrUnsupported, err)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS):
		return fmt.Errorf("%w: the kernel has no pre-content events (Linux 6.14 with CONFIG_FANOTIFY_ACCESS_PERMISSIONS is needed): %w", mount.ErrUnsupported, err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: pre-content events need CAP_SYS_ADMIN in the initial user namespace: %w", mount.ErrUnsupported, err)
	}
	return err
}
