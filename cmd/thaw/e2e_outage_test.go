package main

import (
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/lab"
	"github.com/thaw-project/thaw/internal/testenv"
)

// healWithin is the promise: who waits for a registry goes on so long after it is
// back. Machines that run tests are busy, so there is some slack.
const (
	healWithin = 5 * time.Second
	healSlack  = 5 * time.Second
)

// healed reports that what waited for a registry that is back since then has come.
func (n *node) healed(back testenv.Stopwatch) {
	n.Helper()
	over, starved := back.Over(healWithin + healSlack)
	n.Logf("healed after %v, the machine was busy for %v", back.Took(), starved)
	if over {
		n.Errorf("healed after %v, the machine was busy for %v", back.Took(), starved)
	}
}

// link is a connection to a server that can be cut: nobody listens then.
type link struct {
	testing.TB
	to, addr string

	mu       sync.Mutex // guards what follows
	listener net.Listener
	conns    map[net.Conn]bool
	serving  sync.WaitGroup
}

func newLink(t testing.TB, to string) *link {
	t.Helper()
	l := &link{TB: t, to: to, addr: "127.0.0.1:" + freePort(t), conns: map[net.Conn]bool{}}
	l.connect()
	t.Cleanup(l.cut)
	return l
}

func (l *link) connect() {
	l.Helper()
	listener, err := net.Listen("tcp", l.addr)
	if err != nil {
		l.Fatal(err)
	}
	l.mu.Lock()
	l.listener = listener
	l.mu.Unlock()
	l.serving.Go(func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			l.serving.Go(func() { l.pass(c) })
		}
	})
}

func (l *link) pass(c net.Conn) {
	s, err := net.Dial("tcp", l.to)
	if err != nil {
		c.Close()
		return
	}
	l.mu.Lock()
	l.conns[c], l.conns[s] = true, true
	if l.listener == nil {
		c.Close()
		s.Close()
	}
	l.mu.Unlock()
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{c, s}, {s, c}} {
		both.Go(func() {
			io.Copy(way[0], way[1])
			c.Close()
			s.Close()
		})
	}
	both.Wait()
	l.mu.Lock()
	delete(l.conns, c)
	delete(l.conns, s)
	l.mu.Unlock()
}

func (l *link) cut() {
	l.mu.Lock()
	if l.listener != nil {
		l.listener.Close()
		l.listener = nil
	}
	for c := range l.conns {
		c.Close()
	}
	l.mu.Unlock()
	l.serving.Wait()
}

// reread reads a file past the kernel's cache of it.
func reread(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, f)
	return err
}

// TestOutages: whatever a registry does wrong for a while, what is here is read,
// the rest is read when it is over, and no byte is wrong.
func TestOutages(t *testing.T) {
	t.Parallel()
	for _, faults := range []string{
		"reset", "5xx", "5xx=502", "429=0s", "429=1s", "429=8760h", "401", "404", "web-page", "stall", "stall=100KB", "wrong-range",
		"short=100000", "delay=4s",
		"token=1s 401,match=^/token", "token=1s 5xx,match=^/token", "token=1s web-page,match=^/token",
	} {
		t.Run(faults, func(t *testing.T) {
			t.Parallel()
			n := newSmallImage(t)
			n.pushIndex(n.ref)
			if strings.HasPrefix(faults, "token") {
				setFaults(t, n.lab, "token=1s")
			}
			dir := n.mkdir()
			n.thaw("mount", "--background=off", n.ref, dir)
			here := filepath.Join(dir, "data/b") // one of seven
			if err := reread(here); err != nil {
				t.Fatal(err)
			}
			setFaults(t, n.lab, strings.Fields(faults)...)
			if set := time.Now(); strings.HasPrefix(faults, "token") {
				n.eventually("the token has expired", func() bool { return time.Since(set) > time.Second })
			}
			read := make(chan struct{})
			go func() {
				defer close(read)
				n.sameTree(n.want, dir)
			}()
			outage := func() *api.Outage { return n.status().Mounts[0].Stats.Outage }
			if faults != "delay=4s" { // it is no outage
				n.eventually("the outage is seen", func() bool { return outage() != nil })
			}
			for range 100 {
				n.within(patience, func() error { return reread(here) })
			}
			select {
			case <-read:
				if faults != "delay=4s" {
					t.Error("read what did not come")
				}
				return
			default:
			}
			setFaults(t, n.lab)
			back := testenv.Start()
			<-read
			n.healed(back)
			n.eventually("the outage is over", func() bool { o := outage(); return o == nil || !o.Until.IsZero() && o.Error != "" })
			if lines := strings.Count(n.log("daemon.log"), "\n"); lines > 100 {
				t.Errorf("%d lines of log", lines)
			}
		})
	}
}

// TestOutageOfBackground: hydration goes on by itself after an outage.
func TestOutageOfBackground(t *testing.T) {
	t.Parallel()
	n := newSmallImage(t)
	n.pushIndex(n.ref)
	layer := n.manifest.Layers[0].Digest.String()
	setFaults(t, n.lab, "5xx,match=/blobs/"+layer)
	dir := n.mkdir()
	n.thaw("mount", n.ref, dir)
	n.eventually("the outage is seen", func() bool { return n.status().Mounts[0].Stats.Outage != nil })
	if text := n.thaw("daemon", "status"); !strings.Contains(text, "waits since") || !strings.Contains(text, "503") {
		t.Errorf("status prints\n%s", text)
	}
	setFaults(t, n.lab)
	n.eventually("the image is complete", func() bool { return n.status().Mounts[0].Stats.Complete })
	n.eventually("the outage is over", func() bool {
		o := n.status().Mounts[0].Stats.Outage
		return o != nil && !o.Until.IsZero()
	})
	n.sameTree(n.want, dir)
}

// TestOutageOfOneRegistry: 300 readers who wait for a registry that hangs do not
// keep those of another one waiting.
func TestOutageOfOneRegistry(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"fanotify", "fuse"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			if mode == "fuse" {
				testenv.NeedFUSE(t)
			}
			n := newNode(t, fmt.Sprintf("mount = %q", mode))
			layouts := []string{n.mkdir(), n.mkdir()}
			big := manySpans()
			var refs []string
			var labs []*lab.Server
			for i, layout := range layouts {
				layers := big
				if i == 1 {
					layers = layers[:1] // of which the other has another compression: another blob
				}
				writeImage(t, layout, "app", compressions[i], layers)
				s := newLab(t, layout, "none")
				labs, refs = append(labs, s), append(refs, s.Addr()+"/app")
				n.pushIndex(refs[i])
			}
			hangs, healthy := n.mkdir(), n.mkdir()
			n.thaw("mount", "--background=off", refs[0], hangs)
			n.thaw("mount", "--background=off", refs[1], healthy)
			setFaults(t, labs[0], "stall")
			var wg sync.WaitGroup
			for i := range 300 {
				wg.Go(func() {
					f, err := os.Open(filepath.Join(hangs, "data/a"))
					if err == nil {
						unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM)
						_, err = f.ReadAt(make([]byte, 1), int64(i)*17001)
						f.Close()
					}
					if err != nil {
						t.Error(err)
					}
				})
			}
			n.eventually("the outage is seen", func() bool {
				m := n.status().Mounts
				return slices.ContainsFunc(m, func(m api.Mount) bool { return m.Stats.Outage != nil })
			})
			begun := time.Now()
			n.sameTree(n.apply(big[:1]), healthy)
			t.Logf("the other image was read in %v", time.Since(begun))
			setFaults(t, labs[0])
			back := testenv.Start()
			wg.Wait()
			n.healed(back)
			n.sameTree(n.apply(big), hangs)
		})
	}
}

// TestRegistryStoppedAfterReady stops the registry right after a container is
// ready: what it has it goes on serving, the rest it has soon after the
// registry's return.
func TestRegistryStoppedAfterReady(t *testing.T) {
	testenv.NeedRuntime(t)
	t.Parallel()
	layout, want := corpus(t, "nginx")
	n := newNode(t)
	l := newLink(t, newLab(t, layout, "none").Addr())
	ref := l.addr + "/nginx"
	n.pushIndex(ref)
	port := freePort(t)
	url := "http://127.0.0.1:" + port + "/ready"
	dir := n.mkdir()
	n.thaw("mount", "--background=off", ref, dir)
	p := n.launch("-e", "PORT="+port, "--ready", url, "--ready-timeout", "60s", "--background=off", ref)
	get := func() error {
		client := http.Client{Timeout: patience}
		resp, err := client.Get(url)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
			return fmt.Errorf("status %d: %v", resp.StatusCode, err)
		}
		return nil
	}
	n.eventually("the container is ready", func() bool { return get() == nil })
	l.cut()
	read := make(chan struct{})
	go func() {
		defer close(read)
		n.sameImage(want, dir)
	}()
	n.eventually("the outage is seen", func() bool { return n.status().Mounts[0].Stats.Outage != nil })
	for range 200 {
		if err := get(); err != nil {
			t.Error(err)
		}
	}
	// The rest is another half of the image: the first read of it is what waits.
	before := n.status().Mounts[0].Stats.HereBytes
	l.connect()
	back := testenv.Start()
	n.eventually("bytes come again", func() bool { return n.status().Mounts[0].Stats.HereBytes > before })
	n.healed(back)
	<-read
	t.Logf("all of the image was read %v after the return", back.Took())
	n.eventually("the outage is over", func() bool {
		o := n.status().Mounts[0].Stats.Outage
		return o != nil && !o.Until.IsZero()
	})
	p.signal(unix.SIGTERM)
	p.wait()
}

// TestCompleteImageWithoutRegistry starts a complete image by tag and by digest
// with the registry off, also with a daemon that has just started.
func TestCompleteImageWithoutRegistry(t *testing.T) {
	testenv.NeedRuntime(t)
	t.Parallel()
	layout, _ := corpus(t, "nginx")
	n := newNode(t)
	s := newLab(t, layout, "none")
	name := s.Addr() + "/nginx"
	i := slices.IndexFunc(s.Images(), func(i lab.Image) bool { return i.Name == "nginx:latest" })
	if i < 0 {
		t.Fatalf("images %+v", s.Images())
	}
	byDigest := name + "@" + s.Images()[i].Digest.String()
	n.thaw("pull", name)
	n.thaw("pull", byDigest)
	s.Close()
	for range 2 {
		for _, ref := range []string{name, name + ":latest", byDigest} {
			for _, pull := range []string{"missing", "never"} {
				if r := n.run(append([]string{"--pull=" + pull}, shell(ref, "echo here")...)...); r.stdout != "here\n" {
					t.Errorf("%s: %v", pull, r)
				}
			}
		}
		n.stop()
	}
}

// readThrough reads all files of an image lazily, in random order, over a time in
// which its tokens expire many times.
func readThrough(t *testing.T, image string, life, lasts time.Duration) {
	layout, want := corpus(t, image)
	n := newNode(t)
	s := newLab(t, layout, "cloud")
	ref := s.Addr() + "/" + image
	n.pushIndex(ref)
	setFaults(t, s, "token="+life.String())
	s.ResetStats()
	dir := n.mkdir()
	n.thaw("mount", "--background=off", ref, dir)
	var files []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	rand.Shuffle(len(files), func(i, j int) { files[i], files[j] = files[j], files[i] })
	begun := time.Now()
	for i, path := range files {
		time.Sleep(time.Until(begun.Add(lasts * time.Duration(i) / time.Duration(len(files))))) // the pace is the test
		sum, err := sumFile(path)
		if err != nil {
			t.Fatalf("after %v: %v", time.Since(begun), err)
		}
		if name := strings.TrimPrefix(path, dir+"/"); sum != want.facts[name].Sum {
			t.Errorf("%s is wrong", name)
		}
	}
	stats := s.Stats()
	if least := int64(lasts / life); stats.Kinds["token"].Requests < least {
		t.Errorf("%d tokens, at least %d are needed", stats.Kinds["token"].Requests, least)
	}
	m := n.status().Mounts[0].Stats
	t.Logf("%d files in %v, %d tokens, %d requests, outage %+v", len(files), time.Since(begun).Round(time.Second), stats.Kinds["token"].Requests, m.Requests, m.Outage)
}

// TestTokensExpire is the short form of the test below.
func TestTokensExpire(t *testing.T) {
	t.Parallel()
	readThrough(t, "nginx", 1500*time.Millisecond, 6*time.Second)
}

// TestTokensExpireLong reads python-ml over ten minutes with tokens that live a
// minute.
func TestTokensExpireLong(t *testing.T) {
	if os.Getenv("THAW_LONG") == "" {
		t.Skip("THAW_LONG=1 runs it: it takes ten minutes")
	}
	readThrough(t, "python-ml", time.Minute, 10*time.Minute)
}
