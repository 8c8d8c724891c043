package health

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// Options say for what [Evaluate] computes.
type Options struct {
	Ready Ready
	Probe time.Duration // of one probe, from its begin to its answer
	// Variant of the container's engine; empty: those that are likely.
	Variant Variant
	// Registered is when the target is registered with the load balancer, after the
	// container's start.
	Registered time.Duration
	// Propagation is how long it takes until traffic reaches a pod that is ready:
	// EndpointSlices, kube-proxy.
	Propagation time.Duration
	Services    []Service // that the target groups belong to
}

// Finding is something to know about a check.
type Finding struct {
	ID    string `json:"id"`
	Level string `json:"level"` // error, warning or note
	Text  string `json:"text"`
}

// Levels of findings.
const (
	LevelError   = "error"
	LevelWarning = "warning"
	LevelNote    = "note"
)

// Row is what one readiness time comes to. All times are in seconds since the
// container's start.
type Row struct {
	Quantile string  `json:"quantile"`
	Ready    float64 `json:"readySeconds"`
	// Healthy is when exactly, where that can be said: the engine's probes are tied
	// to the container's start, those of others are not. None: it is given up before.
	Healthy *float64 `json:"healthySeconds,omitempty"`
	// Soonest, mean and latest, wherever the probes happen to lie.
	Best     float64 `json:"bestSeconds"`
	Expected float64 `json:"expectedSeconds"`
	Worst    float64 `json:"worstSeconds"`
	// GivenUp is the share of cases in which it is unhealthy before.
	GivenUp float64 `json:"givenUp"`
}

// Estimate is what a check does to the whole distribution.
type Estimate struct {
	Variant Variant `json:"variant,omitempty"`
	Rows    []Row   `json:"rows"`
	// Means over the containers that are not given up.
	Mean   float64 `json:"meanSeconds"`
	Wasted float64 `json:"wastedSeconds"` // ready, and not yet known to be
	// GivenUp is the share of containers that are unhealthy before they are ready;
	// Deadline is when, at the soonest and at the latest, and ReadyBy what readiness
	// time escapes it for certain. Zero: never.
	GivenUp        float64 `json:"givenUp"`
	Deadline       float64 `json:"deadlineSeconds,omitempty"`
	DeadlineLatest float64 `json:"deadlineLatestSeconds,omitempty"`
	ReadyBy        float64 `json:"readyBySeconds,omitempty"`
}

// Result is what Evaluate says of a check.
type Result struct {
	Kind      string     `json:"kind"`
	Name      string     `json:"name"`
	Settings  string     `json:"settings"` // for people
	Estimates []Estimate `json:"estimates"`
	// RuleOfThumb is what is often computed of such settings, and wrong.
	RuleOfThumb []float64 `json:"ruleOfThumbSeconds,omitempty"`
	// TrafficAfter is when traffic follows, after the pod is ready.
	TrafficAfter float64 `json:"trafficAfterSeconds,omitempty"`
	// CostPerDay is how long a day's probes take in all.
	CostPerDay float64   `json:"probeSecondsPerDay"`
	Findings   []Finding `json:"findings"`
}

// sec is a time in seconds, to the millisecond.
func sec(d time.Duration) float64 { return math.Round(float64(d)/1e6) / 1e3 }

// share3 is a share to three places.
func share3(f float64) float64 { return math.Round(f*1e3) / 1e3 }

// quantiles are the readiness times that are shown.
func (o *Options) quantiles() map[string]time.Duration {
	return map[string]time.Duration{"p50": o.Ready.P50, "p99": o.Ready.P99}
}

// rows makes a row of each readiness time that differs.
func (o *Options) rows(row func(r time.Duration) Row) []Row {
	out := []Row{}
	for _, q := range []string{"p50", "p99"} {
		r := o.quantiles()[q]
		if q == "p99" && r == o.Ready.P50 {
			continue
		}
		v := row(r)
		v.Quantile, v.Ready, v.GivenUp = q, sec(r), share3(v.GivenUp)
		out = append(out, v)
	}
	return out
}

func (r *Row) bounds(b Bounds) {
	r.Best, r.Expected, r.Worst = sec(b.Best), sec(b.Expected), sec(b.Worst)
}

// fill computes the means: at says when a container that is ready at r is healthy,
// and what share of them is.
func (e *Estimate) fill(o *Options, at func(r time.Duration) (time.Duration, float64)) {
	mean, alive := o.Ready.mean(at)
	ready, _ := o.Ready.mean(func(r time.Duration) (time.Duration, float64) {
		_, w := at(r)
		return r, w
	})
	e.Mean, e.Wasted, e.GivenUp = sec(mean), sec(max(mean-ready, 0)), share3(1-alive)
}

// Evaluate says what a check makes of the readiness times.
func Evaluate(c *Check, o Options) Result {
	r := Result{Kind: c.Kind, Name: c.Name, Findings: []Finding{}, Estimates: []Estimate{}}
	switch {
	case c.Container != nil:
		r.container(c.Container, &o)
	case c.Target != nil:
		r.target(c.Target, &o)
	case c.Pod != nil:
		r.pod(c.Pod, &o)
	case c.Kind == KindECS:
		r.find("HC007", LevelNote, "it has no check: ECS takes it for healthy as soon as it runs, and does not look at a HEALTHCHECK of its image")
	case c.Kind == KindDockerfile:
		r.find("HC007", LevelNote, "it has no HEALTHCHECK (its base image may have one: docker inspect, and thaw health of what that prints)")
	default:
		r.find("HC007", LevelNote, "it has no check: whoever waits for it goes on as soon as it runs")
	}
	return r
}

func (r *Result) find(id, level, format string, args ...any) {
	r.Findings = append(r.Findings, Finding{id, level, fmt.Sprintf(format, args...)})
}

// likely are the variants that a check may meet.
func (c *Container) likely(v Variant) []Variant {
	switch {
	case v != "":
		return []Variant{v}
	case c.ECS:
		return []Variant{Classic, Docker25}
	}
	return []Variant{Docker25, Moby2026, Classic}
}

func (r *Result) container(c *Container, o *Options) {
	r.Settings = fmt.Sprintf("interval %s, timeout %s, retries %d, start period %s", show(c.Interval), show(c.Timeout), c.Retries, show(c.StartPeriod))
	if !c.ECS {
		r.Settings += ", start interval " + show(c.StartInterval)
	}
	from, to := c.RuleOfThumb()
	r.RuleOfThumb = []float64{sec(from), sec(to)}
	r.CostPerDay = perDay(c.Interval+c.probe(o.Probe), o.Probe)
	var seen []schedule
	for _, v := range c.likely(o.Variant) {
		s := c.schedule(v, o.Probe)
		if slices.ContainsFunc(seen, func(t schedule) bool { return slices.Equal(s, t) }) {
			continue
		}
		seen = append(seen, s)
		e := Estimate{Variant: v}
		unhealthy, last := c.Deadline(v, o.Probe)
		if o.Probe > c.Timeout {
			last = 0
		}
		e.Deadline, e.DeadlineLatest, e.ReadyBy = sec(unhealthy), sec(unhealthy), sec(last)
		e.Rows = o.rows(func(t time.Duration) Row {
			var row Row
			row.bounds(c.Bounds(v, o.Probe, t))
			if at, ok := c.Healthy(v, o.Probe, t); ok {
				s := sec(at)
				row.Healthy = &s
			} else {
				row.GivenUp = 1
			}
			return row
		})
		e.fill(o, func(t time.Duration) (time.Duration, float64) {
			at, ok := c.Healthy(v, o.Probe, t)
			if !ok {
				return 0, 0
			}
			return at, 1
		})
		e.GivenUp = share3(o.Ready.Later(last))
		r.Estimates = append(r.Estimates, e)
	}
	r.containerFindings(c, o)
}

// ecsRanges are what ECS takes, in seconds.
// https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_HealthCheck.html
var ecsRanges = map[string][2]int{"interval": {5, 300}, "timeout": {2, 60}, "retries": {1, 10}, "startPeriod": {0, 300}}

func (r *Result) containerFindings(c *Container, o *Options) {
	given := "marked unhealthy"
	if c.ECS {
		given = "stopped by ECS"
		for name, v := range map[string]int{"interval": int(c.Interval / time.Second), "timeout": int(c.Timeout / time.Second), "retries": c.Retries, "startPeriod": int(c.StartPeriod / time.Second)} {
			if lim := ecsRanges[name]; v < lim[0] || v > lim[1] {
				r.find("HC004", LevelError, "%s %d is not between %d and %d: ECS does not take it", name, v, lim[0], lim[1])
			}
		}
		slices.SortFunc(r.Findings, func(a, b Finding) int { return strings.Compare(a.Text, b.Text) })
	}
	if o.Probe > c.Timeout {
		r.find("HC003", LevelError, "a probe takes %s, more than its timeout of %s: none ever succeeds", show(o.Probe), show(c.Timeout))
		return
	}
	for _, e := range r.Estimates {
		step := sec(c.Interval + c.probe(o.Probe))
		if e.GivenUp > 0 {
			r.find("HC001", LevelError, "%s: %.1f %% of starts are %s, at %.2f s: not ready by %.2f s", e.Variant, 100*e.GivenUp, given, e.Deadline, e.ReadyBy)
		} else if sec(o.Ready.P99) >= e.Deadline-step {
			r.find("HC002", LevelWarning, "%s: p99 (%.2f s) is within an interval of the deadline at %.2f s", e.Variant, sec(o.Ready.P99), e.Deadline)
		}
	}
	if e := r.Estimates[0]; e.Wasted > e.Mean/2 && e.Wasted > 1 {
		r.find("HC008", LevelNote, "most of the time to healthy is waiting for the next probe: %.2f of %.2f s on average; the interval is what to change", e.Wasted, e.Mean)
	}
	r.find("HC011", LevelNote, "one success is healthy, whatever retries says, and the start period delays nothing; the rule of thumb (%.0f-%.0f s, retries times the interval) is about giving up", r.RuleOfThumb[0], r.RuleOfThumb[1])
	r.lazyCommand(c.Timeout)
}

// lazyCommand reminds of what a probe's command itself reads.
func (r *Result) lazyCommand(timeout time.Duration) {
	if timeout <= 5*time.Second {
		r.find("LZ002", LevelNote, "the probe runs a command of the image: where that is fetched lazily its first run may take longer than %s, unless the start-up bundle has it (record with the check running)", show(timeout))
	}
}

func (r *Result) target(t *Target, o *Options) {
	r.Settings = fmt.Sprintf("interval %s, timeout %s, healthy threshold %d, unhealthy threshold %d", show(t.Interval), show(t.Timeout), t.Healthy, t.Unhealthy)
	r.CostPerDay = perDay(t.Interval, o.Probe)
	wait := func(at time.Duration) time.Duration { return max(at-o.Registered, 0) } // as the balancer sees it
	more := o.Registered + o.Probe
	soonest, latest := t.UnhealthyFrom()
	e := Estimate{Deadline: sec(soonest + more), DeadlineLatest: sec(latest + more), ReadyBy: sec(soonest + o.Registered)}
	e.Rows = o.rows(func(at time.Duration) Row {
		row := Row{GivenUp: t.Cliff(wait(at))}
		b := t.Bounds(wait(at))
		row.bounds(Bounds{b.Best + more, b.Expected + more, b.Worst + more})
		return row
	})
	e.fill(o, func(at time.Duration) (time.Duration, float64) { return t.Bounds(wait(at)).Expected + more, 1 })
	_, cliff := o.Ready.mean(func(at time.Duration) (time.Duration, float64) { return at, t.Cliff(wait(at)) })
	e.GivenUp = share3(cliff)
	r.Estimates = append(r.Estimates, e)
	for name, v := range map[string][3]int{"interval": {int(t.Interval / time.Second), 5, 300}, "timeout": {int(t.Timeout / time.Second), 2, 120}, "healthy threshold": {t.Healthy, 2, 10}, "unhealthy threshold": {t.Unhealthy, 2, 10}} {
		if v[0] < v[1] || v[0] > v[2] {
			r.find("HC004", LevelError, "%s %d is not between %d and %d", name, v[0], v[1], v[2])
		}
	}
	if t.Timeout >= t.Interval {
		r.find("HC004", LevelError, "timeout %s is not less than the interval", show(t.Timeout))
	}
	slices.SortFunc(r.Findings, func(a, b Finding) int { return strings.Compare(a.Text, b.Text) })
	if o.Probe > t.Timeout {
		r.find("HC003", LevelError, "an answer takes %s, more than its timeout of %s: no check ever succeeds", show(o.Probe), show(t.Timeout))
		return
	}
	if cliff >= 0.0005 {
		r.find("HC005", LevelWarning, "%.1f %% of targets are unhealthy before they are ready (%d failures, from %.2f s on), and need %d successes then instead of one: %.0f s more",
			100*cliff, t.Unhealthy, e.Deadline, t.Healthy, sec(time.Duration(t.Healthy-1)*t.Interval))
	}
	r.grace(o, e)
	r.find("HC012", LevelNote, "a new target needs one success, whatever the healthy threshold says; if all targets are unhealthy they all get traffic")
}

// grace compares a service's grace period with when its targets are in service.
func (r *Result) grace(o *Options, e Estimate) {
	worst := e.Rows[len(e.Rows)-1].Worst
	for _, s := range o.Services {
		if sec(s.Grace) <= worst && (e.GivenUp > 0 || s.Grace > 0) {
			r.find("HC006", LevelWarning, "service %s: healthCheckGracePeriodSeconds is %s, less than the %.0f s that a target may take: ECS stops tasks that are unhealthy then", s.Name, show(s.Grace), math.Ceil(worst))
		}
	}
	if len(o.Services) == 0 && e.GivenUp > 0 {
		r.find("HC006", LevelNote, "an ECS service stops tasks whose target is unhealthy, unless its healthCheckGracePeriodSeconds is more than %.0f", math.Ceil(worst))
	}
}

func (r *Result) pod(p *Pod, o *Options) {
	var parts []string
	for _, v := range []struct {
		name string
		p    *Probe
	}{{"startup", p.Startup}, {"readiness", p.Readiness}, {"liveness", p.Liveness}} {
		if v.p == nil {
			continue
		}
		s := fmt.Sprintf("%s every %s, timeout %s, %d failures", v.name, show(v.p.Period), show(v.p.Timeout), v.p.Failure)
		if v.p.Success > 1 {
			s += fmt.Sprintf(", %d successes", v.p.Success)
		}
		if v.p.Delay > 0 {
			s += ", after " + show(v.p.Delay)
		}
		parts = append(parts, s)
		if v.name != "startup" {
			r.CostPerDay += perDay(v.p.Period, o.Probe)
		}
	}
	r.Settings, r.TrafficAfter = strings.Join(parts, "; "), sec(o.Propagation)
	if len(parts) == 0 {
		r.Settings = "no probes"
	}
	var e Estimate
	if g := p.gate(); g != nil {
		soonest, latest := g.Restarts(o.Probe)
		e.Deadline, e.DeadlineLatest, e.ReadyBy = sec(soonest), sec(latest), sec(soonest-min(o.Probe, g.Timeout))
	}
	e.Rows = o.rows(func(t time.Duration) Row {
		row := Row{GivenUp: p.Restarted(t, o.Probe)}
		if b, ok := p.Bounds(t, o.Probe); ok {
			row.bounds(b)
		} else {
			row.GivenUp = 1
		}
		return row
	})
	e.fill(o, func(t time.Duration) (time.Duration, float64) {
		b, ok := p.Bounds(t, o.Probe)
		if !ok {
			return 0, 0
		}
		return b.Expected, 1 - p.Restarted(t, o.Probe)
	})
	r.Estimates = append(r.Estimates, e)
	r.podFindings(p, o, e)
}

func (r *Result) podFindings(p *Pod, o *Options, e Estimate) {
	for _, v := range []*Probe{p.Startup, p.Readiness, p.Liveness} {
		if v != nil && o.Probe > v.Timeout {
			r.find("HC003", LevelError, "a probe takes %s, more than its timeout of %s: none ever succeeds", show(o.Probe), show(v.Timeout))
			return
		}
	}
	if e.GivenUp >= 0.0005 {
		r.find("HC001", LevelError, "%.1f %% of starts are restarted, at %.2f to %.2f s", 100*e.GivenUp, e.Deadline, e.DeadlineLatest)
	} else if p.gate() != nil && o.Ready.P99 > 0 && sec(o.Ready.P99) > e.ReadyBy*3/4 {
		r.find("HC002", LevelWarning, "p99 (%.2f s) is more than three quarters of the %.2f s that it may take", sec(o.Ready.P99), e.ReadyBy)
	}
	switch {
	case p.Startup == nil && p.Liveness != nil:
		r.find("HC009", LevelWarning, "the liveness probe judges the start too: without a startup probe a slow start is restarted as if it hung")
	case p.Startup == nil && p.Readiness == nil:
		r.find("HC010", LevelError, "nothing says when it is ready: it gets traffic as soon as it runs, about %.2f s too early", sec(o.Ready.P50))
	case p.Readiness == nil:
		r.find("HC010", LevelNote, "without a readiness probe it gets traffic as soon as it has started, and whatever happens afterwards")
	}
	if e.Wasted > e.Mean/2 && e.Wasted > 1 {
		r.find("HC008", LevelNote, "most of the time to ready is waiting for the next probe: %.2f of %.2f s on average", e.Wasted, e.Mean)
	}
	for _, v := range []*Probe{p.Startup, p.Readiness} {
		if v != nil && v.Exec {
			r.lazyCommand(v.Timeout)
			break
		}
	}
}

// perDay is what probes of length d cost, one each step.
func perDay(step, d time.Duration) float64 {
	return math.Round(float64(24*time.Hour)/float64(step)*d.Seconds()*10) / 10
}

// show is a time for people, in seconds.
func show(d time.Duration) string {
	return strings.TrimSuffix(strings.TrimRight(fmt.Sprintf("%.3f", d.Seconds()), "0"), ".") + " s"
}
