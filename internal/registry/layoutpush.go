package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// lockPoll is how often a taken lock is tried again: flock cannot wait for a
// context.
const lockPoll = 20 * time.Millisecond

// PushBlob implements [Repository].
func (l *layout) PushBlob(ctx context.Context, desc v1.Descriptor, open func() (io.ReadCloser, error)) error {
	if err := l.pushBlob(ctx, desc, open); err != nil {
		return l.fail("write blob", desc.Digest.String(), err)
	}
	return nil
}

func (l *layout) pushBlob(ctx context.Context, desc v1.Descriptor, open func() (io.ReadCloser, error)) error {
	path, err := l.blobPath(desc.Digest)
	if err != nil {
		return err
	}
	if info, err := os.Stat(path); err == nil && info.Size() == desc.Size {
		return nil
	}
	if err := l.create(); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	r, err := open()
	if err != nil {
		return err
	}
	defer r.Close()
	return writeFile(path, func(f *os.File) error {
		h := desc.Digest.Algorithm().Hash()
		n, err := io.Copy(io.MultiWriter(f, h), io.LimitReader(contextReader{ctx, r}, desc.Size+1))
		if err != nil {
			return err
		}
		if n != desc.Size {
			return fmt.Errorf("the reader does not give %d bytes", desc.Size)
		}
		if got := digestOf(desc.Digest.Algorithm(), h); got != desc.Digest {
			return &DigestError{Want: desc.Digest, Got: got}
		}
		return nil
	})
}

// contextReader ends with its context.
type contextReader struct {
	ctx context.Context // of the call that reads
	r   io.Reader
}

func (r contextReader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.r.Read(p)
}

// writeFile makes path appear whole and durable, or not at all.
func writeFile(path string, write func(*os.File) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if err := write(f); err != nil {
		return err
	}
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func writeJSON(path string, v any) error {
	return writeFile(path, func(f *os.File) error {
		b, err := json.Marshal(v)
		if err != nil {
			return err
		}
		_, err = f.Write(b)
		return err
	})
}

// create makes an empty layout where there is none.
func (l *layout) create() error {
	if err := os.MkdirAll(filepath.Join(l.dir, v1.ImageBlobsDir), 0o755); err != nil {
		return err
	}
	path := filepath.Join(l.dir, v1.ImageLayoutFile)
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return writeJSON(path, v1.ImageLayout{Version: v1.ImageLayoutVersion})
}

// PushManifest implements [Repository]. A manifest without a tag is listed in
// index.json without a name, so that it is found as a referrer.
func (l *layout) PushManifest(ctx context.Context, tagOrDigest, mediaType string, b []byte) error {
	desc, tag, err := manifestToPush(tagOrDigest, mediaType, b)
	if err == nil {
		err = l.pushBlob(ctx, desc, bytesOpener(b))
	}
	if err == nil {
		err = l.updateIndex(ctx, desc, tag, b)
	}
	if err != nil {
		return l.fail("write manifest", tagOrDigest, err)
	}
	return nil
}

// updateIndex puts a manifest into index.json, under a lock on the layout's
// directory: index.json itself is replaced, and a lock file would be a stranger
// in the layout.
func (l *layout) updateIndex(ctx context.Context, desc v1.Descriptor, tag string, b []byte) error {
	unlock, err := l.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	idx, err := l.index()
	if errors.Is(err, fs.ErrNotExist) {
		idx, err = v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex}, nil
	}
	if err != nil {
		return err
	}
	if ref, ok := referrerOf(b, desc); ok {
		desc.ArtifactType = ref.desc.ArtifactType
	}
	if tag != "" {
		desc.Annotations = map[string]string{v1.AnnotationRefName: tag}
		idx.Manifests = slices.DeleteFunc(idx.Manifests, func(d v1.Descriptor) bool {
			return d.Annotations[v1.AnnotationRefName] == tag
		})
	} else if slices.ContainsFunc(idx.Manifests, func(d v1.Descriptor) bool { return d.Digest == desc.Digest }) {
		return nil
	}
	idx.Manifests = append(idx.Manifests, desc)
	return writeJSON(filepath.Join(l.dir, v1.ImageIndexFile), idx)
}

// lock takes the layout's lock, waiting until the context ends.
func (l *layout) lock(ctx context.Context) (unlock func(), err error) {
	d, err := os.Open(l.dir)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { d.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			d.Close()
			return nil, fmt.Errorf("lock layout: %w", err)
		}
		if err := sleep(ctx, lockPoll); err != nil {
			d.Close()
			return nil, err
		}
	}
}

// manifestToPush checks what is about to be pushed and splits off the tag.
func manifestToPush(tagOrDigest, mediaType string, b []byte) (desc v1.Descriptor, tag string, err error) {
	desc = v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	switch {
	case tagOrDigest == "" || tagOrDigest == desc.Digest.String():
	case digest.Digest(tagOrDigest).Validate() == nil:
		return desc, "", fmt.Errorf("the manifest's digest is %s", desc.Digest)
	default:
		tag = tagOrDigest
	}
	return desc, tag, nil
}
