package mount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ReadAheadKiB is the read-ahead of an EROFS mount. It is the kernel's default: what is mapped is read around each fault, and more of that
// is more that a start is recorded to need. With 1024 a start-up bundle of node has 23.6 MB in place of 17.7. A reader in order has read-ahead of
// the daemon's own where bytes are missing.
const ReadAheadKiB = 128

// EROFS mounts the metadata image read-only on dir, with one device a layer file, in the order of the image's device
// table. The files are not copied, and no loop device is made: the kernel reads them as files.
// Layer files that are to be watched are marked before this call. The mount itself has nosuid and nodev: whoever may
// look into the directory is not to run an image's programs as root. An overlay over it has flags of its own.
func EROFS(metadata string, devices []string, dir string) error {
	c, err := openContext("erofs")
	if err != nil {
		return err
	}
	defer c.close()
	if err := c.setPath("source", metadata); err != nil {
		return err
	}
	for _, device := range devices {
		if err := c.setPath("device", device); err != nil {
			return err
		}
	}
	if err := c.flag("ro"); err != nil {
		return err
	}
	fd, err := c.mount(unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOATIME | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV)
	if errors.Is(err, unix.ENOTBLK) {
		err = fmt.Errorf("%w: the kernel mounts EROFS from block devices only (Linux 6.12 with CONFIG_EROFS_FS_BACKED_BY_FILE is needed): %w", ErrUnsupported, err)
	}
	if err != nil {
		return fmt.Errorf("mount %s on %s: %w", metadata, dir, err)
	}
	if err := setReadAhead(fd, ReadAheadKiB); err != nil {
		unix.Close(fd)
		return fmt.Errorf("mount %s on %s: %w", metadata, dir, err)
	}
	if err := attach(fd, dir); err != nil {
		return fmt.Errorf("mount %s: %w", metadata, err)
	}
	return nil
}

// setReadAhead sets the read-ahead of the file system behind a mount descriptor.
func setReadAhead(mountFD int, kib int) error {
	dir, err := unix.Openat(mountFD, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open root of mount: %w", err)
	}
	defer unix.Close(dir)
	name, err := bdiName(dir)
	if err != nil {
		return err
	}
	path := filepath.Join("/sys/class/bdi", name, "read_ahead_kb")
	err = os.WriteFile(path, []byte(strconv.Itoa(kib)), 0)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) || errors.Is(err, unix.EROFS) {
		return nil // sysfs is not there or not ours (a container): slower, but as right
	}
	if err != nil {
		return fmt.Errorf("set read-ahead: %w", err)
	}
	return nil
}

// bdiName returns the name under /sys/class/bdi of the file system that the directory is on. File-backed
// mounts have an anonymous device number, and their bdi the name of the superblock in sysfs; block-backed ones
// (and kernels before 6.9, which cannot say) are named by their number.
func bdiName(fd int) (string, error) {
	const fsIocGetFSSysfsPath = 0x80811501 // _IOR(0x15, 1, struct fs_sysfs_path): len u8, name [128]u8
	var path [129]byte
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), fsIocGetFSSysfsPath, uintptr(unsafe.Pointer(&path)))
	if errno == 0 && path[0] > 0 && path[0] < 128 {
		_, name, ok := strings.Cut(string(path[1:1+path[0]]), "/")
		if ok && filepath.IsLocal(name) {
			if _, err := os.Stat(filepath.Join("/sys/class/bdi", name)); err == nil {
				return name, nil
			}
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", fmt.Errorf("stat root of mount: %w", err)
	}
	return fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)), nil
}
