package mount

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// FUSE makes a read-only FUSE file system that device, an open /dev/fuse, is to answer for, and returns its root
// directory. It is attached nowhere: files are reached through the descriptor, and the file system is gone when that is closed and the
// last file on it. The first request waits in device when it returns.
func FUSE(device int, maxReadBytes int) (*os.File, error) {
	c, err := openContext("fuse")
	if err != nil {
		return nil, err
	}
	defer c.close()
	for _, option := range [][2]string{
		{"source", "thaw"}, {"subtype", "thaw"}, {"fd", strconv.Itoa(device)}, {"rootmode", "40500"}, {"user_id", "0"}, {"group_id", "0"},
		{"max_read", strconv.Itoa(maxReadBytes)},
	} {
		if err := c.set(option[0], option[1]); err != nil {
			return nil, fmt.Errorf("mount FUSE file system: %w", err)
		}
	}
	if err := c.flag("ro"); err != nil {
		return nil, fmt.Errorf("mount FUSE file system: %w", err)
	}
	fd, err := c.mount(unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, fmt.Errorf("mount FUSE file system: %w", err)
	}
	return os.NewFile(uintptr(fd), "fuse"), nil
}
