package snapshotter

import (
	"context"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// service translates between containerd's messages and a snapshotter. containerd's own,
// contrib/snapshotservice, does the same and links a library for tests, which half a
// millisecond of each start of the program would go to.
type service struct {
	snapshotsapi.UnimplementedSnapshotsServer
	s *Snapshotter
}

// listBlock is how many snapshots go into one message.
const listBlock = 100

func options(labels map[string]string) []snapshots.Opt {
	if labels == nil {
		return nil
	}
	return []snapshots.Opt{snapshots.WithLabels(labels)}
}

func (v service) Prepare(ctx context.Context, r *snapshotsapi.PrepareSnapshotRequest) (*snapshotsapi.PrepareSnapshotResponse, error) {
	mounts, err := v.s.Prepare(ctx, r.Key, r.Parent, options(r.Labels)...)
	return &snapshotsapi.PrepareSnapshotResponse{Mounts: toMounts(mounts)}, errgrpc.ToGRPC(err)
}

func (v service) View(ctx context.Context, r *snapshotsapi.ViewSnapshotRequest) (*snapshotsapi.ViewSnapshotResponse, error) {
	mounts, err := v.s.View(ctx, r.Key, r.Parent, options(r.Labels)...)
	return &snapshotsapi.ViewSnapshotResponse{Mounts: toMounts(mounts)}, errgrpc.ToGRPC(err)
}

func (v service) Mounts(ctx context.Context, r *snapshotsapi.MountsRequest) (*snapshotsapi.MountsResponse, error) {
	mounts, err := v.s.Mounts(ctx, r.Key)
	return &snapshotsapi.MountsResponse{Mounts: toMounts(mounts)}, errgrpc.ToGRPC(err)
}

func (v service) Commit(ctx context.Context, r *snapshotsapi.CommitSnapshotRequest) (*emptypb.Empty, error) {
	opts := options(r.Labels)
	if r.Parent != "" {
		opts = append(opts, snapshots.WithParent(r.Parent))
	}
	return &emptypb.Empty{}, errgrpc.ToGRPC(v.s.Commit(ctx, r.Name, r.Key, opts...))
}

func (v service) Remove(ctx context.Context, r *snapshotsapi.RemoveSnapshotRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, errgrpc.ToGRPC(v.s.Remove(ctx, r.Key))
}

func (v service) Stat(ctx context.Context, r *snapshotsapi.StatSnapshotRequest) (*snapshotsapi.StatSnapshotResponse, error) {
	info, err := v.s.Stat(ctx, r.Key)
	return &snapshotsapi.StatSnapshotResponse{Info: toInfo(info)}, errgrpc.ToGRPC(err)
}

func (v service) Update(ctx context.Context, r *snapshotsapi.UpdateSnapshotRequest) (*snapshotsapi.UpdateSnapshotResponse, error) {
	// Only labels can be changed.
	info, err := v.s.Update(ctx, snapshots.Info{Name: r.Info.GetName(), Labels: r.Info.GetLabels()}, r.UpdateMask.GetPaths()...)
	return &snapshotsapi.UpdateSnapshotResponse{Info: toInfo(info)}, errgrpc.ToGRPC(err)
}

func (v service) Usage(ctx context.Context, r *snapshotsapi.UsageRequest) (*snapshotsapi.UsageResponse, error) {
	usage, err := v.s.Usage(ctx, r.Key)
	return &snapshotsapi.UsageResponse{Size: usage.Size, Inodes: usage.Inodes}, errgrpc.ToGRPC(err)
}

func (v service) Cleanup(ctx context.Context, _ *snapshotsapi.CleanupRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, errgrpc.ToGRPC(v.s.Cleanup(ctx))
}

func (v service) List(r *snapshotsapi.ListSnapshotsRequest, to snapshotsapi.Snapshots_ListServer) error {
	// Collected first: a slow reader is not to hold a transaction.
	var all []*snapshotsapi.Info
	err := v.s.Walk(to.Context(), func(_ context.Context, info snapshots.Info) error {
		all = append(all, toInfo(info))
		return nil
	}, r.Filters...)
	for ; err == nil && len(all) > 0; all = all[min(len(all), listBlock):] {
		err = to.Send(&snapshotsapi.ListSnapshotsResponse{Info: all[:min(len(all), listBlock)]})
	}
	return errgrpc.ToGRPC(err)
}

func toMounts(mounts []mount.Mount) []*types.Mount {
	out := make([]*types.Mount, len(mounts))
	for i, m := range mounts {
		out[i] = &types.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options}
	}
	return out
}

func toInfo(info snapshots.Info) *snapshotsapi.Info {
	kinds := map[snapshots.Kind]snapshotsapi.Kind{snapshots.KindActive: snapshotsapi.Kind_ACTIVE, snapshots.KindView: snapshotsapi.Kind_VIEW,
		snapshots.KindCommitted: snapshotsapi.Kind_COMMITTED}
	return &snapshotsapi.Info{Name: info.Name, Parent: info.Parent, Kind: kinds[info.Kind], Labels: info.Labels,
		CreatedAt: timestamppb.New(info.Created), UpdatedAt: timestamppb.New(info.Updated)}
}
