package budget

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"unicode"

	"github.com/docker/go-units"

	"github.com/thaw-project/thaw/internal/profile"
)

// Outcomes of rules.
const (
	Pass         = "pass"
	Failed       = "fail"
	Inconclusive = "inconclusive"
	Skipped      = "off"
)

// Kinds of results.
const (
	KindBudget     = "budget"
	KindRegression = "regression"
)

// Result is what a rule came to, of one subject.
type Result struct {
	Kind    string            `json:"kind"`
	Subject string            `json:"subject"`
	Rule    string            `json:"rule"`
	Measure string            `json:"measure"`
	Level   string            `json:"level"`
	Outcome string            `json:"outcome"`
	Reason  string            `json:"reason,omitempty"` // of an outcome that is no pass
	Value   *float64          `json:"value"`            // of the statistic; of a regression, the difference of medians
	CI      *profile.Interval `json:"ci"`               // 95 % confidence
	Limit   float64           `json:"limit"`
	Unit    string            `json:"unit"` // ms, bytes, x or none
	N       int               `json:"n"`    // runs in which it is known
	// Of a regression:
	Baseline *float64 `json:"baseline,omitempty"` // its median
	Verdict  string   `json:"verdict,omitempty"`
}

// Report is all that was judged.
type Report struct {
	Record   string   `json:"record"`
	Baseline string   `json:"baseline,omitempty"`
	Outcome  string   `json:"outcome"` // the worst of those whose level is fail
	Results  []Result `json:"results"`
	Notes    []string `json:"notes,omitempty"`
}

// Judge judges a record by a configuration, and by an earlier record unless that is
// nil. Rules of subjects that are not in the record are inconclusive.
func Judge(c *Config, r, baseline *profile.Record) *Report {
	out := &Report{Record: r.ID, Outcome: Pass, Results: []Result{}}
	for i := range c.Rules {
		rule := &c.Rules[i]
		judged := false
		for j := range r.Subjects {
			if s := &r.Subjects[j]; rule.Subject == "" || rule.Subject == s.Name {
				out.Results = append(out.Results, judgeRule(rule, r, s))
				judged = true
			}
		}
		if !judged {
			res := newResult(rule, rule.Subject)
			if rule.Level != Off {
				res.Outcome, res.Reason = Inconclusive, "the record has no such image"
			}
			out.Results = append(out.Results, res)
		}
	}
	if baseline != nil && c.Regression.Level != Off {
		out.Baseline = baseline.ID
		out.regressions(&c.Regression, r, baseline)
	}
	if len(out.Results) == 0 { // which is no pass either
		out.Outcome, out.Notes = Inconclusive, append(out.Notes, "there is no image in the record, or no rule")
	}
	for i := range out.Results {
		res := &out.Results[i]
		res.Subject, res.Reason = printable(res.Subject), printable(res.Reason)
		if res.Level == Fail {
			switch {
			case res.Outcome == Failed:
				out.Outcome = Failed
			case res.Outcome == Inconclusive && out.Outcome == Pass:
				out.Outcome = Inconclusive
			}
		}
	}
	return out
}

// printable is a text in one line, without what a terminal or a log would take for a
// command.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
}

func newResult(rule *Rule, subject string) Result {
	return Result{Kind: KindBudget, Subject: subject, Rule: rule.String(), Measure: rule.Measure, Level: rule.Level, Outcome: Skipped, Limit: rule.Limit, Unit: unitOf(rule.Measure)}
}

// judgeRule judges a subject by a rule.
func judgeRule(rule *Rule, r *profile.Record, s *profile.Subject) Result {
	res := newResult(rule, s.Name)
	if rule.Level == Off {
		return res
	}
	series, _ := s.Series(rule.Measure)
	if rule.Measure == profile.MeasureImageBytes {
		res.image(rule, s)
		return res
	}
	res.N = len(series.Values)
	why := "not known of any run"
	if len(series.Unknown) > 0 {
		why += ": " + series.Unknown[0].Reason
	}
	if res.N == 0 {
		res.Outcome, res.Reason = Inconclusive, why
		if len(s.Runs) > 0 && res.N == 0 && series.NUnknown() == 0 {
			res.Reason = "all runs failed: " + firstError(s)
		}
		return res
	}
	value, ci, needs := statistic(series.Values, rule.Stat)
	res.Value, res.CI = &value, ci
	low, high := value, value
	if ci != nil {
		low, high = ci.Low, ci.High
	}
	exact := precision(s, rule.Measure, &series)
	switch {
	case res.N < needs:
		res.Outcome, res.Reason = Inconclusive, fmt.Sprintf("only %s, %s takes %d", runsText(res.N), rule.Stat, needs)
	case !rule.holds(low-exact) && excuse(r, s, &series) == "": // also of starts that were less cold than they should have been
		res.Outcome, res.Reason = Failed, fmt.Sprintf("%s is over the limit", Amount(value, res.Unit))
	default:
		if reason := doubt(r, s, &series); reason != "" {
			res.Outcome, res.Reason = Inconclusive, reason
		} else if exact > 0 && !rule.holds(high+exact) {
			res.Outcome, res.Reason = Inconclusive, "its source tells times only to "+Amount(exact, res.Unit)
		} else if !rule.holds(high) {
			res.Outcome = Inconclusive
			res.Reason = fmt.Sprintf("the limit lies between %s and %s, where %s is with 95 %% confidence: more runs may tell", Amount(low, res.Unit), Amount(high, res.Unit), rule.Stat)
		} else {
			res.Outcome = Pass
		}
	}
	return res
}

func (r *Rule) holds(v float64) bool { return v < r.Limit || !r.Strict && v == r.Limit }

// image judges what is known of the image itself.
func (res *Result) image(rule *Rule, s *profile.Subject) {
	if s.ImageBytes == 0 {
		res.Outcome, res.Reason = Inconclusive, "the image's size is not known"
		return
	}
	v := float64(s.ImageBytes)
	res.Value, res.N, res.Outcome = &v, len(s.Runs), Pass
	if !rule.holds(v) {
		res.Outcome, res.Reason = Failed, fmt.Sprintf("%s is over the limit", Amount(v, res.Unit))
	}
}

// statistic computes a statistic with its interval, which smallest and largest have
// none of, and says how many runs it takes.
func statistic(values []float64, stat string) (value float64, ci *profile.Interval, needs int) {
	st := profile.Summarize(values)
	q, ok := quantile(stat)
	switch {
	case ok:
		value, needs = profile.Percentile(values, q), profile.RunsFor(q)
		if i, ok := profile.PercentileCI(values, q); ok {
			ci = &i
		}
		return value, ci, needs
	case stat == "min":
		return st.Min, nil, profile.MinRuns
	case stat == "max":
		return st.Max, nil, profile.MinRuns
	}
	if st.N > 1 { // Student's
		half := profile.Student(st.N-1) * st.SD / math.Sqrt(float64(st.N))
		ci = &profile.Interval{Low: st.Avg - half, High: st.Avg + half}
	}
	return st.Avg, ci, profile.MinRuns
}

// doubt is why a measurement can be no pass; empty if it can.
func doubt(r *profile.Record, s *profile.Subject, series *profile.Series) string {
	failed := 0
	for i := range s.Runs {
		if !s.Runs[i].Good() {
			failed++
		}
	}
	if failed > 0 {
		return fmt.Sprintf("%d of %s failed: %s", failed, runsText(len(s.Runs)), firstError(s))
	}
	if series.Name == profile.PhaseFirstRequest || series.Name == profile.MeasureFirstRatio {
		for _, i := range series.Runs { // the worst of those routes that are known
			if p := s.Runs[i].Phase(profile.PhaseFirstRequest); p != nil && p.Reason != "" {
				return fmt.Sprintf("not known of all routes of run %d: %s", i+1, p.Reason)
			}
		}
	}
	if n := series.NUnknown(); n > 0 {
		return fmt.Sprintf("not known of %d of %s: %s", n, runsText(len(s.Runs)), series.Unknown[0].Reason)
	}
	if reason := notProven(s); reason != "" {
		return reason
	}
	for _, signal := range r.Signals {
		if reason := missed(&signal); reason != "" {
			return reason
		}
	}
	return ""
}

// notProven is why a run may not have found on its node what it was to find; empty if
// all did.
func notProven(s *profile.Subject) string {
	if s.Cold == "" {
		return ""
	}
	for i := range s.Runs {
		c := s.Runs[i].Coldness
		if c == nil || !c.Proven || c.Level != s.Cold {
			reason := "nobody looked"
			if c != nil {
				reason = cmp.Or(c.Reason, "it was "+c.Level)
			}
			return fmt.Sprintf("run %d was not proven to be cold (%s): %s", i+1, s.Cold, reason)
		}
	}
	return ""
}

// missed says that a signal has not seen all; empty if it has, or was not used.
func missed(signal *profile.Signal) string {
	if !signal.Used || !strings.HasPrefix(signal.Reason, "incomplete") {
		return ""
	}
	return fmt.Sprintf("something was missed: %s: %s", signal.Name, signal.Reason)
}

// excuse is a doubt by which a measurement may be more than it should be, so that one
// that is too much is no failure either; empty if there is none. Starts that may have
// found less than they were to find are excused, and phases whose limits a signal may
// have missed. One that was to find nothing (L0) can only have been the quicker for
// what it found.
func excuse(r *profile.Record, s *profile.Subject, series *profile.Series) string {
	if s.Cold != profile.ColdL0 {
		if reason := notProven(s); reason != "" {
			return reason
		}
	}
	for _, signal := range r.Signals {
		reason := missed(&signal)
		if reason != "" && slices.ContainsFunc(series.Runs, func(i int) bool {
			p := s.Runs[i].Phase(series.Name)
			return p != nil && strings.Contains(p.Source, signal.Name)
		}) {
			return reason
		}
	}
	return ""
}

// precision is how far a measure may be off because another system, which says when its
// limits were, does so to the second or the like. 0 of what was seen here.
func precision(s *profile.Subject, measure string, series *profile.Series) float64 {
	worst := 0.
	for _, i := range series.Runs {
		r := &s.Runs[i]
		limits := []*float64{}
		if measure == profile.MeasureTotal {
			begin := 0.
			if e := r.Event(profile.EventRequested); e != nil {
				begin = e.AtMs
			}
			end := begin + *r.TotalMs
			limits = append(limits, &begin, &end)
		} else if p := r.Phase(measure); p != nil {
			limits = append(limits, p.StartMs, p.EndMs)
		}
		for _, at := range limits {
			for j := range r.Events {
				if e := &r.Events[j]; at != nil && e.Confidence == profile.Reported && math.Abs(e.AtMs-*at) < 0.001 {
					worst = max(worst, e.PrecisionMs)
				}
			}
		}
	}
	return worst
}

func firstError(s *profile.Subject) string {
	for i := range s.Runs {
		if s.Runs[i].Error != "" {
			return s.Runs[i].Error
		}
	}
	return "unknown"
}

func runsText(n int) string {
	if n == 1 {
		return "1 run"
	}
	return fmt.Sprintf("%d runs", n)
}

// regressions compares subjects of the same name; if both records have one, these.
func (out *Report) regressions(g *Regression, r, baseline *profile.Record) {
	for i := range r.Subjects {
		b := &r.Subjects[i]
		a := baseline.Subject(b.Name)
		if a == nil && len(r.Subjects) == 1 && len(baseline.Subjects) == 1 {
			a = &baseline.Subjects[0]
		}
		if a == nil {
			out.Results = append(out.Results, Result{Kind: KindRegression, Subject: b.Name, Rule: "no slower than the baseline", Level: g.Level, Outcome: Inconclusive, Reason: "the baseline has no such image"})
			continue
		}
		out.Notes = append(out.Notes, profile.Unlike(baseline, r, a, b)...)
		unlike := incomparable(baseline, r, a, b)
		for _, m := range g.Measures {
			if res, ok := regression(g, m, r, baseline, a, b, unlike); ok {
				out.Results = append(out.Results, res)
			}
		}
	}
}

// incomparable is why a difference would say nothing of the image; empty if it does.
func incomparable(ra, rb *profile.Record, a, b *profile.Subject) string {
	switch {
	case a.Mode != b.Mode: // bringing the image is in the one's pull and in the other's waits
		return fmt.Sprintf("one was started %s and the other %s", cmp.Or(a.Mode, "in a way that is not known"), cmp.Or(b.Mode, "in a way that is not known"))
	case a.Cold != b.Cold:
		return fmt.Sprintf("one was started as %s and the other as %s", cmp.Or(a.Cold, "unknown"), cmp.Or(b.Cold, "unknown"))
	case ra.Machine.CPUs != rb.Machine.CPUs:
		return fmt.Sprintf("machines with %d and %d CPUs", ra.Machine.CPUs, rb.Machine.CPUs)
	case ra.Network.Name != rb.Network.Name:
		return fmt.Sprintf("networks %s and %s", cmp.Or(ra.Network.Name, "unknown"), cmp.Or(rb.Network.Name, "unknown"))
	case ra.Source != rb.Source:
		return fmt.Sprintf("sources %s and %s", ra.Source, rb.Source)
	}
	return ""
}

// slack is by how much medians may differ whatever share that is: it is noise of the
// machine, not of the image.
var slack = map[string]float64{profile.UnitMs: 5, profile.UnitBytes: 64 << 10, profile.UnitCount: 1}

// requested reports whether requests were made of some start.
func requested(s *profile.Subject) bool {
	return slices.ContainsFunc(s.Runs, func(r profile.Run) bool {
		p := r.Phase(profile.PhaseFirstRequest)
		return len(r.Requests) > 0 || p != nil && p.Ms != nil
	})
}

// regression judges one measure of b by that of a; false if it is first requests', and
// nobody made any.
func regression(g *Regression, measure string, r, baseline *profile.Record, a, b *profile.Subject, unlike string) (Result, bool) {
	sa, _ := a.Series(measure)
	sb, _ := b.Series(measure)
	res := Result{Kind: KindRegression, Subject: b.Name, Measure: measure, Level: g.Level, N: len(sb.Values), Unit: sb.Unit, Outcome: Inconclusive,
		Rule: fmt.Sprintf("%s at most %.0f %% over the baseline", nameOf(measure), 100*g.Margin)}
	if measure == profile.PhaseFirstRequest && !requested(a) && !requested(b) {
		return res, false
	}
	c := profile.Compare(sa.Values, sb.Values)
	res.Verdict = c.Verdict
	if c.A.N == 0 || c.B.N == 0 {
		res.Reason = "it is not known of one of them"
		return res, true
	}
	res.Baseline, res.Value, res.CI = &c.A.P50, &c.Delta, c.DeltaCI
	res.Limit = max(g.Margin*c.A.P50, slack[res.Unit])
	baseDoubt := doubt(baseline, a, &sa) // by which it may be less than it should be
	doubts := cmp.Or(doubt(r, b, &sb), baseDoubt)
	exact := max(precision(a, measure, &sa), precision(b, measure, &sb))
	switch {
	case unlike != "":
		res.Reason = "not comparable: " + unlike
	case c.DeltaCI == nil:
		res.Reason = c.Reason
	case c.Verdict == profile.Slower && c.Delta-exact > res.Limit && cmp.Or(excuse(r, b, &sb), baseDoubt) == "":
		res.Outcome = Failed
		res.Reason = fmt.Sprintf("%s more than the baseline's %s", Amount(c.Delta, res.Unit), Amount(c.A.P50, res.Unit))
	case doubts != "":
		res.Reason = doubts
	case exact > 0 && c.DeltaCI.High+exact > res.Limit:
		res.Reason = "its source tells times only to " + Amount(exact, res.Unit)
	case c.DeltaCI.High > res.Limit:
		res.Reason = fmt.Sprintf("it may be up to %s more than the baseline's %s: more runs may tell", Amount(c.DeltaCI.High, res.Unit), Amount(c.A.P50, res.Unit))
	default:
		res.Outcome = Pass
	}
	return res, true
}

// Amount is a value with its unit.
func Amount(v float64, unit string) string {
	switch abs := math.Abs(v); {
	case unit == profile.UnitMs && abs >= 999.5:
		return fmt.Sprintf("%.3fs", v/1000)
	case unit == profile.UnitMs && abs >= 99.95:
		return fmt.Sprintf("%.0fms", v)
	case unit == profile.UnitMs:
		return fmt.Sprintf("%.1fms", v)
	case unit == profile.UnitBytes && v < 0:
		return "-" + units.HumanSize(abs)
	case unit == profile.UnitBytes:
		return units.HumanSize(v)
	case unit == profile.UnitTimes:
		return fmt.Sprintf("%.2fx", v)
	}
	return fmt.Sprintf("%.4g", v)
}
