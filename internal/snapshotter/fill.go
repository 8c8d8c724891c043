package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// fillChunk is how much is written to containerd at once: less than a message may have.
const fillChunk = 1 << 20

// Fill gives containerd a blob that it lacks, read from what open returns: layers
// that were never downloaded are wanted by an export or a push. containerd checks the
// digest, and keeps it as long as it has a manifest that names it.
func (c *Content) Fill(ctx context.Context, namespace string, desc v1.Descriptor, open func(context.Context) (io.ReadCloser, error)) error {
	ctx, cancel := context.WithCancel(namespaces.WithNamespace(ctx, namespace))
	defer cancel() // ends the call
	_, err := c.api.Info(ctx, &contentapi.InfoRequest{Digest: desc.Digest.String()})
	if err == nil {
		return nil
	}
	if status.Code(err) != codes.NotFound {
		return fmt.Errorf("look for %s in containerd: %w", desc.Digest, err)
	}
	stream, err := c.api.Write(ctx)
	if err != nil {
		return fmt.Errorf("write %s to containerd: %w", desc.Digest, err)
	}
	send := func(r *contentapi.WriteContentRequest) (offset int64, err error) {
		r.Ref, r.Total, r.Expected = "thaw-"+desc.Digest.String(), desc.Size, desc.Digest.String()
		if err := stream.Send(r); err != nil && !errors.Is(err, io.EOF) { // Recv has the reason then
			return 0, err
		}
		answer, err := stream.Recv()
		if err != nil {
			return 0, err
		}
		return answer.Offset, nil
	}
	err = copyTo(ctx, desc, open, send)
	if status.Code(err) == codes.AlreadyExists {
		return nil // another was quicker
	}
	if err != nil {
		return fmt.Errorf("write %s to containerd: %w", desc.Digest, err)
	}
	return nil
}

// copyTo writes a blob from its begin: what an earlier try has left is written over.
func copyTo(ctx context.Context, desc v1.Descriptor, open func(context.Context) (io.ReadCloser, error), send func(*contentapi.WriteContentRequest) (int64, error)) error {
	if _, err := send(&contentapi.WriteContentRequest{Action: contentapi.WriteAction_STAT}); err != nil {
		return err
	}
	body, err := open(ctx)
	if err != nil {
		return err
	}
	defer body.Close()
	b := make([]byte, fillChunk)
	for off := int64(0); off < desc.Size; {
		n, err := io.ReadFull(body, b[:min(fillChunk, desc.Size-off)])
		if err != nil {
			return err
		}
		at, err := send(&contentapi.WriteContentRequest{Action: contentapi.WriteAction_WRITE, Offset: off, Data: b[:n]})
		if err != nil {
			return err
		}
		if off += int64(n); at != off {
			return fmt.Errorf("it has %d bytes of %d", at, off)
		}
	}
	_, err = send(&contentapi.WriteContentRequest{Action: contentapi.WriteAction_COMMIT, Offset: desc.Size})
	return err
}
