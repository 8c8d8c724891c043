package watch

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/oci"
)

// queueVersion is the version of the queue's file.
const queueVersion = 1

// errFull: there is no room for another image.
var errFull = errors.New("the queue is full")

// key is what makes two notifications the same. A tag does not: the digest is
// the image.
type key struct {
	name   string // HOST/REPOSITORY
	digest digest.Digest
}

func keyOf(ref oci.Reference) key { return key{ref.Name(), ref.Digest} }

// item is an image in the queue.
type item struct {
	image     oci.Reference
	attempts  int       // begun
	notBefore time.Time // of the next attempt
	spent     time.Duration
	running   bool
	done      chan struct{} // closed when outcomes is set
	outcomes  []Outcome
}

// queue holds the images that wait and those that are worked on, in the order
// of their arrival. It is written to a file whenever an image comes, is begun or
// goes, so that a process that was killed loses none, and an image that kills
// processes is not tried for ever.
type queue struct {
	max  int
	file string
	lock *os.File // a flock on it says whose the queue is

	mu    sync.Mutex // guards all below, and the file
	items []*item
	wake  chan struct{} // closed and replaced when items has changed
}

// openQueue reads what an earlier process left. A file that makes no sense is put
// aside, and said in warning.
func openQueue(file string, size int) (q *queue, warning error, err error) {
	q = &queue{max: size, file: file, wake: make(chan struct{})}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return nil, nil, fmt.Errorf("open queue: %w", err)
	}
	if q.lock, err = os.OpenFile(filepath.Join(filepath.Dir(file), "lock"), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, nil, fmt.Errorf("open queue: %w", err)
	}
	err = unix.Flock(int(q.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = errors.New("another process has it")
	}
	var b []byte
	if err == nil {
		b, err = os.ReadFile(file)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return q, nil, nil
	}
	if err != nil {
		_ = q.lock.Close() // the first error says more
		return nil, nil, fmt.Errorf("open queue %s: %w", file, err)
	}
	if q.items, err = decodeQueue(b); err != nil {
		return q, fmt.Errorf("queue %s is damaged and put aside: %w", file, err), os.Rename(file, file+".damaged")
	}
	return q, nil, nil
}

type queueFile struct {
	Version int          `json:"version"`
	Images  []queueEntry `json:"images"`
}

type queueEntry struct {
	Image    string `json:"image"`
	Attempts int    `json:"attempts,omitempty"`
}

func decodeQueue(b []byte) ([]*item, error) {
	var f queueFile
	dec := json.NewDecoder(bytes.NewReader(b))
	if err := dec.Decode(&f); err != nil {
		return nil, err
	}
	if f.Version != queueVersion {
		return nil, fmt.Errorf("version %d is not known", f.Version)
	}
	var items []*item
	seen := map[key]bool{}
	for _, e := range f.Images {
		ref, err := oci.ParseReference(e.Image)
		if err != nil {
			return nil, err
		}
		if ref.IsLayout() || ref.Digest == "" || e.Attempts < 0 {
			return nil, fmt.Errorf("entry %s, %d attempts", quote(e.Image), e.Attempts)
		}
		if !seen[keyOf(ref)] {
			seen[keyOf(ref)] = true
			items = append(items, &item{image: ref, attempts: e.Attempts, done: make(chan struct{})})
		}
	}
	return items, nil
}

// add puts images at the end, or returns the items that it has of them already.
// They are on disk when it returns; errFull and I/O errors leave all as it was. It
// is full when there was no room before: what comes together is taken together, for
// if only a part were, it would be the same part each time it comes again.
func (q *queue) add(refs []oci.Reference) (items []*item, added []bool, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	before := len(q.items)
	for _, ref := range refs {
		i := slices.IndexFunc(q.items, func(it *item) bool { return keyOf(it.image) == keyOf(ref) })
		if i < 0 && before >= q.max {
			return nil, nil, errFull
		}
		added = append(added, i < 0)
		if i < 0 {
			i = len(q.items)
			q.items = append(q.items, &item{image: ref, done: make(chan struct{})})
		}
		items = append(items, q.items[i])
	}
	if len(q.items) == before {
		return items, added, nil
	}
	if err := q.save(); err != nil {
		q.items = q.items[:before]
		return nil, nil, err
	}
	q.changed()
	return items, added, nil
}

// next waits for an image whose time has come, and counts an attempt. With drain
// it returns nil as soon as there is none, those that wait for another attempt
// left aside; and when ctx ends.
func (q *queue) next(ctx context.Context, drain <-chan struct{}) *item {
	for ctx.Err() == nil {
		q.mu.Lock()
		it, wait := q.ready(time.Now())
		if it != nil {
			it.running = true
			it.attempts++
			_ = q.save() // only the count of attempts would be lost
			q.mu.Unlock()
			return it
		}
		wake := q.wake
		q.mu.Unlock()
		select {
		case <-drain:
			return nil
		default:
		}
		timer := time.NewTimer(wait)
		select {
		case <-wake:
		case <-timer.C:
		case <-drain:
		case <-ctx.Done():
		}
		timer.Stop()
	}
	return nil
}

// ready returns the first image that may be begun, or how long to wait for one.
func (q *queue) ready(now time.Time) (*item, time.Duration) {
	wait := time.Hour
	for _, it := range q.items {
		if it.running {
			continue
		}
		if !it.notBefore.After(now) {
			return it, 0
		}
		wait = min(wait, it.notBefore.Sub(now))
	}
	return nil, wait
}

// again has an image wait for its next attempt.
func (q *queue) again(it *item, after time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	it.running, it.notBefore = false, time.Now().Add(after)
	q.changed()
}

// release gives an attempt back that was cut off.
func (q *queue) release(it *item) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	it.running = false
	it.attempts--
	return q.save()
}

// finish takes an image out.
func (q *queue) finish(it *item, outcomes []Outcome) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i := range q.items {
		if q.items[i] == it {
			q.items = append(q.items[:i:i], q.items[i+1:]...)
			break
		}
	}
	it.outcomes = outcomes
	close(it.done)
	q.changed()
	return q.save()
}

// changed wakes whoever waits in next.
func (q *queue) changed() {
	close(q.wake)
	q.wake = make(chan struct{})
}

// counts returns how many images are in the queue, and how many of them are
// worked on.
func (q *queue) counts() (all, running int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, it := range q.items {
		if it.running {
			running++
		}
	}
	return len(q.items), running
}

// waiting is an image in the queue as /status shows it.
type waiting struct {
	Image    string     `json:"image"`
	Attempts int        `json:"attempts"`
	Running  bool       `json:"running"`
	Next     *time.Time `json:"next,omitempty"` // when it is tried again
}

func (q *queue) list() []waiting {
	q.mu.Lock()
	defer q.mu.Unlock()
	out := make([]waiting, 0, len(q.items))
	for _, it := range q.items {
		w := waiting{Image: it.image.String(), Attempts: it.attempts, Running: it.running}
		if !it.notBefore.IsZero() && !it.running {
			next := it.notBefore
			w.Next = &next
		}
		out = append(out, w)
	}
	return out
}

// save replaces the file: another process reads all of it or what was before.
func (q *queue) save() error {
	f := queueFile{Version: queueVersion, Images: make([]queueEntry, 0, len(q.items))}
	for _, it := range q.items {
		f.Images = append(f.Images, queueEntry{it.image.String(), it.attempts})
	}
	b, err := json.Marshal(f)
	if err != nil {
		return fmt.Errorf("save queue: %w", err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(q.file), ".tmp-queue-*")
	if err != nil {
		return fmt.Errorf("save queue: %w", err)
	}
	defer os.Remove(tmp.Name()) // nothing is there any more once it is renamed
	_, err = tmp.Write(b)
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), q.file)
	}
	if err != nil {
		return fmt.Errorf("save queue: %w", err)
	}
	return nil
}
