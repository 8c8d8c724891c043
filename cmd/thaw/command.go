package main

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// exactArgs is cobra.ExactArgs as a usage error that names the arguments.
func exactArgs(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == len(names) {
			return nil
		}
		return usageError{fmt.Errorf("want %s, got %d arguments; see %s --help", strings.Join(names, " "), len(args), cmd.CommandPath())}
	}
}

// noArgs is cobra.NoArgs as a usage error.
func noArgs(cmd *cobra.Command, args []string) error {
	switch {
	case len(args) == 0:
		return nil
	case cmd.HasSubCommands():
		return usageError{fmt.Errorf("unknown command %q; %s --help lists them", args[0], cmd.CommandPath())}
	}
	return usageError{fmt.Errorf("want no arguments, got %q; see %s --help", args, cmd.CommandPath())}
}

// group makes a command that only has others below it. It can be run, for cobra
// takes a word that it does not know for a wish for help, and says that all is well.
func group(cmd *cobra.Command, children ...*cobra.Command) *cobra.Command {
	cmd.Args = noArgs
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	cmd.AddCommand(children...)
	return cmd
}

// exitCodes adds the exit codes to the help of commands that have no others.
func exitCodes(cmd *cobra.Command) {
	if long := cmp.Or(cmd.Long, cmd.Short+"."); !strings.Contains(long, "Exit codes:") {
		cmd.Long = long + "\n\nExit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted."
	}
	for _, c := range cmd.Commands() {
		exitCodes(c)
	}
}

// complete offers fixed values for a flag in the shell.
func complete(cmd *cobra.Command, flag string, values ...string) {
	if err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // the flag was not bound
	}
}
