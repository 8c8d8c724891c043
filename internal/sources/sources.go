// Package sources makes records of what others noted about starts.
//
// A [Start] is what is known of one start, as points in time of somebody's clock; from
// it follow a run's events and phases. The packages below read one system's documents
// each: ecs, kubernetes, containerd. What they all know is little: when an image was
// pulled, when a container was started, and perhaps when it was found healthy. What
// lies between, the program's own loading, no orchestrator sees: those phases are
// unknown, with the reason.
//
// The package does no I/O.
package sources

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/thaw-project/thaw/internal/profile"
)

// Point is an event at a time of day.
type Point struct {
	Name       string // of profile's events
	At         time.Time
	Source     string // a signal
	Confidence string // profile.Reported, if empty
	Detail     string
	Precision  time.Duration
}

// Start is what is known of one start.
type Start struct {
	Container string // ID of container, task or pod
	Error     string
	Warnings  []string
	Points    []Point
	// Reasons say of phases why nothing is known of them, or how little.
	Reasons map[string]string
}

// Add notes a point in time, unless there is none.
func (s *Start) Add(p Point) {
	if p.At.IsZero() {
		return
	}
	p.Confidence = cmp.Or(p.Confidence, profile.Reported)
	s.Points = append(s.Points, p)
}

// Because notes why nothing, or not more, is known of a phase.
func (s *Start) Because(phase, reason string) {
	if s.Reasons == nil {
		s.Reasons = map[string]string{}
	}
	s.Reasons[phase] = reason
}

// At returns when an event was, by its first point.
func (s *Start) At(name string) (time.Time, bool) {
	for _, p := range s.Points {
		if p.Name == name {
			return p.At, true
		}
	}
	return time.Time{}, false
}

// begun is when the run begins: with its request, where that is known, else with the
// first thing that is.
func (s *Start) begun() (begun time.Time) {
	if at, ok := s.At(profile.EventRequested); ok {
		return at
	}
	for _, p := range s.Points {
		if begun.IsZero() || p.At.Before(begun) {
			begun = p.At
		}
	}
	return begun
}

// longest is how far from its begin an event may be: more no record takes, and no start
// does, but a container that is healthy again after months says so.
const longest = 100 * 24 * time.Hour

// Run returns the start as a run. Without any point there is none.
func (s *Start) Run() (profile.Run, bool) {
	begun := s.begun()
	if begun.IsZero() {
		return profile.Run{}, false
	}
	r := profile.Run{Begun: begun, Container: s.Container, Error: s.Error, Warnings: slices.Clone(s.Warnings), Events: []profile.Event{}, Phases: []profile.Phase{}}
	seen := map[string]bool{}
	for _, p := range s.Points {
		if seen[p.Name] {
			continue
		}
		seen[p.Name] = true
		if off := p.At.Sub(begun); off.Abs() > longest {
			r.Warnings = append(r.Warnings, fmt.Sprintf("%s (%s) is said to be %.0f days from the start: it is left out", p.Name, p.Source, off.Hours()/24))
			continue
		}
		r.Events = append(r.Events, profile.Event{Name: p.Name, AtMs: ms(p.At.Sub(begun)), Source: p.Source, Confidence: p.Confidence, Detail: p.Detail, PrecisionMs: ms(p.Precision)})
	}
	slices.SortStableFunc(r.Events, func(a, b profile.Event) int {
		return cmp.Or(cmp.Compare(a.AtMs, b.AtMs), cmp.Compare(slices.Index(profile.Events, a.Name), slices.Index(profile.Events, b.Name)))
	})
	s.phases(&r)
	return r, true
}

// bounds are the events between which the phases lie that follow one another.
var bounds = []struct {
	phase    string
	from, to []string // the first that is known counts
}{
	{profile.PhaseQueue, []string{profile.EventRequested}, []string{profile.EventPullStart}},
	{profile.PhasePull, []string{profile.EventPullStart}, []string{profile.EventPullEnd}},
	{profile.PhaseRuntimeInit, []string{profile.EventPullEnd}, []string{profile.EventStarted}},
	{profile.PhaseDependencyLoad, []string{profile.EventStarted}, []string{profile.EventDepEnd}},
	{profile.PhaseBootstrap, []string{profile.EventDepEnd}, []string{profile.EventListen}},
	{profile.PhaseHealthContainer, []string{profile.EventListen, profile.EventDepEnd, profile.EventStarted}, []string{profile.EventHealthy, profile.EventReady}},
	{profile.PhaseHealthLB, []string{profile.EventHealthy, profile.EventReady, profile.EventListen, profile.EventStarted}, []string{profile.EventLBHealthy}},
}

// phases derives the run's phases from its events.
func (s *Start) phases(r *profile.Run) {
	find := func(names []string) *profile.Event {
		for _, name := range names {
			for i := range r.Events {
				if r.Events[i].Name == name {
					return &r.Events[i]
				}
			}
		}
		return nil
	}
	for _, b := range bounds {
		p := profile.Phase{Name: b.phase, Confidence: profile.Unknown, Reason: s.Reasons[b.phase]}
		from, to := find(b.from), find(b.to)
		if b.phase == profile.PhaseHealthLB && from != nil && to != nil && from.AtMs > to.AtMs {
			from = find([]string{profile.EventStarted}) // the load balancer was first
		}
		switch {
		case from == nil || to == nil:
			p.Reason = cmp.Or(p.Reason, missing(b.from, b.to, from, to))
		case from.AtMs > to.AtMs:
			p.Reason = fmt.Sprintf("%s (%s) is said to be %.0f ms before %s (%s): two clocks, or two containers", to.Name, to.Source, from.AtMs-to.AtMs, from.Name, from.Source)
			r.Warnings = append(r.Warnings, b.phase+": "+p.Reason)
		default:
			start, end, took := from.AtMs, to.AtMs, to.AtMs-from.AtMs
			p.StartMs, p.EndMs, p.Ms = &start, &end, &took
			p.Confidence, p.Source = worse(from.Confidence, to.Confidence), joined(from.Source, to.Source)
		}
		r.Phases = append(r.Phases, p)
	}
	if from, to := find([]string{profile.EventRequested}), find([]string{profile.EventHealthy, profile.EventReady}); from != nil && to != nil && to.AtMs >= from.AtMs {
		took := to.AtMs - from.AtMs
		r.TotalMs = &took
	}
}

// missing says which event of a phase is not known.
func missing(from, to []string, f, t *profile.Event) string {
	var names []string
	if f == nil {
		names = append(names, from[len(from)-1])
	}
	if t == nil {
		names = append(names, to[0])
	}
	return "nothing says when: " + strings.Join(names, ", ")
}

// worse returns the lesser of two confidences.
func worse(a, b string) string {
	order := []string{profile.Measured, profile.Reported, profile.Estimated, profile.Computed, profile.Unknown}
	if slices.Index(order, a) > slices.Index(order, b) {
		return a
	}
	return b
}

func joined(a, b string) string {
	if a == b {
		return a
	}
	return a + "+" + b
}

// ms is a duration as records have it, by the microsecond.
func ms(d time.Duration) float64 { return math.Round(float64(d)/1e3) / 1e3 }

// Grouped collects runs of subjects, in the order of their coming.
type Grouped struct {
	order []string
	byKey map[string]*profile.Subject
}

// Subject returns the subject of a key, a new one like like if there is none. Its name
// is made unlike the others'.
func (g *Grouped) Subject(key string, like profile.Subject) *profile.Subject {
	if s := g.byKey[key]; s != nil {
		return s
	}
	if g.byKey == nil {
		g.byKey = map[string]*profile.Subject{}
	}
	base := cmp.Or(like.Name, like.Image, "unnamed")
	like.Name = base
	for n := 2; slices.ContainsFunc(g.order, func(k string) bool { return g.byKey[k].Name == like.Name }); n++ {
		like.Name = fmt.Sprintf("%s #%d", base, n)
	}
	like.Runs = []profile.Run{}
	g.order, g.byKey[key] = append(g.order, key), &like
	return &like
}

// Record returns what was collected, each subject's runs by time. Of more subjects than a
// record has it leaves out those that came last, and warns of it.
func (g *Grouped) Record(source string) *profile.Record {
	r := &profile.Record{Version: profile.Version, Source: source, Subjects: []profile.Subject{}}
	left := 0
	for _, key := range g.order {
		s := g.byKey[key]
		if len(s.Runs) == 0 {
			continue
		}
		if len(r.Subjects) == profile.MaxSubjects {
			left++
			continue
		}
		slices.SortStableFunc(s.Runs, func(a, b profile.Run) int { return a.Begun.Compare(b.Begun) })
		for i := range s.Runs {
			run := &s.Runs[i]
			if r.Begun.IsZero() || run.Begun.Before(r.Begun) {
				r.Begun = run.Begun
			}
			if n := len(run.Events); n > 0 {
				if end := run.Begun.Add(time.Duration(run.Events[n-1].AtMs * 1e6)); end.After(r.Ended) {
					r.Ended = end
				}
			}
		}
		r.Subjects = append(r.Subjects, *s)
	}
	if left > 0 {
		r.Warnings = append(r.Warnings, fmt.Sprintf("starts of %d more are left out: a record has %d at most", left, profile.MaxSubjects))
	}
	return r
}

// Common returns what all of several say of something, or "".
type Common map[string]string

// Note notes a value of one of those. Once two differ the name has none.
func (c Common) Note(name, value string) {
	if had, ok := c[name]; ok && had != value {
		value = ""
	}
	c[name] = value
}

// Labels returns those that all agree on.
func (c Common) Labels() map[string]string {
	labels := map[string]string{}
	for k, v := range c {
		if v != "" {
			labels[k] = v
		}
	}
	return labels
}
