package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/docker/go-units"

	"github.com/thaw-project/thaw/internal/daemon/api"
)

// Phases of a start, in order. Those before create are the daemon's.
const (
	phaseCreate   = "create"
	phaseStart    = "start"
	phaseReady    = "ready"
	phaseComplete = "complete"
)

// timelineVersion is the version of the timeline's JSON.
const timelineVersion = 1

// timeline is what a start did when. Times count from the begin of the command.
type timeline struct {
	mu    sync.Mutex // guards what follows
	begun time.Time
	out   timelineJSON
}

// timelineJSON is documented in docs/formats/timeline.md.
type timelineJSON struct {
	Version    int             `json:"version"`
	ReadyMs    *float64        `json:"ready_ms"` // null: not ready (yet), or no --ready
	CompleteMs *float64        `json:"complete_ms"`
	Image      string          `json:"image"`
	Manifest   string          `json:"manifest"`
	Mode       string          `json:"mode"`
	ModeReason string          `json:"mode_reason,omitempty"`
	Index      string          `json:"index"`
	Begun      time.Time       `json:"begun"`
	Phases     []timelinePhase `json:"phases"`
	AtReady    *timelineCost   `json:"at_ready,omitempty"`
	AtEnd      *timelineCost   `json:"at_complete,omitempty"`
}

type timelinePhase struct {
	Name    string  `json:"name"`
	StartMs float64 `json:"start_ms"`
	EndMs   float64 `json:"end_ms"`
	Detail  string  `json:"detail,omitempty"`
}

// timelineCost is what a start had cost at a moment.
type timelineCost struct {
	NetworkBytes  int64   `json:"network_bytes"`    // all that came from the registry
	LayerBytes    int64   `json:"layer_bytes"`      // compressed layer bytes among them
	ImageBytes    int64   `json:"image_bytes"`      // compressed layers of the image
	SharePercent  float64 `json:"share_percent"`    // LayerBytes of ImageBytes
	Bundle        string  `json:"bundle,omitempty"` // state of the start-up bundle
	BundleBytes   int64   `json:"bundle_bytes"`     // of it, among NetworkBytes
	Requests      int64   `json:"requests"`
	Waits         int     `json:"waits"` // reads that waited for bytes
	WaitP50Ms     float64 `json:"wait_p50_ms"`
	WaitP99Ms     float64 `json:"wait_p99_ms"`
	WaitTotalMs   float64 `json:"wait_total_ms"` // of all readers, who may wait at once
	HereBytes     int64   `json:"here_bytes"`    // uncompressed bytes on this node
	UnpackedBytes int64   `json:"unpacked_bytes"`
}

func newTimeline(begun time.Time, m *api.Mount) *timeline {
	t := &timeline{begun: begun, out: timelineJSON{Version: timelineVersion, Image: m.Image, Manifest: m.Manifest.String(),
		Mode: m.Mode, ModeReason: m.ModeReason, Index: m.Index, Begun: begun}}
	for _, p := range m.Phases {
		t.out.Phases = append(t.out.Phases, timelinePhase{p.Name, t.ms(p.Start), t.ms(p.End), p.Detail})
	}
	return t
}

func (t *timeline) ms(at time.Time) float64 { return milliseconds(at.Sub(t.begun)) }

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// mark ends a phase that began where the last one ended.
func (t *timeline) mark(name string, at time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	start := 0.0
	if n := len(t.out.Phases); n > 0 {
		start = t.out.Phases[n-1].EndMs
	}
	end := t.ms(at)
	if name == phaseComplete { // may have been before the container was ready
		start = min(start, end)
	}
	t.out.Phases = append(t.out.Phases, timelinePhase{Name: name, StartMs: start, EndMs: end})
	switch name {
	case phaseReady:
		t.out.ReadyMs = &end
	case phaseComplete:
		t.out.CompleteMs = &end
	}
}

func (t *timeline) has(name string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.ContainsFunc(t.out.Phases, func(p timelinePhase) bool { return p.Name == name })
}

func (t *timeline) atReady(s api.Stats) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.out.AtReady = cost(s)
}

func (t *timeline) atEnd(s api.Stats) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.out.AtEnd = cost(s)
}

func cost(s api.Stats) *timelineCost {
	return &timelineCost{NetworkBytes: s.NetworkBytes, LayerBytes: s.FetchedBytes, ImageBytes: s.ImageBytes,
		SharePercent: min(100*float64(s.FetchedBytes)/float64(max(s.ImageBytes, 1)), 100), Bundle: s.Bundle, BundleBytes: s.BundleBytes, Requests: s.Requests,
		Waits: s.Waits, WaitP50Ms: milliseconds(s.WaitP50), WaitP99Ms: milliseconds(s.WaitP99), WaitTotalMs: milliseconds(s.WaitTotal),
		HereBytes: s.HereBytes, UnpackedBytes: s.UnpackedBytes}
}

// print shows the timeline as it is now.
func (t *timeline) print(w io.Writer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	fmt.Fprintf(w, "\n%s  mount: %s  index: %s\n", t.out.Image, t.out.Mode, t.out.Index)
	if t.out.ModeReason != "" {
		fmt.Fprintf(w, "  not better because: %s\n", t.out.ModeReason)
	}
	fmt.Fprintf(w, "  %-10s %10s %10s\n", "phase", "at ms", "took ms")
	for _, p := range t.out.Phases {
		fmt.Fprintf(w, "  %-10s %10.1f %10.1f\n", p.Name, p.EndMs, p.EndMs-p.StartMs)
	}
	c := t.out.AtReady
	if c == nil {
		return
	}
	fmt.Fprintf(w, "  fetched %s in %d requests: %s of layers, %.1f %% of the image's %s\n", units.HumanSize(float64(c.NetworkBytes)),
		c.Requests, units.HumanSize(float64(c.LayerBytes)), c.SharePercent, units.HumanSize(float64(c.ImageBytes)))
	if c.Bundle != "" {
		fmt.Fprintf(w, "  start-up bundle of %s: %s\n", units.HumanSize(float64(c.BundleBytes)), c.Bundle)
	}
	fmt.Fprintf(w, "  %d reads waited: p50 %.1f ms, p99 %.1f ms, %.1f ms of all readers together\n\n", c.Waits, c.WaitP50Ms, c.WaitP99Ms, c.WaitTotalMs)
}

func (t *timeline) printComplete(w io.Writer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	fmt.Fprintf(w, "thaw: %s is complete and proven after %.1f ms\n", t.out.Image, *t.out.CompleteMs)
}

// writeFile replaces the file by the timeline as it is now.
func (t *timeline) writeFile(path string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	b, err := json.MarshalIndent(t.out, "", "  ")
	if err != nil {
		return fmt.Errorf("encode timeline: %w", err)
	}
	return writeFile(path, append(b, '\n'))
}
