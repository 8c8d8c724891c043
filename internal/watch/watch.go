package watch

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"path"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/thaw-project/thaw/internal/index"
	"github.com/thaw-project/thaw/internal/oci"
	"github.com/thaw-project/thaw/internal/registry"
)

// IndexFunc looks at a pushed manifest, which may be an image index, and makes
// and pushes the index of each image that is worth one. It is called from several
// goroutines, and again after an error that is worth it.
type IndexFunc func(ctx context.Context, image oci.Reference) ([]Outcome, error)

// Options are what a [Watcher] is made of.
type Options struct {
	// Dir is where the queue is kept; one Watcher has it at a time.
	Dir string
	// Secrets are what a notification has to bring one of. None: it needs none.
	Secrets []string
	// Registry is the host under which this machine reaches the registry, in the
	// place of the one that a notification names.
	Registry string
	// Match are patterns (path.Match) of HOST/REPOSITORY or REPOSITORY, one of
	// which an image's name has to match. None: all are wanted.
	Match []string
	// Queue is how many images may wait or be worked on; a notification of several
	// that begins below it is taken whole. Workers is how many are worked on at once.
	Queue, Workers int
	// Attempts is how often an image is tried, Backoff how long after the first
	// failure; then four times as long each time, an hour at most.
	Attempts int
	Backoff  time.Duration
	// Drain is how long what is in the queue may take after the end was asked for.
	Drain time.Duration
	Index IndexFunc
	// Done hears of each outcome, from one goroutine at a time. May be nil.
	Done func(Outcome)
	Log  *slog.Logger
}

// Watcher takes notifications and works on what they tell of.
type Watcher struct {
	opts    Options
	secrets [][]byte // digests of Options.Secrets
	queue   *queue
	counts  counts
	taking  chan struct{} // bounds notifications that are read at once
	drain   chan struct{} // closed when the end was asked for
	ending  atomic.Bool
	// readTimeout is how long a request may take to arrive.
	readTimeout time.Duration

	mu     sync.Mutex // guards recent, own, and calls of Done
	recent []Outcome  // the last ones, oldest first
	own    map[digest.Digest]bool
}

// Bounds of what is remembered.
const (
	maxRecent = 100
	maxOwn    = 10_000
	maxBody   = 1 << 20
	maxTaking = 32
)

// New opens the queue.
func New(opts Options) (*Watcher, error) {
	w := &Watcher{opts: opts, taking: make(chan struct{}, maxTaking), drain: make(chan struct{}), own: map[digest.Digest]bool{}, readTimeout: 15 * time.Second}
	for _, s := range opts.Secrets {
		w.secrets = append(w.secrets, sum(s))
	}
	w.counts.init()
	q, warning, err := openQueue(filepath.Join(opts.Dir, "queue.json"), opts.Queue)
	if err != nil {
		return nil, err
	}
	if warning != nil {
		opts.Log.Warn("queue", "err", warning)
	}
	w.queue = q
	return w, nil
}

// Close lets go of the queue. [Watcher.Serve] has to have returned.
func (w *Watcher) Close() error { return w.queue.lock.Close() }

// Queued is how many images are in the queue.
func (w *Watcher) Queued() int {
	n, _ := w.queue.counts()
	return n
}

// take decides about events, as far as that can be done at once, and queues what
// is to be looked at: all of it, or on an error nothing. An event that is not
// queued has no item.
func (w *Watcher) take(events []Event) ([]Outcome, []*item, error) {
	out, items := make([]Outcome, len(events)), make([]*item, len(events))
	var wanted []int // numbers of events
	var images []oci.Reference
	for i, e := range events {
		if out[i] = w.judge(e); out[i].Result == ResultQueued {
			wanted, images = append(wanted, i), append(images, e.Image)
		}
	}
	queued, added, err := w.queue.add(images)
	if err != nil {
		return nil, nil, err
	}
	for k, i := range wanted {
		items[i] = queued[k]
		if !added[k] {
			out[i].Reason = ReasonQueued
		}
	}
	return out, items, nil
}

// judge says whether an event is of something to be looked at.
func (w *Watcher) judge(e Event) Outcome {
	out := Outcome{Result: ResultIgnored, Reason: e.Reason, Detail: e.Detail}
	if e.Image != (oci.Reference{}) {
		out.Image = e.Image.String()
	}
	switch {
	case e.Reason != "":
	case e.ArtifactType == index.ArtifactType || w.isOwn(e.Image.Digest):
		out.Reason = ReasonOwnIndex
	case isReferrersTag(e.Image.Tag):
		out.Reason, out.Detail = ReasonNotImage, "a list of referrers"
	case !w.matches(e.Image):
		out.Reason = ReasonNotMatched
	default:
		out.Result = ResultQueued
	}
	return out
}

// isReferrersTag reports whether a tag is of the distribution specification's
// schema for registries without the referrers API.
func isReferrersTag(tag string) bool {
	const prefix = "sha256-"
	return len(tag) == len(prefix)+64 && tag[:len(prefix)] == prefix && digest.Digest("sha256:"+tag[len(prefix):]).Validate() == nil
}

func (w *Watcher) matches(ref oci.Reference) bool {
	for _, pattern := range w.opts.Match {
		for _, name := range []string{ref.Name(), ref.Repository} {
			if ok, _ := path.Match(pattern, name); ok { // patterns were checked
				return true
			}
		}
	}
	return len(w.opts.Match) == 0
}

// Own notes that the manifest is an index that is about to be pushed, so that the
// registry's notification of it need not be looked into.
func (w *Watcher) Own(manifest digest.Digest) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.own) >= maxOwn {
		clear(w.own) // what is forgotten is looked into and recognized then
	}
	w.own[manifest] = true
}

func (w *Watcher) isOwn(manifest digest.Digest) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.own[manifest]
}

// work does what is in the queue until ctx ends, or drain is closed and nothing
// is left that can be done now.
func (w *Watcher) work(ctx context.Context) {
	for {
		it := w.queue.next(ctx, w.drain)
		if it == nil {
			return
		}
		w.attempt(ctx, it)
	}
}

// errPoison: an image was begun as often as it may be, and never finished.
var errPoison = errors.New("every process that began it died")

func (w *Watcher) attempt(ctx context.Context, it *item) {
	begun := time.Now()
	var outcomes []Outcome
	err := errPoison
	if it.attempts <= w.opts.Attempts { // else earlier processes have begun it, and none has come to an end
		outcomes, err = w.opts.Index(ctx, it.image)
	}
	it.spent += time.Since(begun)
	log := w.opts.Log.With("image", it.image.String(), "attempt", it.attempts)
	if err != nil && ctx.Err() != nil {
		if err := w.queue.release(it); err != nil {
			log.Warn("queue is not saved", "err", err)
		}
		log.Info("image is left for the next process", "reason", ReasonInterrupt)
		return
	}
	if err != nil && Retryable(err) && it.attempts < w.opts.Attempts {
		after := backoff(w.opts.Backoff, it.attempts)
		w.counts.retries.Add(1)
		log.Warn("image is tried again", "after", after.Round(time.Millisecond), "err", err)
		w.queue.again(it, after)
		return
	}
	if err != nil {
		out := Outcome{Image: it.image.String(), Result: ResultFailed, Reason: ReasonError, Detail: err.Error()}
		if errors.Is(err, registry.ErrNotFound) {
			out.Result, out.Reason = ResultSkipped, ReasonGone
		}
		outcomes = append(outcomes, out)
	}
	for i := range outcomes {
		outcomes[i].Attempts, outcomes[i].Seconds = it.attempts, it.spent.Seconds()
		w.done(outcomes[i])
	}
	if err := w.queue.finish(it, outcomes); err != nil {
		log.Warn("queue is not saved", "err", err)
	}
}

// Retryable reports what an [IndexFunc]'s error is tried again for: what the registry may give later. An image that has just been pushed
// may not be everywhere yet, and credentials are renewed.
func Retryable(err error) bool {
	return registry.Retryable(err) || errors.Is(err, registry.ErrNotFound) || errors.Is(err, registry.ErrUnauthorized)
}

// backoff is how long to wait after so many attempts, give or take a quarter: many
// images fail together when a registry does.
func backoff(first time.Duration, attempts int) time.Duration {
	d := first
	for range attempts - 1 {
		d = min(4*d, time.Hour)
	}
	return d*3/4 + time.Duration(rand.Int64N(int64(d/2)+1))
}

// done tells of an outcome in all the ways there are.
func (w *Watcher) done(o Outcome) {
	w.counts.outcome(o)
	attrs := []any{"image", o.Image, "platform", o.Platform, "seconds", o.Seconds}
	switch o.Result {
	case ResultIndexed:
		w.opts.Log.Info("image is indexed", append(attrs, "index", o.Index, "bytes", o.IndexBytes)...)
	case ResultSkipped:
		w.opts.Log.Info("image is not indexed", append(attrs, "reason", o.Reason, "detail", o.Detail)...)
	default:
		w.opts.Log.Error("image could not be indexed", append(attrs, "reason", o.Reason, "err", o.Detail)...)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.recent = append(w.recent[max(0, len(w.recent)+1-maxRecent):], o)
	if w.opts.Done != nil {
		w.opts.Done(o)
	}
}
