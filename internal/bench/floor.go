package bench

import (
	"fmt"
	"time"

	"github.com/docker/go-units"
)

// Requests of a start that cannot be made before the one before them was
// answered, however clever the client: the manifest of a tag; then, by its
// digest, what is kept beside the image; then what that names.
const (
	tripsEager = 2 // manifest; config and layers
	tripsLazy  = 3 // manifest; referrers; index and the bytes that the start reads
)

// Floor is what a start is measured against, and its arithmetic: round trips x
// latency + needed bytes / bandwidth + a warm start. Nothing overlaps in it, so a
// start that prepares its container while bytes come may beat it.
type Floor struct {
	RoundTrips  int     `json:"round_trips"`
	LatencyMs   float64 `json:"latency_ms"`
	NeededBytes int64   `json:"needed_bytes"`
	Bandwidth   int64   `json:"bandwidth_bytes_per_s"` // 0: no limit
	WarmMs      float64 `json:"warm_ms"`
}

// Ms is the floor in milliseconds.
func (f Floor) Ms() float64 {
	return float64(f.RoundTrips)*f.LatencyMs + f.transferMs() + f.WarmMs
}

func (f Floor) transferMs() float64 {
	if f.Bandwidth == 0 {
		return 0
	}
	return float64(f.NeededBytes) / float64(f.Bandwidth) * 1000
}

// String shows the arithmetic.
func (f Floor) String() string {
	rate := "unlimited"
	if f.Bandwidth > 0 {
		rate = units.HumanSize(float64(f.Bandwidth)) + "/s"
	}
	return fmt.Sprintf("%d round trips x %.0f ms + %s / %s + warm %.0f ms = %.0f + %.0f + %.0f = %.0f ms",
		f.RoundTrips, f.LatencyMs, units.HumanSize(float64(f.NeededBytes)), rate, f.WarmMs,
		float64(f.RoundTrips)*f.LatencyMs, f.transferMs(), f.WarmMs, f.Ms())
}

// Line is the way to the registry, as far as the floor is concerned.
type Line struct {
	Latency   time.Duration // of a request's first byte
	Bandwidth int64         // bytes a second in all; 0: no limit
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
