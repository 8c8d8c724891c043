package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/thaw-project/thaw/internal/bench"
	"github.com/thaw-project/thaw/internal/container"
	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/lab"
)

// Modes of a benchmark; containerd's are containerd/SNAPSHOTTER, and
// containerd/SNAPSHOTTER+tuned.
const (
	modeEager   = "eager"
	modeNoIndex = "no-index"
	modeLazy    = "lazy"
	modeBundle  = "lazy+bundle"
	modeWarm    = "warm"
)

var benchModes = []string{modeEager, modeNoIndex, modeLazy, modeBundle, modeWarm}

// exitNoisy is the exit code when the runs are too noisy to say.
const exitNoisy = 3

type benchOptions struct {
	image       string
	modes       []string
	peers       []peer
	tuned       bool
	net         string
	latency     time.Duration
	bandwidth   string
	runs        int
	ready       string
	read        string
	pages       []string
	env         []string
	args        []string
	mount       string
	plainHTTP   bool
	coldDaemon  bool
	dir         string
	maxSpread   float64
	json        bool
	markdown    bool
	jsonFile    string
	changedNet  bool
	changedLine bool
}

func newBenchCommand() *cobra.Command {
	var opts benchOptions
	cmd := &cobra.Command{
		Use:   "bench --image IMAGE --ready TARGET [flags] [-- CMD...]",
		Short: "Time starts of an image in several ways, side by side",
		Long: `Time starts of an image in several ways, side by side: interleaved runs, each cold
one with nothing of the image on the node and the page cache dropped, and that
proven with cachestat(2). Drops the page cache of the whole machine. Needs root.

An image oci:DIR[:TAG] is served from a lab registry with the network --net, which
also counts what is fetched. Any other comes from its own registry; what the floor
is computed from then is given with --latency and --bandwidth, and mode lazy needs
an index there (thaw index build --push).

Modes:
  eager       the whole image is brought first (thaw run --mount=eager, no index)
  no-index    as the first start of an image without an index
  lazy        with the index beside the image
  lazy+bundle with a start-up bundle in it, of a start that was recorded before,
              not timed. Of a real registry both take what index is there
  warm        everything is here; always measured, since the floor needs it
  containerd/NAME[+tuned]  pull and run with containerd: see --vs-containerd. Uses
              the program thaw-bench-containerd (make build-bench), beside thaw or in PATH

The floor of a start is round trips x latency + needed bytes / bandwidth + a warm
start. Needed is all of the image for ways that bring all of it, else the least
that a start was seen to get by with. docs/formats/bench.md describes the JSON.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 too noisy to say (a mode's middle
half of runs lies further apart than --max-spread of its median), 130 interrupted.`,
		Example: `  thaw bench --image oci:./layout:nginx --ready http://127.0.0.1:8080/ --runs 10
  thaw bench --image registry.example.com/app:1.2 --ready tcp:8080 --latency 20ms --bandwidth 250MB`,
		Args: func(_ *cobra.Command, args []string) error {
			opts.args = args
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			opts.changedNet = cmd.Flags().Changed("net")
			opts.changedLine = cmd.Flags().Changed("latency") || cmd.Flags().Changed("bandwidth")
			return runBench(cmd, &opts)
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false)
	f.StringVar(&opts.image, "image", "", "image to start: oci:DIR[:TAG], or a reference")
	f.StringSliceVar(&opts.modes, "mode", []string{modeEager, modeNoIndex, modeLazy, modeBundle, modeWarm}, "ways of starting it, see above")
	f.Var((*socketValue)(&opts.peers), "vs-containerd", "also with the containerd that listens on this socket; repeatable")
	f.Var((*snapshotterValue)(&opts.peers), "snapshotter", "snapshotter of the last --vs-containerd (default overlayfs); repeatable")
	f.BoolVar(&opts.tuned, "tuned", false, "each containerd also with parallel ranges and parallel unpacking")
	f.StringVar(&opts.net, "net", "cloud", "network of the lab registry: "+strings.Join(lab.Profiles, ", "))
	f.DurationVar(&opts.latency, "latency", 0, "of a real registry: time to the first byte")
	f.StringVar(&opts.bandwidth, "bandwidth", "", "of a real registry: bytes a second in all, such as 100MB")
	f.IntVar(&opts.runs, "runs", 5, "runs of each mode")
	f.StringVar(&opts.ready, "ready", "", "the container is ready when this answers: http://HOST:PORT/PATH, or tcp:[HOST:]PORT")
	f.StringVar(&opts.read, "read", "", "file of the image to read twice after the start")
	f.StringSliceVar(&opts.pages, "pages", nil, "URLs to get twice after the start")
	f.StringArrayVarP(&opts.env, "env", "e", nil, "environment variable KEY=VALUE of the container")
	f.StringVar(&opts.mount, "mount", api.ModeAuto, "how lazy modes mount: auto, fanotify, fuse")
	f.BoolVar(&opts.plainHTTP, "plain-http", false, "speak plain http to the image's registry")
	f.BoolVar(&opts.coldDaemon, "cold-daemon", false, "starting thaw's daemon is part of a start (default: a node has one running)")
	f.StringVar(&opts.dir, "dir", "", "where state directories go: ext4, xfs or btrfs (default $TMPDIR, or /var/tmp)")
	f.Float64Var(&opts.maxSpread, "max-spread", 0.2, "share of the median that the middle half of the runs may lie apart")
	f.BoolVar(&opts.json, "json", false, "print JSON")
	f.BoolVar(&opts.markdown, "markdown", false, "print Markdown")
	f.StringVar(&opts.jsonFile, "json-file", "", "also write the JSON to this file")
	complete(cmd, "mode", benchModes...)
	complete(cmd, "net", lab.Profiles...)
	complete(cmd, "mount", api.ModeAuto, api.ModeFanotify, api.ModeFUSE)
	return cmd
}

func (o *benchOptions) check() error {
	switch {
	case o.image == "":
		return usageError{errors.New("want --image; see thaw bench --help")}
	case o.ready == "":
		return usageError{errors.New("want --ready: without it nobody knows when a start is over")}
	case o.runs < 1:
		return usageError{fmt.Errorf("--runs %d: want at least one", o.runs)}
	case o.maxSpread <= 0:
		return usageError{fmt.Errorf("--max-spread %v: want a positive number", o.maxSpread)}
	case o.latency < 0:
		return usageError{fmt.Errorf("--latency %v: want a positive time", o.latency)}
	case o.json && o.markdown:
		return usageError{errors.New("--json or --markdown, not both")}
	case o.local() && o.changedLine:
		return usageError{errors.New("--latency and --bandwidth describe a real registry; a layout is served with --net")}
	case !o.local() && o.changedNet:
		return usageError{errors.New("--net is of the lab registry, which serves oci:DIR:TAG")}
	}
	if err := container.CheckReady(o.ready); err != nil {
		return usageError{err}
	}
	if _, err := lab.Profile(o.net); err != nil {
		return usageError{err}
	}
	for _, m := range o.modes {
		if !slices.Contains(benchModes, m) {
			return usageError{fmt.Errorf("--mode %q: use %s", m, strings.Join(benchModes, ", "))}
		}
	}
	switch o.mount {
	case api.ModeAuto, api.ModeFanotify, api.ModeFUSE:
	default:
		return usageError{fmt.Errorf("--mount %q: use auto, fanotify or fuse", o.mount)}
	}
	if os.Geteuid() != 0 {
		return api.Errorf(api.CodeUnsupported, "use sudo", "starting containers and dropping the page cache needs root")
	}
	return nil
}

// local reports whether the image is a layout, which is served from the lab.
func (o *benchOptions) local() bool { return strings.HasPrefix(o.image, "oci:") }

// line is the way to the registry; nil where it is not known.
func (o *benchOptions) line() (*bench.Line, error) {
	if o.local() {
		n, err := lab.Profile(o.net)
		return &bench.Line{Latency: n.TTFB, Bandwidth: n.Rate}, err
	}
	if !o.changedLine {
		return nil, nil
	}
	line := &bench.Line{Latency: o.latency}
	if o.bandwidth != "" {
		var err error
		if line.Bandwidth, err = units.FromHumanSize(strings.TrimSuffix(o.bandwidth, "/s")); err != nil {
			return nil, usageError{fmt.Errorf("--bandwidth: %w", err)}
		}
	}
	return line, nil
}

func runBench(cmd *cobra.Command, opts *benchOptions) (err error) {
	if err := opts.check(); err != nil {
		return err
	}
	line, err := opts.line()
	if err != nil {
		return err
	}
	peerExe := ""
	if len(opts.peers) > 0 {
		if peerExe, err = findPeerExe(); err != nil {
			return err
		}
	}
	dir, err := os.MkdirTemp(cmp.Or(opts.dir, os.Getenv("TMPDIR"), "/var/tmp"), "thaw-bench-")
	if err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	b := &bencher{peerExe: peerExe, benchOptions: opts, dir: dir, exe: "/proc/self/exe"}
	defer func() { err = errors.Join(err, b.close()) }()
	if err := b.serve(cmd.Context()); err != nil {
		return err
	}
	result, err := bench.Run(cmd.Context(), bench.Options{Modes: b.list(), Runs: opts.runs, Read: opts.read, Pages: opts.pages, Line: line,
		Limit: opts.maxSpread, Progress: func(format string, args ...any) {
			fmt.Fprintf(cmd.ErrOrStderr(), "thaw: bench: "+format+"\n", args...)
		}})
	if err != nil {
		return err
	}
	result.Image = opts.image
	if line != nil {
		result.Network.Name = "real"
		if opts.local() {
			result.Network.Name = opts.net
		}
	}
	if err := opts.print(cmd, result); err != nil {
		return err
	}
	if result.Noise.Verdict == bench.Noisy {
		return &exitError{exitNoisy, api.Errorf("", "let nothing else run, or take more --runs", "too noisy to say: %s", strings.Join(result.Noise.Modes, ", "))}
	}
	return nil
}

func (o *benchOptions) print(cmd *cobra.Command, r *bench.Result) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode result: %w", err)
	}
	b = append(b, '\n')
	if o.jsonFile != "" {
		if err := os.WriteFile(o.jsonFile, b, 0o644); err != nil {
			return fmt.Errorf("write result: %w", err)
		}
	}
	switch {
	case o.json:
		_, err = cmd.OutOrStdout().Write(b)
	case o.markdown:
		err = r.WriteMarkdown(cmd.OutOrStdout())
	default:
		err = r.WriteText(cmd.OutOrStdout())
	}
	return err
}

// bencher makes the modes of a benchmark.
type bencher struct {
	*benchOptions
	dir      string
	exe      string
	peerExe  string
	registry *bench.Registry // nil: a real one
	ref      string
	// What lazy+bundle uses: another lab, for an image has one index in each.
	bundleRegistry *bench.Registry
	bundleRef      string
	runFlags       []string // of thaw run, besides those of the options
	roots          int
}

// serve starts the labs for an image of a layout.
func (b *bencher) serve(ctx context.Context) (err error) {
	b.ref, b.bundleRef = b.image, b.image
	if !b.local() {
		return nil
	}
	if b.registry, b.ref, err = b.serveLayout(ctx); err != nil || !slices.Contains(b.modes, modeBundle) {
		return err
	}
	b.bundleRegistry, b.bundleRef, err = b.serveLayout(ctx)
	return err
}

// serveLayout starts a lab, and returns what the image is called in it. The lab
// may be there also when there is an error.
func (b *bencher) serveLayout(ctx context.Context) (*bench.Registry, string, error) {
	layout, name := splitLayout(strings.TrimPrefix(absLayout(b.image), "oci:"))
	r, err := bench.ServeLayout(ctx, b.exe, layout, b.net)
	if err != nil {
		return nil, "", err
	}
	var names []string
	for _, i := range r.Images {
		names = append(names, i.Name)
		if name == "" && len(r.Images) == 1 || i.Name == name || i.Name == name+":latest" {
			return r, r.Address + "/" + i.Name, nil
		}
	}
	return r, "", api.Errorf(api.CodeNotFound, "it has "+strings.Join(names, ", "), "the layout %s has no image %q", layout, name)
}

// splitLayout separates DIR[:TAG].
func splitLayout(s string) (dir, name string) {
	dir, name, _ = strings.Cut(s, ":")
	return dir, name
}

func (b *bencher) close() error {
	var err error
	for _, r := range []*bench.Registry{b.registry, b.bundleRegistry} {
		if r != nil {
			err = errors.Join(err, r.Close())
		}
	}
	return errors.Join(err, os.RemoveAll(b.dir))
}

// root is a new state directory; the name is short, for sockets are in it.
func (b *bencher) root() string {
	b.roots++
	return filepath.Join(b.dir, fmt.Sprint(b.roots))
}

// list is the modes that were asked for, and warm.
func (b *bencher) list() []bench.Mode {
	var modes []bench.Mode
	names := slices.Compact(slices.Clone(b.modes))
	if !slices.Contains(names, modeWarm) {
		names = append(names, modeWarm)
	}
	for _, name := range names {
		modes = append(modes, b.mode(name))
	}
	for _, p := range b.peers {
		modes = append(modes, b.peer(p, false))
		if b.tuned {
			modes = append(modes, b.peer(p, true))
		}
	}
	return modes
}

func (b *bencher) mode(name string) bench.Mode {
	o, registry := b.options(name)
	m := bench.Mode{Name: name, Registry: registry, Warm: o.Warm, Eager: name == modeEager || name == modeNoIndex, Way: bench.NewThaw(o)}
	if name == modeLazy || name == modeBundle {
		o.RunFlags, o.First, o.Root = append(slices.Clone(o.RunFlags), "--background=off"), nil, b.root()
		m.Needs = bench.NewThaw(o)
	}
	return m
}

// options are those of a way of thaw's, and the lab that it fetches from.
func (b *bencher) options(name string) (o bench.ThawOptions, registry *bench.Registry) {
	registry = b.registry
	switch name {
	case modeEager:
		o.ImageFlags, o.RunFlags = []string{"--index=ignore"}, []string{"--mount=eager"}
	case modeNoIndex:
		o.ImageFlags, o.RunFlags = []string{"--index=ignore"}, []string{"--mount=" + b.mount}
	case modeLazy, modeBundle:
		o.ImageFlags, o.RunFlags, o.First = []string{"--index=require"}, []string{"--mount=" + b.mount}, b.pushIndex
		if name == modeBundle {
			registry, o.Image, o.First = b.bundleRegistry, b.bundleRef, b.pushBundle
		}
	case modeWarm:
		registry, o.Warm, o.RunFlags = nil, true, []string{"--mount=" + b.mount}
	default:
		o.RunFlags = []string{"--mount=" + b.mount}
	}
	o.Exe, o.Root, o.Ready, o.Args, o.ColdDaemon = b.exe, b.root(), b.ready, b.args, b.coldDaemon
	o.Image = cmp.Or(o.Image, b.ref)
	if b.plainHTTP {
		o.ImageFlags = append(o.ImageFlags, "--plain-http")
	}
	o.RunFlags = append(o.RunFlags, b.containerFlags()...)
	return o, registry
}

// containerFlags are thaw run's for the container itself.
func (b *bencher) containerFlags() []string {
	flags := slices.Clone(b.runFlags)
	for _, e := range b.env {
		flags = append(flags, "-e", e)
	}
	return flags
}

// pushIndex puts the image's index beside it in the lab. A real registry is not
// written to.
func (b *bencher) pushIndex(ctx context.Context) error {
	if b.registry == nil {
		return nil
	}
	root := b.root()
	defer os.RemoveAll(root)
	return bench.RunThaw(ctx, b.exe, "--root", root, "index", "build", "--push", b.ref)
}

// pushBundle puts an index with a start-up bundle beside the image in its lab: an
// index, a start that is recorded, and the index again.
func (b *bencher) pushBundle(ctx context.Context) (err error) {
	if b.bundleRegistry == nil {
		return nil
	}
	root := b.root()
	thaw := func(args ...string) error {
		return bench.RunThaw(ctx, b.exe, append([]string{"--root", root}, args...)...)
	}
	defer func() {
		err = errors.Join(err, bench.NewThaw(bench.ThawOptions{Exe: b.exe, Root: root}).Close(context.WithoutCancel(ctx)))
	}()
	run := []string{"run", "--index=require", "--mount=" + b.mount, "--ready", b.ready, "--exit-when-ready"}
	run = append(run, b.containerFlags()...)
	recorded := filepath.Join(root, "recorded")
	for _, args := range [][]string{
		{"index", "build", b.bundleRef}, // kept on the node that records
		slices.Concat(run, []string{b.bundleRef}, b.args),
		{"trace", "export", b.bundleRef, recorded},
		{"index", "build", "--push", "--trace", recorded, b.bundleRef},
	} {
		if err := thaw(args...); err != nil {
			return err
		}
	}
	return nil
}
