package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/thaw-project/thaw/internal/cloud"
	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/profile"
)

// maxSource bounds a file of documents.
const maxSource = 256 << 20

// sourceOptions are the flags of all commands that read what others say of starts.
type sourceOptions struct {
	name string
	json bool
	save bool
}

func (o *sourceOptions) bind(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.name, "name", "", "name of the record")
	f.BoolVar(&o.save, "save", true, "keep the record in the state directory, for thaw runs")
	f.BoolVar(&o.json, "json", false, "print the record as JSON (docs/formats/profile.md)")
}

// documents collects those of files and of programs.
type documents interface{ Read(b []byte) error }

// readDocuments reads files; "-" is standard input.
func readDocuments(cmd *cobra.Command, into documents, names []string) error {
	for _, name := range names {
		var in io.Reader = cmd.InOrStdin()
		if name != "-" {
			f, err := os.Open(name)
			if err != nil {
				return fmt.Errorf("read documents: %w", err)
			}
			defer f.Close()
			in = f
		}
		b, err := io.ReadAll(io.LimitReader(in, maxSource+1))
		if err == nil && len(b) > maxSource {
			err = fmt.Errorf("it has more than %d bytes", maxSource)
		}
		if err == nil {
			err = into.Read(b)
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
	}
	return nil
}

// sayWatching says that it will take a while.
func sayWatching(cmd *cobra.Command, d time.Duration) {
	if d > 0 {
		fmt.Fprintf(cmd.ErrOrStderr(), "thaw: watching for %v\n", d)
	}
}

// askCloud has the program ask, and hands what it answers with to each, if anything.
func askCloud(ctx context.Context, call string, args any, each func(document []byte) error) error {
	exe, err := findProgram(cloud.Program)
	if err != nil {
		return api.Errorf(api.CodeUnsupported, "make build-cloud makes it: put it beside thaw or into PATH; what reads or writes files needs no program",
			"to ask a cloud takes the program %s", cloud.Program)
	}
	err = cloud.Ask(ctx, exe, call, args, each)
	var e *cloud.Error
	if errors.As(err, &e) {
		return api.Errorf(api.CodeInvalid, e.Hint, "%s", e.Message)
	}
	return err
}

// finish names, keeps and prints a record.
func (o *sourceOptions) finish(cmd *cobra.Command, g *globalOptions, rec *profile.Record) error {
	rec.Name, rec.Tool = o.name, buildVersion()
	rec.ID = profile.NewID(time.Now()) // not of its begin: documents may be old, and last is what came last
	b, err := profile.Encode(rec)
	if err != nil {
		return err
	}
	if o.save {
		if err := g.putRecord(cmd.Context(), cmd, rec); err != nil {
			return err
		}
	}
	if o.json {
		_, err := cmd.OutOrStdout().Write(b)
		return err
	}
	for _, w := range rec.Warnings {
		fmt.Fprintln(cmd.ErrOrStderr(), "thaw: warning:", w)
	}
	return printSources(cmd.OutOrStdout(), rec)
}

// printSources prints what is known of starts, and why no more.
func printSources(w io.Writer, rec *profile.Record) error {
	w = plainWriter{w}
	for i := range rec.Subjects {
		s := &rec.Subjects[i]
		if i > 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintf(w, "%s: %s\n", s.Name, countStarts(len(s.Runs)))
		if s.Image != "" && !strings.HasPrefix(s.Name, s.Image) {
			fmt.Fprintf(w, "  %s\n", s.Image)
		}
		if err := printSource(w, s); err != nil {
			return err
		}
	}
	if rec.ID != "" {
		fmt.Fprintf(w, "\nrecord %s\n", rec.ID)
	}
	return nil
}

func printSource(w io.Writer, s *profile.Subject) error {
	sum := s.Summarize()
	if sum.Failed < sum.Runs {
		if err := printPhases(w, s, &sum); err != nil {
			return err
		}
	}
	said := map[string]bool{}
	say := func(what, text string) {
		if text != "" && !said[what+text] {
			fmt.Fprintf(w, "  %s: %s\n", what, text)
		}
		said[what+text] = true
	}
	for i := range s.Runs {
		say("failed", s.Runs[i].Error)
		for _, warning := range s.Runs[i].Warnings {
			say("warning", warning)
		}
	}
	return nil
}

// printPhases prints the table of a subject's phases.
func printPhases(w io.Writer, s *profile.Subject, sum *profile.Summary) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "  PHASE\tN\tMIN\tP50\tP99\tMAX\tKNOWN")
	row := func(name string, st profile.Stats, known string) {
		if st.N == 0 {
			fmt.Fprintf(tw, "  %s\t0\t-\t-\t-\t-\t%s\n", name, known)
			return
		}
		fmt.Fprintf(tw, "  %s\t%d\t%s\t%s\t%s\t%s\t%s\n", name, st.N, sourceSeconds(st.Min), sourceSeconds(st.P50), sourceSeconds(st.P99), sourceSeconds(st.Max), known)
	}
	for _, p := range sum.Phases {
		known := p.Confidence
		if p.Ms.N == 0 && len(p.Unknown) > 0 {
			if p.Unknown[0].Reason == "no evidence" {
				continue // it says nothing of such a phase at all
			}
			known = "unknown: " + p.Unknown[0].Reason
		}
		row(p.Name, p.Ms, known)
	}
	known := ""
	if sum.TotalMs.N == 0 {
		known = "unknown: when it was ready"
	}
	row("total", sum.TotalMs, known)
	if err := tw.Flush(); err != nil {
		return err
	}
	if p := precision(s); p >= time.Millisecond {
		fmt.Fprintf(w, "  times are exact to %v\n", p)
	}
	return nil
}

// precision is how far the events of a subject may be off, at the most.
func precision(s *profile.Subject) time.Duration {
	worst := 0.0
	for i := range s.Runs {
		for _, e := range s.Runs[i].Events {
			worst = max(worst, e.PrecisionMs)
		}
	}
	return time.Duration(worst * 1e6).Round(time.Microsecond)
}

// sourceSeconds prints milliseconds as seconds.
func sourceSeconds(ms float64) string { return fmt.Sprintf("%.3f", ms/1e3) }

func countStarts(n int) string {
	if n == 1 {
		return "1 start"
	}
	return fmt.Sprintf("%d starts", n)
}

// oneSource says whether files or a cloud are asked, and not both or none.
func oneSource(cmd *cobra.Command, args []string, live bool, hint string) error {
	switch {
	case live && len(args) > 0:
		return usageError{fmt.Errorf("want files or %s, not both; see %s --help", hint, cmd.CommandPath())}
	case !live && len(args) == 0:
		return usageError{fmt.Errorf("want FILE... or %s; see %s --help", hint, cmd.CommandPath())}
	}
	return nil
}
