package layerstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// Names in the state directory.
const (
	lockName      = "lock"
	layersDir     = "layers"
	tmpDir        = "tmp"
	quarantineDir = "quarantine"
	pinsName      = "pins.json"

	tarName    = "tar"
	metaName   = "meta.json"
	haveName   = "have"
	reasonName = "reason.json"
)

// Options tune a Store. The zero value is right for production.
type Options struct {
	// BootID replaces the kernel's boot id, as a UUID; for tests.
	BootID string
	// DropCache makes Sync and Finish forget a tar's cached pages once they are
	// on disk and hashed: a tar under an EROFS mount is cached twice otherwise.
	DropCache bool
	// Log gets what is repaired or given up; nil means slog.Default.
	Log *slog.Logger
}

// Store is one state directory. Its methods may be called concurrently.
//
// Lock order: entry.gate, Layer.hashMu, Layer.syncMu, Layer.putMu, a stripe of
// it; pins.mu and Store.mu are taken last and held over no other lock.
type Store struct {
	dir    string
	boot   bootID
	opts   Options
	log    *slog.Logger
	lock   *os.File
	pins   *pins
	serial atomic.Uint64 // for names in tmp

	fdatasync, fsync func(*os.File) error // replaced by tests: disks that fail are hard to come by
	directFrom       int64                // a constant but for tests

	mu          sync.Mutex               // guards what follows
	entries     map[digest.Digest]*entry // one a blob, never removed while open
	quarantined map[quarantineKey]Info
	closed      bool
}

// entry is the life of one blob in this process.
type entry struct {
	gate  chan struct{} // a mutex that can be given up: guards changes of layer, its users and its directory
	layer atomic.Pointer[Layer]
}

func (e *entry) unlock() { <-e.gate }

// Open takes a state directory, which is made if need be (0700). It removes what
// an earlier process left unfinished. One that is taken already is *LockedError.
func Open(dir string, opts Options) (*Store, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open layer store: %w", err)
	}
	s := &Store{
		dir: dir, opts: opts, log: opts.Log, fdatasync: fdatasync, fsync: (*os.File).Sync, directFrom: directFromBytes,
		entries: map[digest.Digest]*entry{}, quarantined: map[quarantineKey]Info{},
	}
	if s.log == nil {
		s.log = slog.Default()
	}
	if s.boot, err = readBootID(opts.BootID); err != nil {
		return nil, fmt.Errorf("open layer store %s: %w", dir, err)
	}
	if err := makeDirs(dir); err != nil {
		return nil, fmt.Errorf("open layer store: %w", err)
	}
	if s.lock, err = lockDir(dir); err != nil {
		return nil, fmt.Errorf("open layer store: %w", err)
	}
	if err := s.prepare(); err != nil {
		return nil, errors.Join(fmt.Errorf("open layer store %s: %w", dir, err), s.lock.Close())
	}
	return s, nil
}

// prepare runs under the lock, before anyone else sees the store.
func (s *Store) prepare() error {
	if err := os.RemoveAll(s.path(tmpDir)); err != nil {
		return err
	}
	for _, name := range []string{layersDir, tmpDir, quarantineDir} {
		if err := makeDirs(s.path(name)); err != nil {
			return err
		}
	}
	if err := s.loadQuarantine(); err != nil {
		return err
	}
	blobs, err := s.blobs()
	if err != nil {
		return err
	}
	s.pins, err = loadPins(s.path(pinsName), blobs, s.log)
	return err
}

// readBootID reads the kernel's boot id unless one is given. Where there is none
// (no /proc) the result is unknown, and nothing is taken for written in this boot.
func readBootID(given string) (bootID, error) {
	if given != "" {
		return parseBootID(given)
	}
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if errors.Is(err, os.ErrNotExist) {
		return bootID{}, nil
	}
	if err != nil {
		return bootID{}, err
	}
	return parseBootID(string(b))
}

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}

func (s *Store) layerDir(blob digest.Digest) string {
	return s.path(layersDir, dirName(blob))
}

func dirName(d digest.Digest) string { return string(d.Algorithm()) + "-" + d.Encoded() }

// blobs lists the layers on disk by their directories' names.
func (s *Store) blobs() ([]digest.Digest, error) {
	ents, err := os.ReadDir(s.path(layersDir))
	if err != nil {
		return nil, err
	}
	var out []digest.Digest
	for _, e := range ents {
		alg, hex, _ := strings.Cut(e.Name(), "-")
		if d := digest.NewDigestFromEncoded(digest.Algorithm(alg), hex); checkDigest(d) == nil {
			out = append(out, d)
		}
	}
	return out, nil
}

// lockEntry waits for a blob's entry, to be given back with unlock.
func (s *Store) lockEntry(ctx context.Context, blob digest.Digest) (*entry, error) {
	s.mu.Lock()
	e := s.entries[blob]
	if e == nil {
		e = &entry{gate: make(chan struct{}, 1)}
		s.entries[blob] = e
	}
	s.mu.Unlock()
	select {
	case e.gate <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for layer %s: %w", blob, ctx.Err())
	}
	// Checked with the gate held: Close passes every gate after it set closed.
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	if closed {
		e.unlock()
		return nil, ErrClosed
	}
	return e, nil
}

// open returns the layer of a blob that is in use, or nil.
func (s *Store) open(blob digest.Digest) *Layer {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.entries[blob]; e != nil {
		return e.layer.Load()
	}
	return nil
}

// FreeBytes returns how much an unprivileged user could still write here, and
// how large the file system is.
func (s *Store) FreeBytes() (free, size int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir, &st); err != nil {
		return 0, 0, fmt.Errorf("stat file system of %s: %w", s.dir, err)
	}
	return int64(st.Bavail) * st.Bsize, int64(st.Blocks) * st.Bsize, nil
}

// Close syncs and closes the layers still in use and gives the directory up.
// Calls that are under way on those layers fail; bits they set are still right.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	var entries []*entry
	for _, e := range s.entries {
		entries = append(entries, e)
	}
	s.mu.Unlock()

	var errs []error
	for _, e := range entries {
		e.gate <- struct{}{}
		if l := e.layer.Swap(nil); l != nil {
			l.users = 0
			errs = append(errs, l.close())
		}
		e.unlock()
	}
	return errors.Join(append(errs, s.lock.Close())...)
}

// Known reports whether the layer has been on this node; what of it is here is
// another question.
func (s *Store) Known(blob digest.Digest) bool {
	return checkDigest(blob) == nil && exists(s.layerDir(blob))
}
