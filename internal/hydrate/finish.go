package hydrate

import (
	"errors"
	"time"

	"github.com/thaw-project/thaw/internal/layerstore"
)

// checkFinished proves the layer once all its spans are here.
func (l *Layer) checkFinished() {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	l.tryFinish()
}

// tryFinish is checkFinished with s.mu held.
func (l *Layer) tryFinish() {
	if l.finishing || l.concluded || l.closed || l.s.closed || len(l.flights) > 0 || time.Now().Before(l.finishAt) {
		return
	}
	for ; l.front < len(l.c.Spans); l.front++ {
		if !l.c.Store.Have(l.front) {
			return
		}
	}
	if !l.hurry.Load() && !l.c.Store.Complete() && l.s.quietFor() < quiet {
		l.finishAt = time.Now().Add(quiet)
		l.s.wake.Broadcast()
		return
	}
	l.finishing = true
	l.s.wg.Add(1)
	l.wg.Go(func() {
		defer l.s.wg.Done()
		l.finish()
	})
}

// finish has the layer store prove the layer. Where that fails for reasons that
// may pass (spans that the disk has spoilt are fetched again, a disk may have
// room later) it is tried again.
func (l *Layer) finish() {
	var err error
	if !l.c.Store.Complete() {
		err = l.c.Store.Finish(l.ctx)
	}
	if l.ctx.Err() != nil {
		return // shut down: a later scheduler proves it
	}
	if err == nil || final(err) {
		l.conclude(err)
		return
	}
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	l.finishing = false
	l.front, l.cursor = 0, 0
	l.failures, l.lastErr = l.failures+1, err
	l.finishAt = time.Now().Add(l.backlog.delay())
	l.s.opts.Log.Warn("layer is here and cannot be proven yet", "layer", l.c.Store.Meta().Blob, "err", err)
	l.s.wake.Broadcast()
}

// final reports whether the layer can never be completed with its index.
func final(err error) bool {
	var diffID *layerstore.DiffIDError
	return errors.As(err, &diffID) || errors.Is(err, layerstore.ErrQuarantined)
}

// conclude tells the owner how the layer ended, once.
func (l *Layer) conclude(err error) {
	l.s.mu.Lock()
	again := l.concluded
	l.concluded = true
	l.s.mu.Unlock()
	if again {
		return
	}
	l.s.remove(l)
	if l.c.Finished != nil {
		l.c.Finished(err)
	}
	close(l.finished)
}
