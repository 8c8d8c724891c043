package ecs

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/thaw-project/thaw/internal/profile"
	"github.com/thaw-project/thaw/internal/sources"
)

// unseen is why the program's own phases are unknown.
const unseen = "ECS does not see it: it lies between started and healthy"

// start returns what is known of the task's start.
func (v *view) start() *sources.Start {
	s := &sources.Start{Container: v.arn}
	s.Because(profile.PhaseDependencyLoad, unseen)
	s.Because(profile.PhaseBootstrap, unseen)
	drift := v.clock(s)
	add := func(name string, at Time, detail string, precision time.Duration) {
		s.Add(sources.Point{Name: name, At: at.Time, Source: profile.SignalECS, Detail: detail, Precision: precision})
	}
	told, metadata := v.told()
	if v.task != nil {
		t := v.task
		add(profile.EventRequested, t.CreatedAt, "createdAt: the task was made", 0)
		add(profile.EventConnected, t.ConnectivityAt, "connectivityAt", 0)
		if t.StoppedReason != "" && (t.StopCode == "TaskFailedToStart" || t.StartedAt.IsZero()) {
			s.Error = t.StoppedReason
			if reason := v.described().Reason; reason != "" {
				s.Error += ": " + reason
			}
		}
	} else {
		s.Because(profile.PhaseQueue, "task metadata does not say when the task was asked for")
	}
	v.pulls(s, add, told, drift)
	if metadata {
		add(profile.EventCreated, told.CreatedAt, "CreatedAt of the container "+v.name, drift)
		add(profile.EventStarted, told.StartedAt, "StartedAt of the container "+v.name, drift)
		if told.RestartCount != nil && *told.RestartCount > 0 {
			s.Warnings = append(s.Warnings, fmt.Sprintf("the container %s was restarted %d times: its times may be those of a later start", v.name, *told.RestartCount))
		}
	}
	if v.task != nil && told.StartedAt.IsZero() {
		add(profile.EventStarted, v.task.StartedAt, "startedAt: the task was RUNNING, as ECS heard from its agent", 0)
	}
	v.health(s, add, told, drift)
	v.balancer(s)
	return s
}

// clock returns how far the host's clock may be off.
func (v *view) clock(s *sources.Start) (drift time.Duration) {
	for _, m := range v.metadata {
		if e := m.ClockDrift.ClockErrorBound; e > 0 && e < 1e9 {
			drift = max(drift, time.Duration(e*float64(time.Millisecond)))
		}
		if status := m.ClockDrift.ClockSynchronizationStatus; status == "NOT_SYNCHRONIZED" && len(s.Warnings) == 0 {
			s.Warnings = append(s.Warnings, "the host's clock is not synchronized: its times and those of ECS do not fit together")
		}
	}
	return drift
}

// pulls adds when images were pulled, which is said of all of the task's together.
func (v *view) pulls(s *sources.Start, add func(string, Time, string, time.Duration), told MetadataContainer, drift time.Duration) {
	var from, to Time
	for _, m := range v.metadata {
		earliest(&from, m.PullStartedAt)
		if to.IsZero() || m.PullStoppedAt.After(to.Time) {
			to = m.PullStoppedAt
		}
	}
	if v.task != nil {
		if from.IsZero() {
			from = v.task.PullStartedAt
		}
		if to.IsZero() {
			to = v.task.PullStoppedAt
		}
	}
	n := 0
	if v.task != nil {
		n = len(v.task.Containers)
	}
	for _, m := range v.metadata {
		n = max(n, len(m.Containers))
	}
	of := "the task's image"
	if n > 1 {
		of = fmt.Sprintf("the images of all %d containers", n)
	}
	add(profile.EventPullStart, from, "pullStartedAt: the first of "+of, drift)
	if !told.StartedAt.IsZero() && to.After(told.StartedAt.Time) {
		reason := fmt.Sprintf("ECS says only when the task's last image was pulled, which was after the container %s had started", v.name)
		s.Because(profile.PhasePull, reason)
		s.Because(profile.PhaseRuntimeInit, reason)
		return
	}
	add(profile.EventPullEnd, to, "pullStoppedAt: the last of "+of, drift)
	if from.IsZero() && to.IsZero() {
		s.Because(profile.PhasePull, "ECS says nothing of a pull: it has not begun, or the agent found the image on its host")
	}
}

// health adds since when the container is healthy, where its own metadata says so.
func (v *view) health(s *sources.Start, add func(string, Time, string, time.Duration), told MetadataContainer, drift time.Duration) {
	status := cmp.Or(told.Health.Status, v.described().HealthStatus)
	switch {
	case told.Health.Status == "HEALTHY" && !told.Health.StatusSince.IsZero():
		add(profile.EventHealthy, told.Health.StatusSince, "statusSince: the health check of the container "+v.name, drift)
		s.Because(profile.PhaseHealthContainer, "with dependency_load and app_bootstrap, which ECS does not see")
	case status == "HEALTHY":
		s.Because(profile.PhaseHealthContainer, "it is healthy, but ECS does not say since when: task metadata does (containers-roadmap#849)")
	case status == "UNHEALTHY":
		s.Because(profile.PhaseHealthContainer, "it was unhealthy when this was asked")
	case status == "" || status == "UNKNOWN":
		s.Because(profile.PhaseHealthContainer, "its task definition has no health check, or the first is still to come")
	}
}

// addresses are those by which a load balancer may know the task.
func (v *view) addresses() (all []string) {
	if v.task == nil {
		return nil
	}
	for _, c := range v.task.Containers {
		for _, n := range c.NetworkInterfaces {
			all = append(all, n.PrivateIPv4Address)
		}
	}
	for _, a := range v.task.Attachments {
		for _, d := range a.Details {
			if d.Name == "privateIPv4Address" {
				all = append(all, d.Value)
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// balancer adds when the load balancer found the task healthy: between two answers, by
// the later one.
func (v *view) balancer(s *sources.Start) {
	s.Because(profile.PhaseHealthLB, "the load balancer was not asked again and again")
	var created, stopped time.Time
	if v.task != nil {
		created, stopped = v.task.CreatedAt.Time, v.task.StoppedAt.Time
	}
	for _, address := range v.addresses() {
		t := v.targets[address]
		if t == nil {
			continue
		}
		slices.SortStableFunc(t.seen, func(a, b state) int { return a.at.Compare(b.at) })
		var before time.Time
		for _, st := range t.seen {
			if st.at.Before(created) || !stopped.IsZero() && st.at.After(stopped) {
				continue // of who had the address then
			}
			if st.state != "healthy" {
				before = st.at
				s.Because(profile.PhaseHealthLB, "the load balancer did not find it healthy while it was asked")
				continue
			}
			if before.IsZero() {
				s.Because(profile.PhaseHealthLB, "the load balancer found it healthy before it was asked first")
				return
			}
			s.Add(sources.Point{Name: profile.EventLBHealthy, At: st.at, Source: profile.SignalECS, Precision: st.at.Sub(before),
				Detail: "target " + address + " was healthy when the load balancer was asked, and not yet when it was asked before"})
			delete(s.Reasons, profile.PhaseHealthLB)
			return
		}
	}
}
