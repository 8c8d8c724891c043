package measure

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/bench"
	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/measure/clock"
	"github.com/thaw-project/thaw/internal/measure/gate"
	"github.com/thaw-project/thaw/internal/profile"
)

// Route is a request to be made after a container is ready.
type Route struct {
	Method string
	Path   string // of the probe's server, or an http URL
}

// ParseRoute reads METHOD:PATH, such as GET:/api/x, or PATH alone.
func ParseRoute(s string) (Route, error) {
	r := Route{Method: "GET", Path: s}
	if method, rest, ok := strings.Cut(s, ":"); ok && !strings.HasPrefix(s, "/") && !strings.HasPrefix(rest, "//") {
		r = Route{Method: strings.ToUpper(method), Path: rest}
	}
	u, err := url.Parse(r.Path)
	if err != nil || !strings.HasPrefix(r.Path, "/") && u.Scheme != "http" && u.Scheme != "https" || r.Method == "" {
		return r, fmt.Errorf("request %q: want METHOD:/PATH, such as GET:/api/x", s)
	}
	return r, nil
}

func (r Route) String() string { return r.Method + " " + r.Path }

// url is where to ask, on the server that a probe's target names.
func (r Route) url(target string) string {
	if !strings.HasPrefix(r.Path, "/") {
		return r.Path
	}
	if u, err := url.Parse(target); err == nil && u.Host != "" && !strings.HasPrefix(target, "tcp:") {
		return u.Scheme + "://" + u.Host + r.Path
	}
	return "http://" + Prober{Target: target}.address() + r.Path
}

// stopPatience is how long a container and its thaw run may take to end.
const stopPatience = 10 * time.Second

// started is a container on its way, and what is seen of it.
type started struct {
	subject *Subject
	client  *api.Client
	target  *Target
	cmd     *exec.Cmd
	gate    *gate.Conn
	stderr  *bench.Tail
	zero    time.Duration // when it was asked for
	begun   time.Time
	ended   chan struct{} // closed when thaw run is no more
	mounted gate.Mounted
	pages   *pages
	// waitPaths are the files that each of the run's waits may have been for.
	waitPaths [][]string
	drops     int64         // of the page cache, since boot, before it was asked for; negative: not known
	created   chan struct{} // closed when pid is known
	followed  chan struct{} // closed when follow has ended; nil: it was not begun

	mu    sync.Mutex // guards what follows
	pid   int
	pidFD *os.File // of that process: its number may come to be another's; nil: it is gone, or not known
}

// endPatience is how long whoever has thaw run's stderr may keep it after its end.
const endPatience = 2 * time.Second

// start begins a start, and returns when the container's root is watched, if it is to be,
// and the container on its way. What is returned is to be stopped, also with an error, unless
// it is nil.
func (s *Subject) start(ctx context.Context, o *Observer, watched bool) (*started, error) {
	if err := os.MkdirAll(s.Start.Root, 0o700); err != nil {
		return nil, err
	}
	conn, other, err := gate.Pair()
	if err != nil {
		return nil, err
	}
	defer other.Close()
	args := slices.Concat([]string{"--root", s.Start.Root, "run", "--observer-fd", "3", "--ready", s.Start.Ready}, s.imageFlags(), s.Start.RunFlags, []string{s.Start.Image}, s.Start.Args)
	st := &started{subject: s, client: api.NewClient(s.Start.Root), gate: conn, stderr: &bench.Tail{}, ended: make(chan struct{}), created: make(chan struct{})}
	st.cmd = exec.Command(s.Start.Exe, args...)
	st.cmd.Args[0] = "thaw"
	st.cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true} // a terminal's Ctrl-C is for us
	st.cmd.ExtraFiles = []*os.File{other}
	st.cmd.Stderr, st.cmd.WaitDelay = st.stderr, endPatience
	st.target = o.Target()
	st.drops = cacheDrops()
	st.begun, st.zero = time.Now(), clock.Now()
	if err := st.cmd.Start(); err != nil {
		conn.Close()
		return nil, errors.Join(fmt.Errorf("start thaw run: %w", err), st.target.Close())
	}
	other.Close() // so that its end is seen
	go func() {
		defer close(st.ended)
		_ = st.cmd.Wait() // what it said tells more
	}()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	m, err := conn.Receive()
	if err == nil && m.Mounted == nil {
		err = fmt.Errorf("it said %+v first", m)
	}
	if err != nil {
		return st, st.failed(ctx, err)
	}
	st.mounted = *m.Mounted
	if watched {
		st.target.WatchRoot(st.mounted.Dir)
		st.target.ListenAt(Prober{Target: s.Start.Ready}.Port())
	}
	if err := conn.Send(gate.Message{Go: true}); err != nil {
		return st, st.failed(ctx, err)
	}
	st.pages = newPages(st.mounted.Dir)
	st.followed = make(chan struct{})
	go st.follow()
	return st, nil
}

// follow takes what thaw run says of its container.
func (st *started) follow() {
	defer close(st.followed)
	for {
		m, err := st.gate.Receive()
		if err != nil {
			return
		}
		if m.Created != nil {
			st.mu.Lock()
			st.pid = m.Created.Pid
			if fd, err := unix.PidfdOpen(st.pid, 0); err == nil {
				st.pidFD = os.NewFile(uintptr(fd), "pidfd")
			}
			st.mu.Unlock()
			st.target.Follow(m.Created.Pid)
			close(st.created)
			return
		}
	}
}

func (st *started) container() int {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.pid
}

// failed says why a start did not go on: what thaw run said of it.
func (st *started) failed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	select {
	case <-st.ended:
	case <-time.After(time.Second):
	}
	if said := strings.TrimPrefix(st.stderr.String(), "thaw: error: "); said != "" {
		return fmt.Errorf("thaw run: %s", said)
	}
	return fmt.Errorf("thaw run: %w", err)
}

// waitReady probes until the container answers.
func (st *started) waitReady(ctx context.Context) (Answer, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, st.subject.ReadyTimeout, fmt.Errorf("it was not ready within %v", st.subject.ReadyTimeout))
	defer cancel()
	watched := make(chan struct{})
	defer func() { cancel(); <-watched }()
	go func() {
		defer close(watched)
		select {
		case <-st.ended:
			cancel()
		case <-ctx.Done():
		}
	}()
	a, err := Prober{Target: st.subject.Start.Ready}.Wait(ctx)
	if err == nil {
		return a, st.gate.Send(gate.Message{Ready: st.begun.Add(a.At - st.zero)})
	}
	select {
	case <-st.ended:
		return a, st.failed(context.WithoutCancel(ctx), errors.New("it ended before it was ready"))
	default:
		return a, err
	}
}

// stop ends the container.
func (st *started) stop(ctx context.Context) error {
	st.kill()
	_ = st.cmd.Process.Signal(unix.SIGTERM) // ends a run that has no container yet
	var err error
	select {
	case <-st.ended:
	case <-time.After(stopPatience):
		_ = st.cmd.Process.Kill()
		<-st.ended
		err = errors.New("end thaw run: it did not end, and was killed")
	}
	st.gate.Close()
	if st.followed != nil {
		<-st.followed
	}
	if st.pidFD != nil {
		st.pidFD.Close()
	}
	return errors.Join(err, st.target.Close())
}

// kill ends the container's first process, and so all of it: not every one minds
// SIGTERM. It may have ended by itself.
func (st *started) kill() {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.pidFD != nil {
		_ = unix.PidfdSendSignal(int(st.pidFD.Fd()), unix.SIGKILL, nil, 0)
	}
}

// paths are the files that were opened so far.
func (st *started) paths() []string {
	var all []string
	for _, o := range st.target.Opens() {
		all = append(all, o.Path)
	}
	return all
}

// measure does what is to be done with a container that is on its way, and returns what
// was seen. The run may be there also with an error.
func (st *started) measure(ctx context.Context) (*profile.Run, error) {
	run := &profile.Run{Begun: st.begun.UTC().Round(0), Container: st.mounted.ID, Waits: []profile.Wait{}}
	run.Events = append(run.Events, profile.Event{Name: profile.EventRequested, Source: profile.SignalTimeline, Confidence: profile.Measured})
	answer, err := st.waitReady(ctx)
	if err != nil {
		st.fill(ctx, run)
		return run, err
	}
	ready := profile.Event{Name: profile.EventReady, AtMs: since(st.zero, answer.At), Source: profile.SignalProbe, Confidence: profile.Measured, Detail: st.subject.Start.Ready,
		PrecisionMs: milliseconds(probeEvery)}
	if answer.Denied > 0 {
		ready.Detail += fmt.Sprintf(", after %d answers that were not good", answer.Denied)
	}
	reached := profile.Event{Name: profile.EventReached, AtMs: since(st.zero, answer.Reached), Source: profile.SignalProbe, Confidence: profile.Measured, PrecisionMs: milliseconds(answer.Late)}
	run.Events = append(run.Events, reached, ready)
	st.target.Exact() // for what requests open
	run.Cost = st.cost(ctx, run)
	needed := st.pages.look(st.paths())
	if run.Cost != nil {
		run.Cost.NeededBytes = needed
	}
	err = st.requests(ctx, run)
	if err == nil && st.subject.WaitComplete {
		_, err = st.client.WaitComplete(ctx, st.mounted.ID)
	}
	st.fill(ctx, run)
	return run, cmp.Or(err, ctx.Err())
}

// cost is what the start took until it was ready; nil, with a warning, if the daemon does
// not say: no bytes from the network would be a word too.
func (st *started) cost(ctx context.Context, run *profile.Run) *profile.Cost {
	c := &profile.Cost{}
	if used, throttled, ok := cpuUse(st.container()); ok {
		c.CPUMs, c.ThrottledMs = used.Milliseconds(), throttled.Milliseconds()
	}
	m, err := st.client.Inspect(ctx, st.mounted.ID)
	if err != nil {
		run.Warnings = append(run.Warnings, "what the start cost is not known: "+err.Error())
		return nil
	}
	c.NetworkBytes, c.Requests, c.RegistryBytes = m.Stats.NetworkBytes, m.Stats.Requests, m.Stats.FetchedBytes
	return c
}

// requests makes each route's requests, one after the other.
func (st *started) requests(ctx context.Context, run *profile.Run) error {
	return Prober{Target: st.subject.Start.Ready}.Ask(ctx, run, st.zero, st.subject.Routes, st.subject.Repeat)
}

// fill completes a run by what thaw's daemon and the observer know, and derives its
// phases.
func (st *started) fill(ctx context.Context, run *profile.Run) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopPatience)
	defer cancel()
	if st.mounted.ID != "" {
		st.fillFromDaemon(ctx, run)
	}
	st.target.Fill(run, st.zero)
	if st.pages != nil {
		st.pages.look(st.paths())
		for i := range run.Reads {
			run.Reads[i].Bytes = st.pages.bytes[run.Reads[i].Path]
		}
	}
	st.fillStarted(run)
	st.nameWaits(run)
	if off := st.clockSet(); off.Abs() > clockSlack {
		run.Warnings = append(run.Warnings, fmt.Sprintf("the machine's clock was set by %v meanwhile: what thaw's daemon says of this run is off", off.Round(time.Millisecond)))
	}
	if n := cacheDrops() - st.drops; st.drops >= 0 && n > 0 {
		run.Warnings = append(run.Warnings, "somebody dropped the machine's page cache meanwhile: bytes are too small, and it was colder than it was to be")
	}
	profile.Derive(run)
}

// clockSlack is how far the machine's clock may get off by being kept right.
const clockSlack = 20 * time.Millisecond

// clockSet is by how much somebody has set the machine's clock since the run began: other
// processes tell their times by it, and the kernel does not.
func (st *started) clockSet() time.Duration {
	return time.Now().Round(0).Sub(st.begun.Round(0)) - (clock.Now() - st.zero)
}

// nameWaits says which file each wait was for: of those that lie there the one that was
// opened last before, or else the first.
func (st *started) nameWaits(run *profile.Run) {
	opened := map[string]float64{}
	for _, r := range run.Reads {
		opened[r.Path] = r.AtMs
	}
	for i := range run.Waits {
		w := &run.Waits[i]
		last := math.Inf(-1)
		for n, path := range st.waitPaths[i] {
			at, ok := opened[path]
			if n == 0 || ok && at <= w.EndMs && at > last {
				w.Path = path
			}
			if ok && at <= w.EndMs {
				last = max(last, at)
			}
		}
	}
}

// fillFromDaemon takes the start's phases and waits from thaw's daemon.
func (st *started) fillFromDaemon(ctx context.Context, run *profile.Run) {
	at := func(t time.Time) float64 { return milliseconds(t.Round(0).Sub(st.begun.Round(0))) }
	m, err := st.client.Inspect(ctx, st.mounted.ID)
	if err != nil {
		run.Waits = nil
		run.Warnings = append(run.Warnings, "thaw's daemon says nothing: "+err.Error())
		return
	}
	add := func(name string, t time.Time, detail string) {
		run.Events = append(run.Events, profile.Event{Name: name, AtMs: at(t), Source: profile.SignalTimeline, Confidence: profile.Measured, Detail: detail})
	}
	for i, p := range m.Phases {
		if i == 0 {
			add(profile.EventPullStart, p.Start, "")
		}
		switch p.Name {
		case "mount":
			add(profile.EventPullEnd, p.End, m.Mode+", index: "+m.Index)
		case "create":
			add(profile.EventCreated, p.End, "")
		}
	}
	if m.Stats.Complete && !m.Stats.CompletedAt.IsZero() {
		add(profile.EventHydrated, m.Stats.CompletedAt, "")
		if run.Cost != nil {
			run.Cost.CompleteBytes = m.Stats.NetworkBytes
		}
	}
	waits, err := st.client.Waits(ctx, st.mounted.ID)
	if err != nil {
		run.Waits = nil
		run.Warnings = append(run.Warnings, "waits are not known: "+err.Error())
		return
	}
	byLayer := map[string]int{}
	for _, w := range waits {
		if byLayer[w.Layer.String()]++; byLayer[w.Layer.String()] == api.MaxWaits {
			run.Warnings = append(run.Warnings, fmt.Sprintf("only the last %d waits for layer %s are known: lazy waits are longer than is said", api.MaxWaits, w.Layer))
		}
		begun := at(w.Start)
		run.Waits = append(run.Waits, profile.Wait{StartMs: begun, EndMs: max(begun, at(w.End)), Layer: w.Layer.String(), Bytes: w.Bytes})
		st.waitPaths = append(st.waitPaths, w.Paths)
	}
}

// fillStarted takes thaw run's word for when the program was executed, where nobody saw
// that: the runtime has said by then that it was.
func (st *started) fillStarted(run *profile.Run) {
	if run.Event(profile.EventStarted) != nil {
		return
	}
	m, err := st.client.Inspect(context.Background(), st.mounted.ID)
	if err != nil {
		return
	}
	for _, p := range m.Phases {
		if p.Name == "start" {
			run.Events = append(run.Events, profile.Event{Name: profile.EventStarted, AtMs: milliseconds(p.End.Round(0).Sub(st.begun.Round(0))), Source: profile.SignalTimeline,
				Confidence: profile.Estimated, PrecisionMs: 10})
		}
	}
}
