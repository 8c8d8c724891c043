package index

import (
	"encoding/json"
	"fmt"

	digest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Artifact is an index as it lies in a registry: an OCI 1.1 artifact manifest
// whose subject is the image's manifest, its first layer the head blob, then
// one layer blob for each layer of the image, bottom first.
type Artifact struct {
	Descriptor v1.Descriptor // of Manifest
	Manifest   []byte
	Head       []byte
	Layers     []*LayerBlob // each blob once, however often the image has the layer
	Bundle     *Bundle      // nil: it has none
}

// NewArtifact makes the artifact of an image's index.
func NewArtifact(subject v1.Descriptor, image *Image, layers []*LayerBlob) (*Artifact, error) {
	head, err := image.Encode()
	if err != nil {
		return nil, err
	}
	m := v1.Manifest{
		Versioned:    specs.Versioned{SchemaVersion: 2},
		MediaType:    v1.MediaTypeImageManifest,
		ArtifactType: ArtifactType,
		Config:       v1.DescriptorEmptyJSON,
		Subject:      &v1.Descriptor{MediaType: subject.MediaType, Digest: subject.Digest, Size: subject.Size},
		Layers:       []v1.Descriptor{{MediaType: MediaTypeHead, Digest: digest.FromBytes(head), Size: int64(len(head))}},
	}
	m.Annotations = map[string]string{annotationHead: fmt.Sprintf("%s %d", m.Layers[0].Digest, m.Layers[0].Size)}
	a := &Artifact{Head: head}
	seen := map[digest.Digest]bool{}
	for _, l := range layers {
		m.Layers = append(m.Layers, v1.Descriptor{MediaType: MediaTypeLayer, Digest: l.Digest, Size: int64(len(l.Bytes))})
		if !seen[l.Digest] {
			seen[l.Digest] = true
			a.Layers = append(a.Layers, l)
		}
	}
	if a.Manifest, err = json.Marshal(m); err != nil {
		return nil, fmt.Errorf("encode index manifest: %w", err)
	}
	a.Descriptor = v1.Descriptor{MediaType: m.MediaType, ArtifactType: ArtifactType,
		Digest: digest.FromBytes(a.Manifest), Size: int64(len(a.Manifest))}
	return a, nil
}

// Manifest is what the manifest of an index says.
type Manifest struct {
	Head   v1.Descriptor
	Layers []v1.Descriptor   // of the layer blobs, bottom first
	Bundle *BundleDescriptor // nil: it has none
}

// ParseManifest reads the manifest of an index of the image subject. Blobs of
// other media types after the head are left out: a later version may have put
// them there.
func ParseManifest(b []byte, subject digest.Digest) (*Manifest, error) {
	var m v1.Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, corrupt("manifest", -1, "%v", err)
	}
	if m.ArtifactType != ArtifactType {
		return nil, corrupt("manifest", -1, "artifact type %q, want %q", m.ArtifactType, ArtifactType)
	}
	if m.Subject == nil || m.Subject.Digest != subject {
		return nil, corrupt("manifest", -1, "it is not about image %s", subject)
	}
	if len(m.Layers) == 0 || len(m.Layers) > maxLayers+maxOther || m.Layers[0].MediaType != MediaTypeHead {
		return nil, corrupt("manifest", -1, "no head blob")
	}
	out := &Manifest{Head: m.Layers[0]}
	for i, l := range m.Layers {
		if err := l.Digest.Validate(); err != nil || l.Size < 0 {
			return nil, corrupt("manifest", -1, "blob %d is %q of %d bytes, digest %q", i, l.MediaType, l.Size, l.Digest)
		}
		switch {
		case i == 0:
		case l.MediaType == MediaTypeLayer:
			out.Layers = append(out.Layers, l)
		case l.MediaType == MediaTypeBundle && out.Bundle == nil:
			out.Bundle = bundleOf(l)
		}
	}
	if len(out.Layers) > maxLayers {
		return nil, corrupt("manifest", -1, "%d layers", len(out.Layers))
	}
	return out, nil
}

// maxOther bounds the blobs of a manifest that are not a layer's.
const maxOther = 16

// annotationHead repeats the head's digest and size on the manifest. Registries
// copy annotations into their list of referrers, where a reader finds it without
// waiting for the manifest.
const annotationHead = "dev.thaw.index.head"

// HeadHint returns the head's descriptor as a list of referrers has it, and
// whether it does. It is a hint: the manifest decides.
func HeadHint(referrer v1.Descriptor) (v1.Descriptor, bool) {
	d := v1.Descriptor{MediaType: MediaTypeHead}
	n, err := fmt.Sscanf(referrer.Annotations[annotationHead], "%s %d", &d.Digest, &d.Size)
	return d, err == nil && n == 2 && d.Digest.Validate() == nil && d.Size > 0
}

// HeadDescriptor describes the head blob.
func (a *Artifact) HeadDescriptor() v1.Descriptor {
	return v1.Descriptor{MediaType: MediaTypeHead, Digest: digest.FromBytes(a.Head), Size: int64(len(a.Head))}
}
