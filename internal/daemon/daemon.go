// Package daemon is thaw's long-running part: one daemon a state directory
// resolves images, finds or makes their indexes, mounts them and hydrates
// their layers. It is the one place that composes the packages below it.
//
// Its model: an image is resolved to a manifest and an index (image.go). Each
// of its layers is shared by all who use it (layers.go). A mount is an image's
// root, in a directory or as the writable root of a container (mounts.go); its
// record in the state directory is written before anything is mounted, so that
// the next daemon can go on with it, or clean up after it (recover.go).
// Commands talk to the daemon over a unix socket (server.go). It leaves by
// itself when nothing has been mounted for a while.
//
// The daemon runs no containers. It does stop those whose `thaw run` is gone.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	digest "github.com/opencontainers/go-digest"

	"github.com/thaw-project/thaw/internal/credentials"
	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/fallback"
	"github.com/thaw-project/thaw/internal/hydrate"
	"github.com/thaw-project/thaw/internal/indexstore"
	"github.com/thaw-project/thaw/internal/journal"
	"github.com/thaw-project/thaw/internal/layerstore"
	"github.com/thaw-project/thaw/internal/mount"
	"github.com/thaw-project/thaw/internal/mount/fanotify"
	"github.com/thaw-project/thaw/internal/mount/fanotify/group"
	"github.com/thaw-project/thaw/internal/mount/keeper"
	"github.com/thaw-project/thaw/internal/snapshotter"
	"github.com/thaw-project/thaw/internal/spans"
	"github.com/thaw-project/thaw/internal/systemd"
	"github.com/thaw-project/thaw/internal/tracestore"
	"github.com/thaw-project/thaw/internal/trust"
)

// Config of a daemon.
type Config struct {
	Root       string // state directory
	Version    string
	Mode       string        // api.ModeAuto, ModeFanotify, ModeFUSE or ModeEager
	Background int64         // bytes/s of compressed layers; 0: no limit, negative: off
	IdleExit   time.Duration // after the last mount; 0: never
	Grace      time.Duration // how long readers wait for a new daemon after a crash
	// ReadTimeout is how long a read waits for bytes that the registry does not give.
	ReadTimeout time.Duration
	// MaxSize and MinFree return what all layers may take, and what is to be left
	// free, on a disk of the given size; 0: no limit.
	MaxSize, MinFree func(diskBytes int64) int64
	MaxMemory        int64    // that the process aims at; its buffers get a part of it
	Insecure         []string // hosts that may be spoken to in plain http
	Mirrors          map[string][]string
	Trust            string     // which indexes are taken: trust.Any, trust.Local or trust.Signed
	TrustKey         *trust.Key // for trust.Signed
	Containerd       Containerd
	Credentials      Credentials
	// Keeper is the command that runs keeper.Run for Root.
	Keeper []string
	// Restart is the command that starts a daemon like this one; empty: the
	// keeper is not to, somebody else does.
	Restart []string
	// Manager is the service manager; nil: there is none.
	Manager *systemd.Manager
	// Stored are the descriptors that Manager gave back.
	Stored map[string]*os.File
	Log    *slog.Logger
	// Metrics is the TCP address at which Prometheus is answered; empty: none is.
	Metrics string
	// Web is the TCP address at which starts are shown to browsers, which have to call it
	// localhost, by an address of this machine's own, or one of WebHosts; empty: none are.
	Web      string
	WebHosts []string
	// Spans is the command of the program that is told of starts, see package spans;
	// empty: none is.
	Spans []string
}

// Daemon serves one state directory.
type Daemon struct {
	cfg     Config
	log     *slog.Logger
	started time.Time
	ctx     context.Context // of everything that outlives a call
	cancel  context.CancelFunc
	wg      sync.WaitGroup // goroutines under ctx

	store     *layerstore.Store
	indexes   *indexstore.Store
	clients   clients
	handed    *credentials.Store   // with pulls
	providers *credentials.Plugins // may be nil
	sched     *hydrate.Scheduler
	keeper    *keeper.Client                   // nil in eager mode
	mounter   lazyMounter                      // nil in eager mode
	fanotify  atomic.Pointer[fanotify.Mounter] // the same, where it is one; readers of layers ask while it is made

	counts    *counts
	recorder  recorder
	fallbacks *fallback.Log
	spans     *spans.Sender               // nil when nobody is told
	web       *web                        // nil when nobody is shown anything
	ended     *journal.Journal[api.Mount] // mounts that were taken away
	traces    *tracestore.Store

	checking   sync.Mutex // held while an index is compared with its layers
	collecting sync.Mutex // held while small files are collected; taken before mu
	room       room

	mode, modeReason string
	content          *snapshotter.Content // of containerd, if it gets the layers too
	offered          bool                 // containerd or the kubelet is served
	notServed        []string             // see api.Status

	layers  layers
	heads   heads
	bundles bundles
	pulls   flights

	// mu guards what follows. Taken before no other lock of the daemon.
	mu       sync.Mutex
	mounts   map[string]*mounted    // by id
	making   map[*image]bool        // that are being mounted or pulled
	kept     map[*image]bool        // in use since the collection that is under way began; nil if none is
	removed  map[digest.Digest]bool // images that were removed while they were in use: their indexes are to go
	reserved map[string]bool        // directories that are being mounted on
	lastBusy time.Time
	calls    int // under way
	starts   int // calls that mount or pull
	leaving  bool
	upgrade  string         // the program to become
	callsEnd sync.WaitGroup // of calls; none is added once leaving
}

// lazyMounter is a Mounter whose mounts the next daemon can go on with.
type lazyMounter interface {
	mount.Mounter
	Adopt(spec mount.Spec) error
	Handover(ctx context.Context)
}

// ErrRunning says that another daemon has the state directory.
var ErrRunning = errors.New("another daemon is running")

// Run serves cfg.Root until ctx is done, someone asks the daemon to stop, or it
// has been idle for long enough. What is mounted stays mounted when ctx ends:
// the keeper holds it for the next daemon. The error is an *Upgrade when the
// process is to become that one.
func Run(ctx context.Context, cfg Config) error {
	if err := os.MkdirAll(cfg.Root, 0o700); err != nil {
		return fmt.Errorf("make state directory: %w", err)
	}
	// As the kernel lists mounts.
	root, err := filepath.EvalSymlinks(cfg.Root)
	if err != nil {
		return fmt.Errorf("find state directory: %w", err)
	}
	cfg.Root = root
	d := newDaemon(cfg)
	d.ctx, d.cancel = context.WithCancel(ctx)
	defer d.cancel()
	store, err := layerstore.Open(filepath.Join(cfg.Root, "store"), layerstore.Options{Log: d.log, DropCache: true})
	if errors.Is(err, layerstore.ErrLocked) {
		return fmt.Errorf("%w: %w", ErrRunning, err)
	}
	if err != nil {
		return err
	}
	d.store = store
	defer store.Close()
	sweepTemporary(filepath.Join(cfg.Root, "images"), filepath.Join(cfg.Root, "metadata"))
	if d.indexes, err = indexstore.Open(filepath.Join(cfg.Root, "index")); err != nil {
		return err
	}
	if d.traces, err = tracestore.Open(filepath.Join(cfg.Root, "traces"), d.log); err != nil {
		return err
	}
	d.fallbacks = fallback.Open(filepath.Join(cfg.Root, "fallbacks.json"), d.log)
	d.ended = journal.Open[api.Mount](filepath.Join(cfg.Root, "ended.jsonl"), endedKept, d.log)
	defer d.ended.Close()
	if cfg.Web != "" {
		d.web = newWeb(d)
	}
	if len(cfg.Spans) > 0 {
		d.spans = spans.NewSender(cfg.Spans, d.log)
	}
	if err := d.openCredentials(); err != nil {
		return err
	}
	if err := group.LimitFiles(); err != nil {
		d.log.Warn("set limit of open files", "err", err)
	}
	defer d.clients.close()
	d.sched = hydrate.New(hydrate.Options{MemoryBytes: cfg.MaxMemory * 3 / 7, RateBytes: max(cfg.Background, 0),
		ReadTimeout: cfg.ReadTimeout, Room: d.makeRoom, Log: d.log})
	defer d.sched.Close()
	d.restorePins()
	if cfg.Containerd.Content && cfg.Containerd.Listen != "" {
		if d.content, err = snapshotter.NewContent(cfg.Containerd.Address); err != nil {
			return err
		}
		defer d.content.Close()
	}
	if err := d.startMounter(); err != nil {
		return err
	}
	d.room.open.Store(true)
	d.offer(d.cfg.Containerd.Listen, d.serveContainerd)
	d.offer(d.cfg.Containerd.ImageService, d.serveImageService)
	if err := d.serve(); err != nil || d.upgrade == "" {
		return err
	}
	return &Upgrade{Executable: d.upgrade}
}

func newDaemon(cfg Config) *Daemon {
	d := &Daemon{cfg: cfg, log: cfg.Log, started: time.Now(), counts: newCounts(), mounts: map[string]*mounted{}, reserved: map[string]bool{},
		making: map[*image]bool{}, removed: map[digest.Digest]bool{}, lastBusy: time.Now()}
	d.fallbacks, d.ended = fallback.Open("", d.log), journal.Open[api.Mount]("", endedKept, d.log) // until Run knows better
	unlimited := func(int64) int64 { return 0 }
	if cfg.MaxSize == nil {
		d.cfg.MaxSize = unlimited
	}
	if cfg.MinFree == nil {
		d.cfg.MinFree = unlimited
	}
	d.room.freed = make(chan struct{}, 1)
	d.layers.init(d, d.counts)
	return d
}

// serve answers calls until the daemon's context ends, then shuts down.
func (d *Daemon) serve() error {
	socket := filepath.Join(d.cfg.Root, api.SocketName)
	os.Remove(socket) // a dead daemon's: the store's lock is ours
	l, err := net.Listen("unix", socket)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", socket, err)
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		l.Close()
		return fmt.Errorf("protect %s: %w", socket, err)
	}
	srv := &http.Server{Handler: d.handler(), ConnContext: withPeer, ErrorLog: slog.NewLogLogger(d.log.Handler(), slog.LevelWarn),
		ReadHeaderTimeout: 10 * time.Second}
	d.wg.Go(d.leaveWhenIdle)
	d.wg.Go(d.syncLayers)
	d.wg.Go(d.keepRoom)
	d.wg.Go(d.serves)
	if d.cfg.Metrics != "" {
		d.wg.Go(d.serveMetrics)
	}
	if d.web != nil {
		d.wg.Go(d.web.serve)
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		<-d.ctx.Done()
		d.mu.Lock()
		d.leaving = true
		d.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		srv.Shutdown(ctx)
		srv.Close()
	}()
	d.log.Info("daemon is ready", "root", d.cfg.Root, "pid", os.Getpid(), "mode", d.mode)
	err = srv.Serve(l)
	d.cancel()
	<-stopped
	d.callsEnd.Wait() // their clients may be gone, they clean up after themselves
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	return errors.Join(err, d.shutdown())
}

// How long fetches that readers wait for may take until they are left to the
// next daemon, which begins them anew.
const (
	handoverPatience = 2 * time.Second
	upgradePatience  = 250 * time.Millisecond // the next one is there at once
)

// shutdown lets go of everything. With mounts left the keeper is not told
// goodbye: it keeps their readers waiting for the next daemon.
func (d *Daemon) shutdown() error {
	d.mu.Lock()
	left, upgrade := len(d.mounts), d.upgrade != ""
	d.mu.Unlock()
	if !upgrade {
		d.cfg.Manager.Stopping()
	}
	if (left > 0 || upgrade) && d.mounter != nil {
		d.log.Info("daemon stops, its mounts stay", "mounts", left)
		if upgrade {
			d.keeper.HandOver()
		}
		patience := handoverPatience
		if upgrade {
			patience = upgradePatience
		}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		d.mounter.Handover(ctx) // before the scheduler stops: readers would fail
	}
	d.sched.Close()
	d.wg.Wait()
	d.pulls.wg.Wait() // nobody waits for them any more, so they are cancelled
	d.spans.Close(spansPatience(upgrade))
	d.layers.closeAll()
	if left > 0 || upgrade || d.mounter == nil {
		return nil
	}
	d.log.Info("daemon stops")
	d.indexes.Sweep() // of one that was killed just before this one started
	d.traces.Sweep()
	return d.mounter.Close()
}

// enter counts a call in, unless the daemon takes none any more.
func (d *Daemon) enter() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.leaving {
		return false
	}
	d.calls++
	d.callsEnd.Add(1)
	return true
}

func (d *Daemon) exit() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls--
	d.lastBusy = time.Now()
	d.callsEnd.Done()
}

// leaveWhenIdle ends the daemon some time after the last mount and call.
func (d *Daemon) leaveWhenIdle() {
	if d.cfg.IdleExit <= 0 || d.offered {
		return
	}
	tick := time.NewTicker(min(d.cfg.IdleExit, 5*time.Second))
	defer tick.Stop()
	for {
		select {
		case <-d.ctx.Done():
			return
		case <-tick.C:
		}
		d.mu.Lock()
		if len(d.mounts) > 0 || d.calls > 0 {
			d.lastBusy = time.Now()
		}
		idle := time.Since(d.lastBusy)
		leave := idle >= d.cfg.IdleExit
		d.leaving = d.leaving || leave
		d.mu.Unlock()
		if leave {
			d.log.Info("daemon leaves: nothing is mounted", "idle", idle.Round(time.Second))
			d.cancel()
			return
		}
	}
}

// syncInterval is how much hydration a crash of the machine may cost.
const syncInterval = 5 * time.Second

// syncLayers makes what has been hydrated durable now and then.
func (d *Daemon) syncLayers() {
	tick := time.NewTicker(syncInterval)
	defer tick.Stop()
	for {
		select {
		case <-d.ctx.Done():
			return
		case <-tick.C:
		}
		for _, l := range d.layers.list() {
			if l.store.Complete() {
				continue
			}
			if err := l.store.Sync(); err != nil && !errors.Is(err, layerstore.ErrClosed) { // released meanwhile
				d.log.Error("sync layer", "layer", l.blob, "err", err)
			}
		}
	}
}
