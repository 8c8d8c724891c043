package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/thaw-project/thaw/internal/health"
	"github.com/thaw-project/thaw/internal/profile"
)

type healthOptions struct {
	ready      string
	run        string
	probe      string
	variant    string
	registered string
	propagate  string
	tune, json bool
}

func newHealthCommand(g *globalOptions) *cobra.Command {
	var opts healthOptions
	cmd := &cobra.Command{
		Use:   "health {--ready p50=S,p99=S | --run RUN} FILE...",
		Short: "Say when health checks notice that a container is ready, and when they give up on it",
		Long: `Say when health checks notice that a container is ready, and when they give up on
it: the soonest, the expected and the latest time, for containers that would pass
their check after --ready; how much of that is waiting for the next probe; and how
many starts are stopped, or restarted, for they are too slow.

A FILE is an ECS task definition or service, a load balancer's target groups (as
aws prints them), a Dockerfile, an image's config (or what docker inspect prints), a
compose file, or Kubernetes objects with pods. Together they are looked at
together: target groups and the service that has them.

Docker before 25 waits for the interval between probes, later ones for the start
interval while the start period lasts; ECS cannot set that, but on EC2 has it. Without
--variant all that are likely and differ are shown. What Fargate does is not
documented; fargate is the same as classic.

--run takes that from a measurement, from the start of the program to the first good
answer: RUN is the ID of a record that thaw runs ls lists, the beginning of one, last, or
a FILE.json; RUN@SUBJECT of a record with several images. Its median is p50. p99 is of
the lognormal distribution with its spread, and no less than the slowest start; from 50
starts on, what they came to.

--tune proposes settings by which the container is noticed soon and one start in a
thousand is still waited for, with a JSON Patch (RFC 6902; kubectl patch --type=json
takes it) or the new HEALTHCHECK, and what they come to. docs/health.md has the
formulas.

Exit codes: 0 done, 1 failed, 2 wrong usage. That starts would be given up is a finding,
no failure.`,
		Example: `  thaw health --ready p50=5.2,p99=12 task-definition.json target-groups.json
  thaw health --run last --tune deployment.yaml
  docker inspect IMAGE | thaw health --ready 3 --json -`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{errors.New("want a FILE; see thaw health --help")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return runHealth(cmd, g, &opts, args) },
	}
	f := cmd.Flags()
	f.StringVar(&opts.ready, "ready", "", "how long containers take until they would pass: p50=S,p99=S, or one time; seconds, or with a unit")
	f.StringVar(&opts.run, "run", "", "the same, from a measurement: its ID, last, or a FILE.json")
	f.StringVar(&opts.probe, "probe-duration", "50ms", "how long a probe takes")
	f.StringVar(&opts.variant, "variant", "", "the container's engine: classic, docker25, moby2026, fargate (default: those that are likely)")
	f.StringVar(&opts.registered, "registered-after", "0", "when the target is registered with the load balancer, after the container's start")
	f.StringVar(&opts.propagate, "propagation", "1s", "how long it takes until traffic reaches a pod that is ready")
	f.BoolVar(&opts.tune, "tune", false, "propose better settings")
	f.BoolVar(&opts.json, "json", false, "print JSON")
	if err := cmd.RegisterFlagCompletionFunc("run", g.recordNames(0)); err != nil {
		panic(err) // the flag was not bound
	}
	complete(cmd, "variant", "classic", "docker25", "moby2026", "fargate")
	return cmd
}

// judged is a check with what was computed of it.
type judged struct {
	File string `json:"file"`
	health.Result
	Tuned *tunedCheck `json:"tuned,omitempty"`
}

type tunedCheck struct {
	*health.Tuned
	After *health.Result `json:"after,omitempty"`
	Error string         `json:"error,omitempty"` // why there is none
}

// healthReport is what thaw health prints.
type healthReport struct {
	ReadyP50 float64  `json:"readyP50Seconds"`
	From     *readyOf `json:"readyOf,omitempty"`
	ReadyP99 float64  `json:"readyP99Seconds"`
	Probe    float64  `json:"probeSeconds"`
	Checks   []judged `json:"checks"`
}

// readyOf is a measurement that times until ready are taken from.
type readyOf struct {
	Record  string `json:"record"`
	Subject string `json:"subject"`
	Runs    int    `json:"runs"` // of which it is known
}

// measured fits the distribution of a measurement.
func (o *healthOptions) measured(cmd *cobra.Command, g *globalOptions) (health.Ready, *readyOf, error) {
	name, subject := splitSubject(o.run)
	r, err := g.record(cmd, name)
	if err != nil {
		return health.Ready{}, nil, err
	}
	if subject == "" && len(r.Subjects) == 1 {
		subject = r.Subjects[0].Name
	}
	s, err := subjectOf(r, subject)
	if err != nil {
		return health.Ready{}, nil, err
	}
	var times []time.Duration
	for i := range s.Runs {
		started, ready := s.Runs[i].Event(profile.EventStarted), s.Runs[i].Event(profile.EventReady)
		if s.Runs[i].Good() && started != nil && ready != nil {
			times = append(times, time.Duration((ready.AtMs-started.AtMs)*1e6))
		}
	}
	fitted, err := health.FitReady(times)
	if err != nil {
		return fitted, nil, fmt.Errorf("%s of record %s: when the program was started, and when it answered, is known of %d of %d runs: %w", s.Name, r.ID, len(times), len(s.Runs), err)
	}
	return fitted, &readyOf{r.ID, s.Name, len(times)}, nil
}

func (o *healthOptions) parse(cmd *cobra.Command, g *globalOptions) (h health.Options, from *readyOf, err error) {
	switch {
	case o.ready == "" && o.run == "":
		return h, nil, usageError{errors.New("--ready is missing, or --run: how long do containers take until they would pass? See thaw health --help")}
	case o.ready != "" && o.run != "":
		return h, nil, usageError{errors.New("--ready and --run say the same: want one of them")}
	case o.run != "":
		if h.Ready, from, err = o.measured(cmd, g); err != nil {
			return h, nil, err
		}
	default:
		if h.Ready, err = health.ParseReady(o.ready); err != nil {
			return h, nil, usageError{err}
		}
	}
	if err := o.rest(&h); err != nil {
		return h, nil, err
	}
	return h, from, nil
}

// rest reads the flags that say nothing of readiness.
func (o *healthOptions) rest(h *health.Options) (err error) {
	if h.Probe, err = health.ParseSeconds(o.probe); err != nil {
		return usageError{fmt.Errorf("--probe-duration: %w", err)}
	}
	if h.Registered, err = health.ParseSeconds(o.registered); err != nil {
		return usageError{fmt.Errorf("--registered-after: %w", err)}
	}
	if h.Propagation, err = health.ParseSeconds(o.propagate); err != nil {
		return usageError{fmt.Errorf("--propagation: %w", err)}
	}
	if o.variant != "" {
		if h.Variant, err = health.ParseVariant(o.variant); err != nil {
			return usageError{err}
		}
	}
	return nil
}

func runHealth(cmd *cobra.Command, g *globalOptions, opts *healthOptions, files []string) error {
	h, from, err := opts.parse(cmd, g)
	if err != nil {
		return err
	}
	type found struct {
		file  string
		check *health.Check
	}
	var all []found
	for _, name := range files {
		f, err := readHealth(cmd.InOrStdin(), name)
		if err != nil {
			return err
		}
		h.Services = append(h.Services, f.Services...)
		for i := range f.Checks {
			all = append(all, found{name, &f.Checks[i]})
		}
	}
	if len(all) == 0 {
		return errors.New("only services are in these files: add a task definition or target groups")
	}
	out := healthReport{From: from, ReadyP50: h.Ready.P50.Seconds(), ReadyP99: h.Ready.P99.Seconds(), Probe: h.Probe.Seconds()}
	for _, c := range all {
		j := judged{File: c.file, Result: health.Evaluate(c.check, h)}
		if opts.tune {
			j.Tuned = &tunedCheck{}
			if t, err := health.Tune(c.check, h); err != nil {
				j.Tuned.Error = err.Error()
			} else {
				then := h
				then.Services = t.Graced(h.Services)
				after := health.Evaluate(&t.Check, then)
				j.Tuned.Tuned, j.Tuned.After = t, &after
			}
		}
		out.Checks = append(out.Checks, j)
	}
	if opts.json {
		return printJSON(cmd, out)
	}
	return out.print(cmd.OutOrStdout())
}

func readHealth(stdin io.Reader, name string) (*health.File, error) {
	in := stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, fmt.Errorf("read checks: %w", err)
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, health.MaxFileBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read checks: %w", err)
	}
	return health.Parse(name, b)
}

func (h *healthReport) print(w io.Writer) error {
	if f := h.From; f != nil {
		fmt.Fprintf(w, "ready after p50 %.2f s, p99 %.2f s: %d starts of %s in %s\n\n", h.ReadyP50, h.ReadyP99, f.Runs, f.Subject, f.Record)
	}
	for i := range h.Checks {
		c := &h.Checks[i]
		if i > 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintf(w, "%s %s (%s)\n", c.Kind, c.Name, c.File)
		if err := printHealth(w, &c.Result); err != nil {
			return err
		}
		if c.Tuned == nil {
			continue
		}
		if err := c.Tuned.print(w, c); err != nil {
			return err
		}
	}
	return nil
}

// printHealth prints what was computed of a check, indented.
func printHealth(w io.Writer, r *health.Result) error {
	if r.Settings != "" {
		fmt.Fprintf(w, "  %s\n", r.Settings)
	}
	if len(r.Estimates) > 0 {
		fmt.Fprintln(w)
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	for i, e := range r.Estimates {
		if i == 0 {
			fmt.Fprintf(tw, "\t\tready\thealthy\tbest\texpected\tworst\tgiven up\t\n")
		}
		for _, row := range e.Rows {
			exact := "-"
			if row.Healthy != nil {
				exact = fmt.Sprintf("%.2f", *row.Healthy)
			}
			bounds := fmt.Sprintf("%.2f\t%.2f\t%.2f", row.Best, row.Expected, row.Worst)
			if row.GivenUp == 1 {
				exact, bounds = "never", "-\t-\t-"
			}
			fmt.Fprintf(tw, "\t%s %s\t%.2f\t%s\t%s\t%.1f %%\t\n", e.Variant, row.Quantile, row.Ready, exact, bounds, 100*row.GivenUp)
		}
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for _, e := range r.Estimates {
		variant := ""
		if e.Variant != "" && len(r.Estimates) > 1 {
			variant = string(e.Variant) + ": "
		}
		fmt.Fprintf(w, "  %son average %.2f s, of which %.2f s are waiting", variant, e.Mean, e.Wasted)
		if e.Deadline > 0 {
			fmt.Fprintf(w, "; given up at %s s if it is not ready by %.2f s: %.1f %%", fromTo(e.Deadline, e.DeadlineLatest), e.ReadyBy, 100*e.GivenUp)
		}
		fmt.Fprintln(w)
	}
	if r.TrafficAfter > 0 {
		fmt.Fprintf(w, "  traffic follows about %.2f s later (EndpointSlices, kube-proxy)\n", r.TrafficAfter)
	}
	if len(r.Estimates) > 0 {
		fmt.Fprintf(w, "  probes take %s a day\n", time.Duration(r.CostPerDay*1e9).Round(time.Second))
	}
	for _, f := range r.Findings {
		fmt.Fprintf(w, "  %s %s: %s\n", f.Level, f.ID, f.Text)
	}
	return nil
}

func fromTo(from, to float64) string {
	if from == to {
		return fmt.Sprintf("%.2f", from)
	}
	return fmt.Sprintf("%.2f to %.2f", from, to)
}

func (t *tunedCheck) print(w io.Writer, c *judged) error {
	if t.Error != "" {
		fmt.Fprintf(w, "\n  %s\n", t.Error)
		return nil
	}
	fmt.Fprint(w, "\n  tuned:\n")
	if err := printHealth(w, t.After); err != nil {
		return err
	}
	if t.Text != "" {
		where := "in its Dockerfile"
		switch {
		case t.Line > 0 && t.End > t.Line:
			where = fmt.Sprintf("in place of lines %d to %d of %s", t.Line, t.End-1, c.File)
		case t.Line > 0:
			where = fmt.Sprintf("before line %d of %s", t.Line, c.File)
		}
		fmt.Fprintf(w, "\n  %s:\n    %s\n", where, strings.ReplaceAll(t.Text, "\n", "\n    "))
		return nil
	}
	b, err := json.Marshal(t.Patch)
	if err != nil {
		return err
	}
	of := ""
	if t.Document > 0 {
		of = fmt.Sprintf(" of document %d", t.Document+1)
	}
	fmt.Fprintf(w, "\n  JSON Patch%s of %s:\n    %s\n", of, c.File, b)
	if t.GraceSeconds > 0 {
		fmt.Fprintf(w, "  healthCheckGracePeriodSeconds of its service: %d\n", t.GraceSeconds)
	}
	return nil
}
