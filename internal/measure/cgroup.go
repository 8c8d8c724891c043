package measure

import (
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
	"time"
)

// cpuUse is what a process's cgroup has used of the CPUs, and for how long its limit
// kept it from more.
func cpuUse(pid int) (used, throttled time.Duration, ok bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return 0, 0, false
	}
	for line := range strings.Lines(string(b)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) < 3 || parts[2] == "/" {
			continue
		}
		at := func(root, file string) string { return path.Join("/sys/fs/cgroup", root, parts[2], file) }
		switch {
		case parts[1] == "":
			for _, root := range []string{"", "unified"} {
				if stat := readStat(at(root, "cpu.stat")); stat["usage_usec"] > 0 {
					return time.Duration(stat["usage_usec"]) * time.Microsecond, time.Duration(stat["throttled_usec"]) * time.Microsecond, true
				}
			}
		case strings.Contains(","+parts[1]+",", ",cpuacct,"):
			b, err := os.ReadFile(at(parts[1], "cpuacct.usage"))
			n, err2 := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
			if err == nil && err2 == nil {
				used, ok = time.Duration(n), true
			}
		case strings.Contains(","+parts[1]+",", ",cpu,"):
			throttled = time.Duration(readStat(at(parts[1], "cpu.stat"))["throttled_time"])
		}
	}
	return used, throttled, ok
}

// readStat reads lines of a name and a number.
func readStat(name string) map[string]int64 {
	out := map[string]int64{}
	b, _ := os.ReadFile(name) // what is not there has none
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 2 {
			out[f[0]], _ = strconv.ParseInt(f[1], 10, 64)
		}
	}
	return out
}
