package oci

import (
	"encoding/json"
	"fmt"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Limits on what an image may claim. They are far above real images and keep
// sums of sizes far below the range of int64.
const (
	MaxManifestBytes = 8 << 20
	MaxConfigBytes   = 16 << 20
	MaxLayers        = 1000
	MaxLayerBytes    = 1 << 42 // 4 TiB
	MaxIndexEntries  = 10000
)

// Image is a validated image manifest with its config.
type Image struct {
	// Reference is what was resolved; zero until someone sets it.
	Reference Reference
	// ManifestDescriptor names the image manifest (never an image index).
	ManifestDescriptor v1.Descriptor
	Manifest           v1.Manifest
	ManifestBytes      []byte // as served; they hash to ManifestDescriptor.Digest
	Config             v1.Image
	ConfigBytes        []byte // as served; they hash to Manifest.Config.Digest
	// Layers, lowest first.
	Layers []Layer
}

// Layer is one layer of an image. The embedded descriptor names the blob as it
// is served; DiffID is the digest of the uncompressed tar.
type Layer struct {
	v1.Descriptor
	DiffID digest.Digest
}

// SizeBytes is the size of the image's layers as served.
func (img *Image) SizeBytes() int64 {
	var n int64
	for _, l := range img.Layers {
		n += l.Size
	}
	return n
}

// ParseManifest decodes and validates an image manifest: its layers must be of
// types this program can read (an [UnsupportedError] names the first that is
// not), sizes and digests well-formed and within the limits above.
func ParseManifest(b []byte) (v1.Manifest, v1.Descriptor, error) {
	mediaType, err := ManifestMediaType(b, "")
	if err != nil {
		return v1.Manifest{}, v1.Descriptor{}, err
	}
	desc := v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	fail := func(err error) (v1.Manifest, v1.Descriptor, error) {
		return v1.Manifest{}, v1.Descriptor{}, fmt.Errorf("decode manifest %s: %w", desc.Digest, err)
	}
	if !IsImageManifest(mediaType) {
		return fail(fmt.Errorf("it is an image index, not an image"))
	}
	var m v1.Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return fail(err)
	}
	if err := checkManifest(&m); err != nil {
		return fail(err)
	}
	return m, desc, nil
}

func checkManifest(m *v1.Manifest) error {
	switch m.Config.MediaType {
	case v1.MediaTypeImageConfig, MediaTypeDockerConfig:
	default:
		return &UnsupportedError{What: "config", MediaType: m.Config.MediaType, Why: "this is an artifact, not a container image"}
	}
	if err := checkDescriptor("config", m.Config, MaxConfigBytes); err != nil {
		return err
	}
	if len(m.Layers) > MaxLayers {
		return fmt.Errorf("%d layers, more than %d", len(m.Layers), MaxLayers)
	}
	for i, l := range m.Layers {
		what := fmt.Sprintf("layer %d", i)
		if err := checkLayerType(what, l.MediaType); err != nil {
			return err
		}
		if err := checkDescriptor(what, l, MaxLayerBytes); err != nil {
			return err
		}
		if len(l.URLs) > 0 {
			return &UnsupportedError{What: what, MediaType: l.MediaType, Why: "it is to be fetched from elsewhere (urls), which is not supported"}
		}
	}
	return nil
}

func checkDescriptor(what string, d v1.Descriptor, maxBytes int64) error {
	if err := CheckDigest(d.Digest); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if d.Size < 0 || d.Size > maxBytes {
		return fmt.Errorf("%s %s: size %d is not between 0 and %d", what, d.Digest, d.Size, maxBytes)
	}
	return nil
}

// ParseImage decodes and validates an image from its manifest's and its
// config's bytes. The config must be the one that the manifest names.
func ParseImage(manifestBytes, configBytes []byte) (*Image, error) {
	m, desc, err := ParseManifest(manifestBytes)
	if err != nil {
		return nil, err
	}
	fail := func(err error) (*Image, error) {
		return nil, fmt.Errorf("decode config %s: %w", m.Config.Digest, err)
	}
	if int64(len(configBytes)) != m.Config.Size {
		return fail(fmt.Errorf("%d bytes, the manifest says %d", len(configBytes), m.Config.Size))
	}
	if got := digest.FromBytes(configBytes); got != m.Config.Digest {
		return fail(fmt.Errorf("its bytes hash to %s", got))
	}
	img := &Image{ManifestDescriptor: desc, Manifest: m, ManifestBytes: manifestBytes, ConfigBytes: configBytes}
	if err := json.Unmarshal(configBytes, &img.Config); err != nil {
		return fail(err)
	}
	if os := img.Config.OS; os != "" && os != "linux" {
		return fail(fmt.Errorf("the image is for %q, only linux is supported", os))
	}
	if img.Layers, err = joinLayers(m.Layers, img.Config.RootFS.DiffIDs); err != nil {
		return fail(err)
	}
	return img, nil
}

// joinLayers pairs blobs with diffIDs. A blob that is there twice is fine; it
// cannot have two sizes or two diffIDs.
func joinLayers(blobs []v1.Descriptor, diffIDs []digest.Digest) ([]Layer, error) {
	if len(blobs) != len(diffIDs) {
		return nil, fmt.Errorf("%d diffIDs for %d layers", len(diffIDs), len(blobs))
	}
	layers := make([]Layer, len(blobs))
	seen := make(map[digest.Digest]int, len(blobs))
	for i, blob := range blobs {
		if err := CheckDigest(diffIDs[i]); err != nil {
			return nil, fmt.Errorf("diffID %d: %w", i, err)
		}
		layers[i] = Layer{Descriptor: blob, DiffID: diffIDs[i]}
		if j, ok := seen[blob.Digest]; ok && (layers[j].Size != blob.Size || layers[j].DiffID != diffIDs[i]) {
			return nil, fmt.Errorf("layers %d and %d are the same blob %s with different sizes or diffIDs", j, i, blob.Digest)
		}
		seen[blob.Digest] = i
	}
	return layers, nil
}

// ParseImageIndex decodes and validates an image index or manifest list. Entries
// of unknown media types are kept: choosing is the caller's.
func ParseImageIndex(b []byte) (v1.Index, error) {
	fail := func(err error) (v1.Index, error) {
		return v1.Index{}, fmt.Errorf("decode image index: %w", err)
	}
	if len(b) > MaxManifestBytes {
		return fail(fmt.Errorf("%d bytes, more than %d", len(b), MaxManifestBytes))
	}
	var idx v1.Index
	if err := json.Unmarshal(b, &idx); err != nil {
		return fail(err)
	}
	if len(idx.Manifests) > MaxIndexEntries {
		return fail(fmt.Errorf("%d entries, more than %d", len(idx.Manifests), MaxIndexEntries))
	}
	for i, d := range idx.Manifests {
		if err := d.Digest.Validate(); err != nil {
			return fail(fmt.Errorf("entry %d: digest %.100q: %w", i, string(d.Digest), err))
		}
		if d.Size < 0 {
			return fail(fmt.Errorf("entry %d %s: negative size", i, d.Digest))
		}
	}
	return idx, nil
}
