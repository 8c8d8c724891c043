package main

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/rootfs"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestContainerdContent: what a container of a lazily pulled image has changed becomes a
// layer; the image is exported and pushed once containerd has its blobs too.
func TestContainerdContent(t *testing.T) {
	c := newCluster(t, "2", `background = "off"`)
	_, ref := c.lazyNginx()
	c.pull(ref)
	c.ctr("run", "-d", "--snapshotter", "thaw", ref, "changed", "sh", "-c", "rm -r /usr/share/perl && echo new >/etc/new && sleep inf")
	c.eventually("the container has written", func() bool {
		_, err := c.tryCtr("tasks", "exec", "--exec-id", "look", "changed", "test", "-s", "/etc/new")
		return err == nil
	})
	api, err := client.New(c.path("c.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer api.Close()
	ctx := namespaces.WithNamespace(t.Context(), "default")
	ctx, done, err := api.WithLease(ctx, leases.WithRandomID())
	if err != nil {
		t.Fatal(err)
	}
	layer, err := rootfs.CreateDiff(ctx, "changed", api.SnapshotService("thaw"), api.DiffService(), diff.WithMediaType(v1.MediaTypeImageLayer))
	if err != nil {
		t.Fatal(err)
	}
	if names := c.names(api, layer); strings.Join(names, " ") != "etc/ etc/new usr/ usr/share/ usr/share/.wh.perl" {
		t.Errorf("the layer of what has changed has %q", names)
	}
	if err := done(ctx); err != nil {
		t.Error(err)
	}
	c.ctr("tasks", "rm", "-f", "changed")
	c.ctr("containers", "rm", "changed")

	file := c.path("export.tar")
	if _, err := c.tryCtr("images", "export", file, ref); err == nil {
		t.Error("exported without layers")
	}
	c.ctr("content", "fetch", "--plain-http", ref)
	c.ctr("images", "export", file, ref)
	if st, err := os.Stat(file); err != nil || st.Size() < 40<<20 {
		t.Errorf("the export is %v, %v", st, err)
	}
	to := newLab(t, "", "none")
	c.ctr("images", "push", "--plain-http", to.Addr()+"/copy:latest", ref)
	image, err := api.GetImage(ctx, ref)
	if err != nil {
		t.Fatal(err)
	}
	m, err := images.Manifest(ctx, api.ContentStore(), image.Target(), image.Platform())
	if err != nil || len(m.Layers) != 3 {
		t.Fatalf("%+v, %v", m, err)
	}
	if n := to.Stats().Kinds["upload"].Requests; n < int64(len(m.Layers)) {
		t.Errorf("%d uploads", n)
	}
}

// TestContainerdFill: with containerd.content an export needs no step of its own once the
// image is here.
func TestContainerdFill(t *testing.T) {
	c := newCluster(t, "2", "containerd.content = true")
	s, ref := c.lazyNginx()
	c.pull(ref)
	c.eventually("the image can be exported", func() bool {
		_, err := c.tryCtr("images", "export", c.path("export.tar"), ref)
		return err == nil
	})
	if st, err := os.Stat(c.path("export.tar")); err != nil || st.Size() < 40<<20 {
		t.Errorf("the export is %v, %v", st, err)
	}
	s.Close() // what is there is not fetched again
	c.ctr("images", "export", c.path("again.tar"), ref)
	c.killThaw(false)
	c.runIn(ref, "after", "true")
}

// names lists the files of a layer that is in containerd's content store.
func (c *cluster) names(api *client.Client, layer v1.Descriptor) (names []string) {
	c.Helper()
	r, err := api.ContentStore().ReaderAt(namespaces.WithNamespace(c.Context(), "default"), layer)
	if err != nil {
		c.Fatal(err)
	}
	defer r.Close()
	for tr := tar.NewReader(io.NewSectionReader(r, 0, layer.Size)); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return names
		}
		if err != nil {
			c.Fatal(err)
		}
		names = append(names, h.Name)
	}
}
