package erofs

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	goerofs "github.com/erofs/go-erofs"

	"github.com/thaw-project/thaw/internal/testenv"
)

// TestGoErofs has another reader see the same names, metadata and bytes.
func TestGoErofs(t *testing.T) {
	root, l := everything()
	var devices []io.ReaderAt
	for _, b := range l {
		devices = append(devices, bytes.NewReader(b))
	}
	img, err := goerofs.Open(bytes.NewReader(mustWrite(t, root, l.devices())), goerofs.WithExtraDevices(devices...))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]fact{}
	err = fs.WalkDir(img, ".", func(path string, e fs.DirEntry, err error) error {
		if err != nil || !utf8.ValidString(path) { // names that io/fs cannot say
			return err
		}
		f, err := goErofsFact(img, path, e)
		if path == "." {
			path = ""
		}
		got[path] = f
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	want := modelFacts(root, l)
	for path, f := range want {
		f.Group = "" // it does not tell inode numbers, nor setuid, setgid and sticky bits
		f.Mode &^= 0o7000
		f.Dev = [2]uint32{}
		if f.Mode&ModeType == ModeDir {
			f.Nlink = got[path].Nlink
		}
		if want[path] = f; !utf8.ValidString(path) {
			delete(want, path)
		}
	}
	diffFacts(t, want, got)
}

func goErofsFact(img fs.FS, path string, e fs.DirEntry) (fact, error) {
	info, err := e.Info()
	if err != nil {
		return fact{}, err
	}
	st := info.Sys().(*goerofs.Stat)
	f := fact{Mode: unixMode(info.Mode()), UID: st.UID, GID: st.GID, Nlink: uint32(st.Nlink), Sec: int64(st.Mtime), Nsec: st.MtimeNs, Xattrs: map[string]string{}}
	for name, value := range st.Xattrs {
		f.Xattrs[strings.TrimSuffix(name, ".")] = value // it ends the names of ACLs so
	}
	switch info.Mode().Type() {
	case fs.ModeSymlink:
		f.Link, err = fs.ReadLink(img, path)
	case 0:
		if f.Size = info.Size(); f.Size <= maxSum {
			var b []byte
			b, err = fs.ReadFile(img, path)
			f.Sum = sha256.Sum256(b)
		}
	}
	return f, err
}

func unixMode(m fs.FileMode) uint32 {
	mode := uint32(m.Perm())
	for bit, unix := range map[fs.FileMode]uint32{fs.ModeDir: ModeDir, fs.ModeSymlink: ModeSymlink, fs.ModeNamedPipe: ModeFifo, fs.ModeSocket: ModeSocket} {
		if m&bit != 0 {
			mode |= unix
		}
	}
	switch {
	case m&fs.ModeCharDevice != 0:
		mode |= ModeChar
	case m&fs.ModeDevice != 0:
		mode |= ModeBlock
	case m.IsRegular():
		mode |= ModeRegular
	}
	return mode
}

// TestFsck asks fsck.erofs, if it is new enough for 512-byte blocks.
func TestFsck(t *testing.T) {
	testenv.NeedTool(t, "fsck.erofs")
	root, l := everything()
	tmp := t.TempDir()
	meta := filepath.Join(tmp, "meta")
	if err := os.WriteFile(meta, mustWrite(t, root, l.devices()), 0o600); err != nil {
		t.Fatal(err)
	}
	var args []string
	for i, b := range l {
		path := filepath.Join(tmp, fmt.Sprint(i))
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--device="+path)
	}
	out, err := exec.Command("fsck.erofs", append(args, meta)...).CombinedOutput()
	if bytes.Contains(out, []byte("blksize 512 isn't supported")) {
		t.Skip("needs an fsck.erofs for 512-byte blocks (erofs-utils 1.6)")
	}
	if err != nil {
		t.Errorf("fsck.erofs: %v\n%s", err, out)
	}
}
