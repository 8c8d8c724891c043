// Package clock is the kernel's monotonic clock, which its own timestamps are by.
//
// A Go program's times have a monotonic part too, but it does not show, and other
// processes' times do not have it: those are turned by the distance of the two
// clocks at the moment.
package clock

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Now is the time since some moment before the machine's boot was over.
func Now() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0 // it is there on every Linux
	}
	return time.Duration(ts.Nano())
}

// Of turns a time of this machine's wall clock, which nobody has set since.
func Of(t time.Time) time.Duration {
	before := Now()
	wall := time.Now().Round(0)
	after := Now()
	return (before+after)/2 - wall.Sub(t.Round(0))
}

// Started is when a process was started, in ticks since boot; 0 if there is none. With
// its number it names a process that does not come again.
func Started(pid int) uint64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	at := bytes.LastIndexByte(b, ')')
	if err != nil || at < 0 {
		return 0
	}
	const field = 19 // of those behind the name
	fields := strings.Fields(string(b[at+1:]))
	if len(fields) <= field {
		return 0
	}
	n, _ := strconv.ParseUint(fields[field], 10, 64) // the kernel's
	return n
}
