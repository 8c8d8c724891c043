package mount

import (
	"fmt"
	"os"
)

// RawFD returns the number of a file's descriptor, good as long as the file is open. File.Fd would make a
// descriptor in the poller blocking for all who share it.
func RawFD(f *os.File) (int, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, fmt.Errorf("use descriptor of %s: %w", f.Name(), err)
	}
	number := -1
	if err := raw.Control(func(fd uintptr) { number = int(fd) }); err != nil {
		return -1, fmt.Errorf("use descriptor of %s: %w", f.Name(), err)
	}
	return number, nil
}
