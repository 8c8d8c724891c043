package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// chaosPatience bounds every command, and the waits for a daemon or keeper.
const chaosPatience = patience

// processLane does one bad thing to the daemon or the keeper. It never kills both before the one that lives had time to
// start the other: then nobody holds the group any more, which is not promised to end well.
func (c *chaos) processLane(rng *rand.Rand) {
	c.pause(between(rng, 0, 1500*time.Millisecond))
	switch p := rng.IntN(100); {
	case p < 40:
		c.killDaemon("kill -9 daemon")
	case p < 50:
		for range 2 + rng.IntN(4) {
			c.killDaemon("kill -9 daemon, in a row")
			c.pause(between(rng, 0, 300*time.Millisecond))
		}
	case p < 65:
		c.killKeeper("kill -9 keeper", 0)
	case p < 70:
		c.killKeeper("kill -9 keeper of a stopped daemon", between(rng, 0, time.Second))
	case p < 80:
		c.freeze("SIGSTOP daemon", " daemon ", between(rng, 0, 3*time.Second))
	case p < 85:
		c.freeze("SIGSTOP keeper", " keeper ", between(rng, 0, 2*time.Second))
	case p < 90:
		c.upgrade()
	default:
		c.terminateDaemon(between(rng, 0, time.Second))
	}
	c.awaitBoth()
}

// pid is that of the daemon or keeper, or 0.
func (n *node) pid(mode string) int {
	for _, pid := range n.pids(mode) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		args := strings.Split(string(b), "\x00")
		if err == nil && len(args) > 2 && args[1] == strings.TrimSpace(mode) {
			return pid
		}
	}
	return 0
}

// until polls; false: it did not happen in time.
func (c *chaos) until(what string, ok func() bool) bool {
	for deadline := time.Now().Add(chaosPatience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return true
		}
	}
	c.fail("HANG: waited %v until %s", chaosPatience, what)
	return false
}

// awaitBoth waits for a daemon that answers and a keeper that holds what it should.
func (c *chaos) awaitBoth() bool {
	return c.until("daemon and keeper are there", func() bool {
		if _, err := c.statusNow(); err != nil {
			return false
		}
		keeper := c.pid(" keeper ")
		return keeper != 0 && len(heldBy(keeper, "anon_inode:[fanotify]", "/dev/fuse")) > 0 && c.handedOver(keeper)
	})
}

// handedOver says that the keeper has every layer that the daemon has.
func (n *node) handedOver(keeper int) bool {
	held := heldBy(keeper, filepath.Join(n.root, "store"))
	daemon := heldBy(n.pid(" daemon "), "anon_inode:[fanotify]")
	if len(daemon) == 0 {
		return true // FUSE: three descriptors, sent in one go
	}
	return len(held) >= len(marked(daemon))
}

// marked are the files that a process's group watches.
func marked(groups []string) map[string]bool {
	marks := map[string]bool{}
	for _, fd := range groups {
		info, _ := os.ReadFile(filepath.Join(filepath.Dir(filepath.Dir(fd)), "fdinfo", filepath.Base(fd)))
		for line := range strings.Lines(string(info)) {
			if strings.HasPrefix(line, "fanotify ino:") {
				marks[line] = true
			}
		}
	}
	return marks
}

// heldBy are a process's descriptors of files with one of the prefixes.
func heldBy(pid int, prefixes ...string) []string {
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	return slices.DeleteFunc(fds, func(fd string) bool {
		to, err := os.Readlink(fd)
		return err != nil || !slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(to, p) })
	})
}

func (c *chaos) killDaemon(action string) {
	if !c.until("there is a daemon", func() bool { return c.pid(" daemon ") != 0 }) {
		return
	}
	if pid := c.pid(" daemon "); pid != 0 && unix.Kill(pid, unix.SIGKILL) == nil {
		c.did(action, pid)
		c.until("the daemon is dead", func() bool { return !alive(pid) })
	}
}

// killKeeper kills the keeper of a daemon that lives, and may be stopped for a while.
func (c *chaos) killKeeper(action string, stopped time.Duration) {
	if !c.awaitBoth() {
		return
	}
	daemon, keeper := c.pid(" daemon "), c.pid(" keeper ")
	if daemon == 0 || keeper == 0 {
		return
	}
	if stopped > 0 && unix.Kill(daemon, unix.SIGSTOP) != nil {
		return
	}
	if unix.Kill(keeper, unix.SIGKILL) == nil {
		c.did(action, keeper)
	}
	if stopped > 0 {
		c.pause(stopped)
		_ = unix.Kill(daemon, unix.SIGCONT)
	}
	c.until("there is another keeper", func() bool { now := c.pid(" keeper "); return now != 0 && now != keeper })
}

// freeze stops a process for a while.
func (c *chaos) freeze(action, mode string, d time.Duration) {
	if pid := c.pid(mode); pid != 0 && unix.Kill(pid, unix.SIGSTOP) == nil {
		c.did(action, d)
		c.pause(d)
		_ = unix.Kill(pid, unix.SIGCONT)
	}
}

// terminateDaemon ends the daemon in good order; the next command starts another one.
func (c *chaos) terminateDaemon(d time.Duration) {
	pid := c.pid(" daemon ")
	if pid == 0 || unix.Kill(pid, unix.SIGTERM) != nil {
		return
	}
	c.did("SIGTERM daemon", pid)
	c.pause(d)
	c.until("a command starts a daemon", func() bool { return c.command1("cache", "ls") == nil })
}

// upgrade hands everything over to a daemon and a keeper of the same program.
func (c *chaos) upgrade() {
	c.did("upgrade")
	if err := c.command1("daemon", "--upgrade"); err != nil {
		c.fail("%v", err)
	}
	c.until("there is one keeper again", func() bool { return len(c.pids(" keeper ")) == 1 })
}

// networkLane does something to the registry, for a while.
func (c *chaos) networkLane(rng *rand.Rand) {
	c.pause(between(rng, 200*time.Millisecond, 2*time.Second))
	d := between(rng, 200*time.Millisecond, 4*time.Second)
	faults := []string{"reset=300KB,every=3", "reset,every=2", "429=1s,every=2", "5xx,every=2", "5xx=502", "wrong-range=512,every=2", "short=1000,every=2",
		"stall=20KB:1s,every=2", "delay=500ms", "429=1s", "no-ranges"}
	spoils := []string{"flip=100", "flip=100,every=3", "wrong-range=lie:512"}
	switch p := rng.IntN(len(faults) + len(spoils) + 4); {
	case p < len(faults):
		c.did("registry: "+faults[p], d)
		c.setFail(faults[p])
		c.pause(d)
		c.setFail()
	case p < len(faults)+len(spoils):
		fault := spoils[p-len(faults)]
		c.did("registry: "+fault, d)
		end := c.spoil(fault)
		c.setFail(fault)
		c.pause(d)
		c.setFail()
		end()
	case p < len(faults)+len(spoils)+2:
		c.did("registry down", d)
		c.gate.set(gateDown)
		c.pause(d)
		c.gate.set(gateUp)
	default:
		c.did("registry does not answer", d)
		c.gate.set(gateHole)
		c.pause(d)
		c.gate.set(gateUp)
	}
}

// mountLane has images mounted anew, mostly such that their layers have to be fetched again.
func (c *chaos) mountLane(rng *rand.Rand) {
	c.pause(between(rng, 0, 3*time.Second))
	switch p := rng.IntN(10); {
	case p < 2:
		slot := c.slots[rng.IntN(len(c.slots))]
		slot.using.Lock()
		defer slot.using.Unlock()
		c.did("mount again")
		c.mount(slot)
	case p < 4:
		slot := c.slots[rng.IntN(len(c.slots))]
		c.did("mount again, under readers")
		slot.changed.Add(1)
		c.mount(slot)
		slot.changed.Add(1)
	case p < 5:
		c.did("cache gc")
		_ = c.command1("cache", "gc") // a daemon that dies meanwhile says so
	case p < 6:
		c.run(rng)
	default:
		c.cold(rng)
	}
}

// cold removes all that is here of an image.
func (c *chaos) cold(rng *rand.Rand) {
	image := c.slots[rng.IntN(len(c.slots))].image
	c.did("fetch anew", image)
	var slots []*chaosSlot
	for _, s := range c.slots {
		if s.image == image {
			s.using.Lock()
			defer s.using.Unlock()
			slots = append(slots, s)
		}
	}
	for _, s := range slots {
		c.unmount(s)
	}
	_ = c.command1("cache", "gc")
	for _, s := range slots {
		c.mount(s)
	}
}

// run has a container read.
func (c *chaos) run(rng *rand.Rand) {
	slot := c.slots[rng.IntN(len(c.slots))]
	const file = "/usr/bin/perl"
	want, err := sumFile(slot.truth + file)
	if err != nil {
		c.fail("truth: %v", err)
		return
	}
	begun, kills := time.Now(), c.kills()
	out, err := c.output(append(c.runArgs("--entrypoint", "sha256sum"), c.addr+"/"+slot.image, file)...)
	killed := c.kills() != kills
	c.did("thaw run", err)
	switch sum, _, _ := strings.Cut(out, " "); {
	case err == nil && sum != want:
		c.fail("WRONG BYTES: thaw run prints %q, want %s", out, want)
	case err != nil && !killed && c.spoiltSince(begun) == "":
		c.fail("ERROR: thaw run: %v", err)
	}
}

// kills is how many processes were killed or ended.
func (c *chaos) kills() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for action, times := range c.actions {
		if !strings.HasPrefix(action, "registry") {
			n += times
		}
	}
	return n
}

// unmount takes away what is mounted in a slot. It is tried until it is gone: a daemon may die meanwhile.
func (c *chaos) unmount(slot *chaosSlot) bool {
	var err error
	ok := c.until("it is unmounted", func() bool {
		err = c.command1("umount", slot.dir)
		return err == nil || strings.Contains(err.Error(), "nothing is mounted") || !c.isMounted(slot)
	})
	if !ok {
		c.fail("umount %s: %v", slot.dir, err)
	}
	return ok
}

func (c *chaos) isMounted(slot *chaosSlot) bool {
	var dir, parent unix.Stat_t
	return unix.Stat(slot.dir, &dir) == nil && unix.Stat(c.base, &parent) == nil && dir.Dev != parent.Dev
}

// mount mounts a slot's image, again if it is.
func (c *chaos) mount(slot *chaosSlot) bool {
	background := []string{"off", "2MB", "20MB"}[int(c.seed+uint64(len(slot.dir)))%3]
	var err error
	ok := c.until("it is mounted", func() bool {
		if c.isMounted(slot) && !c.unmount(slot) {
			return false
		}
		err = c.command1("mount", "--background="+background, c.addr+"/"+slot.image, slot.dir)
		return err == nil
	})
	if !ok {
		c.fail("mount %s: %v", slot.dir, err)
	}
	return ok
}

func (c *chaos) command1(args ...string) error {
	_, err := c.output(args...)
	return err
}

// output runs a command from any goroutine.
func (c *chaos) output(args ...string) (string, error) {
	cmd := c.command(args...)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		return "", err
	}
	timer := time.AfterFunc(2*chaosPatience, func() {
		c.fail("HANG: thaw %s", strings.Join(args, " "))
		_ = cmd.Process.Kill()
	})
	err := cmd.Wait()
	timer.Stop()
	if err != nil {
		return stdout.String(), fmt.Errorf("thaw %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return stdout.String(), nil
}

// idle is the number of descriptors that daemon and keeper have when nothing is mounted.
func (c *chaos) idle() map[string]int {
	if err := c.command1("cache", "gc"); err != nil {
		c.fail("%v", err)
	}
	n := map[string]int{}
	for _, mode := range []string{" daemon ", " keeper "} {
		if pid := c.pid(mode); pid != 0 {
			n[mode] = len(heldBy(pid, ""))
		}
	}
	return n
}

// targets are what descriptors refer to.
func targets(fds []string) (to []string) {
	for _, fd := range fds {
		t, _ := os.Readlink(fd)
		to = append(to, t)
	}
	slices.Sort(to)
	return to
}

// chaosSlack is how many descriptors more than at the beginning are no leak: what the runtime opens once, and calls
// that are ending.
const chaosSlack = 12

// finish unmounts everything and looks for what is left. What newNode looks for is looked for later.
func (c *chaos) finish(before map[string]int) {
	c.setFail()
	c.gate.set(gateUp)
	c.awaitBoth()
	for _, slot := range c.slots {
		c.unmount(slot)
	}
	c.until("what was mounted is forgotten", func() bool { s, err := c.statusNow(); return err == nil && len(s.Mounts) == 0 })
	c.gate.set(gateDown) // idle connections are no leak
	store := filepath.Join(c.root, "store")
	leaked := func() (left []string) {
		for mode, n := range before {
			pid := c.pid(mode)
			for _, fd := range heldBy(pid, store) {
				to, _ := os.Readlink(fd)
				if strings.HasSuffix(to, "/tar") || strings.Contains(to, "deleted") {
					left = append(left, fmt.Sprintf("LEAK:%sholds %s", mode, to))
				}
			}
			if now := len(heldBy(pid, "")); now > n+chaosSlack {
				left = append(left, fmt.Sprintf("LEAK:%shas %d descriptors, %d in the beginning: %v", mode, now, n, targets(heldBy(pid, ""))))
			}
		}
		loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
		for _, loop := range loops {
			if b, _ := os.ReadFile(loop); strings.HasPrefix(string(b), c.base) {
				left = append(left, "LEAK: "+loop)
			}
		}
		return left
	}
	var left []string
	for deadline := time.Now().Add(chaosPatience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if left = leaked(); len(left) == 0 {
			break
		}
	}
	for _, l := range left {
		c.fail("%s", l)
	}
}
