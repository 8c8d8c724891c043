package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/docker/go-units"
	"golang.org/x/term"

	"github.com/thaw-project/thaw/internal/measure"
	"github.com/thaw-project/thaw/internal/profile"
)

// measureProgress shows the runs of a measurement: one line of a terminal that is
// written again and again, or one a run elsewhere.
type measureProgress struct {
	w     io.Writer
	quiet bool
	tty   bool
	shown bool
}

func newMeasureProgress(w io.Writer, quiet bool) *measureProgress {
	f, ok := w.(*os.File)
	return &measureProgress{w: w, quiet: quiet, tty: ok && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb"}
}

// run shows a run that is over: its phases, and the median so far.
func (p *measureProgress) run(r measure.Progress) {
	if p.quiet {
		return
	}
	of := "?"
	if r.Of > 0 {
		of = fmt.Sprint(r.Of)
	}
	line := fmt.Sprintf("%s %d/%s: ", r.Subject, r.Number, of)
	if r.Run.Error != "" {
		line += "failed: " + printable(r.Run.Error)
	} else {
		var parts []string
		for _, ph := range r.Run.Phases[:profile.StartPhases] {
			parts = append(parts, shortPhases[ph.Name]+" "+msOrUnknown(ph.Ms))
		}
		line += fmt.Sprintf("%s ms = %s; median %.0f ms", msOrUnknown(r.Run.TotalMs), strings.Join(parts, " + "), r.Median)
	}
	if p.tty && r.Run.Error == "" {
		fmt.Fprint(p.w, "\r\x1b[K"+p.fit(line))
		p.shown = true
		return
	}
	p.clear()
	fmt.Fprintln(p.w, "thaw: "+line)
}

// fit cuts a line to the terminal: one that wraps could not be written again.
func (p *measureProgress) fit(line string) string {
	f, ok := p.w.(*os.File)
	if !ok {
		return line
	}
	width, _, err := term.GetSize(int(f.Fd()))
	if runes := []rune(line); err == nil && width > 1 && len(runes) >= width {
		return string(runes[:width-1])
	}
	return line
}

func (p *measureProgress) clear() {
	if p.shown {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.shown = false
	}
}

var shortPhases = map[string]string{profile.PhaseQueue: "queue", profile.PhasePull: "pull", profile.PhaseRuntimeInit: "init", profile.PhaseDependencyLoad: "dependencies",
	profile.PhaseBootstrap: "bootstrap", profile.PhaseHealthContainer: "health"}

func msOrUnknown(ms *float64) string {
	if ms == nil {
		return "?"
	}
	return fmt.Sprintf("%.0f", *ms)
}

// printMeasured prints a record: a table of phases for each subject, its costliest
// packages and its first requests, and how the subjects compare.
func printMeasured(w io.Writer, r *profile.Record) error {
	w = plainWriter{w}
	for i := range r.Subjects {
		if err := printSubject(w, &r.Subjects[i]); err != nil {
			return err
		}
	}
	if len(r.Subjects) == 2 {
		p := newPair(r, r, &r.Subjects[0], &r.Subjects[1])
		if err := p.print(w); err != nil {
			return err
		}
		fmt.Fprintln(w)
	}
	for _, s := range r.Signals {
		if s.Reason != "" {
			fmt.Fprintf(w, "signal %s: %s\n", s.Name, s.Reason)
		}
	}
	for _, warning := range r.Warnings {
		fmt.Fprintf(w, "warning: %s\n", warning)
	}
	_, err := fmt.Fprintf(w, "record %s\n", r.ID)
	return err
}

// packagesShown is how many packages are printed.
const packagesShown = 12

func printSubject(w io.Writer, s *profile.Subject) error {
	sum := s.Summarize()
	fmt.Fprintf(w, "%s (%s, %s%s): %d runs, ", s.Name, cmp.Or(s.Mode, "mode not known"), cmp.Or(s.Cold, "coldness not known"), proven(&sum), sum.Runs)
	if sum.Failed > 0 {
		fmt.Fprintf(w, "%d failed, ", sum.Failed)
	}
	if sum.TotalMs.N > 0 {
		fmt.Fprintf(w, "ready after %.0f ms", sum.TotalMs.P50)
	} else {
		fmt.Fprint(w, "when it was ready is not known")
	}
	if h := sum.TotalMs.HalfWidth; h != nil {
		fmt.Fprintf(w, " ± %.0f %%", 100**h)
	}
	fmt.Fprintln(w)
	if s.ImageBytes > 0 {
		fmt.Fprintf(w, "image: %s in %d layers, %s unpacked, %d files\n", units.HumanSize(float64(s.ImageBytes)), len(s.Layers), units.HumanSize(float64(s.UnpackedBytes)), len(s.Files))
	}
	fmt.Fprintln(w)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "phase\tmin\tavg\tmax\tp50\tp90\tp99\tshare\tlazy wait\tread\tfiles\tsource\t")
	for _, p := range sum.Phases {
		if p.Ms.N > 0 {
			printPhase(tw, &p)
		}
	}
	t := sum.TotalMs
	if t.N > 0 {
		fmt.Fprintf(tw, "total\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\t-\t%s\t%s\t-\t-\t\n", t.Min, t.Avg, t.Max, t.P50, t.P90, t.P99, some(sum.LazyWaitMs, "%.0f"), humanBytes(sum.NeededBytes))
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for _, p := range sum.Phases {
		if p.Ms.N == 0 && len(p.Unknown) > 0 {
			fmt.Fprintf(w, "%s unknown: %s\n", p.Name, p.Unknown[0].Reason)
		}
	}
	printPackages(w, s)
	return printRoutes(w, &sum)
}

// proven says if some runs were not proven to be cold.
func proven(s *profile.Summary) string {
	if s.NotCold > 0 && s.Cold != "" {
		return fmt.Sprintf(" not proven in %d", s.NotCold)
	}
	return ""
}

func printPhase(w io.Writer, p *profile.PhaseSummary) {
	share := "-"
	if p.Share != nil {
		share = fmt.Sprintf("%.0f %%", 100**p.Share)
	}
	fmt.Fprintf(w, "%s\t%.1f\t%.1f\t%.1f\t%.1f\t%.1f\t%.1f\t%s\t%s\t%s\t%s\t%s (%s)\t\n", p.Name, p.Ms.Min, p.Ms.Avg, p.Ms.Max, p.Ms.P50, p.Ms.P90, p.Ms.P99, share,
		some(p.LazyWaitMs, "%.1f"), humanBytes(p.Bytes), some(p.Files, "%.0f"), p.Confidence, strings.Join(p.Sources, ","))
}

// some formats a median, or nothing.
func some(s profile.Stats, format string) string {
	if s.N == 0 {
		return "?"
	}
	return fmt.Sprintf(format, s.P50)
}

func humanBytes(s profile.Stats) string {
	if s.N == 0 {
		return "?"
	}
	return units.HumanSize(s.P50)
}

// bytesOf are those of a part of a phase, if any are known of the phase.
func bytesOf(p *profile.Phase, n int64) string {
	if p == nil || p.Bytes == nil {
		return "?"
	}
	return units.HumanSize(float64(n))
}

// printPackages prints what the run in the middle loaded before it was ready.
func printPackages(w io.Writer, s *profile.Subject) {
	r, _ := s.MedianRun()
	if r == nil {
		return
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "\nwhat took longest to load, in a run of %.0f ms\n", *r.TotalMs)
	fmt.Fprintln(tw, "package\tms\tread\tfiles\tphase\t")
	n := 0
	for _, p := range r.Packages {
		if n == packagesShown {
			break
		}
		if p.Phase != profile.PhaseDependencyLoad && p.Phase != profile.PhaseBootstrap && p.Phase != profile.PhaseFirstRequest {
			continue
		}
		n++
		fmt.Fprintf(tw, "%s\t%.1f\t%s\t%d\t%s\t\n", p.Name, p.Ms, bytesOf(r.Phase(p.Phase), p.Bytes), p.Files, p.Phase)
	}
	tw.Flush() // the next write says if this one failed
}

func printRoutes(w io.Writer, sum *profile.Summary) error {
	if len(sum.Routes) > 0 {
		tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintln(tw, "\nfirst request\tfirst ms\tsteady ms\tpenalty ms\tfiles\tread\twaited ms\t")
		for _, r := range sum.Routes {
			read := "?"
			if p := sum.Phase(profile.PhaseFirstRequest); p != nil && p.Bytes.N > 0 {
				read = units.HumanSize(r.Bytes.P50)
			}
			fmt.Fprintf(tw, "%s\t%.1f\t%.1f\t%.1f\t%.0f\t%s\t%.1f\t\n", r.Route, r.FirstMs.P50, r.SteadyMs.P50, r.PenaltyMs.P50, r.Files.P50, read, r.WaitMs.P50)
		}
		if err := tw.Flush(); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintln(w)
	return err
}
