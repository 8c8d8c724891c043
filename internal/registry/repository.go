package registry

import (
	"context"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/thaw-project/thaw/internal/oci"
)

// MaxBlobBytes bounds what [Repository.Blob] reads into memory.
const MaxBlobBytes = 256 << 20

// Repository is one repository of a registry, or one OCI layout. It is safe for
// concurrent use. What is missing gives an error that is [ErrNotFound]; a
// context that ends gives its cause, wrapped in an [Error].
type Repository interface {
	// Manifest fetches an image manifest or image index by tag or digest. The
	// bytes hash to the descriptor's digest. In a layout an empty string is its
	// sole image.
	Manifest(ctx context.Context, tagOrDigest string) ([]byte, v1.Descriptor, error)
	// Blob fetches a whole blob of at most MaxBlobBytes and verifies it.
	Blob(ctx context.Context, desc v1.Descriptor) ([]byte, error)
	// ReadRange opens the n bytes of a blob from off. Reading gives exactly
	// these n bytes and io.EOF, or an error; broken connections are resumed
	// inside. The bytes are not verified. The first answer of the server has
	// come when it returns. Close it.
	ReadRange(ctx context.Context, desc v1.Descriptor, off, n int64) (io.ReadCloser, error)
	// Referrers lists the manifests that have subject as their subject, of
	// one artifact type or, with an empty one, of all. None is no error.
	Referrers(ctx context.Context, subject digest.Digest, artifactType string) ([]v1.Descriptor, error)
	// PushBlob stores a blob unless it is there. r gives a new reader of the
	// whole blob each time it is called (several times when retrying).
	PushBlob(ctx context.Context, desc v1.Descriptor, r func() (io.ReadCloser, error)) error
	// PushManifest stores a manifest under a tag, or with an empty string or
	// its own digest under none, and makes it known as a referrer of its subject.
	PushManifest(ctx context.Context, tagOrDigest, mediaType string, b []byte) error
}

// NoRanges reports whether repo is known to send whole blobs only, so that
// streaming a blob beats reading ranges of it. It becomes known by reading.
func NoRanges(repo Repository) bool {
	r, ok := repo.(interface{ NoRanges() bool })
	return ok && r.NoRanges()
}

// maxIndexDepth bounds image indexes within image indexes.
const maxIndexDepth = 4

// ResolveImage fetches the manifest and config that ref means on a platform
// (the zero value is the host's), through an image index or manifest list
// where there is one.
func ResolveImage(ctx context.Context, repo Repository, ref oci.Reference, platform v1.Platform) (*oci.Image, error) {
	b, err := ResolveManifest(ctx, repo, ref, platform)
	if err != nil {
		return nil, err
	}
	return FetchConfig(ctx, repo, ref, b)
}

// ResolveManifest is the first half of ResolveImage: it returns the manifest,
// whose digest is enough to look for what refers to it.
func ResolveManifest(ctx context.Context, repo Repository, ref oci.Reference, platform v1.Platform) ([]byte, error) {
	b, desc, err := repo.Manifest(ctx, ref.Identifier())
	if err != nil {
		return nil, fmt.Errorf("resolve image %s: %w", ref, err)
	}
	for depth := 0; oci.IsImageIndex(desc.MediaType); depth++ {
		if depth == maxIndexDepth {
			return nil, fmt.Errorf("resolve image %s: image indexes nested more than %d deep", ref, maxIndexDepth)
		}
		idx, err := oci.ParseImageIndex(b)
		if err != nil {
			return nil, fmt.Errorf("resolve image %s: %w", ref, err)
		}
		entry, err := oci.SelectPlatform(idx, platform)
		if err != nil {
			return nil, fmt.Errorf("resolve image %s: %w", ref, err)
		}
		if b, desc, err = repo.Manifest(ctx, entry.Digest.String()); err != nil {
			return nil, fmt.Errorf("resolve image %s: %w", ref, err)
		}
	}
	return b, nil
}

// FetchConfig is the second half of ResolveImage: it fetches the config that a
// manifest names and makes both an image.
func FetchConfig(ctx context.Context, repo Repository, ref oci.Reference, manifestBytes []byte) (*oci.Image, error) {
	manifest, _, err := oci.ParseManifest(manifestBytes)
	if err != nil {
		return nil, fmt.Errorf("resolve image %s: %w", ref, err)
	}
	config, err := repo.Blob(ctx, manifest.Config)
	if err != nil {
		return nil, fmt.Errorf("resolve image %s: config: %w", ref, err)
	}
	img, err := oci.ParseImage(manifestBytes, config)
	if err != nil {
		return nil, fmt.Errorf("resolve image %s: %w", ref, err)
	}
	img.Reference = ref
	return img, nil
}

// checkRange validates a range of a blob.
func checkRange(desc v1.Descriptor, off, n int64) error {
	if off < 0 || n < 0 || desc.Size < 0 || off > desc.Size || n > desc.Size-off {
		return fmt.Errorf("bytes %d+%d are not within its %d", off, n, desc.Size)
	}
	return desc.Digest.Validate()
}

// verify compares b with a digest that has been validated.
func verify(want digest.Digest, b []byte) error {
	if got := want.Algorithm().FromBytes(b); got != want {
		return &DigestError{Want: want, Got: got}
	}
	return nil
}

// embedded is the content a descriptor carries itself, if it does and is right.
func embedded(desc v1.Descriptor) ([]byte, bool) {
	if len(desc.Data) == 0 || int64(len(desc.Data)) != desc.Size || desc.Digest.Validate() != nil || verify(desc.Digest, desc.Data) != nil {
		return nil, false
	}
	return desc.Data, true
}
