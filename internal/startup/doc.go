// Package startup makes a recorded start into a start-up bundle: one blob with
// what a start of an image reads, in the order in which it reads it, and takes
// such a blob apart again.
//
// A bundle has a header and frames. The header lists *pieces*: ranges of the
// image's layers, none over the border of a span, none overlapping another, each
// with its sha256. Frames are independent zstd frames of some pieces each, in
// the order of their first use: they are unpacked on all cores while later ones
// are still on their way. The header is verified by a digest that the index'
// manifest has; what comes out of a frame is believed piece by piece.
// docs/formats/bundle.md has the bytes.
//
// Plan decides what goes into a bundle, Build makes one, ReadHeader and
// Header.Apply read it. The same trace, image and version of thaw give the same
// bytes.
//
// The package fetches nothing and writes no layers: where bytes come from and go
// to is its caller's.
package startup
