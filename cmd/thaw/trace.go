package main

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/thaw-project/thaw/internal/daemon/api"
)

func newTraceCommand(g *globalOptions) *cobra.Command {
	return group(&cobra.Command{
		Use:   "trace",
		Short: "What containers read when they started on this node",
		Long: `What containers read when they started on this node. thaw run records each lazy
start: which parts of which files, in order, until the container was ready and
shortly after. Runs of one image with one command are merged: the order is that
of the median, and what less than half of them read is left out.

The last 8 runs of an image and a command are kept as long as the node knows the
image, and a month longer; thaw cache rm forgets them with the image. Nothing is
recorded by thaw run --record=false, or with record = false in the configuration.`,
		Example: `  thaw run --ready http://127.0.0.1:8080/ registry.example/app:1
  thaw trace ls
  thaw trace show registry.example/app:1
  thaw trace export registry.example/app:1 app.trace`,
	}, newTraceLsCommand(g), newTraceShowCommand(g), newTraceExportCommand(g), newTraceRmCommand(g))
}

// completeTraces offers the images that traces are of, from a daemon that runs.
func completeTraces(g *globalOptions) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveDefault
		}
		c, err := g.client()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		infos, err := c.Traces(cmd.Context())
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var names []string
		for _, t := range infos {
			names = append(names, t.Image, t.ID+"\t"+t.Image+" "+strings.Join(t.Command, " "))
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

func newTraceLsCommand(g *globalOptions) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List the recorded starts, by image and command", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := g.connect(cmd.Context())
			if err != nil {
				return err
			}
			infos, err := c.Traces(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd, infos)
			}
			return printTraces(cmd.OutOrStdout(), infos)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printTraces(w io.Writer, infos []api.TraceInfo) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "ID\tIMAGE\tRUNS\tREADS\tBYTES\tREADY\tLAST\tCOMMAND")
	for _, t := range infos {
		fmt.Fprintf(tw, "%s\t%s\t%d\t%d\t%s\t%s\t%s ago\t%s\n", t.ID, t.Image, t.Runs, t.Accesses, units.HumanSize(float64(t.Bytes)),
			readyTime(t.Ready), units.HumanDuration(time.Since(t.Created)), shortCommand(t.Command))
	}
	return tw.Flush()
}

func readyTime(d time.Duration) string {
	if d == 0 {
		return "-"
	}
	return d.Round(time.Millisecond).String()
}

// shortCommand is a command on one short line.
func shortCommand(command []string) string {
	const most = 40
	s := []rune(strings.Join(strings.Fields(strings.Join(command, " ")), " "))
	if len(s) > most {
		return string(s[:most-3]) + "..."
	}
	return string(s)
}

func newTraceShowCommand(g *globalOptions) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "show IMAGE|ID", Short: "Show what starts of an image read, in order: files, phases, bytes",
		Long: `Show what starts of an image read, merged and in order: the phase of the start that
had begun, the file and which bytes of it. Phases are mount, create and start (of
the container), ready (it runs, and is not ready yet) and after (shortly after it
was). The kernel asks for pages of 4 KiB, so small files that lie beside what was
read are among it.`,
		Example:           "  thaw trace show registry.example/app:1",
		Args:              exactArgs("IMAGE|ID"),
		ValidArgsFunction: completeTraces(g),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := g.connect(cmd.Context())
			if err != nil {
				return err
			}
			t, err := c.Trace(cmd.Context(), absLayout(args[0]))
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd, t)
			}
			return printTrace(cmd.OutOrStdout(), t)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printTrace(w io.Writer, t *api.Trace) error {
	fmt.Fprintf(w, "%s  %d runs  %d reads  %s  ready %s\n%s\n\n", t.Image, t.Runs, t.Accesses, units.HumanSize(float64(t.Bytes)),
		readyTime(t.Ready), shortCommand(t.Command))
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "AT MS\tPHASE\tOFFSET\tBYTES\tFILE")
	for _, r := range t.Reads {
		path, offset := r.Path, r.Offset
		if path == "" {
			path, offset = "("+r.Layer.String()+")", r.Tar
		}
		fmt.Fprintf(tw, "%.1f\t%s\t%d\t%d\t%s\n", milliseconds(r.At), r.Phase, offset, r.Bytes, path)
	}
	return tw.Flush()
}

func newTraceExportCommand(g *globalOptions) *cobra.Command {
	return &cobra.Command{
		Use: "export IMAGE|ID FILE|-", Short: "Write what starts of an image read to a file, for another node or a build",
		Long: `Write the merged trace to a file, or to standard output with "-". The file also holds
the command that was started.`,
		Example: "  thaw trace export registry.example/app:1 app.trace",
		Args:    exactArgs("IMAGE|ID", "FILE|-"), ValidArgsFunction: completeTraces(g),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := g.connect(cmd.Context())
			if err != nil {
				return err
			}
			b, err := c.TraceFile(cmd.Context(), absLayout(args[0]))
			if err != nil {
				return err
			}
			if args[1] == "-" {
				_, err = io.Copy(cmd.OutOrStdout(), bytes.NewReader(b))
				return err
			}
			return writeFile(args[1], b)
		},
	}
}

func newTraceRmCommand(g *globalOptions) *cobra.Command {
	return &cobra.Command{
		Use: "rm IMAGE|ID", Short: "Forget what starts of an image read, with all commands or with one", Args: exactArgs("IMAGE|ID"),
		ValidArgsFunction: completeTraces(g),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := g.connect(cmd.Context())
			if err != nil {
				return err
			}
			removed, err := c.RemoveTrace(cmd.Context(), absLayout(args[0]))
			for _, t := range removed {
				fmt.Fprintln(cmd.OutOrStdout(), t.ID)
			}
			return err
		},
	}
}
