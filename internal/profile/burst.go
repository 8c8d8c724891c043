package profile

import "math"

// Of the dependency burst: where no file was opened for longer than burstGapMs, not
// counting waits for bytes, it pauses; it goes on with what comes then if files are
// opened at no less than burstRate of its peak rate. Rates are files in the busiest
// burstGapMs.
const (
	burstGapMs = 40
	burstRate  = 0.05
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
	peak     int // files in the busiest burstGapMs
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

// clusters are those of the opens between two times that are of a program loading, by
// time.
func (d *deriver) clusters(from, to float64) []cluster {
	var all []cluster
	var times []float64 // of the last one
	for _, one := range d.Reads {
		class := classOf(one.Path)
		if one.AtMs < from || one.AtMs > to || class == classData {
			continue
		}
		n := len(all)
		if n == 0 || one.AtMs-all[n-1].to-d.waited(all[n-1].to, one.AtMs) > burstGapMs {
			all, times = append(all, cluster{from: one.AtMs}), nil
			n++
		}
		times = append(times, one.AtMs)
		for times[0] < one.AtMs-burstGapMs {
			times = times[1:]
		}
		c := &all[n-1]
		c.to = one.AtMs
		if class != classConfig {
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
