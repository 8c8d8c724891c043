package emit

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/thaw-project/thaw/internal/oci"
	"github.com/thaw-project/thaw/internal/profile"
)

// Labels of records that name what was started.
const (
	LabelService        = "service"
	LabelTaskDefinition = "task_definition"
)

// Options name and choose what is emitted.
type Options struct {
	Service        string // empty: the label of subject or record, or the image's name
	TaskDefinition string // empty: the label without its revision, or the service
	Cold           string // only starts of this level of coldness
}

// Start is a start as it is emitted: what is known of it.
type Start struct {
	Service, TaskDefinition string
	Revision                string // of the task definition

	At         time.Time // when it was over
	DurationMs *float64  // nil: not known
	Phases     []Phase   // those that are known, in their order

	Task       string // container, task or pod
	Image      string // with its digest, where that is known
	Mode       string
	Cold       string
	ColdProven *bool // nil: it was not looked at
	Record     string
	Subject    string
	Run        int // of its subject, from 1
	Error      string
}

// Phase is how long a phase took, or the first request's penalty.
type Phase struct {
	Name string
	Ms   float64
}

// ErrNothing says that a record has no start that was asked for.
var ErrNothing = errors.New("there are no starts to emit")

// Starts returns the starts of a record. One that failed has no times: it counts, but how
// long it took says nothing.
func Starts(r *profile.Record, o Options) ([]Start, error) {
	var all []Start
	for i := range r.Subjects {
		s := &r.Subjects[i]
		service := cmp.Or(o.Service, s.Labels[LabelService], r.Labels[LabelService], ServiceName(s.Image))
		if service == "" {
			return nil, fmt.Errorf("record %s does not say which service %q is", r.ID, s.Name)
		}
		family, revision := splitRevision(cmp.Or(s.Labels[LabelTaskDefinition], r.Labels[LabelTaskDefinition]))
		task := cmp.Or(o.TaskDefinition, family, service)
		for n := range s.Runs {
			start := newStart(s, &s.Runs[n])
			if o.Cold != "" && start.Cold != o.Cold {
				continue
			}
			start.Service, start.TaskDefinition, start.Revision, start.Record, start.Run = service, task, revision, r.ID, n+1
			if start.At.IsZero() {
				start.At = cmp.Or(r.Ended, r.Begun)
			}
			all = append(all, start)
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("record %s: %w", r.ID, ErrNothing)
	}
	return all, nil
}

// splitRevision takes the revision off a task definition, as in web:7. In a dimension each
// deployment would begin new metrics, that have to be paid for and that no alarm watches.
func splitRevision(definition string) (family, revision string) {
	family, revision, ok := strings.Cut(definition, ":")
	if !ok || family == "" || revision == "" || strings.ContainsFunc(revision, func(r rune) bool { return r < '0' || r > '9' }) {
		return definition, ""
	}
	return family, revision
}

func newStart(s *profile.Subject, run *profile.Run) Start {
	out := Start{At: run.Begun, Task: run.Container, Image: s.Image, Mode: s.Mode, Cold: s.Cold, Subject: s.Name, Error: run.Error}
	if s.Manifest != "" && s.Image != "" && !strings.Contains(s.Image, "@") {
		out.Image += "@" + s.Manifest
	}
	if c := run.Coldness; c != nil {
		out.Cold, out.ColdProven = cmp.Or(c.Level, s.Cold), &c.Proven
	}
	if run.Error != "" {
		return out
	}
	if ms := known(run.TotalMs); ms != nil {
		out.DurationMs = ms
		if !out.At.IsZero() {
			out.At = out.At.Add(time.Duration(*ms * float64(time.Millisecond)))
		}
	}
	for _, name := range profile.Phases { // others are not ours: each name is a metric that costs something
		i := slices.IndexFunc(run.Phases, func(p profile.Phase) bool { return p.Name == name })
		if i < 0 || run.Phases[i].Confidence == profile.Unknown {
			continue
		}
		if ms := known(run.Phases[i].Ms); ms != nil {
			out.Phases = append(out.Phases, Phase{name, *ms})
		}
	}
	return out
}

// known is a time as it can be emitted. A penalty below 0 is noise, and CloudWatch has no
// percentiles of metrics with a negative value.
func known(ms *float64) *float64 {
	if ms == nil || math.IsNaN(*ms) || math.IsInf(*ms, 0) {
		return nil
	}
	v := math.Round(max(*ms, 0)*1000) / 1000
	return &v
}

// isVersion reports whether a tag names no image.
func isVersion(tag string) bool {
	digits := strings.TrimPrefix(tag, "v")
	return tag == "latest" || digits != "" && digits[0] >= '0' && digits[0] <= '9'
}

// ServiceName is the name of a service whose image is all that is known: the image's
// repository, without registry, tag and digest; of an image in a layout its tag, if that
// is no version, else the layout's directory. What Docker Hub has of its own is called
// as people call it: nginx, not library/nginx.
func ServiceName(image string) string {
	ref, err := oci.ParseReference(image)
	switch {
	case err != nil:
		return image
	case ref.IsLayout():
		if ref.Tag != "" && !isVersion(ref.Tag) {
			return ref.Tag
		}
		return path.Base(ref.LayoutDir)
	case ref.Registry == oci.DockerHub:
		return strings.TrimPrefix(ref.Repository, "library/")
	}
	return ref.Repository
}
