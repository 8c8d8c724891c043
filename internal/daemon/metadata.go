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
	if here {
		if err := check(b); err != nil {
			return "", d.badMetadata(img, err)
		}
		return path, nil
	}
	// A start waits for both.
	checked := make(chan error, 1)
	go func() { checked <- check(b) }()
	tmp, err := writeMetadata(dir, b)
	defer os.Remove(tmp)
	if cerr := <-checked; cerr != nil {
		return "", d.badMetadata(img, cerr)
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return "", fmt.Errorf("write EROFS metadata: %w", err)
	}
	return path, nil
}

// writeMetadata writes a temporary file. It is not synced: metadata is verified
// before each mount, and made again when torn.
func writeMetadata(dir string, b []byte) (path string, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	f, err := os.CreateTemp(dir, ".tmp-*")
	if err != nil {
		return "", err
	}
	_, err = f.Write(b)
	return f.Name(), errors.Join(err, f.Close())
}

// badMetadata gives up an index whose metadata no kernel may see.
func (d *Daemon) badMetadata(img *image, err error) error {
	if qerr := d.quarantine(img, err); qerr != nil {
		err = errors.Join(err, qerr)
	}
	return fmt.Errorf("index %s of %s is quarantined: %w", img.index, img.ref, err)
}
