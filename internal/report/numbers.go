package report

import (
	"fmt"
	"math"
	"slices"

	"github.com/thaw-project/thaw/internal/profile"
)

// stats are of some runs' values of one kind, as the page has them.
type stats struct {
	N   int         `json:"n"`
	Min float64     `json:"min"`
	Avg float64     `json:"avg"`
	Max float64     `json:"max"`
	P50 float64     `json:"p50"`
	P90 float64     `json:"p90"`
	P95 float64     `json:"p95"`
	P99 float64     `json:"p99"`
	CI  *[2]float64 `json:"ci,omitempty"` // of P50
}

// summarize returns nil of no values.
func summarize(all []float64) *stats {
	all = slices.DeleteFunc(slices.Clone(all), func(f float64) bool { return math.IsNaN(f) || math.IsInf(f, 0) })
	if len(all) == 0 {
		return nil
	}
	s := profile.Summarize(all)
	out := &stats{N: s.N, Min: round(s.Min), Avg: round(s.Avg), Max: round(s.Max), P50: round(s.P50), P90: round(s.P90), P95: round(s.P95), P99: round(s.P99)}
	if s.MedianCI != nil {
		out.CI = &[2]float64{round(s.MedianCI.Low), round(s.MedianCI.High)}
	}
	return out
}

// median of values in any order; 0 of none.
func median(all []float64) float64 {
	if len(all) == 0 {
		return 0
	}
	return profile.Percentile(all, .5)
}

// round to a microsecond of milliseconds: the page has no more.
func round(f float64) float64 {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return 0
	}
	return math.Round(f*1e3) / 1e3
}

// showMs is a time for people.
func showMs(ms float64) string {
	switch a := math.Abs(ms); {
	case a >= 99_950:
		return fmt.Sprintf("%.0f s", ms/1e3)
	case a >= 9_995:
		return fmt.Sprintf("%.1f s", ms/1e3)
	case a >= 999.5:
		return fmt.Sprintf("%.2f s", ms/1e3)
	case a >= 9.95:
		return fmt.Sprintf("%.0f ms", ms)
	}
	return fmt.Sprintf("%.1f ms", ms)
}

// showBytes is a size for people.
func showBytes(n int64) string {
	switch f := float64(n); {
	case f >= 999.5e6:
		return fmt.Sprintf("%.2f GB", f/1e9)
	case f >= 99.5e6:
		return fmt.Sprintf("%.0f MB", f/1e6)
	case f >= 999_500:
		return fmt.Sprintf("%.1f MB", f/1e6)
	case f >= 1000:
		return fmt.Sprintf("%.0f kB", f/1e3)
	}
	return fmt.Sprintf("%d B", n)
}

// percent of a whole, for people.
func percent(part, whole float64) string {
	if whole <= 0 {
		return "0 %"
	}
	return fmt.Sprintf("%.0f %%", 100*part/whole)
}
