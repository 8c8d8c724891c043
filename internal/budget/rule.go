// Package budget judges measured starts (package profile): against limits, and against
// an earlier measurement.
//
// A [Rule] is a limit of a measure's percentile ("cold-start.p95<=1s"). Its outcome is a
// pass only if the measurement says so with 95 % confidence, a failure only if it says
// the opposite; else it is inconclusive, which is never a pass: too few runs, a percentile
// whose interval has the limit in it, a phase that is not known, starts that failed or
// were not as cold as they should have been. [Judge] does so for all rules of a [Config],
// and for regressions; the report can be written as text, JSON, JUnit, Markdown,
// annotations of GitHub and GitLab's Code Quality.
//
// It measures nothing, and knows no command line.
package budget

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"

	"github.com/thaw-project/thaw/internal/profile"
)

// Levels of rules: what a failure means.
const (
	Off  = "off"
	Warn = "warn"
	Fail = "fail"
)

// Rule is a limit.
type Rule struct {
	Measure string  // of package profile
	Stat    string  // min, avg, max, or a percentile such as p95; empty of what all runs have alike
	Strict  bool    // less than, not at most
	Limit   float64 // in the measure's unit
	Level   string
	Subject string // only of this one; empty: of all
	text    string // as it was written
}

// String is the rule as it was written, in full.
func (r *Rule) String() string { return r.text }

// names of measures as people write them, beside their own with dashes.
var names = map[string]string{
	"cold-start": profile.MeasureTotal, "total": profile.MeasureTotal, "ready": profile.MeasureTotal,
	"pull": profile.PhasePull, "init": profile.PhaseRuntimeInit, "dependencies": profile.PhaseDependencyLoad, "bootstrap": profile.PhaseBootstrap,
	"first-request.penalty": profile.PhaseFirstRequest, "first-request": profile.PhaseFirstRequest, "image.compressed": profile.MeasureImageBytes,
}

// defaultStat is the percentile that is meant where none is written.
const defaultStat = "p95"

// ParseRule reads a rule: "cold-start.p95<=1s", "pull<=200ms", "image.compressed<=150MB",
// "first-request.penalty<=2x" (the first request takes at most twice as long as later
// ones), or a time alone, which cold-start.p95 may take at most.
func ParseRule(s string) (Rule, error) {
	fail := func(err error) (Rule, error) { return Rule{}, fmt.Errorf("budget %.100q: %w", s, err) }
	if _, err := time.ParseDuration(strings.TrimSpace(s)); err == nil {
		s = "cold-start.p95<=" + strings.TrimSpace(s)
	}
	name, limit, ok := strings.Cut(s, "<")
	limit, most := strings.CutPrefix(limit, "=")
	name, limit = strings.ReplaceAll(strings.ToLower(strings.TrimSpace(name)), "_", "-"), strings.TrimSpace(limit)
	if !ok || name == "" || limit == "" {
		return fail(errors.New("want MEASURE[.STAT]<=LIMIT, such as cold-start.p95<=1s"))
	}
	r := Rule{Strict: !most, Level: Fail}
	if i := strings.LastIndexByte(name, '.'); i >= 0 && isStat(name[i+1:]) {
		name, r.Stat = name[:i], strings.Replace(name[i+1:], "median", "p50", 1)
	}
	times := strings.HasSuffix(strings.ToLower(limit), "x")
	var err error
	if r.Measure, err = measureNamed(name, times); err != nil {
		return fail(err)
	}
	if r.Limit, err = parseLimit(limit, unitOf(r.Measure)); err != nil {
		return fail(err)
	}
	if r.Measure == profile.MeasureImageBytes {
		if r.Stat != "" {
			return fail(fmt.Errorf("%s is the same in all runs: it has no %s", name, r.Stat))
		}
	} else if r.Stat == "" {
		r.Stat = defaultStat
	}
	r.text = name
	if r.Stat != "" {
		r.text += "." + r.Stat
	}
	r.text += map[bool]string{true: "<", false: "<="}[r.Strict] + limit
	return r, nil
}

func isStat(s string) bool {
	_, ok := quantile(s)
	return ok || slices.Contains([]string{"min", "avg", "max", "median"}, s)
}

// quantile is the share that a percentile, p1 to p99, stands for; false of other
// statistics.
func quantile(stat string) (float64, bool) {
	digits, ok := strings.CutPrefix(stat, "p")
	n, err := strconv.Atoi(digits)
	if !ok || err != nil || n < 1 || n > 99 || strconv.Itoa(n) != digits {
		return 0, false
	}
	return float64(n) / 100, true
}

// measureNamed finds a measure by what people call it.
func measureNamed(name string, times bool) (string, error) {
	measure, ok := names[name]
	if !ok {
		measure = strings.ReplaceAll(name, "-", "_")
	}
	if measure == profile.PhaseFirstRequest && times {
		measure = profile.MeasureFirstRatio
	}
	if !slices.Contains(profile.Measures(), measure) || measure == profile.MeasureFirstRatio && !times {
		return "", fmt.Errorf("measure %q is not known: there are %s", name, strings.Join(Names(), ", "))
	}
	return measure, nil
}

// Names are the measures as rules have them.
func Names() []string {
	var out []string
	for _, m := range profile.Measures() {
		switch m {
		case profile.MeasureFirstRatio:
		case profile.PhaseFirstRequest:
			out = append(out, "first-request.penalty")
		case profile.MeasureImageBytes:
			out = append(out, "image.compressed")
		default:
			out = append(out, nameOf(m))
		}
	}
	return out
}

// nameOf is a measure as rules have it.
func nameOf(measure string) string { return strings.ReplaceAll(measure, "_", "-") }

func unitOf(measure string) string {
	s, _ := (&profile.Subject{}).Series(measure)
	return s.Unit
}

func parseLimit(s, unit string) (float64, error) {
	var v float64
	var err error
	switch unit {
	case profile.UnitMs:
		var d time.Duration
		d, err = time.ParseDuration(s)
		v = float64(d) / 1e6
		if err != nil {
			err = fmt.Errorf("limit %.50q: want a time with its unit, such as 200ms or 1.5s", s)
		}
	case profile.UnitBytes:
		var n int64
		parse := units.FromHumanSize // of 1000
		if strings.HasSuffix(strings.ToLower(s), "ib") {
			parse = units.RAMInBytes
		}
		n, err = parse(s)
		v = float64(n)
		if err != nil {
			err = fmt.Errorf("limit %.50q: want bytes, such as 150MB or 64MiB", s)
		}
	case profile.UnitTimes:
		v, err = strconv.ParseFloat(strings.TrimRight(s, "xX"), 64)
		if err != nil {
			err = fmt.Errorf("limit %.50q: want a multiple, such as 2x", s)
		}
	default:
		v, err = strconv.ParseFloat(s, 64)
		if err != nil {
			err = fmt.Errorf("limit %.50q: want a number", s)
		}
	}
	if err == nil && !(v >= 0 && v < 1<<53) {
		err = fmt.Errorf("limit %.50q is not possible", s)
	}
	return v, err
}
