package layerstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
)

const (
	pinsVersion  = 1
	maxPinsBytes = 64 << 20

	// LostPins owns every layer of a store whose pins could not be read.
	LostPins = "lost-pins"
)

// pins are the owners that want layers kept: pins.json.
type pins struct {
	path string

	mu      sync.Mutex // guards what follows and the file
	byOwner map[string][]digest.Digest
}

type pinsFile struct {
	Version int                        `json:"version"`
	Owners  map[string][]digest.Digest `json:"owners"` // sorted
}

func decodePins(b []byte) (map[string][]digest.Digest, error) {
	var f pinsFile
	if err := json.Unmarshal(b, &f); err != nil {
		return nil, &CorruptError{Reason: err.Error()}
	}
	if f.Version != pinsVersion {
		return nil, &CorruptError{Reason: fmt.Sprintf("version %d is not known", f.Version)}
	}
	for _, blobs := range f.Owners {
		for _, d := range blobs {
			if err := checkDigest(d); err != nil {
				return nil, &CorruptError{Reason: err.Error()}
			}
		}
	}
	if f.Owners == nil {
		f.Owners = map[string][]digest.Digest{}
	}
	return f.Owners, nil
}

// loadPins reads the pins. If they are damaged nobody may lose a layer for it:
// then one owner, to be unpinned by hand, gets all that are here.
func loadPins(path string, blobs []digest.Digest, log *slog.Logger) (*pins, error) {
	p := &pins{path: path}
	b, err := readFile(path, maxPinsBytes)
	if errors.Is(err, fs.ErrNotExist) {
		p.byOwner = map[string][]digest.Digest{}
		return p, nil
	}
	if err == nil {
		p.byOwner, err = decodePins(b)
	}
	var corrupt *CorruptError
	if !errors.As(err, &corrupt) {
		return p, err
	}
	log.Error("pins are damaged: all layers are kept until the owner "+LostPins+" is unpinned", "path", path, "err", err)
	if err := os.Rename(path, path+".damaged"); err != nil {
		return nil, err
	}
	p.byOwner = map[string][]digest.Digest{}
	return p, p.change(LostPins, blobs)
}

// change writes the pins with an owner's set exchanged. mu is held, or p is new.
func (p *pins) change(owner string, blobs []digest.Digest) error {
	next := maps.Clone(p.byOwner)
	if next[owner] = blobs; len(blobs) == 0 {
		delete(next, owner)
	}
	b, err := json.Marshal(pinsFile{Version: pinsVersion, Owners: next})
	if err != nil {
		return err
	}
	if err := writeFile(p.path, b, true); err != nil {
		return err
	}
	p.byOwner = next
	return nil
}

func (p *pins) owners(blob digest.Digest) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ownersLocked(blob)
}

func (p *pins) ownersLocked(blob digest.Digest) []string {
	var out []string
	for owner, blobs := range p.byOwner {
		if slices.Contains(blobs, blob) {
			out = append(out, owner)
		}
	}
	slices.Sort(out)
	return out
}

// Pin makes an owner ("mount:ID", "image:sha256:...") keep layers, here or still
// to come, until Unpin. It is durable when it returns.
func (s *Store) Pin(owner string, blobs ...digest.Digest) error {
	return s.pin(owner, blobs, false)
}

// Repin makes an owner keep exactly these layers, in one step: a crash leaves its
// old pins or the new ones. It is durable when it returns.
func (s *Store) Repin(owner string, blobs ...digest.Digest) error {
	return s.pin(owner, blobs, true)
}

func (s *Store) pin(owner string, blobs []digest.Digest, only bool) error {
	if owner == "" {
		return errors.New("pin layers: no owner")
	}
	for _, d := range blobs {
		if err := checkDigest(d); err != nil {
			return fmt.Errorf("pin layers for %s: %w", owner, err)
		}
	}
	s.pins.mu.Lock()
	defer s.pins.mu.Unlock()
	old := s.pins.byOwner[owner]
	if !only {
		blobs = slices.Concat(old, blobs)
	}
	next := slices.Compact(slices.Sorted(slices.Values(blobs)))
	if slices.Equal(old, next) {
		return nil
	}
	if err := s.pins.change(owner, next); err != nil {
		return fmt.Errorf("pin layers for %s: %w", owner, err)
	}
	return nil
}

// Unpin drops all pins of an owner; one without pins is no error.
func (s *Store) Unpin(owner string) error {
	s.pins.mu.Lock()
	defer s.pins.mu.Unlock()
	if _, ok := s.pins.byOwner[owner]; !ok {
		return nil
	}
	if err := s.pins.change(owner, nil); err != nil {
		return fmt.Errorf("unpin layers of %s: %w", owner, err)
	}
	return nil
}

// Owners lists who has pins.
func (s *Store) Owners() []string {
	s.pins.mu.Lock()
	defer s.pins.mu.Unlock()
	return slices.Sorted(maps.Keys(s.pins.byOwner))
}
