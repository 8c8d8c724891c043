package hydrate

import (
	"context"
	"crypto/sha256"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/thaw-project/thaw/internal/index"
	"github.com/thaw-project/thaw/internal/layerstore"
)

// fedWorld is a world whose spans 2, 4 and 5 are announced in pieces of 512 KiB,
// a frame each.
func fedWorld(t *testing.T, o setup) (*world, *Feed, []layerstore.Piece) {
	w := newWorld(t, gzipSource(), o)
	const half = index.SpanBytes / 2
	var list []layerstore.Piece
	for _, at := range []int64{4, 5, 8, 9, 10, 11} {
		list = append(list, layerstore.Piece{Offset: at * half, Length: half, Digest: sha256.Sum256(w.src.tar[at*half : (at+1)*half])})
	}
	if err := w.stored.SetPieces(list, func(e *layerstore.PieceError) { t.Error(e) }); err != nil {
		t.Fatal(err)
	}
	f := w.sched.NewFeed([]int64{100, 200, 300, 400, 500, 600})
	w.layer.Feed(f, []int{0, 1, 2, 3, 4, 5})
	return w, f, list
}

// bring puts a piece as a stream does.
func (w *world) bring(f *Feed, list []layerstore.Piece, i int) {
	w.t.Helper()
	f.Received(100)
	p := list[i]
	if err := w.stored.PutPiece(i, w.src.tar[p.Offset:p.Offset+p.Length]); err != nil {
		w.t.Error(err)
	}
	f.Applied()
}

func TestReaderWaitsForFeed(t *testing.T) {
	gzipSource() // made outside of any bubble
	synctest.Test(t, func(t *testing.T) {
		w, f, list := fedWorld(t, setup{config: off})
		defer w.close()
		done := make(chan error, 1)
		go func() { done <- w.layer.Fetch(t.Context(), 2*index.SpanBytes+5, index.SpanBytes-5) }()
		synctest.Wait()
		time.Sleep(10 * time.Millisecond)
		w.bring(f, list, 0)
		synctest.Wait()
		if len(done) > 0 {
			t.Fatal("half of it is enough")
		}
		w.bring(f, list, 1)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if n := w.data.count(); n != 0 {
			t.Errorf("%d requests for what the feed brought", n)
		}
		if !w.layer.Have(2*index.SpanBytes, index.SpanBytes) {
			t.Error("it is not here")
		}
	})
}

// TestFeedFails: who waits for it is served otherwise.
func TestFeedFails(t *testing.T) {
	gzipSource() // made outside of any bubble
	for name, how := range map[string]func(w *world, f *Feed){
		"closed":     func(_ *world, f *Feed) { f.Close(time.Now()) },
		"silent":     func(*world, *Feed) {},
		"stuck":      func(_ *world, f *Feed) { f.Received(100) },
		"never put":  func(_ *world, f *Feed) { f.Received(600); f.Applied() },
		"table lost": func(w *world, f *Feed) { w.stored.DropPieces(); f.Applied() },
		"far too slow": func(_ *world, f *Feed) {
			time.Sleep(50 * time.Millisecond)
			f.Received(1)
			time.Sleep(5 * time.Millisecond)
			f.Received(1)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, f, _ := fedWorld(t, setup{config: off})
				defer w.close()
				go how(w, f)
				start := time.Now()
				w.mustFetch(4)
				if took := time.Since(start); took > 2*feedFirstByte {
					t.Errorf("a reader waited %v for nothing", took)
				}
				f.Close(time.Now())
			})
		})
	}
}

// TestFeedAndRest: of a read over what the feed brings and what it does not, only
// the latter is asked for.
func TestFeedAndRest(t *testing.T) {
	gzipSource() // made outside of any bubble
	synctest.Test(t, func(t *testing.T) {
		w, f, list := fedWorld(t, setup{config: off})
		defer w.close()
		done := make(chan error, 1)
		go func() { done <- w.layer.Fetch(t.Context(), 3*index.SpanBytes, 3*index.SpanBytes) }()
		synctest.Wait()
		for i := 2; i < 6; i++ {
			w.bring(f, list, i)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if n := w.data.count(); n != 1 || w.stored.Have(4) || !w.stored.Have(3) {
			t.Errorf("requests %v", w.data.requests)
		}
	})
}

// TestFeedHoldsBackground: the background waits for a feed and what it is told to
// wait for, no longer than that, and not at all for one that is stuck.
func TestFeedHoldsBackground(t *testing.T) {
	gzipSource() // made outside of any bubble
	synctest.Test(t, func(t *testing.T) {
		w, f, list := fedWorld(t, setup{config: func(c *Config) { c.RateBytes = 0 }, held: true})
		defer w.close()
		for i := range list {
			time.Sleep(feedStall / 2)
			w.bring(f, list, i)
		}
		f.Close(time.Now().Add(3 * time.Second))
		time.Sleep(2 * time.Second)
		if n := w.data.count(); n != 0 {
			t.Fatalf("%d requests of the background while it is held back", n)
		}
		w.sched.Resume()
		w.complete()
		for _, r := range w.data.requests {
			for _, i := range []int{2, 4, 5} {
				if s := w.src.index.Spans[i]; r.off <= s.OffsetCompressed && r.off+r.n >= s.OffsetCompressed+s.BytesCompressed {
					t.Errorf("span %d is here in pieces and was fetched", i)
				}
			}
		}
	})
	synctest.Test(t, func(t *testing.T) {
		w, _, _ := fedWorld(t, setup{held: true})
		defer w.close()
		start := time.Now()
		for !w.stored.Complete() && time.Since(start) < time.Minute {
			time.Sleep(100 * time.Millisecond)
		}
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("a feed that is stuck holds the background for %v", took)
		}
	})
}

// TestPiecesLost: pieces that are forgotten while their reader waits for other bytes are fetched for it.
func TestPiecesLost(t *testing.T) {
	gzipSource() // made outside of any bubble
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		w, f, list := fedWorld(t, setup{config: off, answer: func(ctx context.Context, _ int, _ request, body []byte) (io.Reader, error) {
			return gated(ctx, gate, body)
		}})
		defer w.close()
		w.bring(f, list, 0)
		w.bring(f, list, 1)
		f.Close(time.Now())
		done := make(chan error, 1)
		go func() { done <- w.layer.Fetch(t.Context(), 2*index.SpanBytes, 2*index.SpanBytes) }()
		synctest.Wait()
		w.stored.DropPieces()
		close(gate)
		if err := <-done; err != nil || !w.layer.Have(2*index.SpanBytes, 2*index.SpanBytes) {
			t.Errorf("not all is here, and the error is %v", err)
		}
	})
}

// TestFeedTrickles: a feed without end holds the background back for a while, not for ever.
func TestFeedTrickles(t *testing.T) {
	gzipSource() // made outside of any bubble
	synctest.Test(t, func(t *testing.T) {
		w, f, _ := fedWorld(t, setup{config: off})
		defer w.close()
		for start := time.Now(); time.Since(start) < maxHold+2*feedStall; {
			time.Sleep(feedStall / 10)
			f.Received(1)
		}
		w.sched.mu.Lock()
		defer w.sched.mu.Unlock()
		if time.Now().Before(w.sched.feedUntil) {
			t.Error("a feed that trickles goes on holding the background back")
		}
	})
}
