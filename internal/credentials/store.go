package credentials

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
)

const (
	sealedName = "sealed"
	keyName    = "key"
	tmpPrefix  = ".tmp-"
	keyBytes   = 32 // AES-256
	// sealedVersion is the first byte of the file, and authenticated with it.
	sealedVersion = 1
	maxSealed     = 4 << 20
	// maxEntries bounds the repositories; the one not handed in for longest goes.
	maxEntries = 1024
	// maxAge is when one that no pull has brought again is forgotten.
	maxAge = 90 * 24 * time.Hour
)

// StoreOptions configure a [Store].
type StoreOptions struct {
	// Dir keeps the sealed file, and the key unless KeyFile names another. Empty:
	// nothing is kept on disk.
	Dir string
	// InMemory: nothing is kept in Dir either, and what an earlier store kept there
	// is removed.
	InMemory bool
	// KeyFile is a file of 32 bytes, which has to exist.
	KeyFile string
	Log     *slog.Logger
}

// Store holds credentials that were handed with pulls. It is safe for concurrent
// use.
//
// On disk it is one file, sealed with AES-256-GCM and replaced as a whole. With the
// key beside it that protects against copies of the one file, as in logs or support
// bundles; with a key elsewhere, such as one of systemd's encrypted credentials,
// against everyone who has the disk and not the machine.
type Store struct {
	opts StoreOptions
	aead cipher.AEAD // nil: in memory only

	mu      sync.Mutex // guards the rest, and the file
	entries map[string]entry
	offers  map[string][]*offer // of pulls under way, the oldest first
}

type entry struct {
	Auth   plain     `json:"auth"`
	Handed time.Time `json:"handed"`
}

// plain has no methods: authn.AuthConfig writes itself to JSON with more than it has.
type plain authn.AuthConfig

type offer struct{ auth authn.AuthConfig }

// OpenStore reads what an earlier store has kept. A sealed file that cannot be
// opened (another key, damage) is logged and begun anew: pulls bring credentials
// again.
func OpenStore(opts StoreOptions) (*Store, error) {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	s := &Store{opts: opts, entries: map[string]entry{}, offers: map[string][]*offer{}}
	if opts.Dir == "" {
		return s, nil
	}
	stale, _ := filepath.Glob(filepath.Join(opts.Dir, tmpPrefix+"*")) // of a store that was killed
	if opts.InMemory {
		stale = append(stale, filepath.Join(opts.Dir, sealedName), filepath.Join(opts.Dir, keyName))
	}
	for _, path := range stale {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("remove credentials: %w", err)
		}
	}
	if opts.InMemory {
		return s, nil
	}
	if err := os.MkdirAll(opts.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make directory of credentials: %w", err)
	}
	key, err := loadKey(opts)
	if err != nil {
		return nil, err
	}
	if s.aead, err = newAEAD(key); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(s.path())
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read credentials: %w", err)
	}
	entries, err := unseal(s.aead, b)
	if err != nil {
		opts.Log.Warn("credentials handed with earlier pulls are lost", "err", err)
		return s, nil
	}
	s.entries = entries
	s.forget()
	return s, nil
}

// forget drops what no pull has brought for long. Called with mu held, but by
// OpenStore.
func (s *Store) forget() {
	maps.DeleteFunc(s.entries, func(_ string, e entry) bool { return time.Since(e.Handed) > maxAge })
}

func (s *Store) path() string { return filepath.Join(s.opts.Dir, sealedName) }

func newAEAD(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("use key of credentials: %w", err)
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// loadKey reads the key, and makes one where none is named.
func loadKey(opts StoreOptions) ([]byte, error) {
	path := opts.KeyFile
	if path == "" {
		path = filepath.Join(opts.Dir, keyName)
	}
	key, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && opts.KeyFile == "" {
		key = make([]byte, keyBytes)
		rand.Read(key)
		return key, replaceFile(path, key)
	}
	if err != nil {
		return nil, fmt.Errorf("read key of credentials: %w", err)
	}
	if len(key) != keyBytes {
		return nil, fmt.Errorf("read key of credentials: %s has %d bytes, want %d", path, len(key), keyBytes)
	}
	return key, nil
}

func seal(aead cipher.AEAD, entries map[string]entry) ([]byte, error) {
	b, err := json.Marshal(entries)
	if err != nil {
		return nil, err
	}
	head := []byte{sealedVersion}
	return aead.Seal(head, nil, b, head), nil
}

func unseal(aead cipher.AEAD, b []byte) (map[string]entry, error) {
	if len(b) == 0 || len(b) > maxSealed || b[0] != sealedVersion {
		return nil, errors.New("open sealed credentials: not a file of this version")
	}
	plain, err := aead.Open(nil, nil, b[1:], b[:1])
	if err != nil {
		return nil, fmt.Errorf("open sealed credentials: %w", err)
	}
	entries := map[string]entry{}
	if err := json.Unmarshal(plain, &entries); err != nil {
		return nil, fmt.Errorf("decode credentials: %w", err)
	}
	return entries, nil
}

// Offer takes what a pull of a repository is to be made with. From now on it is
// tried first; when the pull has ended the function that is returned says whether
// it was good. If so it is kept.
func (s *Store) Offer(repository string, auth authn.AuthConfig) (ended func(good bool)) {
	o := &offer{auth}
	s.mu.Lock()
	s.offers[repository] = append(s.offers[repository], o)
	s.mu.Unlock()
	return func(good bool) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.offers[repository] = slices.DeleteFunc(s.offers[repository], func(p *offer) bool { return p == o }); len(s.offers[repository]) == 0 {
			delete(s.offers, repository)
		}
		if good {
			s.keep(repository, auth)
		}
	}
}

// freshEnough is when a credential handed again is not written again for that.
const freshEnough = 24 * time.Hour

// keep remembers a credential. Called with mu held.
func (s *Store) keep(repository string, auth authn.AuthConfig) {
	if old, ok := s.entries[repository]; ok && old.Auth == plain(auth) && time.Since(old.Handed) < freshEnough {
		return
	}
	s.entries[repository] = entry{plain(auth), time.Now().UTC()}
	s.forget()
	for len(s.entries) > maxEntries {
		oldest := slices.MinFunc(slices.Collect(maps.Keys(s.entries)), func(a, b string) int { return s.entries[a].Handed.Compare(s.entries[b].Handed) })
		delete(s.entries, oldest)
	}
	if s.aead == nil {
		return
	}
	b, err := seal(s.aead, s.entries)
	if err == nil {
		err = replaceFile(s.path(), b)
	}
	if err != nil {
		s.opts.Log.Error("credentials of a pull are kept in memory only", "repository", repository, "err", err)
	}
}

// Credentials implements [Source]: of pulls under way the newest first, then what
// was kept.
func (s *Store) Credentials(_ context.Context, repository string) ([]authn.AuthConfig, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget()
	var all []authn.AuthConfig
	for _, o := range slices.Backward(s.offers[repository]) {
		all = append(all, o.auth)
	}
	if e, ok := s.entries[repository]; ok && !slices.Contains(all, authn.AuthConfig(e.Auth)) {
		all = append(all, authn.AuthConfig(e.Auth))
	}
	return all, nil
}

// replaceFile writes a file that only its owner may read, wholly or not at all.
func replaceFile(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), tmpPrefix)
	if err != nil {
		return fmt.Errorf("write credentials: %w", err)
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write credentials: %w", err), os.Remove(f.Name()))
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("write credentials: %w", err)
	}
	return errors.Join(dir.Sync(), dir.Close())
}
