package health

import (
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// The examples here are worked out by hand, and elsewhere: they are what the
// formulas have to come to.

func read(t testing.TB, name string) *File {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	f, err := Parse(name, b)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *File) check(t testing.TB, name string) *Check {
	t.Helper()
	for i := range f.Checks {
		if f.Checks[i].Name == name {
			return &f.Checks[i]
		}
	}
	t.Fatalf("no check of %s", name)
	return nil
}

// TestContainerTable: ECS' defaults, and the settings that are often recommended
// for less, with a probe of 50 ms; -1 is given up.
func TestContainerTable(t *testing.T) {
	f := read(t, "task.json")
	for _, c := range []struct {
		name    string
		healthy map[float64]float64
		kill    float64
		rule    [2]float64
	}{
		{"default", map[float64]float64{0.48: 30.05, 5.2: 30.05, 12: 30.05, 25: 30.05, 61: 90.15}, 90.15, [2]float64{90, 120}},
		{"tuned", map[float64]float64{0.48: 5.05, 5.2: 10.10, 12: 15.15, 25: -1, 61: -1}, 15.15, [2]float64{15, 20}},
	} {
		check := f.check(t, c.name)
		for r, want := range c.healthy {
			res := Evaluate(check, Options{Ready: Ready{secs(r), secs(r)}, Probe: secs(0.05), Variant: Classic})
			e := res.Estimates[0]
			got := -1.
			if h := e.Rows[0].Healthy; h != nil {
				got = *h
			}
			if got != want || e.Deadline != c.kill || (e.GivenUp == 1) != (want == -1) {
				t.Errorf("%s, ready at %v: healthy at %v, given up at %v (%v), want %v and %v", c.name, r, got, e.Deadline, e.GivenUp, want, c.kill)
			}
			if diff := cmp.Diff(c.rule[:], res.RuleOfThumb); diff != "" {
				t.Errorf("%s: rule of thumb: %s", c.name, diff)
			}
		}
	}
}

// TestStartInterval: Docker 25 and later probe every 5 s while the container
// starts, which ECS on EC2 has too, and cannot configure.
func TestStartInterval(t *testing.T) {
	c := ECSDefaults
	c.StartPeriod = 120 * time.Second
	for v, want := range map[Variant]float64{Classic: 30.05, Fargate: 30.05, Docker25: 10.10, Moby2026: 10.10} {
		if got, ok := c.Healthy(v, secs(0.05), secs(5.2)); !ok || sec(got) != want {
			t.Errorf("%s: %v, %v, want %v", v, sec(got), ok, want)
		}
	}
}

// TestTargetTable: interval, unhealthy and healthy threshold, and readiness, with
// the soonest, the mean and the latest time.
func TestTargetTable(t *testing.T) {
	for _, c := range []struct {
		interval, unhealthy, healthy int
		ready                        float64
		want                         [3]float64
		digits                       float64
	}{
		{30, 2, 5, 5.2, [3]float64{5, 20, 35}, 1},
		{30, 2, 5, 65, [3]float64{185, 200, 215}, 1},
		{10, 2, 3, 5.2, [3]float64{5, 10, 15}, 1},
		{10, 2, 3, 12, [3]float64{12, 21, 42}, 1},
		{10, 2, 3, 25, [3]float64{45, 50, 55}, 1},
		{5, 2, 2, 0.48, [3]float64{0.5, 3.0, 5.5}, 10},
		// An image of Alpine in place of another one, behind the defaults: what is left of 27 %.
		{30, 2, 5, 21.1, [3]float64{21.1, 36.1, 51.1}, 10},
		{30, 2, 5, 15.4, [3]float64{15.4, 30.4, 45.4}, 10},
		// With an interval of 5 s as many failures as it takes have to be allowed.
		{5, 6, 5, 21.1, [3]float64{21.1, 23.6, 26.1}, 10},
		{5, 6, 5, 15.4, [3]float64{15.4, 17.9, 20.4}, 10},
		{5, 2, 5, 21.1, [3]float64{41.1, 43.6, 46.1}, 10},
	} {
		g := Target{Interval: time.Duration(c.interval) * time.Second, Timeout: 2 * time.Second, Healthy: c.healthy, Unhealthy: c.unhealthy}
		res := Evaluate(&Check{Kind: KindTarget, Target: &g}, Options{Ready: Ready{secs(c.ready), secs(c.ready)}})
		row := res.Estimates[0].Rows[0]
		round := func(f float64) float64 { return math.Round(f*c.digits) / c.digits }
		if got := [3]float64{round(row.Best), round(row.Expected), round(row.Worst)}; got != c.want {
			t.Errorf("%d/%d/%d, ready at %v: %v, want %v", c.interval, c.unhealthy, c.healthy, c.ready, got, c.want)
		}
	}
}

// TestPodFigures: what each kind of probe adds.
func TestPodFigures(t *testing.T) {
	probe := func(period, delay, failure int) *Probe {
		return &Probe{Period: time.Duration(period) * second, Timeout: second, Delay: time.Duration(delay) * second, Success: 1, Failure: failure}
	}
	two := probe(10, 0, 3)
	two.Success = 2
	for _, c := range []struct {
		name  string
		pod   Pod
		ready float64
		want  [3]float64
		kill  [2]float64
	}{
		// max(delay, r) + P/2, at most + P; restarted at about delay + failures * P.
		{"startup", Pod{Startup: probe(10, 0, 3)}, 5.2, [3]float64{5.2, 10.2, 15.2}, [2]float64{20, 30}},
		{"startup with a delay", Pod{Startup: probe(10, 15, 3)}, 5.2, [3]float64{15, 20, 25}, [2]float64{35, 45}},
		{"startup, then readiness at once", Pod{Startup: probe(1, 0, 30), Readiness: probe(10, 0, 3)}, 5.2, [3]float64{5.2, 5.7, 6.2}, [2]float64{29, 30}},
		// r + P/2 + (successes-1) * P
		{"readiness", Pod{Readiness: probe(10, 0, 3)}, 5.2, [3]float64{5.2, 10.2, 15.2}, [2]float64{}},
		{"two successes", Pod{Readiness: two}, 5.2, [3]float64{15.2, 20.2, 25.2}, [2]float64{}},
		{"liveness", Pod{Liveness: probe(10, 0, 3)}, 5.2, [3]float64{0, 0, 0}, [2]float64{20, 30}},
	} {
		e := Evaluate(&Check{Kind: KindKubernetes, Pod: &c.pod}, Options{Ready: Ready{secs(c.ready), secs(c.ready)}}).Estimates[0]
		row := e.Rows[0]
		if got := [3]float64{row.Best, row.Expected, row.Worst}; got != c.want || e.Deadline != c.kill[0] || e.DeadlineLatest != c.kill[1] {
			t.Errorf("%s: %v, restarted at %v to %v; want %v, %v", c.name, got, e.Deadline, e.DeadlineLatest, c.want, c.kill)
		}
	}
}

func TestReady(t *testing.T) {
	for s, want := range map[string]Ready{
		"p50=0.48,p99=2": {secs(0.48), secs(2)}, "0.5": {secs(0.5), secs(0.5)}, "p50=480ms, p99=2s": {secs(0.48), secs(2)}, "p50=3": {secs(3), secs(3)},
	} {
		if got, err := ParseReady(s); err != nil || got != want {
			t.Errorf("%q: %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "p50=", "p50=x", "p50=-1", "p99=2", "p50=2,p99=1", "p50=NaN", "p50=1e30", "p10=1", "p50=0"} {
		if got, err := ParseReady(s); err == nil {
			t.Errorf("%q is taken: %v", s, got)
		}
	}
	r := Ready{secs(5), secs(20)}
	for q, want := range map[float64]float64{0.5: 5, 0.99: 20, 0.01: 1.25} {
		if got := r.Quantile(q); math.Abs(got.Seconds()-want) > 1e-6 {
			t.Errorf("quantile %v: %v, want %v", q, got, want)
		}
		if got := r.Later(r.Quantile(q)); math.Abs(got-(1-q)) > 1e-9 {
			t.Errorf("later than quantile %v: %v", q, got)
		}
	}
}

// TestComplaint: an image that is ready in 15.4 s in place of 21.1 s, and what is left of
// these 27 % behind a target group. Neither nothing nor all: with the defaults 16 %, 24 %
// if it looks every 5 s, and 3.6 % for who believes that it takes five successes.
func TestComplaint(t *testing.T) {
	expected := func(interval, unhealthy int, ready float64) float64 {
		g := Target{Interval: time.Duration(interval) * second, Timeout: 2 * second, Healthy: 5, Unhealthy: unhealthy}
		return Evaluate(&Check{Kind: KindTarget, Target: &g}, Options{Ready: Ready{secs(ready), secs(ready)}}).Estimates[0].Rows[0].Expected
	}
	for _, c := range []struct {
		interval, unhealthy int
		before, after, less float64
	}{{30, 2, 36.1, 30.4, 16}, {5, 6, 23.6, 17.9, 24}} {
		before, after := expected(c.interval, c.unhealthy, 21.1), expected(c.interval, c.unhealthy, 15.4)
		if less := 100 * (1 - after/before); math.Abs(before-c.before) > 1e-6 || math.Abs(after-c.after) > 1e-6 || math.Round(less) != c.less {
			t.Errorf("every %d s: %v and %v, %v %% less; want %+v", c.interval, before, after, less, c)
		}
	}
	if before, after := 21.1+5*30-15, 15.4+5*30-15; math.Round(before) != 156 || math.Round(after) != 150 || math.Abs(100*(1-after/before)-3.6) > 0.1 {
		t.Errorf("by five successes: %v and %v", before, after)
	}
}

func TestFitReady(t *testing.T) {
	var many []time.Duration
	want := Ready{secs(0.5), secs(2)}
	for i := range 10_000 {
		many = append(many, want.Quantile((float64(i)+0.5)/10_000))
	}
	near := func(a, b time.Duration, share float64) bool { return math.Abs(float64(a-b)) <= share*float64(b) }
	if got, err := FitReady(many); err != nil || !near(got.P50, want.P50, 0.001) || !near(got.P99, want.P99, 0.01) {
		t.Errorf("%v, %v", got, err)
	}
	var few []time.Duration
	for i := range 15 {
		few = append(few, want.Quantile((float64(i)+0.5)/15))
	}
	if got, err := FitReady(few); err != nil || !near(got.P50, want.P50, 0.001) || !near(got.P99, want.P99, 0.15) {
		t.Errorf("of 15: %v, %v", got, err)
	}
	if got, err := FitReady(append(few[:5:5], secs(60))); err != nil || got.P99 < secs(60) {
		t.Errorf("the longest is ruled out: %v, %v", got, err)
	}
	if got, err := FitReady([]time.Duration{second, second, second, second, second}); err != nil || got != (Ready{second, second}) {
		t.Errorf("all alike: %v, %v", got, err)
	}
	for _, times := range [][]time.Duration{nil, few[:4], {0, 1, 2, 3, 4}, {-1, 1, 1, 1, 1}, {1, 1, 1, 1, never}} {
		if got, err := FitReady(times); err == nil {
			t.Errorf("%v: %v", times, got)
		}
	}
}
