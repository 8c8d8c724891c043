package daemon

import (
	"testing"
	"time"
)

// TestWaitLog: the last waits are remembered, and no more than there is room for.
func TestWaitLog(t *testing.T) {
	var w waitLog
	begin := time.Now()
	at := func(n int) time.Time { return begin.Add(time.Duration(n) * time.Millisecond) }
	const n = maxWaits + 100
	for i := range n {
		w.add(int64(i), 1, at(i), at(i+1))
	}
	all := w.since(time.Time{})
	if len(all) != maxWaits {
		t.Fatalf("%d waits", len(all))
	}
	seen := map[int64]bool{}
	for _, one := range all {
		if one.off < 100 || seen[one.off] {
			t.Fatalf("wait %d", one.off)
		}
		seen[one.off] = true
	}
	if late := w.since(at(n - 2)); len(late) != 2 {
		t.Errorf("%d waits ended after the one before the last two", len(late))
	}
}
