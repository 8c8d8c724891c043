package daemon

import (
	"net/http"
	"slices"
	"strings"

	digest "github.com/opencontainers/go-digest"

	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/fallback"
	"github.com/thaw-project/thaw/internal/oci"
)

const (
	// endedKept is how many mounts that ended are remembered.
	endedKept = 256
	// maxWhy bounds the mounts that are told of one name.
	maxWhy = 8
)

// serveWhy tells of an image, or of a mount by its id or directory.
func (d *Daemon) serveWhy(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimSpace(r.URL.Query().Get("name"))
	why := d.why(name)
	if len(why.Mounts) == 0 && len(why.Fallbacks) == 0 {
		writeError(w, api.Errorf(api.CodeNotFound, "name an image as it was started, or a mount that thaw daemon status lists", "nothing is known of %q: it was not started here of late", name))
		return
	}
	answer(w, why, nil)
}

func (d *Daemon) why(name string) *api.Why {
	why := &api.Why{Name: name, Mounts: []api.Mount{}}
	if m := d.find(name); m != nil {
		why.Mounts = append(why.Mounts, *d.describe(m, false))
	} else {
		why.Mounts = append(why.Mounts, d.ended.List(func(m api.Mount) bool { return m.ID == name })...)
	}
	images := map[string]digest.Digest{}
	for _, m := range why.Mounts {
		images[m.Image] = m.Manifest
	}
	if len(why.Mounts) == 0 {
		for _, m := range slices.Backward(d.allMounts()) {
			if names(name, m.Request.Image, m.Manifest) {
				why.Mounts = append(why.Mounts, *d.describe(m, false))
			}
		}
		why.Mounts = append(why.Mounts, d.ended.List(func(m api.Mount) bool { return names(name, m.Image, m.Manifest) })...)
		images[name] = ""
	}
	why.Mounts = why.Mounts[:min(len(why.Mounts), maxWhy)]
	var events []fallback.Event
	for _, e := range d.fallbacks.List() {
		for image, manifest := range images {
			if names(image, e.Image, e.Manifest) && (manifest == "" || e.Manifest == "" || manifest == e.Manifest) {
				events = append(events, e)
				break
			}
		}
	}
	why.Fallbacks = describeFallbacks(events)
	return why
}

// names reports whether a user's words name an image that was called ref then, and is
// the one with that manifest. What is called by its digest needs no tag.
func names(words, ref string, manifest digest.Digest) bool {
	if words == ref || manifest != "" && words == manifest.String() {
		return true
	}
	a, err := oci.ParseReference(words)
	if err != nil {
		return false
	}
	b, err := oci.ParseReference(ref)
	if err != nil || a.Registry != b.Registry || a.Repository != b.Repository || a.LayoutDir != b.LayoutDir {
		return false
	}
	if a.Digest != "" {
		return a.Digest == b.Digest || a.Digest == manifest
	}
	return a.Tag == b.Tag
}
