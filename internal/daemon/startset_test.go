package daemon

import (
	"testing"

	"github.com/thaw-project/thaw/internal/startup"
)

// TestAwaitHeader: a bundle that another mount has brought wholly has a header as well.
func TestAwaitHeader(t *testing.T) {
	b := &bundle{headed: make(chan struct{}), done: make(chan struct{}), header: &startup.Header{}}
	close(b.done)
	if b.awaitHeader() != nil {
		t.Error("a header that never came")
	}
	close(b.headed)
	for range 100 {
		if b.awaitHeader() != b.header {
			t.Fatal("no header")
		}
	}
}
