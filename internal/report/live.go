package report

import (
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/thaw-project/thaw/internal/profile"
)

// Start is a start in a page of many: one that is over, or under way.
type Start struct {
	ID        string    `json:"id"` // of its record
	Image     string    `json:"image"`
	Manifest  string    `json:"manifest,omitempty"`
	Begun     time.Time `json:"begun"`
	State     string    `json:"state"` // what happened last: an event's name; StateAsked, StateFailed
	Over      bool      `json:"over"`
	Kept      bool      `json:"kept"` // there is a record of it
	TotalMs   *float64  `json:"total_ms"`
	Mode      string    `json:"mode,omitempty"`
	Error     string    `json:"error,omitempty"`
	ImageSize int64     `json:"image_bytes"`    // compressed
	Unpacked  int64     `json:"unpacked_bytes"` // all layers
	Needed    int64     `json:"needed_bytes"`   // of Unpacked, read until ready; 0: not known
	Network   int64     `json:"network_bytes"`  // until ready
	Here      int64     `json:"here_bytes"`     // of Needed: on this node before,
	Cache     int64     `json:"cache_bytes"`    // from a shared cache,
	Registry  int64     `json:"registry_bytes"` // from the registry
	WaitMs    *float64  `json:"wait_ms"`        // of reads, until ready
}

// States beside events.
const (
	StateAsked  = "asked"
	StateFailed = "failed"
)

// StartOf is the start in a record of one.
func StartOf(r *profile.Record) (Start, bool) {
	if len(r.Subjects) == 0 || len(r.Subjects[0].Runs) == 0 {
		return Start{}, false
	}
	s, run := &r.Subjects[0], &r.Subjects[0].Runs[0]
	out := Start{ID: r.ID, Image: s.Image, Manifest: s.Manifest, Begun: r.Begun, Over: true, Kept: true, TotalMs: rounded(run.TotalMs), Mode: s.Mode, Error: run.Error, ImageSize: s.ImageBytes, Unpacked: s.UnpackedBytes}
	for _, e := range run.Events {
		out.State = e.Name
		if e.Name == profile.EventReady {
			break // it goes on being here, but that is what it was started for
		}
	}
	if run.Error != "" {
		out.State = StateFailed
	}
	if c := run.Cost; c != nil {
		out.Needed, out.Network, out.Here, out.Cache, out.Registry = c.NeededBytes, c.NetworkBytes, c.HereBytes, c.CacheBytes, c.RegistryBytes
	}
	if series, _ := s.Series(profile.MeasureLazyWait); len(series.Values) > 0 {
		out.WaitMs = rounded(&series.Values[0])
	}
	return out, true
}

// WriteLive writes the page of a node's starts. Its script listens at events, relative
// to the page's address, for starts that change; records are at starts/ID.
func WriteLive(w io.Writer, node, tool string, starts []Start) error {
	b, err := json.Marshal(struct {
		Live   bool      `json:"live"`
		Node   string    `json:"node"`
		Tool   string    `json:"tool"`
		Made   time.Time `json:"made"`
		Starts []Start   `json:"starts"`
	}{true, node, tool, time.Now(), notNil(starts)})
	if err != nil {
		return fmt.Errorf("encode starts: %w", err)
	}
	return page(w, parts{title: "Starts on " + node, about: fmt.Sprintf("%d starts. This page needs its script.", len(starts)), data: b, script: []string{"core.js", "bar.js", "live.js"}, connect: "'self'"})
}
