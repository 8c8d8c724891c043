package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/testenv"
)

// fact is all that a tree says of one name.
type fact struct {
	Mode, UID, GID     uint32
	Sec                int64
	Nsec               int64
	Size               int64
	Links              uint64 // not of directories: file systems count them differently
	DevMajor, DevMinor uint32
	Target             string
	Xattrs             map[string]string
	Group              string // first name of the same file
	Sum                string // of a regular file's bytes
}

// tree is a directory's facts by path. Errors are those of reading bytes.
type tree struct {
	facts  map[string]fact
	errors map[string]error
}

// maxSummed keeps the holes of huge files from being read; of these the parts
// that hold data are summed.
const maxSummed = 64 << 20

// readTree reads every file of a directory. What cannot be read is in errors.
func readTree(dir string) (tree, error) {
	t, first := tree{map[string]fact{}, map[string]error{}}, map[[2]uint64]string{}
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(strings.TrimPrefix(path, dir), "/")
		f, id, err := readFact(path)
		if err != nil {
			return err
		}
		if _, ok := first[id]; !ok {
			first[id] = name
		}
		f.Group = first[id]
		if f.Mode&unix.S_IFMT == unix.S_IFREG {
			sum, err := sumFile(path)
			if err != nil {
				t.errors[name] = err
			}
			f.Sum = sum
		}
		t.facts[name] = f
		return nil
	})
	return t, err
}

// readFact also returns what tells the file from others: an overlay has several devices.
func readFact(path string) (fact, [2]uint64, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return fact{}, [2]uint64{}, &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	f := fact{Mode: st.Mode, UID: st.Uid, GID: st.Gid, Sec: st.Mtim.Sec, Nsec: st.Mtim.Nsec, Links: uint64(st.Nlink)}
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		f.Size = st.Size
	case unix.S_IFDIR:
		f.Links = 0
	case unix.S_IFLNK:
		f.Target, err = os.Readlink(path)
	case unix.S_IFCHR, unix.S_IFBLK:
		f.DevMajor, f.DevMinor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
	}
	if err != nil {
		return fact{}, [2]uint64{}, err
	}
	f.Xattrs, err = readXattrs(path)
	return f, [2]uint64{st.Dev, st.Ino}, err
}

func readXattrs(path string) (map[string]string, error) {
	names, value := make([]byte, 1<<16), make([]byte, 1<<16)
	n, err := unix.Llistxattr(path, names)
	if err != nil {
		return nil, &fs.PathError{Op: "llistxattr", Path: path, Err: err}
	}
	xattrs := map[string]string{}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return nil, &fs.PathError{Op: "lgetxattr " + name, Path: path, Err: err}
		}
		xattrs[name] = string(value[:n])
	}
	return xattrs, nil
}

func sumFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	h := sha256.New()
	if info.Size() > maxSummed {
		err = copyParts(h, f)
	} else {
		_, err = io.Copy(h, f)
	}
	return hex.EncodeToString(h.Sum(nil)), err
}

// copyParts copies the parts of a sparse file that are not zero, with their
// places, in blocks of 4 KiB.
func copyParts(w io.Writer, f *os.File) error {
	at, zero := int64(0), make([]byte, 4096)
	for {
		data, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil
		}
		if err != nil {
			return err
		}
		hole, err := unix.Seek(int(f.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		block := make([]byte, 4096)
		for at = data &^ 4095; at < hole; at += 4096 {
			n, err := f.ReadAt(block, at)
			if err != nil && err != io.EOF {
				return err
			}
			if string(block[:n]) != string(zero[:n]) {
				fmt.Fprintf(w, "%d:%s", at, block[:n])
			}
		}
	}
}

// sameTree compares a mount with what it should be; every byte is read.
func (n *node) sameTree(want tree, dir string) {
	n.Helper()
	n.within(2*patience, func() error {
		got, err := readTree(dir)
		if err != nil {
			return err
		}
		for name, err := range got.errors {
			n.Errorf("read %s: %v", name, err)
		}
		return want.diff(got)
	})
}

func (t tree) diff(got tree) error {
	if len(t.facts) == 0 {
		return errors.New("an empty tree proves nothing")
	}
	var wrong []string
	for name, w := range t.facts {
		if g, ok := got.facts[name]; !ok {
			wrong = append(wrong, fmt.Sprintf("%q is missing", name))
		} else if d := cmp.Diff(w, g); d != "" {
			wrong = append(wrong, fmt.Sprintf("%q (- unpacked, + mounted):\n%s", name, d))
		}
	}
	for name := range got.facts {
		if _, ok := t.facts[name]; !ok {
			wrong = append(wrong, fmt.Sprintf("%q is too many", name))
		}
	}
	if len(wrong) == 0 {
		return nil
	}
	slices.Sort(wrong)
	return fmt.Errorf("%d names differ:\n%s", len(wrong), strings.Join(wrong[:min(len(wrong), 10)], "\n"))
}

// unpacked are the corpus images as umoci unpacks them, made once for all tests.
var unpacked struct {
	sync.Mutex
	images map[string]tree
}

// corpus returns the layout of the corpus, and what the image holds. Its root has no
// entry in a layer, so its time means nothing.
func corpus(t testing.TB, image string) (layout string, want tree) {
	t.Helper()
	testenv.NeedRoot(t)
	testenv.NeedTool(t, "umoci")
	layout = filepath.Join(testenv.Corpus(t), "oci")
	unpacked.Lock()
	defer unpacked.Unlock()
	if want, ok := unpacked.images[image]; ok {
		return layout, want
	}
	if unpacked.images == nil {
		unpacked.images = map[string]tree{}
	}
	dir := filepath.Join(shared, image)
	if out, err := exec.Command("umoci", "raw", "unpack", "--image", layout+":"+image, dir).CombinedOutput(); err != nil {
		t.Fatalf("umoci: %v: %s", err, out)
	}
	defer os.RemoveAll(dir)
	want, err := readTree(dir)
	if err != nil {
		t.Fatal(err)
	}
	unpacked.images[image] = want
	return layout, want
}
