package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/install"
	"github.com/thaw-project/thaw/internal/snapshotter"
	"github.com/thaw-project/thaw/internal/tomledit"
)

type installOptions struct {
	config  string
	destdir string
	socket  string
	whole   bool
	restart bool
	dryRun  bool
	asJSON  bool
	pod     bool
}

// installReport is what install and uninstall say.
type installReport struct {
	Config  string         `json:"config"`
	Backup  string         `json:"backup,omitempty"`
	Changed bool           `json:"changed"`
	DryRun  bool           `json:"dryRun"`
	Files   []install.File `json:"files"`
	Diff    string         `json:"diff,omitempty"`
	Notes   []string       `json:"notes,omitempty"`
	Next    []string       `json:"next,omitempty"` // commands that are left to the user
}

func newInstallCommand(g *globalOptions) *cobra.Command {
	cmd := &cobra.Command{Use: "install", Short: "Plug thaw into what runs containers on this host"}
	return group(cmd, newInstallContainerdCommand(g))
}

func newUninstallCommand(g *globalOptions) *cobra.Command {
	cmd := &cobra.Command{Use: "uninstall", Short: "Take back what thaw install did"}
	return group(cmd, newUninstallContainerdCommand(g))
}

func newInstallContainerdCommand(g *globalOptions) *cobra.Command {
	var opts installOptions
	cmd := &cobra.Command{
		Use:   "containerd",
		Short: "Make thaw a snapshotter of this host's containerd",
		Long: `Make thaw a snapshotter of this host's containerd: install this program and its
systemd service, and add the snapshotter thaw to containerd's configuration,
together with a runtime handler thaw for Kubernetes' pods.

The node is not taken over: what names no snapshotter goes on as before. Pods
choose thaw by a RuntimeClass with the handler thaw, nerdctl and ctr by
--snapshotter thaw. --default is for a node on which everything shall use it.

containerd's configuration keeps its comments and order; each changed place says
what was there. Where it imports a directory (*.toml, version 3 or newer) only a
file is put there. containerd itself checks the result, where it is found; what
it cannot read, or would read otherwise than before, is taken back. A copy of the
old file stays beside it. Doing it again changes nothing.

Nothing is restarted without --restart. With it thaw and containerd are, in this
order; should containerd not start, it gets its old configuration.`,
		Example: `  thaw install containerd --dry-run
  thaw install containerd --restart
  thaw install containerd --containerd-config /var/lib/rancher/k3s/agent/etc/containerd/config.toml`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if opts.pod {
				return runPod(cmd, g, &opts)
			}
			return runInstall(cmd, g, &opts)
		},
	}
	opts.bind(cmd)
	f := cmd.Flags()
	f.StringVar(&opts.socket, "socket", install.DefaultSocket, "where the daemon listens for containerd")
	f.BoolVar(&opts.whole, "default", false, "have Kubernetes' pods use thaw unless they say otherwise")
	f.StringVar(&opts.config, "containerd-config", install.DefaultConfig, "containerd's configuration")
	f.BoolVar(&opts.pod, "pod", false, "on the node of this pod, until its DaemonSet or the node's label "+nodeLabel+" is gone: see deploy/kubernetes")
	return cmd
}

func newUninstallContainerdCommand(g *globalOptions) *cobra.Command {
	var opts installOptions
	cmd := &cobra.Command{
		Use:   "containerd",
		Short: "Take thaw out of this host's containerd",
		Long: `Take back what thaw install containerd did: containerd's configuration is as it was
but for what others changed in it since, and files that were not there are gone.

It is refused as long as containerd has snapshots of thaw, and says which:
containers and images that use them have to be removed first. What is in the
state directory stays.`,
		Example: `  thaw uninstall containerd --dry-run
  thaw uninstall containerd --restart`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runUninstall(cmd, g, &opts) },
	}
	opts.bind(cmd)
	cmd.Flags().StringVar(&opts.config, "containerd-config", "", "containerd's configuration (default the one of the installation)")
	return cmd
}

func (o *installOptions) bind(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVar(&o.restart, "restart", false, "restart what has to be")
	f.BoolVar(&o.dryRun, "dry-run", false, "say what would change, and change nothing")
	f.BoolVar(&o.asJSON, "json", false, "print JSON")
	f.StringVar(&o.destdir, "destdir", "", "work on the host whose files are in this directory, such as an image that is being built")
}

func (o *installOptions) plan(g *globalOptions) (install.Options, error) {
	cfg, err := g.load()
	if err != nil {
		return install.Options{}, err
	}
	if o.destdir != "" && o.restart {
		return install.Options{}, usageError{errors.New("--restart is for this host, not for --destdir")}
	}
	for _, path := range []string{o.config, o.socket, cfg.Root} {
		if path != "" && !filepath.IsAbs(path) {
			return install.Options{}, usageError{fmt.Errorf("%s: name it from the root", path)}
		}
	}
	return install.Options{Config: o.config, Destdir: o.destdir, Socket: o.socket, Root: cfg.Root, Default: o.whole}, nil
}

func runInstall(cmd *cobra.Command, g *globalOptions, opts *installOptions) error {
	o, err := opts.plan(g)
	if err != nil {
		return err
	}
	if o.Program, err = os.ReadFile("/proc/self/exe"); err != nil { // its name may be of another mount namespace
		return fmt.Errorf("read own program: %w", err)
	}
	p, err := install.New(cmd.Context(), o)
	if err != nil {
		return installHint(err)
	}
	return opts.carryOut(cmd, p)
}

// installHint adds the way out, where there is one.
func installHint(err error) error {
	var syntax *tomledit.SyntaxError
	var generated *install.GeneratedError
	var marks *install.MarksError
	hint := ""
	switch {
	case errors.Is(err, tomledit.ErrForm): // which may say where, too
		hint = "docs/containerd.md has the settings, to be put there by hand"
	case errors.As(err, &syntax):
		hint = "mend it first: containerd cannot read it either"
	case errors.As(err, &generated):
		hint = "docs/kubernetes.md says what to put into its template"
	case errors.As(err, &marks):
		hint = "another program has written it anew: take out proxy_plugins.thaw and what names thaw, as docs/containerd.md has it, then again"
	case errors.Is(err, install.ErrVersion):
		hint = `containerd config migrate prints it in the newest version`
	default:
		return err
	}
	return &api.Error{Message: err.Error(), Hint: hint, Code: api.CodeInvalid}
}

func runUninstall(cmd *cobra.Command, g *globalOptions, opts *installOptions) error {
	o, err := opts.plan(g)
	if err != nil {
		return err
	}
	p, err := install.NewEnd(o)
	if err != nil {
		return installHint(err)
	}
	if err := unused(cmd.Context(), p.Socket(), filepath.Join("/", opts.destdir, p.Root())); err != nil && !opts.dryRun {
		return err
	} else if err != nil {
		p.Notes = append(p.Notes, err.Error())
	}
	return opts.carryOut(cmd, p)
}

// shownSnapshots is how many snapshots an error names.
const shownSnapshots = 10

// unused returns an error that names the snapshots that containerd has.
func unused(ctx context.Context, socket, root string) error {
	if _, err := os.Stat(filepath.Join(root, "snapshotter")); errors.Is(err, os.ErrNotExist) {
		return nil // it never was a snapshotter
	}
	held, err := snapshotter.List(ctx, socket)
	if err != nil {
		return api.Errorf(api.CodeInUse, "start it: systemctl start thaw", "thaw's daemon does not say whether containerd has snapshots of it: %v", err)
	}
	if len(held) == 0 {
		return nil
	}
	var containers, images []string
	for _, h := range held {
		namespace, name := splitKey(h.Key)
		switch {
		case h.Container:
			containers = append(containers, namespace+"/"+name)
		case h.Image != "":
			images = append(images, h.Image)
		default:
			images = append(images, "those of namespace "+namespace)
		}
	}
	var what []string
	if len(containers) > 0 {
		what = append(what, "containers "+someOf(containers))
	}
	if len(images) > 0 {
		what = append(what, "images "+someOf(images))
	}
	return api.Errorf(api.CodeInUse, "remove them first: ctr -n NAMESPACE containers rm ID, ctr -n NAMESPACE images rm --sync NAME", "containerd has %d snapshots of thaw: %s",
		len(held), strings.Join(what, "; "))
}

// someOf names each once, and the first of many.
func someOf(names []string) string {
	slices.Sort(names)
	names = slices.Compact(names)
	if n := len(names); n > shownSnapshots {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:shownSnapshots], ", "), n-shownSnapshots)
	}
	return strings.Join(names, ", ")
}

// splitKey takes a key of containerd's apart, which is namespace/number/name.
func splitKey(key string) (namespace, name string) {
	namespace, rest, _ := strings.Cut(key, "/")
	_, name, ok := strings.Cut(rest, "/")
	if !ok {
		return namespace, rest
	}
	return namespace, name
}

// carryOut does what was planned, and reports it.
func (o *installOptions) carryOut(cmd *cobra.Command, p *install.Plan) error {
	ctx := cmd.Context()
	r := installReport{Config: p.Config, Backup: p.Backup, Changed: p.Changed(), DryRun: o.dryRun, Files: p.Files, Diff: p.Diff()}
	if !o.dryRun {
		if err := p.Run(ctx, o.restart); err != nil {
			return err
		}
	}
	r.Notes = p.Notes
	if !o.restart && r.Changed && o.destdir == "" {
		if p.Managed() {
			for _, c := range p.Next(ctx) {
				r.Next = append(r.Next, strings.Join(c, " "))
			}
		} else {
			r.Notes = append(r.Notes, p.ByHand())
		}
	}
	if o.asJSON {
		return printJSON(cmd, r)
	}
	return r.print(cmd.OutOrStdout(), o)
}

func (r *installReport) print(w io.Writer, o *installOptions) error {
	if !r.Changed {
		fmt.Fprintln(w, "nothing to change")
	}
	if o.dryRun {
		fmt.Fprint(w, r.Diff)
	}
	done := map[string]string{install.Create: "created", install.Change: "changed", install.Remove: "removed"}
	if o.dryRun {
		done = map[string]string{install.Create: "would create", install.Change: "would change", install.Remove: "would remove"}
	}
	for _, f := range r.Files {
		if verb := done[f.Action]; verb != "" {
			fmt.Fprintln(w, verb, f.Path)
		}
	}
	if r.Backup != "" && !o.dryRun {
		fmt.Fprintln(w, "the old", filepath.Base(r.Config), "is", r.Backup)
	}
	for _, n := range r.Notes {
		fmt.Fprintln(w, "note:", n)
	}
	if len(r.Next) > 0 {
		fmt.Fprintln(w, "to have it take effect run, or use --restart for:")
		for _, c := range r.Next {
			fmt.Fprintln(w, "  "+c)
		}
	}
	return nil
}
