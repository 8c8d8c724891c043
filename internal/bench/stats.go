package bench

import (
	"math"
	"slices"
)

// Samples are measurements of the same thing, in the order in which they were
// taken: milliseconds.
type Samples []float64

// Summary is what of [Samples] is shown. All are 0 where there are none.
type Summary struct {
	Values Samples `json:"values"`
	Min    float64 `json:"min"`
	Avg    float64 `json:"avg"`
	Max    float64 `json:"max"`
	Median float64 `json:"median"`
}

// summarize returns nil for no samples: what was not measured is not shown.
func summarize(s Samples) *Summary {
	if len(s) == 0 {
		return nil
	}
	sum := 0.0
	for _, v := range s {
		sum += v
	}
	return &Summary{Values: s, Min: slices.Min(s), Avg: sum / float64(len(s)), Max: slices.Max(s), Median: s.Median()}
}

// Median is 0 for no samples.
func (s Samples) Median() float64 { return s.quantile(0.5) }

// quantile interpolates between neighbours, as most programs do (type 7 of
// Hyndman and Fan, Sample quantiles in statistical packages, 1996).
func (s Samples) quantile(q float64) float64 {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	at := q * float64(len(sorted)-1)
	low := int(math.Floor(at))
	high := min(low+1, len(sorted)-1)
	return sorted[low] + (at-float64(low))*(sorted[high]-sorted[low])
}

// Spread is how far the middle half of the samples lies apart, as a share of the
// median. One run that a neighbour disturbed does not change it; a machine that
// is busy does.
func (s Samples) Spread() float64 {
	median := s.Median()
	if median == 0 {
		return 0
	}
	return (s.quantile(0.75) - s.quantile(0.25)) / median
}

// judgedRuns is how many runs a judgement of noise needs: of two, the middle
// half says nothing.
const judgedRuns = 3

// Verdicts on the noise of a benchmark.
const (
	Quiet  = "quiet"        // figures may be quoted
	Noisy  = "noisy"        // at least one mode spreads more than the limit
	TooFew = "too few runs" // nothing can be said of the noise
)

// Noise is what the spread of the runs says of the figures.
type Noise struct {
	Limit   float64  `json:"limit"` // of the spread of a mode's times to ready
	Verdict string   `json:"verdict"`
	Modes   []string `json:"modes"` // that spread more
}

func judge(limit float64, runs int, names []string, ready func(name string) Samples) Noise {
	n := Noise{Limit: limit, Verdict: Quiet, Modes: []string{}}
	if runs < judgedRuns {
		n.Verdict = TooFew
		return n
	}
	for _, name := range names {
		if ready(name).Spread() > limit {
			n.Modes = append(n.Modes, name)
			n.Verdict = Noisy
		}
	}
	return n
}
