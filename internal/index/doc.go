// Package index is Thaw's index: what makes unmodified image layers readable
// at random, kept beside the image and never inside it.
//
// An index has two kinds of blob. One layer blob a layer (Layer) holds what
// was learned in one pass over the compressed layer: the span table (where
// each span of uncompressed bytes can be decoded from, and its sha256), the
// windows that decoding there needs, and the entries of the layer's tar. It
// depends on the layer alone, so every image that has the layer has the same
// blob. One head blob an image (Image) holds what a start needs first, small
// enough for one request: the span tables of all layers and the EROFS metadata
// image of their merged tree. Both are deterministic: the same image gives the
// same bytes. An OCI 1.1 artifact manifest with the image's manifest as its
// subject ties them together (manifest.go).
//
// The package builds, encodes, decodes and compares indexes. It does not fetch
// or store them, and knows nothing of mounts.
//
// The format is described in docs/formats/index.md.
package index
