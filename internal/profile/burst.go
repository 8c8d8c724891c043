package profile

import (
	"math"
	"slices"
)

// Of the dependency burst: where no file was opened for longer than burstGapMs, not
// counting waits for bytes, it pauses; it goes on with what comes then if files are
// opened at no less than burstRate of its peak rate. Rates are files in the busiest
// burstGapMs.
const (
	burstGapMs = 40
	// rareGaps is how many pauses there may be: if more gaps than these, and than a
	// hundredth of all, are that long, then pauses are twice as long as those.
	rareGaps  = 10
	burstRate = 0.05
	// burstLeast is how few files do not continue a burst that has ended: such as what
	// is looked up for a connection.
	burstLeast = 3
	// burstMost is a share of all files that continues it in any case.
	burstMost = 0.05
)

// cluster is files that were opened without a pause.
type cluster struct {
	from, to float64
	loads    int // files that are loaded, and not only looked into
	peak     int // files in the busiest time as long as a pause
}

// burst finds when a program loads what it depends on: from the first open of
// something that is loaded, to the last one of a burst of them, before the program
// is up. What waits for bytes is not idle, so a slow network is no pause.
func (d *deriver) burst() {
	started, up := d.Event(EventStarted), d.upEvent()
	if started == nil {
		return
	}
	end := math.Inf(1)
	for _, e := range []*Event{d.boundary(len(boundaries) - 1), up} {
		if e != nil {
			end = e.AtMs
		}
	}
	clusters := d.clusters(started.AtMs, end)
	if len(clusters) == 0 {
		return
	}
	if d.Event(EventDepStart) == nil {
		d.Events = append(d.Events, Event{Name: EventDepStart, AtMs: clusters[0].from, Source: SignalOpens, Confidence: Measured})
	}
	if d.Event(EventDepEnd) == nil {
		at := d.served(burstEnd(clusters), end)
		d.Events = append(d.Events, Event{Name: EventDepEnd, AtMs: at, Source: SignalOpens, Confidence: Estimated, Detail: "change point of first opens"})
	}
}

// opened is the first open of a file that is of a program loading.
type opened struct {
	at    float64
	gap   float64 // since the one before, without waits for bytes
	loads bool    // it is loaded, and not only looked into
}

// opens are those between two times, in order.
func (d *deriver) opens(from, to float64) []opened {
	var all []opened
	for _, one := range d.Reads {
		class := classOf(one.Path)
		if one.AtMs < from || one.AtMs > to || class == classData {
			continue
		}
		o := opened{at: one.AtMs, loads: class != classConfig}
		if n := len(all); n > 0 {
			o.gap = one.AtMs - all[n-1].at - d.waited(all[n-1].at, one.AtMs)
		}
		all = append(all, o)
	}
	return all
}

// pauseMs is how long nothing is opened in a pause. On a machine that has no time for the
// program each open may be as late: what is common is no pause.
func pauseMs(all []opened) float64 {
	gaps := make([]float64, len(all))
	for i, o := range all {
		gaps[i] = o.gap
	}
	slices.Sort(gaps)
	if rare := max(rareGaps, len(gaps)/100); len(gaps) > rare {
		return max(burstGapMs, 2*gaps[len(gaps)-rare])
	}
	return burstGapMs
}

// clusters are the opens between two times, divided at pauses.
func (d *deriver) clusters(from, to float64) []cluster {
	opens := d.opens(from, to)
	pause := pauseMs(opens)
	var all []cluster
	var times []float64 // of the last one
	for _, o := range opens {
		n := len(all)
		if n == 0 || o.gap > pause {
			all, times = append(all, cluster{from: o.at}), nil
			n++
		}
		times = append(times, o.at)
		for times[0] < o.at-pause {
			times = times[1:]
		}
		c := &all[n-1]
		c.to = o.at
		if o.loads {
			c.loads++
		}
		c.peak = max(c.peak, len(times))
	}
	return all
}

// burstEnd is the end of the last cluster that is of the burst.
func burstEnd(clusters []cluster) float64 {
	peak, loads := 0, 0
	for _, c := range clusters {
		peak, loads = max(peak, c.peak), loads+c.loads
	}
	end := clusters[0].to
	for _, c := range clusters[1:] {
		dense := float64(c.peak) >= burstRate*float64(peak) && c.loads >= burstLeast
		if dense || c.loads > 0 && float64(c.loads) >= burstMost*float64(loads) {
			end = c.to
		}
	}
	return end
}

// served is the end of the waits that go on at a time, or begin at once: the last file's
// bytes are part of loading it.
func (d *deriver) served(at, end float64) float64 {
	const atOnce = 5 // ms
	for _, s := range d.blocked {
		if s.from <= at+atOnce && s.to > at {
			at = min(s.to, end)
		}
	}
	return at
}
