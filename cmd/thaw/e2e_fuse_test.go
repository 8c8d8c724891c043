package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/testenv"
)

// TestFUSE kills the daemon again and again while everything of a mount through FUSE is read from inside of a container and
// outside: readers wait for the next daemon, and what they read is right.
func TestFUSE(t *testing.T) {
	t.Parallel()
	testenv.NeedFUSE(t)
	n, ref := newRunNode(t, `mount = "fuse"`)
	_, want := corpus(t, "nginx")
	dir := n.mkdir()
	n.thaw("mount", "--background=3MB", ref, dir)
	if s := n.status(); s.Mode != api.ModeFUSE || s.ModeReason == "" || s.Mounts[0].Mode != api.ModeFUSE {
		t.Errorf("status: %+v", s)
	}
	p := n.launch(shell(ref, "echo up; find /usr /etc -xdev -type f -print0 | xargs -0 sha256sum; echo done")...)
	p.prints("up\n")
	read := make(chan struct{})
	go func() {
		defer close(read)
		n.sameImage(want, dir)
	}()
	var killed []int
	for i := range 5 {
		pid := n.daemon(killed...)
		if i == 2 { // in good order, for once
			n.terminate()
		} else {
			n.kill(pid)
		}
		killed = append(killed, pid)
		time.Sleep(100 * time.Millisecond) // somewhere in what the next one does
		if i == 2 {
			n.thaw("cache", "ls") // starts one
		}
	}
	n.daemon(killed...)
	select {
	case <-read:
	case <-time.After(2 * patience):
		t.Fatal("reader hangs")
	}
	if r := p.wait(); r.code != 0 || !strings.HasSuffix(r.stdout, "done\n") {
		t.Errorf("exit code %d: %s", r.code, r.stderr)
	}
	n.checkSums(want, p.res.stdout)
	if r := n.try("mount", "--mount=fanotify", ref, n.mkdir()); r.code == 0 || !strings.Contains(r.stderr, "mount path is fuse, not fanotify") {
		t.Error(r)
	}
	n.thaw("umount", dir)
}

// TestFUSEAllKilled kills keeper and daemon at once: the mount is dead, its readers get errors, and the next daemon takes it away.
func TestFUSEAllKilled(t *testing.T) {
	t.Parallel()
	testenv.NeedFUSE(t)
	n, ref := newRunNode(t)
	n.start("daemon", "--mount=fuse")
	n.daemon()
	dir := n.mkdir()
	n.thaw("mount", "--background=off", ref, dir)
	keepers := n.pids(" keeper ")
	if len(keepers) != 1 {
		t.Fatalf("keepers %v", keepers)
	}
	daemon := n.daemon()
	n.freeze(daemon) // or it starts another keeper in between
	n.kill(keepers[0], daemon)
	if b, err := os.ReadFile(filepath.Join(dir, "usr/sbin/nginx")); err == nil {
		t.Errorf("read %d bytes of a dead mount", len(b))
	}
	n.thaw("cache", "ls")
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("dead mount is still there: %d entries, %v", len(entries), err)
	}
	n.thaw("mount", ref, dir)
	n.thaw("umount", dir)
}
