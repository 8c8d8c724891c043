package mount

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// fsconfigStringBytes is the longest string that fsconfig(2) takes (strndup_user of 256 with its NUL).
const fsconfigStringBytes = 255

// fsContext is a file system being configured, see fsopen(2).
type fsContext struct {
	name  string
	fd    int
	paths []*os.File // open as long as /proc/self/fd names of them are needed
}

func openContext(name string) (*fsContext, error) {
	fd, err := unix.Fsopen(name, unix.FSOPEN_CLOEXEC)
	if err != nil {
		if errors.Is(err, unix.ENODEV) {
			err = fmt.Errorf("%w: the kernel has no %s", ErrUnsupported, name)
		}
		return nil, fmt.Errorf("open %s context: %w", name, err)
	}
	return &fsContext{name: name, fd: fd}, nil
}

func (c *fsContext) close() {
	unix.Close(c.fd)
	for _, f := range c.paths {
		f.Close()
	}
}

func (c *fsContext) set(key, value string) error {
	if err := unix.FsconfigSetString(c.fd, key, value); err != nil {
		return c.explain(fmt.Sprintf("set %s option %s=%s", c.name, key, value), err)
	}
	return nil
}

// setPath is set for a path, which may be longer than the kernel takes.
func (c *fsContext) setPath(key, path string) error {
	if len(path) <= fsconfigStringBytes {
		return c.set(key, path)
	}
	// O_PATH opens nothing of the file, so it raises no event; the kernel opens the file anew by this name.
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	c.paths = append(c.paths, os.NewFile(uintptr(fd), path))
	return c.set(key, "/proc/self/fd/"+strconv.Itoa(fd))
}

func (c *fsContext) flag(key string) error {
	if err := unix.FsconfigSetFlag(c.fd, key); err != nil {
		return c.explain(fmt.Sprintf("set %s option %s", c.name, key), err)
	}
	return nil
}

// mount creates the superblock and returns a detached mount's descriptor.
func (c *fsContext) mount(attributes int) (int, error) {
	if err := unix.FsconfigCreate(c.fd); err != nil {
		return -1, c.explain("create "+c.name+" superblock", err)
	}
	fd, err := unix.Fsmount(c.fd, unix.FSMOUNT_CLOEXEC, attributes)
	if err != nil {
		return -1, c.explain("create "+c.name+" mount", err)
	}
	return fd, nil
}

// explain adds what the kernel wrote into the context's log, one message a read, to an error.
func (c *fsContext) explain(what string, err error) error {
	var messages []string
	var b [1024]byte
	for {
		n, readErr := unix.Read(c.fd, b[:])
		if readErr != nil || n <= 0 {
			break
		}
		messages = append(messages, strings.TrimSpace(string(b[:n])))
	}
	if len(messages) == 0 {
		return fmt.Errorf("%s: %w", what, err)
	}
	return fmt.Errorf("%s: %w (%s)", what, err, strings.Join(messages, "; "))
}

// attach puts the detached mount fd on dir and closes fd.
func attach(fd int, dir string) error {
	defer unix.Close(fd)
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach mount to %s: %w", dir, err)
	}
	return nil
}
