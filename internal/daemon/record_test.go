package daemon

import (
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	digest "github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/oci"
	"github.com/thaw-project/thaw/internal/trace"
)

var (
	layerA = &layer{blob: digest.FromString("a")}
	layerB = &layer{blob: digest.FromString("b")}
)

func newRecorder(mounts ...*mounted) *recorder {
	r := &recorder{}
	for _, m := range mounts {
		r.change(m, true)
		if m.recorded() {
			r.recordings.Add(1)
		}
	}
	return r
}

// recorded is a mount that is being recorded, of layers.
func recorded(id string, layers ...*layer) *mounted {
	m := &mounted{layers: layers, cgroup: "/thaw/" + id, img: &image{ref: oci.Reference{}}}
	m.ID, m.Writable, m.Manifest = id, true, digest.FromString("manifest")
	m.recording.Store(&recording{asked: time.Now(), told: make(chan struct{}, 1), over: make(chan struct{})})
	return m
}

func ranges(m *mounted) [][2]int64 {
	var all [][2]int64
	for _, r := range m.recording.Load().reads {
		all = append(all, [2]int64{r.off, r.n})
	}
	return all
}

func TestRecordJoins(t *testing.T) {
	m := recorded("c", layerA, layerB)
	r := newRecorder(m)
	for _, read := range []struct {
		layer  *layer
		off, n int64
	}{
		{layerA, 0, 8192}, {layerA, 4096, 8192}, // overlap
		{layerB, 12288, 4096},  // another layer
		{layerA, 12288, 4096},  // goes on
		{layerA, 4096, 4096},   // again
		{layerA, 40960, 4096},  // elsewhere
		{layerA, 16384, 4096},  // the first one goes on
		{layerA, 36864, 4096},  // backwards is not joined
		{layerB, 16384, 12288}, // the other layer goes on
	} {
		r.seen(read.layer.blob, read.off, read.n, 1)
	}
	if diff := cmp.Diff([][2]int64{{0, 20480}, {12288, 16384}, {40960, 4096}, {36864, 4096}}, ranges(m)); diff != "" {
		t.Error(diff)
	}
	r.seen(digest.FromString("other"), 0, 1, 1)
	for i := range int64(2 * maxReads) {
		r.seen(layerA.blob, 1<<30+i*8192, 4096, 1)
	}
	if n := len(m.recording.Load().reads); n != maxReads {
		t.Errorf("%d reads are kept, want %d", n, maxReads)
	}
}

// A layer that several mounts have: the process says whose read it is.
func TestRecordWhose(t *testing.T) {
	ours, other, plain := recorded("c1", layerA), recorded("c2", layerA), recorded("m", layerA, layerB)
	plain.Writable, plain.cgroup = false, ""
	plain.recording.Store(nil)
	ours.Pid = os.Getpid() // as if we were its thaw run
	r := newRecorder(ours, other, plain)
	child := exec.Command("sleep", "60")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { child.Process.Kill(); child.Wait() }()
	r.seen(layerA.blob, 0, 512, child.Process.Pid)
	r.seen(layerA.blob, 1024, 512, os.Getpid())
	thread := make(chan int)
	go func() {
		runtime.LockOSThread()
		thread <- unix.Gettid()
		<-thread
	}()
	r.seen(layerA.blob, 2048, 512, <-thread)
	thread <- 0
	r.seen(layerA.blob, 3072, 512, 1)     // somebody else
	r.seen(layerA.blob, 4096, 512, 0)     // nobody knows
	r.seen(layerA.blob, 5120, 512, 1<<22) // is not there
	r.seen(layerB.blob, 6144, 512, 1)     // of a layer that nobody records
	if diff := cmp.Diff([][2]int64{{0, 512}, {1024, 512}, {2048, 512}}, ranges(ours)); diff != "" {
		t.Error(diff)
	}
	if got := ranges(other); got != nil {
		t.Errorf("the other container read %v", got)
	}
	// With the others gone it is ours, whoever reads.
	r.change(other, false)
	r.change(plain, false)
	r.seen(layerA.blob, 7168, 512, 1)
	if got := ranges(ours); len(got) != 4 {
		t.Errorf("reads %v", got)
	}
}

func TestInCgroup(t *testing.T) {
	const cgroup = "/thaw/web-1-0123abcd"
	for lines, want := range map[string]bool{
		"0::/thaw/web-1-0123abcd\n":                                   true,
		"0::/thaw/web-1-0123abcd":                                     true,
		"0::/thaw/web-1-0123abcd/below\n":                             true,
		"9:name=systemd:/\n4:memory:/pod/thaw/web-1-0123abcd\n0::/\n": true,
		"0::/thaw/web-1-0123abcde\n":                                  false,
		"0::/thaw/web-10-0123abcd\n":                                  false,
		"0::/\n":                                                      false,
		"":                                                            false,
		"9:name=systemd:/thaw/web-2-0123abcd\n0::/thaw/web-2-0123abcd/": false,
	} {
		if got := inCgroup([]byte(lines), cgroup); got != want {
			t.Errorf("%q: %v", lines, got)
		}
	}
}

func TestProcess(t *testing.T) {
	if pid, parent := process(os.Getpid()); pid != os.Getpid() || parent != os.Getppid() {
		t.Errorf("process %d, parent %d", pid, parent)
	}
	if pid, parent := process(1 << 22); pid != 0 || parent != 0 {
		t.Errorf("of none: process %d, parent %d", pid, parent)
	}
}

// TestRecordDue: when a recording ends.
func TestRecordDue(t *testing.T) {
	for name, test := range map[string]struct {
		ready bool
		read  time.Duration // between reads; 0: none
		times func(now time.Duration) api.Times
		due   time.Duration // 0: never
	}{
		"some time after it was ready": {true, time.Millisecond * 500, func(now time.Duration) api.Times {
			if now < 20*time.Second {
				return api.Times{Created: 1, Started: 1}
			}
			return api.Times{Created: 1, Started: 1, Ready: 20 * time.Second}
		}, 20*time.Second + recordAfter},
		"never when it is not ready":       {true, 0, func(time.Duration) api.Times { return api.Times{Created: 1, Started: 1} }, 0},
		"never when it has not started":    {false, 0, func(time.Duration) api.Times { return api.Times{Created: 1} }, 0},
		"after a quiet time":               {false, 0, func(time.Duration) api.Times { return api.Times{Started: time.Second} }, time.Second + recordQuiet},
		"at last though it is never quiet": {false, time.Second, func(time.Duration) api.Times { return api.Times{Started: time.Second} }, time.Second + recordMost},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := recorded("c", layerA)
				rec := m.recording.Load()
				rec.ready = test.ready
				begun := time.Now()
				for now := time.Duration(0); now < recordMost+recordAfter; now = time.Since(begun) {
					m.tell(test.times(now))
					if test.read > 0 && now%test.read == 0 {
						rec.add(layerA.blob, int64(now), 1)
					}
					if due := rec.due(time.Now()); due != (test.due > 0 && now >= test.due) {
						t.Fatalf("after %v: %v", now, due)
					}
					time.Sleep(100 * time.Millisecond)
				}
			})
		})
	}
}

// TestRecordTrace: what is made of a recording.
func TestRecordTrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := recorded("c", layerA)
		rec := m.recording.Load()
		rec.ready, rec.offset, rec.command = true, time.Second, []string{"sh"}
		m.Committed = []api.Phase{{Name: "mount", End: rec.asked.Add(time.Second)}}
		for i := range int64(10) {
			rec.add(layerA.blob, i*8192, 4096) // every 500 ms, from 1 s on
			time.Sleep(500 * time.Millisecond)
		}
		if rec.trace(m) != nil {
			t.Error("a trace of a start that was not ready")
		}
		rec.add(layerA.blob, 0, 4096) // again
		m.tell(api.Times{Created: 3 * time.Second, Started: 4 * time.Second, Ready: 5 * time.Second})
		got := rec.trace(m)
		var phases []string
		for i, a := range got.Accesses {
			phases = append(phases, a.Phase)
			if a.Offset != int64(i)*8192 || a.At != time.Second+time.Duration(i)*500*time.Millisecond {
				t.Errorf("access %d: %+v", i, a)
			}
		}
		const want = "mount mount create create start start ready ready after after"
		if s := strings.Join(phases, " "); s != want {
			t.Errorf("phases %s, want %s", s, want)
		}
		if got.Image != m.Manifest || got.Ready != 5*time.Second || got.Runs != 1 || got.Command[0] != "sh" || got.Version != trace.Version {
			t.Errorf("trace %+v", got)
		}
	})
}

// BenchmarkSeen is what recording adds to an event.
func BenchmarkSeen(b *testing.B) {
	var idle []*mounted
	for i := range 30 {
		m := recorded(strconv.Itoa(i), layerA)
		m.recording.Store(nil)
		idle = append(idle, m)
	}
	for name, r := range map[string]*recorder{
		"off":        newRecorder(idle...),
		"alone":      newRecorder(recorded("c", layerA)),
		"one of 31":  newRecorder(append([]*mounted{recorded("c", layerA)}, idle...)...),
		"elsewhere":  newRecorder(append([]*mounted{recorded("c", layerB)}, idle...)...),
		"concurrent": newRecorder(recorded("c", layerA)),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			pid := os.Getpid()
			read := func(i int) { r.seen(layerA.blob, int64(i%100_000)*8192, 4096, pid) }
			if name == "concurrent" {
				var mu sync.Mutex
				next := 0
				b.RunParallel(func(pb *testing.PB) {
					mu.Lock()
					next++
					i := next * 1_000_000
					mu.Unlock()
					for ; pb.Next(); i++ {
						read(i)
					}
				})
				return
			}
			for i := 0; b.Loop(); i++ {
				read(i)
			}
		})
	}
	b.Run("look up", func(b *testing.B) {
		for b.Loop() {
			lookUp(idle, os.Getpid())
		}
	})
}
