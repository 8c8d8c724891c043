package daemon

import (
	"errors"
	"net/http"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/fallback"
	"github.com/thaw-project/thaw/internal/index"
	"github.com/thaw-project/thaw/internal/layerstore"
	"github.com/thaw-project/thaw/internal/layertar"
	"github.com/thaw-project/thaw/internal/mount"
	"github.com/thaw-project/thaw/internal/oci"
	"github.com/thaw-project/thaw/internal/registry"
	"github.com/thaw-project/thaw/internal/snapshotter"
)

// declined is an error with its reason.
type declined struct {
	reason fallback.Reason
	err    error
}

func (e *declined) Error() string { return e.err.Error() }
func (e *declined) Unwrap() error { return e.err }

// explain says why a mount is not what it could be: the image was brought whole, or
// the mount path is not the best.
func (d *Daemon) explain(t *task, m *mounted) []fallback.Event {
	var all []fallback.Event
	add := func(action fallback.Action, reason fallback.Reason, details ...string) {
		now := time.Now().UTC().Truncate(time.Millisecond)
		all = append(all, fallback.Event{Time: now, Last: now, Count: 1, Image: m.Request.Image, Manifest: m.Manifest, Action: action, Reason: reason,
			Detail: strings.Join(details, "; ")})
	}
	switch {
	case m.Mode == api.ModeEager && d.mode != api.ModeEager:
		add(fallback.Eager, fallback.Configured, "it was asked for")
	case m.Mode == api.ModeEager && d.cfg.Mode == api.ModeEager:
		add(fallback.Eager, fallback.Configured, d.modeReason)
	case m.Mode == api.ModeEager:
		add(fallback.Eager, fallback.Kernel, d.modeReason)
	case m.Mode == api.ModeFUSE && d.modeReason != "" && d.cfg.Mode != api.ModeFUSE:
		add(fallback.FUSE, fallback.Kernel, d.modeReason)
	}
	if m.Origin != originBuilt || m.Mode == api.ModeEager {
		return all
	}
	reason, details := fallback.NoIndex, []string{}
	for i, l := range t.lacks {
		if i == 0 {
			reason = l.reason
		}
		details = append(details, l.detail)
	}
	add(fallback.Eager, reason, details...)
	return all
}

// tell notes what is told of an image of containerd's once, not with each mount.
func (s *imageSnapshots) tell(image snapshotter.Image, m *mounted) {
	for _, e := range m.Fallbacks {
		e.Image = image.Ref
		s.d.fallbacks.Add(e)
	}
}

// reasonOf says why an image cannot be taken.
func reasonOf(err error) fallback.Reason {
	var e *api.Error
	var unsupported *oci.UnsupportedError
	var merge *index.MergeError
	var entry *layertar.EntryError
	switch {
	case errors.Is(err, registry.ErrUnauthorized):
		return fallback.NoLogin
	case errors.As(err, &unsupported), errors.As(err, &merge), errors.As(err, &entry):
		return fallback.Unsupported
	case errors.Is(err, unix.ENOSPC):
		return fallback.NoSpace
	case errors.As(err, &e) && e.Code == api.CodeLimit:
		return fallback.Limit
	case errors.Is(err, layerstore.ErrQuarantined), errors.Is(err, layerstore.ErrConflict):
		return fallback.BadIndex
	case errors.Is(err, mount.ErrUnsupported):
		return fallback.Kernel
	}
	var failed *registry.Error
	if errors.As(err, &failed) {
		return fallback.Registry
	}
	return fallback.InternalFail
}

// declinedSnapshot is told of each layer that is left to containerd.
func (d *Daemon) declinedSnapshot(image snapshotter.Image, err error) {
	e := fallback.Event{Image: image.Ref, Manifest: image.Manifest, ChainID: image.ChainID, Action: fallback.Plain, Reason: fallback.InternalFail, Detail: err.Error()}
	var why *declined
	switch {
	case errors.Is(err, snapshotter.ErrPlainParent):
		e.Reason = fallback.PlainParent
	case errors.As(err, &why):
		e.Reason = why.reason
	}
	d.fallbacks.Add(e)
}

func (d *Daemon) serveFallbacks(w http.ResponseWriter, _ *http.Request) {
	answer(w, describeFallbacks(d.fallbacks.List()), nil)
}

func describeFallbacks(events []fallback.Event) []api.Fallback {
	all := []api.Fallback{}
	for _, e := range events {
		all = append(all, api.Fallback{First: e.Time, Last: e.Last, Count: e.Count, Image: e.Image, Manifest: e.Manifest, ChainID: e.ChainID,
			Action: string(e.Action), Reason: string(e.Reason), Detail: e.Detail, Hint: e.Reason.Hint()})
	}
	return all
}
