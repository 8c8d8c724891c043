package aws

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	elb "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2"

	"github.com/thaw-project/thaw/internal/cloud"
	documents "github.com/thaw-project/thaw/internal/sources/ecs"
)

const (
	page     = 100             // tasks that DescribeTasks takes at once
	interval = 1 * time.Second // between two looks
)

// asker asks for a service's tasks.
type asker struct {
	args cloud.ECS
	ecs  *ecs.Client
	elb  *elb.Client
	send func(any) error
}

// ECS is the handler of [cloud.CallECS].
func ECS(ctx context.Context, raw json.RawMessage, send func(any) error) error {
	a := asker{send: send}
	if err := json.Unmarshal(raw, &a.args); err != nil {
		return fmt.Errorf("read arguments: %w", err)
	}
	c, err := load(ctx, a.args.Region, a.args.Profile)
	if err != nil {
		return err
	}
	a.ecs, a.elb = ecs.NewFromConfig(c), elb.NewFromConfig(c)
	until := time.Now().Add(time.Duration(a.args.WatchMs) * time.Millisecond)
	groups, err := a.targetGroups(ctx)
	if err != nil {
		return err
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		if a.args.WatchMs > 0 { // one look says nothing of since when
			if err := a.targets(ctx, groups); err != nil {
				return err
			}
		}
		if !time.Now().Before(until) {
			return a.tasks(ctx)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

func (a *asker) cluster() string { return cmp.Or(a.args.Cluster, "default") }

func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// tasks sends those that run and those that stopped in the last hour, which is how
// long ECS knows them.
func (a *asker) tasks(ctx context.Context) error {
	var arns []string
	for _, status := range []types.DesiredStatus{types.DesiredStatusRunning, types.DesiredStatusStopped} {
		pages := ecs.NewListTasksPaginator(a.ecs, &ecs.ListTasksInput{Cluster: optional(a.args.Cluster), ServiceName: optional(a.args.Service), DesiredStatus: status})
		for pages.HasMorePages() {
			p, err := pages.NextPage(ctx)
			if err != nil {
				return explain(err, "ecs:ListTasks", "the cluster "+a.cluster())
			}
			arns = append(arns, p.TaskArns...)
		}
	}
	for some := range slices.Chunk(arns, page) {
		out, err := a.ecs.DescribeTasks(ctx, &ecs.DescribeTasksInput{Cluster: optional(a.args.Cluster), Tasks: some})
		if err != nil {
			return explain(err, "ecs:DescribeTasks", "the tasks of the cluster "+a.cluster())
		}
		d := documents.Tasks{Tasks: []documents.Task{}}
		for i := range out.Tasks {
			d.Tasks = append(d.Tasks, task(&out.Tasks[i]))
		}
		for _, f := range out.Failures {
			d.Failures = append(d.Failures, documents.Failure{ARN: awssdk.ToString(f.Arn), Reason: awssdk.ToString(f.Reason)})
		}
		if err := a.send(d); err != nil {
			return err
		}
	}
	return nil
}

// targetGroups returns those of the service, where they are to be asked.
func (a *asker) targetGroups(ctx context.Context) ([]string, error) {
	if a.args.Service == "" {
		return nil, nil
	}
	out, err := a.ecs.DescribeServices(ctx, &ecs.DescribeServicesInput{Cluster: optional(a.args.Cluster), Services: []string{a.args.Service}})
	if err != nil {
		return nil, explain(err, "ecs:DescribeServices", "the service "+a.args.Service)
	}
	var groups []string
	for _, s := range out.Services {
		for _, lb := range s.LoadBalancers {
			if lb.TargetGroupArn != nil {
				groups = append(groups, *lb.TargetGroupArn)
			}
		}
	}
	if len(out.Services) == 0 {
		return nil, &cloud.Error{Message: fmt.Sprintf("the cluster %s has no service %s", a.cluster(), a.args.Service), Hint: "aws ecs list-services names those of the cluster"}
	}
	return groups, nil
}

// targets sends what the load balancer thinks now.
func (a *asker) targets(ctx context.Context, groups []string) error {
	for _, group := range groups {
		at := time.Now()
		out, err := a.elb.DescribeTargetHealth(ctx, &elb.DescribeTargetHealthInput{TargetGroupArn: &group})
		if err != nil {
			return explain(err, "elasticloadbalancing:DescribeTargetHealth", "* (it takes no resource)")
		}
		d := documents.TargetHealth{Time: documents.Time{Time: at}, TargetGroup: group, Descriptions: []documents.TargetDescription{}}
		for _, t := range out.TargetHealthDescriptions {
			var one documents.TargetDescription
			if t.Target != nil {
				one.Target.ID, one.Target.Port = awssdk.ToString(t.Target.Id), awssdk.ToInt32(t.Target.Port)
			}
			if t.TargetHealth != nil {
				one.TargetHealth.State, one.TargetHealth.Reason = string(t.TargetHealth.State), string(t.TargetHealth.Reason)
			}
			d.Descriptions = append(d.Descriptions, one)
		}
		if err := a.send(d); err != nil {
			return err
		}
	}
	return nil
}

// task is a task in the words of the command line's JSON, which package sources/ecs
// reads.
func task(t *types.Task) documents.Task {
	at := func(t *time.Time) documents.Time {
		if t == nil {
			return documents.Time{}
		}
		return documents.Time{Time: *t}
	}
	s := awssdk.ToString
	d := documents.Task{
		TaskARN: s(t.TaskArn), ClusterARN: s(t.ClusterArn), TaskDefinitionARN: s(t.TaskDefinitionArn), Group: s(t.Group), StartedBy: s(t.StartedBy),
		LaunchType: string(t.LaunchType), CapacityProviderName: s(t.CapacityProviderName), PlatformVersion: s(t.PlatformVersion), AvailabilityZone: s(t.AvailabilityZone),
		LastStatus: s(t.LastStatus), HealthStatus: string(t.HealthStatus), StopCode: string(t.StopCode), StoppedReason: s(t.StoppedReason), Version: t.Version,
		CreatedAt: at(t.CreatedAt), ConnectivityAt: at(t.ConnectivityAt), PullStartedAt: at(t.PullStartedAt), PullStoppedAt: at(t.PullStoppedAt),
		StartedAt: at(t.StartedAt), StoppedAt: at(t.StoppedAt),
	}
	for _, c := range t.Containers {
		one := documents.Container{Name: s(c.Name), Image: s(c.Image), ImageDigest: s(c.ImageDigest), LastStatus: s(c.LastStatus),
			HealthStatus: string(c.HealthStatus), Reason: s(c.Reason), ExitCode: c.ExitCode}
		for _, n := range c.NetworkInterfaces {
			one.NetworkInterfaces = append(one.NetworkInterfaces, documents.NetworkInterface{PrivateIPv4Address: s(n.PrivateIpv4Address)})
		}
		d.Containers = append(d.Containers, one)
	}
	for _, a := range t.Attachments {
		one := documents.Attachment{Type: s(a.Type)}
		for _, kv := range a.Details {
			one.Details = append(one.Details, documents.KeyValues{Name: s(kv.Name), Value: s(kv.Value)})
		}
		d.Attachments = append(d.Attachments, one)
	}
	return d
}
