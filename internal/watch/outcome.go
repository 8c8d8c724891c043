package watch

import "github.com/opencontainers/go-digest"

// Reason says why an image has not been indexed. The set is small: it is a label
// of metrics.
type Reason string

// Reasons.
const (
	ReasonNotPush    Reason = "not-a-push"      // the registry tells of something else
	ReasonMalformed  Reason = "malformed"       // the event makes no sense
	ReasonNotMatched Reason = "not-matched"     // its name is not among those that are wanted
	ReasonQueued     Reason = "in-queue"        // it is waiting, or under way, already
	ReasonNotImage   Reason = "not-an-image"    // a signature, a chart, a blob, ...
	ReasonOwnIndex   Reason = "own-index"       // it is an index of ours
	ReasonPlatform   Reason = "other-platform"  // of no platform that is wanted
	ReasonTooSmall   Reason = "too-small"       // fetching it whole takes no longer
	ReasonMostRead   Reason = "most-bytes-read" // its start reads most of it anyway
	ReasonIndexed    Reason = "already-indexed"
	ReasonGone       Reason = "gone"        // the registry does not have it (any more)
	ReasonError      Reason = "error"       // see the detail
	ReasonInterrupt  Reason = "interrupted" // the process ended; the next one goes on
)

// Results of an [Outcome].
const (
	ResultQueued  = "queued"  // it will be looked at
	ResultIgnored = "ignored" // it will not be looked at
	ResultIndexed = "indexed"
	ResultSkipped = "skipped" // it was looked at, and is not worth an index
	ResultFailed  = "failed"
)

// Outcome is what became of one image.
type Outcome struct {
	Image    string        `json:"image,omitempty"`
	Platform string        `json:"platform,omitempty"`
	Result   string        `json:"result"`
	Reason   Reason        `json:"reason,omitempty"`
	Detail   string        `json:"detail,omitempty"` // of Reason, for people
	Index    digest.Digest `json:"index,omitempty"`  // of the index' manifest
	// Bytes of the image's layers as served, and of its index.
	ImageBytes int64 `json:"imageBytes,omitempty"`
	IndexBytes int64 `json:"indexBytes,omitempty"`
	// Bundle says that the index has a start-up bundle.
	Bundle   bool    `json:"bundle,omitempty"`
	Attempts int     `json:"attempts,omitempty"`
	Seconds  float64 `json:"seconds,omitempty"` // of work, all attempts
}
