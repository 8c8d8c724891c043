package profile

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Units of measures.
const (
	UnitMs    = "ms"
	UnitBytes = "bytes"
	UnitCount = ""
	UnitTimes = "x" // a ratio
)

// Names of measures beside those of phases.
const (
	MeasureTotal        = "cold_start"       // Run.TotalMs
	MeasureLazyWait     = "lazy_wait"        // of all phases of the start together
	MeasureFirstRatio   = "first_request"    // the first request over later ones, of the worst route
	MeasureNetworkBytes = "network_bytes"    // Cost.NetworkBytes
	MeasureNeededBytes  = "needed_bytes"     // Cost.NeededBytes
	MeasureRequests     = "requests"         // Cost.Requests
	MeasureCPU          = "cpu"              // Cost.CPUMs
	MeasureImageBytes   = "image_compressed" // Subject.ImageBytes, of each run the same
)

// Measures lists what [Subject.Series] knows: the whole, each phase, and the rest.
func Measures() []string {
	return slices.Concat([]string{MeasureTotal}, Phases,
		[]string{MeasureLazyWait, MeasureFirstRatio, MeasureNetworkBytes, MeasureNeededBytes, MeasureRequests, MeasureCPU, MeasureImageBytes})
}

// Series is a measure of each run of a subject that did not fail.
type Series struct {
	Name    string
	Unit    string
	Values  []float64 // of the runs in which it is known, in their order
	Runs    []int     // the numbers of these runs, from 0
	Unknown []Reason  // why it is not known of others, the most frequent first
}

// Reason is why something is not known, and of how many runs.
type Reason struct {
	Reason string `json:"reason"`
	N      int    `json:"n"`
}

// NUnknown is of how many runs it is not known.
func (s *Series) NUnknown() int {
	n := 0
	for _, r := range s.Unknown {
		n += r.N
	}
	return n
}

// Good reports whether a run went through.
func (r *Run) Good() bool { return r.Error == "" }

// Phase returns a phase of the run by its name; nil if it has no word on it.
func (r *Run) Phase(name string) *Phase {
	for i := range r.Phases {
		if r.Phases[i].Name == name {
			return &r.Phases[i]
		}
	}
	return nil
}

// Event returns an event of the run by its name; nil if it was not seen.
func (r *Run) Event(name string) *Event {
	for i := range r.Events {
		if r.Events[i].Name == name {
			return &r.Events[i]
		}
	}
	return nil
}

// Subject returns a subject of the record by its name; nil if there is none.
func (r *Record) Subject(name string) *Subject {
	for i := range r.Subjects {
		if r.Subjects[i].Name == name {
			return &r.Subjects[i]
		}
	}
	return nil
}

// reasons for what is not known.
const (
	reasonNotReady = "not ready, or not known when"
	reasonNoWord   = "no evidence"
	reasonNoCost   = "not counted"
)

// Series returns a measure of the subject by its name, which is a phase's or one of the
// Measure constants. False of other names.
func (s *Subject) Series(name string) (Series, bool) {
	if slices.Contains(Phases, name) {
		return s.series(name, UnitMs, func(r *Run) (float64, string) {
			return known(r.Phase(name), func(p *Phase) *float64 { return p.Ms })
		}), true
	}
	cost := func(f func(c *Cost) (float64, bool)) func(r *Run) (float64, string) {
		return func(r *Run) (float64, string) {
			if r.Cost != nil {
				if v, ok := f(r.Cost); ok {
					return v, ""
				}
			}
			return 0, reasonNoCost
		}
	}
	switch name {
	case MeasureTotal:
		return s.series(name, UnitMs, func(r *Run) (float64, string) {
			if r.TotalMs == nil {
				return 0, reasonNotReady
			}
			return *r.TotalMs, ""
		}), true
	case MeasureLazyWait:
		return s.series(name, UnitMs, lazyWait), true
	case MeasureFirstRatio:
		return s.series(name, UnitTimes, firstRatio), true
	case MeasureNetworkBytes:
		return s.series(name, UnitBytes, cost(func(c *Cost) (float64, bool) { return float64(c.NetworkBytes), true })), true
	case MeasureRequests:
		return s.series(name, UnitCount, cost(func(c *Cost) (float64, bool) { return float64(c.Requests), true })), true
	case MeasureNeededBytes:
		return s.series(name, UnitBytes, cost(func(c *Cost) (float64, bool) { return float64(c.NeededBytes), c.NeededBytes > 0 })), true
	case MeasureCPU:
		return s.series(name, UnitMs, cost(func(c *Cost) (float64, bool) { return float64(c.CPUMs), c.CPUMs > 0 })), true
	case MeasureImageBytes:
		return s.series(name, UnitBytes, func(*Run) (float64, string) {
			if s.ImageBytes == 0 {
				return 0, reasonNoWord
			}
			return float64(s.ImageBytes), ""
		}), true
	}
	return Series{}, false
}

// series gathers what f says of each good run: a value, or why there is none.
func (s *Subject) series(name, unit string, f func(r *Run) (float64, string)) Series {
	out := Series{Name: name, Unit: unit}
	unknown := map[string]int{}
	for i := range s.Runs {
		r := &s.Runs[i]
		if !r.Good() {
			continue
		}
		v, why := f(r)
		if why != "" {
			unknown[why]++
			continue
		}
		out.Values, out.Runs = append(out.Values, v), append(out.Runs, i)
	}
	for reason, n := range unknown {
		out.Unknown = append(out.Unknown, Reason{reason, n})
	}
	slices.SortFunc(out.Unknown, func(a, b Reason) int { return cmp.Or(b.N-a.N, strings.Compare(a.Reason, b.Reason)) })
	return out
}

func known(p *Phase, f func(p *Phase) *float64) (float64, string) {
	if p == nil {
		return 0, reasonNoWord
	}
	if v := f(p); v != nil {
		return *v, ""
	}
	return 0, cmp.Or(p.Reason, reasonNoWord)
}

// lazyWait adds up the waits of the phases of the start.
func lazyWait(r *Run) (float64, string) {
	sum, some := 0., false
	for _, name := range Phases[:StartPhases] {
		if p := r.Phase(name); p != nil && p.LazyWaitMs != nil {
			sum, some = sum+*p.LazyWaitMs, true
		}
	}
	if !some {
		return 0, reasonNoWord
	}
	return sum, ""
}

// firstRatio is by how much the first request takes longer than later ones, on the route
// where that is the most.
func firstRatio(r *Run) (float64, string) {
	p := r.Phase(PhaseFirstRequest)
	if p == nil {
		return 0, reasonNoWord
	}
	worst := 0.
	for _, route := range p.Routes {
		if r := ratio(route.FirstMs, route.SteadyMs); r != nil {
			worst = max(worst, *r)
		}
	}
	if worst == 0 {
		return 0, cmp.Or(p.Reason, reasonNoWord)
	}
	return worst, ""
}

// Summary is a subject in numbers: of the runs that did not fail.
type Summary struct {
	Subject string `json:"subject"`
	Image   string `json:"image"`
	Mode    string `json:"mode,omitempty"`
	Cold    string `json:"cold,omitempty"`
	Runs    int    `json:"runs"`     // all
	Failed  int    `json:"failed"`   // of them
	NotCold int    `json:"not_cold"` // whose coldness was not proven, of those that did not fail
	// TotalMs is from requested to ready, and LazyWaitMs what of it was waiting for bytes.
	TotalMs      Stats          `json:"total_ms"`
	LazyWaitMs   Stats          `json:"lazy_wait_ms"`
	Phases       []PhaseSummary `json:"phases"` // all of Phases, in their order
	Routes       []RouteSummary `json:"routes,omitempty"`
	NetworkBytes Stats          `json:"network_bytes"`
	NeededBytes  Stats          `json:"needed_bytes"`
	Requests     Stats          `json:"requests"`
}

// PhaseSummary is a phase of all runs of a subject. Statistics with N 0 say nothing.
type PhaseSummary struct {
	Name    string   `json:"name"`
	Ms      Stats    `json:"ms"`
	Unknown []Reason `json:"unknown,omitempty"`
	// Share is the median's share of the sum of the medians of the phases of the start; nil
	// of the others.
	Share      *float64 `json:"share"`
	StartMs    Stats    `json:"start_ms"` // when it begins
	LazyWaitMs Stats    `json:"lazy_wait_ms"`
	CPUMs      Stats    `json:"cpu_ms"`
	Bytes      Stats    `json:"bytes"`
	Files      Stats    `json:"files"`
	Sources    []string `json:"sources,omitempty"`
	Confidence string   `json:"confidence"` // the least of all runs in which it is known
}

// RouteSummary is the first requests of a route.
type RouteSummary struct {
	Route     string `json:"route"`
	FirstMs   Stats  `json:"first_ms"`
	SteadyMs  Stats  `json:"steady_ms"`
	PenaltyMs Stats  `json:"penalty_ms"`
	Ratio     Stats  `json:"ratio"` // first over steady
	Files     Stats  `json:"files"`
	Bytes     Stats  `json:"bytes"`
	WaitMs    Stats  `json:"wait_ms"`
}

// Summarize computes the numbers of a subject.
func (s *Subject) Summarize() Summary {
	out := Summary{Subject: s.Name, Image: s.Image, Mode: s.Mode, Cold: s.Cold, Runs: len(s.Runs)}
	for i := range s.Runs {
		r := &s.Runs[i]
		switch {
		case !r.Good():
			out.Failed++
		case r.Coldness == nil || !r.Coldness.Proven:
			out.NotCold++
		}
	}
	stats := func(name string) Stats {
		series, _ := s.Series(name)
		return Summarize(series.Values)
	}
	out.TotalMs, out.LazyWaitMs = stats(MeasureTotal), stats(MeasureLazyWait)
	out.NetworkBytes, out.NeededBytes, out.Requests = stats(MeasureNetworkBytes), stats(MeasureNeededBytes), stats(MeasureRequests)
	sum := 0.
	for i, name := range Phases {
		p := s.summarizePhase(name)
		if i < StartPhases {
			sum += p.Ms.P50
		}
		out.Phases = append(out.Phases, p)
	}
	for i := range out.Phases[:StartPhases] {
		if p := &out.Phases[i]; p.Ms.N > 0 && sum > 0 {
			share := p.Ms.P50 / sum
			p.Share = &share
		}
	}
	out.Routes = s.summarizeRoutes()
	return out
}

// Phase returns a phase of the summary; nil of a name that is none.
func (s *Summary) Phase(name string) *PhaseSummary {
	for i := range s.Phases {
		if s.Phases[i].Name == name {
			return &s.Phases[i]
		}
	}
	return nil
}

func (s *Subject) summarizePhase(name string) PhaseSummary {
	series, _ := s.Series(name)
	out := PhaseSummary{Name: name, Ms: Summarize(series.Values), Unknown: series.Unknown, Confidence: Unknown}
	part := func(f func(p *Phase) *float64) Stats {
		series := s.series(name, "", func(r *Run) (float64, string) { return known(r.Phase(name), f) })
		return Summarize(series.Values)
	}
	out.StartMs = part(func(p *Phase) *float64 { return p.StartMs })
	out.LazyWaitMs = part(func(p *Phase) *float64 { return p.LazyWaitMs })
	out.CPUMs = part(func(p *Phase) *float64 { return p.CPUMs })
	out.Bytes = part(func(p *Phase) *float64 { return float(p.Bytes) })
	out.Files = part(func(p *Phase) *float64 { return float(p.Files) })
	for _, i := range series.Runs {
		p := s.Runs[i].Phase(name)
		if p.Source != "" && !slices.Contains(out.Sources, p.Source) {
			out.Sources = append(out.Sources, p.Source)
		}
		if out.Confidence == Unknown || slices.Index(confidences, p.Confidence) > slices.Index(confidences, out.Confidence) {
			out.Confidence = p.Confidence
		}
	}
	slices.Sort(out.Sources)
	return out
}

// confidences, the best first.
var confidences = []string{Measured, Reported, Estimated, Computed, Unknown}

func float[T int | int64](p *T) *float64 {
	if p == nil {
		return nil
	}
	f := float64(*p)
	return &f
}

// summarizeRoutes gathers the first requests by route, in the order in which they come
// up first.
func (s *Subject) summarizeRoutes() []RouteSummary {
	var order []string
	all := map[string][]Route{}
	for i := range s.Runs {
		p := s.Runs[i].Phase(PhaseFirstRequest)
		if p == nil || !s.Runs[i].Good() {
			continue
		}
		for _, r := range p.Routes {
			if _, ok := all[r.Route]; !ok {
				order = append(order, r.Route)
			}
			all[r.Route] = append(all[r.Route], r)
		}
	}
	var out []RouteSummary
	for _, name := range order {
		of := func(f func(r *Route) float64) Stats {
			var values []float64
			for i := range all[name] {
				values = append(values, f(&all[name][i]))
			}
			return Summarize(values)
		}
		var ratios []float64
		for _, r := range all[name] {
			if r := ratio(r.FirstMs, r.SteadyMs); r != nil {
				ratios = append(ratios, *r)
			}
		}
		out = append(out, RouteSummary{Route: name, Ratio: Summarize(ratios),
			FirstMs: of(func(r *Route) float64 { return r.FirstMs }), SteadyMs: of(func(r *Route) float64 { return r.SteadyMs }),
			PenaltyMs: of(func(r *Route) float64 { return r.PenaltyMs }), WaitMs: of(func(r *Route) float64 { return r.WaitMs }),
			Files: of(func(r *Route) float64 { return float64(r.Files) }), Bytes: of(func(r *Route) float64 { return float64(r.Bytes) })})
	}
	return out
}

// SubjectComparison is of a subject with another one, measure by measure.
type SubjectComparison struct {
	A        string              `json:"a"`
	B        string              `json:"b"`
	Measures []MeasureComparison `json:"measures"`
}

// MeasureComparison is of one measure.
type MeasureComparison struct {
	Name string `json:"name"`
	Unit string `json:"unit"`
	Comparison
}

// Measure returns one of them; nil of a name that is not there.
func (c *SubjectComparison) Measure(name string) *MeasureComparison {
	for i := range c.Measures {
		if c.Measures[i].Name == name {
			return &c.Measures[i]
		}
	}
	return nil
}

// CompareSubjects compares b with a: all measures of runs of which something is known
// of either.
func CompareSubjects(a, b *Subject) SubjectComparison {
	out := SubjectComparison{A: a.Name, B: b.Name}
	for _, name := range Measures() {
		sa, _ := a.Series(name)
		sb, _ := b.Series(name)
		if name == MeasureImageBytes || len(sa.Values)+len(sb.Values) == 0 {
			continue
		}
		out.Measures = append(out.Measures, MeasureComparison{name, sa.Unit, Compare(sa.Values, sb.Values)})
	}
	return out
}

// Unlike says what else differs between two subjects of records, so that a difference of
// their times may come of it.
func Unlike(ra, rb *Record, a, b *Subject) []string {
	var out []string
	differ := func(what, x, y string) {
		if x != y && x != "" && y != "" {
			out = append(out, fmt.Sprintf("%s differ: %s and %s", what, x, y))
		}
	}
	if ra != rb {
		differ("kernels", ra.Machine.Kernel, rb.Machine.Kernel)
		differ("CPUs", count(ra.Machine.CPUs), count(rb.Machine.CPUs))
		differ("networks", ra.Network.Name, rb.Network.Name)
		differ("sources", ra.Source, rb.Source)
		differ("modes", a.Mode, b.Mode)
	}
	differ("levels of coldness", a.Cold, b.Cold)
	for _, s := range []*Subject{a, b} {
		if sum := s.Summarize(); sum.NotCold > 0 && s.Cold != "" {
			out = append(out, fmt.Sprintf("%s: %d of %s not proven to be as cold as they should be", s.Name, sum.NotCold, runs(sum.Runs)))
		}
	}
	return out
}

func count(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}
