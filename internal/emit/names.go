package emit

import "github.com/thaw-project/thaw/internal/profile"

// CloudWatch's names.
const (
	Namespace = "ECS/ColdStart"

	MetricDuration     = "ColdStartDuration"   // milliseconds, from requested to ready
	MetricCount        = "ColdStartCount"      // 1 a start
	MetricFirstRequest = "FirstRequestPenalty" // milliseconds
	metricPhasePrefix  = "StartupPhase_"       // milliseconds

	DimensionService        = "Service"
	DimensionTaskDefinition = "TaskDefinition"
)

// DimensionSets are those of every metric: what asks for a metric has to name one of
// them whole. A metric with other dimensions is another metric, that has no data.
var DimensionSets = [][]string{{DimensionService}, {DimensionService, DimensionTaskDefinition}}

// MetricPhase is the metric of a phase. That of the first request has a name of its own.
func MetricPhase(phase string) string {
	if phase == profile.PhaseFirstRequest {
		return MetricFirstRequest
	}
	return metricPhasePrefix + phase
}

// Prometheus' names.
const (
	SeriesSeconds  = "coldstart_seconds"       // histogram: from requested to ready
	SeriesPhase    = "coldstart_phase_seconds" // histogram
	SeriesStarts   = "coldstart_starts_total"
	SeriesFailures = "coldstart_failures_total"

	labelService = "service"
	labelPhase   = "phase"
	labelMode    = "mode"
	labelCold    = "cold"
)

const (
	unitMs    = "Milliseconds"
	unitCount = "Count"
)
