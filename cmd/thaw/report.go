package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/thaw-project/thaw/internal/profile"
	"github.com/thaw-project/thaw/internal/report"
)

type reportOptions struct {
	output  string
	title   string
	compare bool
}

func newReportCommand(g *globalOptions) *cobra.Command {
	var opts reportOptions
	cmd := &cobra.Command{
		Use:   "report RUN...",
		Short: "Make a page of measured starts: one HTML file",
		Long: `Make a page of measured starts: one HTML file, which any browser shows from where it
lies. It needs no network and asks nobody for anything.

It says what could be saved, and by what evidence; shows where the time went, phase by
phase, and the bytes, file by file; compares the records' subjects with each other, by
statistics; and has sliders for what a health check and a scale-up make of it.
docs/report.md says what is on it. Several RUNs are put side by side.

` + runHelp,
		Example: `  thaw report last -o report.html
  thaw report before.json after.json --compare -o report.html`,
		Args: atLeastOneRun, ValidArgsFunction: g.recordNames(0),
		RunE: func(cmd *cobra.Command, args []string) error { return runReport(cmd, g, &opts, args) },
	}
	f := cmd.Flags()
	f.StringVarP(&opts.output, "output", "o", "report.html", "file to write; - is the standard output")
	f.StringVar(&opts.title, "title", "", "title of the page (default what was measured)")
	f.BoolVar(&opts.compare, "compare", false, "begin with the comparison")
	return cmd
}

func runReport(cmd *cobra.Command, g *globalOptions, opts *reportOptions, runs []string) error {
	var records []profile.Record
	for _, name := range runs {
		r, err := g.record(cmd, name)
		if err != nil {
			return err
		}
		records = append(records, *r)
	}
	var page bytes.Buffer
	if err := report.Write(&page, records, report.Options{Title: opts.title, Compare: opts.compare, Tool: buildVersion()}); err != nil {
		return err
	}
	if opts.output == "-" {
		if f, ok := cmd.OutOrStdout().(*os.File); ok && term.IsTerminal(int(f.Fd())) {
			return usageError{errors.New("the page is not for terminals: use -o FILE")}
		}
		_, err := cmd.OutOrStdout().Write(page.Bytes())
		return err
	}
	if err := writeFile(opts.output, page.Bytes()); err != nil {
		return err
	}
	path, err := filepath.Abs(opts.output)
	if err != nil {
		path = opts.output
	}
	_, err = fmt.Fprintln(cmd.OutOrStdout(), path)
	return err
}
