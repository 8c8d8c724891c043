package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Docker's media types of the same documents
// (https://github.com/distribution/distribution/blob/main/docs/content/spec/manifest-v2-2.md).
const (
	MediaTypeDockerManifest     = "application/vnd.docker.distribution.manifest.v2+json"
	MediaTypeDockerManifestList = "application/vnd.docker.distribution.manifest.list.v2+json"
	MediaTypeDockerConfig       = "application/vnd.docker.container.image.v1+json"
	MediaTypeDockerLayer        = "application/vnd.docker.image.rootfs.diff.tar"
	MediaTypeDockerLayerGzip    = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	MediaTypeDockerLayerZstd    = "application/vnd.docker.image.rootfs.diff.tar.zstd"
)

// UnsupportedError says that an image is well-formed but has something this
// program cannot read. Retrying does not help.
type UnsupportedError struct {
	What      string // the part, such as "layer 3"
	MediaType string
	Why       string
}

func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("%s has media type %.200q: %s", e.What, e.MediaType, e.Why)
}

// ManifestMediaTypes are the documents a manifest request accepts, in order of
// preference.
func ManifestMediaTypes() []string {
	return []string{v1.MediaTypeImageIndex, v1.MediaTypeImageManifest, MediaTypeDockerManifestList, MediaTypeDockerManifest}
}

// IsImageIndex reports whether the type is OCI's image index or Docker's manifest list.
func IsImageIndex(mediaType string) bool {
	return mediaType == v1.MediaTypeImageIndex || mediaType == MediaTypeDockerManifestList
}

// IsImageManifest reports whether the type is an image manifest of OCI's or Docker's.
func IsImageManifest(mediaType string) bool {
	return mediaType == v1.MediaTypeImageManifest || mediaType == MediaTypeDockerManifest
}

// ManifestMediaType says what kind of document a manifest's bytes are: the type
// in the document, else the one it was served with, else the one its fields
// show. A document that could be read as two kinds is refused (CVE-2021-41190).
func ManifestMediaType(b []byte, served string) (string, error) {
	var doc struct {
		SchemaVersion int             `json:"schemaVersion"`
		MediaType     string          `json:"mediaType"`
		Manifests     json.RawMessage `json:"manifests"`
		Config        json.RawMessage `json:"config"`
		Layers        json.RawMessage `json:"layers"`
		FSLayers      json.RawMessage `json:"fsLayers"`
	}
	if len(b) > MaxManifestBytes {
		return "", fmt.Errorf("decode manifest: %d bytes, more than %d", len(b), MaxManifestBytes)
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		return "", fmt.Errorf("decode manifest: %w", err)
	}
	isIndex := doc.Manifests != nil
	isImage := doc.Config != nil || doc.Layers != nil
	switch {
	case doc.SchemaVersion == 1 || doc.FSLayers != nil:
		return "", &UnsupportedError{What: "manifest", MediaType: "schemaVersion 1", Why: "Docker's first image format is not supported; push the image again with a current tool"}
	case isIndex && isImage:
		return "", errors.New("decode manifest: it has both manifests and layers")
	case !isIndex && !isImage:
		return "", errors.New("decode manifest: it has neither manifests nor layers")
	}
	mediaType := doc.MediaType
	if mediaType == "" {
		mediaType, _, _ = mime.ParseMediaType(served)
	}
	switch {
	case isIndex && IsImageIndex(mediaType), isImage && IsImageManifest(mediaType):
		return mediaType, nil
	case doc.MediaType != "":
		return "", &UnsupportedError{What: "manifest", MediaType: mediaType, Why: "not an image manifest or image index, or not what its fields show"}
	case isIndex:
		return v1.MediaTypeImageIndex, nil
	default:
		return v1.MediaTypeImageManifest, nil
	}
}

// checkLayerType refuses layers that cannot be fetched or read.
func checkLayerType(what, mediaType string) error {
	unsupported := func(why string) error {
		return &UnsupportedError{What: what, MediaType: mediaType, Why: why}
	}
	switch mediaType {
	case v1.MediaTypeImageLayer, v1.MediaTypeImageLayerGzip, v1.MediaTypeImageLayerZstd,
		MediaTypeDockerLayer, MediaTypeDockerLayerGzip, MediaTypeDockerLayerZstd:
		return nil
	}
	switch {
	case strings.HasSuffix(mediaType, "+encrypted"):
		return unsupported("encrypted layers are not supported")
	case strings.Contains(mediaType, ".nondistributable.") || strings.Contains(mediaType, ".foreign."):
		return unsupported("layers that are not kept in the registry are not supported")
	case mediaType == "":
		return unsupported("the layer has no media type")
	default:
		return unsupported("not a layer type this program knows (tar, tar+gzip, tar+zstd)")
	}
}
