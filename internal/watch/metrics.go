package watch

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/thaw-project/thaw/internal/metrics"
)

// counts are made since the start.
type counts struct {
	retries atomic.Int64
	refused atomic.Int64 // notifications, for the queue was full or could not be kept
	denied  atomic.Int64 // without the secret
	took    *metrics.Histogram

	mu     sync.Mutex          // guards all below
	events map[[2]string]int64 // by format and what was decided
	images map[[2]string]int64 // by result and reason
	bytes  int64               // of layers of what was indexed
}

func (c *counts) init() {
	c.events, c.images = map[[2]string]int64{}, map[[2]string]int64{}
	c.took = metrics.NewHistogram(time.Second, 5*time.Second, 15*time.Second, time.Minute, 5*time.Minute, 15*time.Minute, time.Hour)
}

// event counts what a notification told of, by format and what was decided.
func (c *counts) event(format string, o Outcome) {
	c.mu.Lock()
	defer c.mu.Unlock()
	what := o.Result
	if o.Reason != "" {
		what = string(o.Reason)
	}
	c.events[[2]string{format, what}]++
}

func (c *counts) outcome(o Outcome) {
	if o.Result == ResultIndexed {
		c.took.Observe(time.Duration(o.Seconds * float64(time.Second)))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.images[[2]string{o.Result, string(o.Reason)}]++
	if o.Result == ResultIndexed {
		c.bytes += o.ImageBytes
	}
}

// gather is a metrics.Handler's.
func (w *Watcher) gather(s *metrics.Set) {
	c := &w.counts
	s.Counter("thaw_watch_retries_total", "Attempts that failed and are made again.", float64(c.retries.Load()))
	s.Counter("thaw_watch_refused_total", "Notifications that were told to come again, for there was no room.", float64(c.refused.Load()))
	s.Counter("thaw_watch_denied_total", "Requests without the secret.", float64(c.denied.Load()))
	queued, running := w.queue.counts()
	s.Gauge("thaw_watch_queue_images", "Images in the queue.", float64(queued))
	s.Gauge("thaw_watch_queue_running_images", "Of these, how many are worked on.", float64(running))
	s.Gauge("thaw_watch_queue_limit_images", "How many the queue takes.", float64(w.opts.Queue))
	c.took.Put(s, "thaw_watch_index_seconds", "Time that the images took that were indexed.")
	c.mu.Lock()
	defer c.mu.Unlock()
	s.Counter("thaw_watch_indexed_bytes_total", "Layers of the images that were indexed, as served.", float64(c.bytes))
	for _, k := range sorted(c.events) {
		s.Counter("thaw_watch_events_total", "What notifications told of, by format and what was decided at once.", float64(c.events[k]),
			metrics.Label{Name: "format", Value: k[0]}, metrics.Label{Name: "decision", Value: k[1]})
	}
	for _, k := range sorted(c.images) {
		s.Counter("thaw_watch_images_total", "Images that were looked at, by result and reason.", float64(c.images[k]),
			metrics.Label{Name: "result", Value: k[0]}, metrics.Label{Name: "reason", Value: k[1]})
	}
}

func sorted(m map[[2]string]int64) [][2]string {
	return slices.SortedFunc(maps.Keys(m), func(a, b [2]string) int { return slices.Compare(a[:], b[:]) })
}
