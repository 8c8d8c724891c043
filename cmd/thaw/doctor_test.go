package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestSlowMoves(t *testing.T) {
	cases := []struct {
		name, mountinfo string
		slow            bool
	}{
		{"version 2", "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n", true},
		{"version 2, favoured", "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate,favordynmods\n", false},
		{"version 1", "31 30 0:27 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n", true},
		{"none", "22 1 254:0 / / rw - ext4 /dev/cgroup rw\n", false},
	}
	for _, c := range cases {
		path := filepath.Join(t.TempDir(), "mountinfo")
		if err := os.WriteFile(path, []byte(c.mountinfo), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := slowMoves(path); (got != "") != c.slow {
			t.Errorf("%s: %q", c.name, got)
		}
	}
	if got := slowMoves(filepath.Join(t.TempDir(), "none")); got != "" {
		t.Errorf("no file: %q", got)
	}
}
