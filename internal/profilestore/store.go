// Package profilestore keeps records of measured starts (package profile) on this node,
// in one bbolt file that several processes share.
//
// A [Store] is a path. Each call opens the file, with bbolt's lock on it, and closes it
// again: a daemon and any number of commands come by turns, and wait for one another
// for moments only, since encoding and compressing happen outside. Of each record there
// is a small [Head] beside it, so that lists need not read the records.
//
// What was put in survives kill -9 and power failures: bbolt syncs before it says so. A
// file that is seen to be damaged is not written to. Reading says so ([DamagedError]) and leaves
// it alone; the next Put sets it aside, under a name that it returns, and begins anew.
// It does not ask anything of records but what a head has; for more they are read.
package profilestore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"
)

// FileName is the name of the file in a state directory.
const FileName = "profiles.db"

// Options are how much is kept, and for how long a call waits.
type Options struct {
	// Keep and KeepBytes are how many records are kept, and how large they may be together
	// as stored; 0: 1000, 256 MiB. A daemon's own starts are counted apart from all
	// others, so that they do not push out what somebody measured. The oldest go first,
	// pinned ones never.
	Keep      int
	KeepBytes int64
	// Wait is for how long a call waits until others are done with the file; 0: 10 s.
	Wait time.Duration
	Log  *slog.Logger // nil: none
}

// Store is where records are kept.
type Store struct {
	path string
	opts Options
}

// New returns the store in a file. It touches nothing: a file that is not there is an
// empty store, until the first Put.
func New(path string, opts Options) *Store {
	if opts.Keep == 0 {
		opts.Keep = 1000
	}
	if opts.KeepBytes == 0 {
		opts.KeepBytes = 256 << 20
	}
	if opts.Wait == 0 {
		opts.Wait = 10 * time.Second
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	return &Store{path, opts}
}

// Path is the store's file.
func (s *Store) Path() string { return s.path }

// ErrNotFound is of records that are not there.
var ErrNotFound = errors.New("no such record")

// DamagedError is of a file, or of one record in it, that cannot be read.
type DamagedError struct {
	Path string
	ID   string // of the record; empty: the file
	Err  error

	file os.FileInfo // as it was then
}

func (e *DamagedError) Error() string {
	if e.ID != "" {
		return fmt.Sprintf("record %s in %s is damaged: %v", e.ID, e.Path, e.Err)
	}
	return fmt.Sprintf("%s is damaged: %v; the next measurement sets it aside and begins a new one", e.Path, e.Err)
}

func (e *DamagedError) Unwrap() error { return e.Err }

// Buckets of the file.
var (
	bucketHeads   = []byte("heads")   // by ID, JSON of Head
	bucketRecords = []byte("records") // by ID, zstd frame of the record's JSON
	bucketMeta    = []byte("meta")
	keyVersion    = []byte("version")
)

// layoutVersion is of the buckets and what is in them.
const layoutVersion = "1"

// view reads. Of a store that is not there it calls nothing.
func (s *Store) view(ctx context.Context, f func(tx *bolt.Tx) error) error {
	info, err := os.Stat(s.path)
	if errors.Is(err, os.ErrNotExist) || err == nil && info.Size() == 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open records: %w", err)
	}
	return s.with(ctx, true, func(db *bolt.DB) error {
		return db.View(func(tx *bolt.Tx) error {
			if err := checkLayout(tx, s.path); err != nil {
				return err
			}
			if tx.Bucket(bucketHeads) == nil || tx.Bucket(bucketRecords) == nil {
				return nil
			}
			return f(tx)
		})
	})
}

// update writes.
func (s *Store) update(ctx context.Context, f func(tx *bolt.Tx) error) error {
	if err := os.MkdirAll(filepath.Dir(s.path), 0o755); err != nil {
		return fmt.Errorf("open records: %w", err)
	}
	return s.with(ctx, false, func(db *bolt.DB) error {
		return db.Update(func(tx *bolt.Tx) error {
			if err := checkLayout(tx, s.path); err != nil {
				return err
			}
			for _, name := range [][]byte{bucketHeads, bucketRecords, bucketMeta} {
				if _, err := tx.CreateBucketIfNotExists(name); err != nil {
					return err
				}
			}
			if err := tx.Bucket(bucketMeta).Put(keyVersion, []byte(layoutVersion)); err != nil {
				return err
			}
			return f(tx)
		})
	})
}

// errLayout is of a file that another version of the program made.
var errLayout = errors.New("made by another version of thaw")

func checkLayout(tx *bolt.Tx, path string) error {
	b := tx.Bucket(bucketMeta)
	if b == nil {
		return nil
	}
	if v := b.Get(keyVersion); string(v) != layoutVersion {
		return fmt.Errorf("%s has layout %.20q, not %s: %w", path, v, layoutVersion, errLayout)
	}
	return nil
}

// with opens the file, calls f and closes it. That bbolt, which believes what it reads,
// panics or reads outside of the file is damage.
func (s *Store) with(ctx context.Context, readOnly bool, f func(db *bolt.DB) error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	var file *os.File
	defer func() {
		if p := recover(); p != nil {
			err = s.damaged(file, fmt.Errorf("%v", p))
			// bbolt may hold locks of its own now, and Close would wait for them. Its mapping
			// stays, and with it the file and the lock on it, unless that is let go.
			if file != nil {
				unix.Flock(int(file.Fd()), unix.LOCK_UN)
				file.Close()
			}
		}
	}()
	db, err := s.open(ctx, readOnly, &file)
	if isDamage(err) {
		return s.damaged(file, err)
	}
	if err != nil {
		return err
	}
	if err = f(db); isDamage(err) {
		err = s.damaged(file, err)
	}
	return errors.Join(err, db.Close())
}

func (s *Store) damaged(f *os.File, err error) error {
	var known *DamagedError
	if errors.As(err, &known) {
		return err
	}
	e := &DamagedError{Path: s.path, Err: err}
	if f != nil {
		if info, err := f.Stat(); err == nil {
			e.file = info
		}
	}
	return e
}

func isDamage(err error) bool {
	var e *DamagedError
	if errors.As(err, &e) {
		return true
	}
	for _, e := range []error{berrors.ErrInvalid, berrors.ErrChecksum, berrors.ErrVersionMismatch, berrors.ErrInvalidMapping,
		berrors.ErrIncompatibleValue, berrors.ErrBucketNotFound, berrors.ErrBucketExists, // of buckets that are no buckets
		unix.EFBIG} { // of pages that would be beyond everything
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// pause is how long it waits before it looks again whether the file is free.
const pause = 5 * time.Millisecond

// errBusy is of a file that others have locked now, or that got another name meanwhile.
var errBusy = errors.New("others have it")

// open opens the file, which it also puts into file, since bbolt may panic over it.
func (s *Store) open(ctx context.Context, readOnly bool, file **os.File) (*bolt.DB, error) {
	opts := bolt.Options{ReadOnly: readOnly, FreelistType: bolt.FreelistMapType, Timeout: 1, // it is locked already
		OpenFile: func(name string, flag int, mode os.FileMode) (f *os.File, err error) {
			*file, err = s.openFile(name, flag, mode, readOnly)
			return *file, err
		}}
	for deadline := time.Now().Add(s.opts.Wait); ; {
		db, err := bolt.Open(s.path, 0o600, &opts)
		switch {
		case err == nil:
			return db, nil
		case !errors.Is(err, errBusy):
			if isDamage(err) {
				return nil, err // has the file already
			}
			return nil, fmt.Errorf("open records: %w", err)
		case time.Now().After(deadline):
			return nil, fmt.Errorf("open records: other processes have had %s for %s", s.path, s.opts.Wait)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("open records: %w", ctx.Err())
		case <-time.After(pause):
		}
	}
}

// openFile opens, locks and looks at the file.
func (s *Store) openFile(name string, flag int, mode os.FileMode, readOnly bool) (_ *os.File, err error) {
	f, err := os.OpenFile(name, flag, mode)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	how := unix.LOCK_EX
	if readOnly {
		how = unix.LOCK_SH
	}
	if err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return nil, errBusy
	} else if err != nil {
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !s.current(info) { // somebody set it aside
		return nil, errBusy
	}
	if err := checkSound(f); err != nil {
		return nil, s.damaged(f, err)
	}
	return f, nil
}

// current reports whether a file still has the store's name.
func (s *Store) current(f os.FileInfo) bool {
	named, err := os.Stat(s.path)
	return err == nil && os.SameFile(f, named)
}

// setAside renames a damaged file, unless somebody else has done so. It returns the new
// name, or none.
func (s *Store) setAside(damage *DamagedError) (string, error) {
	f, err := os.OpenFile(s.path, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	// Who has it locked may be about to set it aside.
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return "", err
	}
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	if !s.current(info) || damage.file == nil || !os.SameFile(info, damage.file) {
		return "", nil
	}
	for n := 1; ; n++ {
		name := fmt.Sprintf("%s.damaged-%d", s.path, n)
		if _, err := os.Lstat(name); err == nil {
			continue
		}
		return name, os.Rename(s.path, name)
	}
}
