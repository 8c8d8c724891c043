package daemon

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	digest "github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/container"
	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/fallback"
	"github.com/thaw-project/thaw/internal/hydrate"
	"github.com/thaw-project/thaw/internal/mount"
	"github.com/thaw-project/thaw/internal/registry"
	"github.com/thaw-project/thaw/internal/trace"
)

// record is what the state directory says of a mount. It is written before
// anything is mounted.
type record struct {
	ID        string           `json:"id"`
	Request   api.MountRequest `json:"request"`
	Manifest  digest.Digest    `json:"manifest"`
	Mode      string           `json:"mode"`
	Origin    string           `json:"origin"`
	BootID    string           `json:"bootID"`
	Pid       int              `json:"pid,omitempty"` // of `thaw run`
	PidStart  uint64           `json:"pidStart,omitempty"`
	Created   time.Time        `json:"created"`
	ImageDir  string           `json:"imageDir"`            // where the EROFS image is mounted
	Writable  bool             `json:"writable"`            // a container's root lies over it
	Snapshot  bool             `json:"snapshot,omitempty"`  // containerd's snapshots stand on it
	Namespace string           `json:"namespace,omitempty"` // containerd's, of who pulled it
	Layers    int              `json:"layers,omitempty"`    // of the image, if not all are mounted
	Metadata  string           `json:"metadata,omitempty"`  // of those: its name in the directory of metadata
	Finished  bool             `json:"finished"`            // mounting is done
	Committed []api.Phase      `json:"phases,omitempty"`
	Fallbacks []fallback.Event `json:"fallbacks,omitempty"` // why it is not better
}

// mounted is a mount that this daemon serves.
type mounted struct {
	record
	dir      string // of the record
	img      *image
	layers   []*layer  // as the image has them; a layer may stand twice
	bundle   *bundle   // of the index; may be nil
	startSet *startSet // what of it is read through devices of its own; may be nil
	counter  registry.Counter
	base     int64                    // compressed bytes that its layers had fetched before
	before   map[*layer]hydrate.Waits // of readers of its layers before; of other mounts, then
	// foundBytes is what of its layers was here before it was mounted.
	foundBytes int64
	pulled     atomic.Int64 // and those that passed to make its index
	cancel     context.CancelFunc
	gone       chan struct{} // closed when it is unmounted

	asked     time.Time // when the mount was asked for
	cgroup    string    // of its container
	shown     string    // id of the start that is shown; empty: none yet, or nothing is shown
	recording atomic.Pointer[recording]
	ending    sync.Mutex                  // held while a recording ends, which looks at what is mounted
	read      atomic.Pointer[trace.Trace] // what its start read, once that was recorded; only if starts are shown

	attached  chan struct{} // closed when it is mounted
	completed chan struct{} // closed when complete, or when it cannot be

	mu         sync.Mutex // guards what follows
	unmounting bool
	ended      *api.Mount    // as it was before it was taken away
	times      api.Times     // of its container, as thaw run told them
	news       chan struct{} // told of new times; nil when nobody follows its start
	complete   bool
	doneAt     time.Time
	counted    bool // its start is in the metrics
	err        error
}

func newMounted(dir string) *mounted {
	return &mounted{dir: dir, gone: make(chan struct{}), attached: make(chan struct{}), completed: make(chan struct{})}
}

var idRegexp = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}$`)

func (d *Daemon) mountsDir() string { return filepath.Join(d.cfg.Root, "mounts") }

// newID returns the id of a new mount and reserves its directory.
func (d *Daemon) newID(wanted string) (id, dir string, err error) {
	id = wanted
	if id == "" {
		b := make([]byte, 6)
		rand.Read(b)
		id = hex.EncodeToString(b)
	}
	if !idRegexp.MatchString(id) {
		return "", "", api.Errorf(api.CodeInvalid, "use letters, digits, '-', '_' and '.', 63 at most", "%q is not a name for a container", id)
	}
	if err := os.MkdirAll(d.mountsDir(), 0o700); err != nil {
		return "", "", fmt.Errorf("make mount directory: %w", err)
	}
	dir = filepath.Join(d.mountsDir(), id)
	err = os.Mkdir(dir, 0o700)
	if errors.Is(err, fs.ErrExist) {
		return "", "", api.Errorf(api.CodeInUse, "choose another --name, or wait until it has exited", "the name %q is in use", id)
	}
	if err != nil {
		return "", "", fmt.Errorf("make mount directory: %w", err)
	}
	return id, dir, nil
}

// mount makes a mount for the process pid.
func (d *Daemon) mount(ctx context.Context, t *task, req api.MountRequest, pid int) (*mounted, error) {
	asked := time.Now()
	mode, err := d.modeFor(req.Mode)
	if err != nil {
		return nil, err
	}
	if req.Dir != "" {
		if req.Dir, err = d.reserve(req.Dir); err != nil {
			return nil, err
		}
		defer d.unreserve(req.Dir)
	}
	id, dir, err := d.newID(req.Container)
	if err != nil {
		return nil, err
	}
	made := make(chan error, 1)
	go func() { made <- makeDirs(dir, req) }() // while the registry is waited for
	t.bundle = mode != api.ModeEager
	img, err := d.prepare(ctx, t)
	if img != nil {
		defer func() { d.leaveBundle(img.run) }() // unless the mount has it
	}
	if err == nil {
		err = d.checkLimits(img.head)
	}
	if err = errors.Join(err, <-made); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	img.background = d.backgroundRate(req.Background)
	m := newMounted(dir)
	m.img, m.asked, m.shown = img, asked, t.shown
	m.record = record{ID: id, Request: req, Manifest: img.digest, Mode: mode, Origin: img.origin, BootID: bootID(), Created: time.Now()}
	m.ImageDir, m.Writable = filepath.Join(m.dir, "image"), req.Dir == ""
	if !m.Writable {
		m.ImageDir = req.Dir
	} else {
		m.Pid, m.PidStart = pid, pidStart(pid)
	}
	return m, d.finishMount(ctx, t, m)
}

// makeDirs makes the directories of a container's root in the mount's own.
func makeDirs(dir string, req api.MountRequest) error {
	if req.Dir != "" { // it is somewhere else, and nothing is on top
		return nil
	}
	for _, name := range []string{"image", "upper", "work", "rootfs", "bundle"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			return fmt.Errorf("make root of container: %w", err)
		}
	}
	return nil
}

// finishMount mounts what m describes; after an error nothing is left of it.
func (d *Daemon) finishMount(ctx context.Context, t *task, m *mounted) error {
	img := m.img
	if err := d.mountLayers(ctx, t, m); err != nil {
		return errors.Join(err, d.takeDown(context.WithoutCancel(ctx), m))
	}
	close(m.attached)
	m.Committed = t.phases
	m.Finished = true
	m.Fallbacks = d.explain(t, m)
	if err := errors.Join(img.waitKept(), d.keepIndex(m), m.save()); err != nil {
		return errors.Join(err, d.takeDown(context.WithoutCancel(ctx), m))
	}
	d.counts.mounted(m)
	d.adopt(m)
	if d.spans != nil {
		d.wg.Go(func() { d.followStart(m) })
	}
	if d.web != nil {
		d.wg.Go(func() { d.web.follow(m) })
	}
	if m.Snapshot {
		return nil // the image is remembered already, and its fallbacks are told once
	}
	for _, e := range m.Fallbacks {
		d.fallbacks.Add(e)
	}
	d.wg.Go(func() {
		if err := d.rememberImage(img, false); err != nil {
			d.log.Error("remember image", "image", img.ref, "err", err)
		}
	})
	return nil
}

// backgroundRate is a mount's wish, or that the daemon has none.
func (d *Daemon) backgroundRate(wanted int64) int64 {
	if wanted == 0 && d.cfg.Background < 0 {
		return d.cfg.Background
	}
	return wanted
}

// adopt serves a mount from now on.
func (d *Daemon) adopt(m *mounted) {
	ctx, cancel := context.WithCancel(d.ctx)
	m.cancel = cancel
	d.mu.Lock()
	m.img.erofs = metadataName(m.img)
	d.mounts[m.ID] = m
	d.mu.Unlock()
	d.wg.Go(func() { d.followCompletion(ctx, m) })
	if m.startSet != nil {
		d.wg.Go(func() { d.silence(ctx, m) })
	}
	if rec := m.recording.Load(); rec != nil {
		d.wg.Go(func() { d.followRecording(ctx, m, rec) })
	}
	if m.Pid != 0 {
		d.wg.Go(func() { d.followProcess(ctx, m) })
	}
}

// save writes the record, not durably: after a power failure nothing is mounted,
// and a torn record is cleaned up by its directory.
func (m *mounted) save() error { return replaceJSON(m.path("mount.json"), m.record, false) }

// mountLayers takes the image's layers into use, mounts them and, for a
// container, puts a writable layer on top.
func (d *Daemon) mountLayers(ctx context.Context, t *task, m *mounted) error {
	metadata := d.makeMetadata(m)
	use := func() error { return d.useLayers(ctx, m) }
	if m.Mode == api.ModeEager {
		err := t.phase("pull", func() (string, error) {
			if err := use(); err != nil {
				return "", err
			}
			return "", d.waitLayers(ctx, t, m.layers)
		})
		if err != nil {
			return err
		}
		use = func() error { return nil }
	}
	return t.phase("mount", func() (string, error) {
		if err := use(); err != nil {
			return "", err
		}
		d.startRecording(m)
		path, err := metadata()
		if err != nil {
			return "", err
		}
		err = d.mountErofs(ctx, m, path)
		if m.startSet != nil {
			err = errors.Join(err, os.Remove(path)) // the kernel has it open
		}
		if err != nil {
			return "", err
		}
		if !m.Writable {
			return m.Mode, nil
		}
		return m.Mode, d.mountOverlay(m)
	})
}

// makeMetadata starts to make the EROFS metadata of a mount; the function it
// returns is called when its layers are in use, and waits for the path.
func (d *Daemon) makeMetadata(m *mounted) func() (string, error) {
	type result struct {
		path string // if it is made for all mounts of the image
		raw  []byte
		err  error
	}
	img, done := m.img, make(chan result, 1)
	bundled := img.bundle != nil && m.Mode == api.ModeFanotify
	d.wg.Go(func() {
		var r result
		if bundled && d.maybeNeeded(img) { // its bundle is
			r.raw, r.err = img.head.Erofs()
		} else {
			r.path, r.err = d.metadataPath(img)
		}
		done <- r
	})
	return func() (string, error) {
		r := <-done
		if r.err != nil {
			return "", r.err
		}
		if bundled && m.bundle != nil {
			if r.raw == nil {
				if r.raw, r.err = os.ReadFile(r.path); r.err != nil {
					return "", fmt.Errorf("read EROFS metadata: %w", r.err)
				}
			}
			if path, err := d.startMetadata(m, r.raw); path != "" || err != nil {
				return path, err
			}
		}
		if r.path == "" {
			return d.metadataPath(img)
		}
		return r.path, nil
	}
}

// useLayers writes the mount's record and takes its layers into use.
func (d *Daemon) useLayers(ctx context.Context, m *mounted) error {
	if err := m.save(); err != nil {
		return err
	}
	if err := replaceJSON(m.path("image.json"), m.img.stored(false), false); err != nil {
		return err
	}
	if m.img.bundle != nil && m.Mode != api.ModeEager {
		d.sched.AwaitFeed() // before the layers' background begins
	}
	for i := range m.img.head.Layers {
		l, err := d.use(ctx, m.img, i, nil)
		if err != nil {
			return err
		}
		m.layers = append(m.layers, l)
		m.base += l.hydrate.FetchedBytes()
		if m.Origin != originBuilt { // else they came just now
			m.foundBytes += l.store.HaveBytes()
		}
		if w := l.hydrate.Waits(); w.Count() > 0 {
			if m.before == nil {
				m.before = map[*layer]hydrate.Waits{}
			}
			m.before[l] = w
		}
	}
	d.startBundle(m)
	return nil
}

func (d *Daemon) mountErofs(ctx context.Context, m *mounted, metadata string) error {
	if m.Mode == api.ModeEager {
		var paths []string
		for _, l := range m.layers {
			paths = append(paths, l.store.Path())
		}
		return mount.EROFS(metadata, paths, m.ImageDir)
	}
	layers := specLayers(m.layers)
	for i := range layers {
		// A recording wants to see all reads.
		layers[i].Complete = layers[i].Complete && !m.recorded()
	}
	if err := d.mounter.Mount(ctx, mount.Spec{Dir: m.ImageDir, Metadata: metadata, Layers: layers, Twice: m.startSet != nil}); err != nil {
		return err
	}
	d.unwatchComplete(m) // what was completed before its mark was there
	return nil
}

func specLayers(layers []*layer) []mount.Layer {
	specs := make([]mount.Layer, len(layers))
	for i, l := range layers {
		specs[i] = mount.Layer{Blob: l.blob, Path: l.store.Path(), File: l.store.File(),
			SizeBytes: l.store.Meta().TarBytes, Complete: l.store.Complete()}
	}
	return specs
}

func (d *Daemon) mountOverlay(m *mounted) error {
	return mount.Overlay(mount.OverlaySpec{Lower: []string{m.ImageDir}, Upper: m.path("upper"), Work: m.path("work"), Dir: m.path("rootfs"),
		Volatile: true}) // it is thrown away with the container
}

func (m *mounted) path(name string) string { return filepath.Join(m.dir, name) }

// waitLayers waits until all layers are complete.
func (d *Daemon) waitLayers(ctx context.Context, t *task, layers []*layer) error {
	for _, l := range layers {
		l.hydrate.Hurry()
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for _, l := range layers {
		for done := false; !done; {
			select {
			case <-l.hydrate.Done():
				done = true
			case <-tick.C:
				t.event(api.Event{Progress: layersProgress(layers)})
				if err := l.hydrate.Err(); err != nil {
					return err
				}
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if err := l.failure(); err != nil {
			return err
		}
	}
	return nil
}

func layersProgress(layers []*layer) *api.Progress {
	p := &api.Progress{Step: "hydrate"}
	for _, l := range layers {
		p.Done += l.store.HaveBytes()
		p.Total += l.store.Meta().TarBytes
	}
	return p
}

// followCompletion waits until all of a mount's layers are here and proven,
// and then holds an index that somebody else made against them.
func (d *Daemon) followCompletion(ctx context.Context, m *mounted) {
	for _, l := range m.layers {
		select {
		case <-l.hydrate.Done():
		case <-ctx.Done():
			return
		}
	}
	var err error
	for _, l := range m.layers {
		err = errors.Join(err, l.failure())
	}
	_, lie := m.bundle.status()
	if m.Origin != originLocal && m.Origin != originBuilt {
		err = d.checkIndex(ctx, m, err)
	}
	if ctx.Err() != nil {
		return
	}
	err = errors.Join(err, lie)
	m.mu.Lock()
	m.complete, m.err, m.doneAt = err == nil, err, time.Now()
	completion := m.completion()
	if err == nil {
		d.countHydration(m, completion.End.Sub(completion.Start))
	}
	m.mu.Unlock()
	if err == nil {
		d.counts.phase(completion.Name, completion.End.Sub(completion.Start))
	}
	close(m.completed)
	if err != nil {
		d.counts.fail(failIncomplete)
		d.log.Error("image cannot be completed", "mount", m.ID, "image", m.img.ref, "err", err)
		return
	}
	d.log.Info("image is complete", "mount", m.ID, "image", m.img.ref)
	if d.content != nil && m.Namespace != "" {
		d.fillContent(ctx, m)
	}
}

// followProcess ends a container's mount when the process it belongs to is
// gone without having done so.
func (d *Daemon) followProcess(ctx context.Context, m *mounted) {
	if err := waitProcess(ctx, m.Pid, m.PidStart); err != nil {
		return // the daemon stops, or the mount is gone
	}
	d.log.Warn("thaw run is gone, cleaning up after it", "mount", m.ID, "pid", m.Pid)
	if err := d.unmount(context.WithoutCancel(ctx), m); err != nil {
		d.log.Error("clean up after thaw run", "mount", m.ID, "err", err)
	}
}

// find returns a mount by its id or directory.
func (d *Daemon) find(name string) *mounted {
	d.mu.Lock()
	defer d.mu.Unlock()
	if m := d.mounts[name]; m != nil {
		return m
	}
	dir := name
	if real, err := filepath.EvalSymlinks(name); err == nil {
		dir = real
	}
	for _, m := range d.mounts {
		if m.ImageDir == dir {
			return m
		}
	}
	return nil
}

// reserve returns the directory without symbolic links, and keeps others from
// mounting there. What is mounted there already is not hidden: when the mount
// failed it would be taken away.
func (d *Daemon) reserve(dir string) (string, error) {
	if !filepath.IsAbs(dir) { // whose working directory?
		return "", api.Errorf(api.CodeInvalid, "name it from the root", "mount on %s: it is not an absolute path", dir)
	}
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return "", api.Errorf(api.CodeInvalid, "make the directory first", "mount on %s: %v", dir, err)
	}
	if within(d.cfg.Root, real) || within(real, d.cfg.Root) {
		return "", api.Errorf(api.CodeInvalid, "choose another directory", "mount on %s: it would hide the state directory %s, or lie in it", dir, d.cfg.Root)
	}
	if info, err := os.Stat(real); err != nil || !info.IsDir() {
		return "", api.Errorf(api.CodeInvalid, "", "mount on %s: it is not a directory", dir)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	there, err := mount.ListUnder(real)
	if err != nil {
		return "", err
	}
	if d.reserved[real] || slices.ContainsFunc(there, func(i mount.Info) bool { return i.Dir == real }) {
		return "", api.Errorf(api.CodeInUse, "unmount it first, or choose another directory", "mount on %s: something is mounted there already", dir)
	}
	d.reserved[real] = true
	return real, nil
}

// within reports whether path is dir or below it.
func within(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && filepath.IsLocal(rel)
}

func (d *Daemon) unreserve(dir string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.reserved, dir)
}

// unmount takes a mount away, once.
func (d *Daemon) unmount(ctx context.Context, m *mounted) error {
	m.mu.Lock()
	if m.unmounting {
		m.mu.Unlock()
		select {
		case <-m.gone:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	m.unmounting = true
	m.mu.Unlock()
	m.cancel()
	ended := d.describe(m, false)
	ended.Ended = time.Now()
	m.mu.Lock()
	m.ended = ended
	d.countEnd(m)
	m.mu.Unlock()
	err := d.takeDown(ctx, m)
	d.ended.Add(*ended)
	d.mu.Lock()
	delete(d.mounts, m.ID)
	d.lastBusy = time.Now()
	removed := d.removed[m.Manifest]
	d.mu.Unlock()
	if removed {
		err = errors.Join(err, d.dropIndex(m.Manifest))
	}
	close(m.gone)
	return err
}

// takeDown undoes all that mount did, in reverse, going on after errors.
func (d *Daemon) takeDown(ctx context.Context, m *mounted) error {
	if m.BootID != "" && m.BootID != bootID() {
		return m.forget() // what is mounted there now is somebody else's
	}
	d.keepTrace(d.forgetReader(m))
	errs := []error{d.stopContainer(ctx, m.record, m.dir)}
	if m.Writable {
		_, err := mount.Unmount(ctx, m.path("rootfs"))
		errs = append(errs, err)
	}
	if d.mounter != nil {
		errs = append(errs, d.mounter.Unmount(ctx, m.ImageDir))
	} else {
		_, err := mount.UnmountEROFS(ctx, m.ImageDir)
		errs = append(errs, err)
	}
	d.leaveBundle(m.bundle)
	for _, l := range m.layers {
		d.drop(l)
	}
	if err := errors.Join(errs...); err != nil {
		d.counts.fail(failUnmount)
		return fmt.Errorf("unmount %s: %w", m.ID, err)
	}
	return m.forget()
}

// runtimePatience is how long a runtime may go on when its thaw run was killed.
const runtimePatience = 5 * time.Second

// forget removes a mount's record and the files of its container.
func (m *mounted) forget() error {
	// The runtime that a killed thaw run had started makes its directories yet.
	for deadline := time.Now().Add(runtimePatience); ; time.Sleep(10 * time.Millisecond) {
		err := os.RemoveAll(m.dir)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.ENOTEMPTY) || time.Now().After(deadline) {
			return fmt.Errorf("remove %s: %w", m.dir, err)
		}
	}
}

// stopContainer kills the container of a mount, if it has one.
func (d *Daemon) stopContainer(ctx context.Context, r record, dir string) error {
	if !r.Writable || r.Request.Runtime == "" {
		return nil
	}
	if err := container.Cleanup(ctx, r.Request.Runtime, r.ID, filepath.Join(dir, "bundle")); err != nil {
		return fmt.Errorf("stop container %s: %w", r.ID, err)
	}
	return nil
}
