package fuse

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/erofs"
	"github.com/thaw-project/thaw/internal/mount"
)

// Probe finds out whether this Mounter works for layer files in dir, by doing it: it mounts a tiny image, reads a
// file of it that is not there, and sees the request and the right bytes. It returns nil, or why not: the error is
// mount.ErrUnsupported where something is missing, and names what. It leaves nothing behind.
func Probe(ctx context.Context, dir string) error {
	tmp, err := os.MkdirTemp(dir, ".probe-*")
	if err != nil {
		return fmt.Errorf("probe FUSE: %w", err)
	}
	defer os.RemoveAll(tmp)
	if err := probe(ctx, tmp); err != nil {
		return fmt.Errorf("probe FUSE in %s: %w", dir, err)
	}
	return nil
}

const (
	probeBlob   = digest.Digest("probe")
	probeOffset = 512
)

// probeHandler has one layer: the same bytes over and over.
type probeHandler struct {
	layer   *os.File
	data    []byte
	fetched atomic.Int64
}

func (h *probeHandler) Have(digest.Digest, int64, int64) bool { return h.fetched.Load() > 0 }

func (h *probeHandler) Fetch(context.Context, digest.Digest, int64, int64) error {
	if _, err := h.layer.WriteAt(h.data, probeOffset); err != nil {
		return err
	}
	h.fetched.Add(1)
	return nil
}

func probe(ctx context.Context, tmp string) (err error) {
	h := &probeHandler{data: bytes.Repeat([]byte("thaw"), 1024)}
	size := int64(len(h.data))
	file := &erofs.Inode{Mode: unix.S_IFREG | 0o444, SizeBytes: size, Extents: []erofs.Extent{{Length: size, Device: 1, OffsetDevice: probeOffset}}}
	metadata, err := erofs.Write(
		&erofs.Inode{Mode: unix.S_IFDIR | 0o555, Children: []erofs.Dirent{{Name: "f", Inode: file}}},
		[]erofs.Device{{Tag: "probe", SizeBytes: size + probeOffset}})
	if err != nil {
		return err
	}
	spec := mount.Spec{Dir: filepath.Join(tmp, "mnt"), Metadata: filepath.Join(tmp, "metadata")}
	layer := mount.Layer{Blob: probeBlob, Path: filepath.Join(tmp, "layer"), SizeBytes: size + probeOffset}
	if err := errors.Join(os.Mkdir(spec.Dir, 0o700), os.WriteFile(spec.Metadata, metadata, 0o600)); err != nil {
		return err
	}
	if layer.File, err = os.OpenFile(layer.Path, os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return err
	}
	defer layer.File.Close()
	h.layer, spec.Layers = layer.File, []mount.Layer{layer}
	if err := layer.File.Truncate(layer.SizeBytes); err != nil {
		return err
	}
	m, err := New(ctx, Options{Handler: h, Workers: 1})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	if err := m.Mount(ctx, spec); err != nil {
		return err
	}
	got, err := os.ReadFile(filepath.Join(spec.Dir, "f"))
	switch {
	case err != nil:
		return err
	case h.fetched.Load() == 0:
		return fmt.Errorf("%w: reads of the mounted file make no requests", mount.ErrUnsupported)
	case !bytes.Equal(got, h.data):
		return fmt.Errorf("%w: the mounted file has wrong bytes", mount.ErrUnsupported)
	}
	return nil
}
