package group

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestPending(t *testing.T) {
	p, err := NewPending()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	p.Put(500, 1, 2, 4096, 8192)
	p.Put(501, 1, 2, 0, 1)
	p.Put(502, 1, 3, 0, 1)
	p.Put(503, 1, 3, -1, 1)
	p.Put(0, 1, 3, 0, 1) // in use here
	p.Put(-1, 1, 3, 0, 1)
	p.Put(MaxFiles, 1, 3, 0, 1)
	p.Clear(501)

	dup, err := unix.FcntlInt(uintptr(p.FD()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	next, err := OpenPending(dup)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	want := []Stale{{FD: 500, Dev: 1, Ino: 2, Off: 4096, N: 8192}, {FD: 502, Dev: 1, Ino: 3, N: 1}}
	for try := range 2 * maxTries {
		got := next.Reserve()
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("try %d (-want +got):\n%s", try, diff)
		}
		for _, s := range got {
			if err := unix.Close(int(s.FD)); err != nil {
				t.Errorf("%d is not reserved: %v", s.FD, err)
			}
		}
	}
	next.slots[500].since -= int64(patience) + 1
	got := next.Reserve()
	if diff := cmp.Diff(want[1:], got); diff != "" {
		t.Errorf("one was taken over too often, for too long (-want +got):\n%s", diff)
	}
	for _, s := range got {
		unix.Close(int(s.FD))
	}
}

func TestOpenPendingForeign(t *testing.T) {
	p, err := NewPending()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	dup := func() int {
		fd, err := unix.FcntlInt(uintptr(p.FD()), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	p.mem[8]++
	if _, err := OpenPending(dup()); err == nil {
		t.Error("no error for another version")
	}
	p.mem[8]--
	if err := unix.Ftruncate(p.FD(), int64(pendingTableBytes)+1); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenPending(dup()); err == nil {
		t.Error("no error for another size")
	}
}
