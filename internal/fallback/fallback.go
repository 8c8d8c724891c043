// Package fallback remembers where an image was not started the way it should
// be, and why: nothing falls back silently.
//
// An [Event] says which image, what was done instead, and a [Reason] that a
// program can branch on, a metric can count by and a user can look up. The [Log]
// keeps the last events in a file, so that they can be asked for after a restart
// as well; the same thing happening again is counted, not repeated. It loses
// events rather than hinder what they are about: a file that cannot be written
// is logged, one that cannot be read begins anew.
package fallback

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	digest "github.com/opencontainers/go-digest"
)

// Reason is why an image was not mounted lazily.
type Reason string

// Reasons. The set is small and closed: metrics have it as a label.
const (
	NoIndex      Reason = "no-index"     // nobody has made an index of it
	BadIndex     Reason = "bad-index"    // there is one, and it is not used: quarantined, not trusted, or not about the image
	Registry     Reason = "registry"     // its registry does not give what it takes: not found, refused, gone
	NoLogin      Reason = "no-login"     // its registry wants credentials that thaw does not have
	Unsupported  Reason = "unsupported"  // thaw cannot read it: media types, names, size
	Kernel       Reason = "kernel"       // lazy mounts are not possible on this node
	Configured   Reason = "configured"   // the configuration or a label says so
	Unnamed      Reason = "unnamed"      // containerd did not say which image it is
	PlainParent  Reason = "plain-parent" // what it stands on was unpacked by containerd
	Limit        Reason = "limit"        // the daemon has as many mounts as it can have
	NoSpace      Reason = "no-space"     // the disk is full
	InternalFail Reason = "internal"     // none of these
)

// Reasons are all there are.
var Reasons = []Reason{NoIndex, BadIndex, Registry, NoLogin, Unsupported, Kernel, Configured, Unnamed, PlainParent, Limit, NoSpace, InternalFail}

// Hint says what a user can do about it.
func (r Reason) Hint() string {
	switch r {
	case NoIndex:
		return "thaw index build --push IMAGE, once, makes the next node's start lazy; this node has made its own"
	case BadIndex:
		return "thaw index build --push IMAGE makes another; thaw index verify IMAGE says what is wrong with the one that is there"
	case Registry:
		return "see the detail, and whether the node can reach the registry"
	case NoLogin:
		return "give the daemon credentials for the registry"
	case Unsupported:
		return "the image works as with containerd's overlayfs"
	case Kernel:
		return "thaw doctor says what is missing"
	case Configured:
		return "see images in the configuration, and the label thaw.dev/mode"
	case Unnamed:
		return "enable_remote_snapshot_annotations (proxy plugin) and disable_snapshot_annotations = false (CRI), or containerd.address, tell the snapshotter"
	case PlainParent:
		return "remove the images that share its layers, and pull it again"
	case Limit:
		return "end what is not needed"
	case NoSpace:
		return "make room, then pull it again"
	}
	return "the daemon's log has more"
}

// Action is what was done instead of a lazy mount.
type Action string

// Actions.
const (
	Eager Action = "eager" // brought whole by thaw before its start
	Plain Action = "plain" // left to containerd, which downloads and unpacks it
	FUSE  Action = "fuse"  // lazily, but not the best way
)

// Event is a fallback.
type Event struct {
	Time     time.Time     `json:"time"` // of the first
	Last     time.Time     `json:"last"` // of the last like it
	Count    int           `json:"count"`
	Image    string        `json:"image,omitempty"` // reference, where it is known
	Manifest digest.Digest `json:"manifest,omitempty"`
	ChainID  digest.Digest `json:"chainID,omitempty"` // of the snapshot
	Action   Action        `json:"action"`
	Reason   Reason        `json:"reason"`
	Detail   string        `json:"detail,omitempty"`
}

// maxEvents is how many are kept, and maxDetail how long each one's detail is.
const (
	maxEvents = 256
	maxDetail = 1000
)

// Log keeps events.
type Log struct {
	path string
	log  *slog.Logger

	mu     sync.Mutex // guards what follows, and the file
	events []Event    // the oldest first
	counts map[Reason]int64
	hooks  []func(Event)
}

// Open reads the log that is kept at path; an empty path keeps it in memory.
func Open(path string, log *slog.Logger) *Log {
	l := &Log{path: path, log: log, counts: map[Reason]int64{}}
	if path == "" {
		return l
	}
	b, err := os.ReadFile(path)
	if err == nil {
		l.events, err = decode(b)
	}
	if err != nil && !os.IsNotExist(err) {
		log.Warn("earlier fallbacks cannot be read", "path", path, "err", err)
	}
	return l
}

func decode(b []byte) ([]Event, error) {
	var events []Event
	if err := json.Unmarshal(b, &events); err != nil {
		return nil, fmt.Errorf("decode fallbacks: %w", err)
	}
	return events[max(0, len(events)-maxEvents):], nil
}

// Add keeps an event, logs it, and tells who asked for it. Time and Count are set.
func (l *Log) Add(e Event) {
	e.Time = time.Now().UTC().Truncate(time.Millisecond)
	e.Last, e.Count = e.Time, 1
	if len(e.Detail) > maxDetail {
		e.Detail = e.Detail[:maxDetail]
	}
	l.mu.Lock()
	l.counts[e.Reason]++
	same := slices.IndexFunc(l.events, func(o Event) bool {
		return o.Image == e.Image && o.Manifest == e.Manifest && o.Action == e.Action && o.Reason == e.Reason
	})
	if same >= 0 {
		e.Time, e.Count = l.events[same].Time, l.events[same].Count+1
		l.events = slices.Delete(l.events, same, same+1)
	}
	l.events = append(l.events, e)
	l.events = l.events[max(0, len(l.events)-maxEvents):]
	err := l.save()
	hooks := slices.Clone(l.hooks)
	l.mu.Unlock()
	level, text := slog.LevelWarn, "image is not mounted lazily"
	if e.Action == FUSE {
		text = "image is mounted through FUSE"
	}
	if e.Reason == Configured || e.Action == FUSE { // the daemon has warned of FUSE once
		level = slog.LevelInfo
	}
	l.log.Log(context.Background(), level, text, "image", e.Image, "action", string(e.Action), "reason", string(e.Reason),
		"detail", e.Detail, "hint", e.Reason.Hint())
	if err != nil {
		l.log.Warn("keep fallbacks", "path", l.path, "err", err)
	}
	for _, hook := range hooks {
		hook(e)
	}
}

// save replaces the file. Called with mu held.
func (l *Log) save() error {
	if l.path == "" {
		return nil
	}
	b, err := json.Marshal(l.events)
	if err != nil {
		return err
	}
	tmp := filepath.Join(filepath.Dir(l.path), ".tmp-"+filepath.Base(l.path))
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, l.path) // not synced: a power failure may take it
}

// List returns the events, the last one first.
func (l *Log) List() []Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := slices.Clone(l.events)
	slices.Reverse(all)
	return all
}

// Counts returns how often each reason was given since the log was opened.
func (l *Log) Counts() map[Reason]int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	counts := map[Reason]int64{}
	for _, r := range Reasons {
		counts[r] = l.counts[r]
	}
	return counts
}

// Notify has f called for each event from now on. It is not to wait.
func (l *Log) Notify(f func(Event)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hooks = append(l.hooks, f)
}
