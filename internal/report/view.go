package report

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/thaw-project/thaw/internal/health"
	"github.com/thaw-project/thaw/internal/profile"
)

// view is what a page's script gets.
type view struct {
	Title    string        `json:"title"`
	Made     time.Time     `json:"made"`
	Tool     string        `json:"tool,omitempty"`
	Home     string        `json:"home,omitempty"`
	Compare  bool          `json:"compare"`
	Phases   []phaseName   `json:"phases"`
	Records  []recordView  `json:"records"`
	Subjects []subjectView `json:"subjects"`
	Compared []comparison  `json:"compared"`
	Looked   []lookedFor   `json:"looked"`
}

// phaseName is a phase as the model and as people call it.
type phaseName struct {
	Name  string `json:"name"`
	Label string `json:"label"`
	Start bool   `json:"start"` // it is one of those that add up to a start
}

var labels = map[string]string{
	profile.PhaseQueue: "Queue", profile.PhasePull: "Image pull", profile.PhaseRuntimeInit: "Runtime init",
	profile.PhaseDependencyLoad: "Dependency load", profile.PhaseBootstrap: "App bootstrap",
	profile.PhaseHealthContainer: "Health wait (container)", profile.PhaseHealthLB: "Health wait (load balancer)",
	profile.PhaseFirstRequest: "First request", profile.PhaseHydration: "Hydration",
}

// label of a phase, which a record may have made up.
func label(phase string) string { return cmp.Or(labels[phase], phase) }

// recordView is what the method says of a record.
type recordView struct {
	ID       string            `json:"id"`
	Name     string            `json:"name,omitempty"`
	Source   string            `json:"source"`
	Begun    time.Time         `json:"begun"`
	Ended    time.Time         `json:"ended,omitzero"`
	Tool     string            `json:"tool,omitempty"`
	Labels   map[string]string `json:"labels,omitempty"`
	Machine  profile.Machine   `json:"machine"`
	Network  profile.Network   `json:"network"`
	Signals  []profile.Signal  `json:"signals"`
	Warnings []string          `json:"warnings"`
	Raw      string            `json:"raw"`                // the record's JSON, gzip, base64
	RawNote  string            `json:"raw_note,omitempty"` // what is not in it
}

// runView is a run, or what is typical of several.
type runView struct {
	Begun     time.Time         `json:"begun,omitzero"`
	Container string            `json:"container,omitempty"`
	Error     string            `json:"error,omitempty"`
	Total     *float64          `json:"total"`
	Coldness  *profile.Coldness `json:"coldness,omitempty"`
	Phases    []phaseView       `json:"phases"`
	Events    []eventView       `json:"events"`
	Processes []processView     `json:"processes"`
	Waits     [][2]float64      `json:"waits"` // that overlap are one
	Warnings  []string          `json:"warnings"`
	Of        int               `json:"of,omitempty"`   // runs that it is the median of; 0: it is one
	From      int               `json:"from,omitempty"` // run that processes and waits are of, from 1
}

type phaseView struct {
	Name       string   `json:"name"`
	Start      *float64 `json:"start"`
	End        *float64 `json:"end"`
	Ms         *float64 `json:"ms"`
	Stats      *stats   `json:"stats,omitempty"`
	Lazy       *float64 `json:"lazy"`
	Bytes      *float64 `json:"bytes"`
	Files      *float64 `json:"files"`
	CPU        *float64 `json:"cpu,omitempty"`
	Source     string   `json:"source,omitempty"`
	Confidence string   `json:"confidence"`
	Reason     string   `json:"reason,omitempty"`
}

type eventView struct {
	Name       string  `json:"name"`
	At         float64 `json:"at"`
	P95        float64 `json:"p95,omitempty"`
	Source     string  `json:"source"`
	Confidence string  `json:"confidence"`
	Detail     string  `json:"detail,omitempty"`
	Precision  float64 `json:"precision,omitempty"`
}

type processView struct {
	Command string   `json:"command"`
	Pid     int      `json:"pid"`
	Start   float64  `json:"start"`
	End     *float64 `json:"end"`
}

// subjectView is all that the page says of a subject.
type subjectView struct {
	Name          string        `json:"name"`
	Record        int           `json:"record"` // of view.Records
	Image         string        `json:"image"`
	Manifest      string        `json:"manifest,omitempty"`
	Mode          string        `json:"mode,omitempty"`
	Cold          string        `json:"cold,omitempty"`
	Command       []string      `json:"command"`
	Probe         string        `json:"probe,omitempty"`
	ImageBytes    int64         `json:"image_bytes"`
	UnpackedBytes int64         `json:"unpacked_bytes"`
	Count         int           `json:"count"` // runs, of which Runs are the first
	Failed        int           `json:"failed"`
	Looked        int           `json:"looked"` // runs whose coldness was looked at
	Proven        int           `json:"proven"` // of them
	Total         *stats        `json:"total"`
	Totals        []float64     `json:"totals"`
	Readiness     []float64     `json:"readiness"` // from exec to ready, of each good run
	Fit           *fitView      `json:"fit"`       // to them; nil: they are too few
	Median        *runView      `json:"median"`    // nil: no run was good
	Runs          []runView     `json:"runs"`
	Headline      headline      `json:"headline"`
	Score         score         `json:"score"`
	Opportunities []opportunity `json:"opportunities"`
	Map           *fileMap      `json:"map"` // nil: no files are known
	Layers        []layerView   `json:"layers"`
	Routes        []routeView   `json:"routes"`
	Packages      []packageView `json:"packages"`
	Health        *healthView   `json:"health"`
	Cost          *profile.Cost `json:"cost"` // medians
}

// fitView is the distribution of readiness, as thaw health --run has it.
type fitView struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
}

func newFitView(readiness []float64) *fitView {
	var times []time.Duration
	for _, ms := range readiness {
		times = append(times, time.Duration(ms*1e6))
	}
	r, err := health.FitReady(times)
	if err != nil {
		return nil
	}
	return &fitView{round(float64(r.P50) / 1e6), round(float64(r.P99) / 1e6)}
}

// healthView is what the runs' health checks made of them.
type healthView struct {
	Kind     string    `json:"kind"`
	Source   string    `json:"source"`
	Ticks    []float64 `json:"ticks"` // of the typical run, since its exec
	Healthy  *stats    `json:"healthy"`
	Deadline *float64  `json:"deadline"`
	Interval float64   `json:"interval"` // between ticks; 0: not known
}

// routeView are the requests of one route, by their number.
type routeView struct {
	Route   string        `json:"route"`
	N       []requestView `json:"n"`
	First   float64       `json:"first"`
	Steady  float64       `json:"steady"`
	Penalty float64       `json:"penalty"`
	Known   bool          `json:"known"` // penalty is
}

type requestView struct {
	N      int     `json:"n"`
	Ms     *stats  `json:"ms"`
	Files  float64 `json:"files"`
	Bytes  float64 `json:"bytes"`
	Wait   float64 `json:"wait"`
	Failed int     `json:"failed"`
	Error  string  `json:"error,omitempty"`
}

type packageView struct {
	Name  string  `json:"name"`
	Phase string  `json:"phase"`
	Ms    float64 `json:"ms"`
	Bytes int64   `json:"bytes"`
	Files int     `json:"files"`
}

// Bounds of what a page shows.
const (
	maxRuns      = 60
	maxSubjects  = 40
	maxCompared  = 8 // subjects, each with each
	maxProcesses = 40
	maxWaits     = 600
	maxPackages  = 80
	maxRoutes    = 20
	maxRequests  = 20
	maxRawBytes  = 150 << 10 // of a record's compressed JSON
)

// newView computes a page.
func newView(records []profile.Record, o Options) (*view, error) {
	v := &view{Title: o.Title, Made: o.Made, Tool: o.Tool, Home: o.Home, Compare: o.Compare, Subjects: []subjectView{}, Compared: []comparison{}, Looked: looked}
	for i, name := range profile.Phases {
		v.Phases = append(v.Phases, phaseName{name, label(name), i < profile.StartPhases})
	}
	taken := map[string]bool{}
	var subjects []*profile.Subject
	for i := range records {
		r := &records[i]
		rv, err := newRecordView(r)
		if err != nil {
			return nil, err
		}
		v.Records = append(v.Records, *rv)
		for j := range r.Subjects {
			if len(v.Subjects) == maxSubjects {
				return nil, fmt.Errorf("more than %d subjects", maxSubjects)
			}
			s := newSubjectView(&r.Subjects[j], r, i)
			for n := 2; taken[s.Name]; n++ {
				s.Name = fmt.Sprintf("%s (%d)", cmp.Or(r.Subjects[j].Name, "start"), n)
			}
			taken[s.Name] = true
			v.Subjects = append(v.Subjects, s)
			subjects = append(subjects, &r.Subjects[j])
		}
	}
	if len(v.Subjects) == 0 {
		return nil, errors.New("there is nothing in these records")
	}
	for i := 1; i < min(len(subjects), maxCompared); i++ {
		for j := range i {
			v.Compared = append(v.Compared, compare(j, i, subjects[j], subjects[i], [2]string{v.Subjects[j].Name, v.Subjects[i].Name}))
		}
	}
	if v.Title == "" {
		v.Title = title(records)
	}
	return v, nil
}

// title names what was measured.
func title(records []profile.Record) string {
	var names []string
	for _, r := range records {
		if r.Name != "" {
			names = append(names, r.Name)
			continue
		}
		for _, s := range r.Subjects {
			names = append(names, shortImage(s.Image))
		}
	}
	return "Cold start of " + strings.Join(slices.Compact(names), ", ")
}

// shortImage is an image's name without its registry and digest.
func shortImage(image string) string {
	name, _, _ := strings.Cut(image, "@")
	if layout, ok := strings.CutPrefix(name, "oci:"); ok { // oci:DIR[:TAG]
		name = layout[strings.LastIndexByte(layout, ':')+1:]
	}
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		name = name[i+1:]
	}
	return cmp.Or(name, image, "an image")
}

// about is what a page without its script says.
func (v *view) about() string {
	var all []string
	for _, s := range v.Subjects {
		all = append(all, s.Name+": "+s.Headline.Text)
	}
	return strings.Join(all, " ")
}

func newRecordView(r *profile.Record) (*recordView, error) {
	v := &recordView{ID: r.ID, Name: r.Name, Source: r.Source, Begun: r.Begun, Ended: r.Ended, Tool: r.Tool, Labels: r.Labels, Machine: r.Machine, Network: r.Network,
		Signals: notNil(r.Signals), Warnings: notNil(r.Warnings)}
	raw, err := compressed(r)
	if err != nil {
		return nil, err
	}
	if len(raw) > maxRawBytes { // without what is large and not about the start
		small := *r
		small.Subjects = slices.Clone(r.Subjects)
		for i := range small.Subjects {
			s := &small.Subjects[i]
			s.Files = slices.DeleteFunc(slices.Clone(s.Files), func(f profile.File) bool { return f.First == "" })
		}
		v.RawNote = "Files that were never read are left out: thaw runs export has them."
		if raw, err = compressed(&small); err != nil {
			return nil, err
		}
		if len(raw) > maxRawBytes {
			for i := range small.Subjects {
				small.Subjects[i].Files = nil
				small.Subjects[i].Runs = slices.Clone(small.Subjects[i].Runs)
				for j := range small.Subjects[i].Runs {
					small.Subjects[i].Runs[j].Reads, small.Subjects[i].Runs[j].Waits = nil, nil
				}
			}
			v.RawNote = "Files, reads and waits are left out: thaw runs export has them."
			if raw, err = compressed(&small); err != nil {
				return nil, err
			}
		}
	}
	v.Raw = base64.StdEncoding.EncodeToString(raw)
	return v, nil
}

func compressed(r *profile.Record) ([]byte, error) {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(json.NewEncoder(z).Encode(r), z.Close()); err != nil {
		return nil, fmt.Errorf("encode record %s: %w", r.ID, err)
	}
	return b.Bytes(), nil
}

// notNil is an empty list for none: the script gets no nulls.
func notNil[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

func newSubjectView(s *profile.Subject, r *profile.Record, record int) subjectView {
	v := subjectView{Name: cmp.Or(s.Name, "start"), Record: record, Image: s.Image, Manifest: s.Manifest, Mode: s.Mode, Cold: s.Cold, Command: notNil(s.Command), Probe: s.Probe,
		ImageBytes: s.ImageBytes, UnpackedBytes: s.UnpackedBytes, Count: len(s.Runs), Totals: []float64{}, Readiness: []float64{}, Runs: []runView{}, Packages: []packageView{}, Routes: []routeView{}}
	if v.ImageBytes == 0 {
		for _, l := range s.Layers {
			v.ImageBytes += l.Bytes
		}
	}
	var good []*profile.Run
	for i := range s.Runs {
		run := &s.Runs[i]
		if c := run.Coldness; c != nil {
			v.Looked++
			if c.Proven {
				v.Proven++
			}
		}
		if run.Error != "" {
			v.Failed++
		} else {
			good = append(good, run)
			if run.TotalMs != nil {
				v.Totals = append(v.Totals, round(*run.TotalMs))
			}
			// Where only an orchestrator's word is known, the wait for its check is in it.
			if from, to := run.Event(profile.EventStarted), run.Event(profile.EventReady); from != nil && to != nil {
				v.Readiness = append(v.Readiness, round(max(to.AtMs-from.AtMs, 0)))
			}
		}
		if len(v.Runs) < maxRuns {
			v.Runs = append(v.Runs, newRunView(run))
		}
	}
	v.Total, v.Fit = summarize(v.Totals), newFitView(v.Readiness)
	sum := s.Summarize()
	if len(good) > 0 {
		typical, from := s.MedianRun()
		if typical == nil { // none is known to have become ready: the first
			typical, from = good[0], slices.IndexFunc(s.Runs, func(r profile.Run) bool { return r.Good() })
		}
		v.Median = medianRun(good, typical, from+1, &sum)
		v.Median.Total = nil
		if v.Total != nil {
			v.Median.Total = &v.Total.P50
		}
		v.Health = newHealthView(good, typical)
	}
	v.Cost = medianCost(good)
	v.Routes = routes(good, sum.Routes)
	v.Packages = packages(good)
	v.Map, v.Layers = newFileMap(s)
	v.Score = newScore(&v)
	v.Opportunities = opportunities(&v, s, r)
	v.Headline = newHeadline(&v)
	return v
}

func newRunView(r *profile.Run) runView {
	v := runView{Begun: r.Begun, Container: r.Container, Error: r.Error, Coldness: r.Coldness, Phases: []phaseView{}, Events: []eventView{},
		Processes: processes(r), Waits: waitTimes(r), Warnings: notNil(r.Warnings)}
	if r.TotalMs != nil {
		t := round(*r.TotalMs)
		v.Total = &t
	}
	for _, p := range r.Phases {
		v.Phases = append(v.Phases, phaseView{Name: p.Name, Start: rounded(p.StartMs), End: rounded(p.EndMs), Ms: rounded(p.Ms), Lazy: rounded(p.LazyWaitMs),
			Bytes: number(p.Bytes), Files: number(p.Files), CPU: rounded(p.CPUMs), Source: p.Source, Confidence: p.Confidence, Reason: p.Reason})
	}
	for _, e := range r.Events {
		v.Events = append(v.Events, eventView{Name: e.Name, At: round(e.AtMs), Source: e.Source, Confidence: e.Confidence, Detail: e.Detail, Precision: e.PrecisionMs})
	}
	return v
}

func rounded(f *float64) *float64 {
	if f == nil {
		return nil
	}
	r := round(*f)
	return &r
}

func number[T int | int64](n *T) *float64 {
	if n == nil {
		return nil
	}
	f := float64(*n)
	return &f
}

func processes(r *profile.Run) []processView {
	out := []processView{}
	for _, p := range r.Processes {
		if len(out) == maxProcesses {
			break
		}
		out = append(out, processView{p.Command, p.Pid, round(p.StartMs), rounded(p.EndMs)})
	}
	return out
}

// waitTimes are few enough to be drawn.
func waitTimes(r *profile.Run) [][2]float64 {
	all := profile.WaitTimes(r.Waits, maxWaits)
	for i, w := range all {
		all[i] = [2]float64{round(w[0]), round(w[1])}
	}
	return all
}

// medianRun is what is typical of runs: medians of times, and processes and waits of
// one of them.
func medianRun(good []*profile.Run, typical *profile.Run, from int, sum *profile.Summary) *runView {
	v := &runView{Of: len(good), From: from, Phases: []phaseView{}, Events: []eventView{}, Processes: processes(typical), Waits: waitTimes(typical), Warnings: []string{}}
	for _, name := range profile.Phases {
		if p := medianPhase(good, name); p != nil {
			if p.Ms != nil { // the least of all runs
				p.Confidence = sum.Phase(name).Confidence
			}
			v.Phases = append(v.Phases, *p)
		}
	}
	for _, name := range profile.Events {
		var at []float64
		var first *profile.Event
		for _, r := range good {
			if e := r.Event(name); e != nil {
				at = append(at, e.AtMs)
				first = cmp.Or(first, e)
			}
		}
		if first != nil {
			s := summarize(at)
			v.Events = append(v.Events, eventView{name, s.P50, s.P95, first.Source, first.Confidence, first.Detail, first.PrecisionMs})
		}
	}
	return v
}

// medianPhase is nil when no run has such a phase.
func medianPhase(good []*profile.Run, name string) *phaseView {
	var first *profile.Phase
	var start, end, ms, lazy, bytes, files, cpu []float64
	add := func(to *[]float64, f *float64) {
		if f != nil {
			*to = append(*to, *f)
		}
	}
	for _, r := range good {
		for i := range r.Phases {
			p := &r.Phases[i]
			if p.Name != name {
				continue
			}
			if first == nil || first.Ms == nil && p.Ms != nil {
				first = p
			}
			add(&start, p.StartMs)
			add(&end, p.EndMs)
			add(&ms, p.Ms)
			add(&lazy, p.LazyWaitMs)
			add(&bytes, number(p.Bytes))
			add(&files, number(p.Files))
			add(&cpu, p.CPUMs)
		}
	}
	if first == nil {
		return nil
	}
	mid := func(all []float64) *float64 {
		if len(all) == 0 {
			return nil
		}
		m := round(median(all))
		return &m
	}
	return &phaseView{Name: name, Start: mid(start), End: mid(end), Ms: mid(ms), Stats: summarize(ms), Lazy: mid(lazy), Bytes: mid(bytes), Files: mid(files), CPU: mid(cpu),
		Source: first.Source, Confidence: first.Confidence, Reason: first.Reason}
}

// phase finds a phase, or nil.
func (r *runView) phase(name string) *phaseView {
	if r == nil {
		return nil
	}
	for i := range r.Phases {
		if r.Phases[i].Name == name {
			return &r.Phases[i]
		}
	}
	return nil
}

// ms is how long a phase took; false when that is not known.
func (r *runView) ms(name string) (float64, bool) {
	if p := r.phase(name); p != nil && p.Ms != nil {
		return *p.Ms, true
	}
	return 0, false
}

func medianCost(good []*profile.Run) *profile.Cost {
	var costs []*profile.Cost
	for _, r := range good {
		if r.Cost != nil {
			costs = append(costs, r.Cost)
		}
	}
	if len(costs) == 0 {
		return nil
	}
	mid := func(get func(*profile.Cost) int64) int64 {
		var all []float64
		for _, c := range costs {
			all = append(all, float64(get(c)))
		}
		return int64(median(all))
	}
	return &profile.Cost{
		NetworkBytes:  mid(func(c *profile.Cost) int64 { return c.NetworkBytes }),
		Requests:      mid(func(c *profile.Cost) int64 { return c.Requests }),
		RegistryBytes: mid(func(c *profile.Cost) int64 { return c.RegistryBytes }),
		CacheBytes:    mid(func(c *profile.Cost) int64 { return c.CacheBytes }),
		HereBytes:     mid(func(c *profile.Cost) int64 { return c.HereBytes }),
		CPUMs:         mid(func(c *profile.Cost) int64 { return c.CPUMs }),
		ThrottledMs:   mid(func(c *profile.Cost) int64 { return c.ThrottledMs }),
		NeededBytes:   mid(func(c *profile.Cost) int64 { return c.NeededBytes }),
		CompleteBytes: mid(func(c *profile.Cost) int64 { return c.CompleteBytes }),
	}
}

// newHealthView is nil where no run has a health check.
func newHealthView(good []*profile.Run, typical *profile.Run) *healthView {
	var healthy []float64
	var v *healthView
	for _, r := range good {
		h := r.Health
		if h == nil {
			continue
		}
		if v == nil || r == typical {
			v = &healthView{Kind: h.Kind, Source: h.Source, Ticks: []float64{}}
			begin := 0.
			if e := r.Event(profile.EventStarted); e != nil {
				begin = e.AtMs
			}
			for _, t := range h.TicksMs[:min(len(h.TicksMs), 200)] {
				v.Ticks = append(v.Ticks, round(t-begin))
			}
			if h.DeadlineMs != nil {
				d := round(*h.DeadlineMs - begin)
				v.Deadline = &d
			}
			if n := len(h.TicksMs); n > 1 {
				v.Interval = round((h.TicksMs[n-1] - h.TicksMs[0]) / float64(n-1))
			}
		}
		if h.HealthyMs != nil {
			begin := 0.
			if e := r.Event(profile.EventStarted); e != nil {
				begin = e.AtMs
			}
			healthy = append(healthy, *h.HealthyMs-begin)
		}
	}
	if v != nil {
		v.Healthy = summarize(healthy)
	}
	return v
}

// routes puts the requests of all runs together, by route and number. What the first one
// costs is what the runs' phases say of it.
func routes(good []*profile.Run, known []profile.RouteSummary) []routeView {
	var order []string
	byRoute := map[string]map[int][]profile.Request{}
	for _, r := range good {
		for _, q := range r.Requests {
			if q.N < 1 || q.N > maxRequests {
				continue
			}
			if byRoute[q.Route] == nil {
				if len(order) == maxRoutes {
					continue
				}
				byRoute[q.Route] = map[int][]profile.Request{}
				order = append(order, q.Route)
			}
			byRoute[q.Route][q.N] = append(byRoute[q.Route][q.N], q)
		}
	}
	out := []routeView{}
	for _, route := range order {
		v := routeView{Route: route}
		for n := 1; n <= maxRequests; n++ {
			if all := byRoute[route][n]; len(all) > 0 {
				v.N = append(v.N, newRequestView(n, all))
			}
		}
		for i := range known {
			if k := &known[i]; k.Route == route {
				v.First, v.Steady, v.Penalty, v.Known = round(k.FirstMs.P50), round(k.SteadyMs.P50), round(k.PenaltyMs.P50), true
			}
		}
		out = append(out, v)
	}
	slices.SortStableFunc(out, func(a, b routeView) int { return cmp.Compare(b.Penalty, a.Penalty) })
	return out
}

func newRequestView(n int, all []profile.Request) requestView {
	v := requestView{N: n}
	var ms, files, bytes, wait []float64
	for _, q := range all {
		ms, files, bytes, wait = append(ms, q.EndMs-q.StartMs), append(files, float64(q.Files)), append(bytes, float64(q.Bytes)), append(wait, q.WaitMs)
		if q.Error != "" || q.Status >= 400 {
			v.Failed++
			v.Error = cmp.Or(v.Error, q.Error, fmt.Sprintf("status %d", q.Status))
		}
	}
	v.Ms, v.Files, v.Bytes, v.Wait = summarize(ms), median(files), median(bytes), round(median(wait))
	return v
}

// packages are medians over runs, the costliest first. One that a run does not have
// took nothing there.
func packages(good []*profile.Run) []packageView {
	type key struct{ name, phase string }
	all := map[key][]profile.Package{}
	for _, r := range good {
		for _, p := range r.Packages {
			k := key{p.Name, p.Phase}
			all[k] = append(all[k], p)
		}
	}
	out := []packageView{}
	for k, list := range all {
		var ms, bytes, files []float64
		for _, p := range list {
			ms, bytes, files = append(ms, p.Ms), append(bytes, float64(p.Bytes)), append(files, float64(p.Files))
		}
		for len(ms) < len(good) {
			ms = append(ms, 0)
		}
		out = append(out, packageView{k.name, k.phase, round(median(ms)), int64(median(bytes)), int(median(files))})
	}
	slices.SortFunc(out, func(a, b packageView) int {
		return cmp.Or(cmp.Compare(b.Ms, a.Ms), cmp.Compare(b.Bytes, a.Bytes), strings.Compare(a.Name, b.Name), strings.Compare(a.Phase, b.Phase))
	})
	return out[:min(len(out), maxPackages)]
}
