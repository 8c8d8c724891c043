package daemon

import (
	"testing"
	"time"
	"unsafe"
)

// TestWaitLog: the last waits are remembered, each as it was, in as much memory as the
// constant says.
func TestWaitLog(t *testing.T) {
	var w waitLog
	begin := time.Now()
	for i := range maxWaits + 10 {
		at := begin.Add(time.Duration(i) * time.Second)
		w.add(int64(i), 4096, at, at.Add(1500*time.Microsecond))
	}
	all := w.since(begin)
	if len(all) != maxWaits || cap(w.ring) > maxWaits*5/4 || unsafe.Sizeof(all[0]) != 24 {
		t.Errorf("%d waits of %d bytes, room for %d", len(all), unsafe.Sizeof(all[0]), cap(w.ring))
	}
	after := begin.Add(maxWaits * time.Second)
	all = w.since(after)
	if len(all) != 10 {
		t.Fatalf("%d waits since then, want 10", len(all))
	}
	for _, one := range all {
		want := begin.Add(time.Duration(one.off) * time.Second)
		if one.n != 4096 || !one.began().Equal(want) || one.ended().Sub(want) != 1500*time.Microsecond {
			t.Errorf("wait of %d: %v to %v", one.off, one.began(), one.ended())
		}
	}
}
