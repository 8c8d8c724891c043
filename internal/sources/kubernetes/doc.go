// Package kubernetes reads what a cluster says of pods' starts, and makes records of
// it.
//
// Pods have when they were made, given a node and found ready, and when their
// containers were started; their events when images were pulled. Nearly all of that is
// cut to whole seconds, but how long a pull took is in an event's message by the
// millisecond. [Reader] takes both as kubectl prints them, in any order; each pod
// becomes one run.
//
// The package does no I/O.
package kubernetes
