package emit

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"

	"github.com/thaw-project/thaw/internal/profile"
)

// stack is a template as CloudFormation would make it, with these parameters: all
// intrinsic functions done. It is checked on the way.
func stack(t *testing.T, template []byte, given map[string]string) map[string]any {
	t.Helper()
	var doc map[string]any
	if err := yaml.Unmarshal(template, &doc); err != nil { // JSON is YAML
		t.Fatal(err)
	}
	values := map[string]any{"AWS::Region": "eu-west-1", "AWS::NoValue": nil}
	for name, p := range doc["Parameters"].(map[string]any) {
		p := p.(map[string]any)
		v, ok := given[name]
		if !ok {
			if v, ok = p["Default"].(string); !ok {
				t.Fatalf("parameter %s has no value", name)
			}
		}
		if pattern, ok := p["AllowedPattern"].(string); ok && !regexp.MustCompile("^(?:"+pattern+")$").MatchString(v) {
			t.Fatalf("parameter %s is %q, and has to match %s", name, v, pattern)
		}
		values[name] = v
	}
	for name := range given {
		if _, ok := values[name]; !ok {
			t.Fatalf("there is no parameter %s", name)
		}
	}
	r := resolver{t, values, doc["Conditions"].(map[string]any), map[string]bool{}}
	done := r.resolve(doc["Resources"])
	doc["Resources"] = done
	for name := range doc["Parameters"].(map[string]any) {
		if !r.used[name] {
			t.Errorf("parameter %s is used nowhere", name)
		}
	}
	doc["Conditions"] = map[string]any{} // of functions, which are done
	b, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	again, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if err := schema(t, "cloudformation.schema.json").Validate(again); err != nil {
		t.Errorf("%v\n%s", err, b)
	}
	return done.(map[string]any)
}

type resolver struct {
	t          *testing.T
	values     map[string]any
	conditions map[string]any
	used       map[string]bool
}

func (r *resolver) value(name string) any {
	v, ok := r.values[name]
	if !ok {
		r.t.Errorf("%s is no parameter", name)
	}
	r.used[name] = true
	return v
}

var subRegexp = regexp.MustCompile(`\$\{([^}]*)\}`)

func (r *resolver) resolve(v any) any {
	switch v := v.(type) {
	case []any:
		all := []any{}
		for _, e := range v {
			all = append(all, r.resolve(e))
		}
		return all
	case map[string]any:
		if len(v) == 1 {
			for name, arg := range v {
				if name == "Ref" || strings.HasPrefix(name, "Fn::") {
					return r.call(name, arg)
				}
			}
		}
		all := map[string]any{}
		for name, e := range v {
			if e = r.resolve(e); e != nil { // AWS::NoValue takes the property away
				all[name] = number(name, e)
			}
		}
		return all
	}
	return v
}

// number is a property that CloudFormation makes a number of.
func number(name string, v any) any {
	if s, ok := v.(string); ok && name == "Threshold" {
		return json.Number(s)
	}
	return v
}

func (r *resolver) call(name string, arg any) any {
	switch name {
	case "Ref":
		return r.value(arg.(string))
	case "Fn::Sub":
		return subRegexp.ReplaceAllStringFunc(arg.(string), func(s string) string { return fmt.Sprint(r.value(s[2 : len(s)-1])) })
	case "Fn::Equals":
		two := r.resolve(arg).([]any)
		return two[0] == two[1]
	case "Fn::Not":
		return !r.resolve(arg).([]any)[0].(bool)
	case "Fn::If":
		three := arg.([]any)
		condition, ok := r.conditions[three[0].(string)]
		if !ok {
			r.t.Fatalf("there is no condition %v", three[0])
		}
		if r.resolve(condition).(bool) {
			return r.resolve(three[1])
		}
		return r.resolve(three[2])
	}
	r.t.Fatalf("%s is not understood", name)
	return nil
}

// widget is a dashboard's widget. It is read strictly: a member that the reference does not
// have is an error.
type widget struct {
	Type                string
	X, Y, Width, Height int
	Properties          struct {
		Title, View, Region, Stat string
		Stacked                   bool
		Period                    int
		Metrics                   [][]any
		YAxis                     struct {
			Left struct {
				Min       float64
				Label     string
				ShowUnits bool
			}
		}
		Annotations *struct {
			Horizontal []struct {
				Label string
				Value float64
			}
		}
	}
}

// query is what a dashboard or an alarm asks CloudWatch for.
type query struct {
	where, metric, stat string
	period              int
}

var statRegexp = regexp.MustCompile(`^(Sum|Average|Minimum|Maximum|SampleCount|p(100|\d{1,2}(\.\d{1,10})?))$`)

func dashboardOf(t *testing.T, resources map[string]any) (all []query, widgets []widget) {
	t.Helper()
	p := resources["ColdStartDashboard"].(map[string]any)["Properties"].(map[string]any)
	if name := p["DashboardName"].(string); !regexp.MustCompile(`^[A-Za-z0-9_-]{1,255}$`).MatchString(name) {
		t.Errorf("a dashboard cannot be called %q", name)
	}
	var body struct {
		Start, PeriodOverride string
		Widgets               []widget
	}
	dec := json.NewDecoder(strings.NewReader(p["DashboardBody"].(string)))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&body); err != nil {
		t.Fatalf("%v\n%s", err, p["DashboardBody"])
	}
	if body.PeriodOverride != "inherit" {
		t.Error("the periods are not those of the widgets")
	}
	for _, w := range body.Widgets {
		if w.Type != "metric" || w.Properties.Region != "eu-west-1" || w.X+w.Width > 24 || w.Width < 1 || w.Height < 1 || w.Properties.View != "timeSeries" {
			t.Errorf("%+v", w)
		}
		for _, m := range w.Properties.Metrics {
			q := query{where: w.Properties.Title, stat: w.Properties.Stat, period: w.Properties.Period}
			var words []string
			for i, e := range m {
				if options, ok := e.(map[string]any); ok && i == len(m)-1 {
					if s, ok := options["stat"].(string); ok {
						q.stat = s
					}
					continue
				}
				words = append(words, e.(string))
			}
			q.metric = identity(words[0], words[1], words[2:]...)
			all = append(all, q)
		}
	}
	return all, body.Widgets
}

func alarmOf(t *testing.T, resources map[string]any) (query, map[string]any) {
	t.Helper()
	p := resources["ColdStartAlarm"].(map[string]any)["Properties"].(map[string]any)
	var dims []string
	for _, d := range p["Dimensions"].([]any) {
		d := d.(map[string]any)
		dims = append(dims, d["Name"].(string), d["Value"].(string))
	}
	stat, _ := p["ExtendedStatistic"].(string)
	return query{"alarm", identity(p["Namespace"].(string), p["MetricName"].(string), dims...), stat, p["Period"].(int)}, p
}

// emitted are the metrics that CloudWatch has of a record: those of the lines of EMF and
// those of PutMetricData, which are the same.
func emitted(t *testing.T, r *profile.Record, o Options) map[string]bool {
	t.Helper()
	all := starts(t, r, o)
	out, err := EMF(all, ResolutionStandard)
	if err != nil {
		t.Fatal(err)
	}
	emf, put := map[string]bool{}, map[string]bool{}
	for line := range bytes.Lines(out) {
		for id := range event(t, line) {
			emf[id] = true
		}
	}
	calls, err := PutMetricData(all, ResolutionStandard)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range calls {
		for _, d := range c.Data {
			var dims []string
			for _, dim := range d.Dimensions {
				dims = append(dims, dim.Name, dim.Value)
			}
			put[identity(c.Namespace, d.Name, dims...)] = true
		}
	}
	if diff := cmp.Diff(emf, put); diff != "" {
		t.Error(diff)
	}
	return emf
}

const topic = "arn:aws:sns:eu-west-1:123456789012:oncall"

// TestCloudFormation makes both forms of templates for several services and holds the stack
// against what is emitted of them.
func TestCloudFormation(t *testing.T) {
	for _, c := range []struct {
		o     Options // of the generator
		given map[string]string
		emit  Options
	}{
		{Options{}, map[string]string{"Service": "api-service"}, Options{}},
		{Options{Service: "team/app.v2"}, nil, Options{Service: "team/app.v2"}},
		{Options{Service: "api-service", TaskDefinition: "api-task"}, map[string]string{"TopicArn": topic}, Options{}},
		{Options{Service: "a", TaskDefinition: "a:7"}, map[string]string{"ThresholdMs": "2500", "LowSamples": "ignore"}, Options{Service: "a", TaskDefinition: "a:7"}},
	} {
		alarm := Alarm{ThresholdMs: 1000}
		if c.o.TaskDefinition != "" {
			alarm.Topic = topic
		}
		asYAML, err := CloudFormation(c.o, alarm, false)
		if err != nil {
			t.Fatal(err)
		}
		asJSON, err := CloudFormation(c.o, alarm, true)
		if err != nil {
			t.Fatal(err)
		}
		resources := stack(t, asYAML, c.given)
		if diff := cmp.Diff(resources, stack(t, asJSON, c.given)); diff != "" {
			t.Errorf("JSON and YAML differ: %s", diff)
		}
		have := emitted(t, full(), c.emit)
		queries, widgets := dashboardOf(t, resources)
		alarmQuery, p := alarmOf(t, resources)
		for _, q := range append(queries, alarmQuery) {
			if !have[q.metric] { // defect 1
				t.Errorf("%s asks for %s, which is not emitted; there are %v", q.where, q.metric, have)
			}
			if !statRegexp.MatchString(q.stat) || q.period%60 != 0 || q.period == 0 {
				t.Errorf("%s: statistic %q, period %d", q.where, q.stat, q.period)
			}
		}
		if c.given["TopicArn"] == "" && alarm.Topic == "" {
			if p["AlarmActions"] != nil {
				t.Errorf("actions without a topic: %v", p["AlarmActions"])
			}
		} else if diff := cmp.Diff([]any{topic}, p["AlarmActions"]); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff([]string{"Cold start, from requested to ready", "Cold starts an hour", "Phases, on average", "First request, above what later ones take"},
			[]string{widgets[0].Properties.Title, widgets[1].Properties.Title, widgets[2].Properties.Title, widgets[3].Properties.Title}); diff != "" {
			t.Error(diff)
		}
		if want := 1000.0; c.given["ThresholdMs"] == "" && widgets[0].Properties.Annotations.Horizontal[0].Value != want {
			t.Errorf("the dashboard's line is %+v", widgets[0].Properties.Annotations)
		}
	}
}

// TestWidgets: the widgets are those that the specification asks for.
func TestWidgets(t *testing.T) {
	template, err := CloudFormation(Options{Service: "api-service"}, Alarm{ThresholdMs: 1000}, false)
	if err != nil {
		t.Fatal(err)
	}
	queries, _ := dashboardOf(t, stack(t, template, nil))
	var got []string
	for _, q := range queries {
		got = append(got, fmt.Sprintf("%s %s %d", strings.TrimSuffix(strings.TrimPrefix(q.metric, "ECS/ColdStart "), " {Service=api-service}"), q.stat, q.period))
	}
	want := []string{"ColdStartDuration p50 300", "ColdStartDuration p90 300", "ColdStartDuration p99 300", "ColdStartCount Sum 3600",
		"StartupPhase_queue Average 300", "StartupPhase_image_pull Average 300", "StartupPhase_runtime_init Average 300", "StartupPhase_dependency_load Average 300",
		"StartupPhase_app_bootstrap Average 300", "StartupPhase_health_wait_container Average 300", "StartupPhase_health_wait_lb Average 300",
		"FirstRequestPenalty p50 300", "FirstRequestPenalty p90 300", "FirstRequestPenalty p99 300", "FirstRequestPenalty Maximum 300"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestDefects: none of those that are in the code that people copy from each other. The
// numbers are the specification's. 1 is TestCloudFormation's; 3 TestDurationEndsReady's;
// 9 to 16 are of things that are not generated here, which defect 5's part makes sure of.
func TestDefects(t *testing.T) {
	template, err := CloudFormation(Options{Service: "api-service"}, Alarm{ThresholdMs: 1000, Topic: topic}, false)
	if err != nil {
		t.Fatal(err)
	}
	resources := stack(t, template, nil)
	_, alarm := alarmOf(t, resources)
	t.Run("2 percentile", func(t *testing.T) {
		if alarm["Statistic"] != nil || alarm["ExtendedStatistic"] != "p99" {
			t.Errorf("Statistic %v, ExtendedStatistic %v", alarm["Statistic"], alarm["ExtendedStatistic"])
		}
		if alarm["TreatMissingData"] != "notBreaching" || alarm["Period"] != 300 || alarm["EvaluationPeriods"] != 2 || alarm["ComparisonOperator"] != "GreaterThanThreshold" ||
			alarm["Threshold"] != json.Number("1000") {
			t.Errorf("alarm %v", alarm)
		}
		// ignore would mean: never, for whoever has fewer than 1,000 starts in ten minutes.
		if alarm["EvaluateLowSampleCountPercentile"] != "evaluate" {
			t.Errorf("few samples: %v", alarm["EvaluateLowSampleCountPercentile"])
		}
		_, p := alarmOf(t, stack(t, template, map[string]string{"LowSamples": "ignore"}))
		if p["EvaluateLowSampleCountPercentile"] != "ignore" {
			t.Errorf("asked to ignore: %v", p["EvaluateLowSampleCountPercentile"])
		}
	})
	t.Run("5 to 8 pre-warming", func(t *testing.T) {
		// Nothing scales: no metric but ours, no resource but these two, no action but a
		// message. So nothing has to match a load balancer, to round, to know the maximum
		// capacity, or to be done again while a surge goes on.
		for name, r := range resources {
			if kind := r.(map[string]any)["Type"]; kind != "AWS::CloudWatch::Dashboard" && kind != "AWS::CloudWatch::Alarm" {
				t.Errorf("%s is a %v", name, kind)
			}
		}
		if bytes.Contains(template, []byte("AWS/")) || bytes.Contains(template, []byte("cron(")) {
			t.Errorf("it asks for metrics of AWS, or for a time: %s", template)
		}
		for _, actions := range []string{"AlarmActions", "OKActions"} {
			if diff := cmp.Diff([]any{topic}, alarm[actions]); diff != "" {
				t.Errorf("%s: %s", actions, diff)
			}
		}
	})
	t.Run("names", func(t *testing.T) {
		for _, o := range []Options{{Service: `a"b`}, {Service: "a${b}"}, {Service: ":a"}, {Service: "a", TaskDefinition: "ä"}, {Service: "a\nb"}} {
			if _, err := CloudFormation(o, Alarm{ThresholdMs: 1000}, false); err == nil {
				t.Errorf("%q was taken", o)
			}
		}
		// Its own parameters would refuse these, when it is deployed.
		for _, a := range []Alarm{{}, {ThresholdMs: 0.5}, {ThresholdMs: math.NaN()}, {ThresholdMs: 1000, Topic: "oncall"}, {ThresholdMs: 1000, Topic: topic + "\n"}} {
			if _, err := CloudFormation(Options{}, a, false); err == nil {
				t.Errorf("%+v was taken", a)
			}
		}
		long, err := CloudFormation(Options{Service: strings.Repeat("a", 255)}, Alarm{ThresholdMs: 1000}, false)
		if err != nil {
			t.Fatal(err)
		}
		stack(t, long, nil)
	})
}

// TestDurationEndsReady: a cold start is over when it is ready. That the first visitor comes
// much later (defect 3: idle time counted as cold start) changes nothing.
func TestDurationEndsReady(t *testing.T) {
	r := full()
	run := &r.Subjects[0].Runs[0]
	run.Events = append(run.Events, profile.Event{Name: profile.EventReady, AtMs: 480}, profile.Event{Name: profile.EventFirstRequest, AtMs: 3_600_000})
	run.Requests = []profile.Request{{Route: "GET /", N: 1, StartMs: 3_599_000, EndMs: 3_600_000, Status: 200}}
	s := starts(t, r, Options{})[0]
	if *s.DurationMs != 480 || !s.At.Equal(begun.Add(480e6)) {
		t.Errorf("%g ms, over at %v", *s.DurationMs, s.At)
	}
	if i := slices.IndexFunc(s.Phases, func(p Phase) bool { return p.Name == profile.PhaseFirstRequest }); s.Phases[i].Ms != 80 {
		t.Errorf("a penalty of %g", s.Phases[i].Ms)
	}
}
