package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	ctdnamespaces "github.com/containerd/containerd/v2/pkg/namespaces"
)

// TestContainerdUnnamed pulls as nerdctl and most Go programs do, who do not tell the snapshotter which
// image a layer is of.
func TestContainerdUnnamed(t *testing.T) {
	layout, _ := corpus(t, "nginx")
	s := newLab(t, layout, "none")
	c := newCluster(t, "1.7", `background = "off"`, fmt.Sprintf("insecure = [%q]", s.Addr()))
	ref := s.Addr() + "/nginx:latest"
	c.pushIndex(ref)
	s.ResetStats()
	containerd, err := client.New(c.path("c.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer containerd.Close()
	resolver := docker.NewResolver(docker.ResolverOptions{Hosts: docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchAllHosts))})
	ctx := ctdnamespaces.WithNamespace(t.Context(), "default")
	image, err := containerd.Pull(ctx, ref, client.WithPullUnpack, client.WithPullSnapshotter("thaw"), client.WithResolver(resolver))
	if err != nil {
		t.Fatal(err)
	}
	size := c.status().Mounts[0].Stats.ImageBytes
	if n := blobBytes(s); n > size/4 {
		t.Errorf("%d bytes of blobs were fetched, of %d: not lazy\n%s", n, size, c.fallbacks())
	}
	if m := c.status().Mounts; len(m) != 1 || m[0].Manifest != image.Target().Digest || !strings.HasPrefix(m[0].Image, s.Addr()+"/nginx@") {
		t.Errorf("mounts: %+v", m)
	}
	if got := c.runIn(ref, "one", "head", "-n", "1", "/etc/passwd"); got != "root:x:0:0:root:/root:/bin/bash\n" {
		t.Errorf("the container says %q", got)
	}
}
