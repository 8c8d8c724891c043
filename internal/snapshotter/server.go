package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Server answers containerd.
type Server struct {
	grpc *grpc.Server
	l    net.Listener
}

var errLeaving = status.Error(codes.Unavailable, "the daemon is leaving")

// stopPatience is how long calls that are under way have when the server stops.
const stopPatience = 2 * time.Second

// Listen makes the socket at path, in place of one that nobody listens on any
// more. enter counts a call in and returns the context for it, and what counts it
// out; false: none is taken any more.
func Listen(s *Snapshotter, path string, enter func(context.Context) (context.Context, func(), bool)) (*Server, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make directory of %s: %w", path, err)
	}
	os.Remove(path) // a dead daemon's: the state directory is locked
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen for containerd: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("protect %s: %w", path, err), l.Close())
	}
	count := func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
		ctx, exit, ok := enter(ctx)
		if !ok {
			return nil, errLeaving
		}
		defer exit()
		return handle(ctx, req)
	}
	stream := func(v any, to grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
		_, exit, ok := enter(to.Context())
		if !ok {
			return errLeaving
		}
		defer exit()
		return handle(v, to)
	}
	srv := grpc.NewServer(grpc.UnaryInterceptor(count), grpc.StreamInterceptor(stream), grpc.MaxRecvMsgSize(16<<20), grpc.MaxSendMsgSize(16<<20))
	snapshotsapi.RegisterSnapshotsServer(srv, service{s: s})
	return &Server{grpc: srv, l: l}, nil
}

// Serve answers until Stop is called.
func (s *Server) Serve() error {
	if err := s.grpc.Serve(s.l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve containerd: %w", err)
	}
	return nil
}

// Stop lets calls that are under way end, but does not wait for them for long.
func (s *Server) Stop() {
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.grpc.GracefulStop()
	}()
	timer := time.NewTimer(stopPatience)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
		s.grpc.Stop()
		<-done
	}
}
