package container

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"strings"

	"github.com/moby/sys/user"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// maxAccountsBytes is the most that is read of a container's passwd and group.
const maxAccountsBytes = 16 << 20

// openIn opens a regular file below root as the container would find it: links,
// absolute ones too, are followed but never out of root. The files are the
// image's, which is not trusted.
func openIn(root, path string) (io.ReadCloser, error) {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: root, Err: err}
	}
	defer unix.Close(dir)
	fd, err := unix.Openat2(dir, path, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: path, Err: errors.New("not a regular file")}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// resolveUser finds a user of the container's own passwd and group files, and
// the home directory. Numbers need no entry there.
func resolveUser(root, name string) (specs.User, string, error) {
	var files [2]io.Reader
	for i, path := range []string{"etc/passwd", "etc/group"} {
		f, err := openIn(root, path)
		switch {
		case errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR):
			files[i] = strings.NewReader("")
		case err != nil:
			return specs.User{}, "", fmt.Errorf("resolve user %q: %w", name, err)
		default:
			defer f.Close()
			files[i] = io.LimitReader(f, maxAccountsBytes)
		}
	}
	found, err := user.GetExecUser(name, &user.ExecUser{Home: "/"}, files[0], files[1])
	if err != nil {
		return specs.User{}, "", fmt.Errorf("resolve user %q: %w", name, err)
	}
	u := specs.User{}
	for _, id := range []struct {
		from int
		to   *uint32
	}{{found.Uid, &u.UID}, {found.Gid, &u.GID}} {
		if id.from < 0 || id.from > math.MaxUint32 {
			return specs.User{}, "", fmt.Errorf("resolve user %q: id %d is out of range", name, id.from)
		}
		*id.to = uint32(id.from)
	}
	for _, gid := range found.Sgids {
		if gid >= 0 && gid <= math.MaxUint32 {
			u.AdditionalGids = append(u.AdditionalGids, uint32(gid))
		}
	}
	return u, found.Home, nil
}
