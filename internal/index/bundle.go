package index

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"

	digest "github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// MediaTypeBundle is of the start-up bundle, a blob of the index' manifest; its
// format is package startup's.
const MediaTypeBundle = "application/vnd.thaw.index.bundle.v1"

// BundleDescriptor names a start-up bundle and its header, which is verified
// before the rest is here.
type BundleDescriptor struct {
	Digest       digest.Digest
	Bytes        int64 // of the blob, header included
	HeaderDigest digest.Digest
	HeaderBytes  int64
	Created      int64 // when the newest start was recorded that it was made of, in Unix seconds; of two the newer is better
}

// Bundle is a start-up bundle.
type Bundle struct {
	BundleDescriptor
	Blob []byte
}

const (
	// annotationBundle is on the bundle's descriptor in the manifest, and as a hint on
	// the manifest itself, as annotationHead is.
	annotationBundle = "dev.thaw.index.bundle"
	// annotationBundleHeader has the header's digest and size, and the time.
	annotationBundleHeader = "dev.thaw.index.bundle.header"
)

// Descriptor describes the bundle as a blob.
func (d *BundleDescriptor) Descriptor() v1.Descriptor {
	return v1.Descriptor{MediaType: MediaTypeBundle, Digest: d.Digest, Size: d.Bytes,
		Annotations: map[string]string{annotationBundleHeader: d.header()}}
}

func (d *BundleDescriptor) header() string {
	return fmt.Sprintf("%s %d %d", d.HeaderDigest, d.HeaderBytes, d.Created)
}

// parse sets what header returned, and reports whether d is complete.
func (d *BundleDescriptor) parse(header string) bool {
	n, err := fmt.Sscanf(header, "%s %d %d", &d.HeaderDigest, &d.HeaderBytes, &d.Created)
	return err == nil && n == 3 && d.HeaderDigest.Validate() == nil && d.HeaderDigest.Algorithm() == digest.SHA256 && d.HeaderBytes > 0 &&
		d.Digest.Validate() == nil && d.Bytes >= d.HeaderBytes
}

// bundleOf reads a bundle's descriptor in a manifest; nil if it cannot be used.
func bundleOf(l v1.Descriptor) *BundleDescriptor {
	d := &BundleDescriptor{Digest: l.Digest, Bytes: l.Size}
	if !d.parse(l.Annotations[annotationBundleHeader]) {
		return nil
	}
	return d
}

// BundleHint returns the bundle's descriptor as a list of referrers has it, or
// nil. It is a hint: the manifest decides.
func BundleHint(referrer v1.Descriptor) *BundleDescriptor {
	d := &BundleDescriptor{}
	n, err := fmt.Sscanf(referrer.Annotations[annotationBundle], "%s %d", &d.Digest, &d.Bytes)
	if err != nil || n != 2 || !d.parse(referrer.Annotations[annotationBundleHeader]) {
		return nil
	}
	return d
}

// SetBundle gives the index a start-up bundle in place of any it has; nil takes
// it away.
func (a *Artifact) SetBundle(b *Bundle) error {
	var m v1.Manifest
	if err := json.Unmarshal(a.Manifest, &m); err != nil {
		return corrupt("manifest", -1, "%v", err)
	}
	m.Layers = slices.DeleteFunc(m.Layers, func(l v1.Descriptor) bool { return l.MediaType == MediaTypeBundle })
	delete(m.Annotations, annotationBundle)
	delete(m.Annotations, annotationBundleHeader)
	if b != nil {
		if m.Annotations == nil {
			m.Annotations = map[string]string{}
		}
		m.Layers = append(m.Layers, b.Descriptor())
		m.Annotations[annotationBundle] = string(b.Digest) + " " + strconv.FormatInt(b.Bytes, 10)
		m.Annotations[annotationBundleHeader] = b.header()
	}
	manifest, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode index manifest: %w", err)
	}
	a.Manifest, a.Bundle = manifest, b
	a.Descriptor.Digest, a.Descriptor.Size = digest.FromBytes(manifest), int64(len(manifest))
	return nil
}
