package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/lab"
)

// TestCompletion: once all is here, reads are local and need nobody.
func TestCompletion(t *testing.T) {
	t.Parallel()
	n, s, want := newCorpusNode(t)
	ref := s.Addr() + "/nginx"
	n.pushIndex(ref)
	dir := n.mkdir()
	n.thaw("mount", ref, dir)
	if s := n.status(); len(s.Mounts) != 1 || s.Mounts[0].Mode != api.ModeFanotify || s.Mounts[0].Index != "registry" {
		t.Errorf("status %+v", s)
	}
	p := n.launch(append([]string{"-v", n.base + ":/host"}, shell(ref, "echo up; while ! [ -e /host/go ]; do sleep 0.05; done; "+
		"find /usr /etc -xdev -type f -print0 | xargs -0 sha256sum; echo done")...)...)
	p.prints("up\n")
	n.thaw("mount", "--wait", ref, n.mkdir())
	n.complete()
	n.eventually("no file is marked", func() bool { return len(n.marks()) == 0 })
	s.Close()
	n.write("go", "")
	n.sameImage(want, dir)
	if r := p.wait(); r.code != 0 || !strings.HasSuffix(r.stdout, "done\n") {
		t.Error(r)
	}
	n.checkSums(want, p.res.stdout)
	n.eventually("all mounts are complete", func() bool {
		return !slices.ContainsFunc(n.status().Mounts, func(m api.Mount) bool { return !m.Stats.Complete || m.Stats.HereBytes != m.Stats.UnpackedBytes })
	})
	if text := n.thaw("cache", "ls"); strings.Count(text, "100%") != 3 || strings.Count(text, "diffID proven, in use") != 3 {
		t.Errorf("cache ls prints\n%s", text)
	}
	n.stop()

	n.thaw("mount", ref, dir) // without a registry, and without a mark
	if marks := n.marks(); len(marks) > 0 {
		t.Errorf("marks %v", marks)
	}
	n.sameImage(want, dir)
	if r := n.run(shell(ref, "echo local")...); r.stdout != "local\n" {
		t.Error(r)
	}
}

// newCorpusNode is a node with a lab registry of the corpus.
func newCorpusNode(t testing.TB) (*node, *lab.Server, tree) {
	t.Helper()
	layout, want := corpus(t, "nginx")
	return newNode(t), newLab(t, layout, "none"), want
}

// complete checks that all layers are here and proven.
func (n *node) complete() {
	n.Helper()
	layers := n.layers()
	if len(layers) == 0 {
		n.Error("no layers")
	}
	for _, l := range layers {
		if !l.Complete || l.HereBytes != l.SizeBytes || l.Quarantined != "" {
			n.Errorf("layer %+v", l)
		}
	}
}

// marks are the files that the daemon's fanotify group watches.
func (n *node) marks() map[string]bool {
	n.Helper()
	pid := n.daemon()
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		n.Fatal(err)
	}
	marks := map[string]bool{} // there is more than one descriptor of the group
	groups := 0
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err != nil || to != "anon_inode:[fanotify]" {
			continue
		}
		groups++
		info, err := os.ReadFile(filepath.Join(filepath.Dir(filepath.Dir(fd)), "fdinfo", filepath.Base(fd)))
		if err != nil {
			n.Fatal(err)
		}
		for line := range strings.Lines(string(info)) {
			if strings.HasPrefix(line, "fanotify ino:") {
				marks[line] = true
			}
		}
	}
	if groups == 0 {
		n.Error("the daemon has no fanotify group")
	}
	return marks
}

// TestMarks holds the test above against a mount that is not complete.
func TestMarks(t *testing.T) {
	t.Parallel()
	n, s, _ := newCorpusNode(t)
	ref := s.Addr() + "/nginx"
	n.pushIndex(ref)
	n.thaw("mount", "--background=off", ref, n.mkdir())
	if marks := n.marks(); len(marks) != 3 {
		t.Errorf("marks %v", marks)
	}
	for _, l := range n.layers() {
		if l.Complete {
			t.Errorf("layer %+v", l)
		}
	}
}

// TestNoIndex: the first run makes the index, and the next ones use it.
func TestNoIndex(t *testing.T) {
	t.Parallel()
	n, s, want := newCorpusNode(t)
	ref := s.Addr() + "/nginx"
	r := n.refuses(125, "has no index", n.runArgs("--index=require", ref)...)
	if !strings.Contains(r.stderr, "thaw: hint: make one with: thaw index build --push "+ref) {
		t.Error(r)
	}
	line := n.timelineOf(ref)
	if line.Index != "built" {
		t.Errorf("index %q", line.Index)
	}
	line.checkPhases(t, "resolve", "index", "pull", "mount", "create", "start", "ready")
	if c := line.AtReady; c.SharePercent < 99.9 || c.LayerBytes > c.ImageBytes*11/10 {
		t.Errorf("cost %+v", c)
	}

	// The layers are gone, the index is not: the second run is lazy.
	n.stop()
	if err := os.RemoveAll(filepath.Join(n.root, "store")); err != nil {
		t.Fatal(err)
	}
	s.ResetStats()
	line = n.timelineOf(ref, "--background=off", "--index=require")
	if line.Index != "local" || line.AtReady.SharePercent > 50 {
		t.Errorf("index %q, cost %+v", line.Index, line.AtReady)
	}
	line.checkPhases(t, "resolve", "index", "mount", "create", "start", "ready")

	// Another node shares what the first one made.
	first, second := newNode(t), newNode(t)
	first.thaw("mount", "--index=push", ref, first.mkdir())
	dir := second.mkdir()
	second.thaw("mount", "--index=require", ref, dir)
	if s := second.status(); s.Mounts[0].Index != "registry" {
		t.Errorf("status %+v", s)
	}
	second.sameImage(want, dir)
	first.thaw("mount", "--wait", ref, first.mkdir())
	first.complete()
}

// TestPull brings everything; then the registry is not needed, and what was
// pulled stays until it is removed.
func TestPull(t *testing.T) {
	t.Parallel()
	n, s, _ := newCorpusNode(t)
	ref := s.Addr() + "/nginx"
	if out := n.thaw("pull", ref); !strings.Contains(out, "3 layers") || !strings.Contains(out, "index: built") {
		t.Errorf("pull prints %q", out)
	}
	n.complete()
	s.Close()
	if r := n.run(append([]string{"--pull=missing"}, shell(ref, "echo pulled")...)...); r.stdout != "pulled\n" {
		t.Error(r)
	}
	if r := n.run(append([]string{"--pull=never"}, shell(ref, "echo pulled")...)...); r.stdout != "pulled\n" {
		t.Error(r)
	}
	n.thaw("cache", "gc")
	if len(n.layers()) != 3 {
		t.Error("gc removed what was pulled")
	}
	layer := n.layers()[0].Blob.String()
	n.refuses(1, "pinned", "cache", "rm", layer)
	dir := n.mkdir()
	n.thaw("mount", ref, dir)
	n.thaw("cache", "rm", ref)
	if len(n.layers()) != 3 {
		t.Error("rm removed layers that are mounted")
	}
	n.refuses(1, "in use", "cache", "rm", layer)
	n.thaw("umount", dir)
	if out := n.thaw("cache", "gc"); strings.Count(out, "sha256:") != 3 {
		t.Errorf("gc prints %q", out)
	}
	if left := n.layers(); len(left) != 0 {
		t.Errorf("left: %+v", left)
	}
	n.refuses(125, "not on this node", n.runArgs("--pull=never", ref)...)
}

// TestComparedOnce: an index from elsewhere is compared with the layers by its first mount.
// No later start reads through them beside its program, nor one by another daemon.
func TestComparedOnce(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	layout, _ := corpus(t, "nginx")
	ref := newLab(t, layout, "none").Addr() + "/nginx"
	n.pushIndex(ref)
	n.thaw("pull", ref)
	mount := func() (read int) {
		before := n.read(n.daemon())
		dir := n.mkdir()
		n.thaw("mount", "--wait", ref, dir)
		n.thaw("umount", dir)
		return n.read(n.daemon()) - before
	}
	first, second := mount(), mount()
	n.stop()
	n.thaw("cache", "ls")
	third := mount()
	t.Logf("read %d, %d and %d bytes", first, second, third)
	if second > first/4 || third > first/4 {
		t.Errorf("read %d, %d and %d bytes", first, second, third)
	}
}

// read is how many bytes a process has read so far.
func (n *node) read(pid int) int {
	n.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
	if err != nil {
		n.Fatal(err)
	}
	var all int
	if _, err := fmt.Sscanf(string(b), "rchar: %d", &all); err != nil {
		n.Fatal(err)
	}
	return all
}
