package cloud

import "encoding/json"

// CallMetrics sends metrics to CloudWatch.
const CallMetrics = "metrics" // Metrics

// Metrics are the arguments of CallMetrics, which has no answers.
type Metrics struct {
	Region  string          `json:"region,omitempty"` // default the environment's
	Profile string          `json:"profile,omitempty"`
	Calls   json.RawMessage `json:"calls"` // of PutMetricData, as package emit makes them
}
