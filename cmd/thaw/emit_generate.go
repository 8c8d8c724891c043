package main

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/thaw-project/thaw/internal/emit"
)

// defaultThreshold is more than a container should take to start.
const defaultThreshold = time.Second

func bindThreshold(cmd *cobra.Command, threshold *time.Duration) {
	cmd.Flags().DurationVar(threshold, "threshold", defaultThreshold, "p99 of cold starts that is too slow")
}

func newEmitCloudFormationCommand() *cobra.Command {
	var opts emit.Options
	var threshold time.Duration
	var topic string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "cloudformation",
		Short: "Print a CloudFormation template with a dashboard and an alarm",
		Long: `Print a CloudFormation template with a dashboard and an alarm of a service's cold
starts, for the metrics of thaw emit emf and cloudwatch.

What is given here becomes the default of the template's parameters. With
--task-definition both ask for the starts of that task definition, else for all of
the service.`,
		Example: `  thaw emit cloudformation --service api \
      --topic arn:aws:sns:eu-west-1:123456789012:oncall > coldstart.yaml
  aws cloudformation deploy --stack-name api-coldstart --template-file coldstart.yaml`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b, err := emit.CloudFormation(opts, emit.Alarm{ThresholdMs: float64(threshold) / float64(time.Millisecond), Topic: topic}, asJSON)
			if err != nil {
				return usageError{err}
			}
			_, err = cmd.OutOrStdout().Write(b)
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&opts.Service, "service", "", "service that is watched (default: to be given as the parameter Service)")
	f.StringVar(&opts.TaskDefinition, "task-definition", "", "watch only starts of this task definition")
	f.StringVar(&topic, "topic", "", "ARN of the SNS topic that is told of the alarm")
	f.BoolVar(&asJSON, "json", false, "print JSON in place of YAML")
	bindThreshold(cmd, &threshold)
	return cmd
}

func newEmitGrafanaCommand() *cobra.Command {
	return newEmitPromGenerator("grafana", "Print a Grafana dashboard", `Print a Grafana dashboard, to be imported, for what thaw's daemon and thaw emit
prometheus tell Prometheus.`, "  thaw emit grafana > coldstart.json", emit.Grafana)
}

func newEmitRulesCommand() *cobra.Command {
	return newEmitPromGenerator("rules", "Print Prometheus' rules", `Print rules for Prometheus: recordings, and alerts of services whose cold starts are
slow or fail.`, "  thaw emit rules --threshold 2.5s > coldstart.rules.yaml", emit.Rules)
}

func newEmitPromGenerator(name, short, long, example string, make func(time.Duration) ([]byte, error)) *cobra.Command {
	var threshold time.Duration
	cmd := &cobra.Command{
		Use: name, Short: short, Long: long, Example: example,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b, err := make(threshold)
			if err != nil {
				return usageError{err}
			}
			_, err = cmd.OutOrStdout().Write(b)
			return err
		},
	}
	bindThreshold(cmd, &threshold)
	return cmd
}
