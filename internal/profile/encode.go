package profile

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"time"
)

// MaxBytes is how large the JSON of a record may be.
const MaxBytes = 128 << 20

// NewID makes the ID of a record that begins then: IDs sort by time.
func NewID(begun time.Time) string {
	return fmt.Sprintf("%s-%04x", begun.UTC().Format("20060102-150405"), rand.Uint32N(1<<16))
}

// isID reports whether a text is of the form of IDs.
func isID(s string) bool {
	const form = "00000000-000000-xxxx"
	for i := range len(form) {
		switch {
		case len(s) != len(form), form[i] == '-' && s[i] != '-':
			return false
		case form[i] != '-' && (s[i] < '0' || s[i] > '9') && (form[i] != 'x' || s[i] < 'a' || s[i] > 'f'):
			return false
		}
	}
	return true
}

// ErrTooLarge says that a record has more bytes than [MaxBytes].
var ErrTooLarge = errors.New("it is too large")

// Shrink leaves a record only one run's reads, packages, waits and processes of each
// subject: those of its [Subject.MedianRun].
func (r *Record) Shrink() {
	for i := range r.Subjects {
		s := &r.Subjects[i]
		_, keep := s.MedianRun()
		for j := range s.Runs {
			if run := &s.Runs[j]; j != keep {
				run.Reads, run.Packages, run.Waits, run.Processes = nil, nil, nil, nil
			}
		}
	}
	r.Warnings = append(r.Warnings, "the record was too large: it has reads, packages, waits and processes of one run of each image only")
}

// Encode writes a record as JSON, on one line, after [Record.Check]. Paths and other
// texts that are not UTF-8 lose what is not. One that is larger than MaxBytes is
// ErrTooLarge.
func Encode(r *Record) ([]byte, error) {
	if err := r.Check(); err != nil {
		return nil, fmt.Errorf("encode record %s: %w", r.ID, err)
	}
	// Readers need no case for lists that are null.
	out := *r
	out.Subjects = slices.Clone(r.Subjects)
	for i := range out.Subjects {
		s := &out.Subjects[i]
		s.Runs = append([]Run{}, s.Runs...)
		for j := range s.Runs {
			run := &s.Runs[j]
			if run.Events == nil {
				run.Events = []Event{}
			}
			if run.Phases == nil {
				run.Phases = []Phase{}
			}
		}
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(&out); err != nil {
		return nil, fmt.Errorf("encode record %s: %w", r.ID, err)
	}
	if b.Len() > MaxBytes {
		return nil, fmt.Errorf("encode record %s: it has %d bytes, more than %d: %w", r.ID, b.Len(), MaxBytes, ErrTooLarge)
	}
	if n := items(b.Bytes()); n > maxAll {
		return nil, fmt.Errorf("encode record %s: its lists have %d items, more than %d: %w", r.ID, n, maxAll, ErrTooLarge)
	}
	return b.Bytes(), nil
}

// items is how many there are in all lists of a JSON document. One of two bytes may take
// hundreds when it is decoded, so they are counted before.
func items(b []byte) int {
	n, text := 0, false
	var lists []bool // whether what is open is one
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case text && c == '\\':
			i++
		case c == '"':
			text = !text
		case text:
		case c == '[', c == '{':
			lists = append(lists, c == '[')
			if c == '[' {
				n++
			}
		case c == ']', c == '}':
			lists = lists[:max(len(lists)-1, 0)]
		case c == ',' && len(lists) > 0 && lists[len(lists)-1]:
			n++
		}
	}
	return n
}

// Decode reads a record from JSON. Fields that it does not know are ignored; what would
// mislead or break those who use a record is an error: see [Record.Check].
func Decode(b []byte) (*Record, error) {
	if len(b) > MaxBytes {
		return nil, fmt.Errorf("decode record: it has %d bytes, more than %d", len(b), MaxBytes)
	}
	if n := items(b); n > maxAll {
		return nil, fmt.Errorf("decode record: its lists have %d items, more than %d", n, maxAll)
	}
	var head struct {
		Version *int `json:"version"`
	}
	if err := json.Unmarshal(b, &head); err != nil {
		return nil, fmt.Errorf("decode record: %w", plain(err))
	}
	switch {
	case head.Version == nil:
		return nil, errors.New("decode record: it has no version: this is something else")
	case *head.Version != Version:
		return nil, fmt.Errorf("decode record: it has version %d, this program knows %d", *head.Version, Version)
	}
	var r Record
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("decode record: %w", plain(err))
	}
	if err := r.Check(); err != nil {
		return nil, fmt.Errorf("decode record: %w", err)
	}
	return &r, nil
}

// plain is an error of decoding without names of Go's.
func plain(err error) error {
	var typed *json.UnmarshalTypeError
	if !errors.As(err, &typed) {
		return err
	}
	return fmt.Errorf("%s is no place for this: %s, at byte %d", cmp.Or(typed.Field, "a record"), typed.Value, typed.Offset)
}

// DecodeFrom decodes all that a reader has.
func DecodeFrom(r io.Reader) (*Record, error) {
	b, err := io.ReadAll(io.LimitReader(r, MaxBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read record: %w", err)
	}
	return Decode(b)
}
