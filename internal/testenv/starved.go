package testenv

import (
	"bytes"
	"fmt"
	"os"
	"time"
)

// begun is when this process began, about.
var begun = time.Now()

// Starved returns how long, counted from some fixed moment, there was work on this
// machine that waited for a CPU, for memory or for a disk: by the kernel's account
// (/proc/pressure, and what a hypervisor took). A limit for something that takes a
// moment on an idle machine is to be extended by as much as this has grown, so that
// it is strict where it means something, and does not fail a test on a machine that
// others use. Where the kernel keeps no account, nine tenths of all time count.
func Starved() time.Duration {
	total := time.Duration(0)
	for _, what := range []string{"cpu", "memory", "io"} {
		b, err := os.ReadFile("/proc/pressure/" + what)
		if err != nil {
			return time.Since(begun) / 10 * 9
		}
		var micros int64
		if _, after, ok := bytes.Cut(b, []byte(" total=")); ok {
			fmt.Sscan(string(after), &micros) // 0 of what is not understood
		}
		total += time.Duration(micros) * time.Microsecond
	}
	return total + stolen()
}

// stolen is the time in which a hypervisor ran something else, of all CPUs.
func stolen() time.Duration {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	var name string
	var user, nice, system, idle, iowait, irq, softirq, steal int64
	if _, err := fmt.Sscan(string(b[:min(len(b), 200)]), &name, &user, &nice, &system, &idle, &iowait, &irq, &softirq, &steal); err != nil {
		return 0
	}
	const tick = 10 * time.Millisecond // USER_HZ
	return time.Duration(steal) * tick
}

// Stopwatch measures time against a limit.
type Stopwatch struct {
	begun   time.Time
	starved time.Duration
}

// Start begins to measure.
func Start() Stopwatch { return Stopwatch{time.Now(), Starved()} }

// Took is the time since then.
func (s Stopwatch) Took() time.Duration { return time.Since(s.begun) }

// Over reports whether more time than the limit has passed since then, that in
// which the machine was [Starved] not counted, and how much that was.
func (s Stopwatch) Over(limit time.Duration) (over bool, starved time.Duration) {
	starved = Starved() - s.starved
	return s.Took() > limit+starved, starved
}
