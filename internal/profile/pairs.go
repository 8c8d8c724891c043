package profile

import (
	"math"
	"slices"
)

// Pairs is how values compare that were taken in pairs, one after the other, so that what
// changed meanwhile concerned both: by the ratio of each pair.
type Pairs struct {
	N int `json:"n"`
	// Ratio is their Hodges-Lehmann estimate: the median of the (geometric) means of all two
	// of them. Middle has the middle half of the ratios themselves.
	Ratio  float64  `json:"ratio"`
	Middle Interval `json:"middle"`
	// CI has the ratio with 95 % confidence, Most is what it is at most with as much: by the
	// Wilcoxon signed-rank test, turned around (Hollander and Wolfe, Nonparametric Statistical
	// Methods, 3.4). Nil where there are too few pairs: 6, and 5.
	CI   *Interval `json:"ci"`
	Most *float64  `json:"most"`
}

// maxPairs are compared at most, the first ones.
const maxPairs = 1000

// ComparePairs compares values b with values a, which are as many and above 0. False of
// none.
func ComparePairs(a, b []float64) (Pairs, bool) {
	n := min(len(a), len(b), maxPairs)
	if n == 0 {
		return Pairs{}, false
	}
	logs, means := make([]float64, n), make([]float64, 0, n*(n+1)/2)
	for i := range logs {
		logs[i] = math.Log(b[i] / a[i])
		for _, other := range logs[:i+1] {
			means = append(means, (logs[i]+other)/2)
		}
	}
	slices.Sort(means)
	slices.Sort(logs)
	p := Pairs{N: n, Ratio: math.Exp(percentile(means, 0.5)), Middle: Interval{math.Exp(percentile(logs, 0.25)), math.Exp(percentile(logs, 0.75))}}
	last := len(means) - 1
	if k, ok := signedRank(n, alpha/2); ok {
		p.CI = &Interval{math.Exp(means[k]), math.Exp(means[last-k])}
	}
	if k, ok := signedRank(n, alpha); ok {
		most := math.Exp(means[last-k])
		p.Most = &most
	}
	return p, true
}

// signedRank is the largest sum of ranks that n signs which are chance do not exceed more
// often than a share of the time; false if there is none. Exact up to exactRuns, the
// normal approximation beyond.
func signedRank(n int, share float64) (int, bool) {
	most := n * (n + 1) / 2
	if n > exactRuns {
		z := math.Sqrt2 * math.Erfinv(1-2*share)
		return int(float64(most)/2 - z*math.Sqrt(float64(most)*float64(2*n+1)/12)), true
	}
	ways := make([]float64, most+1) // of signs, by the sum of the ranks that are positive
	ways[0] = 1
	for rank := 1; rank <= n; rank++ {
		for sum := most; sum >= rank; sum-- {
			ways[sum] += ways[sum-rank]
		}
	}
	k, below := -1, 0.0
	for k+1 <= most && below+ways[k+1] <= share*math.Exp2(float64(n)) {
		k++
		below += ways[k]
	}
	return k, k >= 0
}
