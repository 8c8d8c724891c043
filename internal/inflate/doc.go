// Package inflate decodes layer blobs so that decoding can start in the middle.
//
// Scan reads a blob once and cuts its output into spans of equal size. Each
// span comes with an access Point, from which a Decoder decodes it later given
// only the blob's bytes from Point.OffsetCompressed to Span.EndCompressed.
// Spans begin exactly where they should, so a point may lie anywhere: between
// two symbols of a DEFLATE block, in a stored block, in a match, before a gzip
// trailer. What the decoder must know is in Point.State (at most MaxStateBytes,
// mostly the block's code lengths) and Point.Window, the 32 KiB of output
// before the point. A span rarely refers to more than a part of its window, and
// Scan sees which; all other bytes are zeroed, which makes windows compress
// well.
//
// DEFLATE (RFC 1951) and gzip (RFC 1952) are decoded here: tables as in other
// fast decoders (11 bits of input give a symbol), a loop that runs while there
// is plenty of input and room (in Go, and the same in assembly), and a careful
// one for the edges, that consumes not a bit more than its output needs.
// Zstandard (RFC 8878) frames are decoded by a library; they can be entered at
// their starts only, so a point is the nearest one and a number of output bytes
// to skip. Plain data needs no state.
//
// Input may be hostile: output, compressed bytes a span, windows and gzip
// headers are bounded, and corrupt data is a *CorruptError, never a panic or a
// hang. But a Decoder does not know what the right bytes are: it returns what
// state, window and blob say, and its caller verifies the span's digest.
//
// The package does not compress, store points, or handle zlib streams, preset
// dictionaries and encryption.
package inflate
