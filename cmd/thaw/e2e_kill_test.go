package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/testenv"
)

// sleeper is a script whose process can be found by the number.
func sleeper(number int) string { return fmt.Sprintf("echo up; exec sleep %d", number) }

// asleep reports whether a sleeper is there.
func asleep(number int) bool {
	entries, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, e := range entries {
		if b, err := os.ReadFile(e); err == nil && string(b) == fmt.Sprintf("sleep\x00%d\x00", number) {
			return true
		}
	}
	return false
}

func TestKillRun(t *testing.T) {
	t.Parallel()
	n, ref := newRunNode(t)
	number := 100_000_000 + os.Getpid()
	p := n.launch(shell(ref, sleeper(number))...)
	p.prints("up\n")
	n.eventually("the container runs", func() bool { return asleep(number) })
	p.signal(unix.SIGKILL)
	p.wait()
	n.eventually("the container is stopped", func() bool { return !asleep(number) })
	n.forgotten()
	if r := n.run(shell(ref, "echo again")...); r.stdout != "again\n" {
		t.Error(r)
	}
}

// kill ends processes at once, which nothing can prepare for.
func (n *node) kill(pids ...int) {
	n.Helper()
	for _, pid := range pids {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			n.Errorf("kill %d: %v", pid, err)
		}
	}
}

// TestKillDaemon kills the daemon again and again while everything of a mount
// is read from inside of a container and outside: readers wait for the next
// daemon, and what they read is right.
func TestKillDaemon(t *testing.T) {
	t.Parallel()
	n, ref := newRunNode(t)
	if err := os.Symlink(n.mkdir(), n.root); err != nil { // as when it is on another disk
		t.Fatal(err)
	}
	_, want := corpus(t, "nginx")
	dir := n.mkdir()
	n.thaw("mount", "--background=3MB", ref, dir)
	p := n.launch(shell(ref, "echo up; find /usr /etc -xdev -type f -print0 | xargs -0 sha256sum; echo done")...)
	p.prints("up\n")

	read := make(chan struct{})
	go func() {
		defer close(read)
		n.sameImage(want, dir)
	}()
	var killed []int
	for range 4 {
		pid := n.daemon(killed...)
		n.kill(pid)
		killed = append(killed, pid)
		time.Sleep(100 * time.Millisecond) // somewhere in what the next one does
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
	n.thaw("umount", dir)
}

// checkSums holds what sha256sum printed against a tree.
func (n *node) checkSums(want tree, printed string) {
	n.Helper()
	sums := map[string]string{}
	for line := range strings.Lines(printed) {
		if sum, path, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "  /"); ok {
			sums[path] = sum
		}
	}
	files := 0
	for name, f := range want.facts {
		if f.Mode&unix.S_IFMT != unix.S_IFREG || !strings.HasPrefix(name, "usr/") && !strings.HasPrefix(name, "etc/") {
			continue
		}
		files++
		switch name {
		case "etc/hosts", "etc/hostname", "etc/resolv.conf": // the container's own
		default:
			if !strings.Contains(name, "\\") && sums[name] != f.Sum {
				n.Errorf("%s: sum %q, want %q", name, sums[name], f.Sum)
			}
		}
	}
	if files == 0 {
		n.Error("no files")
	}
}

// TestKillDaemonAndKeeper: nobody can serve what is mounted any more. The next
// command cleans it all up.
func TestKillDaemonAndKeeper(t *testing.T) {
	t.Parallel()
	n, ref := newRunNode(t)
	number := 200_000_000 + os.Getpid()
	dir := n.mkdir()
	n.thaw("mount", "--background=off", ref, dir)
	p := n.launch(shell(ref, sleeper(number))...)
	p.prints("up\n")
	n.eventually("the container runs", func() bool { return asleep(number) })
	keepers := n.pids(" keeper ")
	if len(keepers) != 1 {
		t.Fatalf("keepers %v", keepers)
	}
	// Stopped first, the daemon cannot start another keeper in between.
	daemon := n.daemon()
	n.freeze(daemon)
	n.kill(keepers[0], daemon)
	n.eventually("both are gone", func() bool { return !alive(daemon) && !alive(keepers[0]) })

	n.thaw("cache", "ls")
	if s := n.status(); len(s.Mounts) != 0 {
		t.Errorf("mounts %+v", s.Mounts)
	}
	n.eventually("the container does not run on without a keeper", func() bool { return !asleep(number) })
	if r := p.wait(); r.code != 137 {
		t.Error(r)
	}
	n.eventually("nothing is left behind", func() bool {
		return !slices.ContainsFunc(n.leftovers(), func(left string) bool { return !strings.HasPrefix(left, "process") })
	})
	if r := n.run(shell(ref, "echo again")...); r.stdout != "again\n" {
		t.Error(r)
	}
}

// TestKillKeeper: the daemon starts another one.
func TestKillKeeper(t *testing.T) {
	t.Parallel()
	n, ref := newRunNode(t)
	_, want := corpus(t, "nginx")
	dir := n.mkdir()
	n.thaw("mount", "--background=off", ref, dir)
	keepers := n.pids(" keeper ")
	n.kill(keepers...)
	n.eventually("there is another keeper", func() bool {
		now := n.pids(" keeper ")
		return len(now) == 1 && now[0] != keepers[0]
	})
	n.keeperHolds()
	n.kill(n.daemon()) // now it is needed
	n.sameImage(want, dir)
	n.thaw("umount", dir)
}

// TestNoDaemonComes: after the grace time readers get an error, not zeros.
func TestNoDaemonComes(t *testing.T) {
	t.Parallel()
	n, ref := newRunNode(t, `grace = "1s"`)
	dir := n.mkdir()
	n.thaw("mount", "--background=off", ref, dir)
	config := n.path("config.toml")
	n.write("config.toml", "no daemon can start with this")
	n.kill(n.daemon())
	n.within(patience, func() error {
		_, err := sumFile(filepath.Join(dir, "usr/bin/perl"))
		if err == nil || !strings.Contains(err.Error(), "input/output error") {
			t.Errorf("read: %v", err)
		}
		return nil
	})
	if err := os.WriteFile(config, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	n.thaw("cache", "ls") // starts one
	n.daemon()
	n.within(patience, func() error {
		_, err := sumFile(filepath.Join(dir, "usr/bin/perl"))
		return err
	})
	n.thaw("umount", dir)
}

// TestInterrupt is Ctrl-C in every phase.
func TestInterrupt(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		phase, fault string
		index        bool
	}{
		{"resolve", "delay=1m,match=/manifests/latest", true},
		{"index", "delay=1m,match=/referrers/", true},
		{"pull", "stall=1MB", false},
		{"start", "stall=0", true},
	} {
		t.Run(c.phase, func(t *testing.T) {
			layout, _ := corpus(t, "nginx")
			n, s := newNode(t), newLab(t, layout, "none")
			ref := s.Addr() + "/nginx"
			if c.index {
				n.pushIndex(ref)
			}
			setFaults(t, s, c.fault)
			s.ResetStats()
			p := n.launch(shell(ref, "echo never")...)
			n.eventually("the registry is asked", func() bool { return len(s.Stats().Faults) > 0 })
			time.Sleep(50 * time.Millisecond)
			watch := testenv.Start()
			p.signal(unix.SIGINT)
			r := p.wait()
			if r.code != 130 || r.stdout != "" {
				t.Error(r)
			}
			if over, starved := watch.Over(20 * time.Second); over {
				t.Errorf("took %v, the machine was busy for %v", watch.Took(), starved)
			}
			n.forgotten()
		})
	}
}
