// Package mount makes an image's files appear in a directory, and keeps them right while their bytes arrive.
//
// The model: a mount is one EROFS metadata image (names, types, owners: all local) whose file data lies in layer
// files, one device a layer. A layer file is sparse until its layer is complete. A Mounter sees each read of a range
// before it happens, asks its Handler to make that range be there, and lets the read go on, or fail with EIO. It never
// lets it go on without. Implementations: package fanotify (pre-content events). They share the suite mounttest.Run.
//
// The package has the contract and what all implementations need of the kernel: EROFS and overlay mounts by
// fsopen(2), unmounting, and the list of what is mounted. It does not use mount(8), whose helper silently puts a loop
// device under an EROFS image, nor mount(2), whose option string is too short for 300 layers.
//
// It fetches nothing, and it does not know images, only layers.
package mount

import (
	"context"
	"errors"
	"os"

	"github.com/opencontainers/go-digest"
)

// Handler makes ranges of layer files be there. All methods are called concurrently.
type Handler interface {
	// Have says whether all n bytes at off of the layer's file are there and right. It is called in the one goroutine
	// that answers all reads of the node, so it takes no lock that is held during I/O and does not block. False for a layer
	// that it does not know.
	Have(layer digest.Digest, off, n int64) bool
	// Fetch returns nil once all n bytes at off are in the layer's file; then Have is true for them. Any error makes the
	// read that waits fail with EIO, and a later read tries again. The context ends when the Mounter closes. It writes only
	// through the layer's first descriptor (Layer.File): any other would raise an event for its own write, and wait for itself.
	Fetch(ctx context.Context, layer digest.Digest, off, n int64) error
}

// Seen is told of each read of a watched layer, before it is answered: its range, cut to the layer's size, and the
// process or thread that reads, 0 where the kernel does not say. It is called where all reads of the node are answered, by several goroutines
// at once, so it does not block.
type Seen func(layer digest.Digest, off, n int64, pid int)

// Layer is one layer of a mount.
type Layer struct {
	// Blob identifies the layer: the digest of its compressed bytes as served.
	Blob digest.Digest
	// Path is the layer file: the uncompressed tar, sparse while the layer is not complete.
	Path string
	// File is the layer file's first descriptor, opened read-write before anything marked the file. It stays the
	// caller's. Nil is allowed when Complete.
	File *os.File
	// SizeBytes is the tar's size; reads beyond it need nothing.
	SizeBytes int64
	// Complete says that every byte is there and synced: nothing needs to watch the file. A layer may be complete and be
	// mounted as one that is not, so that its reads are seen, until Unwatch.
	Complete bool
}

// Spec is one mount.
type Spec struct {
	// Dir is the directory to mount on. It exists.
	Dir string
	// Metadata is the path of the EROFS image.
	Metadata string
	// Layers are the image's devices, in their order.
	Layers []Layer
	// Twice says that the image has each layer as a device twice, device n+i being layer i again. Only the Mounter of
	// package fanotify takes it, which can be told not to ask about reads of the second ones.
	Twice bool
}

// Mounter mounts images whose layers may not be complete. Methods may be called concurrently.
type Mounter interface {
	// Mount mounts the image read-only. When it returns nil each read of a byte that is not there waits for the Handler.
	// After an error nothing is mounted. The context is only asked before the kernel is.
	Mount(ctx context.Context, spec Spec) error
	// Unmount takes the mount away; a directory where nothing is mounted is not an error. A mount in use leaves the
	// tree at once, and its last user later; until then its reads still wait for the Handler, or fail.
	// While the context lives it is given a short time to become unused first.
	Unmount(ctx context.Context, dir string) error
	// Unwatch says that the layer's file is complete and synced, for ever: reads of it are no longer seen. Unknown layers
	// are not an error.
	Unwatch(blob digest.Digest) error
	// Close unmounts everything, then lets go of the layers. Reads that still wait fail.
	Close() error
}

var (
	// ErrUnsupported is returned where this machine cannot do what is asked; the text says what is missing.
	ErrUnsupported = errors.New("not supported here")
	// ErrNotThere is why a read failed whose range the handler fetched, but then did not have.
	ErrNotThere = errors.New("range is not there after its fetch")
	// ErrNotFirst is returned by Mount for a layer that is watched already, with a File that was opened later: it would raise
	// events for the daemon's own writes. Ask the Mounter for the descriptor it holds.
	ErrNotFirst = errors.New("not the first descriptor of a watched layer")
)

// HintOf returns what an error of a Handler advises, as an attribute for the log line that it ends in.
func HintOf(err error) []any {
	var h interface{ Hint() string }
	if !errors.As(err, &h) {
		return nil
	}
	return []any{"hint", h.Hint()}
}
