// Package indexstore keeps indexes on this node: those that were built here
// and those that were fetched, so that the next start needs no registry for
// them.
//
// An image's index lies under its manifest's digest, a layer's under the
// layer's blob digest, where every image that has the layer finds it. Files
// are written under a temporary name, synced and renamed, and verified when
// they are read: what is damaged counts as missing. An index that was found to
// lie is remembered by its digest and not accepted again.
//
// The package does not build or fetch.
package indexstore

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	digest "github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/index"
)

// ErrNotFound says that the store has no such index.
var ErrNotFound = errors.New("no index in the local store")

// Store is a directory of indexes. Any number of processes may use it.
type Store struct{ dir string }

// Open makes the directory where it is missing.
func Open(dir string) (*Store, error) {
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return nil, fmt.Errorf("open index store: %w", err)
	}
	for _, sub := range []string{"", "images", "layers", "quarantine"} {
		if err := makeDir(filepath.Join(dir, sub)); err != nil {
			return nil, fmt.Errorf("open index store: %w", err)
		}
	}
	s := &Store{dir: dir}
	s.Sweep()
	return s, nil
}

// Sweep removes what processes were writing when they were killed.
func (s *Store) Sweep() {
	for _, pattern := range []string{".tmp-*", "*/.tmp-*", "images/*/.tmp-*"} {
		files, _ := filepath.Glob(s.path(pattern)) // the pattern is right
		for _, f := range files {
			pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(f), ".tmp-"), "-")
			if dead(pid) {
				os.Remove(f) // what cannot be removed does no harm
			}
		}
	}
}

// dead reports whether a process has ended. Of one that was killed a moment ago
// there may still be the exit code, which nobody has asked for.
func dead(pid string) bool {
	b, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH)
	}
	_, state, _ := bytes.Cut(b[max(0, bytes.LastIndexByte(b, ')')):], []byte(" "))
	return bytes.HasPrefix(state, []byte("Z")) || bytes.HasPrefix(state, []byte("X"))
}

func name(d digest.Digest) string { return d.Algorithm().String() + "-" + d.Encoded() }

func (s *Store) path(parts ...string) string {
	return filepath.Join(append([]string{s.dir}, parts...)...)
}

// record is what is kept of an image's index besides its head.
type record struct {
	Index    digest.Digest `json:"index"`    // of the artifact manifest
	Manifest []byte        `json:"manifest"` // the artifact manifest
	Head     digest.Digest `json:"head"`     // of the head blob
	Local    bool          `json:"local"`    // built on this node from the layers themselves
	Proof    []byte        `json:"proof,omitempty"`
}

// Image is an index as the store has it.
type Image struct {
	Digest   digest.Digest // of Manifest
	Manifest []byte
	Head     []byte
	Local    bool   // built on this node from the layers themselves
	Proof    []byte // why it may be trusted, kept as it is given
}

// Get returns the index of the image with the given manifest digest, which is to
// be used, or ErrNotFound.
func (s *Store) Get(image digest.Digest) (*Image, error) {
	im, err := s.Peek(image)
	if err == nil {
		s.touch(image)
	}
	return im, err
}

// Peek is Get for who only looks: it does not count as a use.
func (s *Store) Peek(image digest.Digest) (*Image, error) {
	if image.Validate() != nil {
		return nil, ErrNotFound
	}
	b, err := os.ReadFile(s.path("images", name(image), "record.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("read index of image %s: %w", image, err)
	}
	var r record
	if json.Unmarshal(b, &r) != nil || r.Index.Validate() != nil || r.Head.Validate() != nil ||
		digest.FromBytes(r.Manifest) != r.Index || s.Quarantined(r.Index) {
		return nil, ErrNotFound
	}
	head, err := os.ReadFile(s.path("images", name(image), name(r.Head)))
	if err != nil || digest.FromBytes(head) != r.Head {
		return nil, ErrNotFound
	}
	return &Image{Digest: r.Index, Manifest: r.Manifest, Head: head, Local: r.Local, Proof: r.Proof}, nil
}

// lastUseGrain is how coarse LastUse is, to spare the disk.
const lastUseGrain = time.Minute

// touch notes that an image's index was used, in the modification time of its record.
func (s *Store) touch(image digest.Digest) {
	path, now := s.path("images", name(image), "record.json"), time.Now()
	if st, err := os.Stat(path); err == nil && now.Sub(st.ModTime()) > lastUseGrain {
		os.Chtimes(path, now, now) // without it the index is only collected earlier
	}
}

// LastUse returns when the index of an image was last stored or got, to the
// minute; zero if there is none.
func (s *Store) LastUse(image digest.Digest) time.Time {
	return modTime(s.path("images", name(image), "record.json"))
}

func modTime(path string) time.Time {
	st, err := os.Stat(path)
	if err != nil {
		return time.Time{}
	}
	return st.ModTime()
}

// Put keeps the index of an image.
func (s *Store) Put(image digest.Digest, im *Image) error {
	if err := image.Validate(); err != nil {
		return fmt.Errorf("store index of image %q: %w", image, err)
	}
	dir := s.path("images", name(image))
	if err := makeDir(dir); err != nil {
		return fmt.Errorf("store index of image %s: %w", image, err)
	}
	r := record{Index: digest.FromBytes(im.Manifest), Manifest: im.Manifest, Head: digest.FromBytes(im.Head), Local: im.Local, Proof: im.Proof}
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("store index of image %s: %w", image, err)
	}
	if err := writeFile(filepath.Join(dir, name(r.Head)), im.Head); err != nil {
		return fmt.Errorf("store index of image %s: %w", image, err)
	}
	if err := writeFile(filepath.Join(dir, "record.json"), b); err != nil {
		return fmt.Errorf("store index of image %s: %w", image, err)
	}
	removeOld(dir, &r)
	return nil
}

// comparedName is the file with the digest of the head that was compared with the layers.
const comparedName = "compared"

// Compared reports whether it was noted that an image's index with the given head is right.
func (s *Store) Compared(image, head digest.Digest) bool {
	if image.Validate() != nil {
		return false
	}
	b, err := os.ReadFile(s.path("images", name(image), comparedName))
	return err == nil && string(b) == head.String()
}

// SetCompared notes that an image's index, which is here and has the given head, was
// compared with the image's layers, and is right. Of another head nothing is known then.
func (s *Store) SetCompared(image, head digest.Digest) error {
	if err := image.Validate(); err != nil {
		return fmt.Errorf("note index of image %q: %w", image, err)
	}
	if err := writeFile(s.path("images", name(image), comparedName), []byte(head)); err != nil {
		return fmt.Errorf("note index of image %s: %w", image, err)
	}
	return nil
}

// oldAge is the age at which what no record names is no longer being put here.
const oldAge = 10 * time.Minute

// removeOld removes the heads and bundles of earlier indexes of an image.
func removeOld(dir string, r *record) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return // they only take room
	}
	for _, e := range entries {
		hex, ok := strings.CutPrefix(e.Name(), "sha256-")
		if info, err := e.Info(); !ok || err != nil || time.Since(info.ModTime()) < oldAge || e.Name() == name(r.Head) || strings.Contains(string(r.Manifest), hex) {
			continue
		}
		os.Remove(filepath.Join(dir, e.Name())) // what cannot be removed does no harm
	}
}

// PutBundle keeps a start-up bundle of an image, which has to have an index here,
// or only the header of one, by its own digest.
func (s *Store) PutBundle(image, bundle digest.Digest, blob []byte) error {
	err := makeDir(s.path("images", name(image)))
	if err == nil {
		err = writeFile(s.path("images", name(image), name(bundle)), blob)
	}
	if err != nil {
		return fmt.Errorf("store start-up bundle of image %s: %w", image, err)
	}
	return nil
}

// OpenBundle returns a start-up bundle of an image, or ErrNotFound. Its bytes are
// not verified here: who reads it believes its pieces one by one.
func (s *Store) OpenBundle(image, bundle digest.Digest) (*os.File, error) {
	if image.Validate() != nil || bundle.Validate() != nil {
		return nil, ErrNotFound
	}
	f, err := os.Open(s.path("images", name(image), name(bundle)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("read start-up bundle of image %s: %w", image, err)
	}
	return f, nil
}

// LinkHead links the head of an image's index, by its own digest, to a path on the
// same file system, where it outlives the index. The error is ErrNotFound where
// there is none.
func (s *Store) LinkHead(image, head digest.Digest, path string) error {
	if image.Validate() != nil || head.Validate() != nil {
		return ErrNotFound
	}
	err := os.Link(s.path("images", name(image), name(head)), path)
	if errors.Is(err, fs.ErrNotExist) {
		return ErrNotFound
	}
	if err != nil {
		return fmt.Errorf("link index of image %s: %w", image, err)
	}
	return nil
}

// Layer returns the layer blob of an index by the digest of the layer, or
// ErrNotFound.
func (s *Store) Layer(blob digest.Digest) (*index.LayerBlob, error) {
	if blob.Validate() != nil {
		return nil, ErrNotFound
	}
	files, _ := filepath.Glob(s.path("layers", name(blob)+".*")) // the pattern is right
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil || "."+digest.FromBytes(b).Encoded() != filepath.Ext(f) {
			continue
		}
		// Not encoded again: another version of thaw may have written it.
		if l, err := index.OpenLayer(b); err == nil && l.Blob == blob {
			return l, nil
		}
	}
	return nil, ErrNotFound
}

// HasLayer reports whether there is an index of a layer.
func (s *Store) HasLayer(blob digest.Digest) bool {
	if blob.Validate() != nil {
		return false
	}
	files, _ := filepath.Glob(s.path("layers", name(blob)+".*")) // the pattern is right
	return len(files) > 0
}

// LayerPath returns the file of a layer blob of an index, by the digest of the
// layer and of the index blob, and whether it is there and whole.
func (s *Store) LayerPath(blob, indexBlob digest.Digest) (string, bool) {
	path := s.layerPath(blob, indexBlob)
	f, err := os.Open(path)
	if err != nil {
		return path, false
	}
	defer f.Close()
	have, err := indexBlob.Algorithm().FromReader(f)
	return path, err == nil && have == indexBlob
}

func (s *Store) layerPath(blob, indexBlob digest.Digest) string {
	return s.path("layers", name(blob)+"."+indexBlob.Encoded())
}

// PutLayer keeps a layer's index.
func (s *Store) PutLayer(l *index.LayerBlob) error {
	if err := writeFile(s.layerPath(l.Blob, l.Digest), l.Bytes); err != nil {
		return fmt.Errorf("store index of layer %s: %w", l.Blob, err)
	}
	return nil
}

// Quarantine remembers that the index with the given digest lied, and why, and
// forgets it as the index of the image.
func (s *Store) Quarantine(image, dgst digest.Digest, reason string) error {
	if err := errors.Join(image.Validate(), dgst.Validate()); err != nil {
		return fmt.Errorf("quarantine index %q of image %q: %w", dgst, image, err)
	}
	if err := writeFile(s.path("quarantine", name(dgst)), []byte(reason+"\n")); err != nil {
		return fmt.Errorf("quarantine index %s: %w", dgst, err)
	}
	return s.Remove(image)
}

// Quarantined reports whether the index with the given digest is known to lie.
func (s *Store) Quarantined(dgst digest.Digest) bool {
	if dgst.Validate() != nil {
		return false
	}
	_, err := os.Stat(s.path("quarantine", name(dgst)))
	return err == nil
}

// Remove forgets the index of an image; that there is none is no error.
func (s *Store) Remove(image digest.Digest) error {
	if image.Validate() != nil {
		return nil // there is none of that name
	}
	if err := os.RemoveAll(s.path("images", name(image))); err != nil {
		return fmt.Errorf("remove index of image %s: %w", image, err)
	}
	return nil
}

// RemoveLayer forgets the index of a layer.
func (s *Store) RemoveLayer(blob digest.Digest) error {
	if blob.Validate() != nil {
		return nil
	}
	files, _ := filepath.Glob(s.path("layers", name(blob)+".*"))
	for _, f := range files {
		if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove index of layer %s: %w", blob, err)
		}
	}
	return nil
}

// Layers lists the layers that have an index here, by their blob digests, with
// the time when it was stored; the latest where there are several.
func (s *Store) Layers() (map[digest.Digest]time.Time, error) {
	entries, err := os.ReadDir(s.path("layers"))
	if err != nil {
		return nil, fmt.Errorf("list index store: %w", err)
	}
	out := map[digest.Digest]time.Time{}
	for _, e := range entries {
		blob, _, _ := strings.Cut(e.Name(), ".")
		d := digest.Digest(strings.Replace(blob, "-", ":", 1))
		if d.Validate() != nil {
			continue
		}
		if at := modTime(s.path("layers", e.Name())); at.After(out[d]) {
			out[d] = at
		}
	}
	return out, nil
}

// Images lists the manifest digests of the images that have an index here.
func (s *Store) Images() ([]digest.Digest, error) {
	entries, err := os.ReadDir(s.path("images"))
	if err != nil {
		return nil, fmt.Errorf("list index store: %w", err)
	}
	var out []digest.Digest
	for _, e := range entries {
		if d := digest.Digest(strings.Replace(e.Name(), "-", ":", 1)); d.Validate() == nil {
			out = append(out, d)
		}
	}
	return out, nil
}

// makeDir makes a directory whose parent is there, durably.
func makeDir(dir string) error {
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(dir))
}

// syncDir makes the names in a directory durable.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// writeFile replaces a file durably: readers see all of it or none, and it is
// there after a power failure.
func writeFile(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), fmt.Sprintf(".tmp-%d-*", os.Getpid()))
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // nothing is there any more once it is renamed
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}
