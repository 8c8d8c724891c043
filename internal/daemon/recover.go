package daemon

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	digest "github.com/opencontainers/go-digest"

	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/layerstore"
	"github.com/thaw-project/thaw/internal/mount"
	"github.com/thaw-project/thaw/internal/mount/fanotify"
	"github.com/thaw-project/thaw/internal/mount/fuse"
	"github.com/thaw-project/thaw/internal/mount/keeper"
	"github.com/thaw-project/thaw/internal/oci"
)

// startMounter chooses the mount path, takes over what an earlier daemon left
// mounted, and cleans up after what cannot be taken over.
func (d *Daemon) startMounter() error {
	records, err := d.readRecords()
	if err != nil {
		return err
	}
	// Lazy mounts that an earlier daemon left are served whatever is chosen for
	// new ones, and prove that their way works.
	left := leftBehind(records)
	if err := d.chooseMode(left); err != nil {
		return err
	}
	path := cmp.Or(left, d.mode)
	if path == api.ModeEager {
		return d.recoverMounts(records, path, nil)
	}
	opts := keeper.ClientOptions{Socket: d.keeperSocket(), Command: d.cfg.Keeper, LogPath: filepath.Join(d.cfg.Root, keeperLogName),
		Stored: d.cfg.Stored, Log: d.log}
	if d.cfg.Manager != nil {
		opts.Store = d.cfg.Manager
	}
	if d.keeper, err = keeper.Connect(d.ctx, opts); err != nil {
		return fmt.Errorf("connect to keeper: %w", err)
	}
	if path == api.ModeFUSE && d.keeper.Inherited() {
		// Its mounts may be gone, but what detached from them may still read.
		path = api.ModeFanotify
		if d.mode == api.ModeFUSE {
			d.mode, d.modeReason = path, "layers of an earlier daemon are still watched by fanotify"
		}
	}
	if path == api.ModeFanotify {
		fuse.DropHeld(d.keeper)
	}
	return d.recoverMounts(records, path, d.keeper)
}

// leftBehind returns the mount path of the lazy mounts that an earlier daemon
// left, or "". There is one at most: a daemon has one lazy path.
func leftBehind(records []*mounted) string {
	for _, mode := range []string{api.ModeFanotify, api.ModeFUSE} {
		if slices.ContainsFunc(records, func(m *mounted) bool { return m.Finished && m.Mode == mode && m.BootID == bootID() }) {
			return mode
		}
	}
	return ""
}

// chooseMode decides on the mount path of new mounts. left is that of mounts that
// an earlier daemon left: a daemon has one lazy path, so it keeps to it.
func (d *Daemon) chooseMode(left string) error {
	wanted := cmp.Or(d.cfg.Mode, api.ModeAuto)
	switch {
	case wanted == api.ModeEager:
		d.mode, d.modeReason = wanted, "the daemon was started with --mount=eager"
		return nil
	case left != "":
		d.mode = left
		d.modeReason = d.whyLeft(wanted)
		return nil
	case wanted == api.ModeFUSE:
		d.mode, d.modeReason = wanted, "the daemon was started with --mount=fuse"
		if err := fuse.Probe(d.ctx, d.cfg.Root); err != nil {
			return fmt.Errorf("mount path fuse: %w", err)
		}
		return nil
	}
	err := fanotify.Probe(d.ctx, d.cfg.Root)
	if err == nil {
		d.mode = api.ModeFanotify
		return nil
	}
	if wanted == api.ModeFanotify {
		return fmt.Errorf("mount path fanotify: %w", err)
	}
	d.mode, d.modeReason = api.ModeFUSE, "fanotify: "+err.Error()
	if err := fuse.Probe(d.ctx, d.cfg.Root); err != nil {
		d.mode, d.modeReason = api.ModeEager, d.modeReason+"; fuse: "+err.Error()
		d.log.Warn("lazy mounts are not possible here: every image is pulled whole before it starts", "reason", d.modeReason)
		return nil
	}
	d.log.Warn("lazy mounts go through FUSE: fanotify is not possible here", "reason", d.modeReason)
	return nil
}

// whyLeft says why new mounts go the way of those that an earlier daemon left.
func (d *Daemon) whyLeft(wanted string) string {
	if wanted == api.ModeAuto && d.mode == api.ModeFUSE {
		if err := fanotify.Probe(d.ctx, d.cfg.Root); err != nil {
			return "fanotify: " + err.Error()
		}
	}
	switch {
	case wanted == api.ModeFUSE && d.mode == wanted:
		return "the daemon was started with --mount=fuse"
	case d.mode == api.ModeFanotify && wanted != api.ModeFUSE:
		return ""
	}
	return "mounts that an earlier daemon made are still there"
}

// KeeperSocketName is the keeper's socket in the state directory.
const KeeperSocketName = "keeper.sock"

// keeperLogName is where the keeper logs, in the state directory.
const keeperLogName = "keeper.log"

func (d *Daemon) keeperSocket() string { return filepath.Join(d.cfg.Root, KeeperSocketName) }

func (d *Daemon) readRecords() ([]*mounted, error) {
	entries, err := os.ReadDir(d.mountsDir())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	var all []*mounted
	for _, e := range entries {
		m := newMounted(filepath.Join(d.mountsDir(), e.Name()))
		close(m.attached)
		b, err := os.ReadFile(filepath.Join(m.dir, "mount.json"))
		if err == nil {
			err = json.Unmarshal(b, &m.record)
		}
		if err != nil || m.ID != e.Name() {
			// The daemon died before it had mounted anything.
			m.record = record{ID: e.Name(), ImageDir: filepath.Join(m.dir, "image"), Writable: true}
		}
		all = append(all, m)
	}
	return all, nil
}

// recoverMounts takes over what is still mounted. Layers come first: their
// readers are waiting for the answers that start with the mounter.
func (d *Daemon) recoverMounts(records []*mounted, path string, k *keeper.Client) error {
	held := map[digest.Digest]*os.File{}
	if k != nil {
		var err error
		if held, err = k.Layers(); err != nil {
			return fmt.Errorf("take layers over from keeper: %w", err)
		}
	}
	var alive, dead []*mounted
	for _, m := range records {
		err := d.reload(m, held)
		if err == nil {
			alive = append(alive, m)
			continue
		}
		d.log.Warn("mount cannot be taken over and is cleaned up", "mount", m.ID, "image", m.Request.Image, "reason", err)
		dead = append(dead, m)
	}
	for _, f := range held { // of no mount that is alive
		f.Close()
	}
	if k != nil {
		if err := d.makeMounter(path, k, alive); err != nil {
			return err
		}
	}
	for _, m := range alive {
		if err := d.takeOver(m, path); err != nil {
			d.log.Error("mount cannot be taken over and is taken away", "mount", m.ID, "err", err)
			dead = append(dead, m)
			continue
		}
		m.Request.Record = nil // its begin was not seen
		d.startRecording(m)
		d.unwatchComplete(m)
		d.startBundle(m)
		d.adopt(m)
		d.log.Info("took mount over", "mount", m.ID, "image", m.Request.Image)
	}
	for _, m := range dead {
		if err := d.takeDown(d.ctx, m); err != nil {
			d.log.Error("clean up mount", "mount", m.ID, "err", err)
		}
	}
	return nil
}

// makeMounter starts to answer the readers of what is mounted.
func (d *Daemon) makeMounter(path string, k *keeper.Client, alive []*mounted) error {
	if path == api.ModeFUSE {
		opts := fuse.Options{Handler: &d.layers, Seen: d.recorder.seen, Keeper: k, Log: d.log}
		for _, m := range alive {
			if m.Mode == path {
				opts.Layers = append(opts.Layers, specLayers(m.layers)...)
			}
		}
		mounter, err := fuse.New(d.ctx, opts)
		if err != nil {
			return fmt.Errorf("serve layers: %w", err)
		}
		d.setMounter(mounter)
		return nil
	}
	mounter, err := fanotify.New(d.ctx, fanotify.Options{Handler: &d.layers, Seen: d.recorder.seen, Keeper: k, Log: d.log})
	if err != nil {
		return fmt.Errorf("watch layers: %w", err)
	}
	d.fanotify.Store(mounter)
	d.setMounter(mounter)
	return nil
}

// setMounter is seen by layers in use that are just found to be complete.
func (d *Daemon) setMounter(m lazyMounter) {
	d.recorder.marks.Lock()
	defer d.recorder.marks.Unlock()
	d.mounter = m
}

var errNotMounted = errors.New("it is not mounted any more")

// reload makes a mount of its record, with its layers in use. It takes the
// descriptors that it needs out of held.
func (d *Daemon) reload(m *mounted, held map[digest.Digest]*os.File) error {
	if !m.Finished {
		return errors.New("it was never finished")
	}
	if m.BootID != bootID() {
		return errNotMounted
	}
	if m.Pid != 0 && pidStart(m.Pid) != m.PidStart {
		return errors.New("its thaw run is gone")
	}
	mounts, err := mount.ListUnder(m.ImageDir)
	if err != nil {
		return err
	}
	if len(mounts) == 0 || mounts[0].Dir != m.ImageDir || mounts[0].Type != "erofs" {
		return errNotMounted
	}
	ref, err := oci.ParseReference(m.Request.Image)
	if err != nil {
		return err
	}
	repo, err := d.repository(ref, m.Request.ImageRequest)
	if err != nil {
		return err
	}
	img := &image{ref: ref, repo: repo, heads: &d.heads, origin: m.Origin, background: d.backgroundRate(m.Request.Background), resolved: make(chan struct{})}
	stored, err := readImage(filepath.Join(m.dir, "image.json"))
	if err != nil {
		return err
	}
	known, err := stored.image(ref)
	if err != nil {
		return err
	}
	img.set(known)
	if err := d.reloadIndex(m, img); err != nil {
		return err
	}
	if img, err = d.reloadPart(m, img); err != nil {
		return err
	}
	m.img = img
	for i := range img.head.Layers {
		blob := img.head.Layers[i].Blob
		l, err := d.use(d.ctx, img, i, held[blob])
		if err != nil {
			return err
		}
		if held[blob] != nil && l.users > 1 {
			held[blob].Close()
		}
		delete(held, blob) // the layer has it
		m.layers = append(m.layers, l)
	}
	return nil
}

// takeOver tells the mounter of a mount.
func (d *Daemon) takeOver(m *mounted, path string) error {
	if m.Mode == api.ModeEager {
		return nil
	}
	if m.Mode != path {
		return fmt.Errorf("this daemon's mount path is %s", path)
	}
	return d.mounter.Adopt(mount.Spec{Dir: m.ImageDir, Layers: specLayers(m.layers)})
}

// modeFor decides how a mount is made.
func (d *Daemon) modeFor(wanted string) (string, error) {
	switch wanted {
	case "", api.ModeAuto:
		return d.mode, nil
	case api.ModeEager:
		return api.ModeEager, nil
	case api.ModeFanotify, api.ModeFUSE:
		if d.mode == wanted {
			return wanted, nil
		}
		reason := cmp.Or(d.modeReason, "it is better")
		return "", api.Errorf(api.CodeUnsupported, "see thaw doctor; thaw daemon stop, then thaw daemon --mount="+wanted+" asks for it",
			"the daemon's mount path is %s, not %s: %s", d.mode, wanted, reason)
	}
	return "", api.Errorf(api.CodeInvalid, "use auto, fanotify, fuse or eager", "unknown mount path %q", wanted)
}

// checkIndex compares an index that was fetched with what the layers, now
// complete, hold; err is why they are not. An index that lied is quarantined.
func (d *Daemon) checkIndex(ctx context.Context, m *mounted, err error) error {
	var diffID *layerstore.DiffIDError
	if err != nil && !errors.As(err, &diffID) {
		return err
	}
	if err == nil {
		err = d.compareIndex(ctx, m)
	}
	if err == nil || ctx.Err() != nil {
		return nil
	}
	var errno syscall.Errno // the disk's fault says nothing of the index
	if errors.As(err, &errno) {
		return err
	}
	if qerr := d.quarantine(m.img, err); qerr != nil {
		err = errors.Join(err, qerr)
	}
	return fmt.Errorf("index %s of %s is quarantined: %w", m.img.index, m.img.ref, err)
}
