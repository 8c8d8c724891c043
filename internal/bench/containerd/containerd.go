// Package containerd is containerd as a way of starting an image for package
// bench: pull with one of its snapshotters, create a container, start it.
//
// It does, through the Go API, what nerdctl and the kubelet's side of containerd
// do: the image's references and digests go to the snapshotter as labels, so
// that remote snapshotters (SOCI, stargz, nydus) work as they do in a cluster.
// Everything is kept in a namespace of its own and removed between runs.
//
// It does not configure containerd or its plugins: what is installed is
// measured.
package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/docker/cli/cli/config"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/semaphore"

	"github.com/thaw-project/thaw/internal/bench"
	"github.com/thaw-project/thaw/internal/container"
)

// Options is a way of starting an image with containerd.
type Options struct {
	Socket      string
	Snapshotter string
	Image       string // reference, in full
	Platform    string // empty: this machine's
	PlainHTTP   bool   // also where the registry is not this machine
	Ready       string // target of container.WaitReady
	Env         []string
	Args        []string // the container's command; none: the image's
	// Tuned pulls as fast as the client can: layers in parallel ranges, unpacked
	// in parallel where the snapshotter can.
	Tuned bool
}

// What a tuned pull uses. containerd's own configuration has 3 downloads and no
// ranges; its documentation of parallel pulls suggests chunks of some MiB.
const (
	tunedDownloads   = 8
	tunedChunkBytes  = 8 << 20
	tunedUnpackLimit = 4
)

// name is that of the container and of its snapshot.
const name = "thaw-bench"

type way struct {
	Options
	client    *client.Client // nil: not prepared
	namespace string
	patterns  []string        // of files and directories with content and snapshots
	before    map[string]bool // what of them was there before
}

// New returns a way of starting an image with containerd.
func New(opts Options) bench.Way {
	mode := "plain"
	if opts.Tuned {
		mode = "tuned"
	}
	return &way{Options: opts, namespace: name + "-" + opts.Snapshotter + "-" + mode}
}

func (w *way) in(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, w.namespace)
}

// Prepare implements [bench.Way].
func (w *way) Prepare(ctx context.Context) error {
	probe, err := new(net.Dialer).DialContext(ctx, "unix", w.Socket) // the client would try again and again
	if err != nil {
		return fmt.Errorf("connect to containerd: %w", err)
	}
	probe.Close()
	c, err := client.New(w.Socket)
	if err != nil {
		return fmt.Errorf("connect to containerd at %s: %w", w.Socket, err)
	}
	if w.patterns, err = w.plugin(w.in(ctx), c); err != nil {
		return errors.Join(err, c.Close())
	}
	if err := c.NamespaceService().Create(ctx, w.namespace, nil); err != nil && !errdefs.IsAlreadyExists(err) {
		return errors.Join(fmt.Errorf("make namespace %s: %w", w.namespace, err), c.Close())
	}
	w.client = c
	if err := w.remove(w.in(ctx)); err != nil { // what one that was killed has left
		return err
	}
	w.before = map[string]bool{}
	for _, path := range w.stored() {
		w.before[path] = true
	}
	return nil
}

// stored lists what containerd has, of other images as well.
func (w *way) stored() []string {
	var all []string
	for _, p := range w.patterns {
		paths, _ := filepath.Glob(p) // our own pattern
		all = append(all, paths...)
	}
	return all
}

// plugin looks for the snapshotter, and returns patterns of what it and the
// content store keep.
func (w *way) plugin(ctx context.Context, c *client.Client) ([]string, error) {
	answer, err := c.IntrospectionService().Plugins(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask containerd at %s for its plugins: %w", w.Socket, err)
	}
	var patterns, there []string
	found := false
	for _, p := range answer.Plugins {
		root := p.Exports["root"]
		switch {
		case p.Type == "io.containerd.content.v1" && root != "":
			patterns = append(patterns, filepath.Join(root, "blobs", "*", "*"), filepath.Join(root, "ingest", "*"))
		case p.Type != "io.containerd.snapshotter.v1":
		case p.InitErr != nil:
			if p.ID == w.Snapshotter {
				return nil, fmt.Errorf("containerd's snapshotter %s does not work here: %s", p.ID, p.InitErr.Message)
			}
		default:
			there = append(there, p.ID)
			if p.ID == w.Snapshotter {
				found = true
				if root != "" {
					patterns = append(patterns, filepath.Join(root, "snapshots", "*"),
						filepath.Join(root, "store", "layers", "*"), filepath.Join(root, "snapshotter", "snapshots", "*")) // thaw's
				}
			}
		}
	}
	if !found {
		return nil, fmt.Errorf("containerd at %s has no snapshotter %q, only %s", w.Socket, w.Snapshotter, strings.Join(there, ", "))
	}
	return patterns, nil
}

// Reset implements [bench.Way]. What was there before the benchmark is not of the
// image, or Start finds out.
func (w *way) Reset(ctx context.Context) ([]string, error) {
	if err := w.remove(w.in(ctx)); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(w.stored(), func(path string) bool { return w.before[path] }), nil
}

// Start implements [bench.Way].
func (w *way) Start(ctx context.Context) (_ *bench.Started, err error) {
	if err := container.Answers(ctx, w.Ready); err == nil {
		return nil, fmt.Errorf("%s answers already, before the container runs", w.Ready)
	}
	inside := w.in(ctx)
	defer func() {
		if err != nil {
			err = errors.Join(err, w.stop(context.WithoutCancel(inside)))
		}
	}()
	begun := time.Now()
	image, err := w.client.Pull(inside, w.Image, w.pullOptions()...)
	if err != nil {
		return nil, fmt.Errorf("pull: %w", err)
	}
	task, err := w.run(inside, image)
	if err != nil {
		return nil, err
	}
	ended, err := task.Wait(inside)
	if err != nil {
		return nil, fmt.Errorf("wait for container: %w", err)
	}
	if err := task.Start(inside); err != nil {
		return nil, fmt.Errorf("start container: %w", err)
	}
	if err := waitReady(ctx, w.Ready, ended); err != nil {
		return nil, err
	}
	took := time.Since(begun)
	if err := w.alone(ctx, image); err != nil {
		return nil, err
	}
	return &bench.Started{
		Ready: took,
		Root:  fmt.Sprintf("/proc/%d/root", task.Pid()),
		// All of it: modes with other snapshotters share content.
		Stop: func(ctx context.Context) error { return w.remove(w.in(ctx)) },
	}, nil
}

// alone says that no other namespace has the image's content: containerd would
// have taken it from there, and the start was not cold.
func (w *way) alone(ctx context.Context, image client.Image) error {
	manifest, err := images.Manifest(w.in(ctx), w.client.ContentStore(), image.Target(), image.Platform())
	if err != nil {
		return fmt.Errorf("read image: %w", err)
	}
	all, err := w.client.NamespaceService().List(ctx)
	if err != nil {
		return fmt.Errorf("list namespaces: %w", err)
	}
	for _, other := range all {
		if other == w.namespace {
			continue
		}
		for _, l := range manifest.Layers {
			if _, err := w.client.ContentStore().Info(namespaces.WithNamespace(ctx, other), l.Digest); err == nil {
				return fmt.Errorf("not cold: containerd has layer %s in its namespace %s as well", l.Digest, other)
			}
		}
	}
	return nil
}

// waitReady waits for the container to answer, or to end.
func waitReady(ctx context.Context, target string, ended <-chan client.ExitStatus) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ready := make(chan error, 1)
	go func() { ready <- container.WaitReady(ctx, target) }()
	select {
	case err := <-ready:
		return err
	case status := <-ended:
		cancel(errors.New("the container ended"))
		<-ready
		return fmt.Errorf("container ended with exit code %d before it was ready", status.ExitCode())
	}
}

func (w *way) pullOptions() []client.RemoteOpt {
	opts := []client.RemoteOpt{
		client.WithPullUnpack,
		client.WithPullSnapshotter(w.Snapshotter),
		client.WithResolver(w.resolver()),
		client.WithImageHandlerWrapper(snapshotters.AppendInfoHandlerWrapper(w.Image)),
	}
	if w.Platform != "" {
		opts = append(opts, client.WithPlatform(w.Platform))
	}
	if w.Tuned {
		opts = append(opts,
			client.WithMaxConcurrentDownloads(tunedDownloads),
			client.WithDownloadLimiter(semaphore.NewWeighted(tunedDownloads)),
			client.WithConcurrentLayerFetchBuffer(tunedChunkBytes),
			client.WithUnpackOpts([]client.UnpackOpt{client.WithUnpackLimiter(semaphore.NewWeighted(tunedUnpackLimit))}))
	}
	return opts
}

// resolver speaks to registries with docker's credentials, and plain http to
// this machine.
func (w *way) resolver() remotes.Resolver {
	plain := func(host string) (bool, error) {
		if w.PlainHTTP {
			return true, nil
		}
		name, _, err := net.SplitHostPort(host)
		if err != nil {
			name = host
		}
		return docker.MatchLocalhost(name)
	}
	credentials := func(host string) (string, string, error) {
		if host == "registry-1.docker.io" {
			host = "https://index.docker.io/v1/"
		}
		auth, err := config.LoadDefaultConfigFile(io.Discard).GetAuthConfig(host)
		if auth.IdentityToken != "" {
			return "", auth.IdentityToken, err
		}
		return auth.Username, auth.Password, err
	}
	return docker.NewResolver(docker.ResolverOptions{Hosts: docker.ConfigureDefaultRegistries(
		docker.WithPlainHTTP(plain), docker.WithAuthorizer(docker.NewDockerAuthorizer(docker.WithAuthCreds(credentials))))})
}

// run makes the container and its task, in this machine's network as thaw does.
func (w *way) run(ctx context.Context, image client.Image) (client.Task, error) {
	c, err := w.client.NewContainer(ctx, name,
		client.WithSnapshotter(w.Snapshotter),
		client.WithNewSnapshot(name, image),
		client.WithNewSpec(oci.WithImageConfigArgs(image, w.Args), oci.WithEnv(w.Env),
			oci.WithHostNamespace(specs.NetworkNamespace), oci.WithHostHostsFile, oci.WithHostResolvconf,
			oci.WithCgroup("/"+w.namespace))) // the default has a parent, which stays
	if err != nil {
		return nil, fmt.Errorf("create container: %w", err)
	}
	task, err := c.NewTask(ctx, cio.NullIO)
	if err != nil {
		return nil, fmt.Errorf("create container: %w", err)
	}
	return task, nil
}

// stopTimeout bounds what ends a container.
const stopTimeout = 30 * time.Second

// stop kills the container and deletes it with its snapshot.
func (w *way) stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	c, err := w.client.LoadContainer(ctx, name)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find container: %w", err)
	}
	task, err := c.Task(ctx, nil)
	if err == nil {
		_, err = task.Delete(ctx, client.WithProcessKill)
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("end container: %w", err)
	}
	if err := c.Delete(ctx, client.WithSnapshotCleanup); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("delete container: %w", err)
	}
	return nil
}

// remove takes everything of the namespace away: the container, images, and with
// them, by containerd's garbage collection, content and snapshots.
func (w *way) remove(ctx context.Context) error {
	if err := w.stop(ctx); err != nil {
		return err
	}
	all, err := w.client.ImageService().List(ctx)
	if err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	for _, i := range all {
		if err := w.client.ImageService().Delete(ctx, i.Name, images.SynchronousDelete()); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("delete image %s: %w", i.Name, err)
		}
	}
	if err := w.removeLeases(ctx); err != nil {
		return err
	}
	return w.empty(ctx)
}

// removeLeases takes away what an interrupted pull has left, and has garbage
// collected.
func (w *way) removeLeases(ctx context.Context) error {
	service := w.client.LeasesService()
	all, err := service.List(ctx)
	if err != nil {
		return fmt.Errorf("list leases: %w", err)
	}
	for _, l := range all {
		if err := service.Delete(ctx, l); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("delete lease: %w", err)
		}
	}
	last, err := service.Create(ctx)
	if err != nil {
		return fmt.Errorf("make lease: %w", err)
	}
	if err := service.Delete(ctx, last, leases.SynchronousDelete); err != nil {
		return fmt.Errorf("collect garbage: %w", err)
	}
	return nil
}

// empty says that no snapshot is left in the namespace.
func (w *way) empty(ctx context.Context) error {
	var left []string
	err := w.client.SnapshotService(w.Snapshotter).Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		left = append(left, i.Name)
		return nil
	})
	if err != nil {
		return fmt.Errorf("list snapshots: %w", err)
	}
	if len(left) > 0 {
		return fmt.Errorf("containerd keeps snapshots after their image is deleted: %s", strings.Join(left, " "))
	}
	return nil
}

// Close implements [bench.Way].
func (w *way) Close(ctx context.Context) error {
	if w.client == nil {
		return nil
	}
	err := w.remove(w.in(ctx))
	if nerr := w.client.NamespaceService().Delete(ctx, w.namespace); nerr != nil && !errdefs.IsNotFound(nerr) {
		err = errors.Join(err, fmt.Errorf("delete namespace %s: %w", w.namespace, nerr))
	}
	return errors.Join(err, w.client.Close())
}
