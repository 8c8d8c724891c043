package profile

import (
	"fmt"
	"math"
	"strings"
	"unicode"
)

// MaxSubjects is how many subjects a record has at most.
const MaxSubjects = 256

// Limits of what a record has.
const (
	maxRuns   = 10_000    // of a subject
	maxFiles  = 500_000   // of a subject
	maxItems  = 200_000   // of a list of a run
	maxFew    = 1024      // phases, events, routes, labels, signals, layers, warnings, ticks, words of a command
	maxAll    = 2 << 20   // of all lists of a record together
	maxText   = 128 << 10 // as Linux has it for a word of a command
	maxMs     = 1e10      // 115 days
	maxNumber = 1 << 53
)

// Check reports the first thing in a record that it may not have: another version, IDs
// and names that are missing, not unique or not printable, lists and texts that are too
// long, times that are no numbers, too large, or end before they begin, negative
// amounts, a phase whose length is unknown but not its confidence, or the other way
// round, a file of a layer that is not there. Names of events, phases, sources and
// signals may be any.
func (r *Record) Check() error {
	var c checker
	c.record(r)
	return c.err
}

// checker keeps the first error.
type checker struct {
	at  []any // where: names, numbers of items
	err error
}

func (c *checker) fail(format string, args ...any) {
	if c.err != nil {
		return
	}
	var b strings.Builder
	for _, p := range c.at {
		switch p := p.(type) {
		case int:
			fmt.Fprintf(&b, "[%d]", p)
		case string:
			if b.Len() > 0 {
				b.WriteByte('.')
			}
			b.WriteString(p)
		}
	}
	if b.Len() > 0 {
		b.WriteString(": ")
	}
	c.err = fmt.Errorf("%s%s", b.String(), fmt.Sprintf(format, args...))
}

// each checks the items of a list of at most most.
func each[T any](c *checker, name string, list []T, most int, check func(v *T)) {
	if c.err != nil {
		return
	}
	if len(list) > most {
		c.fail("%s has %d items, more than %d", name, len(list), most)
		return
	}
	depth := len(c.at)
	for i := range list {
		c.at = append(c.at[:depth], name, i)
		check(&list[i])
		if c.err != nil {
			return
		}
	}
	c.at = c.at[:depth]
}

// name checks what stands in one line, or nothing.
func (c *checker) name(what, s string) {
	c.text(what, s)
	if strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		c.fail("%s %.100q is not printable", what, s)
	}
}

func (c *checker) text(what, s string) {
	if len(s) > maxText {
		c.fail("%s has %d bytes, more than %d", what, len(s), maxText)
	}
}

func (c *checker) time(what string, ms float64) {
	if !(math.Abs(ms) <= maxMs) {
		c.fail("%s is %v, which is no time", what, ms)
	}
}

// span checks a length of time.
func (c *checker) span(what string, ms float64) {
	if !(ms >= 0 && ms <= maxMs) {
		c.fail("%s is %v, which is no length of time", what, ms)
	}
}

func (c *checker) interval(start, end float64) {
	c.time("begin", start)
	c.time("end", end)
	if end < start {
		c.fail("it ends at %v, before it begins at %v", end, start)
	}
}

func (c *checker) amount(what string, n int64) {
	if n < 0 || n > maxNumber {
		c.fail("%s is %d", what, n)
	}
}

// optional calls a check where there is a value.
func optional[T any](check func(what string, v T), what string, p *T) {
	if p != nil {
		check(what, *p)
	}
}

func (c *checker) record(r *Record) {
	if r.Version != Version {
		c.fail("version is %d, not %d", r.Version, Version)
	}
	if !isID(r.ID) {
		c.fail("id %.100q is not of the form YYYYMMDD-HHMMSS-xxxx", r.ID)
	}
	if y := r.Begun.Year(); y < 1970 || y > 9999 {
		c.fail("begun %v is missing, or no time", r.Begun)
	}
	if y := r.Ended.Year(); !r.Ended.IsZero() && (y < 1970 || y > 9999) {
		c.fail("ended %v is no time", r.Ended)
	}
	c.name("name", r.Name)
	c.name("source", r.Source)
	c.name("tool", r.Tool)
	c.labels(r.Labels)
	c.name("kernel", r.Machine.Kernel)
	c.amount("machine.cpus", int64(r.Machine.CPUs))
	c.amount("machine.memory_bytes", r.Machine.MemoryBytes)
	c.name("network.name", r.Network.Name)
	c.span("network.latency_ms", r.Network.LatencyMs)
	c.amount("network.bandwidth_bytes_per_s", r.Network.Bandwidth)
	each(c, "signals", r.Signals, maxFew, func(s *Signal) {
		c.name("name", s.Name)
		c.text("reason", s.Reason)
	})
	each(c, "warnings", r.Warnings, maxFew, func(s *string) { c.text("it", *s) })
	seen := map[string]bool{}
	each(c, "subjects", r.Subjects, MaxSubjects, func(s *Subject) {
		if s.Name == "" || seen[s.Name] {
			c.fail("name %.100q is missing, or another subject has it", s.Name)
		}
		seen[s.Name] = true
		c.subject(s)
	})
}

func (c *checker) labels(labels map[string]string) {
	if len(labels) > maxFew {
		c.fail("labels has %d items, more than %d", len(labels), maxFew)
	}
	for k, v := range labels {
		c.name("label", k)
		c.name("label", v)
	}
}

func (c *checker) subject(s *Subject) {
	c.labels(s.Labels)
	c.name("name", s.Name)
	c.name("image", s.Image)
	c.name("manifest", s.Manifest)
	c.name("mode", s.Mode)
	c.name("cold", s.Cold)
	c.text("probe", s.Probe)
	c.amount("image_bytes", s.ImageBytes)
	c.amount("unpacked_bytes", s.UnpackedBytes)
	each(c, "command", s.Command, maxFew, func(w *string) { c.text("it", *w) })
	each(c, "layers", s.Layers, maxFew, func(l *Layer) {
		c.name("digest", l.Digest)
		c.amount("bytes", l.Bytes)
		c.amount("unpacked_bytes", l.UnpackedBytes)
		c.text("instruction", l.Instruction)
	})
	each(c, "files", s.Files, maxFiles, func(f *File) {
		c.text("path", f.Path)
		c.amount("bytes", f.Bytes)
		c.amount("compressed_bytes", f.CompressedBytes)
		c.amount("read_bytes", f.ReadBytes)
		c.text("package", f.Package)
		c.name("first", f.First)
		if f.Layer < 0 || f.Layer >= len(s.Layers) {
			c.fail("layer %d is not there", f.Layer)
		}
		if !(f.Runs >= 0 && f.Runs <= 1) {
			c.fail("runs is %v, which is no share", f.Runs)
		}
	})
	each(c, "runs", s.Runs, maxRuns, c.run)
}

func (c *checker) run(r *Run) {
	if y := r.Begun.Year(); y < 1 || y > 9999 {
		c.fail("begun %v is no time", r.Begun)
	}
	c.name("container", r.Container)
	c.text("error", r.Error)
	if l := r.Coldness; l != nil {
		c.name("coldness.level", l.Level)
		c.text("coldness.reason", l.Reason)
		c.amount("coldness.files", int64(l.Files))
		c.amount("coldness.stored_bytes", l.StoredBytes)
		c.amount("coldness.cached_bytes", l.CachedBytes)
	}
	optional(c.span, "total_ms", r.TotalMs)
	each(c, "events", r.Events, maxFew, func(e *Event) {
		if e.Name == "" {
			c.fail("name is missing")
		}
		c.name("name", e.Name)
		c.name("source", e.Source)
		c.name("confidence", e.Confidence)
		c.text("detail", e.Detail)
		c.time("at_ms", e.AtMs)
		c.span("precision_ms", e.PrecisionMs)
		c.span("waited_ms", e.WaitedMs)
	})
	phases := map[string]bool{}
	each(c, "phases", r.Phases, maxFew, func(p *Phase) {
		if p.Name == "" || phases[p.Name] {
			c.fail("name %.100q is missing, or another phase has it", p.Name)
		}
		phases[p.Name] = true
		c.phase(p)
	})
	c.seen(r)
	each(c, "requests", r.Requests, maxItems, func(q *Request) {
		c.text("route", q.Route)
		c.text("error", q.Error)
		c.interval(q.StartMs, q.EndMs)
		c.span("wait_ms", q.WaitMs)
		c.amount("n", int64(q.N))
		c.amount("files", int64(q.Files))
		c.amount("bytes", q.Bytes)
	})
	if h := r.Health; h != nil {
		c.name("health.kind", h.Kind)
		c.name("health.source", h.Source)
		each(c, "health.ticks_ms", h.TicksMs, maxItems, func(ms *float64) { c.time("it", *ms) })
		optional(c.time, "health.healthy_ms", h.HealthyMs)
		optional(c.time, "health.deadline_ms", h.DeadlineMs)
	}
	if k := r.Cost; k != nil {
		for what, n := range map[string]int64{"network_bytes": k.NetworkBytes, "requests": k.Requests, "registry_bytes": k.RegistryBytes, "cache_bytes": k.CacheBytes,
			"here_bytes": k.HereBytes, "cpu_ms": k.CPUMs, "throttled_ms": k.ThrottledMs, "needed_bytes": k.NeededBytes, "complete_bytes": k.CompleteBytes} {
			c.amount("cost."+what, n)
		}
	}
	each(c, "warnings", r.Warnings, maxFew, func(s *string) { c.text("it", *s) })
}

func (c *checker) phase(p *Phase) {
	c.name("name", p.Name)
	c.name("source", p.Source)
	c.name("confidence", p.Confidence)
	c.text("reason", p.Reason)
	switch {
	case (p.Ms == nil) != (p.Confidence == Unknown):
		c.fail("confidence is %q, which does not go with a length that is known, or not", p.Confidence)
	case p.Ms == nil:
	case p.Name == PhaseFirstRequest: // less than nothing, if the first one was the quickest
		c.time("ms", *p.Ms)
	default:
		c.span("ms", *p.Ms)
	}
	optional(c.time, "start_ms", p.StartMs)
	optional(c.time, "end_ms", p.EndMs)
	if p.StartMs != nil && p.EndMs != nil {
		c.interval(*p.StartMs, *p.EndMs)
	}
	optional(c.span, "lazy_wait_ms", p.LazyWaitMs)
	optional(c.span, "cpu_ms", p.CPUMs)
	optional(c.amount, "bytes", p.Bytes)
	if p.Files != nil {
		c.amount("files", int64(*p.Files))
	}
	each(c, "routes", p.Routes, maxFew, func(r *Route) {
		c.text("route", r.Route)
		c.span("first_ms", r.FirstMs)
		c.span("steady_ms", r.SteadyMs)
		c.time("penalty_ms", r.PenaltyMs)
		c.span("wait_ms", r.WaitMs)
		c.amount("files", int64(r.Files))
		c.amount("bytes", r.Bytes)
	})
}

// seen checks what was seen in a run: processes, reads, packages, waits.
func (c *checker) seen(r *Run) {
	each(c, "processes", r.Processes, maxItems, func(p *Process) {
		c.text("command", p.Command)
		c.time("start_ms", p.StartMs)
		if p.EndMs != nil {
			c.interval(p.StartMs, *p.EndMs)
		}
	})
	each(c, "reads", r.Reads, maxItems, func(d *Read) {
		c.text("path", d.Path)
		c.name("phase", d.Phase)
		c.time("at_ms", d.AtMs)
		c.span("took_ms", d.TookMs)
		c.amount("bytes", d.Bytes)
	})
	each(c, "packages", r.Packages, maxItems, func(p *Package) {
		c.text("name", p.Name)
		c.name("phase", p.Phase)
		c.span("ms", p.Ms)
		c.amount("bytes", p.Bytes)
		c.amount("files", int64(p.Files))
	})
	each(c, "waits", r.Waits, maxItems, func(w *Wait) {
		c.interval(w.StartMs, w.EndMs)
		c.text("path", w.Path)
		c.name("layer", w.Layer)
		c.amount("bytes", w.Bytes)
	})
}
