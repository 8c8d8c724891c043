package layertartest

import (
	"archive/tar"
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Apply unpacks one layer over what the directory holds, as OCI's layer.md says. It is
// the judge in tests of what layers mean, so it shares nothing with package layertar:
// it reads with archive/tar and lets the file system do the rest. It needs root, and
// trusts the layer: never give it a hostile one.
//
// Where the specification leaves something open it does what umoci does, and so: an
// entry replaces what is at its path, only a directory over a directory keeps the
// children; an entry's attributes are all it says and no others; links say nothing
// about attributes; whiteouts hide only what lower layers hold, wherever they stand;
// parents that are symlinks are resolved inside the root. Directories without an entry
// keep what they had; new ones get mode 0755, owner 0:0 and the time 0.
func Apply(dir string, layer io.Reader) error {
	data, err := io.ReadAll(layer)
	if err != nil {
		return fmt.Errorf("read layer: %w", err)
	}
	a := &applier{root: dir, times: map[string]unix.Timespec{}}
	if err := a.rememberTimes(); err != nil {
		return err
	}
	for _, pass := range []func(*tar.Header, io.Reader) error{a.whiteout, a.entry} {
		for r := tar.NewReader(bytes.NewReader(data)); ; {
			h, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				return fmt.Errorf("read layer: %w", err)
			}
			if h.Typeflag == tar.TypeXGlobalHeader || strings.HasPrefix(path.Clean(h.Name), ".wh..wh.") && path.Clean(h.Name) != ".wh..wh..opq" {
				continue
			}
			if err := pass(h, r); err != nil {
				return fmt.Errorf("apply %q: %w", h.Name, err)
			}
		}
	}
	return a.restoreTimes()
}

type applier struct {
	root  string
	times map[string]unix.Timespec // of directories, by path on disk
}

func (a *applier) rememberTimes() error {
	return filepath.WalkDir(a.root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		a.times[p] = st.Mtim
		return nil
	})
}

func (a *applier) restoreTimes() error {
	for p, t := range a.times {
		fi, err := os.Lstat(p)
		if err != nil || !fi.IsDir() {
			continue // gone since
		}
		if err := setTime(p, t); err != nil {
			return err
		}
	}
	return nil
}

func setTime(p string, t unix.Timespec) error {
	return unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{t, t}, unix.AT_SYMLINK_NOFOLLOW)
}

// resolve returns where a name is on disk: all but its last component are resolved,
// inside the root; parents that are missing are made if create is set.
func (a *applier) resolve(name string, create bool) (string, error) {
	todo := strings.Split(path.Clean("/" + name)[1:], "/")
	at := "/" // inside the root
	for hops := 0; len(todo) > 1; {
		part := todo[0]
		todo = todo[1:]
		if part == "" {
			continue
		}
		next := path.Join(at, part)
		disk := filepath.Join(a.root, next)
		fi, err := os.Lstat(disk)
		switch {
		case errors.Is(err, fs.ErrNotExist) && create:
			if err := os.Mkdir(disk, 0o755); err != nil {
				return "", err
			}
			a.times[disk] = unix.Timespec{}
		case err != nil:
			return "", err
		case fi.Mode()&fs.ModeSymlink != 0:
			if hops++; hops > 40 {
				return "", unix.ELOOP
			}
			target, err := os.Readlink(disk)
			if err != nil {
				return "", err
			}
			if path.IsAbs(target) {
				at = "/"
			}
			todo = append(strings.Split(target, "/"), todo...)
			continue
		}
		at = next
	}
	return filepath.Join(a.root, at, todo[0]), nil
}

// whiteout is the first pass: it removes what the layer hides.
func (a *applier) whiteout(h *tar.Header, _ io.Reader) error {
	base := path.Base(h.Name)
	if !strings.HasPrefix(base, ".wh.") {
		return nil
	}
	p, err := a.resolve(h.Name, false)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	dir := filepath.Dir(p)
	if base != ".wh..wh..opq" {
		return os.RemoveAll(filepath.Join(dir, base[len(".wh."):]))
	}
	children, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
		return err
	}
	for _, c := range children {
		if err := os.RemoveAll(filepath.Join(dir, c.Name())); err != nil {
			return err
		}
	}
	return nil
}

// entry is the second pass: it makes what the layer has.
func (a *applier) entry(h *tar.Header, r io.Reader) error {
	if strings.HasPrefix(path.Base(h.Name), ".wh.") {
		return nil
	}
	if path.Clean("/"+h.Name) == "/" {
		return a.attributes(a.root, h)
	}
	p, err := a.resolve(h.Name, true)
	if err != nil {
		return err
	}
	if fi, err := os.Lstat(p); err == nil && !(fi.IsDir() && h.Typeflag == tar.TypeDir) {
		if err := os.RemoveAll(p); err != nil {
			return err
		}
	}
	if err := a.create(p, h, r); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeLink {
		return nil
	}
	return a.attributes(p, h)
}

func (a *applier) create(p string, h *tar.Header, r io.Reader) error {
	dev := int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont:
		return writeFile(p, h.Size, r)
	case tar.TypeDir:
		if err := os.Mkdir(p, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		return nil
	case tar.TypeGNUSparse:
		return writeFile(p, h.Size, r)
	case tar.TypeSymlink:
		return os.Symlink(h.Linkname, p)
	case tar.TypeLink:
		target, err := a.resolve(h.Linkname, false)
		if err != nil {
			return err
		}
		return os.Link(target, p)
	case tar.TypeChar:
		return unix.Mknod(p, unix.S_IFCHR|0o600, dev)
	case tar.TypeBlock:
		return unix.Mknod(p, unix.S_IFBLK|0o600, dev)
	case tar.TypeFifo:
		return unix.Mkfifo(p, 0o600)
	}
	return fmt.Errorf("type %q is not supported", h.Typeflag)
}

// writeFile leaves holes where whole pieces are zero.
func writeFile(p string, size int64, r io.Reader) error {
	f, err := os.OpenFile(p, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	buf, zero := make([]byte, 64<<10), make([]byte, 64<<10)
	for at := int64(0); ; {
		n, err := io.ReadFull(r, buf)
		if n > 0 && !bytes.Equal(buf[:n], zero[:n]) {
			if _, err := f.WriteAt(buf[:n], at); err != nil {
				return err
			}
		}
		at += int64(n)
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			if at != size {
				return fmt.Errorf("%d bytes of %d: %w", at, size, io.ErrUnexpectedEOF)
			}
			break
		}
		if err != nil {
			return err
		}
	}
	if err := f.Truncate(size); err != nil {
		return err
	}
	return f.Close()
}

// attributes makes owner, mode, xattrs and time those of the header, in the order
// in which none undoes another.
func (a *applier) attributes(p string, h *tar.Header) error {
	if err := os.Lchown(p, h.Uid, h.Gid); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeSymlink {
		if err := unix.Chmod(p, uint32(h.Mode&0o7777)); err != nil {
			return err
		}
	}
	if err := setXattrs(p, h); err != nil {
		return err
	}
	t, err := unix.TimeToTimespec(h.ModTime)
	if err != nil {
		return err
	}
	if h.Typeflag == tar.TypeDir {
		a.times[p] = t
		return nil
	}
	return setTime(p, t)
}

func setXattrs(p string, h *tar.Header) error {
	names := make([]byte, 64<<10)
	n, err := unix.Llistxattr(p, names)
	if err != nil {
		return err
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names[:n]), "\x00"), "\x00") {
		if name != "" && name != "security.selinux" {
			if err := unix.Lremovexattr(p, name); err != nil {
				return fmt.Errorf("remove %s: %w", name, err)
			}
		}
	}
	want := map[string]string{}
	for key, value := range h.PAXRecords {
		if name, ok := strings.CutPrefix(key, "LIBARCHIVE.xattr."); ok {
			name, err := url.PathUnescape(name)
			if err != nil {
				return err
			}
			v, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(value, "="))
			if err != nil {
				return err
			}
			want[name] = string(v)
		}
	}
	for key, value := range h.PAXRecords {
		if name, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok {
			want[name] = value
		}
	}
	for name, value := range want {
		err := unix.Lsetxattr(p, name, []byte(value), 0)
		special := h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeDir
		if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EPERM) && special && strings.HasPrefix(name, "user.") {
			continue // as unpackers do
		}
		if err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return nil
}
