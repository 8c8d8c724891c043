package daemon

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	digest "github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/thaw-project/thaw/internal/oci"
)

// storedImage is an image as this node remembers it.
type storedImage struct {
	Ref      string        `json:"ref"`
	Manifest []byte        `json:"manifest"`
	Config   []byte        `json:"config"`
	Media    string        `json:"mediaType"`
	Digest   digest.Digest `json:"digest"`
	Pulled   bool          `json:"pulled"` // by `thaw pull`: its layers are pinned
	// Snapshots says that containerd's snapshots are of it: its layers are pinned.
	Snapshots bool `json:"snapshots,omitempty"`
}

func (d *Daemon) imagePath(ref oci.Reference) string {
	sum := sha256.Sum256([]byte(ref.String()))
	return filepath.Join(d.cfg.Root, "images", hex.EncodeToString(sum[:16])+".json")
}

// knownImage returns the image that a reference named last, or nil.
func (d *Daemon) knownImage(ref oci.Reference) *oci.Image {
	s, err := readImage(d.imagePath(ref))
	if err != nil || s.Ref != ref.String() || digest.FromBytes(s.Manifest) != s.Digest {
		return nil
	}
	img, err := s.image(ref)
	if err != nil {
		return nil
	}
	return img
}

func (s *storedImage) image(ref oci.Reference) (*oci.Image, error) {
	img, err := oci.ParseImage(s.Manifest, s.Config)
	if err != nil {
		return nil, err
	}
	img.Reference = ref
	img.ManifestDescriptor = v1.Descriptor{MediaType: s.Media, Digest: s.Digest, Size: int64(len(s.Manifest))}
	return img, nil
}

// layers are the blob digests of an image's layers.
func (s *storedImage) layers() ([]digest.Digest, error) {
	img, err := oci.ParseImage(s.Manifest, s.Config)
	if err != nil {
		return nil, err
	}
	var blobs []digest.Digest
	for _, l := range img.Layers {
		blobs = append(blobs, l.Descriptor.Digest)
	}
	return blobs, nil
}

func readImage(path string) (*storedImage, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var s storedImage
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, err
	}
	return &s, nil
}

// rememberImage keeps what a reference names, so that it can be started again
// without its registry. pulled stays set once it was.
func (d *Daemon) rememberImage(img *image, pulled bool) error {
	path := d.imagePath(img.ref)
	stored := img.stored(pulled)
	if old, err := readImage(path); err == nil && old.Digest == img.digest {
		if old.Pulled || !pulled {
			return nil
		}
		stored.Snapshots = old.Snapshots
	}
	return writeJSON(path, stored)
}

func (img *image) stored(pulled bool) storedImage {
	m := img.oci.ManifestDescriptor
	return storedImage{Ref: img.ref.String(), Manifest: img.oci.ManifestBytes, Config: img.oci.ConfigBytes,
		Media: m.MediaType, Digest: m.Digest, Pulled: pulled}
}

// writeJSON replaces a file durably.
func writeJSON(path string, v any) error { return replaceJSON(path, v, true) }

// replaceJSON replaces a file: readers see all of it or none. Without sync that
// does not hold after a power failure.
func replaceJSON(path string, v any, sync bool) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".tmp-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer os.Remove(tmp.Name()) // nothing is there any more once it is renamed
	_, err = tmp.Write(b)
	if err == nil && sync {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(tmp.Name(), path); err != nil || !sync {
		return err
	}
	dir := filepath.Dir(path)
	return errors.Join(syncDir(dir), syncDir(filepath.Dir(dir))) // it may be new
}

// syncDir makes the names in a directory durable.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// sweepTemporary removes the files that a daemon was writing when it was
// killed. The state directory is locked.
func sweepTemporary(dirs ...string) {
	for _, dir := range dirs {
		files, _ := filepath.Glob(filepath.Join(dir, ".tmp-*")) // the pattern is right
		for _, f := range files {
			os.Remove(f) // what cannot be removed does no harm
		}
	}
}
