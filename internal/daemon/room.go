package daemon

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	digest "github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/layerstore"
)

const (
	// MinFreeBytes is what is left on the disk, at least, by all but readers who
	// wait: for them, and for what else writes there.
	MinFreeBytes = 256 << 20
	// roomInterval is how often to look at the limits when nothing happens.
	roomInterval = 10 * time.Second
	// measureInterval is how old a sum of all layers may be.
	measureInterval = time.Second
	// readerRoomBytes is what is evicted for a reader when the disk is full to its
	// last byte: more than its read, so that the next ones need not ask.
	readerRoomBytes = 64 << 20
	// fullBytes is how much has to be free before a disk that was full is tried again.
	fullBytes = 4 << 20
	// fullInterval is how often a full disk is logged.
	fullInterval = 10 * time.Second
)

// room keeps the layers within the limits of the configuration.
type room struct {
	freed chan struct{} // a layer is not in use any more
	// Set once the mounts of an earlier daemon are taken over: before that nobody
	// knows what they need, and nothing is evicted.
	open atomic.Bool

	mu       sync.Mutex // held while evicting; guards what follows
	measured time.Time
	usage    layerstore.Usage
	layers   int // evicted since the daemon was started
	bytes    int64

	fullMu sync.Mutex // guards what follows
	fullAt time.Time  // a full disk was logged
	full   error      // that a reader got, and nobody since found room
}

// noRoomError says that what nobody waits for must not be written.
type noRoomError struct {
	root                string
	free, reserve, need int64
}

func (e *noRoomError) Error() string {
	return fmt.Sprintf("no room: %d MiB are free on the disk of %s, %d MiB are to be left; %d MiB more are needed to go on",
		e.free>>20, e.root, e.reserve>>20, (e.reserve+e.need-e.free+1<<20-1)>>20)
}

// Unwrap lets callers see that it is the disk.
func (e *noRoomError) Unwrap() error { return unix.ENOSPC }

// minFree is what is left on a disk of the given size.
func (d *Daemon) minFree(size int64) int64 { return max(d.cfg.MinFree(size), MinFreeBytes) }

// makeRoom evicts layers until the configured limits hold with need bytes more
// on the disk. If then less than the reserve would be left it returns an error that
// is ENOSPC; that more than the largest size is needed is none.
func (d *Daemon) makeRoom(ctx context.Context, need int64) error {
	free, size, err := d.store.FreeBytes()
	if err != nil {
		return err
	}
	reserve := d.minFree(size)
	limit := d.cfg.MaxSize(size)
	if limit == 0 && free-need >= reserve {
		return nil
	}
	d.room.mu.Lock()
	defer d.room.mu.Unlock()
	lacking, reason := reserve+need-free, "little is free on the disk"
	if limit > 0 {
		if err := d.measure(); err != nil {
			return err
		}
		if over := d.room.usage.Bytes + need - limit; over > lacking {
			lacking, reason = over, "layers take more than cache.max-size"
		}
	}
	if lacking <= 0 {
		return nil
	}
	if _, err := d.evict(ctx, lacking, reason); err != nil {
		return err
	}
	if free, _, err = d.store.FreeBytes(); err == nil && free-need < reserve {
		err = &noRoomError{root: d.cfg.Root, free: free, reserve: reserve, need: need}
	}
	return err
}

// measure sums the layers unless that was done just now. room.mu is held.
func (d *Daemon) measure() error {
	if time.Since(d.room.measured) < measureInterval {
		return nil
	}
	usage, err := d.store.Usage()
	if err != nil {
		return err
	}
	d.room.usage, d.room.measured = usage, time.Now()
	return nil
}

// evict removes layers that nothing needs until bytes are free, and returns how
// many that were. room.mu is held.
func (d *Daemon) evict(ctx context.Context, bytes int64, reason string) (int64, error) {
	if !d.room.open.Load() {
		return 0, nil
	}
	evicted, err := d.store.Evict(ctx, bytes, d.watched)
	sum := int64(0)
	for _, info := range evicted {
		sum += info.DiskBytes
		d.log.Info("layer is evicted", "layer", info.Blob, "bytes", info.DiskBytes, "last_use", info.LastUse.UTC().Format(time.RFC3339), "reason", reason)
	}
	d.room.layers += len(evicted)
	d.room.bytes += sum
	d.room.measured = time.Time{}
	if err != nil {
		return sum, fmt.Errorf("evict layers: %w", err)
	}
	return sum, nil
}

// watched reports whether a layer is still watched although it may not be in
// use: who reads it through a mount that was detached needs its file.
func (d *Daemon) watched(blob digest.Digest) bool {
	return d.fanotify.Load() != nil && d.fanotify.Load().Watches(blob)
}

// settlePatience is how long somebody who asks for layers to be removed waits for
// those that were just unmounted, and settleRetry how often it is looked.
const (
	settlePatience = time.Second
	settleRetry    = 10 * time.Millisecond
)

// settle waits a moment for layers that are not mounted any more and are still
// open: an OCI runtime that was killed had copies of all mounts.
func (d *Daemon) settle(ctx context.Context) {
	if d.fanotify.Load() == nil {
		return
	}
	for deadline := time.Now().Add(settlePatience); d.fanotify.Load().Tidy() > 0 && time.Now().Before(deadline); {
		select {
		case <-time.After(settleRetry):
		case <-ctx.Done():
			return
		}
	}
}

// keepRoom evicts when a limit is exceeded, now and then and whenever something
// is not in use any more.
func (d *Daemon) keepRoom() {
	tick := time.NewTicker(roomInterval)
	defer tick.Stop()
	for {
		if d.fanotify.Load() != nil {
			d.fanotify.Load().Tidy()
		}
		var noRoom *noRoomError // hydration says so
		if err := d.makeRoom(d.ctx, 0); err != nil && d.ctx.Err() == nil && !errors.As(err, &noRoom) {
			d.log.Error("make room on the disk", "err", err)
		}
		select {
		case <-d.ctx.Done():
			return
		case <-tick.C:
		case <-d.room.freed:
		}
	}
}

// released tells keepRoom that there may be something to evict.
func (d *Daemon) released() {
	select {
	case d.room.freed <- struct{}{}:
	default:
	}
}

// stillFull implements fullDisk.
func (d *Daemon) stillFull() error {
	d.room.fullMu.Lock()
	defer d.room.fullMu.Unlock()
	if d.room.full == nil {
		return nil
	}
	if free, _, err := d.store.FreeBytes(); err != nil || free >= fullBytes {
		d.room.full = nil
	}
	return d.room.full
}

// makeReaderRoom implements fullDisk.
func (d *Daemon) makeReaderRoom(ctx context.Context, l *layer, cause error) (again bool) {
	d.room.mu.Lock()
	freed, err := d.evict(ctx, readerRoomBytes, "the disk is full and a reader waits")
	d.room.mu.Unlock()
	if err != nil {
		d.log.Error("make room on the disk", "err", err)
	}
	if freed > 0 {
		return true
	}
	d.room.fullMu.Lock()
	defer d.room.fullMu.Unlock()
	d.counts.fail(failDisk)
	d.room.full = fmt.Errorf("the disk of %s is full: %w", d.cfg.Root, unix.ENOSPC)
	if time.Since(d.room.fullAt) < fullInterval {
		return false
	}
	d.room.fullAt = time.Now()
	free, _, _ := d.store.FreeBytes() // 0 says it as well
	missing := int64(0)
	for _, l := range d.layers.list() {
		missing += l.missing()
	}
	d.log.Error("the disk is full and nothing can be evicted: reads of what is not here fail", "dir", d.cfg.Root, "free_bytes", free,
		"layer", l.blob, "layer_missing_bytes", l.missing(), "all_missing_bytes", missing, "err", cause)
	return false
}

// missing is how many bytes of a layer are not here.
func (l *layer) missing() int64 { return l.store.Meta().TarBytes - l.store.HaveBytes() }

// describeCache says what the layers take and what they may.
func (d *Daemon) describeCache() (*api.Cache, error) {
	free, size, err := d.store.FreeBytes()
	if err != nil {
		return nil, err
	}
	d.room.mu.Lock()
	defer d.room.mu.Unlock()
	if err := d.measure(); err != nil {
		return nil, err
	}
	return &api.Cache{DiskBytes: d.room.usage.Bytes, EvictableBytes: d.room.usage.Evictable, MaxBytes: d.cfg.MaxSize(size), FreeBytes: free,
		MinFreeBytes: d.minFree(size), EvictedLayers: d.room.layers, EvictedBytes: d.room.bytes}, nil
}
