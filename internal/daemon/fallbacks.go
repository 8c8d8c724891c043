package daemon

import (
	"errors"
	"net/http"
	"strings"

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

// tell notes that an image was brought whole.
func (s *imageSnapshots) tell(image snapshotter.Image, img *image, mode string, said []string) {
	e := fallback.Event{Image: image.Ref, Manifest: image.Manifest, Action: fallback.Eager, Detail: strings.Join(said, "; ")}
	switch {
	case s.d.mode == api.ModeEager:
		e.Reason, e.Detail = fallback.Kernel, s.d.modeReason
	case mode == SnapshotEager:
		e.Reason = fallback.Configured
	case img.origin == originBuilt && len(said) > 0:
		e.Reason = fallback.BadIndex
	case img.origin == originBuilt:
		e.Reason = fallback.NoIndex
	default:
		return
	}
	s.d.fallbacks.Add(e)
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
	all := []api.Fallback{}
	for _, e := range d.fallbacks.List() {
		all = append(all, api.Fallback{First: e.Time, Last: e.Last, Count: e.Count, Image: e.Image, Manifest: e.Manifest, ChainID: e.ChainID,
			Action: string(e.Action), Reason: string(e.Reason), Detail: e.Detail, Hint: e.Reason.Hint()})
	}
	answer(w, all, nil)
}
