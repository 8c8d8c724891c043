package daemon

import (
	"context"
	"sync"

	digest "github.com/opencontainers/go-digest"
)

// keyedLocks are locks by name.
type keyedLocks struct {
	mu  sync.Mutex // guards all
	all map[digest.Digest]*keyedLock
}

type keyedLock struct {
	held  chan struct{} // has room for one
	users int
}

// lock returns how to unlock, or the context's error.
func (k *keyedLocks) lock(ctx context.Context, key digest.Digest) (unlock func(), err error) {
	k.mu.Lock()
	l := k.all[key]
	if l == nil {
		if k.all == nil {
			k.all = map[digest.Digest]*keyedLock{}
		}
		l = &keyedLock{held: make(chan struct{}, 1)}
		k.all[key] = l
	}
	l.users++
	k.mu.Unlock()
	leave := func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(k.all, key)
		}
	}
	select {
	case l.held <- struct{}{}:
		return func() { <-l.held; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
