package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/testenv"
)

// pluggedConfig is a containerd's configuration below a directory, with a comment and a handler that
// have to survive.
func pluggedConfig(dir, series string) string {
	version, images, runtime := 3, "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"
	if series == "1.7" {
		version, images, runtime = 2, "io.containerd.grpc.v1.cri", "io.containerd.grpc.v1.cri"
	}
	return fmt.Sprintf(`# ours, since 2019
version = %[1]d
root = "%[2]s/root"
state = '%[2]s/state'

[grpc]
  address = "%[2]s/containerd.sock"   # not the default
[ttrpc]
  address = "%[2]s/containerd.sock.ttrpc"
[plugins.'io.containerd.internal.v1.opt']
  path = "%[2]s/opt"
[plugins.'io.containerd.nri.v1.nri']
  disable = true
[plugins."%[3]s"]
  max_concurrent_downloads = 4
[plugins."%[4]s".containerd]
  default_runtime_name = "plain"
  [plugins."%[4]s".containerd.runtimes.plain]
    runtime_type = "io.containerd.runc.v2"
    [plugins."%[4]s".containerd.runtimes.plain.options]
      SystemdCgroup = false`, version, dir, images, runtime)
}

// TestInstallContainerd: a real containerd, told by thaw install containerd, has
// the snapshotter; the end is refused while it has snapshots, and leaves its
// configuration as it was, to the byte.
func TestInstallContainerd(t *testing.T) {
	for _, series := range []string{"2", "1.7"} {
		t.Run(series, func(t *testing.T) {
			programs := testenv.NeedContainerd(t, series)
			n := newNode(t)
			path := os.Getenv("PATH")
			t.Setenv("PATH", programs+string(os.PathListSeparator)+path)
			dir := n.path("c")
			config := n.path("etc/containerd/config.toml")
			if err := os.MkdirAll(filepath.Dir(config), 0o755); err != nil {
				t.Fatal(err)
			}
			before := pluggedConfig(dir, series)
			n.write("etc/containerd/config.toml", before)
			socket := n.path("s.sock")
			installArgs := []string{"--root", "/r", "install", "containerd", "--destdir", n.base, "--socket", socket}
			endArgs := []string{"--root", "/r", "uninstall", "containerd", "--destdir", n.base}
			read := func() string {
				b, err := os.ReadFile(config)
				if err != nil {
					t.Fatal(err)
				}
				return string(b)
			}

			if out := n.thaw(append(installArgs, "--dry-run")...); !strings.Contains(out, "+[proxy_plugins.thaw]") || read() != before {
				t.Errorf("--dry-run: %s", out)
			}
			var report installReport
			if err := json.Unmarshal([]byte(n.thaw(append(installArgs, "--json")...)), &report); err != nil || !report.Changed || report.Backup == "" || len(report.Files) != 4 {
				t.Errorf("%v; --json: %+v", err, report)
			}
			changed := read()
			if out := n.thaw(installArgs...); !strings.Contains(out, "nothing to change") || read() != changed {
				t.Errorf("installing again: %s", out)
			}

			n.refuses(exitUsage, "containerd.address", "daemon", "--containerd-address", "c.sock")
			n.start("daemon", "--idle-exit=0s", "--containerd-listen", socket, "--containerd-address", filepath.Join(dir, "containerd.sock"))
			n.eventually("the daemon listens for containerd", func() bool { _, err := os.Stat(socket); return err == nil })
			stop := n.plugged(filepath.Join(programs, "containerd"), config)
			ctr := n.ctr(filepath.Join(programs, "ctr"), filepath.Join(dir, "containerd.sock"))
			n.eventually("containerd has the snapshotter", func() bool {
				out, err := ctr("plugins", "ls")
				return err == nil && pluginOK(out, "thaw") && pluginOK(out, "cri")
			})
			if out, err := ctr("snapshots", "--snapshotter", "thaw", "prepare", "mine"); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			n.refuses(1, "containers e2e/mine", endArgs...)
			if out, err := ctr("snapshots", "--snapshotter", "thaw", "rm", "mine"); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			// containerd's garbage collection takes it from the snapshotter.
			n.eventually("the snapshot is gone", func() bool { return n.try(endArgs...).code == 0 })
			stop()
			if after := read(); after != before {
				t.Errorf("configuration after the end (want %d bytes):\n%s", len(before), after)
			}
			filepath.WalkDir(n.path("etc"), func(path string, e os.DirEntry, err error) error {
				if err != nil || !e.IsDir() && path != config {
					t.Errorf("left behind: %s, %v", path, err)
				}
				return nil
			})
			if b, err := os.ReadFile(n.path("usr/local/bin/thaw")); err == nil {
				t.Errorf("left behind: the program, %d bytes", len(b))
			}
		})
	}
}

// plainConfig is a containerd that knows nothing of thaw, in the cluster's directories.
func (c *cluster) plainConfig() string {
	version, pause, runtime, bin := 3, "[plugins.'io.containerd.cri.v1.images'.pinned_images]\n  sandbox = %q\n[plugins.'io.containerd.cri.v1.runtime']\n  restrict_oom_score_adj = true\n",
		"io.containerd.cri.v1.runtime", "bin_dirs = [%q]"
	if c.series == "1.7" {
		version, pause, runtime, bin = 2, "[plugins.'io.containerd.grpc.v1.cri']\n  sandbox_image = %q\n  restrict_oom_score_adj = true\n", "io.containerd.grpc.v1.cri", "bin_dir = %q"
	}
	return fmt.Sprintf("version = %d\nroot = '%[2]s/c/root'\nstate = '%[2]s/c/state'\ndisabled_plugins = ['io.containerd.nri.v1.nri']\n[grpc]\n  address = '%[2]s/c.sock'\n"+
		"[ttrpc]\n  address = '%[2]s/c.sock.ttrpc'\n", version, c.base) +
		fmt.Sprintf(pause, c.pause) + fmt.Sprintf("[plugins.'%s'.cni]\n  "+bin+"\n  conf_dir = %q\n", runtime, testenv.NeedCNI(c), c.path("cni"))
}

// TestRuntimeHandler: with the configuration that thaw install containerd makes, pods of the handler thaw are
// lazy, and others go on on overlayfs.
func TestRuntimeHandler(t *testing.T) {
	if os.Getenv("THAW_LONG") == "" {
		t.Skip("pods by runtime handler: THAW_LONG=1")
	}
	for _, series := range []string{"2", "1.7"} {
		t.Run(series, func(t *testing.T) {
			c := newCluster(t, series, `background = "off"`)
			t.Setenv("PATH", c.programs+string(os.PathListSeparator)+os.Getenv("PATH"))
			c.write("containerd.toml", c.plainConfig())
			c.thaw("--root", "/r", "install", "containerd", "--destdir", c.base, "--containerd-config", "/containerd.toml", "--socket", c.path("t.sock"))
			b, err := os.ReadFile(c.path("containerd.toml"))
			if err != nil {
				t.Fatal(err)
			}
			c.config = string(b)
			c.stopContainerd(unix.SIGTERM)
			c.startContainerd()

			_, ref := c.lazyNginx()
			k := c.kubelet()
			pull := func(ref, handler string) {
				t.Helper()
				r := &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref, RuntimeHandler: handler}, SandboxConfig: &cri.PodSandboxConfig{Metadata: &cri.PodSandboxMetadata{Name: "p"}}}
				if handler != "" { // as the kubelet has it from the pod; 1.7 knows no other way
					r.SandboxConfig.Annotations = map[string]string{"io.containerd.cri.runtime-handler": handler}
				}
				if _, err := k.images.PullImage(k.context(), r); err != nil {
					t.Fatal(err)
				}
			}
			pull(ref, "thaw")
			pod := k.runPodOf("lazy", "thaw")
			server := pod.start("server", ref, "PORT=8080")
			pod.ready(server, "8080")
			if st := c.status(); !slices.ContainsFunc(st.Mounts, func(m api.Mount) bool {
				return strings.HasPrefix(m.Image, ref) && m.Stats.HereBytes < m.Stats.UnpackedBytes
			}) {
				t.Errorf("not lazy: mounts %+v\n%s", st.Mounts, c.fallbacks())
			}
			if of := c.ctr("-n", "k8s.io", "containers", "info", server); !strings.Contains(of, `"Snapshotter": "thaw"`) {
				t.Errorf("container of the handler: %s", of)
			}
			pod.remove()
			k.removeImage(ref)

			pull(c.pause, "")
			pod = k.runPod("plain")
			server = pod.start("server", c.pause)
			if of := c.ctr("-n", "k8s.io", "containers", "info", server); !strings.Contains(of, `"Snapshotter": "overlayfs"`) {
				t.Errorf("container of the default handler: %s", of)
			}
			pod.remove()
		})
	}
}

// TestInstallPod: a process in a mount namespace of its own, as a pod's, installs on the host.
func TestInstallPod(t *testing.T) {
	n := newNode(t)
	dir := n.path("host")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	n.write("host/eks.toml", "version = 3\n")
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// Process 1 of a host, with a pod that does not see what the host has at dir.
	const host = `mount -t proc proc /proc; trap 'kill -TERM $pid' TERM
		unshare -m sh -c 'mount -t tmpfs none "$1" && exec "$0" --log-level info --root /r install containerd --pod --destdir "$1" --containerd-config /eks.toml' "$0" "$1" &
		pid=$!; wait $pid; wait $pid`
	cmd := exec.Command("sh", "-c", host, exe, dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Cloneflags: syscall.CLONE_NEWPID}
	cmd.Env = append(n.environ(), "KUBERNETES_SERVICE_HOST=")
	out := newOutput()
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); cmd.Wait() }()
	t.Cleanup(func() { cmd.Process.Kill(); <-done })
	if !out.wait("thaw is installed on the node", done) {
		t.Fatalf("it does not install: %s", out)
	}
	for _, name := range []string{"eks.toml", "usr/local/bin/thaw", "etc/systemd/system/thaw.service", "r/install-containerd.json"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Errorf("on the host: %v", err)
		}
	}
	cmd.Process.Signal(unix.SIGTERM)
	<-done
	if code := cmd.ProcessState.ExitCode(); code != 0 || !strings.Contains(out.String(), "stays when the DaemonSet is removed") {
		t.Errorf("exit code %d: %s", code, out)
	}
}

// pluginOK reports whether a line of ctr plugins ls has the plugin's id, and is fine.
func pluginOK(list, id string) bool {
	for l := range strings.Lines(list) {
		if f := strings.Fields(l); len(f) >= 4 && f[1] == id {
			return f[len(f)-1] == "ok"
		}
	}
	return false
}

// plugged runs a containerd until stop is called, or the end of the test.
func (n *node) plugged(program, config string) (stop func()) {
	n.Helper()
	cmd := exec.Command(program, "--config", config, "--log-level", "info")
	out := newOutput()
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		n.Fatal(err)
	}
	ended := false
	stop = func() {
		if ended {
			return
		}
		ended = true
		cmd.Process.Signal(unix.SIGTERM)
		cmd.Wait()
		if n.Failed() {
			n.Logf("containerd: %s", out)
		}
	}
	n.Cleanup(stop)
	return stop
}

// ctr is containerd's client in a namespace of its own.
func (n *node) ctr(program, socket string) func(args ...string) (string, error) {
	return func(args ...string) (string, error) {
		cmd := exec.Command(program, append([]string{"--address", socket, "--namespace", "e2e"}, args...)...)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		err := cmd.Run()
		return out.String(), err
	}
}
