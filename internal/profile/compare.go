package profile

import (
	"fmt"
	"math"
	"slices"
)

// Verdicts of comparisons. Less is faster, also where bytes are compared.
const (
	Faster     = "faster"
	Slower     = "slower"
	NoEvidence = "no evidence" // of a difference: there may be one
)

// Comparison is of samples B with samples A, from which they differ.
type Comparison struct {
	A Stats `json:"a"`
	B Stats `json:"b"`
	// Delta is B's median less A's, Ratio is B's over A's (nil unless that is above 0), each
	// with a 95 % bootstrap interval where there are MinRuns of both.
	Delta   float64   `json:"delta"`
	DeltaCI *Interval `json:"delta_ci"`
	Ratio   *float64  `json:"ratio"`
	RatioCI *Interval `json:"ratio_ci"`
	// P is how likely a difference at least like this is if there is none (Mann-Whitney,
	// two-sided). Nil with fewer than MinRuns of either.
	P *float64 `json:"p"`
	// Verdict is faster or slower if P is below 0.05 and DeltaCI does not have 0: two
	// tests that have to agree, of ranks and of medians. Else it is no evidence, with the
	// reason.
	Verdict string `json:"verdict"`
	Reason  string `json:"reason,omitempty"`
}

// Compare compares samples. The same ones give the same result.
func Compare(a, b []float64) Comparison {
	c := Comparison{A: Summarize(a), B: Summarize(b), Verdict: NoEvidence}
	if c.A.N == 0 || c.B.N == 0 {
		c.Reason = "nothing is known of one of them"
		return c
	}
	c.Delta = c.B.P50 - c.A.P50
	c.Ratio = ratio(c.B.P50, c.A.P50)
	if n := min(c.A.N, c.B.N); n < MinRuns {
		c.Reason = fmt.Sprintf("only %s of one of them, it takes %d of each", runs(n), MinRuns)
		return c
	}
	c.intervals(a, b)
	p := MannWhitney(a, b).P
	c.P = &p
	switch {
	case p >= alpha:
		c.Reason = fmt.Sprintf("p = %.2g: such a difference may be chance", p)
	case c.DeltaCI.Has(0):
		c.Reason = "the medians may be equal"
	case c.Delta < 0:
		c.Verdict = Faster
	default:
		c.Verdict = Slower
	}
	return c
}

func runs(n int) string {
	if n == 1 {
		return "1 run"
	}
	return fmt.Sprintf("%d runs", n)
}

// intervals are of differences and ratios of medians of resamples of both.
func (c *Comparison) intervals(a, b []float64) {
	drawA := resampler(slices.Sorted(slices.Values(a)), 0.5, 1)
	drawB := resampler(slices.Sorted(slices.Values(b)), 0.5, 2)
	deltas, ratios := make([]float64, resamples), make([]float64, 0, resamples)
	for i := range deltas {
		ma, mb := drawA(), drawB()
		deltas[i] = mb - ma
		if r := ratio(mb, ma); r != nil {
			ratios = append(ratios, *r)
		}
	}
	n := min(len(a), len(b))
	ci := middle(deltas, n)
	c.DeltaCI = &ci
	if c.Ratio != nil && len(ratios) == resamples {
		ci := middle(ratios, n)
		c.RatioCI = &ci
	}
}

// MannWhitneyResult is of a Mann-Whitney U test.
type MannWhitneyResult struct {
	U     float64 // of A: pairs in which A is the greater, ties counting half
	P     float64 // two-sided
	Exact bool    // else by the normal approximation
}

// exactRuns is up to how many samples of both together P is computed from all ways to
// divide them.
const exactRuns = 60

// MannWhitney tests whether one of two rows of samples tends to be greater. P is exact,
// given the ties, for up to 60 samples in all; beyond it is the normal approximation
// with corrections for ties and continuity. P is 1 if either is empty or all are equal.
//
// Mann and Whitney, On a Test of Whether one of Two Random Variables is Stochastically
// Larger than the Other, 1947.
func MannWhitney(a, b []float64) MannWhitneyResult {
	n, m := len(a), len(b)
	if n == 0 || m == 0 {
		return MannWhitneyResult{P: 1}
	}
	// Ranks are doubled, so that those of ties are whole.
	sum, ties, ranks := doubleRanks(a, b)
	r := MannWhitneyResult{U: float64(sum-n*(n+1)) / 2}
	if len(ties) == 1 {
		r.P = 1
		return r
	}
	if n+m <= exactRuns {
		r.P, r.Exact = exactP(n, sum, ranks), true
		return r
	}
	total := float64(n + m)
	tied := 0.
	for _, t := range ties {
		t := float64(t)
		tied += t*t*t - t
	}
	variance := float64(n) * float64(m) / 12 * (total + 1 - tied/(total*(total-1)))
	z := max(math.Abs(r.U-float64(n)*float64(m)/2)-0.5, 0) / math.Sqrt(variance)
	r.P = min(math.Erfc(z/math.Sqrt2), 1)
	return r
}

// doubleRanks returns twice the sum of the ranks of a among all, how many samples are
// equal to each other, smallest first, and all ranks doubled.
func doubleRanks(a, b []float64) (sum int, ties, ranks []int) {
	type sample struct {
		value float64
		ofA   bool
	}
	all := make([]sample, 0, len(a)+len(b))
	for _, x := range a {
		all = append(all, sample{x, true})
	}
	for _, x := range b {
		all = append(all, sample{x, false})
	}
	slices.SortFunc(all, func(x, y sample) int {
		switch {
		case x.value < y.value:
			return -1
		case x.value > y.value:
			return 1
		}
		return 0
	})
	for i := 0; i < len(all); {
		j := i
		for j < len(all) && all[j].value == all[i].value {
			j++
		}
		rank := i + 1 + j // twice the mean of i+1 ... j
		for k := i; k < j; k++ {
			ranks = append(ranks, rank)
			if all[k].ofA {
				sum += rank
			}
		}
		ties = append(ties, j-i)
		i = j
	}
	return sum, ties, ranks
}

// exactP is the share of all ways to take n of the (doubled) ranks whose sum is as far
// from the mean as sum, or farther.
func exactP(n, sum int, ranks []int) float64 {
	most := 0
	for _, r := range ranks[len(ranks)-n:] {
		most += r
	}
	ways := make([][]float64, n+1) // by how many are taken, and their sum
	for k := range ways {
		ways[k] = make([]float64, most+1)
	}
	ways[0][0] = 1
	for i, r := range ranks {
		for k := min(i+1, n); k > 0; k-- {
			for s := most; s >= r; s-- {
				ways[k][s] += ways[k-1][s-r]
			}
		}
	}
	mean := n * (len(ranks) + 1) // twice n(N+1)/2
	off := max(sum-mean, mean-sum)
	var all, far float64
	for s, w := range ways[n] {
		all += w
		if s-mean >= off || mean-s >= off {
			far += w
		}
	}
	return far / all
}
