package emit

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/thaw-project/thaw/internal/metrics"
	"github.com/thaw-project/thaw/internal/profile"
)

// bounds of all histograms.
var bounds = []time.Duration{50 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond, time.Second,
	2500 * time.Millisecond, 5 * time.Second, 10 * time.Second, 20 * time.Second, 45 * time.Second, 90 * time.Second, 180 * time.Second}

// maxServices bounds the services that have series of their own; otherServices is what the
// rest is called together.
const (
	maxServices   = 100
	otherServices = "other"
)

// Values of labels: sets that are closed.
const (
	modeOther    = "other"
	valueUnknown = "unknown"
)

var (
	modes  = []string{"lazy", "lazy+bundle", "eager", "no-index", "containerd"}
	levels = []string{profile.ColdL0, profile.ColdL1, profile.ColdL2, profile.ColdL3}
)

// Collector counts starts for Prometheus. Its methods may be called at any time.
//
// A scraper takes a series that comes with 1 for one that always was 1, so that the
// first start of each service, the coldest, would never be seen in a rate. Gather
// tells each series as 0 before it tells what was counted.
type Collector struct {
	mu       sync.Mutex // guards what follows
	services map[string]*serviceCounts
}

type serviceCounts struct {
	seconds  series
	phases   map[string]*series
	starts   map[startKind]*counter
	failures counter
}

type startKind struct{ mode, cold string }

// series is a histogram, and whether it was told.
type series struct {
	h    *metrics.Histogram
	told bool
}

type counter struct {
	n    int64
	told bool
}

func newSeries() series { return series{h: metrics.NewHistogram(bounds...)} }

// Observe counts starts.
func (c *Collector) Observe(starts ...Start) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range starts {
		c.observe(&starts[i])
	}
}

func (c *Collector) observe(s *Start) {
	sc := c.service(s.Service)
	kind := startKind{modeLabel(s.Mode), coldLabel(s.Cold)}
	if sc.starts[kind] == nil {
		sc.starts[kind] = &counter{}
	}
	sc.starts[kind].n++
	if s.Error != "" {
		sc.failures.n++
	}
	if s.DurationMs != nil {
		sc.seconds.h.Observe(duration(*s.DurationMs))
	}
	for _, p := range s.Phases {
		c.phase(sc, p)
	}
}

// ObservePhase counts a phase of a start that was, or will be, observed without it: one that
// is over later.
func (c *Collector) ObservePhase(service string, p Phase) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.phase(c.service(service), p)
}

func (c *Collector) phase(sc *serviceCounts, p Phase) {
	if !slices.Contains(profile.Phases, p.Name) {
		return
	}
	if sc.phases[p.Name] == nil {
		h := newSeries()
		sc.phases[p.Name] = &h
	}
	sc.phases[p.Name].h.Observe(duration(p.Ms))
}

func (c *Collector) service(name string) *serviceCounts {
	if c.services == nil {
		c.services = map[string]*serviceCounts{}
	}
	if c.services[name] == nil && len(c.services) >= maxServices {
		name = otherServices // one more than the maximum
	}
	if c.services[name] == nil {
		c.services[name] = &serviceCounts{seconds: newSeries(), phases: map[string]*series{}, starts: map[startKind]*counter{}}
	}
	return c.services[name]
}

func duration(ms float64) time.Duration { return time.Duration(ms * float64(time.Millisecond)) }

func modeLabel(mode string) string {
	mode, _, _ = strings.Cut(mode, "/") // containerd/NAME
	switch {
	case mode == "":
		return valueUnknown
	case slices.Contains(modes, mode):
		return mode
	}
	return modeOther
}

func coldLabel(cold string) string {
	if slices.Contains(levels, cold) {
		return cold
	}
	return valueUnknown
}

const (
	helpSeconds  = "How long cold starts took, from requested to ready."
	helpPhase    = "How long phases of cold starts took; first_request_penalty: the first request less what later ones take."
	helpStarts   = "Cold starts, by how the image came and what of it was on the node."
	helpFailures = "Cold starts that failed."
)

// Gather puts what was counted into a set; of a series that was never told, that it is 0.
func (c *Collector) Gather(set *metrics.Set) { c.gather(set, false) }

// Put puts what was counted into a set: for numbers that nobody scrapes again.
func (c *Collector) Put(set *metrics.Set) { c.gather(set, true) }

func (c *Collector) gather(set *metrics.Set, all bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(c.services)) {
		sc, service := c.services[name], metrics.Label{Name: labelService, Value: name}
		sc.seconds.put(set, all, SeriesSeconds, helpSeconds, service)
		for _, phase := range profile.Phases {
			if s := sc.phases[phase]; s != nil {
				s.put(set, all, SeriesPhase, helpPhase, service, metrics.Label{Name: labelPhase, Value: phase})
			}
		}
		kinds := slices.SortedFunc(maps.Keys(sc.starts), func(a, b startKind) int { return cmp.Or(cmp.Compare(a.mode, b.mode), cmp.Compare(a.cold, b.cold)) })
		for _, kind := range kinds {
			sc.starts[kind].put(set, all, SeriesStarts, helpStarts, service, metrics.Label{Name: labelMode, Value: kind.mode}, metrics.Label{Name: labelCold, Value: kind.cold})
		}
		sc.failures.put(set, all, SeriesFailures, helpFailures, service)
	}
}

func (s *series) put(set *metrics.Set, all bool, name, help string, labels ...metrics.Label) {
	h := s.h
	if !s.told && !all {
		h = metrics.NewHistogram(bounds...)
	}
	s.told = true
	h.Put(set, name, help, labels...)
}

func (n *counter) put(set *metrics.Set, all bool, name, help string, labels ...metrics.Label) {
	v := n.n
	if !n.told && !all {
		v = 0
	}
	n.told = true
	set.Counter(name, help, float64(v), labels...)
}
