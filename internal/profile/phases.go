package profile

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
)

// ReadLater is the Phase of reads after a start that no first request made.
const ReadLater = "later"

// backlogMs is how long a connection has to have waited to be taken for its server to
// count as not up: longer than anything that merely was not scheduled.
const backlogMs = 20

// boundary ends a start phase: the first of its events that is there.
var boundaries = []struct {
	phase  string // that it ends
	events []string
}{
	{"", []string{EventRequested}},
	{PhaseQueue, []string{EventPullStart}},
	{PhasePull, []string{EventPullEnd}},
	{PhaseRuntimeInit, []string{EventStarted}},
	{PhaseDependencyLoad, []string{EventDepEnd}},
	{PhaseBootstrap, []string{EventListen}}, // or EventAccept, see upEvent
	{PhaseHealthContainer, []string{EventHealthy, EventReady}},
}

// Derive works out from a run's events, waits, reads and requests what follows from
// them, and replaces what there was of it: the events EventDepStart and EventDepEnd,
// if nobody saw them; Phases and TotalMs; of reads and requests their phase and what
// they took; Packages. Events and reads are put in order. What nothing is known of is
// unknown, with the reason.
//
// Nothing in it is random and nothing is measured: the same run gives the same result.
// Waits that are not nil mean that waits were watched, and no waits then means 0. Reads of
// which none has any bytes are names alone: how much was read is not known then.
func Derive(r *Run) {
	r.Events = slices.DeleteFunc(r.Events, func(e Event) bool { return math.IsNaN(e.AtMs) || math.IsInf(e.AtMs, 0) })
	slices.SortStableFunc(r.Reads, func(a, b Read) int { return cmp.Compare(a.AtMs, b.AtMs) })
	d := &deriver{Run: r, blocked: union(r.Waits)}
	d.burst()
	slices.SortStableFunc(r.Events, func(a, b Event) int { return cmp.Compare(a.AtMs, b.AtMs) })
	r.Phases, r.TotalMs, r.Packages = nil, nil, nil
	d.start()
	d.healthLB()
	d.windows()
	d.sums()
	d.firstRequest()
	d.hydration()
	d.packages()
}

type deriver struct {
	*Run
	blocked []span // when somebody waited, without overlaps
}

// span is a time from From to To.
type span struct{ from, to float64 }

// union of the waits' times, by time.
func union(waits []Wait) []span {
	var all []span
	for _, w := range waits {
		if w.EndMs > w.StartMs {
			all = append(all, span{w.StartMs, w.EndMs})
		}
	}
	slices.SortFunc(all, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	var out []span
	for _, s := range all {
		if n := len(out); n > 0 && s.from <= out[n-1].to {
			out[n-1].to = max(out[n-1].to, s.to)
			continue
		}
		out = append(out, s)
	}
	return out
}

// WaitTimes are the times from when to when somebody waited, without overlaps. Of those
// that are nearest to each other one is made as long as there are more than most.
func WaitTimes(waits []Wait, most int) [][2]float64 {
	all := [][2]float64{}
	for _, s := range union(waits) {
		all = append(all, [2]float64{s.from, s.to})
	}
	for gap := 0.1; len(all) > most; gap *= 2 {
		merged := all[:0]
		for _, w := range all {
			if n := len(merged); n > 0 && w[0] <= merged[n-1][1]+gap {
				merged[n-1][1] = w[1]
			} else {
				merged = append(merged, w)
			}
		}
		all = merged
	}
	return all
}

// waited is how long somebody waited between two times.
func (d *deriver) waited(from, to float64) float64 {
	sum := 0.0
	for _, s := range d.blocked {
		sum += max(0, min(s.to, to)-max(s.from, from))
	}
	return micro(sum)
}

// micro rounds milliseconds to microseconds: nothing is known any better.
func micro(ms float64) float64 { return math.Round(ms*1000) / 1000 }

// first returns the first of some events that is there.
func (r *Run) first(names []string) *Event {
	for _, name := range names {
		if e := r.Event(name); e != nil {
			return e
		}
	}
	return nil
}

// upEvent ends bootstrap: listening, or, where connections had to wait for a worker
// while its parent listened, taking the first of them. Where nobody saw it listen it
// did by when it was reached.
func (r *Run) upEvent() *Event {
	listen, accept := r.first([]string{EventListen, EventReached}), r.Event(EventAccept)
	if accept != nil && (listen == nil || accept.WaitedMs > backlogMs && accept.AtMs > listen.AtMs) {
		return accept
	}
	return listen
}

func (r *Run) boundary(i int) *Event {
	if boundaries[i].phase == PhaseBootstrap {
		return r.upEvent()
	}
	return r.first(boundaries[i].events)
}

// start makes the phases that add up to the start. Clocks that disagree by a little
// make none of them overlap another or be less than nothing: a boundary is nowhere
// before the one in front of it, nor after the last.
func (d *deriver) start() {
	last := math.Inf(1)
	if e := d.boundary(len(boundaries) - 1); e != nil {
		last = e.AtMs
	}
	var before *Event
	at := math.Inf(-1)
	for i, b := range boundaries {
		e := d.boundary(i)
		from := at
		if e != nil {
			at = max(at, min(e.AtMs, last))
		}
		if b.phase != "" {
			p := Phase{Name: b.phase, Confidence: Unknown, Reason: missing(b.phase, before, e, i)}
			if before != nil && e != nil {
				p = Phase{Name: b.phase, StartMs: pointer(from), EndMs: pointer(at), Ms: pointer(micro(at - from)), Source: sources(before, e), Confidence: weaker(before.Confidence, e.Confidence)}
				if off := e.AtMs - at; math.Abs(off) > max(e.PrecisionMs, 1) {
					d.Warnings = append(d.Warnings, fmt.Sprintf("%s was seen at %.1f ms, %.1f ms out of order", e.Name, e.AtMs, off))
				}
			}
			d.Phases = append(d.Phases, p)
		}
		before = e
		if i == len(boundaries)-1 && e != nil {
			if asked := d.boundary(0); asked != nil {
				d.TotalMs = pointer(micro(at - min(asked.AtMs, last)))
			}
		}
	}
}

// missing says which event a phase lacks.
func missing(phase string, from, to *Event, i int) string {
	var names []string
	if from == nil {
		names = append(names, boundaries[i-1].events[len(boundaries[i-1].events)-1])
	}
	if to == nil {
		names = append(names, boundaries[i].events[len(boundaries[i].events)-1])
	}
	reason := "nothing says when: " + strings.Join(names, ", ")
	if to == nil && phase == PhaseDependencyLoad {
		reason += " (no opens of what it loads were seen)"
	}
	return reason
}

// sources names where a phase's limits are known from, that of its end first.
func sources(from, to *Event) string {
	if from.Source == to.Source || from.Source == "" {
		return to.Source
	}
	return to.Source + "+" + from.Source
}

// weaker returns the lesser of two confidences.
func weaker(a, b string) string {
	if slices.Index(confidences, a) > slices.Index(confidences, b) {
		return a
	}
	return b
}

func pointer[T any](v T) *T { return &v }

// healthLB is from readiness, as the node knows it, to the load balancer's word.
func (d *deriver) healthLB() {
	from, to := d.boundary(len(boundaries)-1), d.Event(EventLBHealthy)
	p := Phase{Name: PhaseHealthLB, Confidence: Unknown, Reason: "nothing is known of a load balancer"}
	switch {
	case to == nil:
	case from == nil:
		p.Reason = "nothing says when: " + EventReady
	default:
		at := max(from.AtMs, to.AtMs) // it may know before the orchestrator does
		p = Phase{Name: PhaseHealthLB, StartMs: pointer(from.AtMs), EndMs: pointer(at), Ms: pointer(micro(at - from.AtMs)), Source: sources(from, to), Confidence: weaker(from.Confidence, to.Confidence)}
	}
	d.Phases = append(d.Phases, p)
}

// phaseAt is the start phase, or the request, that a time belongs to.
func (d *deriver) phaseAt(at float64) string {
	name, end := "", math.Inf(-1)
	for i := range d.Phases[:min(len(d.Phases), StartPhases)] {
		p := &d.Phases[i]
		if p.Ms == nil {
			continue
		}
		if at >= *p.StartMs && (at < *p.EndMs || at == *p.EndMs && p.Name == PhaseDependencyLoad) { // its last file's open ends it
			return p.Name
		}
		end = max(end, *p.EndMs)
	}
	for i := range d.Requests {
		if q := &d.Requests[i]; q.N == 1 && at >= q.StartMs && at < q.EndMs {
			return PhaseFirstRequest
		}
	}
	if ready := d.boundary(len(boundaries) - 1); ready != nil && at >= ready.AtMs && at >= end {
		name = ReadLater
	}
	return name
}

// windows gives reads their phase, and requests what was read in them.
func (d *deriver) windows() {
	for i := range d.Reads {
		d.Reads[i].Phase = d.phaseAt(d.Reads[i].AtMs)
	}
	for i := range d.Reads { // the next one's time ends this one, within its phase
		one := &d.Reads[i]
		one.TookMs = 0
		end := d.end(one)
		if i+1 < len(d.Reads) {
			end = min(end, d.Reads[i+1].AtMs)
		}
		one.TookMs = micro(max(0, end-one.AtMs))
	}
	for i := range d.Requests {
		q := &d.Requests[i]
		q.Files, q.Bytes = 0, 0
		for _, one := range d.Reads {
			if one.AtMs >= q.StartMs && one.AtMs < q.EndMs {
				q.Files++
				q.Bytes += one.Bytes
			}
		}
		q.WaitMs = d.waited(q.StartMs, q.EndMs)
	}
}

// end is when a read's phase, or its request, ended.
func (d *deriver) end(one *Read) float64 {
	if p := d.Phase(one.Phase); p != nil && p.EndMs != nil {
		return *p.EndMs
	}
	for _, q := range d.Requests {
		if q.N == 1 && one.AtMs >= q.StartMs && one.AtMs < q.EndMs {
			return q.EndMs
		}
	}
	return one.AtMs
}

// sums gives phases their waits, bytes and files.
func (d *deriver) sums() {
	for i := range d.Phases {
		p := &d.Phases[i]
		if p.Ms == nil {
			continue
		}
		if d.Waits != nil {
			p.LazyWaitMs = pointer(min(d.waited(*p.StartMs, *p.EndMs), *p.Ms))
		}
		if len(d.Reads) == 0 {
			continue
		}
		bytes := int64(0)
		p.Files = pointer(0)
		for _, one := range d.Reads {
			if one.Phase == p.Name {
				bytes += one.Bytes
				*p.Files++
			}
		}
		if d.bytesKnown() {
			p.Bytes = pointer(bytes)
		}
	}
}

// bytesKnown reports whether it is known of any file how much of it was read: a program
// that runs was.
func (d *deriver) bytesKnown() bool {
	return slices.ContainsFunc(d.Reads, func(one Read) bool { return one.Bytes > 0 })
}

// steadyFrom is the request of a route from which on it counts as steady.
const steadyFrom = 5

// firstRequest is the worst penalty of a route's first request.
func (d *deriver) firstRequest() {
	p := Phase{Name: PhaseFirstRequest, Confidence: Unknown}
	var names, reasons []string
	byRoute := map[string][]Request{}
	for _, q := range d.Requests {
		if byRoute[q.Route] == nil {
			names = append(names, q.Route)
		}
		byRoute[q.Route] = append(byRoute[q.Route], q)
	}
	for _, name := range names {
		route, reason := penalty(name, byRoute[name])
		if reason != "" {
			reasons = append(reasons, name+": "+reason)
			continue
		}
		p.Routes = append(p.Routes, route)
		if p.Ms == nil || route.PenaltyMs > *p.Ms {
			p.Ms = pointer(route.PenaltyMs)
		}
	}
	p.Reason = strings.Join(reasons, "; ")
	switch {
	case p.Ms != nil:
		p.Source, p.Confidence = SignalProbe, Measured
		d.sumRoutes(&p)
	case p.Reason == "":
		p.Reason = "no requests were made"
	}
	d.Phases = append(d.Phases, p)
}

func (d *deriver) sumRoutes(p *Phase) {
	if d.Waits != nil {
		p.LazyWaitMs = pointer(0.0)
	}
	if len(d.Reads) > 0 {
		p.Files = pointer(0)
	}
	if d.bytesKnown() {
		p.Bytes = pointer(int64(0))
	}
	for _, route := range p.Routes {
		if p.LazyWaitMs != nil {
			*p.LazyWaitMs += route.WaitMs
		}
		if p.Files != nil {
			*p.Files += route.Files
		}
		if p.Bytes != nil {
			*p.Bytes += route.Bytes
		}
	}
}

// penalty compares a route's first request with the median of the steady ones.
func penalty(name string, all []Request) (Route, string) {
	var steady []float64
	var first *Request
	for i := range all {
		q := &all[i]
		switch {
		case q.N == 1:
			first = q
		case q.N >= steadyFrom && q.good():
			steady = append(steady, q.EndMs-q.StartMs)
		}
	}
	switch {
	case first == nil || !first.good():
		return Route{}, "the first request failed"
	case len(steady) == 0:
		return Route{}, fmt.Sprintf("fewer than %d requests went well", steadyFrom)
	}
	r := Route{Route: name, FirstMs: micro(first.EndMs - first.StartMs), SteadyMs: micro(Percentile(steady, 0.5)), Files: first.Files, Bytes: first.Bytes, WaitMs: first.WaitMs}
	r.PenaltyMs = micro(r.FirstMs - r.SteadyMs)
	return r, ""
}

// good reports whether a request was answered, by whatever the application says to it
// but that it cannot.
func (q *Request) good() bool { return q.Error == "" && q.Status < 500 && q.EndMs >= q.StartMs }

// hydration is from the root being there to all of the image being here.
func (d *deriver) hydration() {
	p := Phase{Name: PhaseHydration, Confidence: Unknown, Reason: "the image was not complete when the run ended, or nobody looked"}
	from, to := d.Event(EventPullEnd), d.Event(EventHydrated)
	switch {
	case to == nil:
	case from == nil:
		p.Reason = "nothing says when: " + EventPullEnd
	default:
		at := max(from.AtMs, to.AtMs) // an eager one was complete before
		p = Phase{Name: PhaseHydration, StartMs: pointer(from.AtMs), EndMs: pointer(at), Ms: pointer(micro(at - from.AtMs)), Source: sources(from, to), Confidence: weaker(from.Confidence, to.Confidence)}
		if d.Waits != nil {
			p.LazyWaitMs = pointer(d.waited(from.AtMs, at))
		}
	}
	d.Phases = append(d.Phases, p)
}

// packages adds up what was loaded of each, by phase.
func (d *deriver) packages() {
	type key struct{ name, phase string }
	at := map[key]int{}
	for _, one := range d.Reads {
		k := key{PackageOf(one.Path), one.Phase}
		if k.name == "" || k.phase == "" {
			continue
		}
		i, ok := at[k]
		if !ok {
			i = len(d.Packages)
			at[k] = i
			d.Packages = append(d.Packages, Package{Name: k.name, Phase: k.phase})
		}
		p := &d.Packages[i]
		p.Ms = micro(p.Ms + one.TookMs)
		p.Bytes += one.Bytes
		p.Files++
	}
	slices.SortFunc(d.Packages, func(a, b Package) int {
		return cmp.Or(cmp.Compare(b.Ms, a.Ms), cmp.Compare(b.Bytes, a.Bytes), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Phase, b.Phase))
	})
}
