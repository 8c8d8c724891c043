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
	return group(&cobra.Command{
		Use: "cache", Short: "What is on this node: layers, who pins them, what can go",
		Example: `  thaw cache ls
  thaw cache rm registry.example.com/app:1.2
  thaw cache gc`,
	}, newCacheLsCommand(g), newCacheRmCommand(g), newCacheGCCommand(g), newCacheUnpinCommand(g))
}

func newCacheLsCommand(g *globalOptions) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List the layers on this node: how much is here, who pins them", Args: noArgs,
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
			if err := printLayers(cmd.OutOrStdout(), layers); err != nil {
				return err
			}
			s, err := c.Status(cmd.Context())
			if err == nil && s.Cache != nil {
				fmt.Fprintln(cmd.ErrOrStderr(), cacheLine(s.Cache))
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newCacheRmCommand(g *globalOptions) *cobra.Command {
	return &cobra.Command{
		Use: "rm IMAGE|DIGEST", Short: "Forget an image and what then nobody needs, or one layer",
		Long: `Forget an image, its pins and recorded starts, and remove what then nobody needs;
or remove one layer by its DIGEST, if nothing uses or pins it. What a mount uses
stays until it is gone. The digests of the layers that went are printed, one a line.`,
		Args: exactArgs("IMAGE|DIGEST"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := g.connect(cmd.Context())
			if err != nil {
				return err
			}
			removed, err := c.Remove(cmd.Context(), absLayout(args[0]))
			return printRemoved(cmd, removed, err)
		},
	}
}

func newCacheGCCommand(g *globalOptions) *cobra.Command {
	return &cobra.Command{
		Use: "gc", Short: "Remove the layers that no mount uses and no pulled image pins, and what belonged to them", Args: noArgs,
		Long: `Remove the layers that no mount uses and no pulled image pins, forget the images
that are neither mounted nor pulled, and remove their indexes and metadata. An
index that was made on this node is kept for a week after its last use: making
it again costs the whole image. thaw cache rm IMAGE removes it at once.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := g.connect(cmd.Context())
			if err != nil {
				return err
			}
			removed, err := c.GC(cmd.Context())
			return printRemoved(cmd, removed, err)
		},
	}
}

func newCacheUnpinCommand(g *globalOptions) *cobra.Command {
	return &cobra.Command{
		Use: "unpin IMAGE|OWNER", Short: "Let go of what a pulled image, or another owner of pins, keeps; nothing is removed yet", Args: exactArgs("IMAGE|OWNER"),
		Long: `Let go of the layers that a pulled image, or another owner that thaw cache ls lists
under PINS, keeps. They stay until they are evicted, or until thaw cache gc. The
owner lost-pins has what was here when the file of all pins was damaged.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := g.connect(cmd.Context())
			if err != nil {
				return err
			}
			return c.Unpin(cmd.Context(), absLayout(args[0]))
		},
	}
}

func printLayers(w io.Writer, layers []api.Layer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "LAYER\tSIZE\tHERE\tON DISK\tSTATE\tUSED\tPINS")
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
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", l.Blob, units.HumanSize(float64(l.SizeBytes)), share, units.HumanSize(float64(l.DiskBytes)), state, used, strings.Join(l.Pins, " "))
	}
	return tw.Flush()
}

// cacheLine says what the layers take on disk and what they may.
func cacheLine(c *api.Cache) string {
	size := func(n int64) string { return units.HumanSize(float64(n)) }
	line := size(c.DiskBytes) + " on disk"
	if c.MaxBytes > 0 {
		line += " of " + size(c.MaxBytes) + " at most"
	}
	line += fmt.Sprintf(", %s of it can be evicted; %s free, to keep %s", size(c.EvictableBytes), size(c.FreeBytes), size(c.MinFreeBytes))
	if c.EvictedLayers > 0 {
		line += fmt.Sprintf("; evicted %d layers, %s", c.EvictedLayers, size(c.EvictedBytes))
	}
	return line
}

func printRemoved(cmd *cobra.Command, removed []api.Layer, err error) error {
	bytes := int64(0)
	for _, l := range removed {
		fmt.Fprintln(cmd.OutOrStdout(), l.Blob)
		bytes += l.DiskBytes
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "removed %d layers, %s\n", len(removed), units.HumanSize(float64(bytes)))
	return nil
}
