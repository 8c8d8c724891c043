// Package erofs writes and reads EROFS metadata images: file systems whose
// names, modes, times, links and xattrs lie in the image and whose file data
// lies in other files, the *devices*.
//
// A device is a layer's uncompressed tar. Tar data starts on multiples of 512
// bytes, so the image has 512-byte blocks and a file is a start block in a
// device: nothing is copied or unpacked. The kernel (Linux 6.12 and later mounts
// both from plain files) reads names from the image and bytes from the tars.
//
// [Write] turns a tree of [Inode] into an image, byte for byte the same for the
// same tree whatever the order of its children. [Open] reads an image back,
// trusting nothing in it; it is what tests and index verification use.
//
// The byte layout and its limits are in docs/formats/erofs.md; the format is
// Linux's fs/erofs/erofs_fs.h, whose names the constants here keep.
//
// What it deliberately does not do: file data inside the image, compression,
// shared xattrs, block sizes other than 512, and reading images of other
// writers that use any of these. It does not mount and knows nothing of tar,
// layers or whiteouts.
package erofs
