package emit

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/model/textparse"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/util/annotations"

	"github.com/thaw-project/thaw/internal/metrics"
	"github.com/thaw-project/thaw/internal/profile"
	"github.com/thaw-project/thaw/internal/profile/profiletest"
)

// text is what a collector tells.
func text(t *testing.T, c *Collector, all, openMetrics bool) string {
	t.Helper()
	var set metrics.Set
	if all {
		c.Put(&set)
	} else {
		c.Gather(&set)
	}
	var b strings.Builder
	if err := set.WriteText(&b, openMetrics); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func families(t *testing.T, text string) map[string]*dto.MetricFamily {
	t.Helper()
	parse := expfmt.NewTextParser(model.UTF8Validation)
	all, err := parse.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestExposition: Prometheus' parsers and its linter have nothing against what records
// make, and the numbers are theirs.
func TestExposition(t *testing.T) {
	r := profiletest.Record(1)
	r.Labels = nil // a service for each image
	r.Subjects[0].Runs[0].Error = "it died"
	all := starts(t, r, Options{})
	var c Collector
	c.Observe(all...)
	told := text(t, &c, true, false)
	problems, err := promlint.New(strings.NewReader(told)).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
	if again := text(t, &c, true, false); again != told {
		t.Error("it is told in another order each time")
	}
	open := text(t, &c, true, true)
	p := textparse.NewOpenMetricsParser([]byte(open), labels.NewSymbolTable())
	n := 0
	for ; ; n++ {
		if _, err := p.Next(); err != nil {
			if err.Error() != "EOF" {
				t.Errorf("after %d entries: %v", n, err)
			}
			break
		}
	}
	f := families(t, told)
	if got := f[SeriesSeconds]; len(got.Metric) != 3 || n < 100 {
		t.Errorf("%d services, %d entries", len(got.Metric), n)
	}
	for _, m := range f[SeriesPhase].Metric {
		var service, phase string
		for _, l := range m.Label {
			if l.GetName() == "service" {
				service = l.GetValue()
			} else {
				phase = l.GetValue()
			}
		}
		want := 0.
		var under uint64
		for i := range all {
			for _, p := range all[i].Phases {
				if all[i].Service == service && p.Name == phase {
					want += p.Ms / 1000
					if p.Ms <= 50 {
						under++
					}
				}
			}
		}
		if got := m.Histogram.GetSampleSum(); math.Abs(got-want) > 1e-6 || m.Histogram.Bucket[0].GetCumulativeCount() != under {
			t.Errorf("%s of %s: %g s, %d under 50 ms, want %g, %d", phase, service, got, m.Histogram.Bucket[0].GetCumulativeCount(), want, under)
		}
		var bounds []float64
		for _, b := range m.Histogram.Bucket {
			bounds = append(bounds, b.GetUpperBound())
		}
		if diff := cmp.Diff([]float64{.05, .1, .25, .5, 1, 2.5, 5, 10, 20, 45, 90, 180, math.Inf(1)}, bounds); diff != "" {
			t.Error(diff)
		}
	}
	if got := f[SeriesFailures].Metric[0].Counter.GetValue(); got != 1 {
		t.Errorf("%g failed", got)
	}
}

// TestBounded: however many services, modes and phases there are, series stay few.
func TestBounded(t *testing.T) {
	var c Collector
	for i := range 1000 {
		c.Observe(Start{Service: fmt.Sprintf("s%d", i), Mode: fmt.Sprintf("m%d", i), Cold: fmt.Sprint(i), Phases: []Phase{{fmt.Sprint(i), 1}, {profile.PhasePull, 1}}})
		c.ObservePhase(fmt.Sprintf("t%d", i), Phase{profile.PhaseHydration, 1})
	}
	c.Observe(Start{Service: "s0", Mode: "containerd/overlayfs", Cold: "L1", Error: "x"})
	f := families(t, text(t, &c, true, false))
	if n := len(f[SeriesSeconds].Metric); n != 101 {
		t.Errorf("%d services", n)
	}
	if n := len(f[SeriesPhase].Metric); n != 101+1 { // "other" has two
		t.Errorf("%d phases", n)
	}
	values := map[string]bool{}
	for _, m := range f[SeriesStarts].Metric {
		for _, l := range m.Label {
			if l.GetName() != "service" {
				values[l.GetName()+"="+l.GetValue()] = true
			}
		}
	}
	if diff := cmp.Diff(map[string]bool{"mode=other": true, "cold=unknown": true, "mode=containerd": true, "cold=L1": true}, values); diff != "" {
		t.Error(diff)
	}
}

// sample is a number of a series at a time.
type sample struct {
	at int64
	v  float64
}

func (s sample) T() int64                      { return s.at }
func (s sample) F() float64                    { return s.v }
func (s sample) H() *histogram.Histogram       { return nil }
func (s sample) FH() *histogram.FloatHistogram { return nil }
func (s sample) Type() chunkenc.ValueType      { return chunkenc.ValFloat }
func (s sample) Copy() chunks.Sample           { return s }

// scraper is a Prometheus that scrapes a collector: its samples, and its engine over them.
type scraper struct {
	t      *testing.T
	series map[string]*struct {
		labels  labels.Labels
		samples []chunks.Sample
	}
	engine *promql.Engine
}

func newScraper(t *testing.T) *scraper {
	s := &scraper{t: t, engine: promql.NewEngine(promql.EngineOpts{MaxSamples: 1e6, Timeout: time.Minute, Logger: slog.New(slog.DiscardHandler)})}
	s.series = map[string]*struct {
		labels  labels.Labels
		samples []chunks.Sample
	}{}
	t.Cleanup(func() { s.engine.Close() })
	return s
}

// scrape reads what a collector tells at a time, with Prometheus' own parser.
func (s *scraper) scrape(c *Collector, at time.Time) {
	s.t.Helper()
	p := textparse.NewPromParser([]byte(text(s.t, c, false, false)), labels.NewSymbolTable())
	for {
		entry, err := p.Next()
		if err != nil {
			return
		}
		if entry != textparse.EntrySeries {
			continue
		}
		_, _, v := p.Series()
		var l labels.Labels
		p.Labels(&l)
		key := l.String()
		if s.series[key] == nil {
			s.series[key] = &struct {
				labels  labels.Labels
				samples []chunks.Sample
			}{labels: l}
		}
		s.series[key].samples = append(s.series[key].samples, sample{at.UnixMilli(), v})
	}
}

func (s *scraper) Querier(_, _ int64) (storage.Querier, error) { return querier{s}, nil }

type querier struct{ *scraper }

func (q querier) LabelValues(context.Context, string, *storage.LabelHints, ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return nil, nil, nil
}

func (q querier) LabelNames(context.Context, *storage.LabelHints, ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return nil, nil, nil
}

func (q querier) Close() error { return nil }

func (q querier) Select(_ context.Context, _ bool, _ *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
	var found []storage.Series
	for _, s := range q.series {
		if !slices.ContainsFunc(matchers, func(m *labels.Matcher) bool { return !m.Matches(s.labels.Get(m.Name)) }) {
			found = append(found, storage.NewListSeries(s.labels, s.samples))
		}
	}
	slices.SortFunc(found, func(a, b storage.Series) int { return labels.Compare(a.Labels(), b.Labels()) })
	return &seriesSet{all: found, at: -1}
}

type seriesSet struct {
	all []storage.Series
	at  int
}

func (s *seriesSet) Next() bool                        { s.at++; return s.at < len(s.all) }
func (s *seriesSet) At() storage.Series                { return s.all[s.at] }
func (s *seriesSet) Err() error                        { return nil }
func (s *seriesSet) Warnings() annotations.Annotations { return nil }

func (s *scraper) query(expr string, at time.Time) promql.Vector {
	s.t.Helper()
	q, err := s.engine.NewInstantQuery(s.t.Context(), s, nil, expr, at)
	if err != nil {
		s.t.Fatalf("%s: %v", expr, err)
	}
	defer q.Close()
	v, err := q.Exec(s.t.Context()).Vector()
	if err != nil {
		s.t.Fatalf("%s: %v", expr, err)
	}
	return slices.Clone(v)
}

func rules(t *testing.T, threshold time.Duration) (map[string]rulefmt.Rule, []rulefmt.RuleGroup) {
	t.Helper()
	b, err := Rules(threshold)
	if err != nil {
		t.Fatal(err)
	}
	groups, errs := rulefmt.Parse(b, false)
	for _, err := range errs {
		t.Error(err)
	}
	all := map[string]rulefmt.Rule{}
	for _, g := range groups.Groups {
		for _, r := range g.Rules {
			all[r.Alert+r.Record] = r
		}
	}
	return all, groups.Groups
}

// TestAlerts scrapes starts for an hour and a half, every 15 s, and evaluates the rules every
// minute as Prometheus does: an alert fires once its expression held for its time.
func TestAlerts(t *testing.T) {
	for name, c := range map[string]struct {
		start  func(minute int) float64 // seconds of a start in that minute, 0: none
		firing func(minute int) bool
	}{
		"fast":     {func(int) float64 { return 0.9 }, func(int) bool { return false }},
		"one slow": {func(m int) float64 { return map[bool]float64{m == 20: 30}[true] }, func(int) bool { return false }},
		"slow for half an hour": {func(m int) float64 {
			if m%3 == 0 && m >= 20 && m < 50 {
				return 3
			}
			return 0.4
		}, func(m int) bool { return m >= 33 && m < 56 }},
		"the first ones": {func(m int) float64 { // nothing was scraped before them
			if m < 20 {
				return 3
			}
			return 0
		}, func(m int) bool { return m >= 12 && m < 28 }},
	} {
		t.Run(name, func(t *testing.T) {
			all, _ := rules(t, time.Second)
			alert := all["ColdStartSlow"]
			var c2 Collector
			s := newScraper(t)
			var since time.Time
			for second := 0; second < 90*60; second += 15 {
				now := begun.Add(time.Duration(second) * time.Second)
				if second%60 == 30 {
					if took := c.start(second / 60); took > 0 {
						c2.Observe(Start{Service: "shop", DurationMs: ptr(took * 1000)})
					}
				}
				s.scrape(&c2, now)
				if second%60 != 45 {
					continue
				}
				if len(s.query(alert.Expr, now)) == 0 {
					since = time.Time{}
				} else if since.IsZero() {
					since = now
				}
				minute := second / 60
				firing := !since.IsZero() && now.Sub(since) >= time.Duration(alert.For)
				certain := c.firing(minute) == c.firing(minute+2) && c.firing(minute) == c.firing(max(minute-2, 0))
				if certain && firing != c.firing(minute) {
					t.Errorf("minute %d: firing %v", minute, firing)
				}
			}
		})
	}
}

// TestFirstStart: the first start of a service is in rates, although its series were not there
// before; and quantiles and means of recordings are those of what was observed.
func TestFirstStart(t *testing.T) {
	all, _ := rules(t, time.Second)
	var c Collector
	s := newScraper(t)
	at := begun
	step := func() {
		s.scrape(&c, at)
		at = at.Add(15 * time.Second)
	}
	step()
	c.Observe(starts(t, full(), Options{})...)
	for range 8 {
		step()
	}
	if v := s.query(all["service:coldstart_seconds:p99"].Expr, at); len(v) != 1 || v[0].F < 0.25 || v[0].F > 0.5 {
		t.Errorf("p99 of 0.48 s is %v", v)
	}
	v := s.query(all["service_phase:coldstart_phase_seconds:mean"].Expr, at)
	if len(v) != len(profile.Phases) {
		t.Errorf("phases %v", v)
	}
	for _, one := range v {
		want := float64(slices.Index(profile.Phases, one.Metric.Get("phase"))+1) / 100
		if math.Abs(one.F-want) > 1e-9 {
			t.Errorf("%s takes %g s, want %g", one.Metric, one.F, want)
		}
	}
	if v := s.query(`increase(coldstart_starts_total[5m])`, at); len(v) != 1 || v[0].F < 0.9 || v[0].Metric.Get("mode") != "lazy" || v[0].Metric.Get("cold") != "L0" {
		t.Errorf("starts %v", v)
	}
	if v := s.query(all["service:coldstart_phase_seconds:first_request_penalty_p99"].Expr, at); len(v) != 1 || v[0].F < .05 || v[0].F > .1 {
		t.Errorf("first requests %v", v)
	}
	for range 80 {
		step()
	}
	for name, r := range all {
		if v := s.query(r.Expr, at); len(v) != 0 {
			t.Errorf("long after the last start %s is %v", name, v)
		}
	}
}

// TestQueries holds each query of rules and dashboard against the series of a record: names,
// labels, and the values that they are compared with.
func TestQueries(t *testing.T) {
	var c Collector
	c.Observe(starts(t, full(), Options{})...)
	s := newScraper(t)
	s.scrape(&c, begun)
	check := func(where, query string) {
		t.Helper()
		expr, err := parser.ParseExpr(strings.NewReplacer("$__rate_interval", "5m", "$service", "api-service").Replace(query))
		if err != nil {
			t.Errorf("%s: %v", where, err)
			return
		}
		parser.Inspect(expr, func(n parser.Node, _ []parser.Node) error {
			if agg, ok := n.(*parser.AggregateExpr); ok {
				for _, sel := range parser.ExtractSelectors(agg.Expr) {
					for _, one := range s.match(sel) {
						for _, by := range agg.Grouping {
							if !one.Has(by) {
								t.Errorf("%s groups by %s, which %s has not", where, by, one)
							}
						}
					}
				}
			}
			if sel, ok := n.(*parser.VectorSelector); ok && len(s.match(sel.LabelMatchers)) == 0 {
				t.Errorf("%s asks for %s, which there is not", where, sel)
			}
			return nil
		})
	}
	all, _ := rules(t, 2500*time.Millisecond)
	if len(all) != 7 || !strings.HasSuffix(all["ColdStartSlow"].Expr, " > 2.5") || all["ColdStartSlow"].For != model.Duration(10*time.Minute) {
		t.Errorf("rules %v", all)
	}
	for name, r := range all {
		check(name, r.Expr)
	}
	b, err := Grafana(time.Second)
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct {
			ID      int
			Title   string
			GridPos struct{ X, Y, W, H int }
			Targets []struct{ RefID, Expr string }
		}
		Templating struct {
			List []struct {
				Name  string
				Query any
			}
		}
	}
	if err := json.Unmarshal(b, &dashboard); err != nil {
		t.Fatal(err)
	}
	taken := map[[2]int]int{}
	for _, p := range dashboard.Panels {
		if len(p.Targets) == 0 || p.ID == 0 {
			t.Errorf("panel %q asks for nothing", p.Title)
		}
		for _, target := range p.Targets {
			check(p.Title, target.Expr)
		}
		for x := range p.GridPos.W {
			for y := range p.GridPos.H {
				at := [2]int{p.GridPos.X + x, p.GridPos.Y + y}
				if other := taken[at]; other != 0 || at[0] >= 24 {
					t.Fatalf("panel %d lies on %d", p.ID, other)
				}
				taken[at] = p.ID
			}
		}
	}
	if len(dashboard.Panels) != 5 || len(dashboard.Templating.List) != 2 {
		t.Errorf("%d panels, %d variables", len(dashboard.Panels), len(dashboard.Templating.List))
	}
	if !bytes.Contains(b, []byte("runtime_init")) || !bytes.Contains(b, []byte(`label_values(coldstart_starts_total, service)`)) {
		t.Error("the dashboard has no runtime_init, or no services")
	}
	for _, f := range []func(time.Duration) ([]byte, error){Rules, Grafana} {
		if _, err := f(0); err == nil {
			t.Error("no threshold was taken")
		}
	}
}

// match returns the labels of the series that matchers choose.
func (s *scraper) match(matchers []*labels.Matcher) (found []labels.Labels) {
	for _, one := range s.series {
		if !slices.ContainsFunc(matchers, func(m *labels.Matcher) bool { return !m.Matches(one.labels.Get(m.Name)) }) {
			found = append(found, one.labels)
		}
	}
	return found
}
