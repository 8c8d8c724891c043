package profile

import (
	"math"
	"math/rand/v2"
	"slices"
)

// Stats are what samples come to. Those of no samples have N 0 and say nothing.
type Stats struct {
	N   int     `json:"n"`
	Min float64 `json:"min"`
	Avg float64 `json:"avg"`
	Max float64 `json:"max"`
	P50 float64 `json:"p50"` // the median; see [Percentile]
	P90 float64 `json:"p90"`
	P95 float64 `json:"p95"`
	P99 float64 `json:"p99"`
	SD  float64 `json:"sd"` // of the sample (divided by n - 1); 0 of one
	// MedianCI has the median with 95 % confidence. Nil with fewer than MinRuns samples.
	MedianCI *Interval `json:"median_ci"`
	// HalfWidth is half of MedianCI's width as a share of the median: 0.03 is ±3 %.
	// Nil without MedianCI, and of a median of 0.
	HalfWidth *float64 `json:"half_width"`
	// Outliers are the numbers, from 0, of the samples that [Outliers] finds.
	Outliers []int `json:"outliers,omitempty"`
}

// Interval is from Low to High, both within it.
type Interval struct {
	Low  float64 `json:"low"`
	High float64 `json:"high"`
}

// Has reports whether x is within the interval.
func (i Interval) Has(x float64) bool { return i.Low <= x && x <= i.High }

// MinRuns is how many samples there have to be on a side before anything is concluded
// from them: with fewer than four on each side no difference can be significant at
// 5 %, and with four only if nothing overlaps.
const MinRuns = 5

// alpha is how likely an error may be: intervals have 95 % confidence.
const alpha = 0.05

// resamples of a bootstrap. The ends of its interval are then known to about a
// percentile.
const resamples = 2000

// Summarize computes the statistics of samples, whose order does not matter but for
// Outliers. They have to be numbers, no NaN and no infinities. The same samples give
// the same statistics: the bootstrap's seed is fixed.
func Summarize(samples []float64) Stats {
	s := Stats{N: len(samples)}
	if s.N == 0 {
		return s
	}
	sorted := slices.Sorted(slices.Values(samples))
	s.Min, s.Max = sorted[0], sorted[s.N-1]
	for _, x := range sorted {
		s.Avg += x / float64(s.N)
	}
	s.Avg = min(max(s.Avg, s.Min), s.Max) // rounding
	if s.N > 1 {
		sum := 0.
		for _, x := range sorted {
			sum += (x - s.Avg) * (x - s.Avg)
		}
		s.SD = math.Sqrt(sum / float64(s.N-1))
	}
	s.P50, s.P90, s.P95, s.P99 = percentile(sorted, 0.50), percentile(sorted, 0.90), percentile(sorted, 0.95), percentile(sorted, 0.99)
	if s.N >= MinRuns {
		ci := bootstrap(sorted, 0.5)
		s.MedianCI = &ci
		s.HalfWidth = ratio((ci.High-ci.Low)/2, math.Abs(s.P50))
	}
	s.Outliers = Outliers(samples)
	return s
}

// ratio is a over b; nil where that is no number to be shown.
func ratio(a, b float64) *float64 {
	if r := a / b; b > 0 && !math.IsInf(r, 0) {
		return &r
	}
	return nil
}

// Percentile returns the percentile q (0.95 for p95) of samples: between the two that
// are nearest it is interpolated, with the smallest at 0 and the largest at 1. That is
// type 7 of Hyndman and Fan (1996), and what numpy, R and spreadsheets do unasked. NaN
// of no samples.
func Percentile(samples []float64, q float64) float64 {
	return percentile(slices.Sorted(slices.Values(samples)), q)
}

func percentile(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return math.NaN()
	}
	i, part := rank(len(sorted), q)
	return between(sorted[i], sorted[min(i+1, len(sorted)-1)], part)
}

// rank is where percentile q of n sorted samples is: after sample i, by a part of the
// way to the next.
func rank(n int, q float64) (i int, part float64) {
	h := min(max(q, 0), 1) * float64(n-1)
	i = int(h)
	return i, h - float64(i)
}

func between(a, b, part float64) float64 {
	if a == b { // also of large ones, whose products round
		return a
	}
	return a*(1-part) + b*part
}

// PercentileCI has percentile q with 95 % confidence, by the bootstrap. It cannot see
// beyond the largest sample: see [RunsFor]. False with fewer samples than that.
func PercentileCI(samples []float64, q float64) (Interval, bool) {
	if len(samples) < RunsFor(q) {
		return Interval{}, false
	}
	return bootstrap(slices.Sorted(slices.Values(samples)), q), true
}

// RunsFor is how many samples it takes until percentile q is concluded from: so many
// that the largest sample stands for the percentile or one beyond it, at Hazen's
// plotting position of 1 - 0.5/n. That is 10 of p95 and 50 of p99, and never fewer
// than MinRuns.
func RunsFor(q float64) int {
	tail := min(q, 1-q)
	if tail <= 0 { // minimum, maximum: of what was seen
		return MinRuns
	}
	return max(MinRuns, int(math.Ceil(0.5/tail-1e-9)))
}

// bootstrap is the interval of percentile q in resamples: see [middle].
func bootstrap(sorted []float64, q float64) Interval {
	draw := resampler(sorted, q, 1)
	values := make([]float64, resamples)
	for i := range values {
		values[i] = draw()
	}
	return middle(values, len(sorted))
}

// middle is the interval of the middle of what resamples of n samples came to, which it
// sorts. For 95 % confidence it is more than the middle 95 %: Efron's percentile
// interval is too narrow with few samples (of 15 it has the median 88 times in 100), by
// as much as the normal distribution is narrower than Student's, and by what the spread
// of a sample falls short. So its ends are farther out, as Hesterberg (What Teachers
// Should Know About the Bootstrap, 2015) proposes: the expanded percentile interval.
func middle(values []float64, n int) Interval {
	slices.Sort(values)
	z := Student(n-1) * math.Sqrt(float64(n)/float64(n-1))
	tail := math.Erfc(z/math.Sqrt2) / 2
	return Interval{percentile(values, tail), percentile(values, 1-tail)}
}

// Student is the 97.5th percentile of Student's distribution, to 0.3 % from 4 degrees
// of freedom on (Abramowitz and Stegun 26.7.5).
func Student(degrees int) float64 {
	const z = 1.959963984540054
	const z3, z5, z7 = z * z * z, z * z * z * z * z, z * z * z * z * z * z * z
	v := float64(degrees)
	return z + (z3+z)/(4*v) + (5*z5+16*z3+3*z)/(96*v*v) + (3*z7+19*z5+17*z3-15*z)/(384*v*v*v)
}

// resampler returns a function that draws as many samples as there are, with
// replacement, and returns their percentile q. Equal arguments give equal rows of
// draws.
func resampler(sorted []float64, q float64, stream uint64) func() float64 {
	n := len(sorted)
	rnd := rand.New(rand.NewPCG(uint64(n), stream))
	counts := make([]int, n)
	i, part := rank(n, q)
	return func() float64 {
		clear(counts)
		for range n {
			counts[rnd.IntN(n)]++
		}
		seen, k := counts[0], 0
		for seen <= i {
			k++
			seen += counts[k]
		}
		a := sorted[k]
		if part == 0 || seen > i+1 {
			return a
		}
		for seen <= i+1 {
			k++
			seen += counts[k]
		}
		return between(a, sorted[k], part)
	}
}

// far is from how many (scaled) median absolute deviations on a sample is an outlier.
// Iglewicz and Hoaglin (1993) have 3.5 of them.
const far = 3.5

// Outliers returns the numbers, from 0, of samples that are more than 3.5 scaled median
// absolute deviations off the median. Where more than half of the samples are equal
// that deviation is 0, and the mean absolute deviation is taken in its place. None
// with fewer than MinRuns samples.
func Outliers(samples []float64) []int {
	if len(samples) < MinRuns {
		return nil
	}
	median := Percentile(samples, 0.5)
	off := make([]float64, len(samples))
	mean := 0.
	for i, x := range samples {
		off[i] = math.Abs(x - median)
		mean += off[i] / float64(len(off))
	}
	// Of normal samples 1.4826 medians, or 1.2533 means, of these are a standard deviation.
	scale := 1.4826 * Percentile(off, 0.5)
	if scale == 0 {
		scale = 1.2533 * mean
	}
	var out []int
	for i := range off {
		if scale > 0 && off[i] > far*scale {
			out = append(out, i)
		}
	}
	return out
}
