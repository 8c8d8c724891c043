package mount

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
)

// Probe finds out whether a Mounter works for layer files in dir, by doing it: start makes one, which mounts a tiny image; a file of it
// that is not there is read, and the handler is to be asked for it and the bytes to be right. It returns nil, or why not: the error is
// ErrUnsupported where something is missing, and names what. It leaves nothing behind. name is the Mounter's in errors.
func Probe(ctx context.Context, dir, name string, start func(context.Context, Handler) (Mounter, error)) error {
	tmp, err := os.MkdirTemp(dir, ".probe-*")
	if err != nil {
		return fmt.Errorf("probe %s: %w", name, err)
	}
	defer os.RemoveAll(tmp)
	if err := probe(ctx, tmp, start); err != nil {
		return fmt.Errorf("probe %s in %s: %w", name, dir, err)
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

func probe(ctx context.Context, tmp string, start func(context.Context, Handler) (Mounter, error)) (err error) {
	h := &probeHandler{data: bytes.Repeat([]byte("thaw"), 1024)}
	size := int64(len(h.data))
	file := &erofs.Inode{Mode: unix.S_IFREG | 0o444, SizeBytes: size, Extents: []erofs.Extent{{Length: size, Device: 1, OffsetDevice: probeOffset}}}
	metadata, err := erofs.Write(
		&erofs.Inode{Mode: unix.S_IFDIR | 0o555, Children: []erofs.Dirent{{Name: "f", Inode: file}}},
		[]erofs.Device{{Tag: "probe", SizeBytes: size + probeOffset}})
	if err != nil {
		return err
	}
	spec := Spec{Dir: filepath.Join(tmp, "mnt"), Metadata: filepath.Join(tmp, "metadata")}
	layer := Layer{Blob: probeBlob, Path: filepath.Join(tmp, "layer"), SizeBytes: size + probeOffset}
	if err := errors.Join(os.Mkdir(spec.Dir, 0o700), os.WriteFile(spec.Metadata, metadata, 0o600)); err != nil {
		return err
	}
	if layer.File, err = os.OpenFile(layer.Path, os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return err
	}
	defer layer.File.Close()
	h.layer, spec.Layers = layer.File, []Layer{layer}
	if err := layer.File.Truncate(layer.SizeBytes); err != nil {
		return err
	}
	m, err := start(ctx, h)
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
		return fmt.Errorf("%w: reads of the mounted file are not seen", ErrUnsupported)
	case !bytes.Equal(got, h.data):
		return fmt.Errorf("%w: the mounted file has wrong bytes", ErrUnsupported)
	}
	return nil
}
