// Package metrics serves numbers to Prometheus.
//
// Numbers are gathered when they are asked for: a Gather puts families into a Set,
// and Handler writes that in the format the scraper prefers. What has to be counted
// in between is a Histogram here, or an atomic number of whoever counts.
//
// The formats are written by Prometheus' own encoder and its data model. Its client
// library, which keeps metrics too, is not used: its init costs every start of the
// program half a millisecond, whether there are metrics or not.
//
// Names and bounded labels are the callers' business; TestLint of the daemon judges
// them with Prometheus' linter.
package metrics

import (
	"bytes"
	"cmp"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
)

// Label is a name and its value.
type Label struct{ Name, Value string }

// Set is metrics as they are at a moment. The zero value is empty.
type Set struct{ byName map[string]*dto.MetricFamily }

// add puts a metric into its family.
func (s *Set) add(name, help string, kind dto.MetricType, m *dto.Metric, labels []Label) {
	f := s.byName[name]
	if f == nil {
		f = &dto.MetricFamily{Name: &name, Help: &help, Type: &kind}
		if s.byName == nil {
			s.byName = map[string]*dto.MetricFamily{}
		}
		s.byName[name] = f
	}
	for _, l := range labels {
		value := strings.ToValidUTF8(l.Value, "\uFFFD")
		m.Label = append(m.Label, &dto.LabelPair{Name: &l.Name, Value: &value})
	}
	f.Metric = append(f.Metric, m)
}

// Counter adds a number that only grows; its name ends in _total.
func (s *Set) Counter(name, help string, value float64, labels ...Label) {
	s.add(name, help, dto.MetricType_COUNTER, &dto.Metric{Counter: &dto.Counter{Value: &value}}, labels)
}

// Gauge adds a number that goes up and down.
func (s *Set) Gauge(name, help string, value float64, labels ...Label) {
	s.add(name, help, dto.MetricType_GAUGE, &dto.Metric{Gauge: &dto.Gauge{Value: &value}}, labels)
}

// Histogram adds a distribution: upTo is how many of count are no greater than a
// bound, for bounds that rise.
func (s *Set) Histogram(name, help string, bounds []float64, upTo func(bound float64) uint64, count uint64, sum float64, labels ...Label) {
	h := &dto.Histogram{SampleCount: &count, SampleSum: &sum}
	for _, bound := range bounds {
		n := min(upTo(bound), count)
		h.Bucket = append(h.Bucket, &dto.Bucket{UpperBound: &bound, CumulativeCount: &n})
	}
	s.add(name, help, dto.MetricType_HISTOGRAM, &dto.Metric{Histogram: h}, labels)
}

// Families returns all families, by name.
func (s *Set) Families() []*dto.MetricFamily {
	all := make([]*dto.MetricFamily, 0, len(s.byName))
	for _, f := range s.byName {
		all = append(all, f)
	}
	slices.SortFunc(all, func(a, b *dto.MetricFamily) int { return cmp.Compare(a.GetName(), b.GetName()) })
	return all
}

// WriteText writes all metrics as Prometheus' text, or as OpenMetrics.
func (s *Set) WriteText(w io.Writer, openMetrics bool) error {
	kind := expfmt.TypeTextPlain
	if openMetrics {
		kind = expfmt.TypeOpenMetrics
	}
	return s.write(w, expfmt.NewFormat(kind))
}

func (s *Set) write(w io.Writer, format expfmt.Format) error {
	enc := expfmt.NewEncoder(w, format)
	for _, f := range s.Families() {
		if err := enc.Encode(f); err != nil {
			return err
		}
	}
	if end, ok := enc.(expfmt.Closer); ok {
		return end.Close()
	}
	return nil
}

// Histogram counts durations. Make it with NewHistogram.
type Histogram struct {
	bounds []time.Duration

	mu     sync.Mutex // guards what follows
	counts []uint64   // up to each bound, and past the last; not cumulative
	sum    time.Duration
}

// NewHistogram returns a histogram with bounds that rise.
func NewHistogram(bounds ...time.Duration) *Histogram {
	return &Histogram{bounds: bounds, counts: make([]uint64, len(bounds)+1)}
}

// Observe counts a duration.
func (h *Histogram) Observe(d time.Duration) {
	i, _ := slices.BinarySearch(h.bounds, d)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.counts[i]++
	h.sum += d
}

// Put adds the histogram to a set, in seconds.
func (h *Histogram) Put(s *Set, name, help string, labels ...Label) {
	h.mu.Lock()
	defer h.mu.Unlock()
	bounds := make([]float64, len(h.bounds))
	sums := map[float64]uint64{}
	total := uint64(0)
	for i, d := range h.bounds {
		total += h.counts[i]
		bounds[i] = d.Seconds()
		sums[bounds[i]] = total
	}
	total += h.counts[len(h.bounds)]
	s.Histogram(name, help, bounds, func(b float64) uint64 { return sums[b] }, total, h.sum.Seconds(), labels...)
}

// maxScrapes bounds the scrapes that are answered at once.
const maxScrapes = 4

// Handler serves what gather puts into a set. gather may be called several times at
// once.
func Handler(gather func(*Set)) http.Handler {
	slots := make(chan struct{}, maxScrapes)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
		default:
			http.Error(w, "too many scrapes at once", http.StatusServiceUnavailable)
			return
		}
		var set Set
		gather(&set)
		format := expfmt.NegotiateIncludingOpenMetrics(r.Header)
		var body bytes.Buffer
		if err := set.write(&body, format); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", string(format))
		w.Write(body.Bytes())
	})
}
