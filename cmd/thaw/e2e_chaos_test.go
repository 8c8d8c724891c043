package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/testenv"
)

// Settings of the chaos test, see docs/reliability.md.
const (
	envChaos     = "THAW_CHAOS"      // how long each mount path is tormented
	envChaosSeed = "THAW_CHAOS_SEED" // of an earlier run, to repeat it
)

const (
	chaosReaders = 18
	// chaosHang is how long a read may take: the grace time, and as long again for the registry.
	chaosHang = 90 * time.Second
)

// TestChaos has many processes read real images while everything that thaw consists of and depends on is killed,
// stopped, cut off and spoilt at random: what they read is right, and it does arrive.
func TestChaos(t *testing.T) {
	lasts := 3 * time.Second
	if s := os.Getenv(envChaos); s != "" {
		d, err := time.ParseDuration(s)
		if err != nil {
			t.Fatalf("%s: %v", envChaos, err)
		}
		lasts = d
	}
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv(envChaosSeed); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("%s: %v", envChaosSeed, err)
		}
	}
	for _, path := range []string{api.ModeFanotify, api.ModeFUSE} {
		t.Run(path, func(t *testing.T) {
			if path == api.ModeFUSE {
				testenv.NeedFUSE(t)
			}
			newChaos(t, path, seed).torment(lasts)
		})
	}
}

// chaos is one run. Its lanes (chaos_lanes) do what is bad, its readers count what comes of it.
type chaos struct {
	*node
	seed    uint64
	begun   time.Time
	gate    *chaosGate
	addr    string
	setFail func(faults ...string)
	slots   []*chaosSlot
	over    chan struct{} // closed when nothing more is to begin

	mu       sync.Mutex // guards what follows
	actions  map[string]int
	reads    chaosAnswer
	ops      map[string]int
	longest  string // what took longest
	spoilt   []chaosWindow
	allowed  map[string]int // errors that are promised, by reason
	failures []string
	events   []string // the last things that were done
}

// chaosSlot is a directory on which an image is mounted most of the time.
type chaosSlot struct {
	image, dir, truth string
	using             sync.RWMutex // read-locked by readers; written by who unmounts with care
	changed           atomic.Int64 // counts the beginnings and ends of unmounting without
}

// chaosWindow is a time in which some errors are allowed.
type chaosWindow struct {
	reason   string
	from, to time.Time // to is zero while it lasts
}

func newChaos(t *testing.T, path string, seed uint64) *chaos {
	testenv.NeedRuntime(t)
	layout, _ := corpus(t, "nginx")
	n := newNode(t, fmt.Sprintf("mount = %q", path), `idle-exit = "0s"`, "[cache]", `max-size = "300MB"`)
	s := newLab(t, layout, "cloud")
	c := &chaos{node: n, seed: seed, gate: newChaosGate(t, s.Addr()), over: make(chan struct{}),
		actions: map[string]int{}, ops: map[string]int{}, allowed: map[string]int{}, setFail: func(faults ...string) { setFaults(t, s, faults...) }}
	c.addr = c.gate.addr
	for _, image := range []string{"nginx", "node"} {
		n.pushIndex(s.Addr() + "/" + image)
		truth := unpackedDir(t, layout, image)
		for range 2 {
			c.slots = append(c.slots, &chaosSlot{image: image, truth: truth, dir: n.mkdir()})
		}
	}
	return c
}

// unpackedDir is an image's files, made once for all tests.
func unpackedDir(t *testing.T, layout, image string) string {
	t.Helper()
	dir := filepath.Join(shared, "files-"+image)
	if _, err := os.Stat(dir); err == nil {
		return dir
	}
	if out, err := exec.Command("umoci", "raw", "unpack", "--image", layout+":"+image, dir).CombinedOutput(); err != nil {
		t.Fatalf("umoci: %v: %s", err, out)
	}
	return dir
}

// torment is the test.
func (c *chaos) torment(lasts time.Duration) {
	c.Logf("seed %d; repeat with %s=%d", c.seed, envChaosSeed, c.seed)
	c.begun = time.Now()
	before := c.idle()
	for _, slot := range c.slots {
		if !c.mount(slot) {
			c.Fatal(strings.Join(c.failures, "\n"))
		}
	}
	var readers, lanes sync.WaitGroup
	for i := range chaosReaders {
		readers.Go(func() { c.readers(i) })
	}
	for i, lane := range []func(*rand.Rand){c.processLane, c.networkLane, c.mountLane} {
		lanes.Go(func() {
			rng := rand.New(rand.NewPCG(c.seed, uint64(i)))
			for c.goesOn() {
				lane(rng)
			}
		})
	}
	timer := time.NewTimer(lasts)
	tick := time.NewTicker(time.Second)
	for done := false; !done; {
		select {
		case <-timer.C:
			done = true
		case <-tick.C:
			done = c.failed()
		}
	}
	tick.Stop()
	close(c.over)
	lanes.Wait()
	readers.Wait()
	c.finish(before)
	c.report()
}

func (c *chaos) goesOn() bool {
	select {
	case <-c.over:
		return false
	default:
		return true
	}
}

// pause waits, or until all is over.
func (c *chaos) pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-c.over:
	}
}

// between is a random time.
func between(rng *rand.Rand, from, to time.Duration) time.Duration {
	return from + time.Duration(rng.Int64N(int64(to-from)))
}

func (c *chaos) did(action string, v ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.actions[action]++
	c.events = append(c.events, fmt.Sprintf("%8.3f %s %s", time.Since(c.begun).Seconds(), action, fmt.Sprint(v...)))
	c.events = c.events[max(0, len(c.events)-60):]
}

func (c *chaos) fail(format string, v ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failures = append(c.failures, fmt.Sprintf("%8.3f ", time.Since(c.begun).Seconds())+fmt.Sprintf(format, v...))
	if len(c.failures) == 1 {
		c.failures = append(c.failures, "what was done before:\n  "+strings.Join(c.events, "\n  "))
	}
}

func (c *chaos) failed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.failures) > 0
}

// readers is one process after the other that reads until all is over.
func (c *chaos) readers(number int) {
	rng := rand.New(rand.NewPCG(c.seed, uint64(100+number)))
	for c.goesOn() {
		r, err := startChaosReader(c.base)
		if err != nil {
			c.fail("start reader: %v", err)
			return
		}
		for range 200 {
			if !c.goesOn() || !c.readOnce(r, rng, chaosKinds[number%len(chaosKinds)]) {
				break
			}
		}
		r.end()
	}
}

// readOnce has a reader do one operation; false: it is not usable any more.
func (c *chaos) readOnce(r *chaosProcess, rng *rand.Rand, kind string) bool {
	slot := c.slots[rng.IntN(len(c.slots))]
	slot.using.RLock()
	defer slot.using.RUnlock()
	changed := slot.changed.Load()
	begun := time.Now()
	a, err := r.ask(chaosOp{Kind: kind, Dir: slot.dir, Truth: slot.truth, Seed: rng.Uint64()}, chaosHang)
	if err != nil {
		c.fail("HANG: %s of %s in %s for %v: %v\n%s", kind, a.Name, slot.dir, time.Since(begun).Round(time.Millisecond), err, r.stack())
		return false
	}
	what := fmt.Sprintf("%s of %s:%s, %.3f to %.3f", kind, slot.image, a.Name, begun.Sub(c.begun).Seconds(), time.Since(c.begun).Seconds())
	if a.Wrong != "" {
		c.fail("WRONG BYTES: %s: %s", what, a.Wrong)
	}
	if a.Err != "" {
		c.judge(what, a.Err, begun, changed%2 == 1 || slot.changed.Load() != changed)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ops[kind]++
	c.reads.Reads += a.Reads
	c.reads.Bytes += a.Bytes
	c.reads.Zeros += a.Zeros
	if a.Longest > c.reads.Longest {
		c.reads.Longest, c.longest = a.Longest, what
	}
	return true
}

// judge decides whether an error was promised.
func (c *chaos) judge(what, err string, begun time.Time, changed bool) {
	reason := ""
	switch {
	case changed:
		reason = "unmounted meanwhile"
	case strings.Contains(err, "input/output error"), strings.HasPrefix(what, "exec "): // a program says it as it likes
		reason = c.spoiltSince(begun)
	}
	if reason == "" {
		c.fail("ERROR: %s: %s", what, err)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.allowed[reason]++
}

// spoil begins a time in which reads may end in EIO, and returns what ends it.
func (c *chaos) spoil(reason string) (end func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.spoilt = append(c.spoilt, chaosWindow{reason: reason, from: time.Now()})
	i := len(c.spoilt) - 1
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.spoilt[i].to = time.Now()
	}
}

// spoiltSince says why a read that began then may have failed, or "".
func (c *chaos) spoiltSince(begun time.Time) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, w := range c.spoilt {
		if w.to.IsZero() || begun.Before(w.to.Add(time.Second)) { // what was under way then may come a moment later
			return w.reason
		}
	}
	return ""
}

// chaosProcess is a reader's process.
type chaosProcess struct {
	cmd     *exec.Cmd
	in      io.WriteCloser
	answers chan chaosAnswer // closed with it
}

func startChaosReader(dir string) (*chaosProcess, error) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args[0] = "chaos-reader"
	cmd.Env = append(os.Environ(), envChaosReader+"=1", "GORACE=atexit_sleep_ms=0")
	cmd.Dir = dir
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	r := &chaosProcess{cmd: cmd, in: in, answers: make(chan chaosAnswer)}
	go func() {
		defer close(r.answers)
		d := json.NewDecoder(bufio.NewReader(out))
		for {
			var a chaosAnswer
			if d.Decode(&a) != nil {
				return
			}
			r.answers <- a
		}
	}()
	return r, nil
}

var errNoAnswer = errors.New("the reader ended")

func (r *chaosProcess) ask(op chaosOp, patience time.Duration) (chaosAnswer, error) {
	if err := json.NewEncoder(r.in).Encode(op); err != nil {
		return chaosAnswer{}, err
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case a, ok := <-r.answers:
		if !ok {
			return a, errNoAnswer
		}
		return a, nil
	case <-timer.C:
		return chaosAnswer{}, os.ErrDeadlineExceeded
	}
}

// stack says where in the kernel the reader's threads are.
func (r *chaosProcess) stack() string {
	var b strings.Builder
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stack", r.cmd.Process.Pid))
	for _, task := range tasks {
		text, _ := os.ReadFile(task)
		b.Write(text)
		b.WriteByte('\n')
	}
	return b.String()
}

func (r *chaosProcess) end() {
	r.in.Close()
	timer := time.AfterFunc(patience, func() { _ = unix.Kill(r.cmd.Process.Pid, unix.SIGKILL) })
	for range r.answers {
	}
	_ = r.cmd.Wait()
	timer.Stop()
}

// report prints what happened, and fails the test if it should not have.
func (c *chaos) report() {
	c.mu.Lock()
	defer c.mu.Unlock()
	var b strings.Builder
	fmt.Fprintf(&b, "chaos for %v, seed %d\n", time.Since(c.begun).Round(time.Second), c.seed)
	fmt.Fprintf(&b, "readers %d, reads %d, MB %d, operations %v\n", chaosReaders, c.reads.Reads, c.reads.Bytes>>20, c.ops)
	names := make([]string, 0, len(c.actions))
	for name := range c.actions {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		fmt.Fprintf(&b, "%6d %s\n", c.actions[name], name)
	}
	fmt.Fprintf(&b, "zeros %d, errors that the promise allows %v\n", c.reads.Zeros, c.allowed)
	fmt.Fprintf(&b, "longest read %v: %s\n", c.reads.Longest.Round(time.Millisecond), c.longest)
	fmt.Fprintf(&b, "failures %d", len(c.failures))
	c.Log(b.String())
	if len(c.failures) > 0 {
		c.Errorf("%s", strings.Join(c.failures[:min(len(c.failures), 12)], "\n"))
	}
	if c.reads.Reads == 0 || c.reads.Bytes == 0 {
		c.Error("nothing was read")
	}
}
