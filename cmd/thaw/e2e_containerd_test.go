package main

import (
	"strings"
	"testing"

	"github.com/thaw-project/thaw/internal/lab"
)

// lazyNginx is a lab with nginx and its index.
func (c *cluster) lazyNginx() (s *lab.Server, ref string) {
	c.Helper()
	layout, _ := corpus(c, "nginx")
	s = newLab(c, layout, "none")
	c.pushIndex(s.Addr() + "/nginx")
	s.ResetStats()
	return s, s.Addr() + "/nginx:latest"
}

// blobBytes are what the lab gave of blobs since they were counted last.
func blobBytes(s *lab.Server) int64 {
	n := s.Stats().Kinds["blob"].Bytes
	s.ResetStats()
	return n
}

func TestContainerd(t *testing.T) {
	c := newCluster(t, "2", `background = "off"`)
	s, ref := c.lazyNginx()
	c.pull(ref)
	if got := c.runIn(ref, "one", "sh", "-c", "head -n 1 /etc/passwd && echo changed >/etc/passwd && cat /etc/passwd"); got != "root:x:0:0:root:/root:/bin/bash\nchanged\n" {
		t.Errorf("the container says %q", got)
	}
	st := c.status()
	if len(st.Mounts) != 1 {
		t.Fatalf("mounts %+v\n%s", st.Mounts, c.fallbacks())
	}
	if n := blobBytes(s); n > st.Mounts[0].Stats.ImageBytes/4 {
		t.Errorf("%d bytes of blobs were fetched, of %d: not lazy", n, st.Mounts[0].Stats.ImageBytes)
	}
}

func TestPod(t *testing.T) {
	for _, series := range []string{"2", "1.7"} {
		t.Run(series, func(t *testing.T) {
			c := newCluster(t, series, `background = "off"`)
			s, ref := c.lazyNginx()
			k := c.kubelet()
			if err := k.pullImage(ref, nil); err != nil {
				t.Fatal(err)
			}
			pod := k.runPod("one")
			one := pod.start("server", ref, "PORT=8080")
			pod.ready(one, "8080")
			st := c.status()
			if len(st.Mounts) != 1 {
				t.Fatalf("mounts %+v\n%s", st.Mounts, c.fallbacks())
			}
			if n := blobBytes(s); n > st.Mounts[0].Stats.ImageBytes/2 {
				t.Errorf("%d bytes of blobs were fetched, of %d: not lazy", n, st.Mounts[0].Stats.ImageBytes)
			}
			if got := pod.exec(one, "head", "-n", "1", "/etc/passwd"); got != "root:x:0:0:root:/root:/bin/bash\n" {
				t.Errorf("the container says %q", got)
			}
			two := pod.start("other", ref, "PORT=8081")
			pod.exec(one, "sh", "-c", "echo one >/etc/motd")
			if got := pod.exec(two, "sh", "-c", "cat /etc/motd; ls /var/log"); strings.Contains(got, "one") {
				t.Errorf("a container sees what another wrote: %q", got)
			}
			pod.remove()
			k.removeImage(ref)
		})
	}
}
