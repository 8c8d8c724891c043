package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/thaw-project/thaw/internal/cloud"
	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/sources/ecs"
)

type measureECSOptions struct {
	sourceOptions
	container string
	metadata  bool
	ask       cloud.ECS
	watch     time.Duration
}

func newMeasureECSCommand(g *globalOptions) *cobra.Command {
	var opts measureECSOptions
	cmd := &cobra.Command{
		Use:   "ecs FILE... | --cluster C --service S | --metadata",
		Short: "Say where starts of Amazon ECS tasks spent their time, by what ECS noted",
		Long: `Say where starts of Amazon ECS tasks spent their time, by what ECS noted of them.

A FILE has documents of AWS, in any order and number: task metadata v4
(curl ${ECS_CONTAINER_METADATA_URI_V4}/task, in the task), answers of aws ecs describe-tasks,
events "ECS Task State Change" of EventBridge (also as aws logs tail and filter-log-events
print them), and answers of aws elbv2 describe-target-health, each with a "time". What is
about one task is one start. "-" is standard input.

Task metadata says since when a container runs and is healthy; the others say when the task
was asked for. Together they say most. Pulls are known of a task as a whole, from the first
image's begin to the last one's end. What the program does until it is healthy ECS does not
see: thaw measure does.

--cluster and --service ask ECS itself, through the program thaw-cloud, for tasks that run or
stopped in the last hour. With --watch also the load balancer is asked, once a second, when
it finds new targets healthy. It takes the permissions ecs:ListTasks, ecs:DescribeTasks,
ecs:DescribeServices and, with --watch, elasticloadbalancing:DescribeTargetHealth.

--metadata asks the metadata endpoint of the task that thaw runs in, and nobody else. With
--watch it asks again, until its containers are healthy that have a health check.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.`,
		Example: `  aws ecs describe-tasks --cluster shop --tasks $TASKS | thaw measure ecs -
  thaw measure ecs events.jsonl metadata-*.json
  thaw measure ecs --cluster shop --service api --watch 5m`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runMeasureECS(cmd, g, &opts, args)
		},
	}
	opts.bind(cmd)
	f := cmd.Flags()
	f.StringVar(&opts.container, "container", "", "whose start is meant, of tasks with several (default: the one with a health check, else the last)")
	f.BoolVar(&opts.metadata, "metadata", false, "ask the metadata endpoint of the task that thaw runs in")
	f.StringVar(&opts.ask.Cluster, "cluster", "", "ask ECS for tasks of this cluster")
	f.StringVar(&opts.ask.Service, "service", "", "of this service (default all of the cluster)")
	f.StringVar(&opts.ask.Region, "region", "", "AWS region (default the environment's)")
	f.StringVar(&opts.ask.Profile, "profile", "", "profile of AWS' shared configuration")
	f.DurationVar(&opts.watch, "watch", 0, "watch for so long: the load balancer, and then ask for the tasks; with --metadata until it is healthy")
	return cmd
}

func runMeasureECS(cmd *cobra.Command, g *globalOptions, opts *measureECSOptions, args []string) error {
	live := opts.ask.Cluster != "" || opts.ask.Service != ""
	switch {
	case opts.metadata && live:
		return usageError{errors.New("want --metadata or --cluster, not both")}
	case opts.watch != 0 && !live && !opts.metadata || opts.watch < 0:
		return usageError{errors.New("--watch goes with --cluster and --service, or --metadata, and is a time to come")}
	}
	if err := oneSource(cmd, args, live || opts.metadata, "--cluster and --service, or --metadata"); err != nil {
		return err
	}
	var r ecs.Reader
	var err error
	switch {
	case live:
		opts.ask.WatchMs = opts.watch.Milliseconds()
		sayWatching(cmd, opts.watch)
		err = askCloud(cmd.Context(), cloud.CallECS, opts.ask, r.Read)
	case opts.metadata:
		err = watchTaskMetadata(cmd.Context(), &r, os.Getenv("ECS_CONTAINER_METADATA_URI_V4"), opts.watch)
	default:
		err = readDocuments(cmd, &r, args)
	}
	if err != nil {
		return err
	}
	rec, err := r.Record(ecs.Options{Container: opts.container})
	if errors.Is(err, ecs.ErrNoTasks) && live {
		err = errors.New("no tasks run there, and none stopped in the last hour")
	}
	if err != nil {
		return err
	}
	return opts.finish(cmd, g, rec)
}

// watchTaskMetadata asks again and again, until all containers are healthy that are checked
// or the time is over.
func watchTaskMetadata(ctx context.Context, into *ecs.Reader, endpoint string, watch time.Duration) error {
	until := time.Now().Add(watch)
	tick := time.NewTicker(max(time.Second, watch/500)) // as many documents as a reader takes, and more than ECS makes checks
	defer tick.Stop()
	for {
		if err := readTaskMetadata(ctx, into, endpoint); err != nil || into.Healthy() || !time.Now().Before(until) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// readTaskMetadata asks the endpoint that ECS gives each container.
func readTaskMetadata(ctx context.Context, into documents, endpoint string) error {
	if endpoint == "" {
		return api.Errorf(api.CodeUnsupported, "run it in a task of ECS, or read its ${ECS_CONTAINER_METADATA_URI_V4}/task as a FILE",
			"ECS_CONTAINER_METADATA_URI_V4 is not set: thaw does not run in a task of ECS")
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, endpoint+"/task", nil)
	if err != nil {
		return fmt.Errorf("ask for task metadata: %w", err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("ask for task metadata: %w", err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxSource))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %.200s", resp.Status, b)
	}
	if err == nil {
		err = into.Read(b)
	}
	if err != nil {
		return fmt.Errorf("read task metadata: %w", err)
	}
	return nil
}
