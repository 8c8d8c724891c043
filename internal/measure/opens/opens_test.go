package opens

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/measure/clock"
	"github.com/thaw-project/thaw/internal/testenv"
)

// overlay mounts one with two files.
func overlay(t *testing.T) string {
	t.Helper()
	base := t.TempDir()
	for _, dir := range []string{"lower/bin", "upper", "work", "root"} {
		if err := os.MkdirAll(filepath.Join(base, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	sh, err := os.ReadFile("/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"lower/bin/true": sh, "lower/data": []byte("x"), "lower/late": nil} {
		if err := os.WriteFile(filepath.Join(base, name), content, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	root := filepath.Join(base, "root")
	options := "lowerdir=" + base + "/lower,upperdir=" + base + "/upper,workdir=" + base + "/work"
	if err := unix.Mount("overlay", root, "overlay", 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, 0); err != nil {
			t.Error(err)
		}
	})
	return root
}

// TestWatch: opens are seen from another mount namespace too, once each, with their
// paths from the overlay's root, and at the time when they were.
func TestWatch(t *testing.T) {
	testenv.NeedRoot(t)
	root := overlay(t)
	w, err := Watch(root)
	if err != nil {
		t.Fatal(err)
	}
	before := clock.Now()
	// In a namespace of its own, where the overlay is at another place.
	cmd := exec.Command("unshare", "-m", "sh", "-c", `mount --bind "$0" /mnt && cat /mnt/data /mnt/data && /mnt/bin/true`, root)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if _, err := os.ReadFile(filepath.Join(root, "bin", "..", "late")); err != nil { // here
		t.Fatal(err)
	}
	after := clock.Now()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	paths, seen := map[string]bool{}, map[string]bool{} // the namespace may be gone, and its place with it
	last := before
	if all := w.Opens(); len(all) > 0 && all[len(all)-1].Path != "/late" {
		t.Errorf("the last one is %s", all[len(all)-1].Path)
	}
	for _, o := range w.Opens() {
		if seen[o.Path] {
			t.Errorf("%s is there twice", o.Path)
		}
		seen[o.Path] = true
		paths[filepath.Base(o.Path)] = o.Exec
		if o.At < last || o.At > after+time.Second {
			t.Errorf("%s was opened at %v, not between %v and %v", o.Path, o.At, last, after)
		}
		last = o.At
	}
	if d := cmp.Diff(map[string]bool{"data": false, "true": true, "late": false}, paths); d != "" {
		t.Error(d)
	}
	if why := w.Incomplete(); why != "" {
		t.Error(why)
	}
}

// TestBatch: a program that opens file after file is not interrupted for each. They are
// seen in their order; and once times are to be exact, at those.
func TestBatch(t *testing.T) {
	testenv.NeedRoot(t)
	root := overlay(t)
	var names []string
	for i := range 3000 {
		name := fmt.Sprintf("f%04d", i)
		if err := os.WriteFile(filepath.Join(root, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
	}
	w, err := Watch(root)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	program := exec.Command("sh", "-c", `while read -r f; do : < "$f"; done`)
	program.Dir, program.Stdin = root, strings.NewReader(strings.Join(names, "\n")+"\n")
	begun := clock.Now()
	if out, err := program.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	took := clock.Now() - begun
	all := w.Opens()
	if most := 20 + 3*int(took/Batch); w.batches > most {
		t.Errorf("%d files were opened in %v, and they were read in %d batches, more than %d", len(names), took, w.batches, most)
	}
	if len(all) != len(names) {
		t.Fatalf("%d opens of %d", len(all), len(names))
	}
	for i, o := range all {
		if o.Path != "/"+names[i] || o.At < begun-Batch || i > 0 && o.At < all[i-1].At {
			t.Fatalf("open %d is of %s at %v", i, o.Path, o.At)
		}
	}
	w.Exact()
	for _, name := range []string{"data", "late"} {
		at := clock.Now()
		if _, err := os.ReadFile(filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
		all = w.Opens()
		if o := all[len(all)-1]; o.Path != "/"+name || o.At < at {
			t.Errorf("%s was opened at %v: %+v", name, at, o)
		}
	}
}

func TestWatchNothing(t *testing.T) {
	testenv.NeedRoot(t)
	if _, err := Watch(filepath.Join(t.TempDir(), "missing")); err == nil {
		t.Error("no error for a directory that is not there")
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte{})
	f.Add(append([]byte{24, 0, 0, 0, unix.FANOTIFY_METADATA_VERSION, 0, 24, 0}, make([]byte, 16)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		n := 0
		if err := parse(b, func(uint64, int32, int32) { n++ }); err == nil && n*24 > len(b) {
			t.Errorf("%d events in %d bytes", n, len(b))
		}
	})
}
