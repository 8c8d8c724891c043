package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/thaw-project/thaw/internal/layertar/layertartest"
)

// compression is a way in which layers are served.
type compression struct {
	name, mediaType string
	compress        func(b []byte) []byte
}

var compressions = []compression{
	{"gzip", v1.MediaTypeImageLayerGzip, func(b []byte) []byte { return layertartest.Gzip(b, 1) }},
	{"gzip-members", v1.MediaTypeImageLayerGzip, func(b []byte) []byte { return layertartest.Gzip(b, 7) }},
	{"zstd-frame", v1.MediaTypeImageLayerZstd, func(b []byte) []byte { return zstdFrames(b, 1) }},
	{"zstd-frames", v1.MediaTypeImageLayerZstd, func(b []byte) []byte { return zstdFrames(b, 5) }},
	{"plain", v1.MediaTypeImageLayer, func(b []byte) []byte { return b }},
}

func zstdFrames(b []byte, frames int) []byte {
	w, err := zstd.NewWriter(nil)
	if err != nil {
		panic(err) // no options
	}
	var out []byte
	for i := range frames {
		out = w.EncodeAll(b[len(b)*i/frames:len(b)*(i+1)/frames], out)
	}
	return out
}

// writeBlob puts a blob into a layout.
func writeBlob(t testing.TB, layout, mediaType string, b []byte) v1.Descriptor {
	t.Helper()
	d := digest.FromBytes(b)
	dir := filepath.Join(layout, v1.ImageBlobsDir, d.Algorithm().String())
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, d.Encoded()), b, 0o644); err != nil {
		t.Fatal(err)
	}
	return v1.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(b))}
}

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// writeImage adds an image of uncompressed layers to a layout, and returns its
// manifest.
func writeImage(t testing.TB, layout, name string, c compression, layers [][]byte) v1.Manifest {
	t.Helper()
	return writeImageConfig(t, layout, name, c, v1.ImageConfig{}, layers)
}

// writeImageConfig is writeImage with what a container is to run.
func writeImageConfig(t testing.TB, layout, name string, c compression, runs v1.ImageConfig, layers [][]byte) v1.Manifest {
	t.Helper()
	config := v1.Image{Platform: v1.Platform{Architecture: "amd64", OS: "linux"}, Config: runs, RootFS: v1.RootFS{Type: "layers"}}
	m := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest}
	for _, b := range layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(b))
		m.Layers = append(m.Layers, writeBlob(t, layout, c.mediaType, c.compress(bytes.Clone(b))))
	}
	m.Config = writeBlob(t, layout, v1.MediaTypeImageConfig, marshal(t, config))
	desc := writeBlob(t, layout, v1.MediaTypeImageManifest, marshal(t, m))
	desc.Platform = &config.Platform
	desc.Annotations = map[string]string{v1.AnnotationRefName: name}

	index := v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex}
	path := filepath.Join(layout, v1.ImageIndexFile)
	if b, err := os.ReadFile(path); err == nil {
		if err := json.Unmarshal(b, &index); err != nil {
			t.Fatal(err)
		}
	}
	index.Manifests = append(index.Manifests, desc)
	files := map[string]any{v1.ImageIndexFile: index, v1.ImageLayoutFile: v1.ImageLayout{Version: v1.ImageLayoutVersion}}
	for name, v := range files {
		if err := os.WriteFile(filepath.Join(layout, name), marshal(t, v), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return m
}
