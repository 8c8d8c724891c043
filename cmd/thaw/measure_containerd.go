package main

import (
	"github.com/spf13/cobra"

	"github.com/thaw-project/thaw/internal/sources/containerd"
)

func newMeasureContainerdCommand(g *globalOptions) *cobra.Command {
	var opts sourceOptions
	cmd := &cobra.Command{
		Use:   "containerd FILE...",
		Short: "Say where starts of containerd's containers spent their time, by its events",
		Long: `Say where starts of containerd's containers spent their time, by its events.

A FILE has what ctr events has printed, or nerdctl events --format json, while containers
were started. "-" is standard input. Each container that was made meanwhile is one start; its
pull is part of it if it ended less than 2 s before.

What the program does after it has started containerd does not see.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.`,
		Example: `  ctr events >events.txt    # until the containers have started, then Ctrl-C
  thaw measure containerd events.txt`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := oneSource(cmd, args, false, "- for standard input"); err != nil {
				return err
			}
			var r containerd.Reader
			if err := readDocuments(cmd, &r, args); err != nil {
				return err
			}
			rec, err := r.Record()
			if err != nil {
				return err
			}
			return opts.finish(cmd, g, rec)
		},
	}
	opts.bind(cmd)
	return cmd
}
