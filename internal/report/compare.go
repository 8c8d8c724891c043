package report

import (
	"fmt"
	"math"

	"github.com/thaw-project/thaw/internal/profile"
)

// comparison is of two subjects: what B is, where A is what it is compared with.
type comparison struct {
	A       int             `json:"a"` // of view.Subjects
	B       int             `json:"b"`
	Verdict string          `json:"verdict"` // as profile has it; empty: there is nothing to compare
	Text    string          `json:"text"`
	Phases  []phaseCompared `json:"phases"` // and the whole, first
}

type phaseCompared struct {
	Name    string      `json:"name"` // empty: the whole
	A       *float64    `json:"a"`    // medians
	B       *float64    `json:"b"`
	Delta   *float64    `json:"delta"`
	CI      *[2]float64 `json:"ci"`
	P       *float64    `json:"p"`
	Verdict string      `json:"verdict"`
	Reason  string      `json:"reason,omitempty"`
}

func compare(a, b int, x, y *profile.Subject, names [2]string) comparison {
	c := comparison{A: a, B: b, Phases: []phaseCompared{}}
	all := profile.CompareSubjects(x, y)
	whole := all.Measure(profile.MeasureTotal)
	if whole == nil || whole.A.N == 0 || whole.B.N == 0 {
		c.Text = "One of them was never ready: there is no whole to compare."
	} else {
		c.Verdict = whole.Verdict
		c.Text = sentence(&whole.Comparison, names)
		c.Phases = append(c.Phases, newPhaseCompared("", &whole.Comparison))
	}
	for _, name := range profile.Phases {
		if m := all.Measure(name); m != nil {
			c.Phases = append(c.Phases, newPhaseCompared(name, &m.Comparison))
		}
	}
	return c
}

// sentence says what a comparison of wholes comes to.
func sentence(c *profile.Comparison, names [2]string) string {
	interval := ""
	if c.DeltaCI != nil {
		low, high := math.Abs(c.DeltaCI.Low), math.Abs(c.DeltaCI.High)
		interval = fmt.Sprintf(" (95 %% confidence: %s to %s)", showMs(min(low, high)), showMs(max(low, high)))
	}
	switch c.Verdict {
	case profile.Faster:
		return fmt.Sprintf("%s is %s faster than %s%s: %s in place of %s.", names[1], showMs(-c.Delta), names[0], interval, showMs(c.B.P50), showMs(c.A.P50))
	case profile.Slower:
		return fmt.Sprintf("%s is %s slower than %s%s: %s in place of %s.", names[1], showMs(c.Delta), names[0], interval, showMs(c.B.P50), showMs(c.A.P50))
	}
	return fmt.Sprintf("No evidence of a difference between %s (%s) and %s (%s): %s.", names[0], showMs(c.A.P50), names[1], showMs(c.B.P50), c.Reason)
}

func newPhaseCompared(name string, c *profile.Comparison) phaseCompared {
	out := phaseCompared{Name: name, Verdict: c.Verdict, Reason: c.Reason, P: c.P}
	if c.A.N > 0 {
		a := round(c.A.P50)
		out.A = &a
	}
	if c.B.N > 0 {
		b := round(c.B.P50)
		out.B = &b
	}
	if out.A != nil && out.B != nil {
		d := round(c.Delta)
		out.Delta = &d
	}
	if c.DeltaCI != nil {
		out.CI = &[2]float64{round(c.DeltaCI.Low), round(c.DeltaCI.High)}
	}
	return out
}
