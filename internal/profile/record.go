package profile

import "time"

// Version is the version of the JSON of [Record].
const Version = 1

// Sources of records.
const (
	SourceMeasure    = "measure"    // thaw measure started the containers
	SourceAttach     = "attach"     // it watched containers that somebody else started
	SourceDaemon     = "daemon"     // starts of thaw run, as the daemon saw them
	SourceContainerd = "containerd" // events of containerd
	SourceECS        = "ecs"        // task metadata, DescribeTasks, EventBridge
	SourceKubernetes = "kubernetes" // status and events of pods
)

// Record is one measurement. It is documented in docs/formats/profile.md.
type Record struct {
	Version  int               `json:"version"`
	ID       string            `json:"id"` // sorts by time
	Name     string            `json:"name,omitempty"`
	Source   string            `json:"source"`
	Begun    time.Time         `json:"begun"`
	Ended    time.Time         `json:"ended,omitzero"`
	Labels   map[string]string `json:"labels,omitempty"` // service, task_definition, release, ...
	Tool     string            `json:"tool,omitempty"`   // version of thaw
	Machine  Machine           `json:"machine,omitzero"`
	Network  Network           `json:"network,omitzero"`
	Signals  []Signal          `json:"signals,omitempty"`
	Subjects []Subject         `json:"subjects"`
	Warnings []string          `json:"warnings,omitempty"`
}

// Machine is where it was measured.
type Machine struct {
	Kernel      string `json:"kernel,omitempty"`
	CPUs        int    `json:"cpus,omitempty"`
	MemoryBytes int64  `json:"memory_bytes,omitempty"`
}

// Network is the way to the registry, where it is known.
type Network struct {
	Name      string  `json:"name,omitempty"` // of a lab's profile, or "real"
	LatencyMs float64 `json:"latency_ms,omitempty"`
	Bandwidth int64   `json:"bandwidth_bytes_per_s,omitempty"`
}

// Signal is a way of seeing what a start does, and why there is none of it.
type Signal struct {
	Name   string `json:"name"` // SignalReads, ...
	Used   bool   `json:"used"`
	Reason string `json:"reason,omitempty"` // why not, or how it is less than it could be
}

// Signals, the sources of events and phases.
const (
	SignalReads      = "reads"      // thaw's own reads and waits, seen by its daemon
	SignalTimeline   = "timeline"   // what thaw run and its daemon say of a start
	SignalOpens      = "opens"      // fanotify on the container's overlay
	SignalTracefs    = "tracefs"    // execs and sockets, by a private instance of tracefs
	SignalProc       = "proc"       // /proc, looked at again and again
	SignalProbe      = "probe"      // requests that we made
	SignalCachestat  = "cachestat"  // what of files the page cache has
	SignalContainerd = "containerd" // its events
	SignalECS        = "ecs"
	SignalKubernetes = "kubernetes"
	SignalComputed   = "computed" // from a configuration: health checks
)

// Levels of coldness, by what a start finds on its node.
const (
	ColdL0 = "L0" // nothing of the image
	ColdL1 = "L1" // all of it on disk, nothing of it in the page cache
	ColdL2 = "L2" // all of it in the page cache
	ColdL3 = "L3" // a frozen process
)

// Subject is an image, started in one way.
type Subject struct {
	Name     string   `json:"name"` // unlike any other in the record
	Image    string   `json:"image"`
	Manifest string   `json:"manifest,omitempty"`
	Mode     string   `json:"mode,omitempty"` // lazy, lazy+bundle, eager, no-index, containerd/NAME; empty: not known
	Cold     string   `json:"cold,omitempty"` // level that was asked for; empty: not known
	Command  []string `json:"command,omitempty"`
	Probe    string   `json:"probe,omitempty"` // what answers when it is ready
	// Labels are those that other subjects of the record do not have: service, ...
	Labels        map[string]string `json:"labels,omitempty"`
	ImageBytes    int64             `json:"image_bytes,omitempty"`
	UnpackedBytes int64             `json:"unpacked_bytes,omitempty"`
	Layers        []Layer           `json:"layers,omitempty"`
	Files         []File            `json:"files,omitempty"` // of the image, by path
	Runs          []Run             `json:"runs"`
}

// Layer is a layer of a subject's image, the lowest first.
type Layer struct {
	Digest        string `json:"digest"`
	Bytes         int64  `json:"bytes"`                 // compressed
	UnpackedBytes int64  `json:"unpacked_bytes"`        // its tar
	Instruction   string `json:"instruction,omitempty"` // what made it, by the image's history
}

// File is a regular file of an image.
type File struct {
	Path            string  `json:"path"` // from the image's root, with a leading slash
	Bytes           int64   `json:"bytes"`
	CompressedBytes int64   `json:"compressed_bytes,omitempty"` // its share of the layer; 0: not known
	Layer           int     `json:"layer"`                      // of Subject.Layers
	Package         string  `json:"package,omitempty"`          // that it belongs to, such as "python:pandas"
	First           string  `json:"first,omitempty"`            // phase of its first read in most runs; empty: never read
	ReadBytes       int64   `json:"read_bytes,omitempty"`       // median of those runs
	Runs            float64 `json:"runs,omitempty"`             // share of the runs that read it
}

// Coldness is what was on the node before a run, and whether that was looked at.
type Coldness struct {
	Level       string `json:"level"`
	Proven      bool   `json:"proven"`
	Files       int    `json:"files"`
	StoredBytes int64  `json:"stored_bytes"`
	CachedBytes int64  `json:"cached_bytes"`
	Reason      string `json:"reason,omitempty"` // why it is not proven
}

// Run is one start.
type Run struct {
	Begun     time.Time `json:"begun"`
	Container string    `json:"container,omitempty"` // ID of container, task or pod
	Error     string    `json:"error,omitempty"`     // it failed: events and phases are those until then
	Coldness  *Coldness `json:"coldness,omitempty"`
	Events    []Event   `json:"events"`
	Phases    []Phase   `json:"phases"`
	TotalMs   *float64  `json:"total_ms"` // requested to ready, or healthy where that is known; nil: neither is
	Processes []Process `json:"processes,omitempty"`
	Reads     []Read    `json:"reads,omitempty"`    // first reads of files, in order
	Packages  []Package `json:"packages,omitempty"` // the costliest first
	Waits     []Wait    `json:"waits,omitempty"`    // for bytes that were not here
	Requests  []Request `json:"requests,omitempty"`
	Health    *Health   `json:"health,omitempty"`
	Cost      *Cost     `json:"cost,omitempty"`
	Warnings  []string  `json:"warnings,omitempty"`
}

// Process is a program that ran in the container, from exec to exit.
type Process struct {
	Pid     int      `json:"pid"`
	Parent  int      `json:"parent,omitempty"`
	Command string   `json:"command"`
	StartMs float64  `json:"start_ms"`
	EndMs   *float64 `json:"end_ms"` // nil: it runs on
}

// Read is the first use of a file in a run.
type Read struct {
	Path   string  `json:"path"`
	AtMs   float64 `json:"at_ms"`
	Phase  string  `json:"phase"`             // or ReadLater; empty: not known
	Bytes  int64   `json:"bytes"`             // of it that were in the page cache, or read, by the end of the observation
	TookMs float64 `json:"took_ms,omitempty"` // until the next file's first use, as far as that is the phase's
}

// Package is a library that a program loads: what its files took together.
type Package struct {
	Name  string  `json:"name"` // such as "python:pandas", "node:express", "lib:libssl.so.3"
	Phase string  `json:"phase"`
	Ms    float64 `json:"ms"`
	Bytes int64   `json:"bytes"`
	Files int     `json:"files"`
}

// Wait is a time in which a read of the container waited for bytes.
type Wait struct {
	StartMs float64 `json:"start_ms"`
	EndMs   float64 `json:"end_ms"`
	Path    string  `json:"path,omitempty"`
	Layer   string  `json:"layer,omitempty"`
	Bytes   int64   `json:"bytes,omitempty"`
}

// Request is one request after the container was ready.
type Request struct {
	Route   string  `json:"route"` // such as "GET /api/x"
	N       int     `json:"n"`     // from 1, of its route
	StartMs float64 `json:"start_ms"`
	EndMs   float64 `json:"end_ms"`
	Status  int     `json:"status"`
	Error   string  `json:"error,omitempty"`
	Files   int     `json:"files,omitempty"` // opened for the first time meanwhile
	Bytes   int64   `json:"bytes,omitempty"` // of those
	WaitMs  float64 `json:"wait_ms,omitempty"`
}

// Health is what a health check makes of a run's readiness.
type Health struct {
	Kind       string    `json:"kind"` // of the check, as package health has it
	Source     string    `json:"source"`
	TicksMs    []float64 `json:"ticks_ms,omitempty"` // begins of probes, until healthy or given up
	HealthyMs  *float64  `json:"healthy_ms"`         // nil: never
	DeadlineMs *float64  `json:"deadline_ms"`        // when it would have been given up; nil: never
}

// Cost is what a run took from elsewhere.
type Cost struct {
	NetworkBytes  int64 `json:"network_bytes"`            // until ready, index and manifests included
	Requests      int64 `json:"requests"`                 // until ready, to registries
	RegistryBytes int64 `json:"registry_bytes,omitempty"` // of the layers' bytes that were read until ready: from the registry,
	CacheBytes    int64 `json:"cache_bytes,omitempty"`    // a shared cache,
	HereBytes     int64 `json:"here_bytes,omitempty"`     // or this node
	CPUMs         int64 `json:"cpu_ms,omitempty"`         // of the container until ready
	ThrottledMs   int64 `json:"throttled_ms,omitempty"`   // by its CPU limit
	NeededBytes   int64 `json:"needed_bytes,omitempty"`   // uncompressed bytes of files that were read until ready
	CompleteBytes int64 `json:"complete_bytes,omitempty"` // NetworkBytes once all of the image was here
}
