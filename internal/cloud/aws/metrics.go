package aws

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/service/cloudwatch"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatch/types"

	"github.com/thaw-project/thaw/internal/cloud"
	"github.com/thaw-project/thaw/internal/emit"
)

// Metrics is the handler of [cloud.CallMetrics]: PutMetricData, a call after the other.
func Metrics(ctx context.Context, raw json.RawMessage, _ func(any) error) error {
	var args cloud.Metrics
	if err := json.Unmarshal(raw, &args); err != nil {
		return fmt.Errorf("read arguments: %w", err)
	}
	var calls []emit.Call
	if err := json.Unmarshal(args.Calls, &calls); err != nil {
		return fmt.Errorf("read arguments: %w", err)
	}
	c, err := load(ctx, args.Region, args.Profile)
	if err != nil {
		return err
	}
	client := cloudwatch.NewFromConfig(c)
	for i := range calls {
		_, err := client.PutMetricData(ctx, input(&calls[i]))
		if err == nil {
			continue
		}
		err = explain(err, "cloudwatch:PutMetricData", `* (it takes no resource; a condition on cloudwatch:namespace may have "`+calls[i].Namespace+`")`)
		var e *cloud.Error
		if i > 0 && errors.As(err, &e) {
			e.Message += fmt.Sprintf("; %d of %d calls were sent before", i, len(calls))
		}
		return err
	}
	return nil
}

func input(c *emit.Call) *cloudwatch.PutMetricDataInput {
	in := &cloudwatch.PutMetricDataInput{Namespace: &c.Namespace}
	for i := range c.Data {
		d := &c.Data[i]
		out := types.MetricDatum{MetricName: &d.Name, Unit: types.StandardUnit(d.Unit), Timestamp: &d.At, Values: d.Values, Counts: d.Counts, StorageResolution: &d.Resolution}
		for j := range d.Dimensions {
			out.Dimensions = append(out.Dimensions, types.Dimension{Name: &d.Dimensions[j].Name, Value: &d.Dimensions[j].Value})
		}
		in.MetricData = append(in.MetricData, out)
	}
	return in
}
