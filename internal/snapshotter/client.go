package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// Held is a snapshot that containerd has of us, as the snapshotter at a socket
// tells.
type Held struct {
	Key       string // containerd's: namespace/number/name; of a layer that is mounted lazily its chainID
	Container bool   // a container's, or another one that is in use; else a layer
	Image     string // what a lazy layer is of; empty for others
}

// List asks the snapshotter that listens at socket for all its snapshots.
func List(ctx context.Context, socket string) ([]Held, error) {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	defer conn.Close()
	stream, err := snapshotsapi.NewSnapshotsClient(conn).List(ctx, &snapshotsapi.ListSnapshotsRequest{Snapshotter: "thaw"})
	if err != nil {
		return nil, fmt.Errorf("list snapshots of %s: %w", socket, err)
	}
	var held []Held
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return held, nil
		}
		if err != nil {
			return nil, fmt.Errorf("list snapshots of %s: %w", socket, err)
		}
		for _, info := range r.Info {
			held = append(held, Held{Key: info.Name, Container: info.Kind != snapshotsapi.Kind_COMMITTED, Image: info.Labels[ownImage]})
		}
	}
}
