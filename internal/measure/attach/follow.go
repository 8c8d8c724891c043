package attach

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/thaw-project/thaw/internal/measure"
	"github.com/thaw-project/thaw/internal/measure/clock"
	"github.com/thaw-project/thaw/internal/profile"
	"github.com/thaw-project/thaw/internal/sources/containerd"
)

// listenEvery is how often it is looked whether a port listens, where nothing is asked.
const listenEvery = 50 * time.Millisecond

// follower follows one container from when it is made.
type follower struct {
	w             *Watcher
	namespace, id string
	image         string
	made          time.Duration // when, of the monotonic clock
	events        chan containerd.Event
	target        *measure.Target
	prober        measure.Prober

	watched bool   // its root is
	root    string // where its overlay is mounted, if that was seen
	bytes   error  // why it is not known how much was read
	pid     int
	running bool
	ended   string // how, if it did
	answer  measure.Answer
	asked   profile.Run // requests after that, by the monotonic clock
}

func newFollower(w *Watcher, e containerd.Event) *follower {
	return &follower{w: w, namespace: e.Namespace, id: e.Body.ID, image: e.Body.Image, made: clock.Now(), events: make(chan containerd.Event, 64), target: w.observer.Target()}
}

// follow sees one start through. It returns nil for a container that is not wanted, or
// when the context ends.
func (f *follower) follow(ctx context.Context) *Started {
	defer func() { _ = f.target.Close() }() // what it saw was taken
	// Nothing is asked before the root is looked for: the shim is quick.
	looking, found := context.WithCancel(ctx)
	defer found()
	mounted := make(chan string, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if dir, ok := waitRoot(looking, f.w.pid, f.namespace, f.id); ok {
			mounted <- dir
		}
	}()
	defer func() { found(); <-done }()
	c, err := f.w.container(ctx, f.namespace, f.id)
	if err != nil || c.GetLabels()[labelKind] == "sandbox" {
		return nil
	}
	s := &Started{Namespace: f.namespace, Image: f.image, Snapshotter: c.GetSnapshotter(), Names: names(f.id, c.GetLabels()), Service: service(c.GetLabels())}
	if !matches(f.w.opts.Match, f.image, s.Names) {
		return nil
	}
	if !f.observe(ctx, mounted) {
		return nil
	}
	s.Run, s.Signals = f.run(), f.signals()
	return s
}

// service is what a container belongs to, as far as its labels say.
func service(labels map[string]string) string {
	for _, name := range []string{labelContainerName, labelCompose, labelNerdctl} {
		if labels[name] != "" {
			return labels[name]
		}
	}
	return ""
}

// observe follows the container until its start is over; false if the context ends
// before.
func (f *follower) observe(ctx context.Context, mounted <-chan string) bool {
	ctx, cancel := context.WithCancel(ctx)
	answers, replied := make(chan measure.Answer, 1), make(chan struct{}, 1)
	probed := make(chan struct{})
	close(probed)
	defer func() { cancel(); <-probed }()
	timeout := time.NewTimer(f.w.opts.Timeout)
	defer timeout.Stop()
	tick := time.NewTicker(listenEvery)
	defer tick.Stop()
	var settled <-chan time.Time
	settle := func() {
		if settled == nil {
			settled = time.After(f.w.opts.Settle)
		}
	}
	for {
		select {
		case dir := <-mounted:
			f.root = dir
			f.watch(dir)
		case e := <-f.events:
			f.take(e)
			switch {
			case f.ended != "":
				return true
			case e.Topic == containerd.TopicTaskStart && f.w.opts.Ready != "":
				f.prober = measure.Prober{Target: f.w.opts.Ready, Pid: f.pid}
				f.target.ListenAt(f.prober.Port())
				probed = make(chan struct{})
				go func() {
					defer close(probed)
					a, err := f.prober.Wait(ctx)
					if err != nil {
						return // it is over
					}
					f.target.Exact()
					answers <- a
					if f.prober.Ask(ctx, &f.asked, 0, f.w.opts.Routes, f.w.opts.Repeat) == nil {
						replied <- struct{}{}
					}
				}()
			}
		case f.answer = <-answers:
		case <-replied:
			settle()
		case <-tick.C:
			if f.w.opts.Ready == "" && f.running && f.listens() {
				settle()
			}
		case <-settled:
			return true
		case <-timeout.C:
			return true
		case <-ctx.Done():
			return false
		}
	}
}

func (f *follower) watch(dir string) {
	if !f.watched {
		f.watched = true
		f.target.WatchRoot(dir)
	}
}

// take takes an event of containerd's about it.
func (f *follower) take(e containerd.Event) {
	switch e.Topic {
	case containerd.TopicTaskCreate:
		f.pid = int(e.Body.Pid)
		f.watch(fmt.Sprintf("/proc/%d/root", f.pid)) // late, but better than never
		f.target.Follow(f.pid)
	case containerd.TopicTaskStart:
		f.running = true
		if f.pid == 0 {
			f.pid = int(e.Body.Pid)
			f.target.Follow(f.pid)
		}
	case containerd.TopicTaskExit:
		if e.Body.ID == f.id { // and not of something that was executed in it
			f.ended = fmt.Sprintf("it ended with code %d", e.Body.ExitStatus)
		}
	}
}

// listens reports whether a port of it listens.
func (f *follower) listens() bool {
	var run profile.Run
	f.target.Fill(&run, 0)
	return run.Event(profile.EventListen) != nil
}

// run puts together what everybody saw.
func (f *follower) run() profile.Run {
	var run profile.Run
	if start, ok := containerd.StartOf(f.w.seen(), f.namespace, f.id); ok {
		run, _ = start.Run()
	}
	run.Container = f.id
	zero := clock.Of(run.Begun)
	told := run.Event(profile.EventStarted)
	var started profile.Event
	if told != nil {
		started = *told
		run.Events = slices.DeleteFunc(run.Events, func(e profile.Event) bool { return e.Name == profile.EventStarted })
	}
	f.target.Fill(&run, zero)
	if told != nil && run.Event(profile.EventStarted) == nil {
		run.Events = append(run.Events, started)
	}
	switch {
	case f.answer.At > 0:
		run.Events = append(run.Events, profile.Event{Name: profile.EventReady, AtMs: float64((f.answer.At - zero).Microseconds()) / 1e3, Source: profile.SignalProbe,
			Confidence: profile.Measured, Detail: f.w.opts.Ready})
	case f.ended != "":
		run.Error = f.ended + " before it was ready"
	case f.w.opts.Ready != "":
		run.Error = fmt.Sprintf("%s did not answer within %v", f.w.opts.Ready, f.w.opts.Timeout)
	}
	zeroMs := float64(zero.Microseconds()) / 1e3
	for _, e := range f.asked.Events {
		e.AtMs -= zeroMs
		run.Events = append(run.Events, e)
	}
	for _, q := range f.asked.Requests {
		q.StartMs, q.EndMs = q.StartMs-zeroMs, q.EndMs-zeroMs
		run.Requests = append(run.Requests, q)
	}
	f.bytes = errors.New("the container's root was not found in time")
	if f.root != "" {
		f.bytes = measure.FillBytes(&run, f.root)
	}
	profile.Derive(&run)
	return run
}

func (f *follower) signals() []profile.Signal {
	all := []profile.Signal{{Name: profile.SignalContainerd, Used: true, Reason: "a pull's begin is its first content, not when it was asked for"}}
	probe := profile.Signal{Name: profile.SignalProbe, Used: f.w.opts.Ready != ""}
	if !probe.Used {
		probe.Reason = "nothing was to be asked: --ready"
	}
	cached := profile.Signal{Name: profile.SignalCachestat, Used: f.bytes == nil}
	if f.bytes != nil {
		cached.Reason = f.bytes.Error()
	}
	return append(append(all, probe, cached), f.target.Signals()...)
}
