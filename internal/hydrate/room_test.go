package hydrate

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// TestNoRoom: without room the background of a layer, also of one that is
// streamed, stands still and says so, readers are served, and with room it goes on.
func TestNoRoom(t *testing.T) {
	big := bigTar()
	for name, src := range map[string]*source{"ranges": gzipSource(), "stream": newSource(big, zstdFrame(big))} {
		synctest.Test(t, func(t *testing.T) {
			var full atomic.Bool
			full.Store(true)
			var asked atomic.Int64
			room := func(_ context.Context, n int64) error {
				if asked.Add(1); n <= 0 {
					t.Errorf("%s: asked for %d bytes", name, n)
				}
				if full.Load() {
					return fmt.Errorf("no room: %w", syscall.ENOSPC)
				}
				return nil
			}
			w := newWorld(t, src, setup{opts: Options{Room: room}})
			defer w.close()
			if err := w.layer.Err(); err != nil {
				t.Errorf("%s: at once: %v", name, err)
			}
			time.Sleep(time.Minute)
			if n := w.layer.c.Store.HaveBytes(); n != 0 || w.layer.FetchedBytes() != 0 {
				t.Errorf("%s: %d bytes came without room", name, n)
			}
			if err := w.layer.Err(); !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("%s: %v", name, err)
			}
			if asked := asked.Load(); asked < 50 || asked > 70 {
				t.Errorf("%s: asked %d times in a minute", name, asked)
			}
			w.mustFetch(2) // a reader
			time.Sleep(time.Minute)
			if missing := w.layer.missing(); name == "ranges" && missing == 0 {
				t.Error("the reader brought all")
			}
			full.Store(false)
			w.complete()
			if err := w.layer.Err(); err != nil {
				t.Errorf("%s: in the end: %v", name, err)
			}
		})
	}
}
