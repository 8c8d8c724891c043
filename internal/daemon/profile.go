package daemon

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/emit"
	"github.com/thaw-project/thaw/internal/profile"
	"github.com/thaw-project/thaw/internal/report"
	"github.com/thaw-project/thaw/internal/trace"
)

// keepStart is how long a start that is ready is waited for by its record, until what
// it read is known too; its hydration is put in when it is over.
const keepStart = recordAfter + 5*time.Second

// maxRecordReads bounds the files that a record names.
const maxRecordReads = 5000

// begun shows a start that was asked for, and returns its id and a function to be called
// with why there is no mount of it. Where nobody is shown anything both do nothing.
func (w *web) begun(image string, begun time.Time) (id string, failed func(err error)) {
	if w == nil {
		return "", func(error) {}
	}
	s := report.Start{ID: w.newID(begun), Image: image, Begun: begun, State: report.StateAsked}
	w.put(s)
	return s.ID, func(err error) {
		s.State, s.Over, s.Error = report.StateFailed, true, err.Error()
		w.put(s)
		took := time.Since(begun).Round(time.Millisecond)
		r := &profile.Record{Version: profile.Version, ID: s.ID, Source: profile.SourceDaemon, Begun: begun.UTC(), Tool: w.d.cfg.Version, Subjects: []profile.Subject{{Name: cmp.Or(image, "start"), Image: image,
			Runs: []profile.Run{{Begun: begun.UTC(), Error: fmt.Sprintf("%v, after %v", err, took), Events: []profile.Event{}, Phases: []profile.Phase{}}}}}}
		w.d.wg.Go(func() { w.keep(r) }) // who asked waits for the answer
	}
}

func (w *web) keep(r *profile.Record) {
	patience := 5 * time.Second
	if w.d.ctx.Err() != nil { // the daemon ends, and others wait for that
		patience = time.Second
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(w.d.ctx), patience)
	defer cancel()
	if _, err := w.store.Put(ctx, r); err != nil {
		w.d.log.Error("keep record of a start", "record", r.ID, "err", err)
		return
	}
	if s, ok := report.StartOf(r); ok {
		w.put(s)
	}
}

func msSince(begun, t time.Time) float64 {
	return float64(t.Round(0).Sub(begun.Round(0)).Microseconds()) / 1000
}

// follow shows a mount's start as it goes on, and keeps a record of it: once it is
// ready, or the mount gone, and again once all of the image is here.
func (w *web) follow(m *mounted) {
	d := w.d
	id := m.shown
	if id == "" {
		id = w.newID(m.asked)
	}
	here, _ := m.hereBytes()
	timeout := time.NewTimer(followMost)
	defer timeout.Stop()
	completed, kept := m.completed, false
	var wait <-chan time.Time // for the recording of a start that is ready
	var recorded <-chan struct{}
	if rec := m.recording.Load(); rec != nil {
		recorded = rec.over
	}
	var atReady *api.Stats
	for over := false; !over; {
		m.mu.Lock()
		if m.news == nil {
			m.news = make(chan struct{})
		}
		news, t := m.news, m.times
		m.mu.Unlock()
		begun := m.startBegun()
		started := !m.Writable || t.Started > 0 && (t.Ready > 0 || !t.ReadyComes)
		if started && atReady == nil && (t.Ready > 0 || !m.Writable) {
			s := m.stats()
			atReady = &s
		}
		if started && recorded == nil && !kept {
			w.keep(d.profileOf(m, id, here, atReady))
			kept = true
		} else if !kept {
			w.put(d.startOf(m, id, begun, t))
		}
		if started && wait == nil && recorded != nil {
			wait = time.After(keepStart)
		}
		if kept && completed == nil {
			break
		}
		select {
		case <-news:
		case <-completed:
			completed = nil
			if kept {
				w.keep(d.profileOf(m, id, here, atReady))
			}
		case <-recorded:
			recorded = nil
		case <-wait:
			recorded = nil
		case <-m.gone:
			over = true
		case <-timeout.C:
			over = true
		case <-d.ctx.Done():
			over = true
		}
		if over && !kept {
			w.keep(d.profileOf(m, id, here, atReady))
		}
	}
}

// startBegun is when a start was asked for, by thaw run's word if there is one.
func (m *mounted) startBegun() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.times.Begun.IsZero() {
		return m.times.Begun
	}
	return m.asked
}

// startOf is a start that is under way.
func (d *Daemon) startOf(m *mounted, id string, begun time.Time, t api.Times) report.Start {
	s := report.Start{ID: id, Image: m.img.ref.String(), Manifest: m.Manifest.String(), Begun: begun, State: profile.EventPullEnd, Mode: m.Mode}
	switch {
	case t.Ready > 0:
		s.State = profile.EventReady
		ms := float64(t.Ready.Microseconds()) / 1000
		s.TotalMs = &ms
	case t.Started > 0:
		s.State = profile.EventStarted
	case t.Created > 0:
		s.State = profile.EventCreated
	}
	return s
}

// profileOf describes a mount's start as a record of one run. Here is what of its layers
// was on this node when it was mounted, and ready what was counted until it was ready.
func (d *Daemon) profileOf(m *mounted, id string, here int64, ready *api.Stats) *profile.Record {
	begun := m.startBegun()
	now := m.lastStats()
	if ready == nil {
		ready = &now
	}
	run := profile.Run{Begun: begun.UTC(), Container: m.ID, Waits: []profile.Wait{}, Events: []profile.Event{{Name: profile.EventRequested, Source: profile.SignalTimeline, Confidence: profile.Measured}}}
	add := func(name string, t time.Time, detail string) {
		run.Events = append(run.Events, profile.Event{Name: name, AtMs: msSince(begun, t), Source: profile.SignalTimeline, Confidence: profile.Measured, Detail: detail})
	}
	m.mu.Lock()
	phases := m.phases()
	m.mu.Unlock()
	for i, p := range phases {
		if i == 0 {
			add(profile.EventPullStart, p.Start, "")
		}
		switch p.Name {
		case "mount":
			add(profile.EventPullEnd, p.End, m.Mode+", index: "+m.Origin)
		case "create":
			add(profile.EventCreated, p.End, "")
		case "start":
			add(profile.EventStarted, p.End, "the runtime said that it was executed")
			run.Events[len(run.Events)-1].Confidence = profile.Estimated
		case "ready":
			add(profile.EventReady, p.End, "thaw run --ready")
		}
	}
	if now.Complete && !now.CompletedAt.IsZero() {
		add(profile.EventHydrated, now.CompletedAt, "")
	}
	if now.Error != "" {
		run.Warnings = append(run.Warnings, now.Error)
	}
	for _, wait := range d.waits(m) {
		one := profile.Wait{StartMs: msSince(begun, wait.Start), EndMs: msSince(begun, wait.End), Layer: wait.Layer.String(), Bytes: wait.Bytes}
		if len(wait.Paths) > 0 {
			one.Path = wait.Paths[0]
		}
		one.EndMs = max(one.StartMs, one.EndMs)
		run.Waits = append(run.Waits, one)
	}
	cost := &profile.Cost{NetworkBytes: ready.NetworkBytes, Requests: ready.Requests}
	run.Cost = cost
	if now.Complete {
		cost.CompleteBytes = now.NetworkBytes
	}
	if t := m.read.Load(); t != nil {
		cost.NeededBytes = d.reads(m, t, &run)
		// What came meanwhile was for the readers, as far as they read so much.
		cost.RegistryBytes = min(max(ready.HereBytes-here, 0), cost.NeededBytes)
		cost.HereBytes = cost.NeededBytes - cost.RegistryBytes
	}
	profile.Derive(&run)
	s := profile.Subject{Name: m.img.ref.String(), Image: m.img.ref.String(), Manifest: m.Manifest.String(), Mode: m.startMode(), Cold: m.startCold(), ImageBytes: now.ImageBytes, UnpackedBytes: now.UnpackedBytes, Runs: []profile.Run{run}}
	for i, l := range m.layers {
		s.Layers = append(s.Layers, profile.Layer{Digest: l.blob.String(), Bytes: m.img.oci.Layers[i].Descriptor.Size, UnpackedBytes: l.store.Meta().TarBytes})
	}
	if m.Writable {
		s.Command = m.startCommand(d)
	}
	signals := []profile.Signal{{Name: profile.SignalTimeline, Used: true}, {Name: profile.SignalReads, Used: true}}
	if cost.NeededBytes == 0 {
		signals[1].Reason = "waits only: this start was not recorded"
	}
	return &profile.Record{Version: profile.Version, ID: id, Source: profile.SourceDaemon, Begun: begun.UTC(), Tool: d.cfg.Version, Labels: map[string]string{emit.LabelService: serviceOf(m.img.ref, m.img.oci)}, Signals: signals, Subjects: []profile.Subject{s}}
}

// startCommand is what a container of thaw run runs.
func (m *mounted) startCommand(d *Daemon) []string {
	if m.Request.Record == nil {
		return nil
	}
	return d.command(m)
}

// lastStats are the mount's, also after it was taken away.
func (m *mounted) lastStats() api.Stats {
	m.mu.Lock()
	ended := m.ended
	m.mu.Unlock()
	if ended != nil {
		return ended.Stats
	}
	return m.stats()
}

// reads puts the files that a start read into its run, by their first reads, and
// returns the bytes until it was ready.
func (d *Daemon) reads(m *mounted, t *trace.Trace, run *profile.Run) (needed int64) {
	files := d.filesOf(m.Manifest)
	at := map[string]int{}
	all := slices.Clone(t.Accesses)
	slices.SortStableFunc(all, func(a, b trace.Access) int { return int(a.At - b.At) })
	for _, a := range all {
		if a.Phase != trace.PhaseAfter {
			needed += a.Length
		}
		for _, part := range files.Split(a.Layer, a.Offset, a.Length) {
			if part.Path == "" {
				continue
			}
			path := "/" + part.Path
			i, ok := at[path]
			if !ok {
				if len(run.Reads) == maxRecordReads {
					continue
				}
				i = len(run.Reads)
				at[path] = i
				run.Reads = append(run.Reads, profile.Read{Path: path, AtMs: float64(a.At.Microseconds()) / 1000})
			}
			run.Reads[i].Bytes += part.Length
		}
	}
	return needed
}
