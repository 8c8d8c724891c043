package erofs

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/testenv"
)

// mountImage mounts an image with its layers from plain files.
func mountImage(t testing.TB, img []byte, l layers) string {
	t.Helper()
	tmp := t.TempDir()
	write := func(name string, b []byte) string {
		path := filepath.Join(tmp, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	var devices []string
	for i, b := range l {
		devices = append(devices, write(fmt.Sprint("layer", i), b))
	}
	return mountFiles(t, write("meta", img), devices)
}

func mountFiles(t testing.TB, meta string, devices []string) string {
	t.Helper()
	mnt := t.TempDir()
	attach(t, meta, devices, mnt)
	t.Cleanup(func() {
		if err := unix.Unmount(mnt, 0); err != nil {
			t.Errorf("unmount: %v", err)
			unix.Unmount(mnt, unix.MNT_DETACH)
		}
	})
	return mnt
}

// attach mounts at mnt; the caller unmounts.
func attach(t testing.TB, meta string, devices []string, mnt string) {
	t.Helper()
	fd, err := unix.Fsopen("erofs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		t.Skipf("no EROFS in this kernel: %v", err)
	}
	defer unix.Close(fd)
	must := func(what string, err error) {
		t.Helper()
		if err == nil {
			return
		}
		log := make([]byte, 4096) // the kernel's own words
		n, _ := unix.Read(fd, log)
		t.Fatalf("%s: %v %s", what, err, log[:max(n, 0)])
	}
	must("set source", unix.FsconfigSetString(fd, "source", meta))
	for _, d := range devices {
		must("set device", unix.FsconfigSetString(fd, "device", d))
	}
	must("create", unix.FsconfigCreate(fd))
	m, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY)
	must("mount", err)
	defer unix.Close(m)
	must("move mount", unix.MoveMount(m, "", unix.AT_FDCWD, mnt, unix.MOVE_MOUNT_F_EMPTY_PATH))
}

func TestKernelMount(t *testing.T) {
	testenv.NeedRoot(t)
	root, l := everything()
	mnt := mountImage(t, mustWrite(t, root, l.devices()), l)
	diffFacts(t, modelFacts(root, l), kernelFacts(t, mnt))
}

func TestKernelMountRandom(t *testing.T) {
	testenv.NeedRoot(t)
	for seed := range uint64(5) {
		root, l := randomTree(newRand(seed), 500)
		mnt := mountImage(t, mustWrite(t, root, l.devices()), l)
		diffFacts(t, modelFacts(root, l), kernelFacts(t, mnt))
	}
}

func TestKernelMountWithoutDevices(t *testing.T) {
	testenv.NeedRoot(t)
	root := dir(Dirent{"empty", &Inode{Mode: ModeRegular}}, Dirent{"hole", &Inode{Mode: ModeRegular, SizeBytes: 4097}})
	mnt := mountImage(t, mustWrite(t, root, nil), nil)
	diffFacts(t, modelFacts(root, nil), kernelFacts(t, mnt))
}

func TestKernelManyDevices(t *testing.T) {
	testenv.NeedRoot(t)
	l := make(layers, 127) // what overlayfs and registries call the most
	root := dir()
	for i := range l {
		l.file(i, "first")
		root.Children = append(root.Children, Dirent{fmt.Sprint(i), l.file(i, fmt.Sprintf("of layer %d", i))})
	}
	mnt := mountImage(t, mustWrite(t, root, l.devices()), l)
	diffFacts(t, modelFacts(root, l), kernelFacts(t, mnt))
}

func TestKernelBigDirectory(t *testing.T) {
	testenv.NeedRoot(t)
	root := dir()
	hard := &Inode{Mode: ModeRegular} // has more links than a compact inode can say
	for i := range 100_000 {
		in := hard
		if i >= 70_000 {
			in = &Inode{Mode: ModeFifo}
		}
		root.Children = append(root.Children, Dirent{fmt.Sprintf("%s-%d", strings.Repeat("n", i%40), i), in})
	}
	mnt := mountImage(t, mustWrite(t, root, nil), nil)
	entries, err := os.ReadDir(mnt)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != len(root.Children) {
		t.Errorf("%d entries, want %d", len(entries), len(root.Children))
	}
	for _, kid := range root.Children {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(mnt, kid.Name), &st); err != nil {
			t.Fatal(err)
		}
		if want := map[*Inode]uint64{hard: 70_000}[kid.Inode]; want != 0 && uint64(st.Nlink) != want {
			t.Fatalf("%d links, want %d", st.Nlink, want)
		}
	}
	if _, err := os.Lstat(filepath.Join(mnt, "absent")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an absent name: %v", err)
	}
}

// TestKernelBigFiles reads at the borders of extents in files of many gigabytes.
func TestKernelBigFiles(t *testing.T) {
	testenv.NeedRoot(t)
	tmp := t.TempDir()
	device := filepath.Join(tmp, "layer")
	f, err := os.Create(device)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size = 9<<30 + 777
	mark := bytes.Repeat([]byte("mark"), 256)
	for _, off := range []int64{0, 1 << 30, 4 << 30, 5 << 30, size - 1024} {
		if _, err := f.WriteAt(mark, 512+off); err != nil {
			t.Fatal(err)
		}
	}
	whole := &Inode{Mode: ModeRegular, SizeBytes: size, Extents: []Extent{{0, size, 1, 512}}}
	sparse := &Inode{Mode: ModeRegular, SizeBytes: 2 << 40, Extents: []Extent{{1 << 40, 1 << 30, 1, 512}, {1<<40 + 1<<39, 1 << 30, 1, 512 + 4<<30}}}
	deviceBytes := roundUp(int64(512+size), blockSize)
	if err := f.Truncate(deviceBytes); err != nil {
		t.Fatal(err)
	}
	meta := filepath.Join(tmp, "meta")
	img := mustWrite(t, dir(Dirent{"whole", whole}, Dirent{"sparse", sparse}), []Device{{"big", deviceBytes}})
	if err := os.WriteFile(meta, img, 0o600); err != nil {
		t.Fatal(err)
	}
	mnt := mountFiles(t, meta, []string{device})
	cases := []struct {
		name string
		off  int64
		want string
	}{
		{"whole", 0, "mark"}, {"whole", 1024, "\x00"}, {"whole", 4 << 30, "mark"}, {"whole", 4<<30 - 512, "\x00"}, {"whole", size - 1024, "mark"},
		{"sparse", 1 << 40, "mark"}, {"sparse", 1<<40 - 512, "\x00"}, {"sparse", 1<<40 + 1<<30, "\x00"}, {"sparse", 1<<40 + 1<<39, "mark"},
		{"sparse", 1<<40 + 1<<39 + 1<<30 - 512, "\x00"}, {"sparse", 2<<40 - 512, "\x00"},
	}
	for _, c := range cases {
		f, err := os.Open(filepath.Join(mnt, c.name))
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 512)
		_, err = f.ReadAt(got, c.off)
		f.Close()
		if want := strings.Repeat(c.want, 512/len(c.want)); err != nil || string(got) != want {
			t.Errorf("%s at %d: %.8q, %v, want %.8q", c.name, c.off, got, err, want)
		}
	}
}

// The kernel reads whole blocks, so that in the last page of a mapping there may
// be up to 511 bytes of the tar behind the file. Behind those there are zeros.
func TestKernelMmapBehindEnd(t *testing.T) {
	testenv.NeedRoot(t)
	l := make(layers, 1)
	root := dir(Dirent{"f", l.file(0, strings.Repeat("d", 700))}, Dirent{"g", l.file(0, strings.Repeat("g", 5000))})
	mnt := mountImage(t, mustWrite(t, root, l.devices()), l)
	f, err := os.Open(filepath.Join(mnt, "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(b)
	t.Logf("bytes 700 to 1023: %d of the padding, %d zeros", bytes.Count(b[700:1024], []byte{padByte}), bytes.Count(b[700:1024], []byte{0}))
	if string(b[:700]) != strings.Repeat("d", 700) || bytes.Count(b[1024:], []byte{0}) != 4096-1024 {
		t.Errorf("mapping holds %q", b)
	}
	if rest, err := io.ReadAll(io.NewSectionReader(f, 690, 4000)); err != nil || string(rest) != "dddddddddd" {
		t.Errorf("read over the end: %q, %v", rest, err)
	}
}

func kernelFacts(t testing.TB, mnt string) map[string]fact {
	t.Helper()
	facts := map[string]fact{}
	first := map[uint64]string{}
	types := map[uint32]fs.FileMode{ModeFifo: fs.ModeNamedPipe, ModeChar: fs.ModeDevice | fs.ModeCharDevice, ModeDir: fs.ModeDir,
		ModeBlock: fs.ModeDevice, ModeRegular: 0, ModeSymlink: fs.ModeSymlink, ModeSocket: fs.ModeSocket}
	err := filepath.WalkDir(mnt, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return fmt.Errorf("lstat %q: %w", path, err)
		}
		name := strings.TrimPrefix(strings.TrimPrefix(path, mnt), "/")
		if _, ok := first[st.Ino]; !ok {
			first[st.Ino] = name
		}
		f := fact{Mode: st.Mode, UID: st.Uid, GID: st.Gid, Nlink: uint32(st.Nlink), Sec: st.Mtim.Sec, Nsec: uint32(st.Mtim.Nsec),
			Dev: [2]uint32{unix.Major(st.Rdev), unix.Minor(st.Rdev)}, Group: first[st.Ino]}
		if e.Type() != types[st.Mode&ModeType] {
			t.Errorf("%q: readdir says %v, stat says %o", name, e.Type(), st.Mode)
		}
		f.Xattrs = kernelXattrs(t, path)
		switch st.Mode & ModeType {
		case ModeSymlink:
			f.Link, err = os.Readlink(path)
			if len(f.Link) != int(st.Size) {
				t.Errorf("%q: size %d of a link of %d", name, st.Size, len(f.Link))
			}
		case ModeRegular:
			f.Size = st.Size
			f.Sum, err = sumFile(path, st.Size)
		}
		facts[name] = f
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return facts
}

func sumFile(path string, size int64) (sum [32]byte, err error) {
	if size > maxSum {
		return sum, nil
	}
	b, err := os.ReadFile(path)
	return sha256.Sum256(b), err
}

func kernelXattrs(t testing.TB, path string) map[string]string {
	t.Helper()
	m := map[string]string{}
	buf := make([]byte, 1<<16)
	n, err := unix.Llistxattr(path, buf)
	if err != nil {
		t.Fatalf("list xattrs of %q: %v", path, err)
	}
	value := make([]byte, 1<<16)
	for name := range strings.SplitSeq(string(buf[:n]), "\x00") {
		if name == "" {
			continue
		}
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			t.Errorf("get xattr %q of %q: %v", name, path, err)
		}
		m[name] = string(value[:max(n, 0)])
	}
	return m
}
