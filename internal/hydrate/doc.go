// Package hydrate puts layers' bytes on local disk: it is the one scheduler of
// every byte that a node fetches for its mounts.
//
// A Scheduler has Layers. A reader who waits calls Layer.Fetch; it is served
// first, each span is fetched once however many wait for it, and a reader who
// goes on in order has ever more under way ahead of it. Background workers bring the rest,
// one run of neighbouring spans at a time, and leave the network to readers
// while one waits. What arrives is decoded, verified against the index by the
// layer store and written; what arrives damaged is asked for again. When
// the last span is here the layer is finished: its digest is proven and its
// owner told. What is on disk from before an unclean stop is verified by the
// same workers before anything is fetched in its place.
//
// A layer that cannot be entered in its middle (one zstd frame, or a registry
// without ranges) is hydrated as a stream; readers wait for their part.
//
// Layers have sources, such as registries. While a source does not give what is
// asked for, its readers wait (Options.ReadTimeout) without a connection or
// memory; one of them tries for all, and all go on when bytes come again
// (outage.go, wait.go). A request that an outage has swallowed is found out by
// asking for a byte beside it (stuck.go).
//
// Readers and the background have memory, connections and turns at the decoder
// of their own: a reader never waits for something that the background holds,
// but for one span that is being decoded.
//
// The package does not know mounts, images or the kernel.
package hydrate
