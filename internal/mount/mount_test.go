package mount

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/erofs"
	"github.com/thaw-project/thaw/internal/testenv"
)

// writeImage makes an image with one file on one device, both there.
func writeImage(t *testing.T, dir string, data []byte) (metadata, device string) {
	t.Helper()
	size := int64(len(data))
	b, err := erofs.Write(&erofs.Inode{Mode: unix.S_IFDIR | 0o755, Children: []erofs.Dirent{{Name: "f", Inode: &erofs.Inode{
		Mode: unix.S_IFREG | 0o644, SizeBytes: size, Extents: []erofs.Extent{{Length: size, Device: 1}},
	}}}}, []erofs.Device{{Tag: "a", SizeBytes: size}})
	if err != nil {
		t.Fatal(err)
	}
	metadata, device = filepath.Join(dir, "metadata"), filepath.Join(dir, "device")
	if err := errors.Join(os.WriteFile(metadata, b, 0o600), os.WriteFile(device, data, 0o600)); err != nil {
		t.Fatal(err)
	}
	return metadata, device
}

func mustUnmount(t *testing.T, dir string) {
	t.Helper()
	if detached, err := Unmount(context.Background(), dir); err != nil || detached {
		t.Errorf("unmount %s: detached %v, %v", dir, detached, err)
	}
}

func TestEROFS(t *testing.T) {
	testenv.NeedRoot(t)
	// A path longer than fsconfig(2) takes.
	long := filepath.Join(t.TempDir(), strings.Repeat("d", 200), strings.Repeat("e", 200))
	if err := os.MkdirAll(long, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, base := range map[string]string{"short": t.TempDir(), "long": long} {
		t.Run(name, func(t *testing.T) {
			data := bytes.Repeat([]byte("0123456789abcdef"), 1024)
			metadata, device := writeImage(t, base, data)
			dir := filepath.Join(base, "a b\n") // must be escaped in mountinfo
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := EROFS(metadata, []string{device}, dir); err != nil {
				t.Fatal(err)
			}
			defer mustUnmount(t, dir)
			if got, err := os.ReadFile(filepath.Join(dir, "f")); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			mounted, err := ListUnder(base)
			if err != nil || len(mounted) != 1 || mounted[0].Dir != dir || mounted[0].Type != "erofs" {
				t.Errorf("mounted: %+v, %v", mounted, err)
			}
			checkReadAhead(t, dir)
		})
	}
}

func checkReadAhead(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	name, err := bdiName(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join("/sys/class/bdi", name, "read_ahead_kb")); err != nil || strings.TrimSpace(string(got)) != strconv.Itoa(ReadAheadKiB) {
		t.Errorf("read-ahead of %s: %q, %v", name, got, err)
	}
}

func TestEROFSErrors(t *testing.T) {
	testenv.NeedRoot(t)
	base, dir := t.TempDir(), t.TempDir()
	metadata, device := writeImage(t, base, make([]byte, 4096))
	for _, test := range []struct {
		name     string
		metadata string
		devices  []string
		dir      string
		want     error
		text     string
	}{
		{"no such directory", metadata, []string{device}, filepath.Join(dir, "x"), os.ErrNotExist, "x"},
		{"no such image", filepath.Join(base, "x"), []string{device}, dir, os.ErrNotExist, filepath.Join(base, "x")},
		{"no such device", metadata, []string{filepath.Join(base, "x")}, dir, os.ErrNotExist, metadata},
		{"not an image", device, nil, dir, unix.EINVAL, device},
		{"too few devices", metadata, nil, dir, nil, metadata},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := EROFS(test.metadata, test.devices, test.dir)
			if test.want == nil { // the image is good without; what it has on the device is not
				if err == nil {
					mustUnmount(t, test.dir)
				}
				return
			}
			if !errors.Is(err, test.want) || test.text != "" && !strings.Contains(err.Error(), test.text) {
				t.Errorf("error %v, want %v that names %q", err, test.want, test.text)
			}
		})
	}
	if left, err := ListUnder(dir); err != nil || len(left) > 0 {
		t.Errorf("still mounted: %v, %v", left, err)
	}
}

func TestOverlay(t *testing.T) {
	testenv.NeedRoot(t)
	base := t.TempDir()
	sub := func(name string) string {
		dir := filepath.Join(base, name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	lower := []string{sub("top:1"), sub(`bottom,\2`)}
	for i, dir := range lower {
		for _, name := range []string{"both", filepath.Base(dir)} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte{byte('0' + i)}, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	dir := sub("merged")
	if err := Overlay(OverlaySpec{Lower: lower, Dir: dir}); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 3 {
		t.Errorf("%v, %v", entries, err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "both")); err != nil || string(got) != "0" {
		t.Errorf("file of both: %q, %v", got, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "new"), nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("write without an upper: %v", err)
	}
	mustUnmount(t, dir)

	if err := Overlay(OverlaySpec{Lower: lower, Upper: sub("upper"), Work: filepath.Join(base, "missing"), Dir: dir}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no work directory: %v", err)
	}
	if err := Overlay(OverlaySpec{Lower: lower, Upper: sub("upper"), Work: sub("work"), Dir: dir}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "both"), []byte("new"), 0o644); err != nil {
		t.Error(err)
	}
	if got, err := os.ReadFile(filepath.Join(base, "upper", "both")); err != nil || string(got) != "new" {
		t.Errorf("in the upper: %q, %v", got, err)
	}
	mustUnmount(t, dir)
}

func TestUnmount(t *testing.T) {
	testenv.NeedRoot(t)
	base, dir := t.TempDir(), t.TempDir()
	metadata, device := writeImage(t, base, make([]byte, 4096))
	mustUnmount(t, dir)                           // nothing there
	mustUnmount(t, filepath.Join(dir, "missing")) // nor a directory
	if err := EROFS(metadata, []string{device}, dir); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(dir, "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if detached, err := Unmount(ended, dir); err != nil || !detached {
		t.Errorf("unmount in use: detached %v, %v", detached, err)
	}
	if _, err := f.ReadAt(make([]byte, 1), 0); err != nil {
		t.Errorf("read of a detached mount: %v", err)
	}
	if left, err := ListUnder(dir); err != nil || len(left) > 0 {
		t.Errorf("still mounted: %v, %v", left, err)
	}
}

func TestUnmountEROFS(t *testing.T) {
	testenv.NeedRoot(t)
	base, dir := t.TempDir(), t.TempDir()
	metadata, device := writeImage(t, base, make([]byte, 512))
	tmpfs := func() {
		t.Helper()
		if err := unix.Mount("other", dir, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
	}
	top := func() string {
		t.Helper()
		under, err := ListUnder(dir)
		if err != nil {
			t.Fatal(err)
		}
		if len(under) == 0 {
			return ""
		}
		return under[len(under)-1].Type
	}

	tmpfs() // somebody else's stays
	if _, err := UnmountEROFS(t.Context(), dir); err != nil || top() != "tmpfs" {
		t.Errorf("%v, %q is mounted", err, top())
	}
	mustUnmount(t, dir)

	if err := EROFS(metadata, []string{device}, dir); err != nil {
		t.Fatal(err)
	}
	tmpfs() // over ours
	if _, err := UnmountEROFS(t.Context(), dir); !errors.Is(err, unix.EBUSY) || top() != "tmpfs" {
		t.Errorf("%v, %q is mounted", err, top())
	}
	mustUnmount(t, dir)
	if _, err := UnmountEROFS(t.Context(), dir); err != nil || top() != "" {
		t.Errorf("%v, %q is mounted", err, top())
	}
}
