package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	digest "github.com/opencontainers/go-digest"

	"github.com/thaw-project/thaw/internal/testenv"
)

// none are Images that has none.
type none struct{}

var errNone = errors.New("there are no images")

func (none) Take(context.Context, Image, func(*Taken) error) error                    { return errNone }
func (none) Mount(context.Context, Key) (string, error)                               { return "", errNone }
func (none) Keep(context.Context, func() ([]Key, map[digest.Digest]int, error)) error { return nil }
func (none) Usage(digest.Digest) (int64, error)                                       { return 0, errNone }

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

// TestFailedIDs has snapshots made while others cannot be: an id of one that failed is the next one's.
func TestFailedIDs(t *testing.T) {
	testenv.NeedRoot(t)
	ctx := t.Context()
	s, err := New(ctx, Options{Root: t.TempDir(), Images: none{}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Prepare(ctx, "extract", ""); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(ctx, "broken", "extract"); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(s.fsDir("1")); err != nil {
		t.Fatal(err)
	}
	stop, failed := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				failed <- nil
				return
			default:
			}
			if _, err := s.Prepare(ctx, "fails", "broken"); err == nil {
				failed <- errors.New("a snapshot without its parent's directory")
				return
			}
		}
	}()
	for i := range 50 {
		key := fmt.Sprint("container", i)
		mounts, err := s.Prepare(ctx, key, "")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(mounts[0].Source, "file"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	if err := <-failed; err != nil {
		t.Error(err)
	}
	left, err := os.ReadDir(s.snapshotsDir())
	if err != nil || len(left) != 51 {
		t.Errorf("%d directories, %v", len(left), err)
	}
	for _, e := range left[1:] {
		if _, err := os.Stat(filepath.Join(s.fsDir(e.Name()), "file")); err != nil && e.Name() != "1" {
			t.Error(err)
		}
	}
}
