// Package fanotify is the Mounter that waits for bytes with pre-content events (Linux 6.14 or newer; layer files on ext4, xfs or btrfs).
//
// The model: each layer file that is not complete is *watched*: its first descriptor is with the keeper, and it is marked in
// the event group; only then is an EROFS image that uses it mounted. One goroutine reads the group. A range that the Handler has
// is allowed right there; any other is queued for a bounded number of workers, which call Handler.Fetch and then allow the read or
// deny it with EIO. Whatever is not understood is denied: an event without a range, of an unknown file, or whose handler panics.
//
// A mount may have each layer as a device twice (Spec.Twice). The second ones are opened through a detached mount of their own, a *tree*,
// of which events can be ignored: the file stays marked for all others.
//
// A watch ends when its layer is complete (Unwatch), or when after an unmount nobody at all has the layer file open. So the
// first descriptor of a layer may outlive its mounts: ask First before opening the file again.
//
// It decodes and fetches nothing. It does not remember anything on disk: what a new daemon needs comes from the keeper.
//
// Lock order: Mounter.mu, then queue.mu or treesMu. The goroutine that reads the group takes neither Mounter.mu nor any lock held during I/O.
package fanotify

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/mount"
	"github.com/thaw-project/thaw/internal/mount/fanotify/group"
	"github.com/thaw-project/thaw/internal/mount/keeper"
)

// DefaultWorkers is how many fetches for waiting readers are in progress at most. More wait in memory. They are many, because in an
// outage of a registry all its readers wait in one, and readers of other registries must not wait behind them: what a
// fetch costs beside its goroutine is bounded by whoever fetches.
const DefaultWorkers = 4096

const (
	settlePatience = 10 * time.Second // for Close to see its layers unused, on a busy machine
	settleRetry    = 10 * time.Millisecond
)

// Options configure New.
type Options struct {
	// Handler answers the reads. After a restart it must know the layers that the keeper holds (keeper.Client.Layers) before New is
	// called: their readers are waiting.
	Handler mount.Handler
	// Keeper holds the descriptors while this process is away; the Mounter says goodbye to it. Nil: a crash of this
	// process makes holes read as zeros: only for tests and probes.
	Keeper *keeper.Client
	// Workers is how many fetches run at once; DefaultWorkers when 0.
	Workers int
	// Seen is told of the reads; nil for nobody.
	Seen mount.Seen
	Log  *slog.Logger
}

// Stats count events since the start.
type Stats struct {
	Inline  int64 // ranges that were there
	Waited  int64 // ranges that were fetched while the reader waited
	Denied  int64 // reads that failed
	Pending int64 // now waiting for their fetch
}

// Mounter is a mount.Mounter.
type Mounter struct {
	handler mount.Handler
	seen    mount.Seen
	keeper  *keeper.Client
	log     *slog.Logger
	denials *mount.DeniedLog

	group   *os.File
	groupFD int            // of group; answers are written without going through its locks
	table   *group.Pending // what was read and not answered, for the next daemon; nil without a keeper
	ctx     context.Context
	cancel  context.CancelCauseFunc // lets fetches fail
	queue   queue
	served  chan struct{} // closed when serve has returned

	inline, waited, denied, pending atomic.Int64
	handover                        atomic.Bool // what cannot be fetched any more is left to the next daemon

	// watches is what serve looks events up in. It is replaced as a whole, under mu.
	watches atomic.Pointer[map[fileID]*watch]

	mu     sync.Mutex                 // guards what follows, and orders marking, mounting, unmounting
	mounts map[string][]digest.Digest // by directory: the layers that were not complete
	closed bool

	treesMu sync.Mutex // guards trees; nothing else is locked, and nobody waited for, with it
	trees   map[string]*tree
}

var _ mount.Mounter = (*Mounter)(nil)

// New starts to answer events. With a keeper that holds an earlier daemon's group, that daemon's unanswered events are
// fetched for (or denied where it had no time to write them down), and all layers the keeper holds are watched; Adopt tells of the mounts.
// It takes the keeper over, also when it fails.
func New(ctx context.Context, opts Options) (*Mounter, error) {
	if opts.Workers == 0 {
		opts.Workers = DefaultWorkers
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.Seen == nil {
		opts.Seen = func(digest.Digest, int64, int64, int) {}
	}
	m := &Mounter{
		handler: opts.Handler, seen: opts.Seen, keeper: opts.Keeper, log: opts.Log, denials: mount.NewDeniedLog(opts.Log),
		served: make(chan struct{}), mounts: map[string][]digest.Digest{}, trees: map[string]*tree{},
	}
	m.watches.Store(&map[fileID]*watch{})
	var stale []group.Stale
	if m.keeper != nil {
		m.table, stale = m.keeper.Pending(), m.keeper.TakeStale()
	}
	if err := m.takeGroup(ctx, stale); err != nil {
		for _, s := range stale {
			unix.Close(int(s.FD)) // its entry is still in the table, for the next daemon
		}
		if m.group != nil {
			m.group.Close()
		}
		if m.keeper != nil {
			m.keeper.Close() // not goodbye: if it holds layers, somebody must come for their readers
		}
		return nil, err
	}
	m.ctx, m.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	m.queue.init(opts.Workers, maxPending(), m.fetch)
	for _, s := range stale {
		m.resume(s)
	}
	go m.serve()
	return m, nil
}

// takeGroup makes a group and gives it to the keeper, or gets it back from it, ready to be read.
// Nobody may have read it in this process before its old events are denied, those in stale excepted.
func (m *Mounter) takeGroup(ctx context.Context, stale []group.Stale) (err error) {
	inherited := m.keeper != nil && m.keeper.Inherited()
	if inherited {
		m.group, err = m.keeper.Group()
	} else {
		m.group, err = group.New()
	}
	if err != nil {
		return explain(err)
	}
	if m.groupFD, err = mount.RawFD(m.group); err != nil {
		return err
	}
	if !inherited {
		if m.keeper == nil {
			return nil
		}
		return m.keeper.SetGroup(ctx, m.group)
	}
	if err := group.Sweep(m.groupFD, stale); err != nil {
		return err
	}
	return m.inherit()
}

// inherit watches what the keeper holds. The marks are in the group; setting them again covers a daemon that died between
// giving a file to the keeper and marking it. All mounts raise events again: whose second devices a daemon that died had silenced is
// not known here.
func (m *Mounter) inherit() error {
	files, err := m.keeper.Layers()
	if err != nil {
		return err
	}
	err = group.UnsilenceAll(m.groupFD)
	watches := make(map[fileID]*watch, len(files))
	for blob, file := range files {
		w, watchErr := newWatch(blob, file)
		if watchErr == nil {
			watchErr = group.Mark(m.groupFD, w.fd)
		}
		if watchErr != nil {
			err = errors.Join(err, fmt.Errorf("watch layer %s: %w", blob, watchErr))
			continue
		}
		watches[w.id] = w
	}
	for _, file := range files {
		file.Close()
	}
	m.watches.Store(&watches)
	return err
}

// Stats returns the counts.
func (m *Mounter) Stats() Stats {
	return Stats{Inline: m.inline.Load(), Waited: m.waited.Load(), Denied: m.denied.Load(), Pending: m.pending.Load()}
}

// Mount implements mount.Mounter.
func (m *Mounter) Mount(ctx context.Context, spec mount.Spec) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return fmt.Errorf("mount %s: %w", spec.Dir, os.ErrClosed)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("mount %s: %w", spec.Dir, err)
	}
	if _, ok := m.mounts[spec.Dir]; ok {
		return fmt.Errorf("mount %s: %w", spec.Dir, unix.EBUSY)
	}
	if err := m.watchAll(ctx, spec.Layers); err != nil {
		m.tidy()
		return fmt.Errorf("mount %s: %w", spec.Dir, err)
	}
	devices := make([]string, len(spec.Layers), 2*len(spec.Layers))
	for i, layer := range spec.Layers {
		devices[i] = layer.Path
	}
	var t *tree
	if spec.Twice {
		second := devices
		var err error
		if t, err = newTree(spec.Layers); err == nil {
			second = t.paths
		} else { // the layers are on a mount that must not be cloned, say
			m.log.Warn("reads of second devices cannot be silenced", "dir", spec.Dir, "err", err)
		}
		devices = append(devices, second...)
	}
	if err := mount.EROFS(spec.Metadata, devices, spec.Dir); err != nil {
		t.close()
		m.tidy()
		return err
	}
	m.mounts[spec.Dir] = incomplete(spec.Layers)
	if t != nil {
		m.treesMu.Lock()
		m.trees[spec.Dir] = t
		m.treesMu.Unlock()
	}
	return nil
}

// Adopt tells of a mount that an earlier daemon made with the same spec (Layer.File may be nil). It fails when the directory has no EROFS
// mount, or a layer that is not complete is not watched: then holes in it read as zeros, and the mount must be taken away.
func (m *Mounter) Adopt(spec mount.Spec) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	mounted, err := mount.ListUnder(spec.Dir)
	if err != nil {
		return fmt.Errorf("adopt mount %s: %w", spec.Dir, err)
	}
	if len(mounted) == 0 || mounted[0].Dir != spec.Dir || mounted[0].Type != "erofs" {
		return fmt.Errorf("adopt mount %s: no EROFS mount there: %w", spec.Dir, os.ErrNotExist)
	}
	blobs := incomplete(spec.Layers)
	for _, blob := range blobs {
		if m.find(blob) == nil {
			return fmt.Errorf("adopt mount %s: layer %s is not watched", spec.Dir, blob)
		}
	}
	m.mounts[spec.Dir] = blobs
	return nil
}

// Watches reports whether a layer is watched, mounted or not. It waits for nobody.
func (m *Mounter) Watches(blob digest.Digest) bool {
	for w := range m.live() {
		if w.blob == blob {
			return true
		}
	}
	return false
}

// First returns a duplicate of the first descriptor of a layer that is watched, the caller's to close, or nil. A file that is watched must not be
// opened anew for writing.
func (m *Mounter) First(blob digest.Digest) (*os.File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	w := m.find(blob)
	if w == nil {
		return nil, nil
	}
	fd, err := unix.FcntlInt(uintptr(w.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate descriptor of layer %s: %w", blob, err)
	}
	return os.NewFile(uintptr(fd), blob.String()), nil
}

// Tidy ends the watches of layers that are not mounted and that nobody has open any more. It returns how many are not
// mounted and open: a process that just made itself a mount namespace has copies of all mounts for a moment.
func (m *Mounter) Tidy() (open int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return 0
	}
	return m.tidy()
}

// Unmount implements mount.Mounter. Layers that nobody has open afterwards are not watched any more.
func (m *Mounter) Unmount(ctx context.Context, dir string) error {
	err := m.unmount(ctx, dir) // may wait: other mounts go on meanwhile
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil || m.closed {
		return err
	}
	delete(m.mounts, dir)
	m.tidy()
	return nil
}

func (m *Mounter) unmount(ctx context.Context, dir string) error {
	m.dropTree(dir) // it cannot be silent behind our back, should it be in use for longer
	detached, err := mount.UnmountEROFS(ctx, dir)
	if detached {
		m.log.Warn("mount was in use and is detached: its layers stay watched until its last file is closed", "dir", dir)
	}
	return err
}

// Unwatch implements mount.Mounter.
func (m *Mounter) Unwatch(blob digest.Digest) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	w := m.find(blob)
	if w == nil {
		return nil
	}
	return m.unwatch(w, true)
}

// Close implements mount.Mounter. Where a layer is still open somewhere after all was unmounted, it returns an error that
// says so, and the keeper goes on denying reads of it.
func (m *Mounter) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil
	}
	m.closed = true
	m.cancel(os.ErrClosed) // readers that wait would keep their mounts busy
	var errs []error
	for dir := range m.mounts {
		if err := m.unmount(context.Background(), dir); err != nil {
			errs = append(errs, err)
			continue
		}
		delete(m.mounts, dir)
	}
	if left := m.settle(); left > 0 {
		errs = append(errs, fmt.Errorf("close mounts: %d layers are still open somewhere: reads of what is missing fail", left))
		if m.keeper == nil {
			return errors.Join(errs...) // go on denying here: to let go of the group would give zeros
		}
	}
	m.stop()
	return errors.Join(errs...)
}

// settle ends all watches, and returns how many it could not end. A process that just made itself a mount namespace has
// copies of all mounts in it until it has set that up, so it tries for a while.
func (m *Mounter) settle() (left int) {
	for deadline := time.Now().Add(settlePatience); ; time.Sleep(settleRetry) {
		m.tidy()
		left = 0
		for range m.live() {
			left++
		}
		if left == 0 || time.Now().After(deadline) {
			return left
		}
	}
}

// Handover stops answering but leaves everything mounted: the keeper holds it for the next daemon, whose readers wait
// meanwhile. Fetches in progress are awaited until the context ends; those that are not done then are the next daemon's.
func (m *Mounter) Handover(ctx context.Context) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	m.closed = true
	defer context.AfterFunc(ctx, func() {
		m.handover.Store(m.table != nil)
		m.cancel(context.Cause(ctx))
	})()
	m.stop()
}

// stop ends serve, waits for what it handed out, and says goodbye.
func (m *Mounter) stop() {
	m.dropTrees()
	_ = m.group.SetReadDeadline(longAgo)
	<-m.served
	m.queue.wait()
	m.cancel(os.ErrClosed)
	if m.keeper != nil {
		m.keeper.Goodbye()
	}
	m.group.Close()
	for w := range m.live() {
		unix.Close(w.fd)
	}
}

func incomplete(layers []mount.Layer) []digest.Digest {
	var blobs []digest.Digest
	for _, layer := range layers {
		if !layer.Complete {
			blobs = append(blobs, layer.Blob)
		}
	}
	return blobs
}
