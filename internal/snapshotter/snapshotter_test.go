package snapshotter

import (
	"context"
	"errors"
	"log/slog"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	digest "github.com/opencontainers/go-digest"

	"github.com/thaw-project/thaw/internal/testenv"
)

// none are Images that has none.
type none struct{}

var errNone = errors.New("there are no images")

func (none) Take(context.Context, Image, func(*Taken) error) error              { return errNone }
func (none) Mount(context.Context, Key) (string, error)                         { return "", errNone }
func (none) Keep(context.Context, func() ([]Key, []digest.Digest, error)) error { return nil }
func (none) Usage(digest.Digest) (int64, error)                                 { return 0, errNone }

// TestSuite is containerd's own suite, with plain snapshots only. That with snapshots on
// images is in cmd/thaw.
func TestSuite(t *testing.T) {
	testenv.NeedRoot(t)
	testsuite.SnapshotterSuite(t, "thaw", func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		s, err := New(ctx, Options{Root: root, Images: none{}, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			return nil, nil, err
		}
		return s, s.Close, nil
	})
}
