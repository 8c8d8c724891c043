// Package watch takes a registry's push notifications and has an index made of
// each image that is worth one.
//
// A [Watcher] decodes what registries send ([Decode]: distribution's webhook,
// ECR's EventBridge event, Harbor's webhook), and puts every pushed manifest into
// a bounded queue that is kept in a file: what was answered 202 is done, if need
// be by the next process. An image that is in the queue is not taken twice. When
// the queue is full the sender is told to come again (503 with Retry-After), for
// each of them does; nothing is dropped. Workers hand the images to an [IndexFunc]
// and try again, later and later, what may succeed later. Of everything that was
// not indexed there is a [Reason], in the answer, the log, the records and the
// metrics.
//
// It does not know how an index is made or what makes an image worth one, polls
// no registry, reads no SQS queue, and keeps no list of what it did: whether an
// image has an index already the registry knows.
package watch
