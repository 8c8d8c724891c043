package report

import (
	"math"

	"github.com/thaw-project/thaw/internal/profile"
)

// scoreVersion changes with the weights and control points below.
const scoreVersion = 1

// measure is a part of the score: a lognormal curve that gives 90 of 100 at p10 and
// 50 at the median.
type measure struct {
	Name   string   `json:"name"`
	Weight float64  `json:"weight"`
	P10    float64  `json:"p10"`
	Median float64  `json:"median"`
	Unit   string   `json:"unit"`
	Value  *float64 `json:"value"` // nil: not known, and left out
	Score  float64  `json:"score"` // 0 to 100
}

// score is the weighted mean of those that are known.
type score struct {
	Version  int       `json:"version"`
	Value    *float64  `json:"value"` // 0 to 100; nil: nothing is known
	Known    float64   `json:"known"` // weight of what is, of 1
	Measures []measure `json:"measures"`
}

// curve is 1 - Phi((ln x - ln median) / sigma), with sigma such that it is 0.9 at p10.
func curve(x, p10, median float64) float64 {
	if x <= 0 {
		return 1
	}
	const z90 = 1.2815515655446004
	sigma := math.Log(median/p10) / z90
	return math.Erfc(math.Log(x/median)/sigma/math.Sqrt2) / 2
}

func newScore(v *subjectView) score {
	s := score{Version: scoreVersion, Measures: []measure{
		{Name: "Ready, p50", Weight: .35, P10: 1000, Median: 5200, Unit: "ms"},
		{Name: "Ready, p95", Weight: .15, P10: 1000, Median: 5200, Unit: "ms"},
		{Name: "First request, penalty", Weight: .20, P10: 100, Median: 1060, Unit: "ms"},
		{Name: "Bytes until ready, of the image", Weight: .15, P10: .1, Median: .5, Unit: "share"},
		{Name: "Wait for health checks", Weight: .15, P10: 2000, Median: 30000, Unit: "ms"},
	}}
	values := []*float64{nil, nil, nil, nil, nil}
	if v.Total != nil {
		values[0], values[1] = &v.Total.P50, &v.Total.P95
	}
	if n := len(v.Routes); n > 0 && v.Routes[0].Known {
		worst := max(v.Routes[0].Penalty, 0)
		values[2] = &worst
	} else if ms, ok := v.Median.ms(profile.PhaseFirstRequest); ok {
		values[2] = &ms
	}
	if v.ImageBytes > 0 && v.Cost != nil && v.Cost.NetworkBytes > 0 {
		share := float64(v.Cost.NetworkBytes) / float64(v.ImageBytes)
		values[3] = &share
	}
	if w, ok := healthWait(v); ok {
		values[4] = &w
	}
	sum := 0.
	for i := range s.Measures {
		m := &s.Measures[i]
		if m.Value = values[i]; m.Value == nil {
			continue
		}
		m.Score = math.Round(1000*curve(*m.Value, m.P10, m.Median)) / 10
		sum += m.Weight * m.Score
		s.Known += m.Weight
	}
	if s.Known > 0 {
		value := math.Round(sum / s.Known)
		s.Value = &value
	}
	s.Known = round(s.Known)
	return s
}

// healthWait is how long starts that were ready waited to be known to be; false
// where no check is known.
func healthWait(v *subjectView) (float64, bool) {
	wait, known := 0., false
	if v.Health != nil && v.Health.Healthy != nil && len(v.Readiness) > 0 {
		wait, known = max(v.Health.Healthy.P50-median(v.Readiness), 0), true
	}
	if ms, ok := v.Median.ms(profile.PhaseHealthLB); ok {
		wait, known = wait+ms, true
	}
	return wait, known
}
