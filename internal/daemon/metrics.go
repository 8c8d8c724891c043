package daemon

import (
	"cmp"
	"context"
	"net"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/emit"
	"github.com/thaw-project/thaw/internal/metrics"
	"github.com/thaw-project/thaw/internal/registry"
)

// failure is a kind of error that is counted: the value of a label.
type failure int

const (
	failMount failure = iota
	failPull
	failUnmount
	failRead       // a reader got an error
	failLayer      // a finished layer is not its diffID
	failIncomplete // an image cannot be completed
	failDisk       // nothing can be written
	failures       // how many there are
)

var failureNames = [failures]string{"mount", "pull", "unmount", "read", "layer_quarantined", "image_incomplete", "disk_full"}

// maxImageLabels bounds the images that have metrics of their own.
const maxImageLabels = 100

// startPhases are the phases of a start, in order; the daemon sees the first ones,
// and is told of the others by thaw run.
var startPhases = []string{"resolve", "index", "pull", "mount", "create", "start", "ready", "complete"}

var (
	phaseBounds = []time.Duration{5 * time.Millisecond, 10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond,
		250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2500 * time.Millisecond, 5 * time.Second, 10 * time.Second, 20 * time.Second,
		45 * time.Second, 90 * time.Second, 180 * time.Second}
	waitBounds = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}
)

// counts are what the daemon counts for metrics. Its methods may be called at any
// time; those that reads of containers call take no lock.
type counts struct {
	served, waited atomic.Int64 // bytes of reads that were answered, and of those that waited
	failed         [failures]atomic.Int64
	bundles, pulls registry.Counter // what start-up bundles, and layers without an index, brought
	phases         map[string]*metrics.Histogram
	starts         emit.Collector

	mu     sync.Mutex // guards what follows
	mounts map[[2]string]int64
	here   int64 // of served, as it was last told
}

func newCounts() *counts {
	c := &counts{phases: map[string]*metrics.Histogram{}, mounts: map[[2]string]int64{}}
	for _, name := range startPhases {
		c.phases[name] = metrics.NewHistogram(phaseBounds...)
	}
	for _, mode := range []string{api.ModeFanotify, api.ModeFUSE, api.ModeEager} {
		for _, origin := range []string{originLocal, originStored, originRegistry, originBuilt} {
			c.mounts[[2]string{mode, origin}] = 0
		}
	}
	return c
}

func (c *counts) fail(kind failure) { c.failed[kind].Add(1) }

// phase counts a phase of a start; unknown ones, such as the push of an index, are none.
func (c *counts) phase(name string, took time.Duration) {
	if h := c.phases[name]; h != nil && took >= 0 {
		h.Observe(took)
	}
}

func (c *counts) mounted(m *mounted) {
	for _, p := range m.Committed {
		c.phase(p.Name, p.End.Sub(p.Start))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mounts[[2]string{m.Mode, m.Origin}]++
}

// readHere are the bytes of reads that were here when they were asked for. It never
// falls, although what it is made of is not read at one moment.
func (c *counts) readHere() int64 {
	here := c.served.Load() - c.waited.Load()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.here = max(c.here, here)
	return c.here
}

// serveMetrics answers Prometheus until the daemon ends. An address that cannot be
// had, such as one that somebody else has, is tried again: readers need the daemon
// all the same.
func (d *Daemon) serveMetrics() {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics.Handler(d.gather))
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second,
		IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10}
	defer context.AfterFunc(d.ctx, func() { srv.Close() })()
	const again = time.Second
	for said := false; d.ctx.Err() == nil; {
		l, err := net.Listen("tcp", d.cfg.Metrics)
		if err == nil {
			d.log.Info("metrics are served", "address", l.Addr().String())
			err = srv.Serve(l)
		}
		if d.ctx.Err() != nil {
			return
		}
		if !said {
			d.log.Error("metrics cannot be served; tried again", "address", d.cfg.Metrics, "err", err)
			said = true
		}
		select {
		case <-time.After(again):
		case <-d.ctx.Done():
		}
	}
}

func label(name, value string) metrics.Label { return metrics.Label{Name: name, Value: value} }

// gather puts all metrics into a set. Names and labels are in docs/observability.md.
func (d *Daemon) gather(s *metrics.Set) {
	s.Gauge("thaw_build_info", "The running version; the value is 1.", 1, label("version", d.cfg.Version), label("goversion", runtime.Version()))
	s.Gauge("thaw_mount_path_info", "How new mounts are made; the value is 1.", 1, label("mode", d.mode))
	d.gatherMounts(s)
	d.gatherReads(s)
	d.gatherRegistry(s)
	d.gatherStore(s)
	d.gatherProcess(s)
	c := d.counts
	for kind := range failures {
		s.Counter("thaw_errors_total", "Errors by kind.", float64(c.failed[kind].Load()), label("kind", failureNames[kind]))
	}
	for reason, n := range d.fallbacks.Counts() {
		s.Counter("thaw_fallbacks_total", "What was not mounted the best way, by reason.", float64(n), label("reason", string(reason)))
	}
	c.starts.Gather(s)
	for name, h := range c.phases {
		h.Put(s, "thaw_start_phase_seconds", "How long phases of starts took.", label("phase", name))
	}
}

// imageSum is what an image's mounts have in common.
type imageSum struct {
	name           string
	mounts         int
	here, unpacked int64
}

func (d *Daemon) gatherMounts(s *metrics.Set) {
	byMode := map[string]int{api.ModeFanotify: 0, api.ModeFUSE: 0, api.ModeEager: 0}
	images := map[string]*imageSum{}
	for _, m := range d.allMounts() {
		byMode[m.Mode]++
		name := m.img.ref.String()
		if images[name] == nil {
			here, unpacked := m.hereBytes()
			images[name] = &imageSum{name: name, here: here, unpacked: unpacked}
		}
		images[name].mounts++
	}
	for mode, n := range byMode {
		s.Gauge("thaw_mounts", "Mounts by their mount path.", float64(n), label("mode", mode))
	}
	d.counts.mu.Lock()
	for k, n := range d.counts.mounts {
		s.Counter("thaw_mounts_made_total", "Mounts that were made, by mount path and where the index came from.", float64(n), label("mode", k[0]), label("index", k[1]))
	}
	d.counts.mu.Unlock()
	all := make([]*imageSum, 0, len(images))
	for _, i := range images {
		all = append(all, i)
	}
	slices.SortFunc(all, func(a, b *imageSum) int { // what is not complete is of more interest
		return cmp.Or(cmp.Compare(b.unpacked-b.here, a.unpacked-a.here), cmp.Compare(a.name, b.name))
	})
	for _, i := range all[:min(len(all), maxImageLabels)] {
		s.Gauge("thaw_image_bytes", "Uncompressed bytes of mounted images, the 100 that lack most.", float64(i.here), label("image", i.name), label("state", "here"))
		s.Gauge("thaw_image_bytes", "", float64(i.unpacked-i.here), label("image", i.name), label("state", "missing"))
	}
	s.Gauge("thaw_images", "Images that are mounted.", float64(len(all)))
}

func (d *Daemon) gatherReads(s *metrics.Set) {
	st := d.sched.Stats()
	s.Gauge("thaw_readers_waiting", "Reads that wait for bytes.", float64(st.Waiting))
	s.Histogram("thaw_read_wait_seconds", "How long reads waited that had to.", waitBounds, func(b float64) uint64 {
		return uint64(st.Waits.UpTo(time.Duration(b * float64(time.Second))))
	}, uint64(st.Waits.Count()), st.Waits.Total().Seconds())
	const read = "Bytes that reads of layers asked the daemon for, by where they were. What the kernel has, and complete layers, are read without it."
	s.Counter("thaw_read_bytes_total", read, float64(d.counts.readHere()), label("source", "here"))
	s.Counter("thaw_read_bytes_total", read, float64(d.counts.waited.Load()), label("source", "registry"))
	const fetched = "Compressed bytes of layers that came, by who they were for."
	s.Counter("thaw_fetched_bytes_total", fetched, float64(st.Fetched.Readers), label("purpose", "reader"))
	s.Counter("thaw_fetched_bytes_total", fetched, float64(st.Fetched.Background), label("purpose", "background"))
	s.Counter("thaw_fetched_bytes_total", fetched, float64(d.counts.bundles.BytesRead.Load()), label("purpose", "bundle"))
	s.Counter("thaw_fetched_bytes_total", fetched, float64(d.counts.pulls.BytesRead.Load()), label("purpose", "pull"))
	s.Gauge("thaw_registry_outages", "Registries that give nothing now, although they are asked.", float64(st.Outages))
	var here, missing int64
	complete := 0
	all := d.layers.list()
	for _, l := range all {
		here += l.store.HaveBytes()
		missing += l.missing()
		if l.store.Complete() {
			complete++
		}
	}
	const bytes, layers = "Uncompressed bytes of the layers in use.", "Layers in use."
	s.Gauge("thaw_layer_bytes", bytes, float64(here), label("state", "here"))
	s.Gauge("thaw_layer_bytes", bytes, float64(missing), label("state", "missing"))
	s.Gauge("thaw_layers", layers, float64(complete), label("state", "complete"))
	s.Gauge("thaw_layers", layers, float64(len(all)-complete), label("state", "partial"))
}

func (d *Daemon) gatherRegistry(s *metrics.Set) {
	_, bytes := d.clients.sums()
	var answers [len(registry.AnswerNames)]int64
	d.clients.mu.Lock()
	for _, c := range d.clients.all {
		for i := range answers {
			answers[i] += c.Stats().Answers[i].Load()
		}
	}
	d.clients.mu.Unlock()
	s.Counter("thaw_registry_received_bytes_total", "Bytes that came from registries, all in all.", float64(bytes))
	for i, n := range answers {
		s.Counter("thaw_registry_requests_total", "Requests to registries by their answers' status; none: there was no answer.", float64(n),
			label("code", registry.AnswerNames[i]))
	}
}

func (d *Daemon) gatherStore(s *metrics.Set) {
	c, err := d.describeCache()
	if err != nil {
		d.log.Warn("measure layers for metrics", "err", err)
		return
	}
	s.Gauge("thaw_store_bytes", "What all layers take on disk.", float64(c.DiskBytes))
	s.Gauge("thaw_store_evictable_bytes", "Of those, what nothing uses and nothing pins.", float64(c.EvictableBytes))
	s.Gauge("thaw_store_limit_bytes", "What they may take, 0 for no limit.", float64(c.MaxBytes))
	s.Gauge("thaw_disk_free_bytes", "What is free on the disk.", float64(c.FreeBytes))
	s.Gauge("thaw_disk_reserve_bytes", "What only waiting readers may use of it.", float64(c.MinFreeBytes))
	s.Counter("thaw_evicted_layers_total", "Layers that were evicted.", float64(c.EvictedLayers))
	s.Counter("thaw_evicted_bytes_total", "What they took on disk.", float64(c.EvictedBytes))
}

func (d *Daemon) gatherProcess(s *metrics.Set) {
	pid := os.Getpid()
	s.Gauge("process_resident_memory_bytes", "Resident memory of the daemon.", float64(residentBytes(pid)))
	s.Gauge("process_start_time_seconds", "When the daemon was started, in Unix time.", float64(d.started.UnixMilli())/1000)
	s.Counter("process_cpu_seconds_total", "User and system time of the daemon.", cpuTime().Seconds())
	if fds, err := os.ReadDir("/proc/self/fd"); err == nil {
		s.Gauge("process_open_fds", "Open descriptors of the daemon.", float64(len(fds)))
	}
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	s.Gauge("go_memstats_heap_inuse_bytes", "Heap of the daemon.", float64(mem.HeapInuse))
	s.Gauge("go_goroutines", "Goroutines of the daemon.", float64(runtime.NumGoroutine()))
	keeper := int64(0)
	if d.keeper != nil {
		keeper = residentBytes(d.keeper.About().Pid)
	}
	s.Gauge("thaw_keeper_resident_memory_bytes", "Resident memory of the keeper.", float64(keeper))
}

// allMounts are the mounts that there are, the oldest first.
func (d *Daemon) allMounts() []*mounted {
	d.mu.Lock()
	all := make([]*mounted, 0, len(d.mounts))
	for _, m := range d.mounts {
		all = append(all, m)
	}
	d.mu.Unlock()
	slices.SortFunc(all, func(a, b *mounted) int { return a.Created.Compare(b.Created) })
	return all
}

// hereBytes says how much of a mount's layers is here, and of how much.
func (m *mounted) hereBytes() (here, unpacked int64) {
	seen := map[*layer]bool{}
	for _, l := range m.layers {
		if !seen[l] {
			seen[l] = true
			here += l.store.HaveBytes()
			unpacked += l.store.Meta().TarBytes
		}
	}
	return here, unpacked
}

// userHZ is the unit of times in /proc, the same on all architectures of Linux.
const userHZ = 100

// cpuTime is what the process has used.
func cpuTime() time.Duration {
	b, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), ") ") // the name before it may have anything in it
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.ParseInt(fields[11], 10, 64) // the kernel's
	system, _ := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * time.Second / userHZ
}
