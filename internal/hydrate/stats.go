package hydrate

import (
	"slices"
	"sync"
	"time"
)

// maxWaits bounds the waits that a layer remembers.
const maxWaits = 1 << 16

// stats counts what a layer cost.
type stats struct {
	mu           sync.Mutex // guards all
	waits        []waited
	fetchedBytes int64
}

type waited struct {
	at   time.Time
	took time.Duration
}

func (s *stats) wait(at time.Time, d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.waits) < maxWaits {
		s.waits = append(s.waits, waited{at, d})
	}
}

func (s *stats) fetched(n int64) {
	s.mu.Lock()
	s.fetchedBytes += n
	s.mu.Unlock()
}

// Stats sums what layers cost their readers.
type Stats struct {
	FetchedBytes int64         `json:"fetchedBytes"` // compressed, of layers, since they were added
	Waits        int           `json:"waits"`        // reads that waited for bytes
	WaitP50      time.Duration `json:"waitP50"`
	WaitP99      time.Duration `json:"waitP99"`
	WaitTotal    time.Duration `json:"waitTotal"` // of all readers; they may wait at once
}

// Since sums the waits that began at or after t over layers, and the bytes
// fetched in all.
func Since(t time.Time, layers ...*Layer) Stats {
	var sum Stats
	var all []time.Duration
	for _, l := range layers {
		l.stats.mu.Lock()
		sum.FetchedBytes += l.stats.fetchedBytes
		for _, w := range l.stats.waits {
			if !w.at.Before(t) {
				all = append(all, w.took)
				sum.WaitTotal += w.took
			}
		}
		l.stats.mu.Unlock()
	}
	slices.Sort(all)
	if sum.Waits = len(all); sum.Waits > 0 {
		sum.WaitP50, sum.WaitP99 = all[len(all)/2], all[len(all)*99/100]
	}
	return sum
}
