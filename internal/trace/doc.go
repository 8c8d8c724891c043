// Package trace is the model of what a start of an image read: byte ranges of
// its layers, in the order of their first use.
//
// A [Trace] is of one image and one command. One run gives one; [Merge] makes
// one of several, which says what starts of this image read as a rule.
// [Encode] and [Decode] are its file format, docs/formats/trace.md. [Map]
// carries a trace over to another image by the files that both have, through
// tables of where files lie ([Files]).
//
// Offsets are of the uncompressed tar, so a trace holds for every index of the
// image. A trace is a hint and nothing is believed because of it: one that is
// wrong costs bytes or time.
//
// The package does no recording and knows no files on disk: the daemon does.
package trace
