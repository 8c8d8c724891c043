package bench

import (
	"testing"

	"golang.org/x/sys/unix"
)

// What a start uses is replaced as it is used.
func TestBackMemory(t *testing.T) {
	b, err := BackMemory()
	if err != nil {
		t.Fatal(err)
	}
	held := len(b.held)
	if held >= len(b.all) && len(b.all) > 0 {
		t.Errorf("nothing of %d bytes was freed", held)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Madvise(b.all, unix.MADV_DONTNEED); len(b.all) > 0 && err == nil {
		t.Error("it is still mapped")
	}
}
