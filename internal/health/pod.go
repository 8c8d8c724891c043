package health

import "time"

// Probe is one of Kubernetes.
//
// The kubelet's worker ticks every Period from before the container runs, so that
// the phase is as likely anywhere; ticks before Delay do nothing. So many failures
// in a row as Failure restart the container (startup, liveness) or make it not
// ready; so many successes in a row as Success make it started, or ready.
type Probe struct {
	Period, Timeout, Delay time.Duration
	Success, Failure       int
	Exec                   bool // it runs a command in the container
}

// ProbeDefaults are those of Kubernetes.
var ProbeDefaults = Probe{Period: 10 * time.Second, Timeout: time.Second, Success: 1, Failure: 3}

// Pod are the probes of a container in a pod; nil: it has none of that kind. As long
// as there is a startup probe that has not succeeded the others do not run; when it
// succeeds the readiness probe runs at once.
type Pod struct {
	Startup, Readiness, Liveness *Probe
}

// tick returns the first tick at or after t.
func (p *Probe) tick(phase, t time.Duration) time.Duration {
	if t <= phase {
		return phase
	}
	return phase + (t-phase+p.Period-1)/p.Period*p.Period
}

// succeeds returns when the probe of a container that is ready at r begins that
// succeeds; false when so many have failed before that the container is restarted.
func (p *Probe) succeeds(phase, r time.Duration) (time.Duration, bool) {
	first, at := p.tick(phase, p.Delay), p.tick(phase, max(p.Delay, r))
	return at, at <= first+time.Duration(p.Failure-1)*p.Period
}

// Restarts returns when the container is restarted if it is never ready, at the
// soonest and at the latest, with probes of length d.
func (p *Probe) Restarts(d time.Duration) (soonest, latest time.Duration) {
	soonest = p.Delay + time.Duration(p.Failure-1)*p.Period + min(d, p.Timeout)
	return soonest, soonest + p.Period
}

// restarted returns the share of phases in which a container that is ready at r is
// restarted before.
func (p *Probe) restarted(r time.Duration) float64 {
	return share(r-p.Delay-time.Duration(p.Failure-1)*p.Period, p.Period)
}

// gate is the probe that restarts a container which is not ready in time, or nil.
func (p *Pod) gate() *Probe {
	if p.Startup != nil {
		return p.Startup
	}
	return p.Liveness
}

// At returns when the pod is ready whose container is ready at r, with probes of
// length d at these phases; false when it is restarted before.
func (p *Pod) At(r, d, startup, readiness, liveness time.Duration) (time.Duration, bool) {
	begin := time.Duration(0)
	if p.Startup != nil {
		at, ok := p.Startup.succeeds(startup, r)
		if !ok || d > p.Startup.Timeout {
			return 0, false
		}
		begin = at + d
	} else if p.Liveness != nil {
		if _, ok := p.Liveness.succeeds(liveness, r); !ok || d > p.Liveness.Timeout {
			return 0, false
		}
	}
	switch {
	case p.Readiness == nil:
		return begin, true
	case d > p.Readiness.Timeout:
		return 0, false
	}
	y := p.Readiness
	rest := time.Duration(y.Success-1) * y.Period
	switch {
	case p.Startup == nil || begin < y.Delay:
		begin = y.tick(readiness, max(begin, y.Delay, r)) + rest
	case y.Success > 1: // one at once, the second one at the next tick
		begin = y.tick(readiness, begin+1) + rest - y.Period
	}
	return begin + d, true
}

// Restarted returns the share of phases in which a container that is ready at r is
// restarted before.
func (p *Pod) Restarted(r, d time.Duration) float64 {
	g := p.gate()
	switch {
	case g == nil:
		return 0
	case d > g.Timeout:
		return 1
	}
	return g.restarted(r)
}

// Bounds returns the soonest, the mean and the latest time at which the pod is
// ready, over all phases, of a container that is ready at r and is not restarted;
// false when that cannot be, for it comes too late, or takes longer than a timeout.
func (p *Pod) Bounds(r, d time.Duration) (Bounds, bool) {
	for _, probe := range []*Probe{p.gate(), p.Readiness} {
		if probe != nil && d > probe.Timeout {
			return Bounds{}, false
		}
	}
	var b Bounds
	s, y := p.Startup, p.Readiness
	if s == nil && y == nil { // as soon as it runs
		return b, true
	}
	if s == nil {
		from := max(y.Delay, r) + time.Duration(y.Success-1)*y.Period
		b = Bounds{from, from + y.Period/2, from + y.Period}
	} else {
		from := max(s.Delay, r)
		span := min(s.Period, s.Delay+time.Duration(s.Failure)*s.Period-from) // of the phases that it is not restarted in
		if span <= 0 {
			return b, false
		}
		b = Bounds{from + d, from + d + span/2, from + d + span}
		if y == nil {
			return b, true
		}
		b = y.after(b)
	}
	return Bounds{b.Best + d, b.Expected + d, b.Worst + d}, true
}

// after is when the last probe begins that the pod needs to be ready, where the
// startup probe succeeds anywhere within b as likely.
func (p *Probe) after(b Bounds) Bounds {
	rest := time.Duration(p.Success-1) * p.Period
	var soon, mean, late time.Duration // from the first probe, which is at once, to the last
	if p.Success > 1 {
		soon, mean, late = rest-p.Period, rest-p.Period/2, rest
	}
	if p.Delay <= b.Best {
		return Bounds{b.Best + soon, b.Expected + mean, b.Worst + late}
	}
	// Where it succeeds before the delay is over a tick has to come first.
	early := share(p.Delay-b.Best, b.Worst-b.Best)
	waits := Bounds{p.Delay + rest, p.Delay + p.Period/2 + rest, p.Delay + p.Period + rest}
	if early == 1 {
		return waits
	}
	straight := Bounds{p.Delay + soon, (p.Delay+b.Worst)/2 + mean, b.Worst + late}
	return Bounds{min(waits.Best, straight.Best), time.Duration(early*float64(waits.Expected) + (1-early)*float64(straight.Expected)), max(waits.Worst, straight.Worst)}
}
