package main

import (
	"fmt"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/thaw-project/thaw/internal/daemon/api"
)

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
		Example: "  thaw pull registry.example.com/app:1.2",
		Args:    exactArgs("IMAGE"),
		RunE:    func(cmd *cobra.Command, args []string) error { return runPull(cmd, g, &opts, args[0]) },
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
