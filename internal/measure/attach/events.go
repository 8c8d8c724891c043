package attach

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	eventtypes "github.com/containerd/containerd/api/events"
	eventsapi "github.com/containerd/containerd/api/services/events/v1"
	"github.com/containerd/containerd/api/types"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/thaw-project/thaw/internal/sources/containerd"
)

const (
	// topicHello is of our own event, by which we hear that events are heard.
	topicHello = "/thaw/attach"
	helloEvery = 20 * time.Millisecond
	helloFor   = 10 * time.Second
	// anyNamespace is where it is told, for events have to be in one.
	anyNamespace = "default"
)

// subscribe asks for events, and returns once they come: containerd does not say when it
// has begun to listen to itself.
func (w *Watcher) subscribe(ctx, streaming context.Context) (err error) {
	filter := topics
	if w.opts.Namespace != "" {
		filter += fmt.Sprintf(",namespace==%q", w.opts.Namespace)
	}
	client := eventsapi.NewEventsClient(w.conn)
	if w.stream, err = client.Subscribe(streaming, &eventsapi.SubscribeRequest{Filters: []string{filter}}); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, helloFor)
	defer cancel()
	id := fmt.Sprintf("thaw-%x", rand.Uint64())
	hello, err := anypb.New(&eventtypes.ContainerUpdate{ID: id})
	if err != nil {
		return err
	}
	namespace := anyNamespace
	if w.opts.Namespace != "" {
		namespace = w.opts.Namespace
	}
	failed := make(chan error, 1)
	go func() {
		tick := time.NewTicker(helloEvery)
		defer tick.Stop()
		for {
			outgoing := metadata.AppendToOutgoingContext(ctx, "containerd-namespace", namespace)
			if _, err := client.Publish(outgoing, &eventsapi.PublishRequest{Topic: topicHello, Event: hello}); err != nil {
				if ctx.Err() == nil {
					failed <- err
				}
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}()
	heard := make(chan error, 1)
	go func() {
		for {
			e, err := w.stream.Recv()
			if err != nil {
				heard <- err
				return
			}
			var m eventtypes.ContainerUpdate
			if e.GetTopic() == topicHello && e.GetEvent().UnmarshalTo(&m) == nil && m.ID == id {
				heard <- nil
				return
			}
		}
	}()
	select {
	case err := <-heard:
		return err
	case err := <-failed:
		return err
	case <-ctx.Done():
		return fmt.Errorf("it does not hear its own: %w", ctx.Err())
	}
}

// next returns the next event that is of use.
func (w *Watcher) next() (containerd.Event, error) {
	for {
		e, err := w.stream.Recv()
		if err != nil {
			return containerd.Event{}, err
		}
		if out, ok := decode(e); ok {
			return out, nil
		}
	}
}

// decode turns an event of the protocol; false of those that are of no use.
func decode(e *types.Envelope) (out containerd.Event, ok bool) {
	out = containerd.Event{At: e.GetTimestamp().AsTime(), Namespace: e.GetNamespace(), Topic: e.GetTopic()}
	m, err := e.GetEvent().UnmarshalNew()
	if err != nil {
		return out, false
	}
	b := &out.Body
	switch m := m.(type) {
	case *eventtypes.ContentCreate:
		b.Digest, b.Size = m.Digest, m.Size
	case *eventtypes.ImageCreate:
		b.Name = m.Name
	case *eventtypes.ImageUpdate:
		b.Name = m.Name
	case *eventtypes.SnapshotPrepare:
		b.Key, b.Parent, b.Snapshotter = m.Key, m.Parent, m.Snapshotter
	case *eventtypes.SnapshotCommit:
		b.Key, b.Name, b.Snapshotter = m.Key, m.Name, m.Snapshotter
	case *eventtypes.ContainerCreate:
		b.ID, b.Image = m.ID, m.Image
	case *eventtypes.TaskCreate:
		b.ContainerID, b.Pid, b.Bundle = m.ContainerID, m.Pid, m.Bundle
	case *eventtypes.TaskStart:
		b.ContainerID, b.Pid = m.ContainerID, m.Pid
	case *eventtypes.TaskExit:
		b.ContainerID, b.ID, b.Pid, b.ExitStatus = m.ContainerID, m.ID, m.Pid, m.ExitStatus
	default:
		return out, false
	}
	return out, true
}
