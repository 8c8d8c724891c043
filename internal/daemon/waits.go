package daemon

import (
	"math"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/thaw-project/thaw/internal/daemon/api"
)

// maxWaits is how many of a layer's waits are remembered, the last ones: some 110 KB, of
// layers for which somebody waited that often.
const maxWaits = api.MaxWaits

// maxWaitPaths is how many files of a wait's range are named.
const maxWaitPaths = 64

// readWait is a time in which a reader of a layer waited for [off, off+n). It is small,
// for many are kept.
type readWait struct {
	off   int64
	begin int64  // ns since 1970
	n     uint32 // at most
	took  uint32 // us, at most
}

func (w *readWait) began() time.Time { return time.Unix(0, w.begin) }

func (w *readWait) ended() time.Time {
	return w.began().Add(time.Duration(w.took) * time.Microsecond)
}

// waitLog remembers a layer's last waits.
type waitLog struct {
	mu   sync.Mutex // guards what follows
	ring []readWait // full: the oldest is at next
	next int
}

func (w *waitLog) add(off, n int64, begin, end time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	one := readWait{off: off, begin: begin.UnixNano(), n: uint32(min(n, math.MaxUint32)), took: uint32(min(max(0, end.Sub(begin).Microseconds()), math.MaxUint32))}
	if len(w.ring) < maxWaits {
		if len(w.ring) == cap(w.ring) { // and no more than that
			w.ring = slices.Grow(w.ring, min(max(16, len(w.ring)), maxWaits-len(w.ring)))
		}
		w.ring = append(w.ring, one)
		return
	}
	w.ring[w.next] = one
	w.next = (w.next + 1) % maxWaits
}

// since returns those that ended after a time.
func (w *waitLog) since(t time.Time) []readWait {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []readWait
	for _, one := range w.ring {
		if one.ended().After(t) {
			all = append(all, one)
		}
	}
	return all
}

// waits lists the waits of a mount's layers, by their begin.
func (d *Daemon) waits(m *mounted) []api.ReadWait {
	all := []api.ReadWait{}
	files := d.filesOf(m.Manifest)
	seen := map[*layer]bool{}
	for _, l := range m.layers {
		if seen[l] {
			continue
		}
		seen[l] = true
		for _, w := range l.waited.since(m.asked) {
			one := api.ReadWait{Start: w.began(), End: w.ended(), Layer: l.blob, Tar: w.off, Bytes: int64(w.n)}
			for _, part := range files.Split(l.blob, w.off, int64(w.n)) {
				if part.Path != "" && len(one.Paths) < maxWaitPaths {
					one.Paths = append(one.Paths, "/"+part.Path)
				}
			}
			all = append(all, one)
		}
	}
	slices.SortStableFunc(all, func(a, b api.ReadWait) int { return a.Start.Compare(b.Start) })
	return all
}

func (d *Daemon) serveWaits(w http.ResponseWriter, r *http.Request) {
	m := d.find(r.PathValue("id"))
	if m == nil {
		writeError(w, api.Errorf(api.CodeNotFound, "", "there is no mount %q", r.PathValue("id")))
		return
	}
	answer(w, d.waits(m), nil)
}
