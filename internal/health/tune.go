package health

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"
)

// Operation is one of a JSON Patch (RFC 6902).
type Operation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value,omitempty"`
}

// Tuned is a better check, and what changes.
type Tuned struct {
	Check Check `json:"-"` // with the new values
	// Document is which document of the file Patch is for.
	Document int         `json:"document"`
	Patch    []Operation `json:"patch,omitempty"` // JSON and YAML
	// Of a Dockerfile: the lines from Line to before End are replaced by Text.
	Line int    `json:"line,omitempty"`
	End  int    `json:"end,omitempty"`
	Text string `json:"text,omitempty"`
	// GraceSeconds is the grace period of the services that a target group belongs to; 0:
	// none of Options.Services needs another.
	GraceSeconds int `json:"healthCheckGracePeriodSeconds,omitempty"`
}

// Graced are services with the new grace period.
func (t *Tuned) Graced(all []Service) []Service {
	out := slices.Clone(all)
	for i := range out {
		out[i].Grace = max(out[i].Grace, time.Duration(t.GraceSeconds)*time.Second)
	}
	return out
}

// budget is how much of a processor probes may cost.
const budget = 0.01

// cheap is the shortest interval in whole seconds, of least or more, in which
// probes of length d keep to the budget.
func cheap(least, d time.Duration) time.Duration {
	return max(least, ceil(time.Duration(float64(d)*(1/budget-1))))
}

// ceil rounds up to whole seconds.
func ceil(d time.Duration) time.Duration {
	return (d + time.Second - 1) / time.Second * time.Second
}

// Tune proposes a check that notices soon that the container is ready, and gives
// none up that takes as long as one in a thousand does: probes as often as costs a
// hundredth of a processor at most, or as they are if that is more often, a start period of one and a half times p99,
// and as many failures as that takes. An error says that it has none, or that its
// platform's limits do not allow it.
func Tune(c *Check, o Options) (*Tuned, error) {
	t := &Tuned{Check: *c, Document: c.Document}
	var err error
	switch {
	case c.Container != nil:
		err = t.container(&o)
	case c.Target != nil:
		err = t.target(&o)
	case c.Pod != nil:
		err = t.pod(&o)
	default:
		err = errors.New("there is no check to tune")
	}
	if err != nil {
		return nil, fmt.Errorf("tune %s: %w", c.Name, err)
	}
	return t, nil
}

func (t *Tuned) set(path string, value any) {
	t.Patch = append(t.Patch, Operation{"add", path, value}) // of an object's member: adds or replaces
}

func (t *Tuned) container(o *Options) error {
	c := *t.Check.Container
	v := c.likely(o.Variant)[0]
	slow := o.Ready.Quantile(0.999)
	c.StartPeriod = ceil(o.Ready.P99 * 3 / 2)
	if o.Probe*4 > c.Timeout {
		c.Timeout = ceil(o.Probe * 4)
	}
	if c.ECS {
		c.Interval = max(min(c.Interval, cheap(5*time.Second, o.Probe)), 5*time.Second)
		c.StartPeriod, c.Timeout = min(c.StartPeriod, 300*time.Second), min(max(c.Timeout, 2*time.Second), 60*time.Second)
	} else {
		c.StartInterval = max(time.Second, ceil(o.Probe)) // only while it starts
		c.Interval = max(min(c.Interval, cheap(5*time.Second, o.Probe)), time.Second)
		c.StartPeriod += c.Interval // the last interval of the period has no quick probes any more: Moby2026
	}
	c.Retries = max(min(c.Retries, 3), 2)
	for {
		if _, last := c.Deadline(v, o.Probe); last >= slow+c.Interval {
			break
		}
		if c.Retries++; c.ECS && c.Retries > 10 || c.Retries > 1000 {
			return fmt.Errorf("one start in a thousand takes %s, longer than ECS can be told to wait", show(slow))
		}
	}
	t.Check.Container = &c
	return t.containerPatch(t.Check.Path)
}

// containerPatch says the new values in the words of the file.
func (t *Tuned) containerPatch(path string) error {
	c := t.Check.Container
	whole := func(d time.Duration) int { return int(d / time.Second) }
	switch t.Check.Kind {
	case KindECS:
		for _, v := range []struct {
			name  string
			value int
		}{{"interval", whole(c.Interval)}, {"timeout", whole(c.Timeout)}, {"retries", c.Retries}, {"startPeriod", whole(c.StartPeriod)}} {
			t.set(path+"/"+v.name, v.value)
		}
	case KindCompose:
		for _, v := range []struct {
			name  string
			value time.Duration
		}{{"interval", c.Interval}, {"timeout", c.Timeout}, {"start_period", c.StartPeriod}, {"start_interval", c.StartInterval}} {
			t.set(path+"/"+v.name, v.value.String())
		}
		t.set(path+"/retries", c.Retries)
	default: // an image's config is made of a Dockerfile
		t.Line, t.End = t.Check.Line, t.Check.End
		t.Text = fmt.Sprintf("HEALTHCHECK --interval=%s --timeout=%s --start-period=%s --start-interval=%s --retries=%d \\\n    %s",
			c.Interval, c.Timeout, c.StartPeriod, c.StartInterval, c.Retries, command(c.Command))
	}
	return nil
}

// command writes a command as HEALTHCHECK takes it.
func command(args []string) string {
	if len(args) == 2 && args[0] == "CMD-SHELL" {
		return "CMD " + args[1]
	}
	quoted := make([]string, 0, len(args))
	for _, a := range args[1:] {
		quoted = append(quoted, fmt.Sprintf("%q", a))
	}
	return "CMD [" + strings.Join(quoted, ", ") + "]"
}

func (t *Tuned) target(o *Options) error {
	g := *t.Check.Target
	slow := max(o.Ready.Quantile(0.999)-o.Registered, 0)
	g.Healthy = 2
	for g.Interval = max(min(g.Interval, cheap(5*time.Second, o.Probe)), 5*time.Second); ; g.Interval += 5 * time.Second {
		if g.Interval > 300*time.Second {
			return fmt.Errorf("one start in a thousand takes %s, longer than a target group can be told to wait", show(slow))
		}
		// One interval more than it takes.
		g.Unhealthy = max(int((slow+g.Interval+g.Interval-1)/g.Interval)+1, 2)
		if g.Unhealthy <= 10 {
			break
		}
	}
	g.Timeout = min(max(g.Timeout, ceil(o.Probe*4)), g.Interval-time.Second)
	if g.Timeout <= o.Probe {
		return fmt.Errorf("an answer takes %s", show(o.Probe))
	}
	t.Check.Target = &g
	// More than a target takes, as slow as one in a hundred is, and than its start.
	worst := g.Bounds(max(o.Ready.P99-o.Registered, 0)).Worst + o.Registered + o.Probe
	grace := max(ceil(o.Ready.P99*3/2), ceil(worst+1))
	if slices.ContainsFunc(o.Services, func(s Service) bool { return s.Grace < grace }) {
		t.GraceSeconds = int(grace / time.Second)
	}
	for _, v := range []struct {
		name  string
		value int
	}{{"HealthCheckIntervalSeconds", int(g.Interval / time.Second)}, {"HealthCheckTimeoutSeconds", int(g.Timeout / time.Second)}, {"HealthyThresholdCount", g.Healthy}, {"UnhealthyThresholdCount", g.Unhealthy}} {
		t.set(t.Check.Path+"/"+v.name, v.value)
	}
	return nil
}

func (t *Tuned) pod(o *Options) error {
	p := *t.Check.Pod
	from := ""
	for _, name := range []string{"startupProbe", "readinessProbe", "livenessProbe"} {
		if _, ok := t.Check.probes[name]; ok {
			from = name
			break
		}
	}
	if from == "" {
		return errors.New("it has no probe whose request or command could be taken")
	}
	handler := map[string]any{}
	written := t.Check.probes[from]
	for name, n := range written.Handler {
		var v any
		if err := n.Decode(&v); err != nil {
			return err
		}
		handler[name] = v
	}
	timeout := max(time.Second, ceil(o.Probe*4))
	for _, old := range []*Probe{p.Startup, p.Readiness, p.Liveness} {
		if old != nil {
			timeout = max(timeout, old.Timeout)
			break
		}
	}
	// A failed start costs more than a few more seconds of waiting for one that hangs.
	failures := max(int(math.Ceil(o.Ready.P99.Seconds()*1.5)), int(math.Ceil(o.Ready.Quantile(0.999).Seconds()))+2, 3)
	_, exec := handler["exec"]
	p.Startup = &Probe{Period: time.Second, Timeout: timeout, Success: 1, Failure: failures, Exec: exec}
	startup := maps.Clone(handler)
	startup["periodSeconds"], startup["timeoutSeconds"], startup["failureThreshold"] = 1, int(timeout/time.Second), failures
	t.set(t.Check.Path+"/startupProbe", startup)
	t.rest("readinessProbe", &p.Readiness, timeout, func(y *Probe) { y.Period = min(max(y.Period, 2*time.Second), 5*time.Second) })
	t.rest("livenessProbe", &p.Liveness, timeout, func(*Probe) {})
	t.Check.Pod = &p
	return nil
}

// rest adapts a probe that the startup probe makes wait, where there is one.
func (t *Tuned) rest(name string, p **Probe, timeout time.Duration, change func(p *Probe)) {
	if *p == nil {
		return
	}
	old, changed := **p, **p
	change(&changed)
	changed.Delay = 0 // the startup probe has waited
	changed.Timeout = max(changed.Timeout, timeout)
	path := t.Check.Path + "/" + name
	if old.Period != changed.Period {
		t.set(path+"/periodSeconds", int(changed.Period/time.Second))
	}
	if old.Timeout != changed.Timeout {
		t.set(path+"/timeoutSeconds", int(changed.Timeout/time.Second))
	}
	if t.Check.probes[name].Delay != nil {
		t.Patch = append(t.Patch, Operation{Op: "remove", Path: path + "/initialDelaySeconds"})
	}
	*p = &changed
}

// Apply puts a Dockerfile's new lines in the place of the old ones.
func (t *Tuned) Apply(dockerfile []byte) []byte {
	lines := strings.SplitAfter(string(dockerfile), "\n")
	if n := len(lines); lines[n-1] == "" {
		lines = lines[:n-1]
	} else {
		lines[n-1] += "\n"
	}
	at := func(line int) int { return min(max(line-1, 0), len(lines)) }
	out := slices.Concat(lines[:at(t.Line)], []string{t.Text + "\n"}, lines[at(t.End):])
	return []byte(strings.Join(out, ""))
}
