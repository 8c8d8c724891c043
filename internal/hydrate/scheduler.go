package hydrate

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"github.com/thaw-project/thaw/internal/index"
	"github.com/thaw-project/thaw/internal/inflate"
	"github.com/thaw-project/thaw/internal/layerstore"
)

// Blob is random access to one object, local or in a registry. ReadRange
// returns exactly n bytes from off or an error, from the call or from Read.
type Blob interface {
	ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error)
}

// Options of a Scheduler. The zero value is usable.
type Options struct {
	// MemoryBytes bounds the compressed bytes in the buffers of all transfers, a
	// third of them the background's; default 48 MiB. What streams and decoders
	// hold is not counted.
	MemoryBytes int64
	// Readers and Background bound the concurrent transfers for waiting
	// readers and for the rest; default 24 and 8.
	Readers, Background int
	// Decoders bounds the spans decoded at once; default the number of CPUs. For
	// the background it is half of that, so that what is started gets the rest.
	Decoders int
	// RateBytes limits the background of all layers together, in bytes a second
	// of the compressed layers; 0 is no limit.
	RateBytes int64
	// Room reports, with an error, that n bytes more must not be written now by
	// what nobody waits for. It may make room first. nil: there always is.
	Room func(ctx context.Context, n int64) error
	// ReadTimeout is how long a Fetch waits for bytes that their source does not
	// give, trying again; 0 is one try only.
	ReadTimeout time.Duration
	Log         *slog.Logger
}

// Scheduler fetches spans for any number of layers. Close it to stop.
type Scheduler struct {
	opts     Options
	runBytes int64 // compressed size of a transfer
	readers  *semaphore.Weighted
	limit    *rate.Limiter
	ctx      context.Context
	cancel   context.CancelFunc
	wg       sync.WaitGroup

	// Readers do not share memory with the background, lest they wait behind it.
	memory, memoryBackground *semaphore.Weighted
	decode                   *semaphore.Weighted
	spare                    chan struct{} // before decode, for the background

	stats    stats        // of all layers, those that were closed too
	waiting  atomic.Int64 // readers in Fetch
	lastWait atomic.Int64 // when the last one left it, in Unix ns

	// mu guards the rest and every Layer's flights. It is a leaf: nothing that
	// blocks is called with it held.
	mu        sync.Mutex
	layers    []*Layer
	upstreams map[string]*upstream
	next      int // layer whose turn it is in the background
	streams   int // layers that are streamed
	full      full
	wake      *sync.Cond // background workers: there may be work
	wanted    []wanted   // of Prefetch
	feedUntil time.Time  // a feed is under way: nothing of the background before
	held      time.Time  // since when the background is held back
	holdUntil time.Time  // and until when, unless somebody waits for a whole layer
	closed    bool

	streamUntil time.Time // until then the network is a sequential reader's
	transfers   int       // of the background, under way
}

// ErrClosed is returned for what a closed scheduler or layer can no longer do.
var ErrClosed = errors.New("hydration is shut down")

// backgroundShare is the part of the memory that is the background's: a third.
const backgroundShare = 3

// New starts a scheduler.
func New(opts Options) *Scheduler {
	opts = opts.withDefaults()
	background := opts.MemoryBytes / backgroundShare
	s := &Scheduler{opts: opts,
		runBytes:         min(runBytes, background),
		memory:           semaphore.NewWeighted(opts.MemoryBytes - background),
		memoryBackground: semaphore.NewWeighted(background),
		readers:          semaphore.NewWeighted(int64(opts.Readers)),
		decode:           semaphore.NewWeighted(int64(opts.Decoders)),
		spare:            make(chan struct{}, (opts.Decoders+1)/2),
		upstreams:        map[string]*upstream{},
	}
	s.limit = s.limiter(opts.RateBytes)
	s.wake = sync.NewCond(&s.mu)
	s.ctx, s.cancel = context.WithCancel(context.Background())
	for range opts.Background {
		s.wg.Go(s.background)
	}
	return s
}

// Close stops all transfers and waits for them. Readers get ErrClosed.
func (s *Scheduler) Close() {
	s.mu.Lock()
	s.closed = true
	s.cancel()
	s.wake.Broadcast()
	s.mu.Unlock()
	s.wg.Wait()
}

// Config says what a layer is and where its bytes come from.
type Config struct {
	Store *layerstore.Layer
	// Source names what Data comes from, such as a registry's host: when it hangs,
	// layers of other sources do not.
	Source       string
	Format       inflate.Format
	Spans        []index.Span
	Data         Blob // the compressed layer
	Windows      Blob // the windows section of the layer's index
	BytesWindows int64
	// Stream reads the whole compressed layer in order, for layers that cannot
	// be entered in their middle and registries without ranges.
	Stream func(ctx context.Context) io.ReadCloser
	// NoRanges reports whether Data is known to be unable to read ranges, so that
	// the layer is to be streamed. It must not block; may be nil.
	NoRanges func() bool
	// RateBytes limits the layer's background in compressed bytes a second; 0 is
	// no limit, with a negative one there is no background.
	RateBytes int64
	// Finished is called once, from a goroutine of the scheduler, when the layer
	// store has proven the layer, or has refused it for good. It must not close
	// the layer or the scheduler.
	Finished func(err error)
}

// StoreMeta describes a layer of an index to the layer store.
func StoreMeta(il *index.ImageLayer) layerstore.Meta {
	digests := make([][32]byte, len(il.Spans))
	for i := range il.Spans {
		digests[i] = il.Spans[i].Digest
	}
	return layerstore.Meta{Blob: il.Blob, BlobBytes: il.BlobBytes, DiffID: il.DiffID,
		TarBytes: il.TarBytes, SpanBytes: il.SpanBytes, SpanDigests: digests}
}

// Add starts hydrating a layer. A layer that is complete already is finished
// at once. An addition counts as a reader: what is started now will read.
func (s *Scheduler) Add(c Config) *Layer {
	l := newLayer(s, c)
	s.lastWait.Store(time.Now().UnixNano())
	s.mu.Lock()
	if !s.closed {
		s.layers = append(s.layers, l)
		s.wake.Broadcast()
	}
	s.mu.Unlock()
	l.checkFinished()
	return l
}

// remove takes a layer out of the background's turn.
func (s *Scheduler) remove(l *Layer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.layers {
		if s.layers[i] == l {
			s.layers = append(s.layers[:i:i], s.layers[i+1:]...)
			return
		}
	}
}

func (o Options) withDefaults() Options {
	if o.MemoryBytes <= 0 {
		o.MemoryBytes = 48 << 20
	}
	if o.Readers <= 0 {
		o.Readers = 24
	}
	if o.Background <= 0 {
		o.Background = 8
	}
	if o.Decoders <= 0 {
		o.Decoders = runtime.NumCPU()
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

func (s *Scheduler) limiter(rateBytes int64) *rate.Limiter {
	if rateBytes <= 0 {
		return rate.NewLimiter(rate.Inf, 0)
	}
	return rate.NewLimiter(rate.Limit(rateBytes), int(s.runBytes))
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
