package profile

import (
	"cmp"
	"math"
	"slices"
)

// MedianRun returns the good run whose time to ready is nearest to the median, and its
// number; nil if none has one. Of one run all phases add up, which of medians they do
// not.
func (s *Subject) MedianRun() (*Run, int) {
	total, _ := s.Series(MeasureTotal)
	if len(total.Values) == 0 {
		return nil, 0
	}
	median, best := Percentile(total.Values, 0.5), 0
	for i, v := range total.Values {
		if math.Abs(v-median) < math.Abs(total.Values[best]-median) {
			best = i
		}
	}
	return &s.Runs[total.Runs[best]], total.Runs[best]
}

// Kinds of what takes time.
const (
	KindPackage = "package" // the files of a library: read and run
	KindProcess = "process" // one that ended before the container was ready
	KindWait    = "wait"    // for bytes of a file that were not here
	KindRequest = "request" // the first of a route
)

// Blame is something that took time in a run. They overlap: a package's time has its
// waits in it.
type Blame struct {
	Kind  string  `json:"kind"`
	Name  string  `json:"name"`
	Ms    float64 `json:"ms"`
	AtMs  float64 `json:"at_ms"` // when it began
	Phase string  `json:"phase,omitempty"`
	Bytes int64   `json:"bytes,omitempty"`
	Files int     `json:"files,omitempty"`
	N     int     `json:"n,omitempty"` // waits of the file
}

// Blames returns what took time in a run, the longest first.
func (r *Run) Blames() []Blame {
	var out []Blame
	for _, p := range r.Packages {
		out = append(out, Blame{Kind: KindPackage, Name: p.Name, Ms: p.Ms, Phase: p.Phase, Bytes: p.Bytes, Files: p.Files})
	}
	for _, p := range r.Processes {
		if p.EndMs != nil && (r.TotalMs == nil || *p.EndMs <= *r.TotalMs) {
			out = append(out, Blame{Kind: KindProcess, Name: p.Command, Ms: *p.EndMs - p.StartMs, AtMs: p.StartMs, Phase: r.phaseAt(p.StartMs)})
		}
	}
	waits := map[string]*Blame{}
	for _, w := range r.Waits {
		name := cmp.Or(w.Path, w.Layer, "?")
		b := waits[name]
		if b == nil {
			b = &Blame{Kind: KindWait, Name: name, AtMs: w.StartMs, Phase: r.phaseAt(w.StartMs)}
			waits[name] = b
		}
		b.Ms += w.EndMs - w.StartMs
		b.Bytes += w.Bytes
		b.N++
	}
	for _, b := range waits {
		out = append(out, *b)
	}
	for _, q := range r.Requests {
		if q.N == 1 {
			out = append(out, Blame{Kind: KindRequest, Name: q.Route, Ms: q.EndMs - q.StartMs, AtMs: q.StartMs, Phase: PhaseFirstRequest, Bytes: q.Bytes, Files: q.Files})
		}
	}
	slices.SortFunc(out, func(a, b Blame) int {
		return cmp.Or(cmp.Compare(b.Ms, a.Ms), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Phase, b.Phase))
	})
	return out
}

// phaseAt is the phase of the start that a time is in; empty if none is known to be.
func (r *Run) phaseAt(ms float64) string {
	for _, name := range Phases[:StartPhases] {
		if p := r.Phase(name); p != nil && p.StartMs != nil && p.EndMs != nil && *p.StartMs <= ms && ms < *p.EndMs {
			return name
		}
	}
	return ""
}

// Link is an event that the next one had to wait for.
type Link struct {
	Event      string  `json:"event"`
	AtMs       float64 `json:"at_ms"`
	TookMs     float64 `json:"took_ms"`         // since the link before it
	Phase      string  `json:"phase,omitempty"` // that it ends
	Confidence string  `json:"confidence"`
	// LazyWaitMs is what of the phase was waiting for bytes; Blames what of it took
	// longest.
	LazyWaitMs *float64 `json:"lazy_wait_ms"`
	Blames     []Blame  `json:"blames,omitempty"`
}

// chain are events that hold up the ones after them. When the first file was opened
// (dep_start) holds up nothing.
var chain = []string{EventRequested, EventScheduled, EventPullStart, EventPullEnd, EventCreated, EventStarted, EventDepEnd, EventListen, EventAccept, EventReady}

// chainOf is the chain of a run: of one that nobody saw ready, to healthy, if an
// orchestrator said so.
func chainOf(r *Run) []string {
	if r.Event(EventReady) == nil {
		return append(slices.Clone(chain), EventHealthy)
	}
	return chain
}

// blamed is how many of the longest are named of a link.
const blamed = 3

// CriticalChain returns the events that held up readiness, the last one first: ready, or
// healthy where only that is known, or how far a start came that never was. The times between them add up.
func (r *Run) CriticalChain() []Link {
	var links []Link
	at := math.Inf(1)
	for _, name := range slices.Backward(chainOf(r)) {
		// One that is said to be later than what follows was not waited for.
		if e := r.Event(name); e != nil && e.AtMs <= at {
			links = append(links, Link{Event: name, AtMs: e.AtMs, Confidence: e.Confidence})
			at = e.AtMs
		}
	}
	blames := r.Blames()
	for i := range links {
		l := &links[i]
		if i+1 < len(links) {
			l.TookMs = l.AtMs - links[i+1].AtMs
		}
		p := r.phaseEnding(l.AtMs)
		if p == nil {
			continue
		}
		l.Phase, l.LazyWaitMs = p.Name, p.LazyWaitMs
		for _, b := range blames {
			if b.Phase == p.Name && b.Kind != KindWait && len(l.Blames) < blamed {
				l.Blames = append(l.Blames, b)
			}
		}
	}
	return links
}

// phaseEnding is the phase of the start that ends then and took any time.
func (r *Run) phaseEnding(ms float64) *Phase {
	for _, name := range Phases[:StartPhases] {
		if p := r.Phase(name); p != nil && p.EndMs != nil && p.Ms != nil && *p.Ms > 0 && math.Abs(*p.EndMs-ms) < 0.0005 {
			return p
		}
	}
	return nil
}
