// Package oci holds the words of the image world that every other package
// speaks: references, platforms, manifests, configs and their limits.
//
// Its model: bytes that came from somewhere untrusted are parsed once, here,
// into values that are valid by construction. An [Image] has as many diffIDs as
// layers, sizes that can be added without overflow, and only layers this
// program can read; what it cannot read is named in an [UnsupportedError].
//
// It deliberately does no I/O, starts no goroutines and knows no registry:
// fetching is internal/registry's work. Image index is always OCI's (a list of
// manifests by platform), never the layer index of internal/index.
//
// Specifications: https://github.com/opencontainers/image-spec (manifest.md,
// image-index.md, config.md, image-layout.md) and, for references and tags,
// https://github.com/opencontainers/distribution-spec/blob/main/spec.md#pulling-manifests.
package oci
