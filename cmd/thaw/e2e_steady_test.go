package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/bench"
	"github.com/thaw-project/thaw/internal/testenv"
)

// steadyFiles is how many files are read, at most.
const steadyFiles = 10_000

// BenchmarkSteady compares a container's root whose image is complete with the
// same tree on a plain overlay on the file system below TMPDIR: how much longer
// the same work takes (ratio; the goal is at most 1.03). Both sides do it in
// turn in each iteration; cold has the page cache dropped before.
func BenchmarkSteady(b *testing.B) {
	testenv.NeedRuntime(b)
	for _, image := range []string{"nginx", "node", "python-ml"} {
		b.Run(image, func(b *testing.B) {
			if !hasImage(b, image) {
				b.Skip("the corpus does not have it")
			}
			layout, _ := corpus(b, image)
			n := newNode(b)
			thaw := n.completeRoot(newLab(b, layout, "none").Addr() + "/" + image)
			plain := n.plainRoot(thaw)
			files, err := filesOf(plain)
			if err != nil {
				b.Fatal(err)
			}
			type work struct {
				name string
				do   func(root string) error
			}
			works := []work{
				{"read", func(root string) error { return readAll(root, files) }},
				{"find", findAll},
				{"mmap", func(root string) error { return mmapAll(root, files) }},
			}
			if image == "python-ml" {
				works = append(works, work{"import", importPython})
			}
			for _, w := range works {
				for _, cache := range []string{"cold", "warm"} {
					b.Run(w.name+"/"+cache, func(b *testing.B) { compare(b, w.do, thaw, plain, cache == "cold") })
				}
			}
		})
	}
}

func hasImage(t testing.TB, name string) bool {
	b, err := os.ReadFile(filepath.Join(testenv.Corpus(t), "images.tsv"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains("\n"+string(b), "\n"+name+"\t")
}

// completeRoot is the root of a container that runs, with all of its image here.
func (n *node) completeRoot(ref string) string {
	n.Helper()
	n.thaw("pull", ref)
	p := n.launch(shell(ref, loop(`trap "exit 0" TERM`))...)
	p.prints("up\n")
	n.Cleanup(func() { p.signal(unix.SIGTERM); p.wait() })
	return n.status().Mounts[0].Dir
}

// plainRoot is a copy of a tree below an overlay.
func (n *node) plainRoot(tree string) string {
	n.Helper()
	dir := n.mkdir()
	for _, name := range []string{"lower", "upper", "work", "root"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			n.Fatal(err)
		}
	}
	if out, err := exec.Command("cp", "-a", "--one-file-system", tree+"/.", filepath.Join(dir, "lower")).CombinedOutput(); err != nil {
		n.Fatalf("copy %s: %v: %s", tree, err, out)
	}
	unix.Sync()
	options := fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", dir)
	root := filepath.Join(dir, "root")
	if err := unix.Mount("overlay", root, "overlay", 0, options); err != nil {
		n.Fatal(err)
	}
	n.Cleanup(func() {
		if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
			n.Error(err)
		}
	})
	return root
}

// compare reports the ratio of the medians. The time of the benchmark is thaw's.
func compare(b *testing.B, work func(root string) error, thaw, plain string, cold bool) {
	took := map[string]bench.Samples{}
	run := func(root string) {
		b.StopTimer()
		if cold {
			if err := bench.DropCaches(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
		if root == thaw {
			b.StartTimer()
		}
		begun := time.Now()
		if err := work(root); err != nil {
			b.Fatal(err)
		}
		took[root] = append(took[root], time.Since(begun).Seconds()*1000)
		b.StartTimer()
	}
	if !cold { // what is compared is warm from the first time on
		for _, root := range []string{thaw, plain} {
			if err := work(root); err != nil {
				b.Fatal(err)
			}
		}
		b.ResetTimer()
	}
	sides := []string{thaw, plain}
	for range b.N {
		run(sides[0])
		run(sides[1])
		slices.Reverse(sides)
	}
	b.ReportMetric(took[thaw].Median()/took[plain].Median(), "ratio")
	b.ReportMetric(slices.Min(took[thaw])/slices.Min(took[plain]), "least-ratio") // of what else the machine does this knows less
	b.ReportMetric(took[plain].Median(), "plain-ms")
	b.ReportMetric(took[thaw].Median(), "thaw-ms")
}

// filesOf lists up to steadyFiles regular files of a tree, spread over all of it,
// by their names below it.
func filesOf(root string) ([]string, error) {
	var all []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			name, _ := filepath.Rel(root, path)
			all = append(all, name)
		}
		return err
	})
	if every := (len(all) + steadyFiles - 1) / steadyFiles; every > 1 {
		kept := all[:0]
		for i := 0; i < len(all); i += every {
			kept = append(kept, all[i])
		}
		all = kept
	}
	return all, err
}

func readAll(root string, files []string) error {
	buf := make([]byte, 128<<10)
	for _, name := range files {
		fd, err := unix.Open(filepath.Join(root, name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open %s: %w", name, err)
		}
		n := 1
		for n > 0 && err == nil {
			n, err = unix.Read(fd, buf)
		}
		unix.Close(fd)
		if err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
	}
	return nil
}

// mmapAll maps files and touches each of their pages.
func mmapAll(root string, files []string) error {
	var sum byte
	for _, name := range files {
		f, err := os.Open(filepath.Join(root, name))
		if err != nil {
			return err
		}
		info, err := f.Stat()
		if err == nil && info.Size() > 0 {
			var m []byte
			if m, err = unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED); err == nil {
				for i := 0; i < len(m); i += 4096 {
					sum += m[i]
				}
				err = unix.Munmap(m)
			}
		}
		f.Close()
		if err != nil {
			return fmt.Errorf("map %s: %w", name, err)
		}
	}
	touched = sum
	return nil
}

// touched keeps reads from being optimised away.
var touched byte

// findAll walks the tree and asks for each entry's attributes.
func findAll(root string) error {
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		return unix.Lstat(path, &st)
	})
}

// importPython imports the image's large packages in its own interpreter.
func importPython(root string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, "chroot", root, "/usr/bin/python3", "-B", "-c", "import numpy, pandas, scipy, sklearn").CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}
