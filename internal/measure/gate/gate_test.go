package gate

import (
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// own is a descriptor of a file that is its own, as an inherited one is. It closes f.
func own(t *testing.T, f *os.File) int {
	t.Helper()
	defer f.Close()
	fd, err := unix.Dup(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// TestGate: both ends say what they have to, and the end of one is seen by the other.
func TestGate(t *testing.T) {
	observer, other, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	run, err := Inherited(own(t, other))
	if err != nil {
		t.Fatal(err)
	}
	at := time.Now().Round(0)
	for _, m := range []Message{{Mounted: &Mounted{ID: "x", Dir: "/d", Bundle: "/b", Config: []byte(`{}`)}}, {Created: &Created{Pid: 7}}} {
		if err := run.Send(m); err != nil {
			t.Fatal(err)
		}
		got, err := observer.Receive()
		if err != nil || m.Mounted != nil && got.Mounted.Dir != "/d" || m.Created != nil && got.Created.Pid != 7 {
			t.Errorf("%+v, %v", got, err)
		}
	}
	if err := observer.Send(Message{Ready: at}); err != nil {
		t.Fatal(err)
	}
	if got, err := run.Receive(); err != nil || !got.Ready.Equal(at) {
		t.Errorf("%+v, %v", got, err)
	}
	if err := observer.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := run.Receive(); !errors.Is(err, ErrGone) {
		t.Errorf("after the end: %v", err)
	}
	if err := run.Close(); err != nil {
		t.Error(err)
	}
}

func TestInheritedNothing(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Inherited(own(t, f)); err == nil {
		t.Error("a file is no gate")
	}
}
