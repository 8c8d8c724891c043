package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/thaw-project/thaw/internal/budget"
	"github.com/thaw-project/thaw/internal/profile"
)

// budgetOptions are the flags of commands that judge a measurement.
type budgetOptions struct {
	rules       []string
	file        string
	baseline    string
	margin      string
	junit       string
	markdown    string
	codeQuality string
	annotations string
}

// Values of --annotations.
const (
	annotationsAuto   = "auto"
	annotationsGitHub = "github"
	annotationsNone   = "none"
)

// budgetHelp explains the flags.
const budgetHelp = `A budget is MEASURE[.STAT]<=LIMIT: cold-start.p95<=1s (1s alone is that), pull<=200ms,
dependency-load.p50<=300ms, first-request.penalty<=2x (or a time), image.compressed<=150MB,
needed-bytes<=40MB, requests<=60; in quotes, for < is the shell's too. STAT is min, avg, max,
or a percentile; p95 if there is none. It is met if the percentile is within the limit with
95 % confidence, and missed if it is beyond it with as much; else the outcome is
inconclusive, as it is with too few runs (p95 takes 10, p99 takes 50), runs that failed or
were not proven cold, and phases that are not known. --baseline fails if the start, or the
first request's penalty, is slower than in an earlier record by more than --margin, by the
verdict of thaw runs compare. A .thaw-budget.yaml has rules with levels off, warn and fail:
docs/budgets.md.`

func (o *budgetOptions) bind(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringArrayVar(&o.rules, "budget", nil, "fail unless the measurement is within MEASURE[.STAT]<=LIMIT; repeatable")
	f.StringVar(&o.file, "budget-file", "", "read budgets from this file")
	f.StringVar(&o.baseline, "baseline", "", "fail if it is slower than this earlier RUN, a FILE.json or an ID")
	f.StringVar(&o.margin, "margin", "", "by how much it may be slower than the baseline (default 10%)")
	f.StringVar(&o.junit, "junit", "", "write what was judged as JUnit XML to this file")
	f.StringVar(&o.markdown, "markdown", "", "write it as Markdown to this file: a comment for a pull request")
	f.StringVar(&o.codeQuality, "codequality", "", "write it as GitLab's Code Quality report to this file")
	f.StringVar(&o.annotations, "annotations", annotationsAuto, "workflow commands on stdout: github, none, auto (where GITHUB_ACTIONS is true)")
	complete(cmd, "annotations", annotationsAuto, annotationsGitHub, annotationsNone)
	for _, name := range []string{"budget", "margin"} {
		complete(cmd, name)
	}
}

// config gathers what is to be judged; unasked is a budget file that is read if it is
// there.
func (o *budgetOptions) config(unasked string) (budget.Config, error) {
	c := budget.Config{Regression: budget.DefaultRegression()}
	switch o.annotations {
	case annotationsAuto, annotationsGitHub, annotationsNone:
	default:
		return c, usageError{fmt.Errorf("--annotations %q: use auto, github or none", o.annotations)}
	}
	if name := cmp.Or(o.file, unasked); name != "" {
		b, err := os.ReadFile(name)
		switch {
		case err == nil:
			if c, err = budget.ParseFile(b); err != nil {
				return c, usageError{fmt.Errorf("%s: %w", name, err)}
			}
		case o.file == "" && errors.Is(err, fs.ErrNotExist):
		default:
			return c, usageError{fmt.Errorf("read budgets: %w", err)}
		}
	}
	for _, s := range o.rules {
		r, err := budget.ParseRule(s)
		if err != nil {
			return c, usageError{err}
		}
		c.Rules = append(c.Rules, r)
	}
	if o.margin != "" {
		var err error
		if c.Regression.Margin, err = budget.ParseMargin(o.margin); err != nil {
			return c, usageError{fmt.Errorf("--margin: %w", err)}
		}
		if o.baseline == "" {
			return c, usageError{errors.New("--margin is of --baseline, which is missing")}
		}
	}
	return c, nil
}

// judgment is what a measurement is to be judged by, read before it is made.
type judgment struct {
	*budgetOptions
	config   budget.Config
	baseline *profile.Record // nil: none
}

// prepare reads budgets and baseline. Nil if nothing is to be judged.
func (o *budgetOptions) prepare(cmd *cobra.Command, g *globalOptions, unasked string) (*judgment, error) {
	c, err := o.config(unasked)
	if err != nil {
		return nil, err
	}
	j := &judgment{budgetOptions: o, config: c}
	if o.baseline != "" {
		if j.baseline, err = g.record(cmd, o.baseline); err != nil {
			return nil, usageError{fmt.Errorf("--baseline: %w", err)}
		}
	}
	if len(c.Rules) == 0 && j.baseline == nil {
		for flag, value := range map[string]string{"junit": o.junit, "markdown": o.markdown, "codequality": o.codeQuality} {
			if value != "" {
				return nil, usageError{fmt.Errorf("--%s: nothing is to be judged: want --budget or --baseline", flag)}
			}
		}
		return nil, nil
	}
	return j, nil
}

// judge judges a record, writes what came of it, and returns an error with the exit code
// unless all is well.
func (j *judgment) judge(cmd *cobra.Command, r *profile.Record, asJSON bool, to io.Writer) error {
	report := budget.Judge(&j.config, r, j.baseline)
	for _, out := range []struct {
		file  string
		write func(w io.Writer) error
	}{
		{j.junit, report.JUnit}, {j.markdown, report.Markdown},
		{j.codeQuality, func(w io.Writer) error { return report.CodeQuality(w, cmp.Or(j.file, budget.FileName)) }},
	} {
		if out.file == "" {
			continue
		}
		var b bytes.Buffer
		if err := out.write(&b); err != nil {
			return err
		}
		if err := writeFile(out.file, b.Bytes()); err != nil {
			return err
		}
	}
	if asJSON {
		if err := printJSON(cmd, report); err != nil {
			return err
		}
	} else if err := report.Text(to); err != nil {
		return err
	}
	if !asJSON && (j.annotations == annotationsGitHub || j.annotations == annotationsAuto && os.Getenv("GITHUB_ACTIONS") == "true") {
		if err := report.GitHub(to); err != nil {
			return err
		}
	}
	switch report.Outcome {
	case budget.Failed:
		return &exitError{code: exitFailed}
	case budget.Inconclusive:
		return &exitError{code: exitInvalid}
	}
	return nil
}

func newRunsCheckCommand(g *globalOptions) *cobra.Command {
	var opts budgetOptions
	var asJSON bool
	cmd := &cobra.Command{
		Use: "check RUN", Short: "Judge a measurement by budgets and by an earlier one",
		Long: `Judge a measurement by budgets, and by an earlier one: what thaw measure does with the
same flags, of a record that is kept or was exported, so that one job can measure and
another one judge. Without --budget-file, .thaw-budget.yaml is read if it is there.

` + budgetHelp + `

` + runHelp + `

Exit codes: 0 within all budgets, 1 a budget or the baseline was missed, 2 wrong usage, or
there is no such record, 3 inconclusive, which is no pass; 130 interrupted. Rules of level
warn do not count.`,
		Example: `  thaw runs check last --budget 1s --budget 'first-request.penalty<=2x'
  thaw runs check pr.json --baseline main.json --junit report.xml --markdown comment.md`,
		Args: exactArgs("RUN"), ValidArgsFunction: g.recordNames(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			j, err := opts.prepare(cmd, g, budget.FileName)
			if err != nil {
				return err
			}
			if j == nil {
				return usageError{errors.New("nothing is to be judged: want --budget, --baseline or a " + budget.FileName)}
			}
			r, err := g.record(cmd, args[0])
			if err != nil {
				return usageError{err} // 1 is a budget that was missed
			}
			return j.judge(cmd, r, asJSON, cmd.OutOrStdout())
		},
	}
	opts.bind(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
