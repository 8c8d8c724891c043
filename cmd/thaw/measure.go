package main

import "github.com/spf13/cobra"

func newMeasureCommand(g *globalOptions) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "measure",
		Short: "Say where the time of starts goes",
	}
	return group(cmd, newMeasureECSCommand(g), newMeasureKubernetesCommand(g), newMeasureContainerdCommand(g))
}
