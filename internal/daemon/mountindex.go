package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	digest "github.com/opencontainers/go-digest"
)

// mountIndex is the index that a mount was made by, kept beside its record: the
// store may have another one by the time of the next daemon, or none, if this one
// is quarantined. The head is a file of its own, which mounts of one image share.
type mountIndex struct {
	Manifest []byte        `json:"manifest"`
	Head     digest.Digest `json:"head"`
}

const (
	mountIndexName = "index.json"
	mountHeadName  = "index-head"
)

// keepIndex keeps the mount's index for the next daemon, no more durably than its
// record. It is in the store by now, unless it has been quarantined already.
func (d *Daemon) keepIndex(m *mounted) error {
	img := m.img
	kept := mountIndex{Manifest: img.manifest, Head: img.headDigest}
	if err := d.indexes.LinkHead(img.digest, kept.Head, m.path(mountHeadName)); err != nil {
		whole := img.head
		if img.whole != nil {
			whole = img.whole
		}
		head, err := whole.Encode()
		if err == nil {
			err = os.WriteFile(m.path(mountHeadName), head, 0o600)
		}
		if err != nil {
			return fmt.Errorf("keep index of mount: %w", err)
		}
		kept.Head = digest.FromBytes(head)
	}
	return replaceJSON(m.path(mountIndexName), kept, false)
}

// readIndex reads what keepIndex kept.
func (m *mounted) readIndex() (manifest, head []byte, err error) {
	var kept mountIndex
	b, err := os.ReadFile(m.path(mountIndexName))
	if err == nil {
		err = json.Unmarshal(b, &kept)
	}
	if err == nil {
		head, err = os.ReadFile(m.path(mountHeadName))
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read index of mount: %w", err)
	}
	if digest.FromBytes(head) != kept.Head {
		return nil, nil, fmt.Errorf("read index of mount: its head is not %s", kept.Head)
	}
	return kept.Manifest, head, nil
}

// reloadIndex gives the image of a mount that an earlier daemon left its index.
// What is quarantined is good enough to read on by: every byte is verified, and no
// start-up bundle believed.
func (d *Daemon) reloadIndex(m *mounted, img *image) error {
	manifest, head, err := m.readIndex()
	if err != nil { // damaged, or the daemon was of an earlier version
		stored, serr := d.indexes.Get(m.Manifest)
		if serr != nil {
			return errors.Join(err, serr)
		}
		manifest, head = stored.Manifest, stored.Head
	}
	if err := img.adopt(manifest, head); err != nil {
		return err
	}
	if d.indexes.Quarantined(img.index) {
		img.bundle = nil
	}
	return nil
}

// quarantine has an index never used again. It is done once: the store may have
// a better one of the image since.
func (d *Daemon) quarantine(img *image, reason error) error {
	if d.indexes.Quarantined(img.index) {
		return nil
	}
	return d.indexes.Quarantine(img.digest, img.index, reason.Error())
}
