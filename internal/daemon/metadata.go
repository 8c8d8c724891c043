package daemon

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// metadataName is the name of the file of an image's EROFS metadata.
func metadataName(img *image) string { return img.head.ErofsDigest.Encoded() + ".erofs" }

// metadataPath returns the image's EROFS metadata as a file, which is made, or
// verified when it is here already.
func (d *Daemon) metadataPath(img *image) (string, error) {
	dir := filepath.Join(d.cfg.Root, "metadata")
	path := filepath.Join(dir, metadataName(img))
	b, err := os.ReadFile(path)
	here := err == nil && img.head.ErofsDigest.Algorithm().FromBytes(b) == img.head.ErofsDigest
	if !here {
		if b, err = img.head.Erofs(); err != nil {
			return "", d.badMetadata(img, err)
		}
	}
	// What is here, or made here, was checked before it was written.
	check := img.head.CheckMetadata
	if here || img.origin == originBuilt || img.origin == originLocal {
		check = img.head.CheckDevices
	}
	if err := check(b); err != nil {
		return "", d.badMetadata(img, err)
	}
	if here {
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("write EROFS metadata: %w", err)
	}
	// Not synced: it is verified before each mount, and made again when torn.
	tmp, err := os.CreateTemp(dir, ".tmp-*")
	if err != nil {
		return "", fmt.Errorf("write EROFS metadata: %w", err)
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(b)
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return "", fmt.Errorf("write EROFS metadata: %w", err)
	}
	return path, nil
}

// badMetadata gives up an index whose metadata no kernel may see.
func (d *Daemon) badMetadata(img *image, err error) error {
	if qerr := d.quarantine(img, err); qerr != nil {
		err = errors.Join(err, qerr)
	}
	return fmt.Errorf("index %s of %s is quarantined: %w", img.index, img.ref, err)
}
