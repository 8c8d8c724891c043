package bench

import (
	"strings"
	"sync"
)

// tailBytes is how much of what a program says is kept for an error's message.
const tailBytes = 4 << 10

// tail keeps the end of what is written to it.
type tail struct {
	mu sync.Mutex // guards b
	b  []byte
}

func newTail() *tail { return &tail{} }

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	t.b = t.b[max(0, len(t.b)-tailBytes):]
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.b))
}

// said is what thaw has said of an error.
func said(t *tail) string { return strings.TrimPrefix(t.String(), "thaw: error: ") }
