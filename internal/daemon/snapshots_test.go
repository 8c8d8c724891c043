package daemon

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	digest "github.com/opencontainers/go-digest"
)

// TestIfUnused lets go of an image while somebody takes it.
func TestIfUnused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newImageSnapshots(newDaemon(Config{Log: slog.New(slog.DiscardHandler)}))
		manifest := digest.FromString("image")
		never := func(context.Context) error { return errors.New("it is in use") }
		unlock, err := s.locks.lock(t.Context(), manifest) // its registry hangs
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		done := make(chan error, 1)
		go func() { done <- s.ifUnused(t.Context(), manifest, time.Now(), never) }()
		time.Sleep(time.Second) // it waits for the lock
		leave := s.use(manifest)
		if err := <-done; err != nil {
			t.Error(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		go func() { done <- s.ifUnused(ctx, digest.FromString("other"), time.Now(), never) }()
		if err := <-done; err == nil {
			t.Error("an image that nobody uses stays")
		}
		unlock()
		leave()
		time.Sleep(time.Second)
		err = s.ifUnused(ctx, manifest, time.Now(), func(ctx context.Context) error {
			cancel() // containerd is killed in the middle
			return ctx.Err()
		})
		if err != nil {
			t.Errorf("what was begun is not ended: %v", err)
		}
	})
}

func TestSnapshotReference(t *testing.T) {
	manifest := digest.FromString("manifest")
	ref, err := snapshotReference("registry.example.com:5000/a/b:tag", manifest)
	if err != nil || ref.Digest != manifest || ref.Registry != "registry.example.com:5000" {
		t.Errorf("%+v, %v", ref, err)
	}
	for _, bad := range []string{"oci:/etc:tag", "oci:.", "a/../b", "http://registry/a", ""} {
		if ref, err := snapshotReference(bad, manifest); err == nil {
			t.Errorf("%q is taken for %v", bad, ref)
		}
	}
	if _, err := snapshotReference("nginx", "sha256:short"); err == nil {
		t.Error("a digest that is none is taken")
	}
}
