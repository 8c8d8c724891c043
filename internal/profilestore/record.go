package profilestore

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	bolt "go.etcd.io/bbolt"

	"github.com/thaw-project/thaw/internal/profile"
)

// Head is what is known of a record without reading it.
type Head struct {
	ID       string            `json:"id"`
	Name     string            `json:"name,omitempty"`
	Source   string            `json:"source"`
	Begun    time.Time         `json:"begun"`
	Ended    time.Time         `json:"ended,omitzero"`
	Labels   map[string]string `json:"labels,omitempty"`
	Pinned   bool              `json:"pinned"`
	Bytes    int64             `json:"bytes"` // as it is stored
	Subjects []SubjectHead     `json:"subjects"`
	// Error is why the head itself could not be read. The record may be fine.
	Error string `json:"error,omitempty"`
}

// SubjectHead is a subject of a record.
type SubjectHead struct {
	Name   string   `json:"name"`
	Image  string   `json:"image"`
	Mode   string   `json:"mode,omitempty"`
	Cold   string   `json:"cold,omitempty"`
	Runs   int      `json:"runs"`
	Failed int      `json:"failed"`
	P50Ms  *float64 `json:"p50_ms"` // from requested to ready
	P95Ms  *float64 `json:"p95_ms"`
}

// Automatic reports whether a record was made unasked.
func (h *Head) Automatic() bool { return h.Source == profile.SourceDaemon }

func headOf(r *profile.Record) Head {
	h := Head{ID: r.ID, Name: r.Name, Source: r.Source, Begun: r.Begun, Ended: r.Ended, Labels: r.Labels, Subjects: []SubjectHead{}}
	for i := range r.Subjects {
		s := &r.Subjects[i]
		sh := SubjectHead{Name: s.Name, Image: s.Image, Mode: s.Mode, Cold: s.Cold, Runs: len(s.Runs)}
		for j := range s.Runs {
			if !s.Runs[j].Good() {
				sh.Failed++
			}
		}
		if total, _ := s.Series(profile.MeasureTotal); len(total.Values) > 0 {
			p50, p95 := profile.Percentile(total.Values, 0.5), profile.Percentile(total.Values, 0.95)
			sh.P50Ms, sh.P95Ms = &p50, &p95
		}
		h.Subjects = append(h.Subjects, sh)
	}
	return h
}

// Put keeps a record, under its ID; one with the same ID is replaced, and stays pinned if
// it was. If that is too much, the oldest that are not pinned go: their IDs are
// returned. If the file is damaged it is set aside and a new one is begun, which is
// logged as a warning with both names.
func (s *Store) Put(ctx context.Context, r *profile.Record) (evicted []string, err error) {
	b, err := profile.Encode(r)
	if err != nil {
		return nil, err
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, fmt.Errorf("compress record: %w", err)
	}
	b = enc.EncodeAll(b, nil)
	head := headOf(r)
	head.Bytes = int64(len(b))
	if head.Bytes > s.opts.KeepBytes {
		return nil, fmt.Errorf("keep record %s: it has %d bytes, and no more than %d are kept", r.ID, head.Bytes, s.opts.KeepBytes)
	}
	put := func() error {
		return s.update(ctx, func(tx *bolt.Tx) error {
			old, _ := readHead([]byte(r.ID), tx.Bucket(bucketHeads).Get([]byte(r.ID)))
			head.Pinned = old.Pinned
			if err := tx.Bucket(bucketRecords).Put([]byte(r.ID), b); err != nil {
				return err
			}
			if err := putHead(tx, &head); err != nil {
				return err
			}
			evicted, err = s.evict(tx, &head)
			return err
		})
	}
	err = put()
	var damage *DamagedError
	if errors.As(err, &damage) {
		aside, asideErr := s.setAside(damage)
		if asideErr != nil {
			return nil, fmt.Errorf("keep record %s: %w; and it could not be set aside: %w", r.ID, err, asideErr)
		}
		if aside != "" {
			s.opts.Log.Warn("records of starts are damaged: set aside", "path", s.path, "aside", aside, "err", damage.Err)
		}
		err = put()
	}
	if err != nil {
		return nil, fmt.Errorf("keep record %s: %w", r.ID, err)
	}
	return evicted, nil
}

func putHead(tx *bolt.Tx, h *Head) error {
	b, err := json.Marshal(h)
	if err != nil {
		return err
	}
	return tx.Bucket(bucketHeads).Put([]byte(h.ID), b)
}

// readHead decodes a head. What cannot be read has its ID and an error.
func readHead(id, b []byte) (Head, bool) {
	var h Head
	if b == nil {
		return h, false
	}
	if err := json.Unmarshal(b, &h); err != nil || h.ID != string(id) {
		return Head{ID: strings.ToValidUTF8(string(id), "?"), Error: "damaged: " + fmt.Sprint(cmp.Or(err, errors.New("it is another's")))}, true
	}
	return h, true
}

func readHeads(tx *bolt.Tx) []Head {
	var heads []Head
	c := tx.Bucket(bucketHeads).Cursor()
	for id, b := c.First(); id != nil; id, b = c.Next() {
		h, _ := readHead(id, b)
		heads = append(heads, h)
	}
	return heads
}

// evict removes the oldest records of the new one's kind until what is left is no more
// than is kept; the new one stays.
func (s *Store) evict(tx *bolt.Tx, added *Head) (ids []string, err error) {
	count, size := 0, int64(0)
	var kind []Head
	for _, h := range readHeads(tx) {
		if h.Automatic() == added.Automatic() {
			kind = append(kind, h)
			count++
			size += h.Bytes
		}
	}
	for _, h := range kind {
		if count <= s.opts.Keep && size <= s.opts.KeepBytes {
			break
		}
		if h.Pinned || h.ID == added.ID {
			continue
		}
		if err := remove(tx, h.ID); err != nil {
			return nil, err
		}
		ids = append(ids, h.ID)
		count--
		size -= h.Bytes
	}
	return ids, nil
}

func remove(tx *bolt.Tx, id string) error {
	return errors.Join(tx.Bucket(bucketRecords).Delete([]byte(id)), tx.Bucket(bucketHeads).Delete([]byte(id)))
}

// List returns the heads of all records, the newest first.
func (s *Store) List(ctx context.Context) ([]Head, error) {
	var heads []Head
	err := s.view(ctx, func(tx *bolt.Tx) error {
		heads = readHeads(tx)
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.Reverse(heads)
	return heads, nil
}

// Get reads a record. ErrNotFound if there is none with the ID.
func (s *Store) Get(ctx context.Context, id string) (*profile.Record, error) {
	var b []byte
	err := s.view(ctx, func(tx *bolt.Tx) error {
		b = slices.Clone(tx.Bucket(bucketRecords).Get([]byte(id)))
		return nil
	})
	if err != nil {
		return nil, err
	}
	if b == nil {
		return nil, fmt.Errorf("record %q: %w", id, ErrNotFound)
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(2*profile.MaxBytes))
	if err != nil {
		return nil, fmt.Errorf("read record: %w", err)
	}
	defer dec.Close()
	raw, err := dec.DecodeAll(b, nil)
	if err != nil {
		return nil, &DamagedError{Path: s.path, ID: id, Err: err}
	}
	r, err := profile.Decode(raw)
	if err == nil && r.ID != id {
		err = fmt.Errorf("it is record %s", r.ID)
	}
	if err != nil {
		return nil, &DamagedError{Path: s.path, ID: id, Err: err}
	}
	return r, nil
}

// Delete removes records, all or none: ErrNotFound if one is not there.
func (s *Store) Delete(ctx context.Context, ids ...string) error {
	return s.change(ctx, ids, func(tx *bolt.Tx, h *Head) error { return remove(tx, h.ID) })
}

// Pin keeps records from being evicted, or lets them be again.
func (s *Store) Pin(ctx context.Context, pinned bool, ids ...string) error {
	return s.change(ctx, ids, func(tx *bolt.Tx, h *Head) error {
		if h.Error != "" {
			return &DamagedError{Path: s.path, ID: h.ID, Err: errors.New(h.Error)}
		}
		h.Pinned = pinned
		return putHead(tx, h)
	})
}

func (s *Store) change(ctx context.Context, ids []string, f func(tx *bolt.Tx, h *Head) error) error {
	if len(ids) == 0 {
		return nil
	}
	if heads, err := s.List(ctx); err != nil || len(heads) == 0 { // and make no file
		return cmp.Or(err, fmt.Errorf("record %q: %w", ids[0], ErrNotFound))
	}
	return s.update(ctx, func(tx *bolt.Tx) error {
		for _, id := range ids {
			h, ok := readHead([]byte(id), tx.Bucket(bucketHeads).Get([]byte(id)))
			if !ok {
				return fmt.Errorf("record %q: %w", id, ErrNotFound)
			}
			if err := f(tx, &h); err != nil {
				return err
			}
		}
		return nil
	})
}

// Last names the newest record that somebody measured; if there is none, the newest.
const Last = "last"

// AmbiguousError is of the beginning of several IDs.
type AmbiguousError struct {
	Prefix string
	IDs    []string
}

func (e *AmbiguousError) Error() string {
	return fmt.Sprintf("%q begins %d IDs: %s", e.Prefix, len(e.IDs), strings.Join(e.IDs[:min(len(e.IDs), 5)], ", "))
}

// Resolve returns the head of the record that an ID, the beginning of just one, or Last
// names.
func (s *Store) Resolve(ctx context.Context, name string) (Head, error) {
	heads, err := s.List(ctx)
	if err != nil {
		return Head{}, err
	}
	if name == Last {
		for _, h := range heads {
			if !h.Automatic() {
				return h, nil
			}
		}
		if len(heads) > 0 {
			return heads[0], nil
		}
		return Head{}, fmt.Errorf("%w: there are none in %s", ErrNotFound, s.path)
	}
	var found []Head
	for _, h := range heads {
		if h.ID == name {
			return h, nil
		}
		if name != "" && strings.HasPrefix(h.ID, name) {
			found = append(found, h)
		}
	}
	switch len(found) {
	case 0:
		return Head{}, fmt.Errorf("record %q: %w", name, ErrNotFound)
	case 1:
		return found[0], nil
	}
	e := &AmbiguousError{Prefix: name}
	for _, h := range found {
		e.IDs = append(e.IDs, h.ID)
	}
	return Head{}, e
}
