package measure

import (
	"errors"
	"fmt"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/thaw-project/thaw/internal/measure/clock"
	"github.com/thaw-project/thaw/internal/measure/opens"
	"github.com/thaw-project/thaw/internal/measure/tracefs"
	"github.com/thaw-project/thaw/internal/profile"
)

// Observer sees what containers do that are about to start: executions, listening,
// connections taken, and which files are opened. It is made before they start; each
// is a [Target] of it. Signals that the machine does not have are done without, and
// [Observer.Signals] says why.
type Observer struct {
	trace    *tracefs.Instance // nil without
	traceErr error
}

// Observe begins to observe. It does not fail where signals are missing.
func Observe() *Observer {
	o := &Observer{}
	o.trace, o.traceErr = tracefs.Start()
	return o
}

// Close ends observing, and leaves nothing behind.
func (o *Observer) Close() error {
	if o.trace == nil {
		return nil
	}
	return o.trace.Close()
}

// pause ends tracing, for a start that nothing is to look at: what is switched on costs
// something also where nobody reads it. What it returns begins again.
func (o *Observer) pause() (resume func() error, err error) {
	if o.trace == nil {
		return func() error { return nil }, nil
	}
	err = o.trace.Close()
	o.trace, o.traceErr = nil, errors.New("paused")
	return func() error {
		o.trace, o.traceErr = tracefs.Start()
		return o.traceErr
	}, err
}

// Forget lets go of what was seen before a time, of the monotonic clock. Who observes for
// long calls it now and then.
func (o *Observer) Forget(before time.Duration) {
	if o.trace != nil {
		o.trace.Forget(before)
	}
}

// Target begins to observe one container, with what is known of it.
func (o *Observer) Target() *Target { return &Target{observer: o} }

// Target is a container that is observed. Its methods may be called in any order and
// at the same time.
type Target struct {
	observer *Observer

	mu       sync.Mutex // guards what follows
	files    *opens.Watcher
	filesErr error
	pid      int
	pidAt    time.Duration
	port     int
	polls    *poll // of /proc
	closed   bool
}

// WatchRoot watches the container's root, before anything is opened in it: the
// directory of its overlay, as this process sees it. The whole file system that the
// directory is on is watched.
func (t *Target) WatchRoot(dir string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.files == nil && !t.closed {
		t.files, t.filesErr = opens.Watch(dir)
	}
}

// Follow says which is the container's first process, as this process's namespace has
// it; it need not have executed the container's program yet.
func (t *Target) Follow(pid int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pid, t.pidAt = pid, clock.Now()
	t.startPoll()
}

// ListenAt says at which port the container will listen, in its own network. Without,
// its first port counts.
func (t *Target) ListenAt(port int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.port = port
	t.startPoll()
}

// startPoll looks for the port in /proc where there is no tracing. Called with mu held.
func (t *Target) startPoll() {
	if t.observer.trace == nil && t.polls == nil && t.pid > 0 && t.port > 0 && !t.closed {
		t.polls = pollListen(t.pid, t.port)
	}
}

// Exact has opens from now on be seen at once; see [opens.Watcher.Exact].
func (t *Target) Exact() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.files != nil {
		t.files.Exact()
	}
}

// Close ends observing the container.
func (t *Target) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	if t.polls != nil {
		t.polls.close()
	}
	if t.files == nil {
		return nil
	}
	return t.files.Close()
}

// Opens returns the files of the container's root that were opened so far, in the order
// of their first opens.
func (t *Target) Opens() []opens.Open {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.files == nil {
		return nil
	}
	return t.files.Opens()
}

// followed is what tracing has of the container.
func (t *Target) followed() *tracefs.Followed {
	t.mu.Lock()
	pid, at := t.pid, t.pidAt
	t.mu.Unlock()
	if t.observer.trace == nil || pid == 0 {
		return &tracefs.Followed{}
	}
	return tracefs.Follow(t.observer.trace.Events(), pid, at)
}

// Fill adds to a run that began at zero, of the monotonic clock, what was seen of the
// container: events, processes, and first reads without their bytes.
func (t *Target) Fill(run *profile.Run, zero time.Duration) {
	f := t.followed()
	t.mu.Lock()
	port := t.port
	t.mu.Unlock()
	add := func(name, source, detail string, at time.Duration) {
		run.Events = append(run.Events, profile.Event{Name: name, AtMs: since(zero, at), Source: source, Confidence: profile.Measured, Detail: detail})
	}
	if f.Executed > 0 {
		add(profile.EventStarted, profile.SignalTracefs, f.Program, f.Executed)
	}
	if e, ok := f.Listen(port); ok {
		add(profile.EventListen, profile.SignalTracefs, fmt.Sprintf("port %d", e.Port), e.At)
		t.fillAccept(run, f, e, add)
	} else if at, late := t.polled(); at > 0 {
		if ready := run.Event(profile.EventReady); ready != nil { // it listened by then
			by := zero + time.Duration(ready.AtMs*float64(time.Millisecond))
			at, late = min(at, by), max(0, late-max(0, at-by))
		}
		run.Events = append(run.Events, profile.Event{Name: profile.EventListen, AtMs: since(zero, at), Source: profile.SignalProc,
			Confidence: profile.Measured, Detail: fmt.Sprintf("port %d", port), PrecisionMs: milliseconds(max(late, pollEvery))})
	}
	for _, p := range f.Processes {
		one := profile.Process{Pid: p.Pid, Parent: p.Parent, Command: p.Name, StartMs: since(zero, p.Start)}
		if p.End > 0 {
			end := since(zero, p.End)
			one.EndMs = &end
		}
		run.Processes = append(run.Processes, one)
	}
	last := time.Duration(0)
	for _, o := range t.Opens() {
		if o.Exec { // the program, and its loader: executed is after they were opened
			last = max(last, f.Executed)
		}
		o.At = max(o.At, last) // their order is known better than their times
		run.Reads = append(run.Reads, profile.Read{Path: path.Clean(o.Path), AtMs: since(zero, o.At)})
	}
}

// fillAccept adds when the first connection was taken, and how long it had waited.
func (t *Target) fillAccept(run *profile.Run, f *tracefs.Followed, listen tracefs.Event, add func(name, source, detail string, at time.Duration)) {
	made := time.Duration(0)
	for _, e := range t.observer.trace.Events() {
		if e.Kind == tracefs.Established && e.Port == listen.Port && e.At >= listen.At {
			made = e.At
			break
		}
	}
	for _, e := range f.Accepts {
		if e.At < listen.At || made > 0 && e.At < made {
			continue
		}
		add(profile.EventAccept, profile.SignalTracefs, "", e.At)
		if made > 0 {
			run.Events[len(run.Events)-1].WaitedMs = milliseconds(e.At - made)
		}
		return
	}
}

func (t *Target) polled() (at, late time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.polls == nil {
		return 0, 0
	}
	return t.polls.found()
}

// Signals says what the container was observed with, and why not with more.
func (t *Target) Signals() []profile.Signal {
	t.mu.Lock()
	defer t.mu.Unlock()
	files := profile.Signal{Name: profile.SignalOpens, Used: t.files != nil}
	switch {
	case t.filesErr != nil:
		files.Reason = t.filesErr.Error()
	case t.files == nil:
		files.Reason = "the container's root was not known before it started"
	default:
		if why := t.files.Incomplete(); why != "" {
			files.Reason = "incomplete: " + why
		}
	}
	signals := []profile.Signal{files, t.observer.signal()}
	if t.observer.trace == nil {
		signals = append(signals, profile.Signal{Name: profile.SignalProc, Used: t.polls != nil, Reason: "instead of tracing: listening only, and late by some milliseconds"})
	}
	return signals
}

func (o *Observer) signal() profile.Signal {
	s := profile.Signal{Name: profile.SignalTracefs, Used: o.trace != nil}
	switch {
	case o.trace == nil:
		s.Reason = o.traceErr.Error()
	case o.trace.Incomplete():
		s.Reason = "incomplete: events were lost"
	case !o.trace.Accepts():
		s.Reason = "the kernel does not trace accept(2)"
	}
	return s
}

// Signals tries out what this machine has. dir is any directory.
func Signals(dir string) []profile.Signal {
	o := Observe()
	t := o.Target()
	t.WatchRoot(dir)
	all := t.Signals()
	if err := errors.Join(t.Close(), o.Close()); err != nil {
		for i := range all {
			all[i].Reason = strings.TrimPrefix(all[i].Reason+"; "+err.Error(), "; ")
		}
	}
	return all
}

// since is the time of an event since the run's begin.
func since(zero, at time.Duration) float64 { return milliseconds(at - zero) }

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
