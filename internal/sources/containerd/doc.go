// Package containerd reads what containerd says of containers' starts, by its events,
// and makes records of it.
//
// Events have nanoseconds of the node's clock. They say when content came, snapshots
// were made and tasks started; they do not say when a pull was asked for, nor whose
// content it is. What a container's snapshot stands on names the layers that were
// unpacked for it, so a pull is found by them, and by the image's name.
//
// The package does no I/O.
package containerd
