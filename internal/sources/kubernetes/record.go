package kubernetes

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/thaw-project/thaw/internal/profile"
	"github.com/thaw-project/thaw/internal/sources"
)

// ErrNoPods is returned when no object was a pod.
var ErrNoPods = errors.New("no pods here: want kubectl get pods,events -o json")

// Options say how pods become runs.
type Options struct {
	// Container is whose start is meant, of pods with several. Default is the pod's
	// default container, else its first.
	Container string
}

// unseen is why the program's own phases are unknown.
const unseen = "Kubernetes does not see it: it lies between started and ready"

// Record returns what was read: one run a pod, one subject a workload and image.
func (r *Reader) Record(opts Options) (*profile.Record, error) {
	if len(r.order) == 0 {
		return nil, ErrNoPods
	}
	var g sources.Grouped
	common := sources.Common{}
	named, events := false, 0
	for _, key := range r.order {
		v := view{seen: r.pods[key]}
		last := v.last()
		for _, e := range r.events[last.Metadata.Namespace+"/"+last.Metadata.Name] {
			if uid := e.about().UID; uid == "" || last.Metadata.UID == "" || uid == last.Metadata.UID {
				v.events = append(v.events, e)
			}
		}
		slices.SortStableFunc(v.events, func(a, b *event) int { return a.first().Compare(b.first().Time) })
		events += len(v.events)
		v.choose(opts.Container)
		named = named || v.name == opts.Container
		common.Note("namespace", last.Metadata.Namespace)
		common.Note("node", last.Spec.NodeName)
		common.Note("service", v.workload())
		run, ok := v.start().Run()
		if !ok {
			continue
		}
		s := g.Subject(v.workload()+"\x00"+v.spec().Image+"\x00"+v.digest(), profile.Subject{Name: v.workload(), Image: v.spec().Image, Manifest: v.digest(), Labels: map[string]string{"service": v.workload()}})
		s.ImageBytes = cmp.Or(s.ImageBytes, v.imageBytes)
		s.Runs = append(s.Runs, run)
	}
	if opts.Container != "" && !named {
		return nil, fmt.Errorf("no pod has a container %s", opts.Container)
	}
	rec := g.Record(profile.SourceKubernetes)
	if len(rec.Subjects) == 0 {
		return nil, errors.New("no pod here has any time")
	}
	rec.Labels = common.Labels()
	rec.Signals = []profile.Signal{{Name: profile.SignalKubernetes, Used: true, Reason: "times are cut to whole seconds; how long a pull took is known by the millisecond"}}
	if events == 0 {
		rec.Warnings = append(rec.Warnings, "there are no events of these pods: pulls are unknown (kubectl get pods,events; a cluster keeps events for an hour)")
	}
	return rec, nil
}

// view is one pod, with the container whose start is looked at.
type view struct {
	*seen
	events     []*event // by time
	name       string   // of the container
	imageBytes int64
}

// last is the pod as it was seen last.
func (v *view) last() *pod { return v.versions[len(v.versions)-1] }

func (v *view) choose(want string) {
	p := v.last()
	if slices.ContainsFunc(p.Spec.Containers, func(c container) bool { return want != "" && c.Name == want }) {
		v.name = want
		return
	}
	if len(p.Spec.Containers) > 0 {
		v.name = cmp.Or(p.Metadata.Annotations["kubectl.kubernetes.io/default-container"], p.Spec.Containers[0].Name)
	}
}

func (v *view) spec() container {
	for _, c := range v.last().Spec.Containers {
		if c.Name == v.name {
			return c
		}
	}
	return container{}
}

// status is the container's, as it was seen last.
func (v *view) status() status {
	for _, s := range v.last().Status.ContainerStatuses {
		if s.Name == v.name {
			return s
		}
	}
	return status{}
}

// digest is what the image's name was resolved to.
func (v *view) digest() string {
	_, digest, _ := strings.Cut(v.status().ImageID, "@")
	return digest
}

// workload is who made the pod: of a Deployment's the Deployment.
func (v *view) workload() string {
	m := &v.last().Metadata
	for _, o := range m.OwnerReferences {
		if !o.Controller {
			continue // it is to go with it, no more
		}
		if hash := m.Labels["pod-template-hash"]; o.Kind == "ReplicaSet" && hash != "" {
			return strings.TrimSuffix(o.Name, "-"+hash)
		}
		return o.Name
	}
	return m.Name
}

// condition returns when a condition was seen to have become true first.
func (v *view) condition(match func(kind string) bool) (at moment) {
	for _, p := range v.versions {
		for _, c := range p.Status.Conditions {
			if match(c.Type) && c.Status == "True" && !c.LastTransitionTime.IsZero() && (at.IsZero() || c.LastTransitionTime.Before(at.Time)) {
				at = c.LastTransitionTime
			}
		}
	}
	return at
}

func is(kind string) func(string) bool { return func(k string) bool { return k == kind } }

// firstEvent returns the first event of a reason that is about the container, or about
// the whole pod if name is "".
func (v *view) firstEvent(reason, name string) *event {
	for _, e := range v.events {
		about := e.about()
		if of, init := about.of(); e.Reason == reason && of == name && !init {
			return e
		}
	}
	return nil
}

// start returns what is known of the pod's start.
func (v *view) start() *sources.Start {
	p := v.last()
	s := &sources.Start{Container: cmp.Or(p.Metadata.UID, p.Metadata.Namespace+"/"+p.Metadata.Name), Error: v.failure()}
	s.Because(profile.PhaseDependencyLoad, unseen)
	s.Because(profile.PhaseBootstrap, unseen)
	var c chain
	c.add(profile.EventRequested, p.Metadata.CreationTimestamp, "creationTimestamp of the pod")
	if e := v.firstEvent("Scheduled", ""); e != nil {
		c.add(profile.EventScheduled, e.first(), "event Scheduled")
	} else {
		c.add(profile.EventScheduled, v.condition(is("PodScheduled")), "condition PodScheduled")
	}
	v.pull(s, &c)
	if e := v.firstEvent("Created", v.name); e != nil {
		c.add(profile.EventCreated, e.first(), "event Created of the container "+v.name)
	}
	v.started(s, &c)
	v.health(s, &c)
	c.settle()
	for _, l := range c.links {
		s.Add(l.point())
	}
	if at := v.condition(is("PodReadyToStartContainers")); !at.IsZero() {
		s.Add((&link{name: profile.EventConnected, moment: at, detail: "condition PodReadyToStartContainers: sandbox and network are there"}).point())
	}
	s.Because(profile.PhaseHealthLB, "no readiness gate of a load balancer")
	if at := v.condition(func(kind string) bool { return strings.HasPrefix(kind, "target-health.") }); !at.IsZero() {
		delete(s.Reasons, profile.PhaseHealthLB)
		s.Add((&link{name: profile.EventLBHealthy, moment: at, detail: "readiness gate of the load balancer's target"}).point())
	}
	v.inits(s)
	return s
}

// failure says why the pod does not start, if it does not.
func (v *view) failure() string {
	p := v.last()
	if p.Status.Phase == "Failed" && v.condition(is("ContainersReady")).IsZero() {
		return strings.TrimSuffix(strings.TrimSpace(cmp.Or(p.Status.Reason, "Failed")+": "+p.Status.Message), ":")
	}
	for _, c := range p.Status.Conditions {
		if c.Type == "PodScheduled" && c.Status == "False" {
			return fmt.Sprintf("not scheduled: %s: %s", c.Reason, c.Message)
		}
	}
	for _, s := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		if w := s.State.Waiting; w != nil && w.Reason != "" && w.Reason != "ContainerCreating" && w.Reason != "PodInitializing" {
			return fmt.Sprintf("container %s: %s: %s", s.Name, w.Reason, w.Message)
		}
	}
	return ""
}

// pull adds when the container's image was pulled, by the kubelet's events.
func (v *view) pull(s *sources.Start, c *chain) {
	pulling, done := v.firstEvent("Pulling", v.name), v.firstEvent("Pulled", v.name)
	switch {
	case done == nil && pulling == nil:
		s.Because(profile.PhaseQueue, "no event says when the image was pulled")
		s.Because(profile.PhasePull, "there is no event Pulling or Pulled: a cluster keeps events for an hour")
		s.Because(profile.PhaseRuntimeInit, "no event says when the image was here")
		return
	case done == nil:
		c.add(profile.EventPullStart, pulling.first(), "event Pulling")
		s.Because(profile.PhasePull, "there is no event Pulled")
		return
	case strings.Contains(done.text(), present):
		c.add(profile.EventPullStart, done.first(), "event Pulled: the image was on the node")
		c.add(profile.EventPullEnd, done.first(), "event Pulled: the image was on the node")
		c.links[len(c.links)-1].exact = true
		return
	}
	if pulling != nil {
		c.add(profile.EventPullStart, pulling.first(), "event Pulling")
	}
	m := pulled().FindStringSubmatch(done.text())
	detail, after := "event Pulled", time.Duration(-1)
	if m != nil {
		took, err := time.ParseDuration(m[1])
		whole, errWhole := took, err
		if m[2] != "" {
			whole, errWhole = time.ParseDuration(m[2])
		}
		if err == nil && errWhole == nil && whole >= 0 {
			after = whole
			detail += fmt.Sprintf(": in %v", took)
			if whole > took {
				detail += fmt.Sprintf(", after %v of waiting for other pulls of the node", whole-took)
			}
		}
		if n, err := strconv.ParseInt(m[3], 10, 64); err == nil {
			v.imageBytes = n
		}
	}
	if pulling == nil && after >= 0 {
		from := done.first()
		from.Time = from.Add(-after)
		c.add(profile.EventPullStart, from, "event Pulled, less the time it says")
	}
	c.add(profile.EventPullEnd, done.first(), detail)
	if l := &c.links[len(c.links)-1]; after >= 0 {
		l.exact, l.after = true, after
	}
}

// started adds when the container was started first.
func (v *view) started(s *sources.Start, c *chain) {
	st := v.status()
	at, detail := moment{}, "startedAt of the container "+v.name
	for i := range v.versions {
		for _, one := range v.versions[i].Status.ContainerStatuses {
			if one.Name != v.name || one.RestartCount > 1 {
				continue
			}
			states := []states{one.State}
			if one.RestartCount == 1 {
				states[0] = one.LastState // of the one before
			}
			for _, st := range states {
				switch {
				case st.Running != nil && at.IsZero():
					at = st.Running.StartedAt
				case st.Terminated != nil && at.IsZero():
					at = st.Terminated.StartedAt
				}
			}
		}
	}
	if e := v.firstEvent("Started", v.name); e != nil && at.IsZero() {
		at, detail = e.first(), "event Started of the container "+v.name
	}
	if st.RestartCount > 0 {
		s.Warnings = append(s.Warnings, fmt.Sprintf("the container %s was restarted %d times: when the pod was ready may be of a later start", v.name, st.RestartCount))
	}
	c.add(profile.EventStarted, at, detail)
}

// health adds when the pod was found ready, if somebody looked.
func (v *view) health(s *sources.Start, c *chain) {
	spec := v.spec()
	if spec.ReadinessProbe == nil && spec.StartupProbe == nil {
		s.Because(profile.PhaseHealthContainer, fmt.Sprintf("the container %s has no readiness probe: Kubernetes takes it for ready when it has started", v.name))
		return
	}
	at, detail := v.condition(is("ContainersReady")), "condition ContainersReady"
	if at.IsZero() {
		at, detail = v.condition(is("Ready")), "condition Ready"
	}
	if at.IsZero() {
		s.Because(profile.PhaseHealthContainer, "it was not ready when this was asked")
		return
	}
	if len(v.last().Spec.Containers) > 1 {
		detail += ": of all the pod's containers"
	}
	c.add(profile.EventHealthy, at, detail)
	s.Because(profile.PhaseHealthContainer, "with dependency_load and app_bootstrap, which Kubernetes does not see")
}

// inits says what init containers took: it is in queue, for the container's own image is
// pulled after them.
func (v *view) inits(s *sources.Start) {
	var names []string
	var from, to time.Time
	for _, st := range v.last().Status.InitContainerStatuses {
		t := st.State.Terminated
		if t == nil || t.StartedAt.IsZero() || t.FinishedAt.IsZero() {
			continue // it did not run, or is a sidecar
		}
		names = append(names, st.Name)
		if from.IsZero() || t.StartedAt.Before(from) {
			from = t.StartedAt.Time
		}
		if t.FinishedAt.After(to) {
			to = t.FinishedAt.Time
		}
	}
	if len(names) > 0 {
		s.Because(profile.PhaseQueue, fmt.Sprintf("with %.0f s of init containers: %s", to.Sub(from).Seconds(), strings.Join(names, ", ")))
	}
}
