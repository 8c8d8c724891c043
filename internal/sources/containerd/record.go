package containerd

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/thaw-project/thaw/internal/profile"
	"github.com/thaw-project/thaw/internal/sources"
)

// ErrNoContainers is returned when no event is about a container that was made.
var ErrNoContainers = errors.New("no container was made while these events were recorded: nothing starts here")

// together is how long after its image came a container is made at the latest, for both
// to be one start.
const together = 2 * time.Second

// unseen is why the program's own phases are unknown.
const unseen = "containerd does not see it; thaw measure --attach does"

// Record returns what was read: one run a container, one subject an image and
// snapshotter.
func (r *Reader) Record() (*profile.Record, error) {
	events := slices.Clone(r.events)
	slices.SortStableFunc(events, func(a, b Event) int { return a.At.Compare(b.At) })
	x := newFinder(events)
	var g sources.Grouped
	common := sources.Common{}
	for i, e := range events {
		if e.Topic != TopicContainer || e.Body.ID == "" {
			continue
		}
		run, ok := x.start(i).Run()
		if !ok {
			continue
		}
		common.Note("namespace", e.Namespace)
		snapshotter := x.snapshotOf(i).Snapshotter
		subject := profile.Subject{Name: e.Body.Image, Image: e.Body.Image}
		if snapshotter != "" {
			subject.Mode = "containerd/" + snapshotter
			subject.Name += " (" + snapshotter + ")"
		}
		s := g.Subject(e.Namespace+"\x00"+e.Body.Image+"\x00"+snapshotter, subject)
		s.Runs = append(s.Runs, run)
	}
	rec := g.Record(profile.SourceContainerd)
	if len(rec.Subjects) == 0 {
		return nil, ErrNoContainers
	}
	rec.Labels = common.Labels()
	rec.Signals = []profile.Signal{{Name: profile.SignalContainerd, Used: true, Reason: "a pull's begin is its first content, not when it was asked for"}}
	return rec, nil
}

// StartOf returns what events, by time, say of the start of the last container of that
// ID.
func StartOf(events []Event, namespace, id string) (*sources.Start, bool) {
	for i := len(events) - 1; i >= 0; i-- {
		if e := &events[i]; e.Topic == TopicContainer && e.Namespace == namespace && e.Body.ID == id {
			return newFinder(events).start(i), true
		}
	}
	return nil, false
}

// finder finds events, by time, without looking at all of them for each container.
type finder struct {
	events   []Event
	of       map[string][]int // about a container, by namespace and ID
	prepared map[string][]int // snapshots, by namespace and key
}

func newFinder(events []Event) *finder {
	x := &finder{events: events, of: map[string][]int{}, prepared: map[string][]int{}}
	for i := range events {
		e := &events[i]
		id := e.Body.ContainerID
		switch e.Topic {
		case TopicContainer:
			id = e.Body.ID
		case TopicSnapshotPrepare:
			key := e.Namespace + "/" + e.Body.Key
			x.prepared[key] = append(x.prepared[key], i)
		}
		if id != "" {
			key := e.Namespace + "/" + id
			x.of[key] = append(x.of[key], i)
		}
	}
	return x
}

// snapshotOf is the event by which the container's root was prepared: the last one
// before it was made whose key is its ID.
func (x *finder) snapshotOf(container int) Body {
	c := &x.events[container]
	all := x.prepared[c.Namespace+"/"+c.Body.ID]
	n, _ := slices.BinarySearch(all, container)
	if n == 0 {
		return Body{}
	}
	return x.events[all[n-1]].Body
}

// start returns what is known of the start of the container that events[at] made.
func (x *finder) start(at int) *sources.Start {
	c := &x.events[at]
	s := &sources.Start{Container: c.Body.ID}
	add := func(name string, when time.Time, confidence, detail string) {
		s.Add(sources.Point{Name: name, At: when, Source: profile.SignalContainerd, Confidence: confidence, Detail: detail})
	}
	from, to, detail := x.pull(at)
	if from.IsZero() {
		from, to = c.At, c.At
		detail = "no pull was seen shortly before: the image was there"
	}
	add(profile.EventRequested, from, profile.Estimated, "the first thing that was seen of it")
	add(profile.EventPullStart, from, profile.Estimated, detail)
	add(profile.EventPullEnd, to, profile.Measured, detail)
	s.Because(profile.PhaseDependencyLoad, unseen)
	s.Because(profile.PhaseBootstrap, unseen)
	s.Because(profile.PhaseHealthContainer, "containerd makes no health checks")
	s.Because(profile.PhaseHealthLB, "containerd knows no load balancer")
	all := x.of[c.Namespace+"/"+c.Body.ID]
	next, _ := slices.BinarySearch(all, at+1)
	for _, i := range all[next:] {
		e := &x.events[i]
		switch {
		case e.Topic == TopicContainer:
			return s // another of that name
		case e.Topic == TopicTaskCreate:
			add(profile.EventCreated, e.At, profile.Measured, e.Topic)
		case e.Topic == TopicTaskStart:
			add(profile.EventStarted, e.At, profile.Measured, fmt.Sprintf("%s: pid %d", e.Topic, e.Body.Pid))
		case e.Topic == TopicTaskExit && e.Body.ID == c.Body.ID:
			if _, started := s.At(profile.EventStarted); !started {
				s.Error = fmt.Sprintf("it ended with code %d before it was started", e.Body.ExitStatus)
			}
		}
	}
	return s
}

// pull finds when the image of the container that events[at] made was brought, shortly
// before.
func (x *finder) pull(at int) (from, to time.Time, detail string) {
	events := x.events
	c := &events[at]
	// The layers that its root stands on, as far as they were unpacked here; and the image's
	// name.
	want := x.snapshotOf(at).Parent
	preparedAs := map[string]string{} // keys of what was committed and is wanted
	first := at
	for i := at - 1; i >= 0; i-- {
		e := &events[i]
		if c.At.Sub(e.At) > together && to.IsZero() {
			break // what comes before is too old to be of it
		}
		if e.Namespace != c.Namespace {
			continue
		}
		b := &e.Body
		switch {
		case e.Topic == TopicSnapshotCommit && b.Name == want && want != "":
			preparedAs[b.Key] = b.Name
			first, to = i, latest(to, e.At)
		case e.Topic == TopicSnapshotPrepare && preparedAs[b.Key] != "":
			want = b.Parent
			first = i
		case (e.Topic == TopicImageCreate || e.Topic == TopicImageUpdate) && b.Name == c.Body.Image && b.Name != "":
			first, to = i, latest(to, e.At)
		}
	}
	if to.IsZero() || c.At.Sub(to) > together {
		return time.Time{}, time.Time{}, ""
	}
	from, detail = events[first].At, "by the first of its content, which is after its manifest was here"
	// Blobs that came before: of this image, unless another one's pull ended meanwhile.
	for i := first - 1; i >= 0; i-- {
		e := &events[i]
		if e.Namespace != c.Namespace {
			continue
		}
		if e.Topic == TopicContent || e.Topic == TopicSnapshotPrepare && strings.HasPrefix(e.Body.Key, "extract-") {
			from = e.At
			continue
		}
		if e.Topic == TopicImageCreate || e.Topic == TopicImageUpdate || e.Topic == TopicContainer {
			break // what was before is of that one
		}
	}
	return from, to, detail
}

func latest(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
