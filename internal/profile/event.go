package profile

// Names of events, in the order of a start. Any may be missing.
const (
	EventRequested    = "requested"  // somebody wants the container; of most runs at 0
	EventScheduled    = "scheduled"  // it has a node
	EventConnected    = "connected"  // it has a network
	EventPullStart    = "pull_start" // the image is being brought, or made ready to be read
	EventPullEnd      = "pull_end"
	EventCreated      = "created"       // the runtime has made the container
	EventStarted      = "started"       // exec of its program
	EventDepStart     = "dep_start"     // first open of what it loads
	EventDepEnd       = "dep_end"       // the burst of opens is over
	EventListen       = "listen"        // its port takes connections
	EventReached      = "reached"       // a probe had a connection: by then it listened
	EventAccept       = "accept"        // it takes the first of them: later than listen where a parent listens for workers
	EventReady        = "ready"         // first good answer
	EventHealthy      = "healthy"       // the orchestrator knows
	EventLBHealthy    = "lb_healthy"    // the load balancer knows
	EventFirstRequest = "first_request" // the first request was answered, after ready
	EventSteady       = "steady"        // requests take what they will take
	EventHydrated     = "hydrated"      // all of the image is here
)

// Events lists them in the order of a start.
var Events = []string{EventRequested, EventScheduled, EventConnected, EventPullStart, EventPullEnd, EventCreated, EventStarted, EventDepStart, EventDepEnd,
	EventListen, EventReached, EventAccept, EventReady, EventHealthy, EventLBHealthy, EventFirstRequest, EventSteady, EventHydrated}

// Confidence in an event or a phase.
const (
	Measured  = "measured"  // seen when it happened, by a clock of this machine
	Reported  = "reported"  // said by another system, at its precision
	Estimated = "estimated" // follows from what was seen, by a rule that may err
	Computed  = "computed"  // from a configuration, not seen
	Unknown   = "unknown"
)

// Event is something that happened in a run.
type Event struct {
	Name       string  `json:"name"`
	AtMs       float64 `json:"at_ms"` // since the run's begin
	Source     string  `json:"source"`
	Confidence string  `json:"confidence"`
	Detail     string  `json:"detail,omitempty"`
	// PrecisionMs is how far it may be off, where that is more than a few milliseconds.
	PrecisionMs float64 `json:"precision_ms,omitempty"`
	// WaitedMs is, of EventAccept, how long the connection had waited to be taken.
	WaitedMs float64 `json:"waited_ms,omitempty"`
}

// Names of phases, in their order. Those up to PhaseHealthContainer follow one another
// and add up to the time from requested to ready, or, where an orchestrator's word is
// known, healthy; none overlaps another. The rest stand beside them.
const (
	PhaseQueue           = "queue"                 // requested to pull_start
	PhasePull            = "image_pull"            // pull_start to pull_end
	PhaseRuntimeInit     = "runtime_init"          // pull_end to started
	PhaseDependencyLoad  = "dependency_load"       // started to dep_end
	PhaseBootstrap       = "app_bootstrap"         // dep_end to listen
	PhaseHealthContainer = "health_wait_container" // from then to ready, or healthy
	PhaseHealthLB        = "health_wait_lb"        // to lb_healthy
	PhaseFirstRequest    = "first_request_penalty" // first request less the median of later ones
	PhaseHydration       = "hydration"             // pull_end to hydrated
)

// Phases lists them in their order; the first StartPhases add up to a start.
var Phases = []string{PhaseQueue, PhasePull, PhaseRuntimeInit, PhaseDependencyLoad, PhaseBootstrap, PhaseHealthContainer,
	PhaseHealthLB, PhaseFirstRequest, PhaseHydration}

// StartPhases is how many of Phases follow one another from requested to ready.
const StartPhases = 6

// Phase is a part of a run. Without evidence its times are nil and Confidence is
// Unknown, with the reason.
type Phase struct {
	Name       string   `json:"name"`
	StartMs    *float64 `json:"start_ms"` // nil also of a phase that is no interval
	EndMs      *float64 `json:"end_ms"`
	Ms         *float64 `json:"ms"`
	Source     string   `json:"source,omitempty"`
	Confidence string   `json:"confidence"`
	Reason     string   `json:"reason,omitempty"`
	// LazyWaitMs is how long, of Ms, something in the container waited for bytes that
	// were not here: overlapping waits count once. Nil: not known.
	LazyWaitMs *float64 `json:"lazy_wait_ms"`
	Bytes      *int64   `json:"bytes"` // of files that were first read in it
	Files      *int     `json:"files"`
	CPUMs      *float64 `json:"cpu_ms,omitempty"` // of the container
	Routes     []Route  `json:"routes,omitempty"` // of PhaseFirstRequest
}

// Route is the first request's penalty on one route.
type Route struct {
	Route     string  `json:"route"`
	FirstMs   float64 `json:"first_ms"`
	SteadyMs  float64 `json:"steady_ms"`  // median of the fifth and later ones
	PenaltyMs float64 `json:"penalty_ms"` // FirstMs - SteadyMs
	Files     int     `json:"files"`
	Bytes     int64   `json:"bytes"`
	WaitMs    float64 `json:"wait_ms"`
}
