package health

import (
	"fmt"
	"math"
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
