package criproxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/authn"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// backend is a CRI server that says what it is told to.
type backend struct {
	runtime.UnimplementedImageServiceServer
	runtime.UnimplementedRuntimeServiceServer
	pull func(*runtime.PullImageRequest) error
}

func (b *backend) PullImage(_ context.Context, r *runtime.PullImageRequest) (*runtime.PullImageResponse, error) {
	if err := b.pull(r); err != nil {
		return nil, err
	}
	return &runtime.PullImageResponse{ImageRef: "sha256:1"}, nil
}

func (b *backend) ListImages(context.Context, *runtime.ListImagesRequest) (*runtime.ListImagesResponse, error) {
	r := &runtime.ListImagesResponse{}
	for i := range 30_000 {
		r.Images = append(r.Images, &runtime.Image{Id: fmt.Sprint(i), RepoTags: []string{strings.Repeat("x", 60)}})
	}
	return r, nil
}

func (b *backend) GetContainerEvents(_ *runtime.GetEventsRequest, s runtime.RuntimeService_GetContainerEventsServer) error {
	for i := range 3 {
		if err := s.Send(&runtime.ContainerEventResponse{ContainerId: fmt.Sprint(i)}); err != nil {
			return err
		}
	}
	<-s.Context().Done()
	return nil
}

// offers notes what it is told.
type offers struct {
	mu  sync.Mutex // guards all
	all []string
}

func (o *offers) add(text string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.all = append(o.all, text)
}

func (o *offers) take() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	all := o.all
	o.all = nil
	return all
}

func (o *offers) Offer(repository string, auth authn.AuthConfig) func(bool) {
	o.add(fmt.Sprintf("%s %s:%s %s%s", repository, auth.Username, auth.Password, auth.IdentityToken, auth.RegistryToken))
	return func(good bool) { o.add(fmt.Sprint(good)) }
}

func serve(t *testing.T, path string, b *backend) *grpc.Server {
	t.Helper()
	os.Remove(path)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	runtime.RegisterImageServiceServer(srv, b)
	runtime.RegisterRuntimeServiceServer(srv, b)
	var wg sync.WaitGroup
	wg.Go(func() { srv.Serve(l) })
	t.Cleanup(func() { srv.Stop(); wg.Wait() })
	return srv
}

func dial(t *testing.T, path string) *grpc.ClientConn {
	t.Helper()
	c, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// TestProxy: a gRPC client and server, of the libraries that the kubelet and
// containerd use, do not notice the proxy; it sees the credentials of pulls, and
// which of them were good.
func TestProxy(t *testing.T) {
	dir := t.TempDir()
	behind, front := filepath.Join(dir, "c.sock"), filepath.Join(dir, "t.sock")
	var seen offers
	b := &backend{}
	b.pull = func(r *runtime.PullImageRequest) error {
		seen.add("pull " + r.Image.Image)
		if r.Auth.GetPassword() == "wrong" {
			return status.Error(codes.Unauthenticated, "no such user: "+r.Auth.Username)
		}
		return nil
	}
	s, err := Serve(front, behind, &seen, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if info, err := os.Stat(front); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", info.Mode(), err)
	}
	conn := dial(t, front)
	images, pods := runtime.NewImageServiceClient(conn), runtime.NewRuntimeServiceClient(conn)
	pull := func(image string, auth *runtime.AuthConfig) error {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		got, err := images.PullImage(ctx, &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: image}, Auth: auth,
			SandboxConfig: &runtime.PodSandboxConfig{Hostname: "h", Labels: map[string]string{"a": "b"}}})
		if err == nil && got.ImageRef != "sha256:1" {
			t.Errorf("pull %s: %v", image, got)
		}
		return err
	}
	if err := pull("a.example/b", nil); status.Code(err) != codes.Unavailable {
		t.Errorf("without containerd: %v", err)
	}
	backend := serve(t, behind, b)
	for _, c := range []struct {
		image string
		auth  *runtime.AuthConfig
		want  []string
		err   codes.Code
	}{
		{"a.example/b:1", nil, []string{"pull a.example/b:1"}, codes.OK},
		{"a.example/b:1", &runtime.AuthConfig{}, []string{"pull a.example/b:1"}, codes.OK},
		{"a.example:5000/b/c:1", &runtime.AuthConfig{Username: "u", Password: "p"}, []string{"a.example:5000/b/c u:p ", "pull a.example:5000/b/c:1", "true"}, codes.OK},
		{"nginx", &runtime.AuthConfig{Username: "u", Password: "p", ServerAddress: "https://index.docker.io/v1/"}, []string{"docker.io/library/nginx u:p ", "pull nginx", "true"}, codes.OK},
		{"a.example/b:1", &runtime.AuthConfig{Username: "u", Password: "wrong"}, []string{"a.example/b u:wrong ", "pull a.example/b:1", "false"}, codes.Unauthenticated},
		{"a.example/b:1", &runtime.AuthConfig{Auth: "dTpwOnE="}, []string{"a.example/b u:p:q ", "pull a.example/b:1", "true"}, codes.OK},
		{"a.example/b:1", &runtime.AuthConfig{Auth: "???"}, []string{"pull a.example/b:1"}, codes.OK},
		{"a.example/b:1", &runtime.AuthConfig{IdentityToken: "id"}, []string{"a.example/b : id", "pull a.example/b:1", "true"}, codes.OK},
		{"a.example/b:1", &runtime.AuthConfig{RegistryToken: "rt"}, []string{"a.example/b : rt", "pull a.example/b:1", "true"}, codes.OK},
		{"a.example/b:1", &runtime.AuthConfig{Username: "u", Password: "p", ServerAddress: "https://other.example"}, []string{"pull a.example/b:1"}, codes.OK},
		{"no image!", &runtime.AuthConfig{Username: "u", Password: "p"}, []string{"pull no image!"}, codes.OK},
	} {
		if err := pull(c.image, c.auth); status.Code(err) != c.err || err != nil && !strings.Contains(err.Error(), "no such user: u") {
			t.Errorf("%s %v: %v", c.image, c.auth, err)
		}
		got := seen.take()
		for i := 0; len(got) < len(c.want) && i < 500; i++ { // the client may have its answer first
			time.Sleep(10 * time.Millisecond)
			got = append(got, seen.take()...)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s %v: %s", c.image, c.auth, diff)
		}
	}
	list, err := images.ListImages(t.Context(), &runtime.ListImagesRequest{})
	if err != nil || len(list.Images) != 30_000 {
		t.Errorf("a large answer: %d images, %v", len(list.GetImages()), err)
	}
	if _, err := images.ImageFsInfo(t.Context(), &runtime.ImageFsInfoRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("what containerd does not know: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	events, err := pods.GetContainerEvents(ctx, &runtime.GetEventsRequest{})
	for i := range 3 {
		e, rerr := events.Recv()
		if err != nil || rerr != nil || e.ContainerId != fmt.Sprint(i) {
			t.Fatalf("event %d: %v, %v, %v", i, e, err, rerr)
		}
	}
	cancel()
	backend.Stop()
	if err := pull("a.example/b", &runtime.AuthConfig{Username: "u", Password: "p"}); status.Code(err) != codes.Unavailable {
		t.Errorf("containerd is gone: %v", err)
	}
	serve(t, behind, b)
	if err := pull("a.example/b", nil); err != nil {
		t.Errorf("containerd is back: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := pull("a.example/b", nil); !errors.Is(err, context.DeadlineExceeded) && status.Code(err) != codes.Unavailable {
		t.Errorf("the proxy is gone: %v", err)
	}
}

// FuzzDecodePull: what the kubelet's own library encodes is read as it is; nothing
// panics.
func FuzzDecodePull(f *testing.F) {
	for _, r := range []*runtime.PullImageRequest{
		{},
		{Image: &runtime.ImageSpec{Image: "nginx", Annotations: map[string]string{"a": "b"}}, Auth: &runtime.AuthConfig{Username: "u", Password: "p"}},
		{Image: &runtime.ImageSpec{Image: "a.example/b@sha256:0"}, Auth: &runtime.AuthConfig{Auth: "dTpw", ServerAddress: "a", IdentityToken: "i", RegistryToken: "r"}},
	} {
		b, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		image, auth, err := decodePull(b)
		var want runtime.PullImageRequest
		if proto.Unmarshal(b, &want) != nil || err != nil {
			return // the library checks more: of fields that we pass over, and UTF-8
		}
		if image != want.Image.GetImage() {
			t.Errorf("image %q, want %q", image, want.Image.GetImage())
		}
		a := want.Auth
		if got := (wireAuth{a.GetUsername(), a.GetPassword(), a.GetAuth(), a.GetServerAddress(), a.GetIdentityToken(), a.GetRegistryToken()}); got != auth {
			t.Errorf("auth %+v, want %+v", auth, got)
		}
		body := append([]byte{0, 0, 0, 0, byte(min(len(b), 255))}, b...)
		if p, err := parsePull(body); err == nil {
			p.credentials()
		}
	})
}
