package layerstore

import (
	"errors"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
)

// What callers branch on. The types below match them with errors.Is.
var (
	// ErrLocked says that another process has the state directory (*LockedError).
	ErrLocked = errors.New("state directory is locked")
	// ErrNotFound says that a layer is not in the store.
	ErrNotFound = errors.New("layer not found")
	// ErrInUse says that a layer is acquired by someone (*BusyError).
	ErrInUse = errors.New("layer is in use")
	// ErrPinned says that a layer has owners that want it kept (*BusyError).
	ErrPinned = errors.New("layer is pinned")
	// ErrQuarantined says that the span table was found to lie (*QuarantinedError).
	ErrQuarantined = errors.New("layer index is quarantined")
	// ErrConflict says that the layer is here under another description (*ConflictError).
	ErrConflict = errors.New("layer is described differently")
	// ErrIncomplete says that spans are missing that the call needs.
	ErrIncomplete = errors.New("layer is incomplete")
	// ErrClosed says that the store, or the ingest, is over.
	ErrClosed = errors.New("layer store is closed")
)

// LockedError names the process that holds the state directory.
type LockedError struct {
	Dir string
	PID int // 0 when unknown
}

func (e *LockedError) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("lock %s: held by another process", e.Dir)
	}
	return fmt.Sprintf("lock %s: held by process %d", e.Dir, e.PID)
}

// Is matches ErrLocked.
func (e *LockedError) Is(target error) bool { return target == ErrLocked }

// BusyError says who keeps a layer from being removed.
type BusyError struct {
	Layer  digest.Digest
	Users  int      // acquired this often
	Owners []string // pinned by these
}

func (e *BusyError) Error() string {
	if e.Users > 0 {
		return fmt.Sprintf("remove layer %s: in use by %d, pinned by [%s]", e.Layer, e.Users, strings.Join(e.Owners, " "))
	}
	return fmt.Sprintf("remove layer %s: pinned by [%s]", e.Layer, strings.Join(e.Owners, " "))
}

// Is matches ErrInUse, or ErrPinned where there are owners.
func (e *BusyError) Is(target error) bool {
	return target == ErrInUse && e.Users > 0 || target == ErrPinned && len(e.Owners) > 0
}

// SpanError says that the bytes of a span are not those the index promises.
type SpanError struct {
	Layer     digest.Digest
	Span      int
	Want, Got digest.Digest
	WantBytes int64
	GotBytes  int64
	Path      string // the file that holds them; empty: they were handed to Put
}

func (e *SpanError) Error() string {
	where := ""
	if e.Path != "" {
		where = " in " + e.Path
	}
	if e.WantBytes != e.GotBytes {
		return fmt.Sprintf("verify span %d of layer %s%s: %d bytes, want %d", e.Span, e.Layer, where, e.GotBytes, e.WantBytes)
	}
	return fmt.Sprintf("verify span %d of layer %s%s: got %s, want %s", e.Span, e.Layer, where, e.Got, e.Want)
}

// DiffIDError says that a whole layer is not what the image config promises.
type DiffIDError struct {
	Layer     digest.Digest
	Want, Got digest.Digest
}

func (e *DiffIDError) Error() string {
	return fmt.Sprintf("verify layer %s: diffID %s, want %s", e.Layer, e.Got, e.Want)
}

// WriteError says how much of a write to a layer's tar is missing; it wraps the
// cause, so errors.Is(err, syscall.ENOSPC) works.
type WriteError struct {
	Layer        digest.Digest
	Span         int
	Path         string
	MissingBytes int64
	Err          error
}

func (e *WriteError) Error() string {
	return fmt.Sprintf("write span %d of layer %s to %s: %d bytes missing: %v", e.Span, e.Layer, e.Path, e.MissingBytes, e.Err)
}

// Unwrap returns the cause.
func (e *WriteError) Unwrap() error { return e.Err }

// QuarantinedError says why a span table is refused.
type QuarantinedError struct {
	Layer  digest.Digest
	Table  digest.Digest // Meta.TableDigest of the table that lied
	Reason string
}

func (e *QuarantinedError) Error() string {
	return fmt.Sprintf("use layer %s: its index (span table %s) is quarantined: %s", e.Layer, e.Table, e.Reason)
}

// Is matches ErrQuarantined.
func (e *QuarantinedError) Is(target error) bool { return target == ErrQuarantined }

// ConflictError says that a layer that must stay as it is was asked for with
// another diffID, size or span table. Honest descriptions of one blob never
// differ in these, so one of the two lies, and sharing the file would let one
// image feed bytes to another.
type ConflictError struct {
	Layer         digest.Digest
	What          string // "diffID", "size", "span table"
	Stored, Given string
	Owners        []string // pins on the stored layer
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("use layer %s: it is here with %s %s, not %s (pinned by [%s])",
		e.Layer, e.What, e.Stored, e.Given, strings.Join(e.Owners, " "))
}

// Is matches ErrConflict.
func (e *ConflictError) Is(target error) bool { return target == ErrConflict }

// CorruptError says that a file of the store cannot be what we wrote.
type CorruptError struct {
	Path   string // empty when bytes were decoded
	Reason string
}

func (e *CorruptError) Error() string {
	if e.Path == "" {
		return "decode: " + e.Reason
	}
	return fmt.Sprintf("decode %s: %s", e.Path, e.Reason)
}
