package hydrate

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/thaw-project/thaw/internal/index"
	"github.com/thaw-project/thaw/internal/inflate"
	"github.com/thaw-project/thaw/internal/registry"
)

// startStream hydrates the whole layer in order, unless that is under way. It
// ends all flights of the layer: as their spans pass by, or when it fails. Once
// begun it goes on to the end, also without a background. Called with s.mu held.
func (l *Layer) startStream() {
	if l.streaming || l.closed || l.s.closed {
		return
	}
	l.streaming = true
	l.s.streams++
	l.s.wg.Add(1)
	l.wg.Go(func() {
		defer l.s.wg.Done()
		err := l.streamAll(l.ctx)
		var wrong *index.SpanError
		if errors.As(err, &wrong) && l.ctx.Err() == nil {
			l.sayDamaged("span arrived damaged, streaming the layer again", wrong)
			err = l.streamAll(registry.FromOrigin(l.ctx))
		}
		l.backOff(err)
		l.s.mu.Lock()
		l.streaming = false
		l.s.streams--
		l.noRanges = l.noRanges && err == nil // it may have been rubbish that looked so
		l.sourceFailed(err)
		l.land(0, len(l.c.Spans), nil, l.reason(err))
		l.retryAt = later(l.retryAt, l.badAt) // a stream cannot leave a span out
		clear(l.bad)
		l.s.wake.Broadcast()
		l.s.mu.Unlock()
		l.checkFinished()
		if final(err) {
			l.conclude(err)
		}
	})
}

func (l *Layer) streamAll(ctx context.Context) error {
	// Begun anew all of the layer would come again: it sits outages out itself.
	ctx = registry.WithPatience(ctx, max(l.s.opts.ReadTimeout, giveUpAfter), pauseReader)
	body := l.c.Stream(ctx)
	defer body.Close()
	i := 0
	meta := l.c.Store.Meta()
	r := &pacedReader{ctx: ctx, l: l, r: body}
	_, err := inflate.Scan(ctx, r, inflate.ScanOptions{Format: l.c.Format, SpanBytes: index.SpanBytes, MaxBytes: meta.TarBytes}, func(s *inflate.Span) error {
		if i >= len(l.c.Spans) {
			return errors.New("layer unpacks to more than its index says")
		}
		if err := l.put(i, s.Data); err != nil {
			return err
		}
		l.arrived(i)
		l.sourceAnswered()
		i++
		return nil
	})
	return err
}

// pacedReader counts what a stream reads, and holds it to the rate of the
// background while nobody waits for the layer.
type pacedReader struct {
	ctx   context.Context
	l     *Layer
	r     io.Reader
	since int64 // bytes since it was last asked whether there is room
}

func (p *pacedReader) Read(b []byte) (int, error) {
	begun := time.Now()
	n, err := p.r.Read(b)
	took := time.Since(begun)
	p.l.fetched(int64(n), p.l.waiting.Load() > 0)
	if err != nil && err != io.EOF {
		err = &sourceError{err}
	}
	if n > 0 && p.l.waiting.Load() == 0 {
		p.l.yield(p.ctx, nil, took, n)
		if werr := p.l.pace(p.ctx, nil, int64(n)); werr != nil {
			return n, werr
		}
		if p.since += int64(n); p.since >= runBytes {
			p.since = 0
			if werr := p.l.waitRoom(p.ctx); werr != nil {
				return n, werr
			}
		}
	}
	return n, err
}
