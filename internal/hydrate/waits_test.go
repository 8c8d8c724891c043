package hydrate

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// TestWaitBuckets: buckets follow each other without a gap, and each wait's stands
// for it to 3 %, below an hour.
func TestWaitBuckets(t *testing.T) {
	last := -1
	for d := time.Duration(0); d < 90*time.Minute; d += 1 + d/200 {
		b := waitBucket(d)
		if b < last || b > last+1 {
			t.Fatalf("bucket of %v is %d, after %d", d, b, last)
		}
		last = b
		off := waitMiddle(b) - d
		if d < time.Hour && (off < -d*33/1000-1024 || off > d*33/1000+1024) {
			t.Errorf("%v is taken for %v", d, waitMiddle(b))
		}
	}
	if last != waitBuckets-1 {
		t.Errorf("the last bucket is %d, want %d", last, waitBuckets-1)
	}
	if waitBucket(1<<62) != waitBuckets-1 || waitBucket(-1) != 0 {
		t.Error("waits past the ends have no bucket")
	}
}

// TestWaitQuantiles compares with what sorting all waits says.
func TestWaitQuantiles(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	var h waitHistogram
	var all []time.Duration
	var total time.Duration
	var before Waits
	for i := range 50_000 {
		d := time.Duration(rnd.ExpFloat64() * float64(20*time.Millisecond))
		h.add(d)
		if i < 20_000 {
			before = h.waits()
			continue
		}
		all, total = append(all, d), total+d
	}
	w := (Waits{}).Plus(h.waits(), before)
	slices.Sort(all)
	if w.Count() != int64(len(all)) || w.Total() != total {
		t.Fatalf("%d waits of %v, want %d of %v", w.Count(), w.Total(), len(all), total)
	}
	for _, q := range []float64{0, .01, .5, .9, .99, .999, 1} {
		want := all[min(int(q*float64(len(all))), len(all)-1)]
		if got := w.Quantile(q); (got - want).Abs() > want/30+2*time.Microsecond {
			t.Errorf("quantile %v is %v, want %v", q, got, want)
		}
	}
	const bound = 50 * time.Millisecond
	want, _ := slices.BinarySearch(all, bound)
	if got := w.UpTo(bound); got < int64(want)*98/100 || got > int64(want)*102/100 {
		t.Errorf("%d waits up to %v, want about %d", got, bound, want)
	}
	if w.UpTo(2*time.Hour) != w.Count() || w.UpTo(0) != 0 {
		t.Error("not all waits are up to an hour, or some to nothing")
	}
}
