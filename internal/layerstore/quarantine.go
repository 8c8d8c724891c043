package layerstore

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
)

const (
	reasonVersion  = 1
	maxReasonBytes = 64 << 10
)

type quarantineKey struct{ blob, table digest.Digest }

// reasonFile is reason.json: what is left of a layer whose span table lied.
type reasonFile struct {
	Version int           `json:"version"`
	Blob    digest.Digest `json:"blob"`
	Table   digest.Digest `json:"table"` // Meta.TableDigest
	DiffID  digest.Digest `json:"diffID"`
	Reason  string        `json:"reason"`
	Time    time.Time     `json:"time"`
}

func decodeReason(b []byte) (reasonFile, error) {
	var r reasonFile
	if err := json.Unmarshal(b, &r); err != nil {
		return r, &CorruptError{Reason: err.Error()}
	}
	if r.Version != reasonVersion {
		return r, &CorruptError{Reason: fmt.Sprintf("version %d is not known", r.Version)}
	}
	for _, d := range []digest.Digest{r.Blob, r.Table, r.DiffID} {
		if err := checkDigest(d); err != nil {
			return r, &CorruptError{Reason: err.Error()}
		}
	}
	return r, nil
}

func (r *reasonFile) info() Info {
	return Info{Blob: r.Blob, DiffID: r.DiffID, Table: r.Table, Quarantined: r.Reason, LastUse: r.Time}
}

// Quarantined reports whether the span table with that digest (Meta.TableDigest)
// has lied about the blob. Another index of it, or an Ingest, is not affected.
func (s *Store) Quarantined(blob, table digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.quarantined[quarantineKey{blob, table}]
	return ok
}

// refused returns the *QuarantinedError of a span table, if there is one.
func (s *Store) refused(m *Meta) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.quarantined) == 0 {
		return nil
	}
	table := m.TableDigest()
	if info, ok := s.quarantined[quarantineKey{m.Blob, table}]; ok {
		return &QuarantinedError{Layer: m.Blob, Table: table, Reason: info.Quarantined}
	}
	return nil
}

// quarantine takes a layer out of the store for good, also from under its users.
func (s *Store) quarantine(l *Layer, reason error) error {
	e := l.entry
	e.gate <- struct{}{}
	defer e.unlock()
	if l.closed.Load() { // the directory is no longer ours
		return ErrClosed
	}
	return s.quarantineLocked(l, reason)
}

// quarantineLocked is quarantine with the entry's gate held. Should the disk not
// take the reason, the layer is out all the same until the next Open, when the
// next Finish will find the same.
func (s *Store) quarantineLocked(l *Layer, reason error) error {
	l.syncMu.Lock() // a save under way must not write a have file into a successor's directory
	defer l.syncMu.Unlock()
	l.putMu.Lock()
	was := l.gone.Swap(true)
	l.putMu.Unlock()
	if was {
		return nil
	}
	l.DropPieces()
	l.forget(func(int) bool { return true })
	r := reasonFile{
		Version: reasonVersion, Blob: l.meta.Blob, Table: l.meta.TableDigest(), DiffID: l.meta.DiffID,
		Reason: reason.Error(), Time: time.Now().UTC().Truncate(time.Second),
	}
	s.mu.Lock()
	s.quarantined[quarantineKey{r.Blob, r.Table}] = r.info()
	s.mu.Unlock()
	l.entry.layer.CompareAndSwap(l, nil)
	s.log.Error("layer quarantined", "layer", r.Blob, "table", r.Table, "reason", r.Reason)

	dir := s.layerDir(r.Blob)
	b, err := json.Marshal(r)
	if err == nil {
		err = writeFile(filepath.Join(dir, reasonName), b, true)
	}
	if err == nil {
		err = s.buryDir(dir, &r)
	}
	if err != nil {
		// At least its data must not be in the way of a better index.
		return errors.Join(fmt.Errorf("quarantine layer %s: %w", r.Blob, err), s.trash(dir))
	}
	return nil
}

// buryDir moves a layer directory that has its reason to the quarantine and
// removes all but the reason. A tar that is still mounted lives on unnamed.
func (s *Store) buryDir(dir string, r *reasonFile) error {
	grave := s.path(quarantineDir, dirName(r.Blob)+"-"+r.Table.Encoded()[:16])
	if exists(grave) {
		if err := s.trash(grave); err != nil {
			return err
		}
	}
	if err := os.Rename(dir, grave); err != nil {
		return err
	}
	return errors.Join(fsyncPath(s.path(layersDir)), fsyncPath(s.path(quarantineDir)), emptyGrave(grave))
}

func emptyGrave(grave string) error {
	var errs []error
	for _, name := range []string{haveName, tarName, metaName} {
		if err := os.Remove(filepath.Join(grave, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// loadQuarantine reads the reasons, and ends the quarantines that a crash cut short.
func (s *Store) loadQuarantine() error {
	blobs, err := s.blobs()
	if err != nil {
		return err
	}
	for _, blob := range blobs {
		dir := s.layerDir(blob)
		if !exists(filepath.Join(dir, reasonName)) {
			continue
		}
		if r, err := readReason(dir); err != nil || r.Blob != blob {
			s.log.Warn("quarantine reason is damaged: layer removed", "layer", blob, "err", err)
			err = s.trash(dir)
			if err != nil {
				return err
			}
		} else if err := s.buryDir(dir, &r); err != nil {
			return err
		}
	}
	graves, err := os.ReadDir(s.path(quarantineDir))
	if err != nil {
		return err
	}
	for _, g := range graves {
		grave := s.path(quarantineDir, g.Name())
		r, err := readReason(grave)
		if err != nil {
			s.log.Warn("quarantine reason is damaged", "path", grave, "err", err)
			continue
		}
		if err := emptyGrave(grave); err != nil {
			return err
		}
		s.quarantined[quarantineKey{r.Blob, r.Table}] = r.info()
	}
	return nil
}

func readReason(dir string) (reasonFile, error) {
	path := filepath.Join(dir, reasonName)
	b, err := readFile(path, maxReasonBytes)
	if err != nil {
		return reasonFile{}, err
	}
	r, err := decodeReason(b)
	return r, at(path, err)
}

func sortedKeys(m map[quarantineKey]Info) []quarantineKey {
	return slices.SortedFunc(maps.Keys(m), func(a, b quarantineKey) int {
		return cmp.Or(cmp.Compare(a.blob, b.blob), cmp.Compare(a.table, b.table))
	})
}
