package measure

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/bench"
	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/measure/clock"
	"github.com/thaw-project/thaw/internal/profile"
)

// Subject is an image that is started in one way, and how often.
type Subject struct {
	Name         string            // unlike any other
	Image        string            // as the user named it
	Mode         string            // of profile.Subject
	Cold         string            // profile.ColdL0, ...
	Start        bench.ThawOptions // its state directory is the subject's alone
	Registry     *bench.Registry   // nil where it is not ours
	Routes       []Route           // requests after it is ready
	Repeat       int               // of each
	WaitComplete bool              // follow each run until all of the image is here
	Unobserved   bool              // start it without looking at what it opens and executes
	ReadyTimeout time.Duration

	pulled bool
}

// Options says what to measure.
type Options struct {
	Subjects []*Subject
	Runs     int // of each subject; 0: until the median is known to HalfWidth, see MinRuns
	// Progress is told of every run, once it is over; of one that failed too.
	Progress func(Progress)
}

// Runs of a measurement that ends when enough is known.
const (
	MinRuns   = 10
	MaxRuns   = 50
	HalfWidth = 0.03 // of the median's 95 % confidence interval
)

// Progress is a run that is over.
type Progress struct {
	Subject string
	Number  int // from 1
	Of      int // 0: as many as it takes
	Run     *profile.Run
	Median  float64 // ms to ready, of the subject's runs so far; 0: none was good
}

// cleanTimeout bounds cleaning up after an interrupt.
const cleanTimeout = time.Minute

// Run measures: all subjects once a run, each run beginning with another one, so that
// whatever changes on the machine meanwhile concerns all of them. After an error, and
// when the context ends, nothing is left behind. The record has what was seen until
// then, unless it is nil.
//
// A run that cannot be as cold as it is to be ends the measurement with a
// *NotColdError; one that fails for another reason does so if it is its subject's
// first, and is in the record otherwise. A record of a measurement that was cut short has
// what was measured before, and says why.
func Run(ctx context.Context, opts Options) (rec *profile.Record, err error) {
	o := Observe()
	defer func() {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
		defer cancel()
		for _, s := range opts.Subjects {
			err = errors.Join(err, s.remove(clean))
		}
		err = errors.Join(err, o.Close())
	}()
	m := &measurement{Options: opts, observer: o, record: newRecord(opts)}
	for _, s := range opts.Subjects {
		if s.Start.First == nil {
			continue
		}
		if err := s.Start.First(ctx); err != nil {
			return nil, fmt.Errorf("prepare %s: %w", s.Name, err)
		}
	}
	for n := 0; !m.enough(n); n++ {
		for i := range opts.Subjects {
			at := (n + i) % len(opts.Subjects)
			if err := m.one(ctx, at, n); err != nil {
				why := err.Error()
				if ctx.Err() != nil {
					why = "interrupted"
				}
				m.record.Warnings = append(m.record.Warnings, fmt.Sprintf("cut short in run %d of %s: %s", n+1, opts.Subjects[at].Name, why))
				m.finish()
				return m.record, fmt.Errorf("run %d of %s: %w", n+1, opts.Subjects[at].Name, err)
			}
		}
	}
	m.finish()
	return m.record, ctx.Err()
}

func newRecord(opts Options) *profile.Record {
	r := &profile.Record{Version: profile.Version, Source: profile.SourceMeasure, Begun: time.Now().UTC(), Machine: machine()}
	for _, s := range opts.Subjects {
		r.Subjects = append(r.Subjects, profile.Subject{Name: s.Name, Image: s.Image, Mode: s.Mode, Cold: s.Cold, Command: s.Start.Args, Probe: s.Start.Ready})
	}
	return r
}

// machine describes this one.
func machine() profile.Machine {
	m := profile.Machine{CPUs: runtime.NumCPU()}
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		m.Kernel = unix.ByteSliceToString(uts.Release[:])
	}
	b, _ := os.ReadFile("/proc/meminfo") // without, it is not known
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "MemTotal:" {
			n, _ := strconv.ParseInt(f[1], 10, 64)
			m.MemoryBytes = n << 10
		}
	}
	return m
}

type measurement struct {
	Options
	observer *Observer
	record   *profile.Record
}

// enough reports whether n runs of each subject are enough.
func (m *measurement) enough(n int) bool {
	if m.Runs > 0 || n < MinRuns || n >= MaxRuns {
		return m.Runs > 0 && n >= m.Runs || n >= MaxRuns && m.Runs == 0
	}
	for i := range m.record.Subjects {
		st := profile.Summarize(totals(&m.record.Subjects[i]))
		if st.HalfWidth == nil || *st.HalfWidth >= HalfWidth {
			return false
		}
	}
	return true
}

// totals are the times to ready of a subject's good runs.
func totals(s *profile.Subject) []float64 {
	var all []float64
	for i := range s.Runs {
		if r := &s.Runs[i]; r.Good() && r.TotalMs != nil {
			all = append(all, *r.TotalMs)
		}
	}
	return all
}

// one does one run of a subject.
func (m *measurement) one(ctx context.Context, at, n int) error {
	s, to := m.Subjects[at], &m.record.Subjects[at]
	m.observer.Forget(clock.Now()) // of the whole machine, which may be busy
	cold, err := s.reset(ctx)
	if err != nil {
		return err
	}
	run, err := m.observe(ctx, s, to)
	var failed *startError
	if errors.As(err, &failed) && ctx.Err() == nil && n > 0 {
		err = nil // in the record
		if run == nil {
			run = &profile.Run{Begun: time.Now().UTC()}
			profile.Derive(run)
		}
	}
	if run == nil || err != nil && ctx.Err() != nil { // a part of one
		return err
	}
	run.Coldness = cold
	if failed != nil {
		run.Error = failed.Error()
	}
	to.Runs = append(to.Runs, *run)
	if m.Progress != nil && ctx.Err() == nil {
		p := Progress{Subject: s.Name, Number: n + 1, Of: m.Runs, Run: run}
		if all := totals(to); len(all) > 0 {
			p.Median = profile.Percentile(all, 0.5)
		}
		m.Progress(p)
	}
	return err
}

// startError is a start that failed, of which there may be something to show.
type startError struct{ error }

func (e *startError) Unwrap() error { return e.error }

// observe starts a container, sees it through, and stops it.
func (m *measurement) observe(ctx context.Context, s *Subject, to *profile.Subject) (run *profile.Run, err error) {
	if s.Registry != nil {
		if err := s.Registry.Reset(ctx); err != nil {
			return nil, err
		}
	}
	m.observer.Forget(clock.Now()) // what is not of this run
	backed, err := bench.BackMemory()
	if err != nil {
		return nil, err
	}
	if s.Unobserved {
		resume, err2 := m.observer.pause()
		defer func() { err = errors.Join(err, resume()) }()
		if err2 != nil {
			return nil, errors.Join(err2, backed.Close())
		}
	}
	st, err := s.start(ctx, m.observer, !s.Unobserved)
	if err == nil {
		run, err = st.measure(ctx)
	}
	if run != nil && to.Manifest == "" && err == nil {
		err = m.describe(ctx, st, to)
	}
	if err != nil && ctx.Err() == nil {
		err = &startError{err}
	}
	if st != nil {
		if !s.Unobserved {
			m.signals(st, run)
		}
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
		defer cancel()
		err = errors.Join(err, st.stop(clean))
		if s.Cold == profile.ColdL0 { // nothing is to go on beside the next one
			err = errors.Join(err, s.remove(clean))
		}
	}
	return run, errors.Join(err, backed.Close())
}

// describe says what the subject's image is.
func (m *measurement) describe(ctx context.Context, st *started, to *profile.Subject) error {
	mount, err := st.client.Inspect(ctx, st.mounted.ID)
	if err != nil {
		return err
	}
	if to.Mode == ModeAuto {
		to.Mode = modeOf(mount)
	}
	if len(to.Command) == 0 {
		to.Command = command(st.mounted.Config)
	}
	if err := describeImage(to, st.subject.Start.Root, mount.Manifest, st.mounted.Config); err != nil {
		m.record.Warnings = append(m.record.Warnings, to.Name+": "+err.Error())
	}
	return nil
}

// ModeAuto is the mode of a subject that thaw itself chooses how to start; it is replaced
// by what it chose.
const ModeAuto = "auto"

// modeOf names how an image was started.
func modeOf(m *api.Mount) string {
	switch {
	case m.Mode == api.ModeEager:
		return "eager"
	case m.Index == "built":
		return "no-index"
	case m.Stats.Bundle == api.BundleApplied || m.Stats.Bundle == api.BundleStreaming:
		return "lazy+bundle"
	}
	return "lazy"
}

// signals notes what a run was seen with; what is worse in one run counts.
func (m *measurement) signals(st *started, run *profile.Run) {
	all := append([]profile.Signal{{Name: profile.SignalTimeline, Used: true}, {Name: profile.SignalProbe, Used: true}}, st.target.Signals()...)
	reads := profile.Signal{Name: profile.SignalReads, Used: run != nil && run.Waits != nil}
	if !reads.Used {
		reads.Reason = "thaw's daemon could not be asked"
	}
	cached := profile.Signal{Name: profile.SignalCachestat, Used: st.pages != nil && st.pages.err == nil}
	if !cached.Used && st.pages != nil {
		cached.Reason = st.pages.err.Error()
	}
	for _, s := range append(all, reads, cached) {
		known := false
		for i := range m.record.Signals {
			if old := &m.record.Signals[i]; old.Name == s.Name {
				known = true
				if old.Reason == "" {
					*old = s
				}
			}
		}
		if !known {
			m.record.Signals = append(m.record.Signals, s)
		}
	}
}

// finish sums up.
func (m *measurement) finish() {
	m.record.Ended = time.Now().UTC()
	for i := range m.record.Subjects {
		s := &m.record.Subjects[i]
		summarizeFiles(s)
		m.record.Warnings = append(m.record.Warnings, warnings(s)...)
	}
}

// noisyWidth is the half width of the median's confidence interval from which on a
// measurement is called noisy.
const noisyWidth = 0.10

// warningsShown is how many warnings of its runs a subject repeats.
const warningsShown = 5

// warnings says what speaks against a subject's figures.
func warnings(s *profile.Subject) []string {
	var all []string
	warn := func(format string, args ...any) { all = append(all, s.Name+": "+fmt.Sprintf(format, args...)) }
	failed := 0
	for i := range s.Runs {
		if !s.Runs[i].Good() {
			failed++
		}
	}
	if failed > 0 {
		warn("%d of %d runs failed", failed, len(s.Runs))
	}
	st := profile.Summarize(totals(s))
	said := 0
	for i := range s.Runs {
		for _, text := range s.Runs[i].Warnings {
			if said++; said <= warningsShown {
				warn("run %d: %s", i+1, text)
			}
		}
	}
	if said > warningsShown {
		warn("%d more such warnings are with its runs", said-warningsShown)
	}
	for _, i := range st.Outliers {
		warn("run %d is an outlier: %.0f ms, and the median is %.0f ms", i+1, totals(s)[i], st.P50)
	}
	switch {
	case st.N > 0 && st.N < profile.MinRuns:
		warn("%d runs are too few to say how sure the median is", st.N)
	case st.HalfWidth != nil && *st.HalfWidth > noisyWidth:
		warn("noisy: the median is known to ±%.0f %% only; let nothing else run, or take more runs", 100**st.HalfWidth)
	}
	return all
}
