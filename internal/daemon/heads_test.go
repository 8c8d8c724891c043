package daemon

import (
	"runtime"
	"testing"
	"time"
)

func TestHeadsAreShared(t *testing.T) {
	_, _, first := someImage(t, "first")
	_, _, second := someImage(t, "second")
	h := new(heads)
	a, err := h.decode(first)
	if err != nil {
		t.Fatal(err)
	}
	again, err := h.decode(append([]byte{}, first...))
	if err != nil || again != a {
		t.Errorf("another head for the same bytes, %v", err)
	}
	if b, err := h.decode(second); err != nil || b == a {
		t.Errorf("the same head for other bytes, %v", err)
	}
	if _, err := h.decode([]byte("no head")); err == nil {
		t.Error("decoded what is none")
	}
	runtime.KeepAlive(a)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		runtime.GC()
		h.mu.Lock()
		left := len(h.all)
		h.mu.Unlock()
		if left == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d heads are kept that nobody has", left)
		}
	}
}
