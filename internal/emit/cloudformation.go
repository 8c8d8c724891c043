package emit

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"sync"

	"go.yaml.in/yaml/v3"

	"github.com/thaw-project/thaw/internal/profile"
)

// Alarm is what the alarm of a template is made with.
type Alarm struct {
	ThresholdMs float64
	Topic       string // ARN of an SNS topic; empty: a parameter without a default
}

// Periods of dashboard and alarm, in seconds.
const (
	period     = 300
	hour       = 3600
	quantile   = "p99"
	alarmAfter = 2 // periods
)

// The template's parameters.
const (
	paramService   = "Service"
	paramTask      = "TaskDefinition"
	paramDashboard = "DashboardName"
	paramThreshold = "ThresholdMs"
	paramLow       = "LowSamples"
	paramTopic     = "TopicArn"
	conditionTopic = "HasTopic"

	// what a value may be that is put between quotes in JSON, and is a dimension's
	namePattern      = `^[A-Za-z0-9][A-Za-z0-9 ._/@#+=:-]{0,254}$`
	topicPattern     = `^$|^arn:aws[a-z-]*:sns:[a-z0-9-]+:[0-9]{12}:.+$`
	maxDashboardName = 255
	leastThresholdMs = 1
)

var ( // not at each start of the program
	nameRegexp  = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(namePattern) })
	topicRegexp = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(topicPattern) })
)

// cfnTemplate is a CloudFormation template, with its members in the usual order.
type cfnTemplate struct {
	Version     string        `json:"AWSTemplateFormatVersion" yaml:"AWSTemplateFormatVersion"`
	Description string        `json:"Description" yaml:"Description"`
	Parameters  cfnParameters `json:"Parameters" yaml:"Parameters"`
	Conditions  cfnConditions `json:"Conditions" yaml:"Conditions"`
	Resources   cfnResources  `json:"Resources" yaml:"Resources"`
}

type cfnParameters struct {
	Service        *cfnParameter `json:"Service" yaml:"Service"`
	TaskDefinition *cfnParameter `json:"TaskDefinition,omitempty" yaml:"TaskDefinition,omitempty"`
	DashboardName  *cfnParameter `json:"DashboardName" yaml:"DashboardName"`
	ThresholdMs    *cfnParameter `json:"ThresholdMs" yaml:"ThresholdMs"`
	LowSamples     *cfnParameter `json:"LowSamples" yaml:"LowSamples"`
	TopicArn       *cfnParameter `json:"TopicArn" yaml:"TopicArn"`
}

type cfnParameter struct {
	Type           string   `json:"Type" yaml:"Type"`
	Description    string   `json:"Description" yaml:"Description"`
	Default        *string  `json:"Default,omitempty" yaml:"Default,omitempty"`
	AllowedPattern string   `json:"AllowedPattern,omitempty" yaml:"AllowedPattern,omitempty"`
	AllowedValues  []string `json:"AllowedValues,omitempty" yaml:"AllowedValues,omitempty"`
	MinValue       string   `json:"MinValue,omitempty" yaml:"MinValue,omitempty"`
}

type cfnConditions struct {
	HasTopic map[string]any `json:"HasTopic" yaml:"HasTopic"`
}

type cfnResources struct {
	Dashboard cfnDashboard `json:"ColdStartDashboard" yaml:"ColdStartDashboard"`
	Alarm     cfnAlarm     `json:"ColdStartAlarm" yaml:"ColdStartAlarm"`
}

type cfnDashboard struct {
	Type       string                 `json:"Type" yaml:"Type"`
	Properties cfnDashboardProperties `json:"Properties" yaml:"Properties"`
}

type cfnDashboardProperties struct {
	DashboardName cfnRef `json:"DashboardName" yaml:"DashboardName"`
	DashboardBody cfnSub `json:"DashboardBody" yaml:"DashboardBody"`
}

type cfnAlarm struct {
	Type       string             `json:"Type" yaml:"Type"`
	Properties cfnAlarmProperties `json:"Properties" yaml:"Properties"`
}

type cfnAlarmProperties struct {
	AlarmName                        cfnSub         `json:"AlarmName" yaml:"AlarmName"`
	AlarmDescription                 cfnSub         `json:"AlarmDescription" yaml:"AlarmDescription"`
	Namespace                        string         `json:"Namespace" yaml:"Namespace"`
	MetricName                       string         `json:"MetricName" yaml:"MetricName"`
	Dimensions                       []cfnDimension `json:"Dimensions" yaml:"Dimensions"`
	ExtendedStatistic                string         `json:"ExtendedStatistic" yaml:"ExtendedStatistic"`
	Period                           int            `json:"Period" yaml:"Period"`
	EvaluationPeriods                int            `json:"EvaluationPeriods" yaml:"EvaluationPeriods"`
	ComparisonOperator               string         `json:"ComparisonOperator" yaml:"ComparisonOperator"`
	Threshold                        cfnRef         `json:"Threshold" yaml:"Threshold"`
	EvaluateLowSampleCountPercentile cfnRef         `json:"EvaluateLowSampleCountPercentile" yaml:"EvaluateLowSampleCountPercentile"`
	TreatMissingData                 string         `json:"TreatMissingData" yaml:"TreatMissingData"`
	AlarmActions                     map[string]any `json:"AlarmActions" yaml:"AlarmActions"`
	OKActions                        map[string]any `json:"OKActions" yaml:"OKActions"`
}

type cfnDimension struct {
	Name  string `json:"Name" yaml:"Name"`
	Value cfnRef `json:"Value" yaml:"Value"`
}

type cfnRef struct {
	Ref string `json:"Ref" yaml:"Ref"`
}

type cfnSub struct {
	Text string `json:"Fn::Sub" yaml:"Fn::Sub"`
}

// CloudFormation returns a template with a dashboard and an alarm of a service's cold
// starts. o's service, and what a has, are defaults of its parameters; with a task
// definition both ask for the starts of that one only.
func CloudFormation(o Options, a Alarm, asJSON bool) ([]byte, error) {
	for name, value := range map[string]string{"service": o.Service, "task definition": o.TaskDefinition} {
		if value != "" && !nameRegexp().MatchString(value) {
			return nil, fmt.Errorf("%s %q: in a template it has to match %s", name, value, namePattern)
		}
	}
	switch { // what the parameters' own rules would refuse, as late as it is deployed
	case !(a.ThresholdMs >= leastThresholdMs):
		return nil, fmt.Errorf("threshold %g ms: it has to be %d ms at least", a.ThresholdMs, leastThresholdMs)
	case !topicRegexp().MatchString(a.Topic):
		return nil, fmt.Errorf("topic %q: want the ARN of an SNS topic, such as arn:aws:sns:eu-west-1:123456789012:oncall", a.Topic)
	}
	dims := DimensionSets[0]
	if o.TaskDefinition != "" {
		dims = DimensionSets[1]
	}
	body, err := dashboardBody(dims)
	if err != nil {
		return nil, err
	}
	t := cfnTemplate{
		Version:     "2010-09-09",
		Description: "Dashboard and alarm of a service's cold starts, for the metrics of thaw emit.",
		Parameters:  parameters(o, a),
		Conditions:  cfnConditions{map[string]any{"Fn::Not": []any{map[string]any{"Fn::Equals": []any{cfnRef{paramTopic}, ""}}}}},
		Resources: cfnResources{
			Dashboard: cfnDashboard{"AWS::CloudWatch::Dashboard", cfnDashboardProperties{cfnRef{paramDashboard}, cfnSub{body}}},
			Alarm:     cfnAlarm{"AWS::CloudWatch::Alarm", alarmProperties(dims)},
		},
	}
	if asJSON {
		return marshalIndent(t)
	}
	var out bytes.Buffer
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	if err := enc.Encode(t); err != nil {
		return nil, fmt.Errorf("encode template: %w", err)
	}
	return out.Bytes(), enc.Close()
}

func parameters(o Options, a Alarm) cfnParameters {
	threshold, name := fmt.Sprint(a.ThresholdMs), "ColdStart"
	if o.Service != "" {
		name += "-" + dashboardName(o.Service)
		name = name[:min(len(name), maxDashboardName)]
	}
	low := lowEvaluate
	p := cfnParameters{
		Service:       &cfnParameter{Type: "String", Description: "The dimension Service of the metrics.", AllowedPattern: namePattern},
		DashboardName: &cfnParameter{Type: "String", Description: "Letters, digits, - and _.", Default: &name, AllowedPattern: fmt.Sprintf(`^[A-Za-z0-9_-]{1,%d}$`, maxDashboardName)},
		ThresholdMs:   &cfnParameter{Type: "Number", Description: "The alarm is raised when one cold start in a hundred takes longer than this, in milliseconds.", Default: &threshold, MinValue: fmt.Sprint(leastThresholdMs)},
		LowSamples: &cfnParameter{Type: "String", Default: &low, AllowedValues: []string{lowEvaluate, lowIgnore},
			Description: "What the alarm makes of p99 of fewer than 1,000 cold starts. ignore: nothing; of a service with fewer in ten minutes it is never raised."},
		TopicArn: &cfnParameter{Type: "String", Description: "SNS topic that is told of the alarm; empty for none.", Default: &a.Topic, AllowedPattern: topicPattern},
	}
	if o.Service != "" {
		p.Service.Default = &o.Service
	}
	if o.TaskDefinition != "" {
		p.TaskDefinition = &cfnParameter{Type: "String", Description: "The dimension TaskDefinition of the metrics.", Default: &o.TaskDefinition, AllowedPattern: namePattern}
	}
	return p
}

// What an alarm makes of percentiles of few data.
// https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/percentiles-with-low-samples.html
const (
	lowEvaluate = "evaluate"
	lowIgnore   = "ignore"
)

// dashboardName is a name as dashboards may have it.
func dashboardName(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' {
			return r
		}
		return '-'
	}, s)
}

func alarmProperties(dims []string) cfnAlarmProperties {
	actions := map[string]any{"Fn::If": []any{conditionTopic, []any{cfnRef{paramTopic}}, cfnRef{"AWS::NoValue"}}}
	p := cfnAlarmProperties{
		AlarmName: cfnSub{"ColdStart-" + quantile + "-" + subAll(dims, "-")},
		AlarmDescription: cfnSub{fmt.Sprintf("%s of cold starts of %s is above ${%s} ms in %d periods of %d minutes, one after the other. thaw blame says which phase it is.",
			quantile, subAll(dims, ", "), paramThreshold, alarmAfter, period/60)},
		Namespace: Namespace, MetricName: MetricDuration,
		// A percentile is no Statistic: CloudFormation takes that, and CloudWatch refuses it.
		ExtendedStatistic: quantile, Period: period, EvaluationPeriods: alarmAfter,
		ComparisonOperator: "GreaterThanThreshold", Threshold: cfnRef{paramThreshold},
		EvaluateLowSampleCountPercentile: cfnRef{paramLow},
		TreatMissingData:                 "notBreaching", // cold starts are rare
		AlarmActions:                     actions, OKActions: actions,
	}
	for _, name := range dims {
		p.Dimensions = append(p.Dimensions, cfnDimension{name, cfnRef{name}}) // parameters are called as the dimensions
	}
	return p
}

func subAll(names []string, sep string) string {
	all := make([]string, len(names))
	for i, name := range names {
		all[i] = "${" + name + "}"
	}
	return strings.Join(all, sep)
}

// cwBody and what is in it are a dashboard, in the words of
// https://docs.aws.amazon.com/AmazonCloudWatch/latest/APIReference/CloudWatch-Dashboard-Body-Structure.html
type cwBody struct {
	Start          string     `json:"start"`
	PeriodOverride string     `json:"periodOverride"` // inherit: periods are those of the widgets
	Widgets        []cwWidget `json:"widgets"`
}

type cwWidget struct {
	Type       string       `json:"type"`
	X          int          `json:"x"`
	Y          int          `json:"y"`
	Width      int          `json:"width"`
	Height     int          `json:"height"`
	Properties cwProperties `json:"properties"`
}

type cwProperties struct {
	Title       string         `json:"title"`
	View        string         `json:"view"`
	Stacked     bool           `json:"stacked"`
	Region      string         `json:"region"`
	Period      int            `json:"period"`
	Stat        string         `json:"stat"`
	Metrics     [][]any        `json:"metrics"`
	YAxis       cwYAxis        `json:"yAxis"`
	Annotations *cwAnnotations `json:"annotations,omitempty"`
}

type cwYAxis struct {
	Left cwAxis `json:"left"`
}

type cwAxis struct {
	Min       int    `json:"min"`
	Label     string `json:"label"`
	ShowUnits bool   `json:"showUnits"`
}

type cwAnnotations struct {
	Horizontal []cwLine `json:"horizontal"`
}

type cwLine struct {
	Label string `json:"label"`
	Value string `json:"value"`
}

// dashboardBody is a dashboard's body, with the template's parameters in it.
func dashboardBody(dims []string) (string, error) {
	row := func(metric string, options map[string]any) []any {
		r := []any{Namespace, metric}
		for _, name := range dims {
			r = append(r, name, "${"+name+"}")
		}
		return append(r, options)
	}
	quantiles := func(metric string) (rows [][]any) {
		for _, q := range []string{"p50", "p90", "p99"} {
			rows = append(rows, row(metric, map[string]any{"stat": q, "label": q}))
		}
		return rows
	}
	var phases [][]any
	for _, name := range stacked() {
		phases = append(phases, row(MetricPhase(name), map[string]any{"label": name}))
	}
	const ms = "milliseconds"
	widget := func(x, y int, title, unit string, period int, stat string, stack bool, rows [][]any) cwWidget {
		return cwWidget{"metric", x, y, 12, 7, cwProperties{Title: title, View: "timeSeries", Stacked: stack, Region: "${AWS::Region}", Period: period,
			Stat: stat, Metrics: rows, YAxis: cwYAxis{cwAxis{Label: unit}}}}
	}
	first := row(MetricFirstRequest, map[string]any{"stat": "Maximum", "label": "slowest"})
	body := cwBody{Start: "-P1D", PeriodOverride: "inherit", Widgets: []cwWidget{
		widget(0, 0, "Cold start, from requested to ready", ms, period, quantile, false, quantiles(MetricDuration)),
		widget(12, 0, "Cold starts an hour", "starts", hour, "Sum", false, [][]any{row(MetricCount, map[string]any{"label": "cold starts"})}),
		widget(0, 7, "Phases, on average", ms, period, "Average", true, phases),
		widget(12, 7, "First request, above what later ones take", ms, period, quantile, false, append(quantiles(MetricFirstRequest), first)),
	}}
	body.Widgets[0].Properties.Annotations = &cwAnnotations{[]cwLine{{"alarm", "${" + paramThreshold + "}"}}}
	b, err := marshalIndent(body)
	if err != nil {
		return "", err
	}
	number := "${" + paramThreshold + "}" // a number stands without quotes
	return strings.ReplaceAll(string(b), `"`+number+`"`, number), nil
}

// stacked are the phases that follow one another, and so can be added up.
func stacked() []string { return profile.Phases[:profile.StartPhases+1] }

func marshalIndent(v any) ([]byte, error) {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	return out.Bytes(), nil
}
