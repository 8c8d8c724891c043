package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/thaw-project/thaw/internal/cloud"
	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/emit"
	"github.com/thaw-project/thaw/internal/metrics"
	"github.com/thaw-project/thaw/internal/profile"
	"github.com/thaw-project/thaw/internal/spans"
)

func newEmitCommand(g *globalOptions) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "emit",
		Short: "Give measured starts to CloudWatch, Prometheus and OpenTelemetry",
		Long: `Give measured starts to CloudWatch, Prometheus and OpenTelemetry, and make the
dashboards, alarms and rules that ask for them.

emf and prometheus print the starts of RUNs, otlp and cloudwatch send them;
cloudformation, grafana and rules print what watches them. Each start has its service:
--service, else the record's label service, else the image's repository. What is
not known of a start is absent, and never 0; a start that failed counts, and has no
times. docs/emit.md has all names.`,
	}
	return group(cmd, newEmitEMFCommand(g), newEmitPrometheusCommand(g), newEmitOTLPCommand(g), newEmitCloudWatchCommand(g),
		newEmitCloudFormationCommand(), newEmitGrafanaCommand(), newEmitRulesCommand())
}

// emitOptions are what all commands have that emit runs.
type emitOptions struct {
	emit.Options
	subject string
	high    bool
}

func (o *emitOptions) bind(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.Service, "service", "", "service of all starts (default the record's label, or the image's repository)")
	f.StringVar(&o.subject, "subject", "", "of this image only, if the record has several")
	f.StringVar(&o.Cold, "cold", "", "only starts of this coldness: L0, L1, L2, L3")
	complete(cmd, "cold", profile.ColdL0, profile.ColdL1, profile.ColdL2, profile.ColdL3)
}

func (o *emitOptions) bindCloudWatch(cmd *cobra.Command) {
	o.bind(cmd)
	f := cmd.Flags()
	f.StringVar(&o.TaskDefinition, "task-definition", "", "task definition of all starts (default the record's label without its revision, or the service)")
	f.BoolVar(&o.high, "high-resolution", false, "metrics of seconds in place of minutes, which cost more to read")
}

func (o *emitOptions) resolution() int {
	if o.high {
		return emit.ResolutionHigh
	}
	return emit.ResolutionStandard
}

// records are those of RUNs.
func (o *emitOptions) records(cmd *cobra.Command, g *globalOptions, runs []string) ([]*profile.Record, error) {
	switch o.Cold {
	case "", profile.ColdL0, profile.ColdL1, profile.ColdL2, profile.ColdL3:
	default:
		return nil, usageError{fmt.Errorf("--cold %s: use L0, L1, L2 or L3", o.Cold)}
	}
	var all []*profile.Record
	for _, name := range runs {
		r, err := g.record(cmd, name)
		if err != nil {
			return nil, err
		}
		if o.subject != "" {
			s, err := subjectOf(r, o.subject)
			if err != nil {
				return nil, err
			}
			r.Subjects = []profile.Subject{*s}
		}
		all = append(all, r)
	}
	return all, nil
}

// starts are those of RUNs that were asked for.
func (o *emitOptions) starts(cmd *cobra.Command, g *globalOptions, runs []string) ([]emit.Start, error) {
	records, err := o.records(cmd, g, runs)
	if err != nil {
		return nil, err
	}
	var all []emit.Start
	for _, r := range records {
		some, err := emit.Starts(r, o.Options)
		if err != nil {
			return nil, err
		}
		all = append(all, some...)
	}
	unknown := 0
	for i := range all {
		if all[i].DurationMs == nil && all[i].Error == "" {
			unknown++
		}
	}
	if unknown > 0 {
		fmt.Fprintf(cmd.ErrOrStderr(), "thaw: warning: of %d of %d starts it is not known how long they took, from requested to ready: alarms about that do not see them\n", unknown, len(all))
	}
	return all, nil
}

// warnStale says how many starts CloudWatch will not take.
func warnStale(cmd *cobra.Command, starts []emit.Start) {
	if n := emit.Stale(starts, time.Now()); n > 0 {
		fmt.Fprintf(cmd.ErrOrStderr(), "thaw: warning: %d of %d starts are older than two weeks, or to come: CloudWatch drops them without a word\n", n, len(starts))
	}
}

func newEmitEMFCommand(g *globalOptions) *cobra.Command {
	var opts emitOptions
	cmd := &cobra.Command{
		Use:   "emf RUN...",
		Short: "Print starts in CloudWatch's embedded metric format",
		Long: `Print starts in CloudWatch's embedded metric format, a line each: a container's
log driver (awslogs) or the CloudWatch agent takes it from there, and CloudWatch makes
metrics of it in the namespace ` + emit.Namespace + `.

` + runHelp,
		Example: `  thaw emit emf last --service api --task-definition api`,
		Args:    atLeastOneRun, ValidArgsFunction: g.recordNames(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			starts, err := opts.starts(cmd, g, args)
			if err != nil {
				return err
			}
			b, err := emit.EMF(starts, opts.resolution())
			if err != nil {
				return err
			}
			warnStale(cmd, starts)
			_, err = cmd.OutOrStdout().Write(b)
			return err
		},
	}
	opts.bindCloudWatch(cmd)
	return cmd
}

func newEmitPrometheusCommand(g *globalOptions) *cobra.Command {
	var opts emitOptions
	var openMetrics bool
	cmd := &cobra.Command{
		Use:   "prometheus RUN...",
		Short: "Print starts as histograms for Prometheus",
		Long: `Print starts as histograms for Prometheus: for a Pushgateway, or for the node
exporter's textfile collector. thaw's daemon tells its own starts itself, see thaw
daemon --metrics.

` + runHelp,
		Example: `  thaw emit prometheus last | curl --data-binary @- http://pushgateway:9091/metrics/job/coldstart
  cd /var/lib/node_exporter && thaw emit prometheus last > .new && mv .new coldstart.prom`,
		Args: atLeastOneRun, ValidArgsFunction: g.recordNames(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			starts, err := opts.starts(cmd, g, args)
			if err != nil {
				return err
			}
			var c emit.Collector
			c.Observe(starts...)
			var set metrics.Set
			c.Put(&set)
			return set.WriteText(cmd.OutOrStdout(), openMetrics)
		},
	}
	opts.bind(cmd)
	cmd.Flags().BoolVar(&openMetrics, "openmetrics", false, "print OpenMetrics, which neither of those takes")
	return cmd
}

func newEmitOTLPCommand(g *globalOptions) *cobra.Command {
	var opts emitOptions
	var endpoint string
	cmd := &cobra.Command{
		Use:   "otlp RUN...",
		Short: "Send starts to an OpenTelemetry collector, a trace each",
		Long: `Send starts to an OpenTelemetry collector: a trace each, with a span for each phase
that is known. A start that is sent again is the same trace.

The program thaw-otel does it, so all of OTEL_* holds: OTEL_EXPORTER_OTLP_ENDPOINT
(or --endpoint), OTEL_EXPORTER_OTLP_PROTOCOL, OTEL_EXPORTER_OTLP_HEADERS,
OTEL_SERVICE_NAME, ...

` + runHelp,
		Example: `  thaw emit otlp last --endpoint http://collector:4318`,
		Args:    atLeastOneRun, ValidArgsFunction: g.recordNames(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runEmitOTLP(cmd, g, &opts, endpoint, args)
		},
	}
	opts.bind(cmd)
	cmd.Flags().StringVar(&endpoint, "endpoint", "", "URL of the collector (default OTEL_EXPORTER_OTLP_ENDPOINT)")
	return cmd
}

func runEmitOTLP(cmd *cobra.Command, g *globalOptions, opts *emitOptions, endpoint string, runs []string) error {
	records, err := opts.records(cmd, g, runs)
	if err != nil {
		return err
	}
	if endpoint != "" {
		if err := os.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint); err != nil {
			return usageError{fmt.Errorf("--endpoint %q: %w", endpoint, err)}
		}
	}
	if !spans.Wanted(os.Getenv) {
		return &api.Error{Message: "the environment does not say where traces go, or that they go nowhere", Hint: "use --endpoint http://COLLECTOR:4318, or set OTEL_EXPORTER_OTLP_ENDPOINT"}
	}
	program, err := findProgram(spans.Program)
	if err != nil {
		return &api.Error{Message: err.Error(), Hint: "make build-otel makes it; it has to lie beside thaw or in the PATH"}
	}
	var all []spans.Start
	for _, r := range records {
		some, err := emit.Traces(r, opts.Options)
		if err != nil {
			return err
		}
		all = append(all, some...)
	}
	if err := spans.Deliver(cmd.Context(), []string{program}, all, cmd.ErrOrStderr()); err != nil {
		return err
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "sent %s\n", count(len(all), "trace"))
	return nil
}

// findProgram looks for a program of ours beside this one, then in the PATH.
func findProgram(name string) (string, error) {
	if exe, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(exe), name)
		if _, err := os.Stat(beside); err == nil {
			return beside, nil
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("find %s: %w", name, err)
	}
	return path, nil
}

func count(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

func newEmitCloudWatchCommand(g *globalOptions) *cobra.Command {
	var opts emitOptions
	var region, awsProfile string
	cmd := &cobra.Command{
		Use:   "cloudwatch RUN...",
		Short: "Send starts to CloudWatch (PutMetricData)",
		Long: `Send starts to CloudWatch with PutMetricData: the metrics of thaw emit emf, without a
log. Who sends needs the permission cloudwatch:PutMetricData; credentials and
region are found as AWS' own tools find them. A start that is sent again counts
again.

The program thaw-cloud does it (make build-cloud).

` + runHelp,
		Example: `  thaw emit cloudwatch last --service api --region eu-west-1`,
		Args:    atLeastOneRun, ValidArgsFunction: g.recordNames(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			starts, err := opts.starts(cmd, g, args)
			if err != nil {
				return err
			}
			calls, err := emit.PutMetricData(starts, opts.resolution())
			if err != nil {
				return err
			}
			warnStale(cmd, starts)
			raw, err := json.Marshal(calls)
			if err != nil {
				return err
			}
			if err := askCloud(cmd.Context(), cloud.CallMetrics, cloud.Metrics{Region: region, Profile: awsProfile, Calls: raw}, nil); err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "sent %s in %s\n", count(len(starts), "start"), count(len(calls), "call"))
			return nil
		},
	}
	opts.bindCloudWatch(cmd)
	cmd.Flags().StringVar(&region, "region", "", "AWS region (default the environment's)")
	cmd.Flags().StringVar(&awsProfile, "profile", "", "profile of AWS' configuration (default the environment's)")
	return cmd
}
