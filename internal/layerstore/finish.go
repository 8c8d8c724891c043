package layerstore

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
)

const (
	readBytes      = 1 << 20 // of one read while hashing
	writebackBytes = 8 << 20 // put since write-back was last started, to start it again
)

// Advance does a little of what Finish would else do at the end, for whoever
// works in the background: it starts write-back of what was put, and carries the
// tar's running digest on over the spans at its front that are here, at most
// budget bytes (<= 0: all), which then are still in the page cache. It returns
// how many bytes it hashed; 0 also while another call is at it. Put, Have, Recheck
// and Sync do not wait for it.
func (l *Layer) Advance(ctx context.Context, budget int64) (int64, error) {
	if put := l.put.Load(); put-l.flushed.Load() >= writebackBytes {
		l.flushed.Store(put)
		if err := startWriteback(l.file, 0, 0); err != nil {
			return 0, fmt.Errorf("start write-back of layer %s: %w", l.meta.Blob, err)
		}
	}
	if l.complete.Load() || !l.hashMu.TryLock() {
		return 0, nil
	}
	defer l.hashMu.Unlock()
	return l.advance(ctx, budget)
}

// advance is Advance with hashMu held.
func (l *Layer) advance(ctx context.Context, budget int64) (n int64, err error) {
	if l.hashStale.Swap(false) {
		l.sum, l.right = sha256.New(), false
		l.hashed.Store(0)
	}
	bp := spanBuffers.Get().(*[]byte)
	defer spanBuffers.Put(bp)
	buf := grow(bp, readBytes)
	for budget <= 0 || n < budget {
		if err := ctx.Err(); err != nil {
			return n, fmt.Errorf("hash layer %s: %w", l.meta.Blob, err)
		}
		pos := l.hashed.Load()
		i := int(pos / l.meta.SpanBytes)
		if pos == l.meta.TarBytes || !l.Have(i) {
			return n, nil
		}
		off, size := l.meta.Span(i)
		part := buf[:min(readBytes, off+size-pos)]
		if _, err := l.file.ReadAt(part, pos); err != nil {
			return n, fmt.Errorf("hash layer %s at %d: %w", l.meta.Blob, pos, err)
		}
		l.sum.Write(part)
		l.hashed.Store(pos + int64(len(part)))
		n += int64(len(part))
	}
	return n, nil
}

// Finish proves a layer whose spans are all here: it hashes what Advance has not
// hashed yet, syncs the tar, and if the digest is the diffID sets the durable
// complete mark. Spans that are missing are ErrIncomplete.
//
// If the digest is another one, the spans are verified again. Those that the
// disk has spoilt are forgotten, to be fetched anew, and the error is a
// *SpanError of the first. If all are right the span table lied: the layer is quarantined, so
// that from now on it has nothing and takes nothing, its data is removed, and
// the error is a *DiffIDError.
func (l *Layer) Finish(ctx context.Context) error {
	got, err := l.prove(ctx)
	if err != nil || got == "" {
		return err
	}
	lie := &DiffIDError{Layer: l.meta.Blob, Want: l.meta.DiffID, Got: got}
	return errors.Join(lie, l.store.quarantine(l, lie))
}

// prove is Finish up to the verdict; it returns the digest of a layer whose
// spans are right and whose diffID is wrong.
func (l *Layer) prove(ctx context.Context) (digest.Digest, error) {
	l.hashMu.Lock()
	defer l.hashMu.Unlock()
	for {
		if l.complete.Load() {
			return "", nil
		}
		if l.gone.Load() {
			return "", l.goneError()
		}
		if n := l.missing(); n > 0 {
			return "", fmt.Errorf("finish layer %s: %d of %d spans missing: %w", l.meta.Blob, n, l.meta.Spans(), ErrIncomplete)
		}
		if _, err := l.advance(ctx, 0); err != nil {
			return "", err
		}
		if l.hashed.Load() == l.meta.TarBytes && !l.hashStale.Load() {
			break
		}
	}
	if l.right {
		return "", l.markComplete()
	}
	got := digest.NewDigest(digest.SHA256, l.sum)
	if got != l.meta.DiffID {
		var err error
		if got, err = l.reread(ctx); err != nil || got != l.meta.DiffID {
			return got, err
		}
	}
	return "", l.markComplete()
}

// reread hashes all of the tar and each of its spans once more, before an index is
// blamed. Spans that are not what the table says are forgotten durably, and the
// first is returned. hashMu is held.
func (l *Layer) reread(ctx context.Context) (digest.Digest, error) {
	var first error
	bad := map[int]bool{}
	whole := sha256.New()
	buf := make([]byte, l.meta.SpanBytes)
	for i := range l.meta.Spans() {
		if err := ctx.Err(); err != nil {
			return "", fmt.Errorf("verify layer %s: %w", l.meta.Blob, err)
		}
		off, n := l.meta.Span(i)
		if _, err := l.file.ReadAt(buf[:n], off); err != nil {
			return "", fmt.Errorf("verify span %d of layer %s: %w", i, l.meta.Blob, err)
		}
		whole.Write(buf[:n])
		if err := l.verify(i, buf[:n], l.Path()); err != nil {
			bad[i] = true
			if first == nil {
				first = err
			}
		}
	}
	if len(bad) == 0 {
		return digest.NewDigest(digest.SHA256, whole), nil
	}
	l.syncMu.Lock()
	l.forget(func(i int) bool { return bad[i] })
	l.syncMu.Unlock()
	return "", errors.Join(first, l.Sync())
}

// markComplete syncs the tar, this time with its modification time, which the
// mark is bound to, and sets the mark. No span is written any more: all bits are
// set.
func (l *Layer) markComplete() error {
	l.syncMu.Lock()
	defer l.syncMu.Unlock()
	snapshot, err := l.syncData(l.store.fsync)
	if err != nil {
		return err
	}
	h := &haveMap{flags: flagClean | flagComplete, bits: snapshot, spans: l.meta.Spans()}
	if !h.full() || l.gone.Load() {
		return fmt.Errorf("finish layer %s: spans were taken back: %w", l.meta.Blob, ErrIncomplete)
	}
	if err := l.writeHave(h); err != nil {
		return err
	}
	l.savedChanges = l.changes.Load()
	l.complete.Store(true)
	if l.store.opts.DropCache {
		return dropHashed(l.file, l.meta.TarBytes)
	}
	return nil
}
