package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/thaw-project/thaw/internal/daemon/api"
)

func newCacheCommand(g *globalOptions) *cobra.Command {
	cmd := &cobra.Command{Use: "cache", Short: "What is on this node", Args: cobra.NoArgs}
	var asJSON bool
	ls := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List the layers on this node: how much is here, who pins them", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := g.connect(cmd.Context())
			if err != nil {
				return err
			}
			layers, err := c.Layers(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd, layers)
			}
			return printLayers(cmd.OutOrStdout(), layers)
		},
	}
	ls.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	rm := &cobra.Command{
		Use: "rm IMAGE|DIGEST", Short: "Forget an image and what then nobody needs, or one layer", Args: exactArgs("IMAGE|DIGEST"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := g.connect(cmd.Context())
			if err != nil {
				return err
			}
			removed, err := c.Remove(cmd.Context(), absLayout(args[0]))
			return printRemoved(cmd, removed, err)
		},
	}
	gc := &cobra.Command{
		Use: "gc", Short: "Remove the layers that no mount uses and no pulled image pins", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := g.connect(cmd.Context())
			if err != nil {
				return err
			}
			removed, err := c.GC(cmd.Context())
			return printRemoved(cmd, removed, err)
		},
	}
	cmd.AddCommand(ls, rm, gc)
	return cmd
}

func printLayers(w io.Writer, layers []api.Layer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "LAYER\tSIZE\tHERE\tSTATE\tUSED\tPINS")
	for _, l := range layers {
		state := "partial"
		switch {
		case l.Quarantined != "":
			state = "quarantined: " + l.Quarantined
		case l.Complete:
			state = "diffID proven"
		}
		if l.InUse {
			state += ", in use"
		}
		share := "-"
		if l.SizeBytes > 0 {
			share = fmt.Sprintf("%d%%", 100*l.HereBytes/l.SizeBytes)
		} else if l.Complete {
			share = "100%"
		}
		used := "-"
		if !l.LastUse.IsZero() {
			used = units.HumanDuration(time.Since(l.LastUse)) + " ago"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\n", l.Blob, units.HumanSize(float64(l.SizeBytes)), share, state, used, strings.Join(l.Pins, " "))
	}
	return tw.Flush()
}

func printRemoved(cmd *cobra.Command, removed []api.Layer, err error) error {
	bytes := int64(0)
	for _, l := range removed {
		fmt.Fprintln(cmd.OutOrStdout(), l.Blob)
		bytes += l.HereBytes
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "removed %d layers, %s\n", len(removed), units.HumanSize(float64(bytes)))
	return nil
}
