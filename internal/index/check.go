package index

import (
	"bytes"
	"fmt"
	"maps"
	"slices"

	"github.com/thaw-project/thaw/internal/erofs"
	"github.com/thaw-project/thaw/internal/layertar"
)

// LieError reports an index that describes other files than its layers hold.
type LieError struct {
	Path   string // first file that differs; "" is the root, or all of the tree
	Reason string
}

func (e *LieError) Error() string {
	return fmt.Sprintf("index describes other files than the layers hold: %q: %s", e.Path, e.Reason)
}

// CheckMetadata checks all of an EROFS metadata image that somebody else made,
// before the kernel is given it: CheckDevices, and that every name, inode and
// extent that can be reached lies where it may.
func (m *Image) CheckMetadata(metadata []byte) error {
	if err := m.CheckDevices(metadata); err != nil {
		return err
	}
	img, err := erofs.Open(metadata)
	if err != nil {
		return err
	}
	return img.Check()
}

// CheckDevices checks that an EROFS metadata image, which is to be the index'
// own, has the image's layers as its devices: the kernel takes what lies behind
// the end of a device for zeros.
func (m *Image) CheckDevices(metadata []byte) error {
	img, err := erofs.Open(metadata)
	if err != nil {
		return err
	}
	devices := img.Devices()
	if len(devices) != len(m.Layers) {
		return corrupt("EROFS image", -1, "%d devices for %d layers", len(devices), len(m.Layers))
	}
	for i, d := range devices {
		if l := &m.Layers[i]; d.Tag != l.DiffID.Encoded() || d.SizeBytes != l.TarBytes&^511 {
			return corrupt("EROFS image", -1, "device %d is %s of %d bytes, layer %s has %d", i+1, d.Tag, d.SizeBytes, l.DiffID, l.TarBytes)
		}
	}
	return nil
}

// CheckFiles compares the EROFS metadata with the entries that the layers'
// tars really have, bottom first, and returns a *LieError where they differ.
func (m *Image) CheckFiles(entries [][]layertar.Entry) error {
	have, err := m.Erofs()
	if err != nil {
		return err
	}
	want, err := Metadata(m.Layers, entries)
	if err != nil {
		return err
	}
	if bytes.Equal(have, want) {
		return nil
	}
	// Another version of thaw may have laid the same files out otherwise.
	a, aDevices, err := files(have)
	if err != nil {
		return err
	}
	b, bDevices, err := files(want)
	if err != nil {
		return err
	}
	if !slices.Equal(aDevices, bDevices) {
		return &LieError{"", fmt.Sprintf("index has devices %v, layers have %v", aDevices, bDevices)}
	}
	for _, path := range slices.Sorted(maps.Keys(b)) {
		h, ok := a[path]
		if !ok {
			return &LieError{path, "missing in the index"}
		}
		if w := b[path]; h != w {
			return &LieError{path, fmt.Sprintf("index has %s, layers have %s", h, w)}
		}
	}
	for _, path := range slices.Sorted(maps.Keys(a)) {
		if _, ok := b[path]; !ok {
			return &LieError{path, "not in the layers"}
		}
	}
	return nil
}

// files lists an EROFS image as path to a line that says all of the file. Hard
// links carry the first path of their group. It also lists the devices.
func files(b []byte) (map[string]string, []erofs.Device, error) {
	img, err := erofs.Open(b)
	if err != nil {
		return nil, nil, err
	}
	out, group := map[string]string{}, map[uint64]string{}
	err = img.Walk(func(path string, n *erofs.Info) error {
		first, ok := group[n.NID]
		if !ok {
			first, group[n.NID] = path, path
		}
		out[path] = fmt.Sprintf("%o %d:%d %d.%09d size %d dev %d:%d link %q xattrs %q data %v same as %q",
			n.Mode, n.UID, n.GID, n.MtimeSec, n.MtimeNsec, n.SizeBytes, n.DevMajor, n.DevMinor, n.Link, n.Xattrs, n.Extents, first)
		return nil
	})
	return out, img.Devices(), err
}
