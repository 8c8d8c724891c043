// Package emit puts measured starts into the words of others: CloudWatch's embedded
// metric format and PutMetricData, Prometheus, OpenTelemetry; and makes the
// dashboards, alarms and rules that ask for those numbers.
//
// A [profile.Record] becomes one [Start] a run ([Starts]), which has what is known of
// it and nothing else: a phase that nothing is known of is absent, never 0. Names of
// metrics, dimensions and labels are in names.go and nowhere else: what is emitted
// and what asks for it cannot differ. docs/emit.md lists them.
//
// The package sends nothing: thaw-otel and thaw-cloud do, with their services' own
// clients.
package emit
