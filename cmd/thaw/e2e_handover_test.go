package main

import (
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/mount"
)

// terminate ends the daemon in an orderly way; its mounts stay.
func (n *node) terminate() {
	n.Helper()
	pid := n.daemon()
	if err := unix.Kill(pid, unix.SIGTERM); err != nil {
		n.Fatal(err)
	}
	n.eventually("it answers no more", func() bool { // the next one may answer before it is seen that none does
		s, err := n.statusNow()
		return err != nil || s.Pid != pid
	})
}

// TestTerminateDaemon: readers wait for the next daemon when this one is told to
// end, as they do when it is killed. The command that starts the next one may
// come while this one is still ending.
func TestTerminateDaemon(t *testing.T) {
	t.Parallel()
	layout, want := corpus(t, "nginx")
	n, s := newNode(t), newLab(t, layout, "slow")
	ref := s.Addr() + "/nginx"
	n.pushIndex(ref)
	dir := n.mkdir()
	n.thaw("mount", "--background=off", ref, dir)
	read := make(chan struct{})
	go func() {
		defer close(read)
		n.sameImage(want, dir)
	}()
	for range 3 {
		time.Sleep(400 * time.Millisecond) // somewhere in what the reader does
		n.terminate()
		n.thaw("cache", "ls")
	}
	select {
	case <-read:
	case <-time.After(2 * patience):
		t.Fatal("reader hangs")
	}
	n.thaw("umount", dir)
}

// TestRemoveMountedImage: what the next daemon needs of an image that is mounted
// stays when the image is forgotten.
func TestRemoveMountedImage(t *testing.T) {
	t.Parallel()
	n, ref := newRunNode(t)
	_, want := corpus(t, "nginx")
	dir := n.mkdir()
	n.thaw("mount", "--background=off", ref, dir)
	n.thaw("cache", "rm", ref)
	pid := n.daemon()
	n.kill(pid)
	n.daemon(pid)
	n.sameImage(want, dir)
	n.thaw("umount", dir)
}

// TestEagerDaemonServesLazyMounts: another mount path is for new mounts only.
func TestEagerDaemonServesLazyMounts(t *testing.T) {
	t.Parallel()
	n, ref := newRunNode(t)
	_, want := corpus(t, "nginx")
	dir := n.mkdir()
	n.thaw("mount", "--background=off", ref, dir)
	n.terminate()
	n.write("config.toml", `mount = "eager"`)
	n.thaw("cache", "ls")
	n.sameImage(want, dir)
	n.thaw("umount", dir)
}

// TestForeignMount: what somebody else has mounted where an image was is not
// thaw's to take away.
func TestForeignMount(t *testing.T) {
	t.Parallel()
	n, ref := newRunNode(t)
	n.refuses(1, "state directory", "mount", ref, filepath.Join(n.root, "index"))
	n.refuses(1, "state directory", "mount", ref, n.base)
	dir := n.mkdir()
	n.thaw("mount", "--background=off", ref, dir)
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("other", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, 0)
	pid := n.daemon()
	n.kill(pid)
	n.daemon(pid)
	if mounts := n.status().Mounts; len(mounts) != 0 {
		t.Errorf("mounts %v", mounts)
	}
	there, err := mount.ListUnder(dir)
	if err != nil || len(there) != 1 || there[0].Type != "tmpfs" {
		t.Errorf("%v, %+v", err, there)
	}
}

// TestMountAfterGC: an index that was made here and pushed nowhere still works
// when the layers were removed.
func TestMountAfterGC(t *testing.T) {
	t.Parallel()
	layout, want := corpus(t, "nginx")
	n := newNode(t)
	dir := n.mkdir()
	for range 2 {
		n.thaw("mount", "oci:"+layout+":nginx", dir)
		n.sameImage(want, dir)
		n.thaw("umount", dir)
		n.thaw("cache", "gc")
		if left := n.layers(); len(left) != 0 {
			t.Errorf("left: %+v", left)
		}
	}
}
