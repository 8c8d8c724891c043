package measure

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// mincore says of each page of b whether it is in memory: bit 0 of vec.
func mincore(b, vec []byte) error {
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), uintptr(unsafe.Pointer(&vec[0])))
	if errno != 0 {
		return errno
	}
	return nil
}
