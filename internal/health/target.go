package health

import "time"

// Target is the check of a load balancer's target group.
//
// Checks begin every Interval, however long an answer takes, at a phase that is as
// likely anywhere in it. The first success puts a new target in service; but after
// so many failures in a row as Unhealthy it takes so many successes in a row as
// Healthy.
type Target struct {
	Interval, Timeout  time.Duration
	Healthy, Unhealthy int
	Path               string
}

// TargetDefaults are those of an application load balancer.
var TargetDefaults = Target{Interval: 30 * time.Second, Timeout: 5 * time.Second, Healthy: 5, Unhealthy: 2}

// At returns when a target that is ready at r is in service, where the first check
// begins at phase; and whether it was unhealthy before.
func (t *Target) At(r, phase time.Duration) (at time.Duration, cliff bool) {
	n := 0 // failures
	if r > phase {
		n = int((r - phase + t.Interval - 1) / t.Interval)
	}
	at = phase + time.Duration(n)*t.Interval
	if n >= t.Unhealthy {
		return at + time.Duration(t.Healthy-1)*t.Interval, true
	}
	return at, false
}

// Cliff returns the share of phases in which a target that is ready at r is
// unhealthy before.
func (t *Target) Cliff(r time.Duration) float64 {
	return share(r-time.Duration(t.Unhealthy-1)*t.Interval, t.Interval)
}

// share is how much of a whole part is, between 0 and 1.
func share(part, whole time.Duration) float64 {
	return min(max(float64(part)/float64(whole), 0), 1)
}

// Bounds returns the soonest, the mean and the latest time in service over all
// phases, of a target that is ready at r.
func (t *Target) Bounds(r time.Duration) Bounds {
	p, extra := t.Cliff(r), time.Duration(t.Healthy-1)*t.Interval
	b := Bounds{r, r + t.Interval/2 + time.Duration(p*float64(extra)), r + t.Interval}
	if p == 1 {
		b.Best += extra
	}
	if p > 0 {
		b.Worst += extra
	}
	return b
}

// UnhealthyFrom returns when a target that is never ready is unhealthy, at the
// soonest and at the latest.
func (t *Target) UnhealthyFrom() (soonest, latest time.Duration) {
	soonest = time.Duration(t.Unhealthy-1) * t.Interval
	return soonest, soonest + t.Interval
}
