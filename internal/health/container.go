package health

import (
	"fmt"
	"time"
)

// Variant is how long an engine waits between probes while a container starts.
// Else all are alike.
type Variant string

// Variants.
const (
	// Classic is Docker before 25: the interval, always.
	Classic Variant = "classic"
	// Docker25 probes every start interval until the start period has passed.
	Docker25 Variant = "docker25"
	// Moby2026 does so too while more than an interval of the start period is left;
	// then it waits for the rest of the period.
	// https://github.com/moby/moby/blob/master/daemon/health.go, getInterval
	Moby2026 Variant = "moby2026"
	// Fargate's engine is not documented; it is taken for Classic.
	Fargate Variant = "fargate"
)

// Variants lists them.
var Variants = []Variant{Classic, Docker25, Moby2026, Fargate}

// ParseVariant reads a variant's name.
func ParseVariant(s string) (Variant, error) {
	for _, v := range Variants {
		if s == string(v) {
			return v, nil
		}
	}
	return "", fmt.Errorf("variant %q: want classic, docker25, moby2026 or fargate", s)
}

// Container is the check of a container that Docker runs, or ECS.
//
// The engine waits for the gap, runs the probe, and waits anew from its end. Exit
// code 0 is healthy; any other counts, unless the container was never healthy and
// the probe began before the end of the start period. So many counted failures in
// a row as Retries are unhealthy, which makes ECS stop the task; Docker itself
// only says so.
type Container struct {
	Interval, Timeout          time.Duration
	Retries                    int
	StartPeriod, StartInterval time.Duration
	ECS                        bool
	Command                    []string
}

// Docker's defaults, and ECS'.
var (
	DockerDefaults = Container{Interval: 30 * time.Second, Timeout: 30 * time.Second, Retries: 3, StartInterval: 5 * time.Second}
	ECSDefaults    = Container{Interval: 30 * time.Second, Timeout: 5 * time.Second, Retries: 3, StartInterval: 5 * time.Second, ECS: true}
)

// segment is a row of probes: count of them (negative: without end) from first
// on, step apart.
type segment struct {
	first, step time.Duration
	count       int
}

// schedule is when probes begin, as long as they fail.
type schedule []segment

// never is a time that does not come.
const never = time.Duration(1<<63 - 1)

// next returns the number and the beginning of the first probe at or after t, and
// the step that it is in.
func (s schedule) next(t time.Duration) (n int, at, step time.Duration) {
	for _, g := range s {
		k := 0
		if t > g.first {
			k = int((t - g.first + g.step - 1) / g.step)
		}
		if g.count < 0 || k < g.count {
			return n + k, g.first + time.Duration(k)*g.step, g.step
		}
		n += g.count
	}
	return n, never, 0
}

// at returns when probe n begins.
func (s schedule) at(n int) time.Duration {
	for _, g := range s {
		if g.count < 0 || n < g.count {
			return g.first + time.Duration(n)*g.step
		}
		n -= g.count
	}
	return never
}

// probe is how long a probe takes, at most the timeout.
func (c *Container) probe(d time.Duration) time.Duration { return min(d, c.Timeout) }

func (c *Container) schedule(v Variant, d time.Duration) schedule {
	d = c.probe(d)
	step, quick := c.Interval+d, c.StartInterval+d
	switch {
	case v == Docker25 && c.StartPeriod > 0:
		n := int((c.StartPeriod + quick - 1) / quick) // those whose gap begins within the period
		return schedule{{c.StartInterval, quick, n}, {time.Duration(n)*quick + c.Interval, step, -1}}
	case v == Moby2026 && c.StartPeriod > 0:
		n := 0 // those whose gap begins with an interval or more of the period left
		if c.StartPeriod >= c.Interval {
			n = int((c.StartPeriod-c.Interval)/quick) + 1
		}
		s, end := schedule{{c.StartInterval, quick, n}}, time.Duration(n)*quick
		if end < c.StartPeriod { // one at the end of the period
			s = append(s, segment{c.StartPeriod, step, 1})
			end = c.StartPeriod + d
		}
		return append(s, segment{end + c.Interval, step, -1})
	}
	return schedule{{c.Interval, step, -1}}
}

// Deadline returns when a container that is never ready is unhealthy, and by when
// it has to be ready at the latest not to be.
func (c *Container) Deadline(v Variant, d time.Duration) (unhealthy, last time.Duration) {
	s := c.schedule(v, d)
	n, _, _ := s.next(c.StartPeriod)
	last = s.at(n + c.Retries - 1)
	return last + c.probe(d), last
}

// Healthy returns when a container that is ready at r is healthy, with probes of
// length d; false when it is unhealthy before.
func (c *Container) Healthy(v Variant, d, r time.Duration) (time.Duration, bool) {
	_, last := c.Deadline(v, d)
	_, at, _ := c.schedule(v, d).next(r)
	if d > c.Timeout || at > last {
		return 0, false
	}
	return at + c.probe(d), true
}

// Bounds returns the soonest, the mean and the latest time to healthy for an r
// that is about as given, and not tied to when probes run.
func (c *Container) Bounds(v Variant, d, r time.Duration) Bounds {
	s := c.schedule(v, d)
	d = c.probe(d)
	_, _, step := s.next(r)
	least := s.at(0) + d
	return Bounds{max(r+d, least), max(r+(step-d)/2+d, least), max(r+step+d, least)}
}

// Bounds are the soonest, the expected and the latest time.
type Bounds struct{ Best, Expected, Worst time.Duration }

// RuleOfThumb is what is often computed from such a configuration: retries times
// the interval, and more. It is no time to healthy, for retries count failures
// and one success is enough.
func (c *Container) RuleOfThumb() (from, to time.Duration) {
	all := time.Duration(c.Retries) * c.Interval
	return max(all, c.StartPeriod+c.Interval), max(all+c.Interval, c.StartPeriod+all)
}
