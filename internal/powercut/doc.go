// Package powercut is test support: it records what a program does to a
// directory, and makes of the record the directories that a power failure could
// have left behind at each of its steps.
//
// Record mounts a FUSE file system that passes everything through and notes each
// change: create, mkdir, write, truncate, set time, rename, unlink, rmdir, and
// each sync. The program under test is not changed and does not know. Crashes
// then cuts the record at each step and applies a strict reading of POSIX to it:
//
//   - a file's bytes, size and times are sure once it was synced (fdatasync: bytes
//     and size only), and not before; until then each sector of 512 bytes may or
//     may not be there, the size may be there without the bytes, which are zeros
//     then, and writes reach the disk in any order;
//   - a name is sure once its directory was synced: creating, renaming and
//     removing may be lost, or be there before the file's bytes;
//   - a rename is all or nothing, also from one directory into another.
//
// Real file systems promise more (ext4 commits names in order); what holds here
// holds there.
//
// It knows no hard links, no shared mappings and no disks that lie about syncs.
package powercut
