package emit

import (
	"cmp"
	"fmt"
	"time"

	"github.com/thaw-project/thaw/internal/profile"
	"github.com/thaw-project/thaw/internal/spans"
)

// TraceName is the name of the root span of a measured start.
const TraceName = "cold start"

// Traces returns a trace for each start of a record: below the start a span for each phase
// that is known and has its place in time. A start that is told twice is the same trace.
func Traces(r *profile.Record, o Options) ([]spans.Start, error) {
	starts, err := Starts(r, o)
	if err != nil {
		return nil, err
	}
	subjects := map[string]*profile.Subject{}
	for i := range r.Subjects {
		subjects[r.Subjects[i].Name] = &r.Subjects[i]
	}
	all := make([]spans.Start, 0, len(starts))
	for i := range starts {
		if starts[i].At.IsZero() {
			return nil, fmt.Errorf("record %s does not say when run %d of %s was", r.ID, starts[i].Run, starts[i].Subject)
		}
		s := subjects[starts[i].Subject]
		all = append(all, newTrace(r, s, &s.Runs[starts[i].Run-1], &starts[i]))
	}
	return all, nil
}

func newTrace(r *profile.Record, s *profile.Subject, run *profile.Run, start *Start) spans.Start {
	begun := run.Begun
	if begun.IsZero() {
		begun = r.Begun
	}
	out := spans.Start{Name: TraceName, ID: fmt.Sprintf("%s/%s/%d", r.ID, s.Name, start.Run), Begun: begun, Image: s.Image, Manifest: s.Manifest,
		Mode: s.Mode, Error: run.Error, Attributes: spans.Attributes{"coldstart.service": start.Service, "coldstart.run": start.Run}}
	for name, value := range map[string]string{"coldstart.task_definition": start.TaskDefinition, "coldstart.record": r.ID, "coldstart.subject": s.Name,
		"coldstart.cold": start.Cold, "coldstart.source": r.Source, "container.id": run.Container} {
		if value != "" {
			out.Attributes[name] = value
		}
	}
	if start.ColdProven != nil {
		out.Attributes["coldstart.cold_proven"] = *start.ColdProven
	}
	if start.DurationMs != nil {
		out.Attributes["coldstart.total_ms"] = *start.DurationMs
		out.End = at(begun, *start.DurationMs)
	}
	for i := range run.Phases {
		p := &run.Phases[i]
		if p.Confidence == profile.Unknown {
			continue
		}
		if p.StartMs == nil || p.EndMs == nil {
			if p.Ms != nil { // it is no interval
				out.Attributes["coldstart."+p.Name+"_ms"] = *p.Ms
			}
			continue
		}
		out.Phases = append(out.Phases, spans.Phase{Name: p.Name, Start: at(begun, *p.StartMs), End: at(begun, max(*p.EndMs, *p.StartMs)), Attributes: phaseAttributes(p)})
	}
	return out
}

func phaseAttributes(p *profile.Phase) spans.Attributes {
	a := spans.Attributes{"coldstart.confidence": cmp.Or(p.Confidence, profile.Unknown)}
	if p.Source != "" {
		a["coldstart.source"] = p.Source
	}
	for name, ms := range map[string]*float64{"coldstart.lazy_wait_ms": p.LazyWaitMs, "coldstart.cpu_ms": p.CPUMs} {
		if ms != nil {
			a[name] = *ms
		}
	}
	if p.Bytes != nil {
		a["coldstart.bytes"] = *p.Bytes
	}
	if p.Files != nil {
		a["coldstart.files"] = *p.Files
	}
	return a
}

func at(begun time.Time, ms float64) time.Time { return begun.Add(duration(ms)) }
