package bench

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestResidue(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "store", "layer")
	if err := os.Mkdir(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if r, err := MeasureResidue(dir, filepath.Join(dir, "none")); err != nil || !r.Cold() || r.Files != 0 {
		t.Errorf("an empty directory has %+v, %v", r, err)
	}
	const size = 1 << 20
	if err := os.WriteFile(name, make([]byte, size), 0o644); err != nil {
		t.Fatal(err)
	}
	r, err := MeasureResidue(dir)
	if err != nil || r.Files != 1 || r.CachedBytes != size || r.Cold() {
		t.Errorf("a file that was just written has %+v, %v", r, err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
	r, err = MeasureResidue(dir)
	if err != nil || r.StoredBytes != size || r.Cold() {
		t.Errorf("a file that is on disk has %+v, %v: it is not cold", r, err)
	}
}

func TestReadFile(t *testing.T) {
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "file"), make([]byte, 3<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	for link, to := range map[string]string{"absolute": "/file", "up": "../../../file"} {
		if err := os.Symlink(to, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"/file", "absolute", "/up"} {
		if took, n, err := ReadFile(root, name); err != nil || n != 3<<20 || took <= 0 {
			t.Errorf("%s: %d bytes in %v, %v", name, n, took, err)
		}
	}
	if _, _, err := ReadFile(root, "/none"); err == nil {
		t.Error("a file that is not there is read")
	}
	if _, _, err := ReadFile(filepath.Join(root, "none"), "/file"); err == nil {
		t.Error("a root that is not there is read")
	}
}
