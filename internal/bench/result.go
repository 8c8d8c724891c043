package bench

import (
	"maps"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// ResultVersion is the version of the JSON of [Result].
const ResultVersion = 1

// Result is documented in docs/formats/bench.md.
type Result struct {
	Version    int                    `json:"version"`
	Image      string                 `json:"image"`
	Manifest   string                 `json:"manifest"`
	ImageBytes int64                  `json:"image_bytes"`
	Begun      time.Time              `json:"begun"`
	Runs       int                    `json:"runs"`
	Machine    Machine                `json:"machine"`
	Network    Network                `json:"network"`
	Read       string                 `json:"read,omitempty"`
	ReadBytes  int64                  `json:"read_bytes,omitempty"`
	Order      []string               `json:"order"` // of modes, as asked for
	Modes      map[string]*ModeResult `json:"modes"`
	Noise      Noise                  `json:"noise"`
}

// Machine is where it was measured.
type Machine struct {
	CPUs   int    `json:"cpus"`
	Kernel string `json:"kernel"`
}

// Network is the way to the registry.
type Network struct {
	Name      string  `json:"name"` // of the lab's profile, or "real"
	LatencyMs float64 `json:"latency_ms"`
	Bandwidth int64   `json:"bandwidth_bytes_per_s"`
}

// ModeResult is what came out for one mode.
type ModeResult struct {
	ReadyMs            Samples   `json:"ready_ms"` // of each run
	MinMs              float64   `json:"min_ms"`
	AvgMs              float64   `json:"avg_ms"`
	MaxMs              float64   `json:"max_ms"`
	MedianMs           float64   `json:"median_ms"`
	Spread             float64   `json:"spread"` // Samples.Spread
	FloorMs            *float64  `json:"floor_ms"`
	FloorRatio         *float64  `json:"floor_ratio"`
	Floor              *Floor    `json:"floor,omitempty"`
	BytesUntilReady    *int64    `json:"bytes_until_ready"` // medians
	RequestsUntilReady *int64    `json:"requests_until_ready"`
	CountedBy          string    `json:"counted_by,omitempty"` // lab, or self
	FirstReadMs        *Summary  `json:"first_read_ms,omitempty"`
	SecondReadMs       *Summary  `json:"second_read_ms,omitempty"`
	Pages              []*Page   `json:"pages,omitempty"`
	Cold               bool      `json:"cold"`    // proven before each run
	Residue            []Residue `json:"residue"` // before each run

	eager                 bool
	bytes, requests       Samples
	firstRead, secondRead Samples
}

// Page is how long a page took.
type Page struct {
	URL      string   `json:"url"`
	FirstMs  *Summary `json:"first_ms"`
	SecondMs *Summary `json:"second_ms"`

	first, second Samples
}

func newResult(opts Options) *Result {
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease") // it is only said
	r := &Result{Version: ResultVersion, Begun: time.Now(), Runs: opts.Runs, Read: opts.Read,
		Machine: Machine{CPUs: runtime.NumCPU(), Kernel: strings.TrimSpace(string(kernel))}, Modes: map[string]*ModeResult{}}
	if opts.Line != nil {
		r.Network = Network{LatencyMs: milliseconds(opts.Line.Latency), Bandwidth: opts.Line.Bandwidth}
	}
	for _, m := range opts.Modes {
		mode := &ModeResult{Cold: !m.Warm, eager: m.Eager}
		for _, url := range opts.Pages {
			mode.Pages = append(mode.Pages, &Page{URL: url})
		}
		switch {
		case m.Warm: // nothing to count
		case m.Registry != nil:
			mode.CountedBy = "lab"
		default:
			mode.CountedBy = "self"
		}
		r.Order = append(r.Order, m.Name)
		r.Modes[m.Name] = mode
	}
	return r
}

func (r *Result) setImage(i Image) {
	if i.Manifest != "" {
		r.Manifest, r.ImageBytes = i.Manifest, i.LayerBytes
	}
}

// last is the latest time to ready.
func (m *ModeResult) last() float64 { return m.ReadyMs[len(m.ReadyMs)-1] }

// finish makes figures of samples.
func (r *Result) finish(opts Options, needs map[string]int64) {
	warm := 0.0
	for _, m := range opts.Modes {
		r.Modes[m.Name].finish()
		if m.Warm {
			warm = r.Modes[m.Name].MedianMs
		}
	}
	if opts.Line != nil {
		needed := r.leastNeeded(needs)
		for _, m := range opts.Modes {
			if !m.Warm {
				r.Modes[m.Name].setFloor(r.floor(r.Modes[m.Name], *opts.Line, needed, warm))
			}
		}
	}
	r.Noise = judge(opts.Limit, opts.Runs, r.Order, func(name string) Samples { return r.Modes[name].ReadyMs })
}

func (m *ModeResult) finish() {
	s := summarize(m.ReadyMs)
	m.MinMs, m.AvgMs, m.MaxMs, m.MedianMs, m.Spread = s.Min, s.Avg, s.Max, s.Median, m.ReadyMs.Spread()
	if len(m.bytes) > 0 {
		bytes, requests := int64(m.bytes.Median()), int64(math.Round(m.requests.Median()))
		m.BytesUntilReady, m.RequestsUntilReady = &bytes, &requests
	} else {
		m.CountedBy = ""
	}
	m.FirstReadMs, m.SecondReadMs = summarize(m.firstRead), summarize(m.secondRead)
	for _, p := range m.Pages {
		p.FirstMs, p.SecondMs = summarize(p.first), summarize(p.second)
	}
}

// leastNeeded is the fewest bytes that a start is known to get by with: those of
// the runs that fetched nothing ahead, and of all others. 0: not known.
func (r *Result) leastNeeded(needs map[string]int64) int64 {
	all := slices.Collect(maps.Values(needs))
	for _, m := range r.Modes {
		for _, n := range m.bytes {
			if n > 0 {
				all = append(all, int64(n))
			}
		}
	}
	if len(all) == 0 {
		return 0
	}
	return slices.Min(all)
}

// floor is of the best start in this way: one that brings all of the image has to
// bring all of it, any other no more than the least that one got by with.
func (r *Result) floor(m *ModeResult, line Line, needed int64, warm float64) *Floor {
	if m.BytesUntilReady == nil || needed == 0 {
		return nil
	}
	f := &Floor{RoundTrips: tripsLazy, LatencyMs: milliseconds(line.Latency), NeededBytes: needed, Bandwidth: line.Bandwidth, WarmMs: warm}
	if m.eager {
		f.RoundTrips, f.NeededBytes = tripsEager, r.ImageBytes
	}
	return f
}

func (m *ModeResult) setFloor(f *Floor) {
	if f == nil {
		return
	}
	ms := f.Ms()
	ratio := m.MedianMs / ms
	m.Floor, m.FloorMs, m.FloorRatio = f, &ms, &ratio
}
