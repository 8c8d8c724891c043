package attach

import (
	"context"
	"strings"
	"testing"
	"time"

	eventtypes "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/types"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/thaw-project/thaw/internal/profile"
	"github.com/thaw-project/thaw/internal/sources/containerd"
)

func TestMatches(t *testing.T) {
	id := "6b2f0d9cf1b14f6d9a7f0f5b7d1c2e3a"
	all := names(id, map[string]string{labelNerdctl: "web-1", labelPodName: "api-0", labelContainerName: "api"})
	const image = "registry.example.com:5000/shop/api:1.41@sha256:aa"
	for pattern, want := range map[string]bool{
		"": true, id: true, "6b2f0d9c": true, "6b2": false, "web-1": true, "api-0": true, "api": true, "web": false,
		image: true, "registry.example.com:5000/shop/api:1.41": true, "shop/api:*": true, "shop/*": true, "api:1.41": true, "api:1.42": false, "ap?": true,
		"*/shop/api": true, "shop": false, "*.com:5000/*/api": true, "other/api": false,
	} {
		if matches(pattern, image, all) != want {
			t.Errorf("%q: want %v", pattern, want)
		}
	}
	if !matchImage("nginx", "127.0.0.1:5000/nginx") || matchImage("127", "127.0.0.1:5000/nginx") {
		t.Error("a port is taken for a tag")
	}
}

func TestFindMount(t *testing.T) {
	const info = `24 1 8:1 / / rw,relatime - ext4 /dev/root rw
91 24 0:52 / /run/containerd/io.containerd.runtime.v2.task/default/a\040b/rootfs rw,relatime - overlay overlay rw
92 24 0:53 / /run/containerd/io.containerd.runtime.v2.task/k8s.io/one/rootfs rw - overlay overlay rw
`
	for end, want := range map[string]string{
		"/k8s.io/one/rootfs":  "/run/containerd/io.containerd.runtime.v2.task/k8s.io/one/rootfs",
		"/default/a b/rootfs": "/run/containerd/io.containerd.runtime.v2.task/default/a b/rootfs",
		"/default/one/rootfs": "",
	} {
		if got, ok := findMount(strings.NewReader(info), end); got != want || ok != (want != "") {
			t.Errorf("%s: %q, %v", end, got, ok)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, ok := waitRoot(ctx, 0, "none", "none"); ok {
		t.Error("found what is not there")
	}
}

func TestDecode(t *testing.T) {
	at := time.Date(2026, 11, 21, 18, 16, 50, 740055935, time.UTC)
	for _, c := range []struct {
		topic string
		m     proto.Message
		want  containerd.Body
	}{
		{containerd.TopicSnapshotCommit, &eventtypes.SnapshotCommit{Key: "k", Name: "n", Snapshotter: "s"}, containerd.Body{Key: "k", Name: "n", Snapshotter: "s"}},
		{containerd.TopicContainer, &eventtypes.ContainerCreate{ID: "one", Image: "i"}, containerd.Body{ID: "one", Image: "i"}},
		{containerd.TopicTaskStart, &eventtypes.TaskStart{ContainerID: "one", Pid: 7}, containerd.Body{ContainerID: "one", Pid: 7}},
		{containerd.TopicTaskExit, &eventtypes.TaskExit{ContainerID: "one", ID: "exec", Pid: 7, ExitStatus: 3}, containerd.Body{ContainerID: "one", ID: "exec", Pid: 7, ExitStatus: 3}},
	} {
		a, err := anypb.New(c.m)
		if err != nil {
			t.Fatal(err)
		}
		for _, url := range []string{a.TypeUrl, strings.TrimPrefix(a.TypeUrl, "type.googleapis.com/")} { // containerd's has no host
			a.TypeUrl = url
			e, ok := decode(&types.Envelope{Timestamp: timestamppb.New(at), Namespace: "default", Topic: c.topic, Event: a})
			if want := (containerd.Event{At: at, Namespace: "default", Topic: c.topic, Body: c.want}); !ok || e != want {
				t.Errorf("%s: %+v, %v", url, e, ok)
			}
		}
	}
	for _, a := range []*anypb.Any{nil, {TypeUrl: "none"}, {TypeUrl: "containerd.events.TaskStart", Value: []byte{0xff}}} {
		if e, ok := decode(&types.Envelope{Event: a}); ok {
			t.Errorf("%v: %+v", a, e)
		}
	}
}

func TestRecord(t *testing.T) {
	begun := time.Date(2026, 11, 21, 18, 16, 50, 0, time.UTC)
	one := func(image, snapshotter string, signals ...profile.Signal) *Started {
		return &Started{Namespace: "default", Image: image, Snapshotter: snapshotter, Service: "web", Run: profile.Run{Begun: begun}, Signals: signals}
	}
	good, bad := profile.Signal{Name: "opens", Used: true}, profile.Signal{Name: "opens", Used: false, Reason: "no"}
	r := Record([]*Started{one("a", "thaw", good), one("a", "overlayfs", bad), one("a", "thaw", good)}, "tcp:1")
	if len(r.Subjects) != 2 || len(r.Subjects[0].Runs) != 2 || r.Subjects[1].Mode != "containerd/overlayfs" || r.Subjects[0].Probe != "tcp:1" {
		t.Errorf("subjects %+v", r.Subjects)
	}
	if len(r.Signals) != 1 || r.Signals[0] != bad || r.Labels["service"] != "web" || r.Source != profile.SourceAttach {
		t.Errorf("record %+v", r)
	}
}

// TestFindMountLong: another mount's line may be longer than any buffer of a scanner.
func TestFindMountLong(t *testing.T) {
	const end = shimDir + "k8s.io/c1/rootfs"
	long := "36 35 0:40 / /big rw - overlay overlay rw,lowerdir+=" + strings.Repeat("/layer", 100_000) + "\n"
	if dir, ok := findMount(strings.NewReader(long+"37 35 0:41 / /run"+end+" rw - overlay overlay rw\n"), end); !ok || dir != "/run"+end {
		t.Errorf("found %q: %v", dir, ok)
	}
}
