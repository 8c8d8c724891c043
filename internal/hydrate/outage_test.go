package hydrate

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/thaw-project/thaw/internal/index"
	"github.com/thaw-project/thaw/internal/registry"
)

const (
	testReadTimeout = time.Minute
	// healWithin is the promise: who waits has the bytes so long after the registry
	// is back.
	healWithin = 5 * time.Second
)

type answerer = func(ctx context.Context, i int, r request, body []byte) (io.Reader, error)

// outageWorld has a source that answers down while isDown.
func outageWorld(t *testing.T, down answerer, o setup) (w *world, isDown *atomic.Bool) {
	t.Helper()
	isDown = new(atomic.Bool)
	isDown.Store(true)
	answer := func(ctx context.Context, i int, r request, body []byte) (io.Reader, error) {
		if isDown.Load() {
			return down(ctx, i, r, body)
		}
		return bytes.NewReader(body), nil
	}
	o.answer = answer
	o.opts.ReadTimeout = testReadTimeout
	return newWorld(t, gzipSource(), o), isDown
}

func refuse(context.Context, int, request, []byte) (io.Reader, error) {
	return nil, &registry.Error{Op: "fetch blob", Registry: "registry.test", Status: 503}
}

// swallow never answers, as a registry behind a network that drops everything.
func swallow(ctx context.Context, _ int, _ request, _ []byte) (io.Reader, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second) // the registry client's patience
	defer cancel()
	<-ctx.Done()
	return nil, context.Cause(ctx)
}

// TestOutage: in an outage of any kind readers wait, however many, without
// storming the registry, and have their bytes soon after it is back. What is here
// is read all the while.
func TestOutage(t *testing.T) {
	gzipSource()
	for name, c := range map[string]struct {
		down    answerer
		windows bool
	}{
		"refused":   {down: refuse},
		"swallowed": {down: swallow},
		"no such":   {down: func(context.Context, int, request, []byte) (io.Reader, error) { return nil, registry.ErrNotFound }},
		"breaks off": {down: func(_ context.Context, _ int, _ request, body []byte) (io.Reader, error) {
			return io.MultiReader(bytes.NewReader(body[:len(body)/2]), failing{}), nil
		}},
		"stops": {down: func(ctx context.Context, i int, r request, body []byte) (io.Reader, error) {
			return io.MultiReader(bytes.NewReader(body[:min(10, len(body))]), readerFunc(func([]byte) (int, error) {
				_, err := swallow(ctx, i, r, body)
				return 0, err
			})), nil
		}},
		"windows": {windows: true},
	} {
		for _, lasts := range []time.Duration{time.Second, 8500 * time.Millisecond, 50 * time.Second} {
			t.Run(name+" "+lasts.String(), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var isDown *atomic.Bool
					o := setup{config: func(c *Config) { off(c); c.Source = "registry.test" }}
					if c.windows {
						o.windows = func(ctx context.Context, i int, r request, body []byte) (io.Reader, error) {
							if isDown.Load() {
								return refuse(ctx, i, r, body)
							}
							return bytes.NewReader(body), nil
						}
						c.down = func(_ context.Context, _ int, _ request, body []byte) (io.Reader, error) {
							return bytes.NewReader(body), nil
						}
					}
					var w *world
					w, isDown = outageWorld(t, c.down, o)
					defer w.close()
					isDown.Store(false)
					w.mustFetch(0)
					isDown.Store(true)
					before := w.data.count()
					var wg sync.WaitGroup
					begun := time.Now()
					for i := range 300 {
						wg.Go(func() {
							if err := w.fetch(1 + i%12); err != nil {
								t.Errorf("after %v: %v", time.Since(begun), err)
							}
						})
					}
					time.Sleep(lasts)
					synctest.Wait()
					if now := time.Now(); w.fetch(0) != nil || !now.Equal(time.Now()) {
						t.Error("what is here waits")
					}
					if o := w.layer.Outage(); lasts > 15*time.Second && (o == nil || !o.Until.IsZero() || o.Err == nil) {
						t.Errorf("outage %+v", o)
					}
					if n := w.data.count() - before; n > 40+3*int(lasts/time.Second) {
						t.Errorf("%d requests in %v", n, lasts)
					}
					isDown.Store(false)
					back := time.Now()
					wg.Wait()
					if took := time.Since(back); took > healWithin {
						t.Errorf("healed after %v", took)
					}
					for i := range 13 {
						w.check(i)
					}
					if o := w.layer.Outage(); lasts > 15*time.Second && (o == nil || o.Until.Before(back)) {
						t.Errorf("outage %+v", o)
					}
				})
			})
		}
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

// TestReadTimeout: a reader fails when its time is over, not before and not
// after, and is told all there is to tell. The kernel's retry of the same read is
// not another wait.
func TestReadTimeout(t *testing.T) {
	gzipSource()
	for name, c := range map[string]struct {
		down answerer
		last string
	}{"refused": {refuse, "503 Service Unavailable"}, "swallowed": {swallow, "deadline exceeded"}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, _ := outageWorld(t, c.down, setup{config: func(c *Config) { off(c); c.Source = "registry.test" }})
				defer w.close()
				for i, want := range []time.Duration{testReadTimeout, 0, testReadTimeout} {
					begun := time.Now()
					err := w.fetch(4)
					if took := time.Since(begun); took != want {
						t.Errorf("read %d took %v, want %v", i, took, want)
					}
					var read *ReadError
					if !errors.As(err, &read) || read.First != 4 || read.Last != 4 || read.Hint() == "" {
						t.Fatalf("error %#v", err)
					}
					for _, part := range []string{w.src.index.Blob.String(), "span 4 ", "registry.test", c.last, "1m0s"} {
						if !strings.Contains(err.Error(), part) {
							t.Errorf("error does not name %q: %v", part, err)
						}
					}
					if i == 1 {
						time.Sleep(deniedMemory)
					}
				}
			})
		})
	}
}

// TestOutageOfOneKind: where some requests always fail while others of the layer
// succeed, which ends the outage each time, a reader does not storm the registry.
func TestOutageOfOneKind(t *testing.T) {
	gzipSource()
	synctest.Test(t, func(t *testing.T) {
		w, isDown := outageWorld(t, refuse, setup{config: off, windows: func(context.Context, int, request, []byte) (io.Reader, error) {
			return nil, registry.ErrNotFound
		}})
		defer w.close()
		isDown.Store(false)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			for sleep(ctx, 5*time.Millisecond) == nil {
				w.layer.sourceAnswered()
			}
		})
		begun := time.Now()
		err := w.fetch(4)
		cancel()
		wg.Wait()
		if took := time.Since(begun); !errors.Is(err, registry.ErrNotFound) || took > testReadTimeout+5*time.Millisecond {
			t.Errorf("after %v: %v", took, err)
		}
		if n := w.windows.count(); n < 30 || n > 40+3*int(testReadTimeout/time.Second) {
			t.Errorf("%d requests", n)
		}
	})
}

// TestCancelInOutage: a reader who leaves, the one that tries for all included,
// harms nobody.
func TestCancelInOutage(t *testing.T) {
	gzipSource()
	synctest.Test(t, func(t *testing.T) {
		w, isDown := outageWorld(t, swallow, setup{config: off})
		defer w.close()
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				if err := w.layer.Fetch(ctx, 5<<20, 1); !errors.Is(err, context.Canceled) {
					t.Errorf("error %v", err)
				}
			})
			wg.Go(func() {
				if err := w.fetch(8); err != nil {
					t.Error(err)
				}
			})
		}
		time.Sleep(15 * time.Second)
		cancel()
		isDown.Store(false)
		back := time.Now()
		wg.Wait()
		if took := time.Since(back); took > healWithin {
			t.Errorf("healed after %v", took)
		}
	})
}

// TestHangingSourceHarmsNoOther: readers of another source do not wait behind 300
// of one that hangs.
func TestHangingSourceHarmsNoOther(t *testing.T) {
	gzipSource()
	synctest.Test(t, func(t *testing.T) {
		w, _ := outageWorld(t, swallow, setup{config: func(c *Config) { off(c); c.Source = "hangs.test" }})
		defer w.close()
		data := &scripted{b: w.src.blob}
		other := *w.src
		other.tar = append(bytes.Clone(w.src.tar), make([]byte, 512)...) // another layer
		blob := other.tar
		other = *newSource(other.tar, blob)
		data.b = blob
		stored, err := w.store.Acquire(t.Context(), other.meta(), nil)
		if err != nil {
			t.Fatal(err)
		}
		healthy := w.sched.Add(Config{Store: stored, Source: "healthy.test", Format: other.index.Format, Spans: other.index.Spans, Data: data,
			Windows: &scripted{b: other.index.Windows}, BytesWindows: int64(len(other.index.Windows)), RateBytes: -1})
		defer func() {
			healthy.Close()
			if err := stored.Release(); err != nil {
				t.Error(err)
			}
		}()
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		defer wg.Wait()
		defer cancel()
		for i := range 300 {
			wg.Go(func() { w.layer.Fetch(ctx, int64(i%13)<<20, 1<<20) })
		}
		for i := range other.index.Spans {
			synctest.Wait()
			begun := time.Now()
			if err := healthy.Fetch(t.Context(), int64(i)<<20, 1); err != nil || time.Since(begun) > 100*time.Millisecond {
				t.Errorf("span %d took %v: %v", i, time.Since(begun), err)
			}
			time.Sleep(time.Second)
		}
	})
}

// TestDamagedTries counts how often a damaged span is fetched: four times over
// more than a second, half of them past mirrors, and nothing wrong is stored.
func TestDamagedTries(t *testing.T) {
	src := gzipSource()
	for good, want := range map[int]struct {
		requests int
		fails    bool
	}{1: {1, false}, 2: {2, false}, 3: {3, false}, 4: {4, false}, 5: {4, true}} {
		synctest.Test(t, func(t *testing.T) {
			fromOrigin := 0
			w := newWorld(t, src, setup{opts: Options{ReadTimeout: testReadTimeout}, config: off,
				answer: func(ctx context.Context, i int, r request, body []byte) (io.Reader, error) {
					if registry.OriginOnly(ctx) {
						fromOrigin++
					}
					if i+1 < good {
						flip(src, 4, r, body)
					}
					return bytes.NewReader(body), nil
				}})
			defer w.close()
			begun := time.Now()
			err := w.fetch(4)
			var wrong *index.SpanError
			if (err != nil) != want.fails || want.fails && (!errors.As(err, &wrong) || wrong.Span != 4) {
				t.Errorf("good at try %d: error %v", good, err)
			}
			if n := w.data.count(); n != want.requests || fromOrigin != n/2 {
				t.Errorf("good at try %d: %d requests, %d past mirrors", good, n, fromOrigin)
			}
			if took := time.Since(begun); good > 2 && took < damagedPause || took > healWithin {
				t.Errorf("good at try %d: took %v", good, took)
			}
			if w.stored.Have(4) == want.fails {
				t.Error("a wrong span is here, or a right one is not")
			}
			if !want.fails {
				w.check(4)
			}
		})
	}
}

// TestBackgroundOutlastsOutage: it goes on by itself when the registry is back,
// and an hour of outage is not an hour of log.
func TestBackgroundOutlastsOutage(t *testing.T) {
	gzipSource()
	for name, down := range map[string]answerer{"refused": refuse, "swallowed": swallow} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				w, isDown := outageWorld(t, down, setup{opts: Options{Log: slog.New(slog.NewTextHandler(&log, nil))}})
				defer w.close()
				begun := time.Now()
				for w.layer.Err() == nil {
					time.Sleep(time.Second)
				}
				if took := time.Since(begun); took < giveUpAfter || took > 2*giveUpAfter {
					t.Errorf("who waits for all of the layer is told after %v", took)
				}
				time.Sleep(time.Hour)
				isDown.Store(false)
				back := time.Now()
				for !w.stored.Have(12) {
					time.Sleep(100 * time.Millisecond)
				}
				if took := time.Since(back); took > 3*healWithin {
					t.Errorf("went on after %v", took)
				}
				if err := w.layer.Err(); err != nil {
					t.Errorf("error %v after all is well", err)
				}
				w.complete()
				w.close()
				if n := strings.Count(log.String(), "\n"); n > 70 || !strings.Contains(log.String(), "bytes come again") {
					t.Errorf("%d lines of log:\n%s", n, log.String()[:min(log.Len(), 4000)])
				}
			})
		})
	}
}

// TestStreamOutage: a layer that has to be streamed heals as well, and one whose
// registry seemed to have no ranges in an outage is not streamed for ever.
func TestStreamOutage(t *testing.T) {
	src := gzipSource()
	synctest.Test(t, func(t *testing.T) {
		var isDown *atomic.Bool
		var w *world
		w, isDown = outageWorld(t, func(context.Context, int, request, []byte) (io.Reader, error) { return nil, registry.ErrNoRanges },
			setup{config: func(c *Config) {
				off(c)
				c.Stream = func(ctx context.Context) io.ReadCloser {
					if isDown.Load() {
						return io.NopCloser(io.MultiReader(bytes.NewReader(src.blob[:len(src.blob)/3]), failing{}))
					}
					return io.NopCloser(bytes.NewReader(src.blob))
				}
			}})
		defer w.close()
		var wg sync.WaitGroup
		wg.Go(func() { w.mustFetch(11) })
		wg.Go(func() { w.mustFetch(2) })
		time.Sleep(30 * time.Second)
		isDown.Store(false)
		back := time.Now()
		wg.Wait()
		if took := time.Since(back); took > healWithin {
			t.Errorf("healed after %v", took)
		}
	})
}
