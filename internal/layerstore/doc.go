// Package layerstore keeps image layers on disk: each as a sparse file that is
// the layer's uncompressed tar, with a record of which spans of it are here.
//
// # Model
//
// A Store owns one state directory, locked against other processes. A layer is
// named by its blob digest and cut into spans of equal size, each with a sha256
// from the layer's index. Acquire opens a layer and counts its users; Put
// verifies a span, writes it and sets its have-bit; Have is a lock-free look at
// that bit; Sync makes bits durable; Finish proves the whole file against the
// diffID in the image config and sets the complete mark. Ingest writes a layer
// in one stream, for images without an index.
//
// # What is believed, and when
//
// A bit is set in memory after pwrite returned, and written to the have file
// only after the data was synced. So a have file of the running boot is always
// right, also after kill -9: the page cache outlives the process. A have file of
// another boot, or a damaged one, makes its spans suspect: Have says no until
// Recheck has hashed what the disk really holds. A complete mark is believed on
// every boot, as long as the tar's size and modification time are those it was
// set for. A sync that fails takes back every bit that is not yet durable, for
// the kernel then may drop pages it could not write. docs/formats/layerstore.md
// has the byte tables and the states.
//
// # One descriptor
//
// While a layer is mounted under a fanotify mark, its tar must be read and
// written only through the descriptor that was opened before the mark: a later
// one raises events on our own group and deadlocks. Acquire opens the tar at
// most once or takes that first descriptor; nothing else here opens it. A daemon
// that takes over from a dead one therefore acquires the layers still mounted,
// with the descriptors kept for it, before it does anything else.
//
// # What it does not do
//
// It fetches nothing, decompresses nothing, knows no mounts and starts no
// goroutines. It does not judge an index beyond its span table. It removes only
// when GC or Evict are called, and only whole layers without users and pins
// (docs/decisions/0010-evict-whole-layers.md).
package layerstore
