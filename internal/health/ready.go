package health

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Ready is how long a container takes until it would pass its check: a lognormal
// distribution, which start-up times resemble, or one time.
type Ready struct {
	P50, P99 time.Duration
}

// z99 is the standard normal's 99th percentile.
const z99 = 2.3263478740408408

// ParseReady reads "p50=0.5,p99=2" in seconds or with units ("p50=480ms"), or one
// time for both.
func ParseReady(s string) (Ready, error) {
	var r Ready
	for part := range strings.SplitSeq(s, ",") {
		name, value, named := strings.Cut(strings.TrimSpace(part), "=")
		if !named {
			name, value = "p50", name
		}
		d, err := ParseSeconds(value)
		if err != nil {
			return Ready{}, fmt.Errorf("readiness %q: %w", s, err)
		}
		switch name {
		case "p50":
			r.P50 = d
		case "p99":
			r.P99 = d
		default:
			return Ready{}, fmt.Errorf("readiness %q: want p50=SECONDS,p99=SECONDS", s)
		}
	}
	if r.P50 == 0 {
		return Ready{}, fmt.Errorf("readiness %q: p50 is missing, or nothing", s)
	}
	if r.P99 == 0 {
		r.P99 = r.P50
	}
	if r.P99 < r.P50 {
		return Ready{}, fmt.Errorf("readiness %q: p99 is less than p50", s)
	}
	return r, nil
}

// MinRuns is how many starts a distribution is fitted to at least.
const MinRuns = 5

// FitReady fits a distribution to times that were measured. P50 is their median. P99 is
// of the lognormal distribution with the spread of their logarithms, and at least the
// longest of them: a start that was seen is not ruled out. With 50 times and more, of
// which one is about that rare, it is their own 99th percentile. An error with fewer
// than MinRuns, or times that are not positive.
func FitReady(times []time.Duration) (Ready, error) {
	n := len(times)
	if n < MinRuns {
		return Ready{}, fmt.Errorf("%d starts are too few for a distribution: it takes %d", n, MinRuns)
	}
	sorted := slices.Sorted(slices.Values(times))
	if sorted[0] <= 0 || sorted[n-1] > maxSeconds*time.Second {
		return Ready{}, fmt.Errorf("%v to %v are no times until ready", sorted[0], sorted[n-1])
	}
	quantile := func(q float64) time.Duration {
		i, part := math.Modf(q * float64(n-1))
		a, b := sorted[int(i)], sorted[min(int(i)+1, n-1)]
		return a + time.Duration(part*float64(b-a))
	}
	r := Ready{P50: quantile(0.5), P99: quantile(0.99)}
	if n >= 50 {
		return r, nil
	}
	var mean, sum float64
	for _, t := range sorted {
		mean += math.Log(float64(t)) / float64(n)
	}
	for _, t := range sorted {
		d := math.Log(float64(t)) - mean
		sum += d * d
	}
	fitted := float64(r.P50) * math.Exp(z99*math.Sqrt(sum/float64(n-1)))
	r.P99 = min(max(sorted[n-1], time.Duration(fitted)), maxSeconds*time.Second)
	return r, nil
}

// maxSeconds bounds times that are read: 1000 hours.
const maxSeconds = 3_600_000

// ParseSeconds reads seconds ("0.5"), or a time with a unit ("500ms").
func ParseSeconds(s string) (time.Duration, error) {
	if f, err := strconv.ParseFloat(s, 64); err == nil {
		if !(f >= 0 && f <= maxSeconds) {
			return 0, fmt.Errorf("%q is not a time", s)
		}
		return time.Duration(math.Round(f * 1e9)), nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 || d > maxSeconds*time.Second {
		return 0, fmt.Errorf("%.100q is not a time in seconds", s)
	}
	return d, nil
}

// sigma is the standard deviation of the logarithm; 0 for one time.
func (r Ready) sigma() float64 {
	if r.P50 <= 0 || r.P99 <= r.P50 {
		return 0
	}
	return math.Log(float64(r.P99)/float64(r.P50)) / z99
}

// Quantile returns the time by which the share q of containers is ready.
func (r Ready) Quantile(q float64) time.Duration {
	sigma := r.sigma()
	if sigma == 0 {
		return r.P50
	}
	return time.Duration(min(float64(r.P50)*math.Exp(sigma*math.Sqrt2*math.Erfinv(2*q-1)), maxSeconds*1e9))
}

// Later returns the share of containers that take longer than d.
func (r Ready) Later(d time.Duration) float64 {
	sigma := r.sigma()
	switch {
	case sigma == 0 && r.P50 > d, d <= 0:
		return 1
	case sigma == 0:
		return 0
	}
	return math.Erfc(math.Log(float64(d)/float64(r.P50))/sigma/math.Sqrt2) / 2
}

// samples is into how many parts of equal share a distribution is cut for means.
const samples = 1000

// mean averages f over the distribution; f says with what weight (0 to 1) its
// value counts. The second result is the mean weight.
func (r Ready) mean(f func(r time.Duration) (value time.Duration, weight float64)) (time.Duration, float64) {
	n := samples
	if r.sigma() == 0 {
		n = 1
	}
	var sum, weights float64
	for i := range n {
		v, w := f(r.Quantile((float64(i) + 0.5) / float64(n)))
		sum += w * float64(v)
		weights += w
	}
	if weights == 0 {
		return 0, 0
	}
	return time.Duration(sum / weights), weights / float64(n)
}
