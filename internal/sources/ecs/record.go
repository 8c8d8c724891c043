package ecs

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/thaw-project/thaw/internal/profile"
	"github.com/thaw-project/thaw/internal/sources"
)

// ErrNoTasks is returned when no document was about a task.
var ErrNoTasks = errors.New("nothing here is about a task: want task metadata v4, DescribeTasks, or events \"ECS Task State Change\"")

// Options say how tasks become runs.
type Options struct {
	// Container is whose start is meant, of tasks with several. Default is the one with a
	// health check, else the one that was started last.
	Container string
}

// Record returns what was read: one run a task, one subject a service, task definition,
// image and snapshotter.
func (r *Reader) Record(opts Options) (*profile.Record, error) {
	if len(r.order) == 0 {
		return nil, ErrNoTasks
	}
	var g sources.Grouped
	common := sources.Common{}
	withContainer := false
	metadata, tasks := false, false
	for _, arn := range r.order {
		v := r.view(arn, opts)
		withContainer = withContainer || v.name == opts.Container
		metadata, tasks = metadata || len(v.metadata) > 0, tasks || v.task != nil
		for name, value := range v.labels() {
			common.Note(name, value)
		}
		start := v.start()
		run, ok := start.Run()
		if !ok {
			continue // it is not even said when it was created
		}
		s := g.Subject(v.key(), v.subject())
		s.Runs = append(s.Runs, run)
	}
	if opts.Container != "" && !withContainer {
		return nil, fmt.Errorf("no task has a container %s", opts.Container)
	}
	rec := g.Record(profile.SourceECS)
	if len(rec.Subjects) == 0 {
		return nil, errors.New("no task here has any time")
	}
	rec.Labels = common.Labels()
	rec.Signals = []profile.Signal{{Name: profile.SignalECS, Used: true, Reason: "pulls are a task's, not a container's: from the first image's begin to the last one's end"}}
	switch {
	case !metadata:
		rec.Warnings = append(rec.Warnings, "without task metadata it is not known since when containers run and are healthy: startedAt is when the task was RUNNING, "+
			"and healthStatus comes later than it happened (https://github.com/aws/containers-roadmap/issues/849)")
	case !tasks:
		rec.Warnings = append(rec.Warnings, "task metadata does not say when the task was asked for: queue is unknown, add the answer of describe-tasks")
	}
	return rec, nil
}

// view is one task, with the container whose start is looked at.
type view struct {
	*known
	arn     string
	name    string // of the container
	targets map[string]*target
}

func (r *Reader) view(arn string, opts Options) *view {
	v := &view{known: r.tasks[arn], arn: arn, targets: r.targets}
	v.name = v.container(opts.Container)
	return v
}

// ours reports whether a container is one that AWS adds.
func ours(name string) bool {
	return strings.HasPrefix(name, "~internal~") || strings.HasPrefix(name, "aws-guardduty-agent")
}

// container chooses the one whose start is looked at.
func (v *view) container(want string) string {
	var names []string
	health, last := "", ""
	var lastStart time.Time
	for _, m := range v.metadata {
		for _, c := range m.Containers {
			if ours(c.Name) || c.Type != "" && c.Type != "NORMAL" {
				continue
			}
			names = append(names, c.Name)
			if c.Health.Status != "" {
				health = cmp.Or(health, c.Name)
			}
			if last == "" || c.StartedAt.After(lastStart) {
				last, lastStart = c.Name, c.StartedAt.Time
			}
		}
	}
	if v.task != nil {
		for _, c := range v.task.Containers {
			if ours(c.Name) {
				continue
			}
			names = append(names, c.Name)
			if c.HealthStatus != "" && c.HealthStatus != "UNKNOWN" {
				health = cmp.Or(health, c.Name)
			}
		}
	}
	switch {
	case want != "" && slices.Contains(names, want):
		return want
	case health != "":
		return health
	case last != "":
		return last
	case len(names) > 0:
		return names[0]
	}
	return ""
}

// described is the container as the task has it, which may be nothing.
func (v *view) described() (c Container) {
	if v.task == nil {
		return c
	}
	for _, c := range v.task.Containers {
		if c.Name == v.name {
			return c
		}
	}
	return c
}

// told is the container as its own metadata has it: the earliest of each time, for a
// container that was started again has later ones.
func (v *view) told() (c MetadataContainer, ok bool) {
	restarts := 0
	for _, m := range v.metadata {
		for _, one := range m.Containers {
			if one.Name != v.name {
				continue
			}
			if one.RestartCount != nil {
				restarts = max(restarts, *one.RestartCount)
			}
			if !ok {
				c, ok = one, true
				if c.Health.Status != "HEALTHY" {
					c.Health.StatusSince = Time{}
				}
				continue
			}
			earliest(&c.CreatedAt, one.CreatedAt)
			earliest(&c.StartedAt, one.StartedAt)
			c.Snapshotter, c.Image = cmp.Or(c.Snapshotter, one.Snapshotter), cmp.Or(c.Image, one.Image)
			switch {
			case one.Health.Status == "HEALTHY":
				earliest(&c.Health.StatusSince, one.Health.StatusSince)
				c.Health.Status = one.Health.Status
			case c.Health.Status != "HEALTHY":
				c.Health.Status = cmp.Or(one.Health.Status, c.Health.Status)
			}
		}
	}
	c.RestartCount = &restarts
	return c, ok
}

func earliest(at *Time, other Time) {
	if at.IsZero() || !other.IsZero() && other.Before(at.Time) {
		*at = other
	}
}

// last is what follows a string's last separator.
func last(s, sep string) string { return s[strings.LastIndex(s, sep)+1:] }

func (v *view) service() string {
	for _, m := range v.metadata {
		if m.ServiceName != "" {
			return m.ServiceName
		}
	}
	if v.task != nil {
		if name, ok := strings.CutPrefix(v.task.Group, "service:"); ok {
			return name
		}
	}
	return ""
}

// definition is family:revision.
func (v *view) definition() string {
	if v.task != nil && v.task.TaskDefinitionARN != "" {
		return last(v.task.TaskDefinitionARN, "/")
	}
	for _, m := range v.metadata {
		if m.Family != "" {
			return m.Family + ":" + m.Revision
		}
	}
	return ""
}

func (v *view) image() string {
	told, _ := v.told()
	return cmp.Or(v.described().Image, told.Image)
}

func (v *view) snapshotter() string {
	told, _ := v.told()
	return told.Snapshotter
}

func (v *view) key() string {
	return strings.Join([]string{v.service(), v.definition(), v.image(), v.described().ImageDigest, v.snapshotter()}, "\x00")
}

func (v *view) subject() profile.Subject {
	s := profile.Subject{Name: strings.TrimSpace(v.service() + " " + v.definition()), Image: v.image(), Manifest: v.described().ImageDigest, Labels: map[string]string{}}
	for name, value := range map[string]string{"service": v.service(), "task_definition": v.definition()} {
		if value != "" {
			s.Labels[name] = value
		}
	}
	if snapshotter := v.snapshotter(); snapshotter != "" {
		s.Mode = "containerd/" + snapshotter
		s.Name += " (" + snapshotter + ")"
	}
	return s
}

func (v *view) labels() map[string]string {
	l := map[string]string{"service": v.service(), "task_definition": v.definition(), "container": v.name}
	if t := v.task; t != nil {
		l["cluster"], l["launch_type"], l["availability_zone"] = last(t.ClusterARN, "/"), t.LaunchType, t.AvailabilityZone
	}
	for _, m := range v.metadata {
		l["cluster"] = cmp.Or(l["cluster"], last(m.Cluster, "/"))
		l["launch_type"], l["availability_zone"] = cmp.Or(l["launch_type"], m.LaunchType), cmp.Or(l["availability_zone"], m.AvailabilityZone)
	}
	return l
}
