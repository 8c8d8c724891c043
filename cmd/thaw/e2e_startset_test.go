package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/testenv"
)

// watchedBytes is how many bytes the daemon was asked about while a file of a
// mount is read whose pages the kernel had to forget.
func (n *node) watchedBytes(addr, path string, want []byte) float64 {
	n.Helper()
	f, err := os.Open(path)
	if err != nil {
		n.Fatal(err)
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		n.Fatal(err)
	}
	total := func() float64 {
		s := n.scrape(addr)
		return s.value("thaw_read_bytes_total")
	}
	before := total()
	if got, err := os.ReadFile(path); err != nil || want != nil && !bytes.Equal(got, want) {
		n.Errorf("%s: %d bytes: %v", path, len(got), err)
	}
	return total() - before
}

// TestStartSet: what a bundle brings is read without the daemon from the moment
// when it is here, and recorded all the same. The rest is watched as ever, and a
// new daemon watches all.
func TestStartSet(t *testing.T) {
	t.Parallel()
	testenv.NeedRuntime(t)
	testenv.NeedFanotify(t)
	const set, other = "entrypoint.sh", "usr/bin/perl"
	addr := "127.0.0.1:" + freePort(t)
	builder, n := newNode(t), newNode(t, `metrics = "`+addr+`"`)
	ref := newLab(t, filepath.Join(testenv.Corpus(t), "oci"), "none").Addr() + "/nginx:latest"
	port := freePort(t)
	env, ready := "PORT="+port, "http://127.0.0.1:"+port+"/ready"
	builder.thaw("optimize", "-e", env, "--ready", ready, "--after", "100ms", "--push", ref)
	dir := builder.mkdir()
	builder.thaw("mount", "--wait", ref, dir)
	want := map[string][]byte{}
	for _, name := range []string{set, other} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		want[name] = b
	}

	line := n.path("line")
	p := n.launch("-e", env, "--ready", ready, "--background=off", "--timeline-file", line, ref)
	n.eventually("it is ready", func() bool { _, err := os.Stat(line); return err == nil })
	n.bundled()
	image := filepath.Join(n.root, "mounts", n.status().Mounts[0].ID, "image")
	read := func(name string) float64 {
		n.Helper()
		return n.watchedBytes(addr, filepath.Join(image, name), want[name])
	}
	n.eventually("the start-up set is silent", func() bool { return read(set) == 0 })
	if got := read(other); got < float64(len(want[other])) {
		t.Errorf("asked about %v of %d bytes that no bundle brought", got, len(want[other]))
	}
	if left, _ := filepath.Glob(filepath.Join(n.root, "mounts", "*", "*.erofs")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	pages := resident(t, image)
	p.signal(unix.SIGTERM)
	p.wait()
	n.recorded(1)
	checkTrace(t, n.trace(ref), pages, dir)

	// A daemon that did not silence it.
	p = n.launch("-e", env, "--ready", ready, "--background=off", "--timeline-file", line+"2", ref)
	n.eventually("it is ready", func() bool { _, err := os.Stat(line + "2"); return err == nil })
	n.bundled()
	image = filepath.Join(n.root, "mounts", n.status().Mounts[0].ID, "image")
	n.eventually("the start-up set is silent again", func() bool { return read(set) == 0 })
	pid := n.daemon()
	n.kill(pid)
	n.daemon(pid)
	if got := read(set); got < float64(len(want[set])) {
		t.Errorf("after a crash asked about %v of %d bytes", got, len(want[set]))
	}
	p.signal(unix.SIGTERM)
	p.wait()
}
