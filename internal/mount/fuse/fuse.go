// Package fuse is the Mounter for kernels without pre-content events: a FUSE file system under EROFS.
//
// The model: one FUSE file system a Mounter holds the layer files, flat, and nothing else. It is attached nowhere: EROFS opens its devices
// in it through a descriptor, so no other process can see it, walk it or hang in it. EROFS asks it for file data only; names and
// attributes come from the local metadata image. A few goroutines read requests. A range that the Handler has is read from the layer's
// first descriptor and sent right there; for any other a bounded number of workers call Handler.Fetch first. A read that
// cannot be answered whole is answered with EIO, never with less or with zeros: EROFS would take a short answer for the end of the file.
//
// Layers that are complete when EROFS opens them are passed through (Linux 6.9): the kernel reads the layer file itself, at
// its speed, and needs no daemon for it. All others are opened for direct I/O: EROFS caches what was read and the layer file's file system
// too, so a third copy in FUSE's page cache would only cost memory.
//
// It fails closed. When the process dies, and nobody else holds its Connection, the kernel answers all reads of layers that were not passed
// through with an error, for ever: those mounts are dead and must be taken away. With a keeper readers wait, and a new daemon goes on with
// the connection: the kernel's first request is kept beside it, file numbers are made from digests, and the kernel sends
// unanswered requests again (Linux 6.9). After its grace time the keeper answers them with EIO, until a daemon comes.
//
// It needs file-backed EROFS (Linux 6.12). For older kernels it makes no loop devices: ErrUnsupported says so.
//
// It decodes and fetches nothing, and remembers nothing on disk.
//
// Lock order: Mounter.mu, then node.mu. What answers the kernel never takes Mounter.mu: it is held while the kernel mounts.
package fuse

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	protocol "github.com/hanwen/go-fuse/v2/fuse"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/mount"
	"github.com/thaw-project/thaw/internal/mount/keeper"
)

// DefaultWorkers is how many fetches for waiting readers are in progress at most. More wait in memory. They are many, because in an
// outage of a registry all its readers wait in one, and readers of other registries must not wait behind them: what a
// fetch costs beside its goroutine is bounded by whoever fetches.
const DefaultWorkers = 4096

// Options configure New.
type Options struct {
	// Handler answers the reads.
	Handler mount.Handler
	// Keeper holds the Connection while this process is away; the Mounter says goodbye to it. Nil: the death of this process
	// is that of its mounts. New takes it over, also when it fails.
	Keeper *keeper.Client
	// Connection is that of an earlier daemon, which is gone, where it is not the keeper's. New owns it, also when it fails.
	Connection *Connection
	// Layers are those that the mounts on an earlier daemon's connection use; reads of any other fail with EIO.
	Layers []mount.Layer
	// Workers is how many fetches run at once; DefaultWorkers when 0.
	Workers int
	// Seen is told of the reads, but for those of layers that are passed through; nil for nobody.
	Seen mount.Seen
	Log  *slog.Logger
}

// Stats count reads since the start. Reads of layers that are passed through are not seen.
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
	log     *slog.Logger
	denials *mount.DeniedLog

	keeper *keeper.Client
	device *device
	// backings is what a later daemon has to know of layers that are passed through.
	backings *backings
	resumed  bool // the connection is an earlier daemon's
	treeFD   int
	ctx      context.Context
	cancel   context.CancelCauseFunc // lets fetches fail
	// fetching and buffers bound the workers: how many fetch, and how many send.
	fetching chan struct{}
	buffers  chan []byte
	readers  sync.WaitGroup // serve
	workers  sync.WaitGroup // fetch and released; added to only by readers

	inline, waited, denied, pending atomic.Int64

	// nodes is what requests are looked up in. It is replaced as a whole, under mu.
	nodes atomic.Pointer[map[uint64]*node]

	mu     sync.Mutex          // guards what follows, and orders mounting and unmounting
	mounts map[string][]uint64 // by directory: its nodes
	closed bool
}

var _ mount.Mounter = (*Mounter)(nil)

// New makes a FUSE file system, or takes one over, and starts to answer for it.
func New(ctx context.Context, opts Options) (*Mounter, error) {
	if opts.Workers == 0 {
		opts.Workers = DefaultWorkers
	}
	if opts.Seen == nil {
		opts.Seen = func(digest.Digest, int64, int64, int) {}
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	readers := max(runtime.GOMAXPROCS(0), 2)
	m := &Mounter{
		handler: opts.Handler, seen: opts.Seen, keeper: opts.Keeper, log: opts.Log, denials: mount.NewDeniedLog(opts.Log), mounts: map[string][]uint64{},
		fetching: make(chan struct{}, opts.Workers), buffers: make(chan []byte, readers),
	}
	for range readers {
		m.buffers <- nil // made when it is needed
	}
	m.nodes.Store(&map[uint64]*node{})
	if err := m.connect(ctx, opts); err != nil {
		for _, n := range *m.nodes.Load() {
			unix.Close(n.fd)
		}
		if m.device != nil {
			m.device.Close()
		}
		if m.keeper != nil {
			m.keeper.Close() // not goodbye: if it holds a connection, somebody must come for its readers
		}
		return nil, err
	}
	m.ctx, m.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	for range readers {
		m.readers.Go(m.serve)
	}
	return m, nil
}

// connect takes an earlier daemon's connection over, or makes one, and has the keeper hold it.
func (m *Mounter) connect(ctx context.Context, opts Options) error {
	server := func() *protocol.ProtocolServer {
		return newServer(&files{RawFileSystem: protocol.NewDefaultRawFileSystem(), m: m}, m.log)
	}
	held := opts.Connection
	if held == nil && m.keeper != nil {
		var err error
		if held, err = heldBy(m.keeper); err != nil {
			return err
		}
	}
	if held != nil {
		var err error
		if m.device, err = openDevice(held, server()); err != nil {
			m.log.Error("mounts of an earlier daemon are dead: their FUSE connection cannot be taken over", "err", err)
		}
		m.resumed = err == nil
	}
	if !m.resumed {
		var err error
		if m.device, err = openDevice(nil, server()); err != nil {
			return err
		}
	}
	var err error
	var numbers map[uint64]int32
	if m.backings, numbers, err = loadBackings(m.device.Init); err != nil {
		return err
	}
	if m.resumed {
		m.inherit(opts.Layers, numbers)
	}
	if m.treeFD, err = mount.RawFD(m.device.Tree); err != nil {
		return err
	}
	if m.keeper == nil {
		return nil
	}
	return m.keeper.Hold(ctx, map[digest.Digest]*os.File{
		keeper.FUSEDevice: m.device.Device, keeper.FUSETree: m.device.Tree, keeper.FUSEInit: m.device.Init,
	})
}

// inherit makes the nodes of an earlier daemon's mounts.
func (m *Mounter) inherit(layers []mount.Layer, numbers map[uint64]int32) {
	for _, layer := range layers {
		n, err := m.add(layer, true)
		if err != nil {
			m.log.Error("reads of a layer fail: it cannot be taken over", "err", err)
			continue
		}
		if number := numbers[n.id]; number != 0 {
			n.backing = number
			delete(numbers, n.id)
		}
	}
	for node, number := range numbers { // of mounts that are no more
		m.closeBacking(node, number)
	}
}

// heldBy returns the connection that the keeper holds, or nil.
func heldBy(k *keeper.Client) (*Connection, error) {
	files, err := k.Layers()
	if err != nil {
		return nil, fmt.Errorf("take FUSE connection over from keeper: %w", err)
	}
	held := &Connection{Device: files[keeper.FUSEDevice], Tree: files[keeper.FUSETree], Init: files[keeper.FUSEInit]}
	for blob, f := range files {
		if !keeper.IsFUSE(blob) {
			f.Close()
		}
	}
	if held.Device == nil || held.Tree == nil || held.Init == nil {
		held.Close()
		return nil, nil
	}
	return held, nil
}

// Stats returns the counts.
func (m *Mounter) Stats() Stats {
	return Stats{Inline: m.inline.Load(), Waited: m.waited.Load(), Denied: m.denied.Load(), Pending: m.pending.Load()}
}

// Connection returns duplicates of the descriptors that keep the mounts alive, for another process to hold.
func (m *Mounter) Connection() (*Connection, error) { return m.device.Duplicate() }

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
	ids, devices := make([]uint64, 0, len(spec.Layers)), make([]string, 0, len(spec.Layers))
	for _, layer := range spec.Layers {
		n, err := m.add(layer, false)
		if err != nil {
			m.tidy()
			return fmt.Errorf("mount %s: %w", spec.Dir, err)
		}
		ids, devices = append(ids, n.id), append(devices, m.path(n))
	}
	if err := mount.EROFS(spec.Metadata, devices, spec.Dir); err != nil {
		m.tidy()
		return err
	}
	m.mounts[spec.Dir] = ids
	return nil
}

// Adopt tells of a mount that an earlier daemon made on the connection that New got, with the same layers. It fails when
// the directory has no EROFS mount, or a layer was not among Options.Layers: then reads fail, and the mount must be taken away.
func (m *Mounter) Adopt(spec mount.Spec) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.resumed {
		return fmt.Errorf("adopt mount %s: its FUSE connection is dead", spec.Dir)
	}
	mounted, err := mount.ListUnder(spec.Dir)
	if err != nil {
		return fmt.Errorf("adopt mount %s: %w", spec.Dir, err)
	}
	if len(mounted) == 0 || mounted[0].Dir != spec.Dir || mounted[0].Type != "erofs" {
		return fmt.Errorf("adopt mount %s: no EROFS mount there: %w", spec.Dir, os.ErrNotExist)
	}
	var ids []uint64
	for _, layer := range spec.Layers {
		n := m.node(nodeID(layer.Blob))
		if n == nil {
			return fmt.Errorf("adopt mount %s: layer %s was not taken over", spec.Dir, layer.Blob)
		}
		ids = append(ids, n.id)
	}
	for _, id := range ids {
		n := m.node(id)
		n.awaited = false
		n.opens.Add(1) // a mount opens each of its devices once
	}
	m.mounts[spec.Dir] = ids
	return nil
}

// Unmount implements mount.Mounter.
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
	detached, err := mount.UnmountEROFS(ctx, dir)
	if detached {
		m.log.Warn("mount was in use and is detached: its layers are served until its last file is closed", "dir", dir)
	}
	return err
}

// Unwatch implements mount.Mounter. The Handler is not asked about the layer any more; mounts made from now on have it passed through.
func (m *Mounter) Unwatch(blob digest.Digest) error {
	if n := m.node(nodeID(blob)); n != nil && n.blob == blob {
		n.complete.Store(true)
	}
	return nil
}

// Close implements mount.Mounter. What is still open somewhere fails with EIO from then on, unless it is passed through.
func (m *Mounter) Close() error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil
	}
	m.closed = true
	m.cancel(os.ErrClosed) // readers that wait would keep their mounts busy
	var errs []error
	for dir := range m.mounts {
		errs = append(errs, m.unmount(context.Background(), dir))
	}
	m.mu.Unlock()
	m.stop(false)
	return errors.Join(errs...)
}

// Handover stops answering but leaves everything mounted, for the next daemon, to whom another process gives the Connection that it
// holds. Reads that are being fetched for are awaited until the context ends, and then left to the next daemon.
func (m *Mounter) Handover(ctx context.Context) {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return
	}
	m.closed = true
	m.mu.Unlock()
	defer context.AfterFunc(ctx, func() { m.cancel(errHandover) })()
	m.stop(true)
}

// stop ends serve, waits for what it handed out, and lets go of the connection; keep: the keeper does not.
func (m *Mounter) stop(keep bool) {
	_ = m.device.Device.SetReadDeadline(longAgo)
	m.readers.Wait()
	m.workers.Wait()
	m.cancel(os.ErrClosed)
	if m.keeper != nil {
		if !keep {
			DropHeld(m.keeper)
		}
		m.keeper.Goodbye()
	}
	m.device.Close()
	for _, n := range *m.nodes.Load() {
		unix.Close(n.fd)
	}
}

// DropHeld has a keeper let go of a connection that nobody goes on with: its mounts are dead from then on.
func DropHeld(k *keeper.Client) {
	for _, name := range []digest.Digest{keeper.FUSEDevice, keeper.FUSETree, keeper.FUSEInit} {
		k.Drop(name)
	}
}

// released is called by what answers the kernel when a layer is not open any more.
func (m *Mounter) released() {
	m.workers.Go(func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.tidy()
	})
}
