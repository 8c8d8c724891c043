package daemon

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// metadataPath returns the image's EROFS metadata as a file, which is made, or
// verified when it is here already.
func (d *Daemon) metadataPath(img *image) (string, error) {
	dir := filepath.Join(d.cfg.Root, "metadata")
	path := filepath.Join(dir, img.head.ErofsDigest.Encoded()+".erofs")
	b, err := os.ReadFile(path)
	here := err == nil && img.head.ErofsDigest.Algorithm().FromBytes(b) == img.head.ErofsDigest
	if !here {
		if b, err = img.head.Erofs(); err != nil {
			return "", fmt.Errorf("image %s: %w", img.ref, err)
		}
	}
	if err := img.head.CheckDevices(b); err != nil {
		return "", fmt.Errorf("image %s: %w", img.ref, err)
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
