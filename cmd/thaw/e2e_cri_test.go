package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/thaw-project/thaw/internal/layertar/layertartest"
)

// pauseProgram is built once: static, so that it runs in an empty image.
var pauseProgram = sync.OnceValues(func() ([]byte, error) {
	path := filepath.Join(shared, "pause")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "./testdata/pause")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build pause: %w: %s", err, out)
	}
	return os.ReadFile(path)
})

// newPause serves a sandbox image, and returns its reference.
func newPause(t testing.TB) string {
	t.Helper()
	program, err := pauseProgram()
	if err != nil {
		t.Fatal(err)
	}
	layout := t.TempDir()
	layer := new(layertartest.Builder).Entry(layertartest.Header{Type: '0', Name: "pause", Mode: 0o755, Size: int64(len(program))}, program).End().Bytes()
	writeImageConfig(t, layout, "pause", compressions[0], v1.ImageConfig{Entrypoint: []string{"/pause"}}, [][]byte{layer})
	return newLab(t, layout, "none").Addr() + "/pause:latest"
}

// kubelet speaks CRI, as the kubelet does: of images to thaw's proxy, of pods to
// containerd. crictl is no more than that, and cannot be had everywhere.
type kubelet struct {
	*cluster
	images cri.ImageServiceClient
	pods   cri.RuntimeServiceClient
}

func (c *cluster) kubelet() *kubelet {
	c.Helper()
	dial := func(socket string) *grpc.ClientConn {
		conn, err := grpc.NewClient("unix://"+c.path(socket), grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
		if err != nil {
			c.Fatal(err)
		}
		c.Cleanup(func() { conn.Close() })
		return conn
	}
	return &kubelet{c, cri.NewImageServiceClient(dial("i.sock")), cri.NewRuntimeServiceClient(dial("c.sock"))}
}

func (k *kubelet) context() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	k.Cleanup(cancel)
	return ctx
}

// pullImage pulls through the proxy.
func (k *kubelet) pullImage(ref string, auth *cri.AuthConfig) error {
	_, err := k.images.PullImage(k.context(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}, Auth: auth})
	return err
}

// removeImage removes an image as the kubelet's garbage collection does.
func (k *kubelet) removeImage(ref string) {
	k.Helper()
	if _, err := k.images.RemoveImage(k.context(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: ref}}); err != nil {
		k.Fatal(err)
	}
}

// pod is a running sandbox.
type pod struct {
	k      *kubelet
	id, ip string
	config *cri.PodSandboxConfig
}

// runPod makes a pod with a network of its own.
func (k *kubelet) runPod(name string) *pod { k.Helper(); return k.runPodOf(name, "") }

// runPodOf makes one of a runtime handler.
func (k *kubelet) runPodOf(name, handler string) *pod {
	k.Helper()
	logs := k.mkdir()
	config := &cri.PodSandboxConfig{Metadata: &cri.PodSandboxMetadata{Name: name, Uid: filepath.Base(k.base) + name, Namespace: "default"},
		LogDirectory: logs, Linux: &cri.LinuxPodSandboxConfig{}}
	r, err := k.pods.RunPodSandbox(k.context(), &cri.RunPodSandboxRequest{Config: config, RuntimeHandler: handler})
	if err != nil {
		k.Fatal(err)
	}
	p := &pod{k: k, id: r.PodSandboxId, config: config}
	st, err := k.pods.PodSandboxStatus(k.context(), &cri.PodSandboxStatusRequest{PodSandboxId: p.id})
	if err != nil {
		k.Fatal(err)
	}
	p.ip = st.Status.Network.GetIp()
	return p
}

// start starts a container of an image in the pod, and returns its id.
func (p *pod) start(name, ref string, env ...string) string {
	p.k.Helper()
	config := &cri.ContainerConfig{Metadata: &cri.ContainerMetadata{Name: name}, Image: &cri.ImageSpec{Image: ref}, LogPath: name + ".log", Linux: &cri.LinuxContainerConfig{}}
	for _, e := range env {
		key, value, _ := strings.Cut(e, "=")
		config.Envs = append(config.Envs, &cri.KeyValue{Key: key, Value: []byte(value)})
	}
	r, err := p.k.pods.CreateContainer(p.k.context(), &cri.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
	if err != nil {
		p.k.Fatal(err)
	}
	if _, err := p.k.pods.StartContainer(p.k.context(), &cri.StartContainerRequest{ContainerId: r.ContainerId}); err != nil {
		p.k.Fatal(err)
	}
	return r.ContainerId
}

// exec runs a command in a container, which has to succeed.
func (p *pod) exec(container string, command ...string) string {
	p.k.Helper()
	r, err := p.k.pods.ExecSync(p.k.context(), &cri.ExecSyncRequest{ContainerId: container, Cmd: command, Timeout: int64(patience / time.Second)})
	if err != nil || r.ExitCode != 0 {
		p.k.Fatalf("exec %v: %v, %v", command, r, err)
	}
	return string(r.Stdout)
}

// ready waits until the corpus's server in a container answers, on the pod's own
// loopback.
func (p *pod) ready(container, port string) {
	p.k.Helper()
	ask := fmt.Sprintf(`exec 3<>/dev/tcp/127.0.0.1/%s && printf 'GET /ready HTTP/1.0\r\n\r\n' >&3 && head -n 1 <&3`, port)
	var last string
	deadline := time.Now().Add(patience)
	for !strings.Contains(last, " 200 ") {
		if time.Now().After(deadline) {
			p.k.Fatalf("the server in the pod does not answer: %s", last)
		}
		r, err := p.k.pods.ExecSync(p.k.context(), &cri.ExecSyncRequest{ContainerId: container, Cmd: []string{"bash", "-c", ask}, Timeout: 10})
		last = fmt.Sprint(string(r.GetStdout()), string(r.GetStderr()), err)
		time.Sleep(50 * time.Millisecond)
	}
}

func (p *pod) remove() {
	p.k.Helper()
	if _, err := p.k.pods.StopPodSandbox(p.k.context(), &cri.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		p.k.Error(err)
	}
	if _, err := p.k.pods.RemovePodSandbox(p.k.context(), &cri.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
		p.k.Error(err)
	}
}

// writeCNI configures a network of the cluster's own: a veth pair a pod.
func (c *cluster) writeCNI() {
	c.Helper()
	if err := os.Mkdir(c.path("cni"), 0o755); err != nil {
		c.Fatal(err)
	}
	// Each of the clusters at a time has its own addresses.
	subnet := fmt.Sprintf("10.%d.%d.0/24", 200+os.Getpid()%50, clusters.Add(1)%250)
	c.write("cni/10-thaw.conflist", fmt.Sprintf(`{"cniVersion":"1.0.0","name":"thaw-test","plugins":[
		{"type":"ptp","ipMasq":false,"ipam":{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":%q}]],"routes":[{"dst":"0.0.0.0/0"}]}}]}`, c.path("ipam"), subnet))
}

// removePods removes all pods.
func (c *cluster) removePods() {
	c.Helper()
	k := c.kubelet()
	all, err := k.pods.ListPodSandbox(k.context(), &cri.ListPodSandboxRequest{})
	if err != nil {
		c.Error(err)
		return
	}
	for _, p := range all.Items {
		(&pod{k: k, id: p.Id}).remove()
	}
}
