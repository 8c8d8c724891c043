package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/thaw-project/thaw/internal/container"
	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/lab"
	"github.com/thaw-project/thaw/internal/measure"
	"github.com/thaw-project/thaw/internal/profile"
)

// Exit codes of thaw measure, besides those of all commands.
const (
	exitInvalid      = 3 // the measurement says nothing: not cold, or something was missed
	exitNoPrivileges = 4
)

// runsAuto is --runs for as many as it takes.
const runsAuto = "auto"

type measureOptions struct {
	attach       attachOptions
	image        string
	args         []string // of the container
	runs         string
	cold         string
	mode         string
	compare      string
	compareMode  string
	ready        string
	readyTimeout time.Duration
	requests     []string
	repeat       int
	waitComplete bool
	overhead     bool
	net          string
	mount        string
	plainHTTP    bool
	env          []string
	volumes      []string
	memory       string
	cpus         float64
	dir          string
	name         string
	labels       []string
	json         bool
	jsonFile     string
	quiet        bool
	save         bool
	changedNet   bool
	budget       budgetOptions
	judgment     *judgment // nil: nothing is judged
}

func newMeasureCommand(g *globalOptions) *cobra.Command {
	var opts measureOptions
	cmd := &cobra.Command{
		Use:   "measure [flags] IMAGE --ready TARGET [-- CMD...]",
		Short: "Measure where a cold start's time and bytes go, phase by phase",
		Long: `Measure where a cold start's time and bytes go: starts a container of IMAGE again and
again, each time as cold as it is to be, and says of each phase how long it took, how
well that is known, and how much of it was waiting for bytes. From outside: nothing of
the image is changed, and nothing runs in the container. Drops the page cache of the
whole machine. Needs root.

An image oci:DIR[:TAG] is served from a lab registry with the network --net. Any other
comes from its own registry.

Phases of a start follow one another from the request to readiness:
  queue            until the image is being brought
  image_pull       until the container's root is there
  runtime_init     until its program is executed
  dependency_load  until the burst of files that it loads is over
  app_bootstrap    until it listens (or, behind a parent that listens, takes connections)
  health_wait_container  until it is ready
Beside them: first_request_penalty of each --request (the first one less the median of
the fifth and later ones), and hydration until all of the image is here.

--attach measures containers that somebody else starts through containerd, whatever its
snapshotter: those of a NAME (of nerdctl, of a pod), an ID, or a pattern of images such as
'shop/api:*'; or all. --ready is then asked in the container's own network; without it a
start is over when a port listens. How cold the node was is not known then.

Coldness, proven before each run with cachestat(2):
  L0  nothing of the image is on the node
  L1  all of it is on disk, nothing of it in the page cache
  L2  all of it is in the page cache

Modes: lazy (with an index beside the image; the default of a layout), lazy+bundle,
eager (all of the image is brought first), no-index, auto (as thaw run does by itself;
the default of an image in a registry). docs/measuring.md says what each phase means
and how it is seen, docs/formats/profile.md describes the JSON.

` + budgetHelp + `

Exit codes: 0 done and within all budgets, 1 failed, or a budget or the baseline was
missed, 2 wrong usage, 3 the measurement says nothing (a run was not as cold as it had to
be, something was missed, a budget is inconclusive), 4 not allowed here, 130 interrupted.`,
		Example: `  thaw measure oci:./layout:app --ready http://127.0.0.1:8080/healthz
  thaw measure oci:./layout:app --ready tcp:8080 --request GET:/api/items --compare-mode eager
  thaw measure registry.example.com/app:1.2 --ready tcp:8080 --runs auto --cold L1
  thaw measure oci:./layout:app --ready tcp:8080 --budget 1s --baseline main.json --junit out.xml
  thaw measure --attach 'shop/api:*' --ready http://127.0.0.1:8080/healthz --starts 10`,
		Args: func(cmd *cobra.Command, args []string) error {
			if opts.attach.on {
				if len(args) > 1 {
					return usageError{fmt.Errorf("want one NAME, ID or pattern of images, got %q", args)}
				}
				opts.image = strings.Join(args, "")
				return nil
			}
			if len(args) == 0 {
				return usageError{errors.New("want an IMAGE; see thaw measure --help")}
			}
			opts.image, opts.args = args[0], args[1:]
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if opts.judgment, err = opts.budget.prepare(cmd, g, ""); err != nil { // before anything is measured
				return err
			}
			if opts.attach.on {
				return runMeasureAttach(cmd, g, &opts)
			}
			opts.changedNet = cmd.Flags().Changed("net")
			if at := cmd.ArgsLenAtDash(); len(opts.args) > 0 && at != 1 {
				return usageError{fmt.Errorf("want one IMAGE, and the container's command behind --: got %q", opts.args)}
			}
			return runMeasure(cmd, g, &opts)
		},
	}
	f := cmd.Flags()
	f.StringVar(&opts.runs, "runs", "10", "runs of each image and mode, or auto: until the median is known to 3 %")
	f.StringVar(&opts.cold, "cold", profile.ColdL0, "what a start finds on its node: L0, L1, L2")
	f.StringVar(&opts.mode, "mode", "", "how the image is started, see above")
	f.StringVar(&opts.compare, "compare", "", "another image to compare with, run by run")
	f.StringVar(&opts.compareMode, "compare-mode", "", "another way of starting it to compare with, of --compare's image if there is one")
	f.StringVar(&opts.ready, "ready", "", "the container is ready when this answers: http://HOST:PORT/PATH, or tcp:[HOST:]PORT")
	f.StringVar(&opts.ready, "probe", "", "the same as --ready")
	f.DurationVar(&opts.readyTimeout, "ready-timeout", 5*time.Minute, "how long a start may take")
	f.StringArrayVar(&opts.requests, "request", nil, "request to make once it is ready: METHOD:/PATH; repeatable")
	f.IntVar(&opts.repeat, "repeat", 8, "how often each request is made")
	f.BoolVar(&opts.waitComplete, "wait-complete", false, "follow each start until all of the image is here")
	f.BoolVar(&opts.overhead, "overhead", false, "also start it unobserved, run by run, to say what observing costs")
	f.StringVar(&opts.net, "net", "cloud", "network of the lab registry: "+strings.Join(lab.Profiles, ", "))
	f.StringVar(&opts.mount, "mount", api.ModeAuto, "how lazy modes mount: auto, fanotify, fuse")
	f.BoolVar(&opts.plainHTTP, "plain-http", false, "speak plain http to the image's registry")
	f.StringArrayVarP(&opts.env, "env", "e", nil, "environment variable KEY=VALUE of the container")
	f.StringArrayVarP(&opts.volumes, "volume", "v", nil, "bind mount SRC:DST[:ro] of the container")
	f.StringVarP(&opts.memory, "memory", "m", "", "memory limit of the container, such as 512m")
	f.Float64Var(&opts.cpus, "cpus", 0, "limit of CPUs of the container, such as 1.5")
	f.StringVar(&opts.dir, "dir", "", "where state directories go: ext4, xfs or btrfs (default $TMPDIR, or /var/tmp)")
	f.StringVar(&opts.name, "name", "", "name of the record")
	f.StringArrayVar(&opts.labels, "label", nil, "label KEY=VALUE of the record, such as release=1.2; repeatable")
	f.BoolVar(&opts.json, "json", false, "print the record as JSON")
	f.StringVar(&opts.jsonFile, "json-file", "", "also write the record to this file")
	f.BoolVarP(&opts.quiet, "quiet", "q", false, "say nothing of the runs meanwhile")
	f.BoolVar(&opts.save, "save", true, "keep the record in the state directory, for thaw runs")
	complete(cmd, "cold", profile.ColdL0, profile.ColdL1, profile.ColdL2)
	for _, name := range []string{"mode", "compare-mode"} {
		complete(cmd, name, modeLazy, modeBundle, modeEager, modeNoIndex, modeAuto)
	}
	complete(cmd, "net", lab.Profiles...)
	complete(cmd, "mount", api.ModeAuto, api.ModeFanotify, api.ModeFUSE)
	opts.attach.bind(cmd)
	opts.budget.bind(cmd)
	cmd.AddCommand(newMeasureECSCommand(g), newMeasureKubernetesCommand(g), newMeasureContainerdCommand(g))
	return cmd
}

// modeAuto starts an image as thaw run does by itself.
const modeAuto = measure.ModeAuto

func (o *measureOptions) check() error {
	modes := []string{"", modeAuto, modeLazy, modeBundle, modeEager, modeNoIndex}
	switch {
	case o.ready == "":
		return usageError{errors.New("want --ready: without it nobody knows when a start is over")}
	case o.cold == profile.ColdL3:
		return api.Errorf(api.CodeUnsupported, "use --cold L0, L1 or L2", "--cold L3: not yet: nothing freezes containers here")
	case o.cold != profile.ColdL0 && o.cold != profile.ColdL1 && o.cold != profile.ColdL2:
		return usageError{fmt.Errorf("--cold %q: use L0, L1 or L2", o.cold)}
	case !slices.Contains(modes, o.mode):
		return usageError{fmt.Errorf("--mode %q: use %s", o.mode, strings.Join(modes[1:], ", "))}
	case !slices.Contains(modes, o.compareMode):
		return usageError{fmt.Errorf("--compare-mode %q: use %s", o.compareMode, strings.Join(modes[1:], ", "))}
	case o.overhead && (o.compare != "" || o.compareMode != ""):
		return usageError{errors.New("--overhead or --compare, not both")}
	case o.repeat < 1:
		return usageError{fmt.Errorf("--repeat %d: want at least one", o.repeat)}
	case o.readyTimeout <= 0:
		return usageError{fmt.Errorf("--ready-timeout %v: want a positive time", o.readyTimeout)}
	case o.changedNet && !isLayout(o.image) && !isLayout(o.compare):
		return usageError{errors.New("--net is of the lab registry, which serves oci:DIR:TAG")}
	}
	if err := container.CheckReady(o.ready); err != nil {
		return usageError{err}
	}
	if _, err := lab.Profile(o.net); err != nil {
		return usageError{err}
	}
	if _, err := o.count(); err != nil {
		return err
	}
	if _, err := o.labelMap(); err != nil {
		return err
	}
	if _, err := o.routes(); err != nil {
		return err
	}
	if _, err := (&runOptions{volumes: o.volumes, memory: o.memory, cpus: o.cpus, network: container.NetworkHost}).container(nil); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return &exitError{exitNoPrivileges, api.Errorf(api.CodeUnsupported, "use sudo", "starting containers, seeing them and dropping the page cache needs root")}
	}
	return nil
}

func isLayout(image string) bool { return strings.HasPrefix(image, "oci:") }

// count is how many runs are wanted; 0: as many as it takes.
func (o *measureOptions) count() (int, error) {
	if o.runs == runsAuto {
		return 0, nil
	}
	n, err := strconv.Atoi(o.runs)
	if err != nil || n < 1 {
		return 0, usageError{fmt.Errorf("--runs %q: want a number from 1 on, or auto", o.runs)}
	}
	return n, nil
}

func (o *measureOptions) labelMap() (map[string]string, error) {
	labels := map[string]string{}
	for _, l := range o.labels {
		key, value, ok := strings.Cut(l, "=")
		if !ok || key == "" {
			return nil, usageError{fmt.Errorf("--label %q: want KEY=VALUE", l)}
		}
		labels[key] = value
	}
	// What no record may have is said before anything is measured.
	r := profile.Record{Version: profile.Version, ID: profile.NewID(time.Now()), Begun: time.Now(), Name: o.name, Labels: labels}
	if !o.attach.on {
		r.Subjects = []profile.Subject{{Name: o.image, Image: o.image, Command: o.args, Probe: o.ready}}
	}
	if err := r.Check(); err != nil {
		return nil, usageError{err}
	}
	if len(labels) == 0 {
		return nil, nil
	}
	return labels, nil
}

func (o *measureOptions) routes() ([]measure.Route, error) {
	var all []measure.Route
	for _, s := range o.requests {
		r, err := measure.ParseRoute(s)
		if err != nil {
			return nil, usageError{err}
		}
		all = append(all, r)
	}
	return all, nil
}

// measured is one image and mode of a measurement.
type measured struct {
	name, image, mode string
	unobserved        bool
}

// subjects are what is measured, with names that differ.
func (o *measureOptions) subjects() []measured {
	mode := func(image, wanted string) string {
		if isLayout(image) {
			return cmp.Or(wanted, modeLazy)
		}
		return cmp.Or(wanted, modeAuto)
	}
	all := []measured{{image: o.image, mode: mode(o.image, o.mode)}}
	if o.compare != "" || o.compareMode != "" {
		image := cmp.Or(o.compare, o.image)
		all = append(all, measured{image: image, mode: mode(image, cmp.Or(o.compareMode, o.mode))})
	}
	if o.overhead {
		all = append(all, all[0])
		all[1].unobserved = true
	}
	for i := range all {
		all[i].name = shortName(all[i].image)
		if len(all) > 1 && all[0].mode != all[1].mode {
			all[i].name += " " + all[i].mode
		}
	}
	if len(all) > 1 && all[0].name == all[1].name {
		if all[0].image != all[1].image {
			all[0].name, all[1].name = all[0].image, all[1].image
		}
		if o.overhead {
			all[1].name += " unobserved"
		}
		if all[0].name == all[1].name { // the same twice shows how much runs differ by themselves
			all[1].name += " again"
		}
	}
	return all
}

// shortName is the last part of an image's name.
func shortName(image string) string {
	if isLayout(image) {
		dir, tag := splitLayout(strings.TrimPrefix(image, "oci:"))
		return cmp.Or(tag, path.Base(dir))
	}
	name, _, _ := strings.Cut(path.Base(image), "@")
	return name
}

func runMeasure(cmd *cobra.Command, g *globalOptions, opts *measureOptions) (err error) {
	if err := opts.check(); err != nil {
		return err
	}
	if _, err := g.load(); err != nil { // before it is too late
		return err
	}
	base := cmp.Or(opts.dir, os.Getenv("TMPDIR"), "/var/tmp")
	const exe = "/proc/self/exe"
	if err := measure.RemoveStale(cmd.Context(), exe, base); err != nil {
		fmt.Fprintf(cmd.ErrOrStderr(), "thaw: warning: clean up after a measurement that was killed: %v\n", err)
	}
	dir, err := measure.NewDir(base)
	if err != nil {
		return err
	}
	m := &measurer{measureOptions: opts, dir: dir, exe: exe}
	defer func() { err = errors.Join(err, m.close()) }()
	subjects, err := m.list(cmd.Context())
	if err != nil {
		return err
	}
	runs, err := opts.count()
	if err != nil {
		return err
	}
	show := newMeasureProgress(cmd.ErrOrStderr(), opts.quiet)
	record, err := measure.Run(cmd.Context(), measure.Options{Subjects: subjects, Runs: runs, Progress: show.run})
	show.clear()
	var cut error
	if err != nil {
		cut = measureError(cmd.Context(), err)
		if record == nil || !slices.ContainsFunc(record.Subjects, hasGood) {
			return cut
		}
		opts.judgment = nil // of fewer runs than were wanted nothing passes
		cmd.SetContext(context.WithoutCancel(cmd.Context()))
	}
	if err := m.complete(record); err != nil {
		return errors.Join(cut, err)
	}
	err = opts.finish(cmd, g, record)
	if cut != nil {
		return cut // whatever else is wrong with it
	}
	return err
}

// hasGood reports whether any run of a subject went well.
func hasGood(s profile.Subject) bool {
	return slices.ContainsFunc(s.Runs, func(r profile.Run) bool { return r.Good() })
}

// measureError gives an error of a measurement its exit code.
func measureError(ctx context.Context, err error) error {
	var cold *measure.NotColdError
	if ctx.Err() == nil && errors.As(err, &cold) {
		return &exitError{exitInvalid, api.Errorf("", "end what else uses the page cache, or the image", "%v", err)}
	}
	return err
}

// measurer makes the subjects of a measurement.
type measurer struct {
	*measureOptions
	dir      string
	exe      string
	benchers []*bencher
}

// list makes the subjects, with their labs.
func (m *measurer) list(ctx context.Context) ([]*measure.Subject, error) {
	routes, err := m.routes()
	if err != nil {
		return nil, err
	}
	var all []*measure.Subject
	for i, one := range m.subjects() {
		// A lab of its own: an image has one index in each.
		b := &bencher{benchOptions: &benchOptions{image: one.image, modes: []string{one.mode}, net: m.net, ready: m.ready, env: m.env, args: m.args, mount: m.mount, plainHTTP: m.plainHTTP},
			dir: filepath.Join(m.dir, strconv.Itoa(i)), exe: m.exe, runFlags: m.containerFlags()}
		m.benchers = append(m.benchers, b)
		if err := os.Mkdir(b.dir, 0o700); err != nil {
			return nil, err
		}
		if err := b.serve(ctx); err != nil {
			return nil, err
		}
		start, registry := b.options(one.mode)
		s := &measure.Subject{Name: one.name, Image: one.image, Mode: one.mode, Cold: m.cold, Start: start, Registry: registry, Routes: routes, Repeat: m.repeat,
			WaitComplete: m.waitComplete, Unobserved: one.unobserved, ReadyTimeout: m.readyTimeout}
		all = append(all, s)
	}
	return all, nil
}

// containerFlags are thaw run's that are not bench's too.
func (m *measurer) containerFlags() []string {
	var flags []string
	for _, v := range m.volumes {
		flags = append(flags, "-v", v)
	}
	if m.memory != "" {
		flags = append(flags, "-m", m.memory)
	}
	if m.cpus > 0 {
		flags = append(flags, "--cpus", fmt.Sprint(m.cpus))
	}
	return flags
}

func (m *measurer) close() error {
	var err error
	for _, b := range m.benchers {
		err = errors.Join(err, b.close())
	}
	return errors.Join(err, os.RemoveAll(m.dir))
}

// complete adds to a record what only the command line knows.
func (m *measurer) complete(r *profile.Record) error {
	r.ID = profile.NewID(r.Begun)
	r.Name, r.Tool = m.name, buildVersion()
	var err error
	if r.Labels, err = m.labelMap(); err != nil {
		return err
	}
	r.Network = profile.Network{Name: "real"}
	if isLayout(m.image) {
		n, err := lab.Profile(m.net)
		if err != nil {
			return err
		}
		r.Network = profile.Network{Name: m.net, LatencyMs: milliseconds(n.TTFB), Bandwidth: n.Rate}
	}
	return nil
}

// finish writes, keeps and prints a record.
func (o *measureOptions) finish(cmd *cobra.Command, g *globalOptions, r *profile.Record) error {
	b, err := profile.Encode(r)
	if errors.Is(err, profile.ErrTooLarge) { // of programs that open very many files, in many runs
		r.Shrink()
		b, err = profile.Encode(r)
	}
	if err != nil {
		return err
	}
	if o.jsonFile != "" {
		if err := writeFile(o.jsonFile, b); err != nil {
			return err
		}
	}
	if o.save {
		if err := g.putRecord(cmd.Context(), cmd, r); err != nil {
			return err
		}
	}
	if o.json {
		_, err = cmd.OutOrStdout().Write(b)
	} else {
		err = printMeasured(cmd.OutOrStdout(), r)
	}
	if err == nil && o.overhead {
		to := cmd.OutOrStdout()
		if o.json {
			to = cmd.ErrOrStderr()
		}
		err = printOverhead(to, &r.Subjects[0], &r.Subjects[1])
	}
	if err != nil {
		return err
	}
	if o.judgment != nil {
		to := cmd.OutOrStdout()
		if o.json {
			to = cmd.ErrOrStderr()
		}
		err = o.judgment.judge(cmd, r, false, to)
	}
	var exit *exitError
	if errors.As(err, &exit) && exit.code == exitFailed {
		return err // whatever was missed besides
	}
	for _, s := range r.Signals {
		if s.Used && strings.HasPrefix(s.Reason, "incomplete") {
			return &exitError{exitInvalid, api.Errorf("", "", "something was missed: %s: %s", s.Name, s.Reason)}
		}
	}
	return err
}
