package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/layertar/layertartest"
)

// killable is an image that is pulled, run and removed again and again.
type killable struct{ ref, sum string }

// newKillables are two images with a layer in common and a program that prints a
// file of theirs.
func (c *cluster) newKillables() []killable {
	c.Helper()
	program, err := pauseProgram()
	if err != nil {
		c.Fatal(err)
	}
	layout := c.mkdir()
	shared := new(layertartest.Builder).Entry(layertartest.Header{Type: '0', Name: "pause", Mode: 0o755, Size: int64(len(program))}, program).
		File("data/shared", layertartest.Fill(1, 3_000_000)).End().Bytes()
	var all []killable
	addr := ""
	for i := range 2 {
		text := fmt.Sprintf("image %d %s", i, strings.Repeat("x", 300_000))
		top := new(layertartest.Builder).File("data/text", []byte(text)).End().Bytes()
		name := fmt.Sprint("image", i)
		writeImage(c, layout, name, compressions[0], [][]byte{shared, top})
		all = append(all, killable{"/" + name + ":latest", text})
	}
	addr = newLab(c, layout, "none").Addr()
	for i := range all {
		all[i].ref = addr + all[i].ref
		c.pushIndex(all[i].ref)
	}
	return all
}

// kills are who is killed. With the daemon's keeper what is mounted lazily is lost, and has
// to be made anew.
var kills = []string{"containerd", "thaw", "containerd and thaw", "thaw and its keeper", "containerd, thaw and its keeper"}

// TestContainerdKill kills containerd, thaw, or both at random points of pulls, runs and
// removals. What disagrees afterwards heals when both are back; everything can be
// removed, and the disk has its room back.
func TestContainerdKill(t *testing.T) {
	points := 5
	if os.Getenv("THAW_LONG") != "" {
		points = 50
	}
	c := newCluster(t, "2")
	images := c.newKillables()
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	for point := range points {
		var wg sync.WaitGroup
		stop := make(chan struct{})
		for i, image := range images {
			wg.Go(func() { c.churn(fmt.Sprintf("%d-%d", point, i), image, stop) })
		}
		time.Sleep(time.Duration(r.IntN(1500)) * time.Millisecond) // where it hits is chance
		what := kills[(point+int(seed%uint64(len(kills))))%len(kills)]
		restart := strings.Contains(what, "containerd")
		if restart {
			c.containerd.Process.Kill()
		}
		if strings.Contains(what, "thaw") {
			c.killThaw(strings.Contains(what, "keeper"))
		}
		close(stop)
		wg.Wait()
		if restart {
			<-c.ended
			c.startContainerd()
		}
		c.settled(fmt.Sprintf("seed %d, point %d: %s was killed", seed, point, what))
		for i, image := range images { // all of it works again
			c.pull(image.ref)
			c.runPause(image, fmt.Sprintf("after-%d-%d", point, i))
		}
		if c.Failed() {
			t.Fatalf("seed %d, point %d: %s was killed", seed, point, what)
		}
	}
	if err := c.removeAll(); err != nil {
		t.Fatal(err)
	}
	c.gone()
	c.eventually("the disk has its room back", func() bool {
		st := c.status()
		return st.Cache.DiskBytes-st.Cache.EvictableBytes == 0 && diskBytes(c.root+"/snapshotter/snapshots") < 100_000
	})
}

// churn pulls, runs and removes an image until it is told to stop. Calls fail when
// somebody was killed.
func (c *cluster) churn(name string, image killable, stop <-chan struct{}) {
	for i := 0; ; i++ {
		select {
		case <-stop:
			return
		default:
		}
		id := fmt.Sprintf("churn-%s-%d", name, i)
		c.tryCtr("images", "pull", "--plain-http", "--snapshotter", "thaw", image.ref)
		c.tryCtr("run", "-d", "--snapshotter", "thaw", image.ref, id, "/pause")
		c.tryCtr("tasks", "rm", "-f", id)
		c.tryCtr("containers", "rm", id)
		c.tryCtr("images", "rm", "--sync", image.ref)
	}
}

// runPause runs an image's program, and looks at a file in its root.
func (c *cluster) runPause(image killable, id string) {
	c.Helper()
	c.ctr("run", "-d", "--snapshotter", "thaw", image.ref, id, "/pause")
	pid := ""
	for _, w := range words(c.ctr("tasks", "ls")) {
		if w[0] == id {
			pid = w[1]
		}
	}
	b, err := os.ReadFile("/proc/" + pid + "/root/data/text")
	if err != nil || string(b) != image.sum {
		c.Errorf("container %s has %d bytes, %v", id, len(b), err)
	}
	c.ctr("tasks", "rm", "-f", id)
	c.ctr("containers", "rm", id)
}

// settled waits until containerd, mounts and state agree after a kill. What containerd
// did not come to write down, or failed to remove, it removes in its next garbage
// collection after the removal of any other snapshot.
func (c *cluster) settled(what string) {
	c.Helper()
	deadline := time.Now().Add(patience)
	problems := c.disagreements()
	for len(problems) > 0 && time.Now().Before(deadline) {
		c.collect()
		problems = c.disagreements()
	}
	if len(problems) > 0 {
		c.Errorf("%s; containerd, mounts and state disagree:\n%s", what, strings.Join(problems, "\n"))
	}
}

// TestContainerdRestarts: a running container notices neither a killed containerd nor a
// killed thaw, nor one that is told to end, and what was not here yet comes after.
func TestContainerdRestarts(t *testing.T) {
	c := newCluster(t, "2", `background = "off"`)
	s, ref := c.lazyNginx()
	c.pull(ref)
	c.ctr("run", "-d", "--snapshotter", "thaw", ref, "long", "sleep", "inf")
	read := func(id, dir string) {
		t.Helper()
		before := s.Stats().Kinds["blob"].Bytes
		c.ctr("tasks", "exec", "--exec-id", id, "long", "sh", "-c", "find "+dir+" -xdev -type f -exec cat {} + >/dev/null")
		if s.Stats().Kinds["blob"].Bytes == before {
			t.Errorf("%s was here before", dir)
		}
	}
	read("a", "/usr/share/perl")
	c.killThaw(false)
	read("b", "/usr/lib/x86_64-linux-gnu/perl")
	c.stopContainerd(unix.SIGKILL)
	c.startContainerd()
	read("c", "/usr/lib/x86_64-linux-gnu/gconv")
	c.stopContainerd(unix.SIGKILL)
	c.killThaw(false)
	c.startContainerd()
	read("d", "/var/lib/dpkg/info")
	if out, err := c.tryCtr("tasks", "exec", "--exec-id", "e", "long", "sh", "-c", "echo still here"); err != nil || out != "still here\n" {
		t.Errorf("%q, %v", out, err)
	}
	c.runIn(ref, "another", "true")
}
