package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/layertar/layertartest"
	"github.com/thaw-project/thaw/internal/testenv"
)

// reader reads a whole file of a mount in the background; the function returned waits, and holds it against the unpacked image.
func (n *node) reader(want tree, dir, name string) (wait func()) {
	n.Helper()
	done := make(chan error, 1)
	var sum string
	go func() {
		var err error
		sum, err = sumFile(filepath.Join(dir, name))
		done <- err
	}()
	return func() {
		n.Helper()
		n.within(patience, func() error { return <-done })
		if sum != want.facts[name].Sum {
			n.Errorf("%s: sum %q, want %q", name, sum, want.facts[name].Sum)
		}
	}
}

// keeperHolds waits until a keeper has what a daemon has handed to it.
func (n *node) keeperHolds() {
	n.Helper()
	n.eventually("the keeper holds what watches", func() bool {
		keeper := n.pid(" keeper ")
		return len(heldBy(keeper, "anon_inode:[fanotify]", "/dev/fuse")) > 0 && n.handedOver(keeper)
	})
}

// TestKillKeeperUnderReaders kills the keeper, and then the daemon, while reads wait for a registry that does not answer.
func TestKillKeeperUnderReaders(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"fanotify", "fuse"} {
		t.Run(path, func(t *testing.T) {
			n, s, want := newCorpusNode(t)
			n.write("config.toml", fmt.Sprintf("mount = %q", path))
			ref, dir := s.Addr()+"/nginx", n.mkdir()
			n.pushIndex(ref)
			n.thaw("mount", "--background=off", ref, dir)
			setFaults(t, s, "stall=0")
			s.ResetStats()
			waits := []func(){n.reader(want, dir, "usr/bin/perl"), n.reader(want, dir, "usr/sbin/nginx")}
			n.eventually("a read waits", func() bool { return len(s.Stats().Faults) > 0 })
			keeper := n.pid(" keeper ")
			n.kill(keeper)
			n.eventually("there is another keeper", func() bool { now := n.pid(" keeper "); return now != 0 && now != keeper })
			n.keeperHolds()
			daemon := n.daemon()
			n.kill(daemon)
			setFaults(t, s)
			n.daemon(daemon)
			for _, wait := range waits {
				wait()
			}
			n.thaw("umount", dir)
		})
	}
}

// TestStoppedKeeper: reads need no keeper, and a daemon that dies meanwhile is started once the keeper goes on.
func TestStoppedKeeper(t *testing.T) {
	t.Parallel()
	n, s, want := newCorpusNode(t)
	ref, dir := s.Addr()+"/nginx", n.mkdir()
	n.pushIndex(ref)
	n.thaw("mount", "--background=off", ref, dir)
	keeper := n.pid(" keeper ")
	n.freeze(keeper)
	n.reader(want, dir, "usr/bin/perl")()
	n.kill(n.daemon())
	wait := n.reader(want, dir, "usr/sbin/nginx")
	if err := unix.Kill(keeper, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	wait()
	n.thaw("umount", dir)
}

// memoryCgroup is a new control group with little memory.
func memoryCgroup(t *testing.T, n *node, bytes string) string {
	t.Helper()
	for _, c := range []struct{ parent, limit string }{
		{"/sys/fs/cgroup/memory", "memory.limit_in_bytes"}, {"/sys/fs/cgroup", "memory.max"}, {"/sys/fs/cgroup/unified", "memory.max"},
	} {
		dir := filepath.Join(c.parent, filepath.Base(n.base)+"-oom")
		if os.Mkdir(dir, 0o755) != nil {
			continue
		}
		if os.WriteFile(filepath.Join(dir, c.limit), []byte(bytes), 0) != nil {
			os.Remove(dir)
			continue
		}
		t.Cleanup(func() {
			n.eventually("its control group is empty", func() bool { return os.Remove(dir) == nil })
		})
		return dir
	}
	t.Skip("no memory control group can be made here")
	return ""
}

// TestOutOfMemory has the kernel kill the daemon because it has no memory left. The next one is not in that control group.
func TestOutOfMemory(t *testing.T) {
	t.Parallel()
	n, s, want := newCorpusNode(t)
	ref, dir := s.Addr()+"/nginx", n.mkdir()
	n.pushIndex(ref)
	n.thaw("mount", "--background=off", ref, dir)
	daemon := n.daemon()
	group := memoryCgroup(t, n, "4M")
	if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), fmt.Append(nil, daemon), 0); err != nil {
		t.Fatal(err)
	}
	n.sameImage(want, dir)
	if now := n.daemon(daemon); now == daemon {
		t.Error("the daemon was not killed")
	}
	kills := ""
	for _, name := range []string{"memory.oom_control", "memory.events"} {
		b, _ := os.ReadFile(filepath.Join(group, name))
		for line := range strings.Lines(string(b)) {
			if strings.HasPrefix(line, "oom_kill ") {
				kills = strings.TrimSpace(line)
			}
		}
	}
	if kills != "oom_kill 1" {
		t.Errorf("the kernel counts %q", kills)
	}
	n.thaw("umount", dir)
}

// TestKillDaemonUnderRequests kills the daemon three times a second under a server that answers requests and is not complete.
// What it needs to answer is here, so no request may fail.
func TestKillDaemonUnderRequests(t *testing.T) {
	t.Parallel()
	testenv.NeedRuntime(t)
	t.Run("node", func(t *testing.T) { killUnderRequests(t, "node", "/health/ready", 6*time.Second, "/") })
	t.Run("python-ml", func(t *testing.T) {
		if os.Getenv("THAW_LONG") == "" {
			t.Skip("needs THAW_LONG, and a corpus with python-ml")
		}
		killUnderRequests(t, "python-ml", "/health/ready", time.Minute, "/predict?seed=7", "/health/ready")
	})
}

func killUnderRequests(t *testing.T, image, ready string, lasts time.Duration, paths ...string) {
	n := newNode(t)
	ref := newLab(t, filepath.Join(testenv.Corpus(t), "oci"), "cloud").Addr() + "/" + image
	n.pushIndex(ref)
	port := freePort(t)
	address := "http://127.0.0.1:" + port
	p := n.launch("--background=off", "-e", "PORT="+port, ref)
	client := &http.Client{Timeout: patience}
	get := func(path string) (string, error) {
		r, err := client.Get(address + path)
		if err != nil {
			return "", err
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		if err == nil && r.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s: %s", r.Status, b)
		}
		return string(b), err
	}
	n.eventually("the server is ready", func() bool { _, err := get(ready); return err == nil })
	want := map[string]string{}
	for _, path := range paths {
		b, err := get(path)
		if err != nil {
			t.Fatal(err)
		}
		want[path] = b
	}

	over := make(chan struct{})
	var kills atomic.Int64
	var killer sync.WaitGroup
	killer.Go(func() {
		tick := time.NewTicker(300 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				if pid := n.pid(" daemon "); pid != 0 && unix.Kill(pid, unix.SIGKILL) == nil {
					kills.Add(1)
				}
			case <-over:
				return
			}
		}
	})
	requests, longest := 0, time.Duration(0)
	least := int64(lasts / (2 * time.Second)) // kills: on a busy machine they take longer
	for begun := time.Now(); time.Since(begun) < lasts || kills.Load() < least && time.Since(begun) < lasts+patience; requests++ {
		path := paths[requests%len(paths)]
		at := time.Now()
		if b, err := get(path); err != nil || b != want[path] {
			t.Errorf("request %d, %s: %q, %v, want %q", requests, path, b, err, want[path])
			break
		}
		longest = max(longest, time.Since(at))
	}
	close(over)
	killer.Wait()
	t.Logf("%d requests, %d kills, longest answer %v", requests, kills.Load(), longest.Round(time.Millisecond))
	if kills.Load() < least {
		t.Errorf("%d kills", kills.Load())
	}
	n.daemon()
	p.signal(unix.SIGKILL) // the server is process 1 of its container, which SIGTERM does not end
	p.wait()
	n.forgotten()
}

// boot is a machine that was just started: a mount namespace of its own, in which the kernel has another boot id. What is mounted in it
// goes with its last process.
type boot struct {
	*node
	holder *exec.Cmd
}

func (n *node) boot(id string) *boot {
	n.Helper()
	testenv.NeedTool(n, "unshare")
	testenv.NeedTool(n, "nsenter")
	b := &boot{node: n, holder: exec.Command("unshare", "--mount", "sh", "-c", `mount --bind "$0" /proc/sys/kernel/random/boot_id && echo up && exec sleep infinity`,
		n.write("boot-"+id, id+"\n"))}
	out, err := b.holder.StdoutPipe()
	if err == nil {
		err = b.holder.Start()
	}
	if err != nil {
		n.Fatal(err)
	}
	n.Cleanup(func() { b.holder.Process.Kill(); b.holder.Wait() })
	if _, err := io.ReadFull(out, make([]byte, len("up\n"))); err != nil {
		n.Fatal("bind another boot id: ", err)
	}
	return b
}

// command is a thaw command on that machine.
func (b *boot) output(args ...string) (string, error) {
	cmd := b.node.command(args...)
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	in := exec.Command("nsenter", append([]string{"--mount", "--target", fmt.Sprint(b.holder.Process.Pid), self}, cmd.Args[1:]...)...)
	in.Env, in.Dir, in.WaitDelay = cmd.Env, cmd.Dir, patience
	out, err := in.CombinedOutput()
	return string(out), err
}

func (b *boot) thaw(args ...string) string {
	b.Helper()
	out, err := b.output(args...)
	if err != nil {
		b.Fatalf("thaw %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return out
}

// crash ends all of its processes at once.
func (b *boot) crash() {
	b.Helper()
	pids := b.pids("")
	for _, pid := range pids { // first: none is to start another
		_ = unix.Kill(pid, unix.SIGSTOP)
	}
	for _, pid := range append(pids, b.holder.Process.Pid) {
		_ = unix.Kill(pid, unix.SIGKILL) // one may have been about to end
	}
	b.holder.Wait()
	b.eventually("all are dead", func() bool {
		for _, pid := range pids {
			if alive(pid) {
				return false
			}
		}
		return true
	})
}

// TestReboot: an image that was complete starts after the machine was started again without a registry, and what was mounted is forgotten.
func TestReboot(t *testing.T) {
	t.Parallel()
	testenv.NeedRuntime(t)
	n, s, _ := newCorpusNode(t)
	small := layertartest.Fill(3, 3<<20)
	layout := n.mkdir()
	writeImage(t, layout, "small", compressions[0], [][]byte{new(layertartest.Builder).Dir("d").File("d/f", small).End().Bytes()})
	other := newLab(t, layout, "none")
	ref, lazy := s.Addr()+"/nginx", other.Addr()+"/small"
	n.pushIndex(ref)
	n.pushIndex(lazy)

	first := n.boot("11111111-2222-4333-8444-555555555555")
	dir := n.mkdir()
	first.thaw("mount", "--wait", ref, n.mkdir())
	first.thaw("mount", "--background=off", lazy, dir)
	if out := first.thaw("daemon", "status"); !strings.Contains(out, "complete") {
		t.Errorf("status: %s", out)
	}
	first.crash()
	if records, _ := filepath.Glob(filepath.Join(n.root, "mounts", "*")); len(records) != 2 {
		t.Errorf("records %v", records)
	}

	s.Close()
	second := n.boot("66666666-7777-4888-9999-aaaaaaaaaaaa")
	if out := second.thaw(n.runArgs(shell(ref, "cat /proc/sys/kernel/random/boot_id; sha256sum /usr/bin/perl > /dev/null && echo local")...)...); !strings.HasSuffix(out, "local\n") {
		t.Errorf("prints %q", out)
	}
	n.eventually("what was mounted is forgotten", func() bool {
		records, _ := filepath.Glob(filepath.Join(n.root, "mounts", "*"))
		return len(records) == 0
	})
	// What was half here is checked and goes on.
	second.thaw("mount", "--wait", lazy, dir)
	sum, err := exec.Command("nsenter", "--mount", "--target", fmt.Sprint(second.holder.Process.Pid), "cmp", filepath.Join(dir, "d/f"),
		n.write("small", string(small))).CombinedOutput()
	if err != nil {
		t.Errorf("compare: %v: %s", err, sum)
	}
	second.thaw("umount", dir)
	second.thaw("daemon", "stop", "--force")
	second.crash()
}
