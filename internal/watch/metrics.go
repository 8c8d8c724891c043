package watch

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
)

// metrics are counted since the start.
type metrics struct {
	retries atomic.Int64
	refused atomic.Int64 // notifications, for the queue was full or could not be kept
	denied  atomic.Int64 // without the secret

	mu      sync.Mutex // guards all below
	taken   map[[2]string]int64
	images  map[[2]string]int64 // by result and reason
	bytes   int64               // of layers of what was indexed
	seconds float64
}

func (m *metrics) init() {
	m.taken, m.images = map[[2]string]int64{}, map[[2]string]int64{}
}

// event counts what a notification told of, by format and what was decided.
func (m *metrics) event(format string, o Outcome) {
	m.mu.Lock()
	defer m.mu.Unlock()
	what := o.Result
	if o.Reason != "" {
		what = string(o.Reason)
	}
	m.taken[[2]string{format, what}]++
}

func (m *metrics) outcome(o Outcome) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.images[[2]string{o.Result, string(o.Reason)}]++
	if o.Result == ResultIndexed {
		m.bytes += o.ImageBytes
		m.seconds += o.Seconds
	}
}

// write prints all in Prometheus' text format.
// https://prometheus.io/docs/instrumenting/exposition_formats/
// Labels need no escaping: their values are constants of this package.
func (m *metrics) write(w io.Writer, queued, running, limit int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	one := func(name, kind, help string, v any) {
		fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n%s %v\n", name, help, name, kind, name, v)
	}
	many := func(name, help string, labels [2]string, values map[[2]string]int64) {
		fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s counter\n", name, help, name)
		for _, k := range slices.SortedFunc(maps.Keys(values), func(a, b [2]string) int { return slices.Compare(a[:], b[:]) }) {
			fmt.Fprintf(w, "%s{%s=%q,%s=%q} %d\n", name, labels[0], k[0], labels[1], k[1], values[k])
		}
	}
	many("thaw_watch_events_total", "What notifications told of, by format and what was decided at once.", [2]string{"format", "decision"}, m.taken)
	many("thaw_watch_images_total", "Images that were looked at, by result and reason.", [2]string{"result", "reason"}, m.images)
	one("thaw_watch_retries_total", "counter", "Attempts that failed and are made again.", m.retries.Load())
	one("thaw_watch_refused_total", "counter", "Notifications that were told to come again, for there was no room.", m.refused.Load())
	one("thaw_watch_denied_total", "counter", "Requests without the secret.", m.denied.Load())
	one("thaw_watch_indexed_bytes_total", "counter", "Layers of the images that were indexed, as served.", m.bytes)
	one("thaw_watch_index_seconds_total", "counter", "Time that these took.", m.seconds)
	one("thaw_watch_queue_images", "gauge", "Images in the queue.", queued)
	one("thaw_watch_queue_running_images", "gauge", "Of these, how many are worked on.", running)
	one("thaw_watch_queue_limit_images", "gauge", "How many the queue takes.", limit)
}
