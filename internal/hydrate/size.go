package hydrate

import "time"

const (
	// latencyShare is how many times longer the bytes of a transfer take than the
	// wait for its first one: requests then cost a ninth of a connection's time.
	latencyShare = 8
	// runLeast is the least compressed size of a transfer.
	runLeast = 512 << 10
	// pathMemory is how much a new measurement counts: an eighth.
	pathMemory = 8
)

// path is what transfers from a source were like of late: their latency, and
// the rate of one connection beside all others.
type path struct {
	latency time.Duration
	rate    float64 // bytes/s
}

// measured takes in a transfer of n bytes: the first after latency, the rest
// within took. Small ones say nothing of the rate.
func (p *path) measured(latency, took time.Duration, n int64) {
	if p.latency == 0 {
		p.latency = latency
	}
	p.latency += (latency - p.latency) / pathMemory
	if n < runLeast/2 || took <= 0 {
		return
	}
	rate := float64(n) / took.Seconds()
	if p.rate == 0 {
		p.rate = rate
	}
	p.rate += (rate - p.rate) / pathMemory
}

// runBytes is how large a transfer should be, most at most: no larger than it
// takes for its latency not to matter, so that a slow network is not held by one
// transfer for long.
func (p *path) runBytes(most int64) int64 {
	if p.rate == 0 {
		return most
	}
	return min(max(int64(latencyShare*p.latency.Seconds()*p.rate), runLeast), most)
}

// measured notes what a transfer of the layer was like.
func (l *Layer) measured(latency, took time.Duration, n int64) {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	l.upstream.path.measured(latency, took, n)
}
