package health

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

const second = time.Second

func secs(f float64) time.Duration { return time.Duration(math.Round(f * 1e9)) }

// simulateContainer plays the engine: gap, probe, gap, ... as daemon/health.go
// of moby does it, until the container is healthy or unhealthy. It knows nothing of
// schedules.
func simulateContainer(c Container, v Variant, d, ready time.Duration) (healthy, unhealthy time.Duration) {
	d = min(d, c.Timeout)
	gap := func(now time.Duration) time.Duration {
		left := c.StartPeriod - now
		switch {
		case left <= 0 || v == Classic || v == Fargate:
			return c.Interval
		case v == Moby2026 && left < c.Interval:
			return left
		}
		return c.StartInterval
	}
	streak := 0
	for now := time.Duration(0); ; {
		now += gap(now)
		began := now
		now += d
		switch {
		case began >= ready:
			return now, 0
		case began >= c.StartPeriod:
			if streak++; streak >= c.Retries {
				return 0, now
			}
		}
	}
}

// random returns a time between from and to seconds, in milliseconds, that often
// is whole seconds, as configurations are: that is where boundaries are met.
func random(rnd *rand.Rand, from, to int) time.Duration {
	if rnd.IntN(2) == 0 {
		return time.Duration(from+rnd.IntN(to-from+1)) * second
	}
	return time.Duration(from*1000+rnd.IntN((to-from)*1000+1)) * time.Millisecond
}

const configurations = 10_000

func TestContainerEqualsSimulation(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	healthy, killed := 0, 0
	for range configurations {
		c := Container{Interval: random(rnd, 1, 60), Timeout: random(rnd, 1, 30), Retries: 1 + rnd.IntN(10), StartInterval: random(rnd, 1, 20)}
		if rnd.IntN(3) > 0 {
			c.StartPeriod = random(rnd, 1, 300)
		}
		if rnd.IntN(20) == 0 {
			c.StartPeriod = c.Interval
		}
		d, r := min(random(rnd, 0, 3), c.Timeout), random(rnd, 0, 400)
		v := Variants[rnd.IntN(len(Variants))]
		wantHealthy, wantKilled := simulateContainer(c, v, d, r)
		got, ok := c.Healthy(v, d, r)
		if ok != (wantKilled == 0) || got != wantHealthy {
			t.Fatalf("%+v %s, probe %v, ready at %v: healthy at %v (%v), the simulation says %v", c, v, d, r, got, ok, wantHealthy)
		}
		_, neverReady := simulateContainer(c, v, d, never)
		unhealthy, last := c.Deadline(v, d)
		if unhealthy != neverReady || ok != (r <= last) {
			t.Fatalf("%+v %s, probe %v: unhealthy at %v, ready at %v at the latest; the simulation says %v", c, v, d, unhealthy, last, neverReady)
		}
		if b := c.Bounds(v, d, r); ok && (got < b.Best || b.Best > b.Expected || b.Expected > b.Worst || (v == Classic && got > b.Worst)) {
			t.Fatalf("%+v %s, probe %v, ready at %v: %v is not within %v", c, v, d, r, got, b)
		}
		if ok {
			healthy++
		} else {
			killed++
		}
	}
	if healthy < configurations/10 || killed < configurations/10 {
		t.Errorf("%d healthy, %d unhealthy: the configurations are not worth much", healthy, killed)
	}
}

// TestContainerFormula: the schedule of the classic variant is the formula of a
// line.
func TestContainerFormula(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	for range configurations {
		c := Container{Interval: random(rnd, 1, 60), Timeout: 30 * second, Retries: 1 + rnd.IntN(10), StartPeriod: random(rnd, 0, 300)}
		d, r := random(rnd, 0, 3), random(rnd, 0, 400)
		step := c.Interval + d
		k := int64(0)
		if r > c.Interval {
			k = int64((r - c.Interval + step - 1) / step)
		}
		want := step * time.Duration(k+1)
		if got, ok := c.Healthy(Classic, d, r); ok && got != want {
			t.Fatalf("%+v: %v, want %v", c, got, want)
		}
	}
}

// simulateTarget plays a load balancer: check after check, with its states.
func simulateTarget(g Target, r, phase time.Duration) (time.Duration, bool) {
	state, failures, successes, was := "initial", 0, 0, false
	for now := phase; ; now += g.Interval {
		if now < r {
			successes = 0
			if failures++; failures >= g.Unhealthy {
				state, was = "unhealthy", true
			}
			continue
		}
		failures = 0
		successes++
		if state == "initial" || successes >= g.Healthy {
			return now, was
		}
	}
}

// phases is into how many a period is cut to find means.
const phases = 200

// near compares what a formula says with what was found at so many phases.
func near(got, found, period time.Duration) bool {
	return (got - found).Abs() <= period/phases+time.Microsecond
}

func TestTargetEqualsSimulation(t *testing.T) {
	rnd := rand.New(rand.NewPCG(5, 6))
	cliffs := 0
	for range configurations {
		g := Target{Interval: random(rnd, 5, 60), Healthy: 2 + rnd.IntN(9), Unhealthy: 2 + rnd.IntN(9)}
		r := random(rnd, 0, 200)
		found := Bounds{Best: never}
		var sum, cliff float64
		for i := range phases {
			phase := g.Interval * time.Duration(2*i+1) / (2 * phases)
			want, wantCliff := simulateTarget(g, r, phase)
			if got, gotCliff := g.At(r, phase); got != want || gotCliff != wantCliff {
				t.Fatalf("%+v, ready at %v, phase %v: in service at %v (%v), the simulation says %v (%v)", g, r, phase, got, gotCliff, want, wantCliff)
			}
			found.Best, found.Worst = min(found.Best, want), max(found.Worst, want)
			sum += float64(want) / phases
			if wantCliff {
				cliff += 1. / phases
			}
		}
		// The bounds are at phases that the rows above may miss: the ends, and both sides of the edge.
		edge := (r - time.Duration(g.Unhealthy-1)*g.Interval) % g.Interval
		for _, phase := range []time.Duration{0, g.Interval - 1, edge - 1, edge, r % g.Interval, r%g.Interval - 1} {
			if phase >= 0 && phase < g.Interval {
				at, _ := simulateTarget(g, r, phase)
				found.Best, found.Worst = min(found.Best, at), max(found.Worst, at)
			}
		}
		// A phase that is on the wrong side of the cliff moves the mean by all of it.
		b, fall := g.Bounds(r), g.Interval*time.Duration(g.Healthy-1)/phases
		if !near(b.Best, found.Best, g.Interval) || !near(b.Worst, found.Worst, g.Interval) || (b.Expected-time.Duration(sum)).Abs() > fall+g.Interval/phases || math.Abs(g.Cliff(r)-cliff) > 1./phases {
			t.Fatalf("%+v, ready at %v: %v, cliff %v; the simulation says %v to %v, mean %v, cliff %v", g, r, b, g.Cliff(r), found.Best, found.Worst, time.Duration(sum), cliff)
		}
		if cliff > 0 && cliff < 1 {
			cliffs++
		}
	}
	if cliffs < configurations/100 {
		t.Errorf("only %d at the edge", cliffs)
	}
}

// simulatePod plays the kubelet's workers, event after event: ticks of each at its
// phase, and the run of the readiness probe that the end of the startup probe
// triggers.
func simulatePod(p Pod, r, d, startup, readiness, liveness time.Duration) (time.Duration, bool) {
	type worker struct {
		p          *Probe
		tick       time.Duration
		run        int
		last, here bool
	}
	make := func(p *Probe, phase time.Duration) *worker {
		if p == nil {
			return &worker{tick: never}
		}
		return &worker{p: p, tick: phase}
	}
	s, y, l := make(p.Startup, startup), make(p.Readiness, readiness), make(p.Liveness, liveness)
	started := p.Startup == nil
	if started && p.Readiness == nil && p.Liveness == nil {
		return 0, true
	}
	// probe returns +1 for a success that counts, -1 for a failure that does.
	probe := func(w *worker, now time.Duration) int {
		if now < w.p.Delay {
			return 0
		}
		ok := now >= r
		if w.here && w.last == ok {
			w.run++
		} else {
			w.run = 1
		}
		w.here, w.last = true, ok
		switch {
		case ok && w.run >= w.p.Success:
			return 1
		case !ok && w.run >= w.p.Failure:
			return -1
		}
		return 0
	}
	noReadiness := p.Readiness == nil
	for {
		now := min(s.tick, y.tick, l.tick)
		switch now {
		case s.tick:
			s.tick += s.p.Period
			if !started {
				switch probe(s, now) {
				case -1:
					return 0, false
				case 1:
					started = true
					if noReadiness {
						return now + d, true
					}
					if probe(y, now+d) == 1 { // triggered by hand
						return now + 2*d, true
					}
					// Ticks that have passed meanwhile were for nothing.
					for y.tick <= now+d {
						y.tick += y.p.Period
					}
				}
			}
		case l.tick:
			l.tick += l.p.Period
			if started && probe(l, now) == -1 {
				return 0, false
			}
			if noReadiness && started && l.last {
				return 0, true
			}
		case y.tick:
			y.tick += y.p.Period
			if started && probe(y, now) == 1 {
				if p.Startup == nil && p.Liveness != nil && l.p.tick(liveness, max(l.p.Delay, r)) > now {
					// Ready, and yet to be judged by the liveness probe, which has its say by its next success.
					_, ok := l.p.succeeds(liveness, r)
					return now + d, ok
				}
				return now + d, true
			}
		}
	}
}

func randomProbe(rnd *rand.Rand, success bool) *Probe {
	p := &Probe{Period: time.Duration(1+rnd.IntN(20)) * second, Timeout: 5 * second, Success: 1, Failure: 1 + rnd.IntN(20)}
	if rnd.IntN(2) == 0 {
		p.Delay = time.Duration(rnd.IntN(60)) * second
	}
	if success {
		p.Success += rnd.IntN(3)
	}
	return p
}

func TestPodEqualsSimulation(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 8))
	ready, restarted := 0, 0
	for range configurations {
		var p Pod
		switch rnd.IntN(4) {
		case 0:
			p.Readiness = randomProbe(rnd, true)
		case 1:
			p.Startup = randomProbe(rnd, false)
		case 2:
			p.Startup, p.Readiness = randomProbe(rnd, false), randomProbe(rnd, true)
		case 3:
			p.Readiness, p.Liveness = randomProbe(rnd, true), randomProbe(rnd, false)
		}
		d, r := time.Duration(rnd.IntN(900))*time.Millisecond, random(rnd, 0, 120)
		at := func(p *Probe, i, n int) time.Duration {
			if p == nil {
				return 0
			}
			return p.Period * time.Duration(2*i+1) / time.Duration(2*n)
		}
		found, alive, n := Bounds{Best: never}, 0, 24
		var sum float64
		for i := range n {
			for j := range n {
				// The third phase goes through all of its values too, in another order.
				s, y, l := at(p.Startup, i, n), at(p.Readiness, j, n), at(p.Liveness, (i+j)%n, n)
				want, wantOK := simulatePod(p, r, d, s, y, l)
				got, ok := p.At(r, d, s, y, l)
				if ok != wantOK || ok && got != want {
					t.Fatalf("startup %+v readiness %+v liveness %+v, ready at %v, probe %v, phases %v %v %v: ready at %v (%v), the simulation says %v (%v)",
						p.Startup, p.Readiness, p.Liveness, r, d, s, y, l, got, ok, want, wantOK)
				}
				if ok {
					found.Best, found.Worst = min(found.Best, want), max(found.Worst, want)
					sum += float64(want)
					alive++
				}
			}
		}
		for range 20 { // whole seconds, where ticks and ends of delays meet
			phase := func(p *Probe) time.Duration {
				if p == nil {
					return 0
				}
				return time.Duration(rnd.Int64N(int64(p.Period/second))) * second
			}
			s, y, l, d, r := phase(p.Startup), phase(p.Readiness), phase(p.Liveness), time.Duration(rnd.IntN(2))*second, r.Round(second)
			want, wantOK := simulatePod(p, r, d, s, y, l)
			if got, ok := p.At(r, d, s, y, l); ok != wantOK || ok && got != want {
				t.Fatalf("%s, ready at %v, probe %v, phases %v %v %v: ready at %v (%v), the simulation says %v (%v)", showPod(p), r, d, s, y, l, got, ok, want, wantOK)
			}
		}
		gone := 1 - float64(alive)/float64(n*n)
		if got := p.Restarted(r, d); math.Abs(got-gone) > 1.5/float64(n) {
			t.Fatalf("%s, ready at %v: %v are restarted, the simulation says %v", showPod(p), r, got, gone)
		}
		b, ok := p.Bounds(r, d)
		if alive == 0 {
			restarted++
			continue
		}
		ready++
		slack := time.Duration(0)
		for _, probe := range []*Probe{p.Startup, p.Readiness} {
			if probe != nil {
				slack += probe.Period/time.Duration(n) + time.Microsecond
			}
		}
		mean := time.Duration(sum / float64(alive))
		inside := b.Best <= found.Best && found.Worst <= b.Worst
		tight := (b.Best-found.Best).Abs() <= slack && (b.Worst-found.Worst).Abs() <= slack
		if s, y := p.Startup, p.Readiness; s != nil && y != nil {
			from := max(s.Delay, r) + d
			if early := share(y.Delay-from, s.Period); early > 0 && early < 0.2 || early > 0.8 && early < 1 {
				tight = true // what happens in so few phases need not have been found
			}
			if late := s.Delay + time.Duration(s.Failure)*s.Period - max(s.Delay, r); late < s.Period {
				tight = true // and so, where it is restarted in many phases
			}
			slack *= 2
		}
		if !ok || !inside || !tight || (b.Expected-mean).Abs() > slack {
			t.Fatalf("%s, ready at %v, probe %v: %v (%v), the simulation says %v to %v, mean %v", showPod(p), r, d, b, ok, found.Best, found.Worst, mean)
		}
	}
	if ready < configurations/10 || restarted < configurations/100 {
		t.Errorf("%d ready, %d restarted: the configurations are not worth much", ready, restarted)
	}
}

func showPod(p Pod) string {
	return fmt.Sprintf("startup %+v readiness %+v liveness %+v", p.Startup, p.Readiness, p.Liveness)
}
