package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/archive"
	ctdcompression "github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"

	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/testenv"
)

// TestSnapshotLikeOverlay compares a real image with what containerd unpacks into its own
// overlayfs snapshotter.
func TestSnapshotLikeOverlay(t *testing.T) {
	layout := filepath.Join(testenv.Corpus(t), "oci")
	n := newSnapNode(t, api.ModeFanotify)
	ref := newLab(t, layout, "none").Addr() + "/nginx:latest"
	n.pushIndex(ref)
	img := n.image(layout, "nginx", ref)
	theirs, err := overlay.NewSnapshotter(n.path("overlay"), overlay.WithMountOptions([]string{"volatile"})) // no sync at each unmount
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	n.unpack(theirs, layout, img)
	n.pull(img)
	for i, chain := range img.chains {
		if i < len(img.chains)-1 && os.Getenv("THAW_LONG") == "" {
			continue // TestSnapshotChains has parts
		}
		var want tree
		mounts, err := theirs.View(t.Context(), n.key("theirs"), chain)
		if err != nil {
			t.Fatal(err)
		}
		n.mounted(mounts, func(dir string) {
			if want, err = readTree(dir); err != nil {
				t.Fatal(err)
			}
		})
		if i == len(img.chains)-1 && len(want.facts) < 1000 {
			t.Errorf("only %d files", len(want.facts))
		}
		n.sameChain(chain, want)
	}
}

// unpack has containerd unpack an image of a layout into a snapshotter.
func (n *snapNode) unpack(sn snapshots.Snapshotter, layout string, img snapImage) {
	n.Helper()
	parent := ""
	for i, blob := range img.blobs {
		f, err := os.Open(filepath.Join(layout, "blobs", "sha256", blob.Encoded()))
		if err != nil {
			n.Fatal(err)
		}
		defer f.Close()
		r, err := ctdcompression.DecompressStream(f)
		if err != nil {
			n.Fatal(err)
		}
		defer r.Close()
		key := n.key("unpack")
		mounts, err := sn.Prepare(n.Context(), key, parent)
		if err != nil {
			n.Fatal(err)
		}
		n.mounted(mounts, func(dir string) {
			if _, err := archive.Apply(n.Context(), dir, r); err != nil {
				n.Fatal(err)
			}
		})
		if err := sn.Commit(n.Context(), img.chains[i], key); err != nil {
			n.Fatal(err)
		}
		parent = img.chains[i]
	}
}
