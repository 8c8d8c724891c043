package daemon

import (
	"runtime"
	"sync"
	"weak"

	digest "github.com/opencontainers/go-digest"

	"github.com/thaw-project/thaw/internal/index"
)

// heads shares an index' decoded head between all mounts of its image, as long
// as there is one: it holds the metadata of every file. A nil one shares nothing.
type heads struct {
	mu  sync.Mutex // guards all
	all map[digest.Digest]weak.Pointer[index.Image]
}

// decode returns the head that b encodes, which must not be changed.
func (h *heads) decode(b []byte) (*index.Image, error) {
	if h == nil {
		return index.DecodeImage(b)
	}
	key := digest.FromBytes(b)
	h.mu.Lock()
	shared := h.all[key].Value()
	h.mu.Unlock()
	if shared != nil {
		return shared, nil
	}
	m, err := index.DecodeImage(b)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if shared := h.all[key].Value(); shared != nil {
		return shared, nil // another was quicker
	}
	if h.all == nil {
		h.all = map[digest.Digest]weak.Pointer[index.Image]{}
	}
	h.all[key] = weak.Make(m)
	runtime.AddCleanup(m, h.forget, key)
	return m, nil
}

// forget drops the entry of a head that nobody has any more.
func (h *heads) forget(key digest.Digest) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.all[key].Value() == nil {
		delete(h.all, key)
	}
}
