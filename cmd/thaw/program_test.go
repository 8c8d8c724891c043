package main

import (
	"os"
	"regexp"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/thaw-project/thaw/internal/testenv"
)

func TestMappings(t *testing.T) {
	const maps = `00400000-00f17000 r-xp 00000000 fe:00 9978481                            /usr/bin/thaw
01b29000-01bb6000 rw-p 01729000 fe:00 9978481                            /usr/bin/thaw
01bb6000-03b4b000 rw-p 00000000 00:00 0
7f0000000000-7f0000001000 r--s 00000000 fe:00 12                         /usr/bin/thaw.old
7f0000002000-7f0000001000 r--s 00000000 fe:00 12                         /usr/bin/thaw
garbage /usr/bin/thaw
7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0                          [stack]`
	got := mappings([]byte(maps), "/usr/bin/thaw")
	want := []mapping{{begin: 0x400000, end: 0xf17000}, {begin: 0x1b29000, end: 0x1bb6000, writable: true, offset: 0x1729000}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(mapping{})); diff != "" {
		t.Error(diff)
	}
	const gone = "00400000-00f17000 r-xp 00000000 fe:00 9978481 /opt/a program/thaw (deleted)\n" // replaced on disk
	if got := mappings([]byte(gone), "/opt/a program/thaw (deleted)"); len(got) != 1 {
		t.Errorf("found %v", got)
	}
}

// All of the program is locked, and little else.
func TestLockProgram(t *testing.T) {
	testenv.NeedRoot(t) // others may lock a few MiB
	info, err := os.Stat("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	before := lockedBytes(t)
	if err := lockFile("/proc/self/exe"); err != nil {
		t.Fatal(err)
	}
	// What no segment has (debug information) is not.
	if got := lockedBytes(t) - before; got < info.Size()/3 || got > info.Size()+1<<20 {
		t.Errorf("%d bytes are locked of a program of %d", got, info.Size())
	}
}

func lockedBytes(t *testing.T) int64 {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`VmLck:\s*(\d+) kB`).FindSubmatch(b)
	if m == nil {
		t.Fatal("no VmLck")
	}
	kb, err := strconv.ParseInt(string(m[1]), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kb << 10
}
