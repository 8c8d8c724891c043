package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/thaw-project/thaw/internal/profile"
	"github.com/thaw-project/thaw/internal/profilestore"
)

func newRunsCommand(g *globalOptions) *cobra.Command {
	cmd := &cobra.Command{
		Use: "runs", Short: "List, show, compare and judge measured starts",
		Long: `List, show, compare and judge measured starts: those that thaw measure keeps in the
state directory, and files of them. The newest 1000 are kept (256 MiB), and as many of
the daemon's own starts; thaw runs pin keeps one for good.

` + runHelp + `
Where a command takes RUN@SUBJECT, it means one image of a record with several.`,
	}
	group(cmd, newRunsLsCommand(g), newRunsShowCommand(g), newRunsCompareCommand(g), newRunsCheckCommand(g), newRunsExportCommand(g), newRunsImportCommand(g), newRunsRmCommand(g),
		newRunsPinCommand(g, "pin", true), newRunsPinCommand(g, "unpin", false))
	return cmd
}

type runsLsOptions struct {
	image, source string
	labels        []string
	since         time.Duration
	limit         int
	quiet, json   bool
}

func newRunsLsCommand(g *globalOptions) *cobra.Command {
	var opts runsLsOptions
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List the measured starts that are kept here, the newest first",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := g.profileStore(cmd)
			if err != nil {
				return err
			}
			labels, err := parseLabels(opts.labels)
			if err != nil {
				return err
			}
			heads, err := s.List(cmd.Context())
			if err != nil {
				return recordError(err)
			}
			heads = slices.DeleteFunc(heads, func(h profilestore.Head) bool { return !opts.matches(&h, labels, time.Now()) })
			if opts.limit > 0 && len(heads) > opts.limit {
				heads = heads[:opts.limit]
			}
			return opts.print(cmd, heads)
		},
	}
	f := cmd.Flags()
	f.StringVar(&opts.image, "image", "", "only those with an image whose name has this in it")
	f.StringVar(&opts.source, "source", "", "only those from there: measure, attach, daemon, containerd, ecs, kubernetes")
	f.StringArrayVar(&opts.labels, "label", nil, "only those with this label, KEY or KEY=VALUE; repeatable")
	f.DurationVar(&opts.since, "since", 0, "only those of so long ago at most, such as 24h")
	f.IntVarP(&opts.limit, "limit", "n", 0, "only the newest N")
	f.BoolVarP(&opts.quiet, "quiet", "q", false, "print IDs only")
	f.BoolVar(&opts.json, "json", false, "print JSON")
	complete(cmd, "source", profile.SourceMeasure, profile.SourceAttach, profile.SourceDaemon, profile.SourceContainerd, profile.SourceECS, profile.SourceKubernetes)
	return cmd
}

// parseLabels reads KEY or KEY=VALUE; nil is any value.
func parseLabels(all []string) (map[string]*string, error) {
	labels := map[string]*string{}
	for _, l := range all {
		key, value, ok := strings.Cut(l, "=")
		if key == "" {
			return nil, usageError{fmt.Errorf("--label %q: want KEY or KEY=VALUE", l)}
		}
		labels[key] = nil
		if ok {
			labels[key] = &value
		}
	}
	return labels, nil
}

func (o *runsLsOptions) matches(h *profilestore.Head, labels map[string]*string, now time.Time) bool {
	if o.source != "" && h.Source != o.source || o.since > 0 && now.Sub(h.Begun) > o.since {
		return false
	}
	if o.image != "" && !slices.ContainsFunc(h.Subjects, func(s profilestore.SubjectHead) bool { return strings.Contains(s.Image, o.image) }) {
		return false
	}
	for key, want := range labels {
		if got, ok := h.Labels[key]; !ok || want != nil && got != *want {
			return false
		}
	}
	return true
}

func (o *runsLsOptions) print(cmd *cobra.Command, heads []profilestore.Head) error {
	w := cmd.OutOrStdout()
	switch {
	case o.json:
		return printJSON(cmd, append([]profilestore.Head{}, heads...))
	case o.quiet:
		for _, h := range heads {
			fmt.Fprintln(w, h.ID)
		}
		return nil
	case len(heads) == 0:
		fmt.Fprintln(cmd.ErrOrStderr(), "thaw: no measured start is kept here, or none like that; thaw measure makes them")
		return nil
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "ID\tAGE\tSOURCE\tSIZE\tWHAT (runs, median until ready)")
	for _, h := range heads {
		pin := ""
		if h.Pinned {
			pin = "pinned; "
		}
		age := "?"
		if !h.Begun.IsZero() {
			age = units.HumanDuration(time.Since(h.Begun))
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s%s\n", h.ID, age, h.Source, units.HumanSize(float64(h.Bytes)), pin, headText(&h))
	}
	return tw.Flush()
}

func newRunsShowCommand(g *globalOptions) *cobra.Command {
	var asJSON bool
	var subject string
	cmd := &cobra.Command{
		Use: "show RUN", Short: "Show a measurement: phases, packages, first requests",
		Long: "Show a measurement: what each phase took in all its runs, which packages took longest,\nand what first requests cost.\n\n" + runHelp,
		Args: exactArgs("RUN"), ValidArgsFunction: g.recordNames(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := g.record(cmd, args[0])
			if err != nil {
				return err
			}
			subjects, err := subjectsOf(r, subject)
			if err != nil {
				return err
			}
			if !asJSON {
				return printRecord(cmd.OutOrStdout(), r, subjects)
			}
			out := struct {
				ID       string            `json:"id"`
				Name     string            `json:"name,omitempty"`
				Source   string            `json:"source"`
				Begun    time.Time         `json:"begun"`
				Labels   map[string]string `json:"labels,omitempty"`
				Signals  []profile.Signal  `json:"signals,omitempty"`
				Warnings []string          `json:"warnings,omitempty"`
				Subjects []profile.Summary `json:"subjects"`
			}{r.ID, r.Name, r.Source, r.Begun, r.Labels, r.Signals, r.Warnings, nil}
			for _, s := range subjects {
				out.Subjects = append(out.Subjects, s.Summarize())
			}
			return printJSON(cmd, out)
		},
	}
	cmd.Flags().StringVar(&subject, "subject", "", "this image only, if the record has several")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON (thaw runs export prints the whole record)")
	return cmd
}

func newRunsCompareCommand(g *globalOptions) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "compare A [B]", Short: "Compare measurements, phase by phase, with a verdict",
		Long: `Compare the starts of B with those of A, phase by phase: medians, their difference and
ratio with 95 % confidence, and a verdict. "faster" or "slower" takes five runs of each
at least, a Mann-Whitney test that finds such a difference in fewer than 5 % of cases
where there is none, and an interval of the difference without 0; else it is "no
evidence". Images of the same name are compared with each other; with A alone, or as
A@SUBJECT B@SUBJECT, two images of one record.

` + runHelp,
		Example: `  thaw runs compare main.json last
  thaw runs compare last                             # of two images, or modes
  thaw runs compare last@"app lazy" last@"app eager"`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) < 1 || len(args) > 2 {
				return usageError{errors.New("want A and B; see thaw runs compare --help")}
			}
			return nil
		},
		ValidArgsFunction: g.recordNames(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			pairs, err := g.pairs(cmd, args)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd, pairs)
			}
			for i := range pairs {
				if i > 0 {
					fmt.Fprintln(cmd.OutOrStdout())
				}
				if err := pairs[i].print(cmd.OutOrStdout()); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// pair is two subjects and how they compare.
type pair struct {
	RecordA string `json:"record_a"`
	RecordB string `json:"record_b"`
	profile.SubjectComparison
	Warnings []string `json:"warnings,omitempty"`
}

// pairs are what compare compares.
func (g *globalOptions) pairs(cmd *cobra.Command, args []string) ([]pair, error) {
	nameA, subjectA := splitSubject(args[0])
	a, err := g.record(cmd, nameA)
	if err != nil {
		return nil, err
	}
	if len(args) == 1 {
		if len(a.Subjects) != 2 {
			return nil, usageError{fmt.Errorf("record %s has %d images: want B too, or A@SUBJECT B@SUBJECT", a.ID, len(a.Subjects))}
		}
		return []pair{newPair(a, a, &a.Subjects[0], &a.Subjects[1])}, nil
	}
	nameB, subjectB := splitSubject(args[1])
	b, err := g.record(cmd, nameB)
	if err != nil {
		return nil, err
	}
	as, err := subjectsOf(a, subjectA)
	if err != nil {
		return nil, err
	}
	bs, err := subjectsOf(b, subjectB)
	if err != nil {
		return nil, err
	}
	if len(as) == 1 && len(bs) == 1 {
		return []pair{newPair(a, b, as[0], bs[0])}, nil
	}
	var out []pair
	for _, s := range as {
		for _, o := range bs {
			if s.Name == o.Name {
				out = append(out, newPair(a, b, s, o))
			}
		}
	}
	if out == nil {
		return nil, usageError{fmt.Errorf("records %s and %s have no image of the same name: name them, as in A@SUBJECT B@SUBJECT", a.ID, b.ID)}
	}
	return out, nil
}

func newPair(ra, rb *profile.Record, a, b *profile.Subject) pair {
	return pair{RecordA: ra.ID, RecordB: rb.ID, SubjectComparison: profile.CompareSubjects(a, b), Warnings: profile.Unlike(ra, rb, a, b)}
}

func (p *pair) print(w io.Writer) error {
	fmt.Fprintf(w, "A: %s of %s\nB: %s of %s\n", p.A, p.RecordA, p.B, p.RecordB)
	for _, warning := range p.Warnings {
		fmt.Fprintf(w, "warning: %s\n", warning)
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "\n\tA\tB\tdifference\t95 % of it\tratio\tB is\t")
	for _, m := range p.Measures {
		fmt.Fprintf(tw, "%s\t%s\t", m.Name, statText(&m.A, m.Unit))
		fmt.Fprintf(tw, "%s\t", statText(&m.B, m.Unit))
		delta, ci, ratio := "-", "-", "-"
		if m.A.N > 0 && m.B.N > 0 {
			delta = signed(m.Delta, m.Unit)
		}
		if m.DeltaCI != nil {
			ci = signed(m.DeltaCI.Low, m.Unit) + " to " + signed(m.DeltaCI.High, m.Unit)
		}
		if m.Ratio != nil {
			ratio = fmt.Sprintf("%.2f", *m.Ratio)
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t\n", delta, ci, ratio, verdictText(&m))
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	if total := p.Measure(profile.MeasureTotal); total != nil {
		fmt.Fprintf(w, "\n%s\n", sentence(p, total))
	}
	return nil
}

func statText(s *profile.Stats, unit string) string {
	if s.N == 0 {
		return "?"
	}
	return amount(s.P50, unit)
}

// verdictText is a verdict in the words of what is measured.
func verdictText(m *profile.MeasureComparison) string {
	if m.Unit == profile.UnitMs || m.Verdict == profile.NoEvidence {
		return m.Verdict
	}
	return map[string]string{profile.Faster: "less", profile.Slower: "more"}[m.Verdict]
}

// sentence says what a comparison comes to.
func sentence(p *pair, m *profile.MeasureComparison) string {
	if m.Verdict == profile.NoEvidence {
		return fmt.Sprintf("No evidence that %s starts faster or slower than %s: %s.", p.B, p.A, m.Reason)
	}
	s := fmt.Sprintf("%s starts %s than %s by %s", p.B, m.Verdict, p.A, shortMs(max(m.Delta, -m.Delta)))
	if m.RatioCI != nil {
		s += fmt.Sprintf(": it takes %.2f times as long (%.2f to %.2f with 95 %% confidence)", *m.Ratio, m.RatioCI.Low, m.RatioCI.High)
	}
	return s + fmt.Sprintf(", p = %.1g.", *m.P)
}

func newRunsExportCommand(g *globalOptions) *cobra.Command {
	var file string
	var compact bool
	cmd := &cobra.Command{
		Use: "export RUN", Short: "Print a record as JSON, with everything that is in it",
		Long: "Print a record as JSON, with everything that is in it: docs/formats/profile.md. thaw runs\nimport, and all commands that take a RUN, read it.\n\n" + runHelp,
		Args: exactArgs("RUN"), ValidArgsFunction: g.recordNames(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := g.record(cmd, args[0])
			if err != nil {
				return err
			}
			b, err := profile.Encode(r)
			if err != nil {
				return err
			}
			if !compact {
				var indented bytes.Buffer
				if err := json.Indent(&indented, b, "", " "); err != nil {
					return err
				}
				b = indented.Bytes()
			}
			if file != "" {
				return writeFile(file, b)
			}
			_, err = cmd.OutOrStdout().Write(b)
			return err
		},
	}
	cmd.Flags().StringVarP(&file, "output", "o", "", "write it to this file instead")
	cmd.Flags().BoolVar(&compact, "compact", false, "on one line")
	return cmd
}

func newRunsImportCommand(g *globalOptions) *cobra.Command {
	var replace bool
	cmd := &cobra.Command{
		Use: "import FILE...", Short: "Keep records that were exported elsewhere",
		Long: "Keep records that were exported elsewhere, under the IDs that they have, which are printed.\nA FILE - is stdin. A record that is here already is left alone, unless it is another one: then\n--replace is needed.",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{errors.New("want a FILE; see thaw runs import --help")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, name := range args {
				r, err := readRecordFile(cmd, name)
				if err != nil {
					return err
				}
				if err := g.importRecord(cmd, r, replace); err != nil {
					return err
				}
				fmt.Fprintln(cmd.OutOrStdout(), r.ID)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&replace, "replace", false, "replace records with the same ID")
	return cmd
}

func (g *globalOptions) importRecord(cmd *cobra.Command, r *profile.Record, replace bool) error {
	s, err := g.profileStore(cmd)
	if err != nil {
		return err
	}
	old, err := s.Get(cmd.Context(), r.ID)
	var damage *profilestore.DamagedError
	switch {
	case errors.Is(err, profilestore.ErrNotFound), err != nil && replace, errors.As(err, &damage) && damage.ID == "": // Put sees to it
	case err != nil:
		return recordError(err)
	case !replace:
		a, errA := profile.Encode(old)
		b, errB := profile.Encode(r)
		if err := errors.Join(errA, errB); err != nil {
			return err
		}
		if bytes.Equal(a, b) {
			return nil
		}
		return fmt.Errorf("record %s is here, and another one: --replace replaces it", r.ID)
	}
	return g.putRecord(cmd.Context(), cmd, r)
}

func newRunsRmCommand(g *globalOptions) *cobra.Command {
	return &cobra.Command{
		Use: "rm RUN...", Aliases: []string{"remove"}, Short: "Remove records, also pinned ones",
		Long: "Remove records from the state directory, also pinned ones: all of them, or none if one is\nnot there. A RUN is an ID, the beginning of one, or last.",
		Args: atLeastOneRun, ValidArgsFunction: g.recordNames(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, ids, err := g.resolveAll(cmd, args)
			if err != nil {
				return err
			}
			return recordError(s.Delete(cmd.Context(), ids...))
		},
	}
}

func newRunsPinCommand(g *globalOptions, verb string, pinned bool) *cobra.Command {
	short := "Keep records for good"
	if !pinned {
		short = "Let records be removed again when they are old"
	}
	return &cobra.Command{
		Use: verb + " RUN...", Short: short, Args: atLeastOneRun, ValidArgsFunction: g.recordNames(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, ids, err := g.resolveAll(cmd, args)
			if err != nil {
				return err
			}
			return recordError(s.Pin(cmd.Context(), pinned, ids...))
		},
	}
}

func atLeastOneRun(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return usageError{fmt.Errorf("want a RUN; see %s --help", cmd.CommandPath())}
	}
	return nil
}

// resolveAll finds records of the store by what they were called.
func (g *globalOptions) resolveAll(cmd *cobra.Command, names []string) (*profilestore.Store, []string, error) {
	s, err := g.profileStore(cmd)
	if err != nil {
		return nil, nil, err
	}
	ids := map[string]bool{}
	for _, name := range names {
		if isRecordFile(name) {
			return nil, nil, usageError{fmt.Errorf("%q is a file: want the ID of a record that is kept here", name)}
		}
		h, err := s.Resolve(cmd.Context(), name)
		if err != nil {
			return nil, nil, recordError(err)
		}
		ids[h.ID] = true
	}
	return s, slices.Sorted(maps.Keys(ids)), nil
}

// printRecord prints what a measurement came to.
func printRecord(w io.Writer, r *profile.Record, subjects []*profile.Subject) error {
	w = plainWriter{w}
	fmt.Fprintf(w, "%s  %s, %s", r.ID, r.Source, r.Begun.Local().Format("2 Jan 2006 15:04:05"))
	if r.Name != "" {
		fmt.Fprintf(w, "  %s", r.Name)
	}
	for _, key := range slices.Sorted(maps.Keys(r.Labels)) {
		fmt.Fprintf(w, "  %s=%s", key, r.Labels[key])
	}
	fmt.Fprintln(w)
	for _, s := range subjects {
		fmt.Fprintln(w)
		if r.Source == profile.SourceMeasure || r.Source == profile.SourceAttach {
			if err := printSubject(w, s); err != nil {
				return err
			}
			continue
		}
		fmt.Fprintf(w, "%s: %s\n", s.Name, countStarts(len(s.Runs)))
		if err := printSource(w, s); err != nil {
			return err
		}
	}
	for _, warning := range r.Warnings {
		fmt.Fprintf(w, "warning: %s\n", warning)
	}
	return nil
}
