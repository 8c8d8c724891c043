// Package profile is the model of measured cold starts: what happened when, which
// phase of a start that ends, and what each phase waited for and read.
//
// A [Record] is one measurement: one or more [Subject]s (an image, started in one
// way), each with its [Run]s. A run is [Event]s, as somebody saw them, and the
// [Phase]s that follow from them ([Derive]). A phase says where it is known from and
// how well; one that nothing is known of has no times: unknown is never 0. Where runs
// come from (package measure, an orchestrator's documents, a daemon's own starts)
// makes no difference to those who show or compare them.
//
// Records are JSON, docs/formats/profile.md. Times are milliseconds since the run's
// begin, with fractions, by the kernel's monotonic clock where that was to be had;
// bytes are bytes.
//
// The package measures nothing and does no I/O.
package profile
