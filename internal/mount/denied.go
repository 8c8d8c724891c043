package mount

import (
	"log/slog"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

const (
	deniedEvery     = time.Minute // a line for the same place
	deniedKeep      = 1024        // places remembered
	deniedPlaceBits = 20          // a place is this much of a layer: a read-ahead that fails is tried again page by page
)

// DeniedLog logs reads that got an error, each MiB of a layer once a minute: a reader that tries again must not fill the
// disk. Its methods may be called concurrently.
type DeniedLog struct {
	log *slog.Logger

	mu   sync.Mutex // guards said
	said map[deniedPlace]time.Time
}

type deniedPlace struct {
	layer digest.Digest // empty: not known
	place int64
}

// NewDeniedLog returns a DeniedLog that writes to log.
func NewDeniedLog(log *slog.Logger) *DeniedLog {
	return &DeniedLog{log: log, said: map[deniedPlace]time.Time{}}
}

// Denied tells of a read of n bytes at off, its cause, and what the mounter knows besides.
func (l *DeniedLog) Denied(layer digest.Digest, off, n int64, cause error, more ...any) {
	if !l.first(deniedPlace{layer, off >> deniedPlaceBits}) {
		return
	}
	args := append([]any{"layer", layer, "off", off, "count", n}, more...)
	l.log.Error("denied a read", append(append(args, "cause", cause), HintOf(cause)...)...)
}

func (l *DeniedLog) first(place deniedPlace) bool {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if last, ok := l.said[place]; ok && now.Sub(last) < deniedEvery {
		return false
	}
	if len(l.said) >= deniedKeep {
		clear(l.said)
	}
	l.said[place] = now
	return true
}
