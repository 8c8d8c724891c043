package lab

import (
	"maps"
	"sync"
	"sync/atomic"
	"time"
)

// StatsVersion is the version of the JSON of [Stats].
const StatsVersion = 1

// Count is how often, and how many bytes of answer bodies were sent.
type Count struct {
	Requests int64 `json:"requests"`
	Bytes    int64 `json:"bytes"`
}

// Stats is what was asked of a [Server]. Bytes are those of bodies sent, headers
// not counted.
type Stats struct {
	Version     int              `json:"version"`
	Since       time.Time        `json:"since"`
	Connections int64            `json:"connections"` // accepted
	Requests    int64            `json:"requests"`
	Bytes       int64            `json:"bytes"`
	Kinds       map[string]Count `json:"kinds"`  // ping, manifest, blob, redirect, referrers, tags, token, upload, other
	Blobs       map[string]Count `json:"blobs"`  // GETs of blobs by digest
	Faults      map[string]int64 `json:"faults"` // injected, by kind
}

// recorder counts for Stats.
type recorder struct {
	connections atomic.Int64

	mu     sync.Mutex // guards all below
	since  time.Time
	kinds  map[string]Count
	blobs  map[string]Count
	faults map[string]int64
}

func newRecorder() *recorder {
	r := &recorder{}
	r.reset()
	return r
}

func (r *recorder) reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.connections.Store(0)
	r.since = time.Now()
	r.kinds, r.blobs, r.faults = map[string]Count{}, map[string]Count{}, map[string]int64{}
}

// add counts for one request; digest is empty unless a blob's bytes were asked for.
func (r *recorder) add(kind, digest string, requests, sizeBytes int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.kinds[kind]
	r.kinds[kind] = Count{c.Requests + requests, c.Bytes + sizeBytes}
	if digest != "" {
		c := r.blobs[digest]
		r.blobs[digest] = Count{c.Requests + requests, c.Bytes + sizeBytes}
	}
}

func (r *recorder) fault(kind string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults[kind]++
}

func (r *recorder) snapshot() Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := Stats{
		Version: StatsVersion, Since: r.since, Connections: r.connections.Load(),
		Kinds: maps.Clone(r.kinds), Blobs: maps.Clone(r.blobs), Faults: maps.Clone(r.faults),
	}
	for _, c := range r.kinds {
		s.Requests += c.Requests
		s.Bytes += c.Bytes
	}
	return s
}
