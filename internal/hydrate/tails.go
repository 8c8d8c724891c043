package hydrate

const (
	// aheadMax bounds how many spans a sequential reader is given at once.
	aheadMax = 16
	// tailSlack is how many spans that are here a reader may have read past
	// without our notice and still count as sequential.
	tailSlack = 32
	// maxTails is the number of readers of one layer that are followed.
	maxTails = 8
)

// tail is where a reader who goes on in order comes next.
type tail struct {
	next  int // span after the last one it was given
	ahead int // spans given beyond what it asked for
}

// tails follows the sequential readers of a layer, the last one first.
type tails struct {
	list []tail
	hit  int // index of the tail that ahead found, -1 for none
}

// ahead returns how many spans beyond what it asks for a reader should get whose
// first missing span is first: none at a new place, twice as many each time it
// goes on. here reports whether a span is here or in flight.
func (t *tails) ahead(first int, here func(i int) bool) int {
	t.hit = -1
	for i, x := range t.list {
		if first < x.next || first > x.next+tailSlack {
			continue
		}
		at := x.next
		for at < first && here(at) {
			at++
		}
		if at == first {
			t.hit = i
			return min(max(2*x.ahead, 1), aheadMax)
		}
	}
	return 0
}

// set notes where the reader whom ahead was asked about comes next.
func (t *tails) set(next int) {
	n := tail{next: next}
	if t.hit >= 0 {
		n.ahead = min(max(2*t.list[t.hit].ahead, 1), aheadMax)
		t.list = append(t.list[:t.hit], t.list[t.hit+1:]...)
	} else if len(t.list) == maxTails {
		t.list = t.list[:maxTails-1]
	}
	t.list = append([]tail{n}, t.list...)
}
