// Package api is what thaw's commands say to the daemon: JSON over HTTP on a
// unix socket, and a client for it.
//
// Long calls answer with a stream of events, one JSON object a line: progress,
// then either the result or an error. The socket is mode 0600 and the daemon
// checks the peer's user, so the protocol carries no credentials of its own.
//
// The package has no logic of the daemon.
package api

import (
	"encoding/json"
	"fmt"
	"time"

	digest "github.com/opencontainers/go-digest"
)

// Mount paths.
const (
	ModeAuto     = "auto"
	ModeFanotify = "fanotify"
	ModeFUSE     = "fuse"
	ModeEager    = "eager"
)

// What to do about an image's index.
const (
	IndexAuto    = "auto"    // use one where there is one, else make one from the passing bytes
	IndexRequire = "require" // refuse an image without one
	IndexPush    = "push"    // as auto, and push what was made
	IndexIgnore  = "ignore"  // behave as if there were none anywhere
)

// When to ask the registry which image a reference names.
const (
	PullMissing = "missing" // when this node does not know it
	PullAlways  = "always"
	PullNever   = "never"
)

// States of a mount's start-up bundle.
const (
	BundleStreaming = "streaming"
	BundleApplied   = "applied"
)

// ImageRequest names an image and how it is to be had.
type ImageRequest struct {
	Image        string `json:"image"`
	Index        string `json:"index,omitempty"`        // IndexAuto
	Pull         string `json:"pull,omitempty"`         // PullMissing
	DockerConfig string `json:"dockerConfig,omitempty"` // directory with the config.json whose credentials are used
	PlainHTTP    bool   `json:"plainHTTP,omitempty"`    // allow http to a host that is not this machine
}

// MountRequest asks for a mount.
type MountRequest struct {
	ImageRequest
	Mode string `json:"mode,omitempty"` // ModeAuto
	// Dir is where to mount read-only. Empty: a writable root for a container,
	// which lives as long as the process that asks.
	Dir string `json:"dir,omitempty"`
	// Background is the rate of background hydration in bytes/s; 0: the
	// daemon's, negative: none.
	Background int64 `json:"background,omitempty"`
	// Runtime and Container name the container to stop when the process that
	// asked is gone.
	Runtime   string `json:"runtime,omitempty"`
	Container string `json:"container,omitempty"`
	// Record asks for a recording of what the container reads until it is ready
	// and shortly after; nil: none.
	Record *Record `json:"record,omitempty"`
	// Traceparent is the W3C trace context that the start belongs to; may be empty.
	Traceparent string `json:"traceparent,omitempty"`
}

// Record says what is recorded.
type Record struct {
	Entrypoint []string      `json:"entrypoint"` // nil: the image's
	Args       []string      `json:"args"`       // nil: the image's
	Age        time.Duration `json:"ageNs"`      // of the run, when it asks
	Ready      bool          `json:"ready"`      // it will be told when the container is ready
}

// Times are when phases of a run were over, since its begin; 0: not yet.
type Times struct {
	Begun      time.Time     `json:"begun,omitzero"`
	ReadyComes bool          `json:"readyComes,omitempty"` // it will be told when the container is ready
	Created    time.Duration `json:"createdNs,omitempty"`
	Started    time.Duration `json:"startedNs,omitempty"`
	Ready      time.Duration `json:"readyNs,omitempty"`
}

// Phase is a part of a start with its limits.
type Phase struct {
	Name   string    `json:"name"`
	Start  time.Time `json:"start"`
	End    time.Time `json:"end"`
	Detail string    `json:"detail,omitempty"`
}

// Mount describes a mount.
type Mount struct {
	ID         string          `json:"id"`
	Image      string          `json:"image"`
	Manifest   digest.Digest   `json:"manifest"`
	Config     json.RawMessage `json:"config,omitempty"` // the image's config, as in the registry
	Dir        string          `json:"dir"`              // root of the image, or of the container
	Bundle     string          `json:"bundle,omitempty"` // directory for the container's bundle
	Mode       string          `json:"mode"`
	ModeReason string          `json:"modeReason,omitempty"` // why not a better one
	Index      string          `json:"index"`                // where it came from: local, registry, built
	Pid        int             `json:"pid,omitempty"`        // whose end is the mount's end
	Created    time.Time       `json:"created"`
	Phases     []Phase         `json:"phases,omitempty"`
	Recording  bool            `json:"recording,omitempty"` // its reads are being recorded
	Fallbacks  []Fallback      `json:"fallbacks,omitempty"` // why it is not better
	Ended      time.Time       `json:"ended,omitzero"`      // it is there no more
	Stats      Stats           `json:"stats"`
}

// Stats says what of a mount's image is here and what that cost.
type Stats struct {
	ImageBytes    int64         `json:"imageBytes"`       // compressed layers
	UnpackedBytes int64         `json:"unpackedBytes"`    // of all layers
	HereBytes     int64         `json:"hereBytes"`        // of UnpackedBytes
	FetchedBytes  int64         `json:"fetchedBytes"`     // compressed layer bytes fetched since the mount was made
	Bundle        string        `json:"bundle,omitempty"` // state of the start-up bundle: BundleStreaming, BundleApplied, or why it is ignored
	BundleBytes   int64         `json:"bundleBytes"`      // of it from the registry; mounts by the same index share it
	Requests      int64         `json:"requests"`         // to the registry, for this mount
	NetworkBytes  int64         `json:"networkBytes"`     // from the registry for this mount, index and manifests included
	Waits         int           `json:"waits"`            // reads that waited
	WaitP50       time.Duration `json:"waitP50Ns"`
	WaitP99       time.Duration `json:"waitP99Ns"`
	WaitTotal     time.Duration `json:"waitTotalNs"`
	Waiting       int64         `json:"waiting"`  // reads that wait now, of all mounts that share the layers
	Complete      bool          `json:"complete"` // every layer is here and proven
	CompletedAt   time.Time     `json:"completedAt,omitzero"`
	Error         string        `json:"error,omitempty"`  // why hydration cannot go on
	Outage        *Outage       `json:"outage,omitempty"` // the lasting or the last one of the registry
}

// Outage is a time in which a registry did not give what was asked for.
type Outage struct {
	Since time.Time `json:"since"`
	Until time.Time `json:"until,omitzero"` // not set: it lasts
	Error string    `json:"error"`          // the last answer
}

// Layer is a layer on this node.
type Layer struct {
	Blob        digest.Digest `json:"blob"`
	DiffID      digest.Digest `json:"diffID"`
	SizeBytes   int64         `json:"sizeBytes"` // uncompressed
	HereBytes   int64         `json:"hereBytes"`
	DiskBytes   int64         `json:"diskBytes"` // allocated
	Complete    bool          `json:"complete"`  // all here, and proven to be the diffID
	InUse       bool          `json:"inUse"`
	Pins        []string      `json:"pins"`
	Quarantined string        `json:"quarantined,omitempty"` // why
	LastUse     time.Time     `json:"lastUse"`
}

// Status describes a running daemon.
type Status struct {
	Pid          int       `json:"pid"`
	Version      string    `json:"version"`
	Root         string    `json:"root"`
	Started      time.Time `json:"started"`
	Mode         string    `json:"mode"`
	ModeReason   string    `json:"modeReason,omitempty"`
	NotServed    []string  `json:"notServed,omitempty"` // sockets for containerd and the kubelet that could not be made, and why
	MemoryBytes  int64     `json:"memoryBytes"`         // resident
	Keeper       *Keeper   `json:"keeper,omitempty"`
	Mounts       []Mount   `json:"mounts"`
	Cache        *Cache    `json:"cache"`
	Layers       int       `json:"layers"` // in use
	Goroutines   int       `json:"goroutines"`
	Waiting      int64     `json:"waiting"`      // reads that wait for bytes
	NetworkBytes int64     `json:"networkBytes"` // from registries, since the daemon was started
	Requests     int64     `json:"requests"`     // to them
}

// Cache says what the layers take on disk and what they may.
type Cache struct {
	DiskBytes      int64 `json:"diskBytes"`      // allocated by all layers
	EvictableBytes int64 `json:"evictableBytes"` // of those that nothing uses and nothing pins
	MaxBytes       int64 `json:"maxBytes"`       // cache.max-size; 0: no limit
	FreeBytes      int64 `json:"freeBytes"`      // on the disk
	MinFreeBytes   int64 `json:"minFreeBytes"`   // what only waiting readers may use
	EvictedLayers  int   `json:"evictedLayers"`  // since the daemon was started
	EvictedBytes   int64 `json:"evictedBytes"`
}

// Keeper describes the process that holds a daemon's descriptors.
type Keeper struct {
	Pid         int    `json:"pid"`
	Version     string `json:"version"`
	MemoryBytes int64  `json:"memoryBytes"` // resident
}

// UpgradeRequest asks the daemon to become another program.
type UpgradeRequest struct {
	Executable string `json:"executable"` // absolute path
}

// Progress is what a long call has done.
type Progress struct {
	Step  string `json:"step"` // what is being done
	Done  int64  `json:"done"` // bytes
	Total int64  `json:"total"`
}

// Event is a line of a long call's answer. One field is set.
type Event struct {
	Progress *Progress       `json:"progress,omitempty"`
	Warning  string          `json:"warning,omitempty"`
	Result   json.RawMessage `json:"result,omitempty"`
	Error    *Error          `json:"error,omitempty"`
}

// Error is a failure as a user is to see it.
type Error struct {
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
	Code    string `json:"code,omitempty"` // for callers to branch on
}

func (e *Error) Error() string { return e.Message }

// Codes of errors.
const (
	CodeNotFound    = "not-found"
	CodeNoIndex     = "no-index"
	CodeInUse       = "in-use"
	CodeUnsupported = "unsupported"
	CodeInvalid     = "invalid"
	CodeLimit       = "limit"
	CodeLeaving     = "leaving" // try again, with the next daemon
)

// Pulled is the result of a pull.
type Pulled struct {
	Image      string        `json:"image"`
	Manifest   digest.Digest `json:"manifest"`
	Layers     int           `json:"layers"`
	ImageBytes int64         `json:"imageBytes"`
	Index      string        `json:"index"`
	Fetched    int64         `json:"fetchedBytes"`
}

// TraceInfo is what starts of an image with one command have read, in numbers.
type TraceInfo struct {
	ID       string        `json:"id"`
	Image    string        `json:"image"` // as the newest run named it
	Manifest digest.Digest `json:"manifest"`
	Command  []string      `json:"command"`
	Runs     int           `json:"runs"`
	Accesses int           `json:"accesses"` // of the merged trace
	Bytes    int64         `json:"bytes"`
	Ready    time.Duration `json:"readyNs,omitempty"` // median; 0: never told
	Created  time.Time     `json:"created"`           // end of the newest run
}

// Fallback is an image that was not started the best way.
type Fallback struct {
	First    time.Time     `json:"first"`
	Last     time.Time     `json:"last"`
	Count    int           `json:"count"`
	Image    string        `json:"image,omitempty"`
	Manifest digest.Digest `json:"manifest,omitempty"`
	ChainID  digest.Digest `json:"chainID,omitempty"` // of the layers that containerd asked for last
	Action   string        `json:"action"`            // what was done instead: eager (brought whole by thaw), plain (left to containerd)
	Reason   string        `json:"reason"`            // a code: see package fallback
	Detail   string        `json:"detail,omitempty"`
	Hint     string        `json:"hint"`
}

// Why says how an image was started of late, or a container, and why so.
type Why struct {
	Name      string     `json:"name"`
	Mounts    []Mount    `json:"mounts"`    // the newest first, those that are there before those that ended
	Fallbacks []Fallback `json:"fallbacks"` // of the image, the last first
}

// Trace is that with the reads, in order.
type Trace struct {
	TraceInfo
	Reads []TraceRead `json:"reads"`
}

// TraceRead is a part of a file that was read, or where it is not known which
// file that is, of a layer.
type TraceRead struct {
	Path   string        `json:"path,omitempty"` // from the image's root, with a leading slash
	Offset int64         `json:"offset"`         // in the file
	Bytes  int64         `json:"bytes"`
	Layer  digest.Digest `json:"layer"`     // of the blob
	Tar    int64         `json:"offsetTar"` // in the uncompressed layer
	At     time.Duration `json:"atNs"`      // since the begin of the run
	Phase  string        `json:"phase"`     // that had begun
}

// MaxWaits is how many of a layer's waits a daemon remembers, the last ones.
const MaxWaits = 4096

// ReadWait is a time in which a read of a layer waited for bytes that were not here.
type ReadWait struct {
	Start time.Time     `json:"start"`
	End   time.Time     `json:"end"`
	Layer digest.Digest `json:"layer"`     // of the blob
	Tar   int64         `json:"offsetTar"` // in the uncompressed layer
	Bytes int64         `json:"bytes"`     // that were asked for
	// Paths are the files that lie there, from the image's root, with a leading slash. The
	// kernel asks for pages, in which small files share, so it was one of them.
	Paths []string `json:"paths,omitempty"`
}

// Errorf makes an error with a code.
func Errorf(code, hint, format string, args ...any) *Error {
	return &Error{Message: fmt.Sprintf(format, args...), Hint: hint, Code: code}
}
