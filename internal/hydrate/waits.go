package hydrate

import (
	"math/bits"
	"sync"
	"time"
)

// Waits are counted in buckets whose width is a sixteenth of their octave, so that a
// quantile is off by 3 % at most: 16 buckets below 16 units, then 16 for each power
// of two. A unit is 1.024 µs, and the last bucket begins past an hour.
const (
	waitUnitBits = 10
	waitSubBits  = 4
	waitSub      = 1 << waitSubBits
	waitOctaves  = 29
	waitBuckets  = waitOctaves * waitSub
)

// waitBucket returns the bucket of a wait.
func waitBucket(d time.Duration) int {
	units := uint64(max(d, 0)) >> waitUnitBits
	if units < waitSub {
		return int(units)
	}
	octave := bits.Len64(units) - waitSubBits // 1 and up
	return min(octave*waitSub+int(units>>(octave-1))-waitSub, waitBuckets-1)
}

// waitMiddle returns what stands for the waits of a bucket: the middle of it.
func waitMiddle(bucket int) time.Duration {
	low, width := uint64(bucket), uint64(1)
	if octave := bucket / waitSub; octave > 0 {
		width = 1 << (octave - 1)
		low = uint64(waitSub+bucket%waitSub) * width
	}
	return time.Duration(low<<waitUnitBits + width<<waitUnitBits/2)
}

// waitHistogram counts waits in a fixed size, which a layer has once somebody waited.
type waitHistogram struct {
	buckets *[waitBuckets]uint32 // nil without any
	count   int64
	total   time.Duration
}

func (h *waitHistogram) add(d time.Duration) {
	if h.buckets == nil {
		h.buckets = new([waitBuckets]uint32)
	}
	h.buckets[waitBucket(d)]++
	h.count++
	h.total += d
}

func (h *waitHistogram) waits() Waits {
	w := Waits{count: h.count, total: h.total}
	if h.buckets == nil {
		return w
	}
	for i, n := range h.buckets {
		if n > 0 {
			w.counts = append(w.counts, waitCount{i, int64(n)})
		}
	}
	return w
}

// Waits say how long readers waited up to a moment. They do not change; the zero
// value has none.
type Waits struct {
	counts []waitCount // of buckets that have any, in their order
	count  int64
	total  time.Duration
}

type waitCount struct {
	bucket int
	n      int64
}

// Plus returns the waits of w, and those that another has had since it was before.
func (w Waits) Plus(other, before Waits) Waits {
	var sum [waitBuckets]int64
	for _, c := range w.counts {
		sum[c.bucket] += c.n
	}
	for _, c := range other.counts {
		sum[c.bucket] += c.n
	}
	for _, c := range before.counts {
		sum[c.bucket] -= c.n
	}
	out := Waits{count: w.count + other.count - before.count, total: w.total + other.total - before.total}
	for i, n := range sum {
		if n > 0 {
			out.counts = append(out.counts, waitCount{i, n})
		}
	}
	return out
}

// Count is how many there were, and Total how long all together.
func (w Waits) Count() int64 { return w.count }

// Total is how long all readers waited together; they may have waited at once.
func (w Waits) Total() time.Duration { return w.total }

// Quantile returns the wait that a share q of all were no longer than, to 3 %, and
// 0 without any.
func (w Waits) Quantile(q float64) time.Duration {
	rank := min(int64(q*float64(w.count)), w.count-1)
	for _, c := range w.counts {
		if rank -= c.n; rank < 0 {
			return waitMiddle(c.bucket)
		}
	}
	return 0
}

// UpTo is how many were no longer than d, which is exact to 3 % of d.
func (w Waits) UpTo(d time.Duration) int64 {
	sum := int64(0)
	for _, c := range w.counts {
		if waitMiddle(c.bucket) > d {
			break
		}
		sum += c.n
	}
	return sum
}

// stats counts what layers cost.
type stats struct {
	mu    sync.Mutex // guards all
	waits waitHistogram
	bytes Fetched
}

// Fetched are compressed bytes of layers by who wanted them first.
type Fetched struct {
	Readers    int64 // somebody waited for them
	Background int64
}

// All is the sum.
func (f Fetched) All() int64 { return f.Readers + f.Background }

func (s *stats) wait(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waits.add(d)
}

func (s *stats) fetched(n int64, urgent bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if urgent {
		s.bytes.Readers += n
	} else {
		s.bytes.Background += n
	}
}

// waited notes that a reader of the layer waited.
func (l *Layer) waited(d time.Duration) {
	l.stats.wait(d)
	l.s.stats.wait(d)
}

// fetched notes that compressed bytes of the layer came.
func (l *Layer) fetched(n int64, urgent bool) {
	l.stats.fetched(n, urgent)
	l.s.stats.fetched(n, urgent)
}

// Waits returns how long readers of the layer waited since it was added.
func (l *Layer) Waits() Waits {
	l.stats.mu.Lock()
	defer l.stats.mu.Unlock()
	return l.stats.waits.waits()
}

// FetchedBytes is how many compressed bytes of the layer were fetched.
func (l *Layer) FetchedBytes() int64 {
	l.stats.mu.Lock()
	defer l.stats.mu.Unlock()
	return l.stats.bytes.All()
}

// Waiting is how many readers wait for bytes of the layer.
func (l *Layer) Waiting() int64 { return l.waiting.Load() }

// Stats are those of all layers since the scheduler was made.
type Stats struct {
	Waits   Waits
	Fetched Fetched
	Waiting int64 // readers, now
	Outages int   // sources that give nothing, now
}

// Stats says what all layers cost, those that are closed too.
func (s *Scheduler) Stats() Stats {
	s.stats.mu.Lock()
	out := Stats{Waits: s.stats.waits.waits(), Fetched: s.stats.bytes, Waiting: s.waiting.Load()}
	s.stats.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, up := range s.upstreams {
		if len(up.out) > 0 {
			out.Outages++
		}
	}
	return out
}
