package main

import (
	"encoding/json"
	"fmt"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/thaw-project/thaw/internal/daemon/api"
)

func (f *imageFlags) bind(cmd *cobra.Command, pull string) {
	cmd.Flags().StringVar(&f.index, "index", api.IndexAuto, "the image's index: auto (make one where there is none), require, push (and push what was made), ignore")
	cmd.Flags().StringVar(&f.pull, "pull", pull, "when to ask the registry what a name means: missing, always, never")
	cmd.Flags().BoolVar(&f.plainHTTP, "plain-http", false, "speak plain http to the image's registry")
	complete(cmd, "index", api.IndexAuto, api.IndexRequire, api.IndexPush, api.IndexIgnore)
	complete(cmd, "pull", api.PullMissing, api.PullAlways, api.PullNever)
}

func (f *imageFlags) check() error {
	switch f.index {
	case api.IndexAuto, api.IndexRequire, api.IndexPush, api.IndexIgnore:
	default:
		return usageError{fmt.Errorf("--index %q: use auto, require, push or ignore", f.index)}
	}
	switch f.pull {
	case api.PullMissing, api.PullAlways, api.PullNever:
	default:
		return usageError{fmt.Errorf("--pull %q: use missing, always or never", f.pull)}
	}
	return nil
}

// complete offers fixed values for a flag in the shell.
func complete(cmd *cobra.Command, flag string, values ...string) {
	if err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // the flag was not bound
	}
}

type pullOptions struct {
	imageFlags
	json bool
}

func newPullCommand(g *globalOptions) *cobra.Command {
	var opts pullOptions
	cmd := &cobra.Command{
		Use:   "pull IMAGE",
		Short: "Bring a whole image to this node and keep it",
		Long: `Bring a whole image to this node, in parallel, prove it against its digests and
keep it until thaw cache rm. Nothing is unpacked.`,
		Args: exactArgs("IMAGE"),
		RunE: func(cmd *cobra.Command, args []string) error { return runPull(cmd, g, &opts, args[0]) },
	}
	opts.bind(cmd, api.PullAlways)
	cmd.Flags().BoolVar(&opts.json, "json", false, "print the result as JSON")
	return cmd
}

func runPull(cmd *cobra.Command, g *globalOptions, opts *pullOptions, image string) error {
	if err := opts.check(); err != nil {
		return err
	}
	c, err := g.connect(cmd.Context())
	if err != nil {
		return err
	}
	p := newProgress(cmd.ErrOrStderr(), image)
	pulled, err := c.Pull(cmd.Context(), opts.request(image), p.event)
	p.clear()
	if err != nil {
		return err
	}
	if opts.json {
		return printJSON(cmd, pulled)
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s@%s: %d layers, %s; fetched %s; index: %s\n", pulled.Image, pulled.Manifest, pulled.Layers,
		units.HumanSize(float64(pulled.ImageBytes)), units.HumanSize(float64(pulled.Fetched)), pulled.Index)
	return nil
}

// outputVersion is the version of all JSON that commands print.
const outputVersion = 1

// printJSON prints v as an object with a version.
func printJSON(cmd *cobra.Command, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var out any = struct {
		Version int             `json:"version"`
		Items   json.RawMessage `json:"items"`
	}{outputVersion, b}
	if len(b) > 0 && b[0] == '{' {
		m := map[string]json.RawMessage{}
		if err := json.Unmarshal(b, &m); err != nil {
			return err
		}
		if _, ok := m["version"]; ok { // its own, such as the daemon's
			m["daemonVersion"] = m["version"]
		}
		m["version"] = json.RawMessage(fmt.Sprint(outputVersion))
		out = m
	}
	enc := json.NewEncoder(cmd.OutOrStdout())
	enc.SetIndent("", "  ")
	return enc.Encode(out)
}
