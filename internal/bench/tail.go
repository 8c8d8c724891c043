package bench

import (
	"strings"
	"sync"
)

// tailBytes is how much of what a program says is kept for an error's message.
const tailBytes = 4 << 10

// Tail keeps the end of what is written to it. Its zero value is ready to be used.
type Tail struct {
	mu sync.Mutex // guards b
	b  []byte
}

// Write implements [io.Writer].
func (t *Tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	t.b = t.b[max(0, len(t.b)-tailBytes):]
	return len(p), nil
}

// String returns what was kept, without the blanks around it.
func (t *Tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.b))
}

// said is what thaw has said of an error.
func said(t *Tail) string { return strings.TrimPrefix(t.String(), "thaw: error: ") }
