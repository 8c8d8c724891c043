package main

import (
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/daemon/api"
)

// programPrefix begins the names of copies of the test binary, which are their
// versions.
const programPrefix = "thaw-v"

// program makes a copy of thaw that is another file, and another version.
func (n *node) program(name string) string {
	n.Helper()
	path := n.path(programPrefix + name)
	if _, err := os.Stat(path); err == nil {
		return path
	}
	from, err := os.Open("/proc/self/exe")
	if err != nil {
		n.Fatal(err)
	}
	defer from.Close()
	to, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		n.Fatal(err)
	}
	if _, err := io.Copy(to, from); err != nil {
		n.Fatal(err)
	}
	if err := to.Close(); err != nil {
		n.Fatal(err)
	}
	return path
}

// as runs a command of another program.
func (n *node) as(program string, args ...string) (string, error) {
	n.Helper()
	cmd := n.command(args...)
	cmd.Path = program
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// readers read files of a mounted image again and again, past the page cache,
// and compare them with what they should be.
type readers struct {
	node     *node
	dir      string
	names    []string
	want     tree
	stop     atomic.Bool
	wg       sync.WaitGroup
	reads    atomic.Int64
	failures atomic.Int64
	longest  atomic.Int64 // nanoseconds for a file
}

func (n *node) readersOf(want tree, dir string, count int) *readers {
	r := &readers{node: n, dir: dir, want: want}
	for name, f := range want.facts {
		if f.Mode&unix.S_IFMT == unix.S_IFREG && f.Size > 0 && f.Size < 4<<20 {
			r.names = append(r.names, name)
		}
	}
	for range count {
		r.wg.Go(r.run)
	}
	n.Cleanup(func() { r.stop.Store(true) })
	return r
}

func (r *readers) run() {
	for !r.stop.Load() && r.failures.Load() < 10 {
		name := r.names[rand.IntN(len(r.names))]
		begun := time.Now()
		sum, err := sumUncached(filepath.Join(r.dir, name))
		if took := int64(time.Since(begun)); took > r.longest.Load() {
			r.longest.Store(took)
		}
		r.reads.Add(1)
		if want := r.want.facts[name].Sum; err != nil || sum != want {
			r.failures.Add(1)
			r.node.Errorf("read %s: %v, sum %s, want %s", name, err, sum, want)
		}
	}
}

// end stops the readers. Each has read something.
func (r *readers) end() {
	r.node.Helper()
	r.stop.Store(true)
	r.node.within(patience, func() error { r.wg.Wait(); return nil })
	r.node.Logf("%d files read, the longest in %v", r.reads.Load(), time.Duration(r.longest.Load()).Round(time.Millisecond))
	if r.reads.Load() == 0 {
		r.node.Error("nothing was read")
	}
}

// sumUncached reads what the kernel has not cached.
func sumUncached(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	err = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	f.Close()
	if err != nil {
		return "", err
	}
	return sumFile(path)
}

// TestUpgrade changes between two versions again and again while files are
// read: no read fails, and daemon and keeper are of the new version each time.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	for mode, rounds := range map[string]int{"fanotify": 4, "fuse": 2} {
		if os.Getenv("THAW_LONG") != "" {
			rounds *= 10
		}
		t.Run(mode, func(t *testing.T) {
			layout, want := corpus(t, "nginx")
			n := newNode(t, `mount = "`+mode+`"`)
			ref := newLab(t, layout, "slow").Addr() + "/nginx"
			n.pushIndex(ref)
			programs := []string{n.program("1"), n.program("2")}
			dir := n.mkdir()
			if out, err := n.as(programs[0], "mount", "--background=1MB", ref, dir); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			pid := n.status().Pid
			r := n.readersOf(want, dir, 4)
			for i := range rounds {
				program := programs[(i+1)%2]
				before := r.reads.Load()
				if out, err := n.as(program, "daemon", "--upgrade"); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
				version := filepath.Base(program)
				s := n.status()
				if s.Version != version || s.Pid != pid || len(s.Mounts) != 1 {
					t.Fatalf("status: %+v", s)
				}
				n.eventually("the keeper is upgraded too", func() bool {
					k := n.status().Keeper
					return k.Version == version && len(n.pids(" keeper ")) == 1
				})
				n.eventually("files are read", func() bool { return r.reads.Load() > before })
			}
			out, err := n.as(programs[0], "daemon", "status")
			if err != nil || strings.Count(out, filepath.Base(programs[rounds%2])) != 2 {
				t.Errorf("status, %v: %s", err, out)
			}
			n.kill(pid) // what the keepers were told still holds
			if after := n.daemon(pid); n.status().Version != filepath.Base(programs[rounds%2]) {
				t.Errorf("daemon %d is version %s", after, n.status().Version)
			}
			r.end()
			n.thaw("umount", dir)
		})
	}
}

// TestUpgradeFails: a program that does not work changes nothing, or is not
// there for long. No reader notices.
func TestUpgradeFails(t *testing.T) {
	t.Parallel()
	layout, want := corpus(t, "nginx")
	n := newNode(t)
	ref := newLab(t, layout, "slow").Addr() + "/nginx"
	n.pushIndex(ref)
	good := n.program("1")
	dir := n.mkdir()
	if out, err := n.as(good, "mount", "--background=1MB", ref, dir); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	r := n.readersOf(want, dir, 4)
	before := n.status()
	c := api.NewClient(n.root)

	script := func(name, answer, start string) string {
		path := n.write(name, "#!/bin/sh\ncase $1 in keeper) "+answer+" ;; *) "+start+" ;; esac\n")
		if err := os.Chmod(path, 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	answers := `echo '{"program":"new","keeperProtocol":2}'`
	for _, c2 := range []struct{ program, text string }{
		{"/bin/false", "does not work here"},
		{"/no/such/program", "no such file"},
		{"relative", "absolute"},
		{n.write("notes", "no program"), "permission denied"},
		{script("future", `echo '{"program":"new","keeperProtocol":99}'`, "exit 1"), "speaks version 99"},
	} {
		err := c.Upgrade(t.Context(), c2.program)
		if err == nil || !strings.Contains(err.Error(), c2.text) {
			t.Errorf("%s: %v", c2.program, err)
		}
	}
	if now := n.status(); now.Pid != before.Pid || !now.Started.Equal(before.Started) {
		t.Errorf("the daemon has changed: %+v", now)
	}

	// It says it works, and then exits.
	started := before.Started
	upgrade := func(program string) {
		t.Helper()
		if err := c.Upgrade(t.Context(), program); err != nil {
			t.Fatal(err)
		}
		n.eventually("there is a daemon again", func() bool {
			s, err := n.statusNow()
			return err == nil && !s.Started.Equal(started)
		})
		s := n.status()
		if s.Version != before.Version || len(s.Mounts) != 1 {
			t.Errorf("status: %+v", s)
		}
		started = s.Started
	}
	upgrade(script("broken", answers, "exit 1"))
	upgrade(script("crashes", answers, "kill -SEGV $$"))
	// It has even taken the old one's place: the keeper has the last copy of it.
	if err := os.Rename(script("installed", answers, "exit 1"), good); err != nil {
		t.Fatal(err)
	}
	upgrade(good)
	n.kill(n.daemon())
	n.eventually("there is a daemon again", func() bool {
		s, err := n.statusNow()
		return err == nil && !s.Started.Equal(started)
	})
	r.end()
	n.thaw("umount", dir)
}

// TestUpgradeNothing: there may be no daemon, no mounts, or no keeper.
func TestUpgradeNothing(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	program := n.program("2")
	if out, err := n.as(program, "daemon", "--upgrade"); err != nil || !strings.Contains(out, "no daemon is running") {
		t.Errorf("%v: %s", err, out)
	}
	n.thaw("cache", "ls")
	if out, err := n.as(program, "daemon", "--upgrade"); err != nil || n.status().Version != filepath.Base(program) {
		t.Errorf("%v: %s", err, out)
	}
	n.stop()
	n.write("config.toml", `mount = "eager"`)
	n.thaw("cache", "ls")
	if out, err := n.as(program, "daemon", "--upgrade"); err != nil || n.status().Version != filepath.Base(program) {
		t.Errorf("%v: %s", err, out)
	}
}

// TestReadersBringDaemonBack: who ends the daemon does not end what reads.
func TestReadersBringDaemonBack(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"fanotify", "fuse"} {
		t.Run(mode, func(t *testing.T) {
			n, ref := newRunNode(t, `mount = "`+mode+`"`)
			dir := n.mkdir()
			n.thaw("mount", "--background=off", ref, dir)
			pid := n.daemon()
			n.terminate()
			n.eventually("it has ended", func() bool { return !alive(pid) })
			begun := time.Now()
			n.within(patience, func() error {
				_, err := sumFile(filepath.Join(dir, "usr/bin/perl"))
				return err
			})
			t.Logf("read after %v", time.Since(begun).Round(time.Millisecond))
			n.daemon()
			n.thaw("umount", dir)
		})
	}
}
