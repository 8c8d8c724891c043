package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/thaw-project/thaw/internal/profile"
	"github.com/thaw-project/thaw/internal/profile/waterfall"
)

// analyzeOptions are the flags of time, blame, critical-chain and plot, which are
// systemd-analyze's verbs for containers.
type analyzeOptions struct {
	subject string
	run     int // from 1; 0: the one in the middle
	json    bool
}

func (o *analyzeOptions) bind(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.subject, "subject", "", "of this image only, if the record has several")
	cmd.Flags().IntVar(&o.run, "run", 0, "of this run, from 1 (default: of the one whose time to ready is nearest to the median)")
	cmd.Flags().BoolVar(&o.json, "json", false, "print JSON")
}

// runHelp is what RUN may be.
const runHelp = `RUN is the ID of a record that thaw runs ls lists, the beginning of one, "last" (the
newest that was measured), a FILE.json that thaw runs export or thaw measure
--json-file wrote, or - for stdin.`

// analyzed is a run of a subject.
type analyzed struct {
	record  *profile.Record
	subject *profile.Subject
	run     *profile.Run
	number  int // from 1
}

// runs are those that the flags ask for, of each subject one.
func (o *analyzeOptions) runs(r *profile.Record) ([]analyzed, error) {
	subjects, err := subjectsOf(r, o.subject)
	if err != nil {
		return nil, err
	}
	var all []analyzed
	for _, s := range subjects {
		a := analyzed{record: r, subject: s, number: o.run}
		if o.run != 0 {
			if o.run < 1 || o.run > len(s.Runs) {
				return nil, usageError{fmt.Errorf("--run %d: %q has %d runs", o.run, s.Name, len(s.Runs))}
			}
			a.run = &s.Runs[o.run-1]
		} else {
			run, number := s.MedianRun()
			a.run, a.number = run, number+1
		}
		if a.run == nil { // none is known to have become ready: the first that did not fail, or the first
			if len(s.Runs) == 0 {
				return nil, fmt.Errorf("record %s: there is no run of %q", r.ID, s.Name)
			}
			i := max(slices.IndexFunc(s.Runs, func(r profile.Run) bool { return r.Good() }), 0)
			a.run, a.number = &s.Runs[i], i+1
		}
		all = append(all, a)
	}
	return all, nil
}

// newAnalyzeCommand makes one of the verbs; show prints one run.
func newAnalyzeCommand(g *globalOptions, verb, short, long string, bind func(cmd *cobra.Command), show func(w io.Writer, a *analyzed) error, asJSON func(a *analyzed) any) *cobra.Command {
	var opts analyzeOptions
	cmd := &cobra.Command{
		Use: verb + " RUN", Short: short, Long: long + "\n\n" + runHelp,
		Args: exactArgs("RUN"), ValidArgsFunction: g.recordNames(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := g.record(cmd, args[0])
			if err != nil {
				return err
			}
			all, err := opts.runs(r)
			if err != nil {
				return err
			}
			if opts.json {
				var out []any
				for i := range all {
					out = append(out, asJSON(&all[i]))
				}
				return printJSON(cmd, out)
			}
			for i := range all {
				if i > 0 {
					fmt.Fprintln(cmd.OutOrStdout())
				}
				if len(r.Subjects) > 1 {
					fmt.Fprintf(cmd.OutOrStdout(), "%s:\n", all[i].subject.Name)
				}
				if err := show(cmd.OutOrStdout(), &all[i]); err != nil {
					return err
				}
			}
			return nil
		},
	}
	opts.bind(cmd)
	if bind != nil {
		bind(cmd)
	}
	return cmd
}

// jsonHead says what a JSON object is of.
type jsonHead struct {
	ID      string `json:"id"`
	Subject string `json:"subject"`
	Run     int    `json:"run"`
}

func (a *analyzed) head() jsonHead { return jsonHead{a.record.ID, a.subject.Name, a.number} }

func newTimeCommand(g *globalOptions) *cobra.Command {
	return newAnalyzeCommand(g, "time", "Say how long a measured start took, phase by phase",
		`Say how long a measured start took: the phases that follow one another, and their sum.
They are of one run, the one in the middle, so that they add up.`, nil, printTime,
		func(a *analyzed) any {
			return struct {
				jsonHead
				Phases  []profile.Phase `json:"phases"`
				TotalMs *float64        `json:"total_ms"`
				All     profile.Stats   `json:"all_runs_ms"`
			}{a.head(), a.run.Phases, a.run.TotalMs, a.subject.Summarize().TotalMs}
		})
}

func printTime(w io.Writer, a *analyzed) error {
	var parts []string
	wait := 0.
	for _, name := range profile.Phases[:profile.StartPhases] {
		p := a.run.Phase(name)
		if p == nil || p.Ms == nil {
			parts = append(parts, "? ("+name+")")
			continue
		}
		parts = append(parts, fmt.Sprintf("%s (%s)", shortMs(*p.Ms), name))
		if p.LazyWaitMs != nil {
			wait += *p.LazyWaitMs
		}
	}
	switch {
	case a.run.Error != "":
		fmt.Fprintf(w, "Startup failed: %s: ", printable(a.run.Error))
	case a.run.TotalMs == nil:
		fmt.Fprint(w, "Startup is not known to have finished: ")
	default:
		fmt.Fprint(w, "Startup finished in ")
	}
	fmt.Fprintf(w, "%s = %s\n", strings.Join(parts, " + "), shortMsOr(a.run.TotalMs))
	if wait > 0 {
		fmt.Fprintf(w, "%s of that it waited for bytes that were not here.\n", shortMs(wait))
	}
	sum := a.subject.Summarize()
	for _, p := range a.run.Phases {
		if p.Ms != nil && (p.Name == profile.PhaseHealthLB || p.Name == profile.PhaseFirstRequest || p.Name == profile.PhaseHydration) {
			fmt.Fprintf(w, "%s %s.\n", besides[p.Name], shortMs(*p.Ms))
		}
	}
	if t := sum.TotalMs; t.N > 1 {
		fmt.Fprintf(w, "Run %d of %d: half of them took up to %s, 95 %% up to %s", a.number, sum.Runs, shortMs(t.P50), shortMs(t.P95))
		if t.MedianCI != nil {
			fmt.Fprintf(w, "; the median is %s to %s with 95 %% confidence", shortMs(t.MedianCI.Low), shortMs(t.MedianCI.High))
		}
		_, err := fmt.Fprintln(w, ".")
		return err
	}
	return nil
}

// besides introduces the phases that stand beside the start.
var besides = map[string]string{
	profile.PhaseHealthLB:     "The load balancer knew after another",
	profile.PhaseFirstRequest: "The first request took longer than later ones by",
	profile.PhaseHydration:    "All of the image was here, from when it could be read, after",
}

func newBlameCommand(g *globalOptions) *cobra.Command {
	var limit int
	var kinds []string
	cmd := newAnalyzeCommand(g, "blame", "List what took longest in a measured start",
		`List what took longest in a measured start, the longest first: packages that were
loaded, programs that ran and ended, files whose bytes were waited for, and first
requests. They overlap: a package's time has the waits for its files in it.`,
		func(cmd *cobra.Command) {
			cmd.Flags().IntVarP(&limit, "limit", "n", 30, "how many are printed; 0: all")
			cmd.Flags().StringSliceVar(&kinds, "kind", nil, "only these: package, process, wait, request")
			complete(cmd, "kind", profile.KindPackage, profile.KindProcess, profile.KindWait, profile.KindRequest)
		},
		func(w io.Writer, a *analyzed) error { return printBlame(w, blames(a, kinds), limit) },
		func(a *analyzed) any {
			return struct {
				jsonHead
				Blames []profile.Blame `json:"blames"`
			}{a.head(), blames(a, kinds)}
		})
	return cmd
}

func blames(a *analyzed, kinds []string) []profile.Blame {
	out := []profile.Blame{}
	for _, b := range a.run.Blames() {
		if len(kinds) == 0 || slices.Contains(kinds, b.Kind) {
			out = append(out, b)
		}
	}
	return out
}

func printBlame(w io.Writer, all []profile.Blame, limit int) error {
	if len(all) == 0 {
		_, err := fmt.Fprintln(w, "nothing is known: no package, process, wait or request was seen")
		return err
	}
	for i, b := range all {
		if limit > 0 && i == limit {
			_, err := fmt.Fprintf(w, "%d more\n", len(all)-i)
			return err
		}
		if _, err := fmt.Fprintf(w, "%9s %s\n", shortMs(b.Ms), blameText(&b)); err != nil {
			return err
		}
	}
	return nil
}

func blameText(b *profile.Blame) string {
	details := []string{}
	switch b.Kind {
	case profile.KindWait:
		details = append(details, fmt.Sprintf("waited %s", times(b.N)))
	case profile.KindProcess:
		details = append(details, "process, from "+shortMs(b.AtMs))
	case profile.KindRequest:
		details = append(details, "first request")
	}
	var read []string
	if b.Bytes > 0 {
		read = append(read, units.HumanSize(float64(b.Bytes)))
	}
	if b.Files == 1 {
		read = append(read, "1 file")
	} else if b.Files > 1 {
		read = append(read, fmt.Sprintf("%d files", b.Files))
	}
	if len(read) > 0 {
		details = append(details, strings.Join(read, " in "))
	}
	if b.Phase != "" && b.Kind != profile.KindRequest {
		details = append(details, b.Phase)
	}
	return printable(b.Name) + " (" + strings.Join(details, ", ") + ")"
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

// printable is a text without what a terminal would take for a command.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// plainWriter writes text for a terminal, which records, and what is in images, are not
// to command.
type plainWriter struct{ w io.Writer }

func (p plainWriter) Write(b []byte) (int, error) {
	_, err := io.WriteString(p.w, strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) && r != '\n' && r != '\t' {
			return '?'
		}
		return r
	}, string(b)))
	return len(b), err
}

func newCriticalChainCommand(g *globalOptions) *cobra.Command {
	return newAnalyzeCommand(g, "critical-chain", "Print the chain of events that a measured start waited for",
		`Print the chain of events that a measured start waited for, the last one first. When
an event happened is after "@", how long it took since the one below it after "+".
With it is said what of that time was waiting for bytes, and what took longest.`, nil, printChain,
		func(a *analyzed) any {
			links := a.run.CriticalChain()
			if links == nil {
				links = []profile.Link{}
			}
			return struct {
				jsonHead
				Chain []profile.Link `json:"chain"`
			}{a.head(), links}
		})
}

func printChain(w io.Writer, a *analyzed) error {
	links := a.run.CriticalChain()
	if len(links) == 0 {
		_, err := fmt.Fprintln(w, "no event of it is known")
		return err
	}
	for i, l := range links {
		indent := ""
		if i > 0 {
			indent = strings.Repeat("  ", i-1) + "└─"
		}
		line := fmt.Sprintf("%s%s @%s", indent, l.Event, shortMs(l.AtMs))
		if i+1 < len(links) {
			line += " +" + shortMs(l.TookMs)
		}
		if l.Confidence != profile.Measured {
			line += " (" + l.Confidence + ")"
		}
		var why []string
		if l.LazyWaitMs != nil && *l.LazyWaitMs > 0 {
			why = append(why, "waited "+shortMs(*l.LazyWaitMs)+" for bytes")
		}
		for _, b := range l.Blames {
			why = append(why, printable(b.Name)+" "+shortMs(b.Ms))
		}
		if len(why) > 0 {
			line += "  " + l.Phase + ": " + strings.Join(why, ", ")
		}
		if _, err := fmt.Fprintln(w, line); err != nil {
			return err
		}
	}
	return nil
}

func newPlotCommand(g *globalOptions) *cobra.Command {
	var opts analyzeOptions
	cmd := &cobra.Command{
		Use: "plot RUN", Short: "Draw a measured start as an SVG picture",
		Long: `Draw a measured start as an SVG picture, on stdout: a bar for each phase, for the
packages that took longest, for each process and first request, with what was waiting
for bytes marked. The picture needs nothing else and can be sent or put on a page.
Of a record with several images, --subject says of which; without it, of the first.

` + runHelp,
		Example: "  thaw plot last > start.svg",
		Args:    exactArgs("RUN"), ValidArgsFunction: g.recordNames(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := g.record(cmd, args[0])
			if err != nil {
				return err
			}
			if opts.subject == "" && len(r.Subjects) > 0 {
				opts.subject = r.Subjects[0].Name
			}
			all, err := opts.runs(r)
			if err != nil {
				return err
			}
			a := all[0]
			sub := []string{a.subject.Image}
			for _, s := range []string{a.subject.Mode, a.subject.Cold, fmt.Sprintf("run %d of %d", a.number, len(a.subject.Runs)), a.record.Begun.UTC().Format("2 Jan 2006 15:04 MST"), "thaw " + a.record.Tool} {
				if s != "" {
					sub = append(sub, s)
				}
			}
			title := a.subject.Name
			if a.run.TotalMs != nil {
				title += ": ready after " + shortMs(*a.run.TotalMs)
			}
			return waterfall.Draw(cmd.OutOrStdout(), a.subject, a.run, waterfall.Options{Title: title, Subtitle: strings.Join(sub, "  ·  ")})
		},
	}
	cmd.Flags().StringVar(&opts.subject, "subject", "", "of this image, if the record has several")
	cmd.Flags().IntVar(&opts.run, "run", 0, "of this run, from 1 (default: of the one whose time to ready is nearest to the median)")
	return cmd
}
