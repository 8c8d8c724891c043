package budget

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/thaw-project/thaw/internal/profile"
	"github.com/thaw-project/thaw/internal/profile/profiletest"
)

func TestParseRule(t *testing.T) {
	for s, want := range map[string]Rule{
		"1s":                          {Measure: profile.MeasureTotal, Stat: "p95", Limit: 1000, text: "cold-start.p95<=1s"},
		"cold-start.p95<=1s":          {Measure: profile.MeasureTotal, Stat: "p95", Limit: 1000, text: "cold-start.p95<=1s"},
		"pull<=200ms":                 {Measure: profile.PhasePull, Stat: "p95", Limit: 200, text: "pull.p95<=200ms"},
		"image_pull.median < 1.5s":    {Measure: profile.PhasePull, Stat: "p50", Limit: 1500, Strict: true, text: "image-pull.p50<1.5s"},
		"dependency-load.p99<=1s":     {Measure: profile.PhaseDependencyLoad, Stat: "p99", Limit: 1000, text: "dependency-load.p99<=1s"},
		"image.compressed<=150MB":     {Measure: profile.MeasureImageBytes, Limit: 150e6, text: "image.compressed<=150MB"},
		"needed-bytes.max<=64MiB":     {Measure: profile.MeasureNeededBytes, Stat: "max", Limit: 64 << 20, text: "needed-bytes.max<=64MiB"},
		"requests.avg<=60":            {Measure: profile.MeasureRequests, Stat: "avg", Limit: 60, text: "requests.avg<=60"},
		"first-request.penalty<=2x":   {Measure: profile.MeasureFirstRatio, Stat: "p95", Limit: 2, text: "first-request.penalty.p95<=2x"},
		"First-Request.p50<=100ms":    {Measure: profile.PhaseFirstRequest, Stat: "p50", Limit: 100, text: "first-request.p50<=100ms"},
		"health-wait-container<=50ms": {Measure: profile.PhaseHealthContainer, Stat: "p95", Limit: 50, text: "health-wait-container.p95<=50ms"},
	} {
		want.Level = Fail
		got, err := ParseRule(s)
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(Rule{})); err != nil || diff != "" {
			t.Errorf("%q: %v %s", s, err, diff)
		}
	}
	for _, name := range Names() { // all that is offered is taken
		limit := map[string]string{profile.UnitMs: "1s", profile.UnitBytes: "1MB", profile.UnitCount: "1"}
		m, err := measureNamed(name, false)
		if err != nil {
			t.Error(err)
		}
		if _, err := ParseRule(name + "<=" + limit[unitOf(m)]); err != nil {
			t.Error(err)
		}
	}
	for s, want := range map[string]string{
		"": "want MEASURE", "fast": "want MEASURE", "pull=1s": "want MEASURE", "luck<=1s": "not known: there are cold-start, queue", "pull<=200": "with its unit", "pull<=-1s": "not possible",
		"pull.p100<=1s": "not known", "pull.p99.9<=1s": "not known", "cold-start.p95<=2x": "with its unit", "image.compressed<=1s": "want bytes", "image.compressed.p95<=1MB": "the same in all runs", "requests<=1s": "want a number",
		"first-request.penalty<=x": "want a multiple", "requests<=NaN": "not possible", "lazy-wait<=1MB": "with its unit", "-1s": "not possible",
	} {
		if r, err := ParseRule(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %+v, %v, want %s", s, r, err, want)
		}
	}
}

func TestParseFile(t *testing.T) {
	c, err := ParseFile([]byte(`
version: 1
budgets:
  - cold-start.p95<=1s
  - {budget: pull<=200ms, level: warn, subject: app}
  - budget: image.compressed<=150MB
    level: off
regression:
  level: warn
  margin: 5%
  measures: [cold-start, needed-bytes, first-request.penalty]
`))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Rules) != 3 || c.Rules[0].Level != Fail || c.Rules[1].Level != Warn || c.Rules[1].Subject != "app" || c.Rules[2].Level != Off {
		t.Errorf("%+v", c.Rules)
	}
	want := Regression{Warn, 0.05, []string{profile.MeasureTotal, profile.MeasureNeededBytes, profile.PhaseFirstRequest}}
	if diff := cmp.Diff(want, c.Regression); diff != "" {
		t.Error(diff)
	}
	if c, err := ParseFile([]byte("version: 1\n")); err != nil || !cmp.Equal(c.Regression, DefaultRegression()) {
		t.Errorf("%+v, %v", c, err)
	}
	for text, want := range map[string]string{
		"":                            "want version: 1",
		"version: 2":                  "want version: 1",
		"version: 1\nbudget: [1s]":    "field budget not found",
		"version: 1\nbudgets: [fast]": "want MEASURE",
		"version: 1\nbudgets: [{level: warn, budget: 1s, who: me}]": `a budget has no "who"`,
		"version: 1\nbudgets: [{level: stop, budget: 1s}]":          "want off, warn or fail",
		"version: 1\nregression: {margin: 5}":                       "want a percentage",
		"version: 1\nregression: {measures: [luck]}":                "not known",
		"version: 1\nregression: {level: x}":                        "want off, warn or fail",
		"version: [":                                                "yaml",
	} {
		if _, err := ParseFile([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

// record has runs that took so long, proven cold.
func record(ms ...float64) *profile.Record {
	begun := time.Date(2026, 3, 2, 9, 30, 0, 0, time.UTC)
	s := profile.Subject{Name: "app", Cold: profile.ColdL0, ImageBytes: 100e6}
	for _, v := range ms {
		s.Runs = append(s.Runs, profile.Run{TotalMs: &v, Coldness: &profile.Coldness{Level: profile.ColdL0, Proven: true}, Cost: &profile.Cost{Requests: 9}})
	}
	return &profile.Record{Version: 1, ID: "20260302-093000-00ff", Source: profile.SourceMeasure, Begun: begun, Subjects: []profile.Subject{s}}
}

// around has n runs within a hundredth of a time.
func around(ms float64, n int) []float64 {
	var out []float64
	for i := range n {
		out = append(out, ms*(1+0.01*(float64(i*7%n)/float64(n)-0.5)))
	}
	return out
}

func TestJudge(t *testing.T) {
	wide := []float64{500, 700, 900, 1100, 1300, 600, 800, 1000, 1200, 1400}
	for name, c := range map[string]struct {
		rule    string
		runs    []float64
		change  func(r *profile.Record)
		outcome string
		reason  string
	}{
		"within":              {"1s", around(900, 10), nil, Pass, ""},
		"over":                {"1s", around(1100, 10), nil, Failed, "1.104s is over the limit"},
		"straddles":           {"cold-start.p50<=1s", wide, nil, Inconclusive, "more runs may tell"},
		"p95 straddles":       {"cold-start.p95<=1.3s", wide, nil, Inconclusive, "more runs may tell"},
		"too few":             {"1s", around(900, 9), nil, Inconclusive, "only 9 runs, p95 takes 10"},
		"too few, and over":   {"1s", around(1900, 9), nil, Inconclusive, "only 9 runs"},
		"one":                 {"cold-start.max<=1s", around(900, 1), nil, Inconclusive, "only 1 run"},
		"none":                {"1s", nil, nil, Inconclusive, "not known of any run"},
		"p99 of ten":          {"cold-start.p99<=1s", around(900, 10), nil, Inconclusive, "p99 takes 50"},
		"p99 of fifty":        {"cold-start.p99<=1s", around(900, 50), nil, Pass, ""},
		"max":                 {"cold-start.max<=1s", around(900, 5), nil, Pass, ""},
		"max over":            {"cold-start.max<=1s", append(around(900, 5), 1001), nil, Failed, "1.001s is over"},
		"avg":                 {"cold-start.avg<=1s", around(900, 5), nil, Pass, ""},
		"avg straddles":       {"cold-start.avg<=1s", wide, nil, Inconclusive, "more runs"},
		"min":                 {"cold-start.min<=1s", around(900, 5), nil, Pass, ""},
		"just at the limit":   {"cold-start.p50<=1s", []float64{1000, 1000, 1000, 1000, 1000}, nil, Pass, ""},
		"less than the limit": {"cold-start.p50<1s", []float64{1000, 1000, 1000, 1000, 1000}, nil, Failed, ""},
		"unknown phase":       {"pull<=1s", around(900, 10), nil, Inconclusive, "not known of any run: no evidence"},
		"image":               {"image.compressed<=150MB", around(900, 1), nil, Pass, ""},
		"large image":         {"image.compressed<=99MB", around(900, 1), nil, Failed, "100MB is over"},
		"requests":            {"requests<=9", around(900, 10), nil, Pass, ""},
		"unknown size":        {"image.compressed<=99MB", nil, func(r *profile.Record) { r.Subjects[0].ImageBytes = 0 }, Inconclusive, "not known"},
		"not cold": {"1s", around(900, 10), func(r *profile.Record) {
			r.Subjects[0].Runs[3].Coldness.Proven = false
			r.Subjects[0].Runs[3].Coldness.Reason = "3 MB cached"
		}, Inconclusive, "run 4 was not proven to be cold (L0): 3 MB cached"},
		"another level":      {"1s", around(900, 10), func(r *profile.Record) { r.Subjects[0].Runs[0].Coldness.Level = profile.ColdL1 }, Inconclusive, "it was L1"},
		"nobody looked":      {"1s", around(900, 10), func(r *profile.Record) { r.Subjects[0].Runs[0].Coldness = nil }, Inconclusive, "nobody looked"},
		"not cold, and over": {"1s", around(1900, 10), func(r *profile.Record) { r.Subjects[0].Runs[3].Coldness.Proven = false }, Failed, ""},
		"perhaps colder, and over": {"1s", around(1900, 10), func(r *profile.Record) {
			r.Subjects[0].Cold = profile.ColdL2
			for i := range r.Subjects[0].Runs {
				r.Subjects[0].Runs[i].Coldness = &profile.Coldness{Level: profile.ColdL2, Proven: i != 3, Reason: "half of it cached"}
			}
		}, Inconclusive, "run 4 was not proven to be cold (L2): half of it cached"},
		"coldness not asked": {"1s", around(900, 10), func(r *profile.Record) { r.Subjects[0].Cold = ""; r.Subjects[0].Runs[0].Coldness = nil }, Pass, ""},
		"one failed":         {"1s", around(900, 11), func(r *profile.Record) { r.Subjects[0].Runs[1].Error = "exit code 1" }, Inconclusive, "1 of 11 runs failed: exit code 1"},
		"all failed":         {"1s", around(900, 1), func(r *profile.Record) { r.Subjects[0].Runs[0].Error = "exit code 1" }, Inconclusive, "all runs failed: exit code 1"},
		"one not ready":      {"1s", around(900, 11), func(r *profile.Record) { r.Subjects[0].Runs[1].TotalMs = nil }, Inconclusive, "not known of 1 of 11 runs: not ready"},
		"something missed": {"1s", around(900, 10), func(r *profile.Record) {
			r.Signals = []profile.Signal{{Name: profile.SignalOpens, Used: true, Reason: "incomplete: the queue ran over"}}
		}, Inconclusive, "something was missed: opens"},
		"something missed, and over": {"1s", around(1900, 10), func(r *profile.Record) {
			r.Signals = []profile.Signal{{Name: profile.SignalOpens, Used: true, Reason: "incomplete: the queue ran over"}}
		}, Failed, ""},
		"over, by what was missed": {"bootstrap<=1s", around(1900, 10), func(r *profile.Record) {
			r.Signals = []profile.Signal{{Name: profile.SignalOpens, Used: true, Reason: "incomplete: the queue ran over"}}
			for i := range r.Subjects[0].Runs {
				run := &r.Subjects[0].Runs[i]
				run.Phases = []profile.Phase{{Name: profile.PhaseBootstrap, Ms: run.TotalMs, Confidence: profile.Estimated, Source: "tracefs+opens"}}
			}
		}, Inconclusive, "something was missed: opens"},
	} {
		rule, err := ParseRule(c.rule)
		if err != nil {
			t.Fatal(err)
		}
		r := record(c.runs...)
		if c.change != nil {
			c.change(r)
		}
		got := Judge(&Config{Rules: []Rule{rule}}, r, nil)
		if got.Outcome != c.outcome || got.Results[0].Outcome != c.outcome || !strings.Contains(got.Results[0].Reason, c.reason) || (c.outcome == Pass) != (got.Results[0].Reason == "") {
			t.Errorf("%s: %s %+v, want %s: %s", name, got.Outcome, got.Results[0], c.outcome, c.reason)
		}
	}
}

// TestNothingUnknownPasses: what is known of a part only, or to the second only, is no
// pass, and neither is what nobody judged.
func TestNothingUnknownPasses(t *testing.T) {
	rule := func(s string) *Config {
		r, err := ParseRule(s)
		if err != nil {
			t.Fatal(err)
		}
		return &Config{Rules: []Rule{r}}
	}
	with := func(ms float64, change func(r *profile.Run)) *profile.Record {
		r := record(around(ms, 10)...)
		for i := range r.Subjects[0].Runs {
			change(&r.Subjects[0].Runs[i])
		}
		return r
	}
	penalty := func(r *profile.Run) {
		ms := 20.
		r.Phases = []profile.Phase{{Name: profile.PhaseFirstRequest, Ms: &ms, Confidence: profile.Measured, Reason: "GET /b: the first request failed",
			Routes: []profile.Route{{Route: "GET /a", FirstMs: 30, SteadyMs: 10, PenaltyMs: ms}}}}
	}
	coarse := func(r *profile.Run) {
		for _, at := range []struct {
			name string
			ms   float64
		}{{profile.EventRequested, 0}, {profile.EventReady, *r.TotalMs}} {
			r.Events = append(r.Events, profile.Event{Name: at.name, AtMs: at.ms, Confidence: profile.Reported, PrecisionMs: 1000})
		}
	}
	failing := func(r *profile.Run) { r.Requests = []profile.Request{{Route: "GET /a", N: 1, Error: "refused"}} }
	regression := func(measures ...string) *Config {
		g := DefaultRegression()
		g.Measures = measures
		return &Config{Regression: g}
	}
	for name, c := range map[string]struct {
		config   *Config
		r        *profile.Record
		baseline *profile.Record
		want     string
		reason   string
	}{
		"a route's first request failed":  {rule("first-request.penalty<=100ms"), with(900, penalty), nil, Inconclusive, "not known of all routes of run 1: GET /b"},
		"the same, as a ratio":            {rule("first-request.penalty<=9x"), with(900, penalty), nil, Inconclusive, "not known of all routes"},
		"to the second":                   {rule("1s"), with(500, coarse), nil, Inconclusive, "only to 1.000s"},
		"to the second, over":             {rule("1s"), with(1500, coarse), nil, Inconclusive, "only to 1.000s"},
		"to the second, well within":      {rule("2s"), with(500, coarse), nil, Pass, ""},
		"to the second, well beyond":      {rule("1s"), with(2500, coarse), nil, Failed, "over the limit"},
		"compared to the second":          {regression(profile.MeasureTotal), with(900, coarse), with(900, coarse), Inconclusive, "only to 1.000s"},
		"nothing known of either":         {regression(profile.PhaseHealthLB), record(around(900, 10)...), record(around(900, 10)...), Inconclusive, "not known of one"},
		"requests that failed, of either": {regression(profile.MeasureTotal, profile.PhaseFirstRequest), with(900, failing), with(900, failing), Inconclusive, ""},
		"no requests of either":           {&Config{Regression: DefaultRegression()}, record(around(900, 10)...), record(around(900, 10)...), Pass, ""},
		"no rule":                         {&Config{}, record(around(900, 10)...), nil, Inconclusive, ""},
		"no measures":                     {regression(), record(around(900, 10)...), record(around(900, 10)...), Inconclusive, ""},
		"no image":                        {&Config{Regression: DefaultRegression()}, &profile.Record{}, record(around(900, 10)...), Inconclusive, ""},
	} {
		got := Judge(c.config, c.r, c.baseline)
		if got.Outcome != c.want || len(got.Results) > 0 && !strings.Contains(got.Results[0].Reason, c.reason) {
			t.Errorf("%s: %+v, want %s: %s", name, got, c.want, c.reason)
		}
	}
}

// TestLevels: what counts.
func TestLevels(t *testing.T) {
	over, unknown, fine := Rule{Measure: profile.MeasureTotal, Stat: "p95", Limit: 1, Level: Fail}, Rule{Measure: profile.PhasePull, Stat: "p95", Limit: 1, Level: Fail}, Rule{Measure: profile.MeasureTotal, Stat: "p95", Limit: 1e6, Level: Fail}
	with := func(r Rule, level string) Rule { r.Level = level; return r }
	other := fine
	other.Subject = "web"
	for name, c := range map[string]struct {
		rules []Rule
		want  string
	}{
		"fine":                       {[]Rule{fine}, Pass},
		"a failure counts most":      {[]Rule{unknown, fine, over}, Failed},
		"inconclusive is no pass":    {[]Rule{fine, unknown}, Inconclusive},
		"warnings do not count":      {[]Rule{with(over, Warn), with(unknown, Warn), fine}, Pass},
		"what is off is not judged":  {[]Rule{with(over, Off), fine}, Pass},
		"no such image":              {[]Rule{other}, Inconclusive},
		"no such image, and off":     {[]Rule{with(other, Off)}, Pass},
		"no such image, only a warn": {[]Rule{with(other, Warn)}, Pass},
	} {
		if got := Judge(&Config{Rules: c.rules}, record(around(900, 10)...), nil); got.Outcome != c.want || len(got.Results) != len(c.rules) {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestRegression(t *testing.T) {
	for name, c := range map[string]struct {
		a, b    []float64
		change  func(r *profile.Record)
		outcome string
		reason  string
	}{
		"the same":         {around(900, 10), around(900, 10), nil, Pass, ""},
		"faster":           {around(900, 10), around(700, 10), nil, Pass, ""},
		"a little slower":  {around(900, 10), around(930, 10), nil, Pass, ""},
		"slower":           {around(900, 10), around(1100, 10), nil, Failed, "200ms more than the baseline's 900ms"},
		"few milliseconds": {around(10, 10), around(12, 10), nil, Pass, ""},
		"noisy":            {around(900, 10), []float64{600, 700, 800, 900, 1000, 1100, 1200, 1300, 850, 950}, nil, Inconclusive, "more runs may tell"},
		"too few":          {around(900, 4), around(1900, 10), nil, Inconclusive, "it takes 5"},
		"nothing":          {around(900, 10), nil, nil, Inconclusive, "not known of one"},
		"another network":  {around(900, 10), around(900, 10), func(r *profile.Record) { r.Network.Name = "slow" }, Inconclusive, "not comparable: networks unknown and slow"},
		"another machine":  {around(900, 10), around(1900, 10), func(r *profile.Record) { r.Machine.CPUs = 64 }, Inconclusive, "CPUs"},
		"another level":    {around(900, 10), around(900, 10), func(r *profile.Record) { r.Subjects[0].Cold = profile.ColdL1 }, Inconclusive, "started as L0 and the other as L1"},
		"another mode":     {around(900, 10), around(1900, 10), func(r *profile.Record) { r.Subjects[0].Mode = "eager" }, Inconclusive, "started in a way that is not known and the other eager"},
		"not cold":         {around(900, 10), around(700, 10), func(r *profile.Record) { r.Subjects[0].Runs[0].Coldness.Proven = false }, Inconclusive, "not proven"},
		"not cold, slower": {around(900, 10), around(1900, 10), func(r *profile.Record) { r.Subjects[0].Runs[0].Coldness.Proven = false }, Failed, ""},
		"another name":     {around(900, 10), around(900, 10), func(r *profile.Record) { r.Subjects[0].Name = "web" }, Pass, ""},
		"no such image": {around(900, 10), around(900, 10), func(r *profile.Record) {
			r.Subjects[0].Name = "web"
			r.Subjects = append(r.Subjects, profile.Subject{Name: "db"})
		}, Inconclusive, "the baseline has no such image"},
	} {
		a, b := record(c.a...), record(c.b...)
		if c.change != nil {
			c.change(b)
		}
		got := Judge(&Config{Regression: DefaultRegression()}, b, a)
		if got.Outcome != c.outcome || !strings.Contains(got.Results[0].Reason, c.reason) || got.Baseline != a.ID {
			t.Errorf("%s: %+v, want %s: %s", name, got, c.outcome, c.reason)
		}
	}
	// By an earlier one that may have been quicker than it should have been nothing fails.
	warm := record(around(900, 10)...)
	warm.Subjects[0].Runs[0].Coldness.Proven = false
	if got := Judge(&Config{Regression: DefaultRegression()}, record(around(1900, 10)...), warm); got.Outcome != Inconclusive || !strings.Contains(got.Results[0].Reason, "not proven to be cold") {
		t.Errorf("%+v", got)
	}
	off := DefaultRegression()
	off.Level = Off
	if got := Judge(&Config{Regression: off}, record(around(1900, 10)...), record(around(900, 10)...)); len(got.Results) != 0 {
		t.Errorf("%+v", got)
	}
}

// hostile is a report with what would be markup in everything that it is written as.
func hostile() *Report {
	rules := []Rule{}
	for _, s := range []string{"1s", "cold-start.p99<=3s", "pull<=1s", "image.compressed<=1GB", "cold-start.p50<=10s"} {
		r, err := ParseRule(s)
		if err != nil {
			panic(err)
		}
		rules = append(rules, r)
	}
	rules[2].Level = Off
	warn := rules[0]
	warn.Level = Warn
	r := profiletest.Record(1)
	r.Subjects[2].Name = "a|b `c` <d>&\"e\" ::error::\n%0A @everyone"
	r.Subjects[2].Runs[0].Error = "it said ]]> <x>|\x1b\n::warning::hello"
	return Judge(&Config{Rules: append(rules, warn), Regression: DefaultRegression()}, r, profiletest.Record(7))
}

func TestJUnit(t *testing.T) {
	r := hostile()
	var b bytes.Buffer
	if err := r.JUnit(&b); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Suite struct {
			Tests    int `xml:"tests,attr"`
			Failures int `xml:"failures,attr"`
			Errors   int `xml:"errors,attr"`
			Skipped  int `xml:"skipped,attr"`
			Cases    []struct {
				Class   string    `xml:"classname,attr"`
				Failure *struct{} `xml:"failure"`
				Error   *struct{} `xml:"error"`
				Skipped *struct{} `xml:"skipped"`
			} `xml:"testcase"`
		} `xml:"testsuite"`
	}
	dec := xml.NewDecoder(bytes.NewReader(b.Bytes()))
	if err := dec.Decode(&got); err != nil {
		t.Fatal(err)
	}
	if _, err := dec.Token(); err != nil && !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	want := map[string]int{}
	for _, res := range r.Results {
		if res.Level == Fail || res.Level == Off {
			want[res.Outcome]++
		}
	}
	s := got.Suite
	if s.Tests != len(r.Results) || len(s.Cases) != s.Tests || s.Failures != want[Failed] || s.Errors != want[Inconclusive] || s.Skipped != want[Skipped] || s.Failures*s.Errors*s.Skipped == 0 {
		t.Errorf("%+v, want %v of %d\n%s", s, want, len(r.Results), &b)
	}
	if !slices.ContainsFunc(s.Cases, func(c struct {
		Class   string    `xml:"classname,attr"`
		Failure *struct{} `xml:"failure"`
		Error   *struct{} `xml:"error"`
		Skipped *struct{} `xml:"skipped"`
	}) bool {
		return strings.HasPrefix(c.Class, "a|b `c` <d>&\"e\"")
	}) {
		t.Errorf("the image's name is another one: %s", &b)
	}
}

func TestMarkdown(t *testing.T) {
	var b bytes.Buffer
	if err := hostile().Markdown(&b); err != nil {
		t.Fatal(err)
	}
	s := b.String()
	if !strings.HasPrefix(s, Marker+"\n") || strings.Contains(s, "<x>") || strings.Contains(s, "@everyone") || strings.ContainsRune(s, 0x1b) {
		t.Error(s)
	}
	for line := range strings.Lines(s) {
		if strings.HasPrefix(line, "|") && strings.Count(strings.ReplaceAll(line, `\|`, ""), "|") != 8 {
			t.Errorf("a row with other columns: %s", line)
		}
	}
}

func TestGitHub(t *testing.T) {
	var b bytes.Buffer
	r := hostile()
	if err := r.GitHub(&b); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, res := range r.Results {
		if res.Outcome != Pass && res.Outcome != Skipped {
			n++
		}
	}
	lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
	if len(lines) != n {
		t.Errorf("%d commands, want %d:\n%s", len(lines), n, &b)
	}
	for _, line := range lines {
		if !strings.HasPrefix(line, "::error title=Cold start%3A ") && !strings.HasPrefix(line, "::warning title=Cold start%3A ") {
			t.Errorf("no command: %s", line)
		}
	}
}

func TestCodeQuality(t *testing.T) {
	var b bytes.Buffer
	if err := hostile().CodeQuality(&b, FileName); err != nil {
		t.Fatal(err)
	}
	var all []map[string]any
	if err := json.Unmarshal(b.Bytes(), &all); err != nil {
		t.Fatal(err)
	}
	seen := map[any]bool{}
	for _, f := range all {
		if seen[f["fingerprint"]] && f["severity"] == "major" {
			t.Errorf("fingerprint twice: %v", f)
		}
		seen[f["fingerprint"]] = true
		if f["description"] == "" || f["check_name"] == "" || f["location"].(map[string]any)["path"] != FileName {
			t.Errorf("%v", f)
		}
	}
	if len(all) == 0 {
		t.Error("no finding")
	}
	b.Reset()
	if err := (&Report{}).CodeQuality(&b, FileName); err != nil || strings.TrimSpace(b.String()) != "[]" {
		t.Errorf("%s, %v", &b, err)
	}
}

func TestText(t *testing.T) {
	var b bytes.Buffer
	if err := hostile().Text(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"1 of 15 runs failed: it said ]]> <x>|  ::warning::hello", "FAIL ", "INCONCLUSIVE ", "off ", "ok ", "warning ", "The start is over its budget: "} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, &b)
		}
	}
	if strings.ContainsRune(b.String(), 0x1b) {
		t.Error("a terminal would take something for a command")
	}
}

func ExampleParseRule() {
	r, _ := ParseRule("1s")
	fmt.Println(r.String())
	// Output: cold-start.p95<=1s
}

// FuzzParseFile: no file crashes it, and rules that are taken are taken again as they
// are written.
func FuzzParseFile(f *testing.F) {
	f.Add([]byte("version: 1\nbudgets: [cold-start.p95<=1s, {budget: pull<=200ms, level: warn}]\nregression: {margin: 5%}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseFile(b)
		if err != nil {
			return
		}
		for _, r := range c.Rules {
			again, err := ParseRule(r.String())
			if again.Subject, again.Level = r.Subject, r.Level; err != nil || again != r {
				t.Errorf("%+v, written again %+v: %v", r, again, err)
			}
		}
	})
}
