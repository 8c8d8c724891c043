package hydrate

import "time"

const (
	// aheadMax and aheadBytes bound how many spans a sequential reader is given
	// ahead of where it is, and the compressed bytes that one source is asked for ahead of
	// readers and has not sent: what fills a line of 250 MB/s at 20 ms.
	aheadMax   = 48
	aheadBytes = 12 << 20
	// tailSlack is how many spans that are here a reader may have read past
	// without our notice and still count as sequential.
	tailSlack = 32
	// maxTails is the number of readers of one layer that are followed.
	maxTails = 8
	// streamMemory is for how long the background leaves the network to a
	// sequential reader after it waited last.
	streamMemory = 250 * time.Millisecond
)

// tail is a reader who may be going on in order.
type tail struct {
	at    int       // span that it waited for last
	next  int       // span after the last one it was given
	gone  int       // how many it went on, in order, through what it was given
	ahead int       // how many it is given beyond what it waits for
	when  time.Time // it waited last
}

// streams reports whether the reader has gone on in order long enough to be given
// as much as there may be.
func (t tail) streams() bool { return t.ahead == aheadMax }

// tails follows the sequential readers of a layer, the last one first.
type tails struct{ list []tail }

// follow returns the reader who waits for the spans [first, end): at a new place it
// is given nothing ahead, and more with each span that it goes on. here reports
// whether a span is here or in flight.
func (t *tails) follow(first, end int, now time.Time, here func(i int) bool) *tail {
	i := t.find(first, here)
	if i < 0 {
		i = min(len(t.list), maxTails-1)
		t.list = append(t.list[:i], tail{at: first, next: end})
	} else if x := &t.list[i]; first > x.at {
		x.gone += min(first-x.at, x.ahead+1)
		x.at, x.next, x.ahead = first, max(x.next, end), aheadAfter(x.gone)
	}
	x := t.list[i]
	x.when = now
	copy(t.list[1:], t.list[:i])
	t.list[0] = x
	return &t.list[0]
}

// aheadAfter is how many spans a reader is given ahead that has gone on through some: half
// of their square, for most readers that go on for two or three spans, such as those of a
// library's pages, stop then.
func aheadAfter(gone int) int { return min(max(gone*gone/2, 1), aheadMax) }

// find returns the reader who may wait for span first now: it was given that, or
// all between was here.
func (t *tails) find(first int, here func(i int) bool) int {
	for i, x := range t.list {
		if first < x.at || first > x.next+tailSlack {
			continue
		}
		at := x.next
		for at < first && here(at) {
			at++
		}
		if at >= first {
			return i
		}
	}
	return -1
}
