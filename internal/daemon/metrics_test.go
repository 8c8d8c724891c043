package daemon

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"

	"github.com/thaw-project/thaw/internal/hydrate"
	"github.com/thaw-project/thaw/internal/metrics"
)

// metricsDaemon is a daemon with all that metrics are gathered from.
func metricsDaemon(t *testing.T) *Daemon {
	t.Helper()
	d := openDaemon(t, t.TempDir())
	d.sched = hydrate.New(hydrate.Options{})
	t.Cleanup(d.sched.Close)
	return d
}

// scraped returns what a daemon without anything mounted tells Prometheus.
func scraped(t *testing.T) string {
	t.Helper()
	d := metricsDaemon(t)
	d.counts.starts.Observe(someStart())
	var set metrics.Set
	d.gather(&set)
	var b strings.Builder
	enc := expfmt.NewEncoder(&b, expfmt.NewFormat(expfmt.TypeTextPlain))
	for _, f := range set.Families() {
		if err := enc.Encode(f); err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

// TestLint: Prometheus' parser and linter have nothing against the metrics.
func TestLint(t *testing.T) {
	text := scraped(t)
	parse := expfmt.NewTextParser(model.UTF8Validation)
	if _, err := parse.TextToMetricFamilies(strings.NewReader(text)); err != nil {
		t.Fatal(err)
	}
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// known returns the series that there are, with all values of each label, of
// which none is left out because it is 0.
func known(t *testing.T) map[string]map[string][]string {
	t.Helper()
	parse := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parse.TextToMetricFamilies(strings.NewReader(scraped(t)))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]map[string][]string{
		"up":               {},                                           // Prometheus' own
		"thaw_image_bytes": {"image": nil, "state": {"here", "missing"}}, // nothing is mounted here
	}
	for name, f := range families {
		values := map[string][]string{}
		for _, m := range f.Metric {
			for _, l := range m.Label {
				values[l.GetName()] = append(values[l.GetName()], l.GetValue())
			}
		}
		if f.GetType().String() == "HISTOGRAM" {
			all[name+"_bucket"], all[name+"_sum"], all[name+"_count"] = maps.Clone(values), values, values
			all[name+"_bucket"]["le"] = nil
			continue
		}
		all[name] = values
	}
	return all
}

// checkQuery holds a query against the metrics: their names, their labels, and the
// values that those are compared with.
func checkQuery(t *testing.T, all map[string]map[string][]string, where, query string) {
	t.Helper()
	query = strings.NewReplacer("$__rate_interval", "5m", "$instance", ".*").Replace(query)
	expr, err := parser.ParseExpr(query)
	if err != nil {
		t.Errorf("%s: %v", where, err)
		return
	}
	parser.Inspect(expr, func(n parser.Node, _ []parser.Node) error {
		if agg, ok := n.(*parser.AggregateExpr); ok {
			checkGrouping(t, all, where, agg)
		}
		sel, ok := n.(*parser.VectorSelector)
		if !ok {
			return nil
		}
		values, ok := all[sel.Name]
		if !ok {
			t.Errorf("%s: there is no metric %s", where, sel.Name)
			return nil
		}
		for _, m := range sel.LabelMatchers {
			if m.Name == labels.MetricName || m.Name == "job" || m.Name == "instance" {
				continue
			}
			have, ok := values[m.Name]
			if !ok {
				t.Errorf("%s: %s has no label %s", where, sel.Name, m.Name)
			}
			if have != nil && !slices.ContainsFunc(have, m.Matches) {
				t.Errorf("%s: %s never has %s", where, sel.Name, m)
			}
		}
		return nil
	})
}

// checkGrouping: what an aggregation groups by is a label of what is below it.
func checkGrouping(t *testing.T, all map[string]map[string][]string, where string, agg *parser.AggregateExpr) {
	t.Helper()
	for _, sel := range parser.ExtractSelectors(agg.Expr) {
		name := ""
		for _, m := range sel {
			if m.Name == labels.MetricName {
				name = m.Value
			}
		}
		for _, by := range agg.Grouping {
			if _, ok := all[name][by]; !ok && by != "instance" && by != "job" {
				t.Errorf("%s: %s, grouped by %s, has no such label", where, name, by)
			}
		}
	}
}

func observability(name string) string {
	return filepath.Join("..", "..", "deploy", "observability", name)
}

// TestAlerts: the rules are what Prometheus accepts, and about metrics that there are.
func TestAlerts(t *testing.T) {
	groups, errs := rulefmt.ParseFile(observability("alerts.yaml"), false)
	for _, err := range errs {
		t.Error(err)
	}
	all := known(t)
	n := 0
	for _, g := range groups.Groups {
		for _, r := range g.Rules {
			n++
			checkQuery(t, all, r.Alert, r.Expr)
			if r.Labels["severity"] == "" || r.Annotations["summary"] == "" {
				t.Errorf("%s has no severity or no summary", r.Alert)
			}
		}
	}
	if n == 0 {
		t.Error("there are no rules")
	}
}

// TestDashboard: each panel asks for metrics that there are.
func TestDashboard(t *testing.T) {
	b, err := os.ReadFile(observability("grafana-dashboard.json"))
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(b, &dashboard); err != nil {
		t.Fatal(err)
	}
	all := known(t)
	for _, p := range dashboard.Panels {
		if len(p.Targets) == 0 {
			t.Errorf("panel %q asks for nothing", p.Title)
		}
		for _, target := range p.Targets {
			checkQuery(t, all, p.Title, target.Expr)
		}
	}
	if len(dashboard.Panels) == 0 {
		t.Error("there are no panels")
	}
}

// TestMetricsDocumented: docs/observability.md has each metric of ours, and no other.
func TestMetricsDocumented(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("..", "..", "docs", "observability.md"))
	if err != nil {
		t.Fatal(err)
	}
	told := map[string]bool{}
	for _, word := range strings.FieldsFunc(string(b), func(r rune) bool { return r != '_' && (r < 'a' || r > 'z') }) {
		told[word] = true
	}
	base := map[string]bool{"thaw_": true, "coldstart_": true}
	for name := range known(t) {
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			name = strings.TrimSuffix(name, suffix)
		}
		base[name] = true
		if name != "up" && !told[name] {
			t.Errorf("%s is not documented", name)
		}
	}
	for word := range told {
		if (strings.HasPrefix(word, "thaw_") || strings.HasPrefix(word, "coldstart_")) && !base[word] {
			t.Errorf("%s is documented, and there is none", word)
		}
	}
}

// TestReadHere never falls, whatever the order in which it sees its parts.
func TestReadHere(t *testing.T) {
	c := newCounts()
	c.served.Store(100)
	if got := c.readHere(); got != 100 {
		t.Errorf("%d here, want 100", got)
	}
	c.waited.Add(50) // and not yet served
	if got := c.readHere(); got != 100 {
		t.Errorf("%d here, want 100", got)
	}
	c.served.Add(60)
	if got := c.readHere(); got != 110 {
		t.Errorf("%d here, want 110", got)
	}
}

// TestServeMetrics: an address that is taken is tried again, and what answers is what
// Prometheus reads.
func TestServeMetrics(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := metricsDaemon(t)
	d.cfg.Metrics = taken.Addr().String()
	said := make(chan string, 16)
	d.log = slog.New(slog.NewTextHandler(lines(said), nil))
	d.ctx, d.cancel = context.WithCancel(t.Context())
	d.wg.Go(d.serveMetrics)
	for _, want := range []string{"metrics cannot be served", "metrics are served"} {
		if got := <-said; !strings.Contains(got, want) {
			t.Errorf("logged %s, want %q", got, want)
		}
		taken.Close()
	}
	url := "http://" + d.cfg.Metrics
	for path, status := range map[string]int{"/metrics": http.StatusOK, "/": http.StatusNotFound, "/v1/status": http.StatusNotFound} {
		resp, err := http.Get(url + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != status || path == "/metrics" && !strings.Contains(string(body), "\nthaw_mounts{mode=\"fanotify\"} 0\n") {
			t.Errorf("%s: %s, %v: %s", path, resp.Status, err, body)
		}
	}
	d.cancel()
	d.wg.Wait()
}

// lines is a writer that gives each write to a channel.
type lines chan string

func (l lines) Write(b []byte) (int, error) {
	l <- string(b)
	return len(b), nil
}
