package daemon

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	digest "github.com/opencontainers/go-digest"

	"github.com/thaw-project/thaw/internal/container"
	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/trace"
	"github.com/thaw-project/thaw/internal/tracestore"
)

const (
	// recordAfter is how long a recording goes on after its container was ready.
	recordAfter = 5 * time.Second
	// recordQuiet without a read ends the recording of a container of which
	// nobody says when it is ready, and recordMost in any case.
	recordQuiet = 3 * time.Second
	recordMost  = 30 * time.Second
	// recordPatience is how long a container may take to be ready.
	recordPatience = 10 * time.Minute
	// maxReads bounds a recording's memory, to 1.3 MB.
	maxReads = 1 << 15
	// recentReads is how many reads a read is compared with, to be joined with
	// one of them: a program reads several files at once.
	recentReads = 8
	// An image with layers that are complete before it is mounted is recorded only
	// as long as there are fewer runs than this, see startRecording.
	wantedRuns         = 3
	wantedRunsComplete = 1
)

// recorder sees all reads of layers that are watched, and gives each to the
// start that made it.
//
// A layer is read by all mounts that have it. Where that is one mount, the read
// is its. Else the reader's process says whose it is: that of the `thaw run`,
// or one in the container's cgroup. What belongs to nobody is not recorded.
// The daemon's own reads are none: they go through the layers' first
// descriptors, which raise no events.
//
// To see all reads, a recording keeps the marks of its layers when they are
// complete, and has complete layers marked.
type recorder struct {
	recordings atomic.Int32 // under way
	readers    atomic.Pointer[readers]

	// marks orders ends of marks and begins of recordings, and guards changes of
	// readers. Reads do not take it.
	marks sync.Mutex

	mu    sync.Mutex       // guards whose
	whose map[int]*mounted // processes looked up; nil for nobody
}

// readers are the mounts whose reads may be seen. They are replaced as a whole.
type readers struct {
	all     []*mounted
	byLayer map[digest.Digest][]*mounted
}

func (r *recorder) current() *readers {
	if now := r.readers.Load(); now != nil {
		return now
	}
	return &readers{}
}

// change puts a mount in or takes it out. Called with marks held.
func (r *recorder) change(m *mounted, in bool) {
	next := &readers{byLayer: map[digest.Digest][]*mounted{}}
	for _, other := range r.current().all {
		if other != m {
			next.all = append(next.all, other)
		}
	}
	if in {
		next.all = append(next.all, m)
	}
	for _, m := range next.all {
		for _, l := range m.layers {
			if list := next.byLayer[l.blob]; !slices.Contains(list, m) {
				next.byLayer[l.blob] = append(list, m)
			}
		}
	}
	r.readers.Store(next)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.whose = nil // numbers of processes come again
}

// seen is the mounters' mount.Seen.
func (r *recorder) seen(layer digest.Digest, off, n int64, pid int) {
	if r.recordings.Load() == 0 {
		return
	}
	all := r.current()
	mounts := all.byLayer[layer]
	if !slices.ContainsFunc(mounts, (*mounted).recorded) {
		return
	}
	m := mounts[0]
	if len(mounts) > 1 {
		m = r.reader(all.all, pid)
	}
	if m == nil {
		return
	}
	if rec := m.recording.Load(); rec != nil {
		rec.add(layer, off, n)
	}
}

func (m *mounted) recorded() bool { return m.recording.Load() != nil }

// maxWhose bounds the processes that are remembered.
const maxWhose = 4096

// reader returns the mount of which a process reads, or nil. The process is
// waiting for its read, so what is looked up about it holds.
func (r *recorder) reader(all []*mounted, pid int) *mounted {
	r.mu.Lock()
	m, known := r.whose[pid]
	r.mu.Unlock()
	if known || pid <= 0 {
		return m
	}
	m = lookUp(all, pid)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.whose == nil || len(r.whose) >= maxWhose {
		r.whose = map[int]*mounted{}
	}
	r.whose[pid] = m
	return m
}

// lookUp finds the mount that a process belongs to: by its cgroup, or, where it
// is the runtime or what that starts, by the `thaw run` above it.
func lookUp(all []*mounted, pid int) *mounted {
	if cgroups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid)); err == nil {
		for _, m := range all {
			if m.Writable && inCgroup(cgroups, m.cgroup) {
				return m
			}
		}
	}
	const depth = 16
	for range depth {
		var up int
		if pid, up = process(pid); pid <= 1 {
			return nil
		}
		for _, m := range all {
			if m.Pid == pid {
				return m
			}
		}
		pid = up
	}
	return nil
}

// inCgroup reports whether a process with those /proc/PID/cgroup lines is in the
// cgroup or in one below.
func inCgroup(lines []byte, cgroup string) bool {
	for line := range bytes.Lines(lines) {
		_, after, ok := bytes.Cut(line, []byte(cgroup))
		if ok && (len(after) == 0 || after[0] == '\n' || after[0] == '/') {
			return true
		}
	}
	return false
}

// process returns the process that a thread belongs to, and that one's parent;
// 0 for what is not there or not to be seen.
func process(thread int) (pid, parent int) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", thread))
	if err != nil {
		return 0, 0
	}
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(line, ":")
		n, _ := strconv.Atoi(strings.TrimSpace(value)) // the kernel's
		switch name {
		case "Tgid":
			pid = n
		case "PPid":
			return pid, n
		}
	}
	return pid, 0
}

// recording is what a start has read so far.
type recording struct {
	command []string
	ready   bool          // it will be said when the container is ready
	offset  time.Duration // from the begin of the run to asked
	asked   time.Time     // for the mount
	told    chan struct{} // gets a value when times has changed
	over    chan struct{} // closed when the recording has ended

	mu     sync.Mutex // guards what follows
	reads  []read
	last   time.Time     // when one was seen
	hushed time.Duration // from when on not all are seen, since the begin of the run; 0: all are
	times  api.Times
}

// read is a range that was read, its times since the begin of the run.
type read struct {
	layer  digest.Digest
	off, n int64
	at     time.Duration
}

func (rec *recording) add(layer digest.Digest, off, n int64) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	now := time.Now()
	rec.last = now
	// Most reads continue one of the last, and often overlap it: EROFS has smaller
	// blocks than the page cache, so files begin anywhere in a page.
	for i := len(rec.reads) - 1; i >= max(0, len(rec.reads)-recentReads); i-- {
		r := &rec.reads[i]
		if r.layer == layer && off >= r.off && off <= r.off+r.n {
			r.n = max(r.n, off+n-r.off)
			return
		}
	}
	if len(rec.reads) < maxReads { // what is read first counts most
		rec.reads = append(rec.reads, read{layer, off, n, rec.offset + now.Sub(rec.asked)})
	}
}

// addAll adds reads that nobody saw to where they belong by their times.
func (rec *recording) addAll(reads []read) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	rec.reads = append(rec.reads, reads[:min(len(reads), maxReads-len(rec.reads))]...)
	slices.SortStableFunc(rec.reads, func(a, b read) int { return cmp.Compare(a.at, b.at) })
}

// silent notes that from now on reads of the start-up set are not seen.
func (rec *recording) silent(now time.Time) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	rec.hushed = rec.offset + now.Sub(rec.asked)
}

// silence returns between when reads were made that were not seen: of a start,
// until it was ready; 0 if all were seen.
func (rec *recording) silence() (since, until time.Duration) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	return rec.hushed, max(rec.hushed, rec.times.Ready, rec.times.Started)
}

// maxAge is how old a run is at most when it asks for its mount. More is a
// mistake.
const maxAge = time.Hour

// startRecording begins to record what the mount m, whose layers are in use, and
// not mounted yet, is read for, if that was asked for and can be done.
//
// Reads of layers that were complete before are not seen unless those are
// marked, and then each costs some microseconds more. So a start of an image
// with such layers is recorded only while too few runs are known, and one that
// is complete, and starts fastest, only once. Through FUSE it is not recorded:
// its complete layers would not be passed through for as long as they are
// mounted. A recording without them would say that nobody reads them.
func (d *Daemon) startRecording(m *mounted) {
	d.recorder.marks.Lock()
	defer d.recorder.marks.Unlock()
	if d.wantRecording(m) {
		r := m.Request.Record
		m.recording.Store(&recording{command: d.command(m), ready: r.Ready, offset: min(max(r.Age, 0), maxAge), asked: m.asked,
			told: make(chan struct{}, 1), over: make(chan struct{})})
		d.recorder.recordings.Add(1)
	}
	m.cgroup = container.Cgroup(m.ID, m.path("bundle"))
	d.recorder.change(m, true)
}

func (d *Daemon) command(m *mounted) []string {
	return container.Command(m.img.oci.Config.Config, m.Request.Record.Entrypoint, m.Request.Record.Args)
}

func (d *Daemon) wantRecording(m *mounted) bool {
	if m.Request.Record == nil || !m.Writable || m.Mode == api.ModeEager {
		return false
	}
	complete := 0
	for _, l := range m.layers {
		if l.store.Complete() {
			complete++
		}
	}
	if complete == 0 {
		return true
	}
	if m.Mode == api.ModeFUSE {
		return false
	}
	wanted := wantedRuns
	if complete == len(m.layers) {
		wanted = wantedRunsComplete
	}
	return d.traces.Runs(tracestore.Key{Image: m.Manifest, Command: tracestore.CommandID(d.command(m))}) < wanted
}

// endRecording ends the recording of a mount, if it has one, and returns what
// was recorded, or nil when that is not worth keeping.
func (d *Daemon) endRecording(m *mounted) *trace.Trace {
	m.ending.Lock()
	defer m.ending.Unlock()
	rec := m.recording.Swap(nil)
	if rec == nil {
		return nil
	}
	d.recorder.recordings.Add(-1)
	d.unseen(m, rec)
	t := rec.trace(m)
	if d.web != nil {
		m.read.Store(t)
	}
	close(rec.over)
	d.unwatchComplete(m)
	return t
}

// unwatch takes the mark of a complete layer away, unless a recording needs it:
// then it does so at its end.
func (d *Daemon) unwatch(l *layer) {
	d.recorder.marks.Lock()
	defer d.recorder.marks.Unlock()
	if d.mounter == nil { // there is none, or not yet: see unwatchComplete
		return
	}
	if slices.ContainsFunc(d.recorder.current().byLayer[l.blob], (*mounted).recorded) {
		return
	}
	if err := d.mounter.Unwatch(l.blob); err != nil {
		d.log.Error("stop watching layer", "layer", l.blob, "err", err)
	}
}

// unwatchComplete takes the marks of those layers of a mount away that were complete
// before they were marked, or before there was a mounter to be told.
func (d *Daemon) unwatchComplete(m *mounted) {
	for _, l := range m.layers {
		if l.store.Complete() {
			d.unwatch(l)
		}
	}
}

// forgetReader ends all that the recorder has to do with a mount, before it is
// taken away.
func (d *Daemon) forgetReader(m *mounted) *trace.Trace {
	t := d.endRecording(m)
	d.recorder.marks.Lock()
	defer d.recorder.marks.Unlock()
	d.recorder.change(m, false)
	return t
}

// followRecording ends a recording when its time has come.
func (d *Daemon) followRecording(ctx context.Context, m *mounted, rec *recording) {
	patience := time.NewTimer(recordPatience)
	defer patience.Stop()
	tick := time.NewTicker(recordQuiet / 3)
	defer tick.Stop()
	for !rec.due(time.Now()) {
		select {
		case <-rec.over:
			return
		case <-ctx.Done():
			return
		case <-rec.told:
			continue
		case <-tick.C:
			continue
		case <-patience.C:
		}
		break
	}
	d.keepTrace(d.endRecording(m))
}

// due reports whether the recording should end.
func (rec *recording) due(now time.Time) bool {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	at := rec.offset + now.Sub(rec.asked)
	if rec.ready {
		return rec.times.Ready > 0 && at-rec.times.Ready >= recordAfter
	}
	started := rec.times.Started
	quiet := rec.hushed == 0 && now.Sub(rec.last) >= recordQuiet
	return started > 0 && (at-started >= recordMost || at-started >= recordQuiet && quiet)
}

// tell notes when phases of a recorded start were over.
func (m *mounted) tell(t api.Times) {
	rec := m.recording.Load()
	if rec == nil {
		return
	}
	rec.mu.Lock()
	rec.times = t
	rec.mu.Unlock()
	select {
	case rec.told <- struct{}{}:
	default:
	}
}

// trace is what was recorded: nil for a container that did not start, or was
// not ready when it was to be.
func (rec *recording) trace(m *mounted) *trace.Trace {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	if rec.times.Started <= 0 || rec.ready && rec.times.Ready <= 0 || len(rec.reads) == 0 {
		return nil
	}
	mountedAt := rec.offset
	if n := len(m.Committed); n > 0 {
		mountedAt += m.Committed[n-1].End.Sub(rec.asked)
	}
	t := &trace.Trace{Version: trace.Version, Image: m.Manifest, Reference: m.img.ref.String(), Command: rec.command,
		Ready: max(rec.times.Ready, 0), Runs: 1, Created: time.Now().UTC().Truncate(time.Second)}
	for _, r := range rec.reads {
		phase := trace.PhaseReady
		switch {
		case r.at < mountedAt:
			phase = trace.PhaseMount
		case r.at < rec.times.Created:
			phase = trace.PhaseCreate
		case r.at < rec.times.Started:
			phase = trace.PhaseStart
		case rec.ready && r.at >= rec.times.Ready:
			phase = trace.PhaseAfter
		}
		t.Accesses = append(t.Accesses, trace.Access{Layer: r.layer, Offset: r.off, Length: r.n, At: r.at, Phase: phase})
	}
	return trace.Merge([]*trace.Trace{t}, trace.MergeOptions{}) // each byte once
}

func (d *Daemon) keepTrace(t *trace.Trace) {
	if t == nil {
		return
	}
	if err := d.traces.Put(t); err != nil {
		d.log.Error("keep trace", "image", t.Reference, "err", err)
		return
	}
	d.log.Info("start is recorded", "image", t.Reference, "accesses", len(t.Accesses), "bytes", t.Bytes())
}
