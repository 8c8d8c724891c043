package hydrate

import "time"

// Want is a range of a layer that readers are expected to want.
type Want struct {
	Layer          *Layer
	Offset, Length int64
}

// wanted is a span in the queue of Prefetch.
type wanted struct {
	layer *Layer
	span  int
}

// Prefetch has the background bring what is wanted, in order, before all else it
// does. It goes on at full speed while readers wait: they are likely to wait for
// it. Layers without a background, and those that are streamed, are left out.
func (s *Scheduler) Prefetch(wants []Want) {
	var queue []wanted
	seen := map[wanted]bool{}
	for _, want := range wants {
		first, end := want.Layer.spanRange(want.Offset, want.Length)
		for i := first; i < end; i++ {
			if w := (wanted{want.Layer, i}); !seen[w] {
				seen[w] = true
				queue = append(queue, w)
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wanted = append(s.wanted, queue...)
	s.wake.Broadcast()
}

// Neighbours has the background of these layers begin with the spans that they
// are in, in that order: who reads a file reads others of its directory, and a tar
// has them side by side. Readers and Prefetch come first.
func (s *Scheduler) Neighbours(wants []Want) {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen := map[wanted]bool{}
	for _, want := range wants {
		l := want.Layer
		first, end := l.spanRange(want.Offset, want.Length)
		for i := first; i < end; i++ {
			if w := (wanted{l, i}); !seen[w] && l.free(i) {
				seen[w] = true
				l.near = append(l.near, i)
			}
		}
	}
	s.wake.Broadcast()
}

// claimNear claims the next run of Neighbours, if there is one. Called with s.mu
// held.
func (l *Layer) claimNear() *run {
	for len(l.near) > 0 {
		i := l.near[0]
		l.near = l.near[1:]
		if !l.free(i) {
			continue
		}
		r, most := newRun(i, i+1), l.upstream.path.runBytes(l.s.runBytes)
		for len(l.near) > 0 && l.near[0] == r.end && l.free(r.end) && l.runSize(i, r.end+1) <= most {
			r.end++
			l.near = l.near[1:]
		}
		l.claimRun(r)
		return r
	}
	return nil
}

// nextWanted claims the next run of the queue, if there is one. Called with s.mu held.
func (s *Scheduler) nextWanted() (*Layer, *run) {
	for len(s.wanted) > 0 && s.full.err == nil {
		l, i := s.wanted[0].layer, s.wanted[0].span
		s.wanted = s.wanted[1:]
		if l.closed || l.concluded || l.finishing || l.streams() || l.c.RateBytes < 0 && !l.hurry.Load() || time.Now().Before(l.retryAt) || !l.free(i) {
			continue
		}
		r := newRun(i, i+1)
		for len(s.wanted) > 0 && s.wanted[0] == (wanted{l, r.end}) && l.free(r.end) && l.runSize(i, r.end+1) <= l.upstream.path.runBytes(s.runBytes) {
			r.end++
			s.wanted = s.wanted[1:]
		}
		r.prefetch = true
		l.claimRun(r)
		return l, r
	}
	return nil, nil
}

// free reports whether span i is to be fetched and nobody does. Called with s.mu
// held.
func (l *Layer) free(i int) bool { return !l.c.Store.Have(i) && l.flights[i] == nil && !l.bad[i] }
