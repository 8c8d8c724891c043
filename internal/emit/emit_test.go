package emit

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/thaw-project/thaw/internal/profile"
	"github.com/thaw-project/thaw/internal/profile/profiletest"
)

func ptr[T any](v T) *T { return &v }

var begun = time.Date(2026, 3, 2, 9, 30, 0, 0, time.UTC)

// full is a record of one start of which everything is known.
func full() *profile.Record {
	run := profile.Run{Begun: begun, Container: "arn:aws:ecs:eu-west-1:123456789012:task/shop/0af7", TotalMs: ptr(480.), Coldness: &profile.Coldness{Level: profile.ColdL0, Proven: true}}
	at := 0.
	for i, name := range profile.Phases {
		ms := float64(10 * (i + 1))
		p := profile.Phase{Name: name, Ms: &ms, Source: profile.SignalTimeline, Confidence: profile.Measured}
		if name != profile.PhaseFirstRequest {
			p.StartMs, p.EndMs = ptr(at), ptr(at+ms)
			p.LazyWaitMs, p.Bytes, p.Files = ptr(1.5), ptr(int64(4096)), ptr(3)
			at += ms
		}
		run.Phases = append(run.Phases, p)
	}
	return &profile.Record{Version: profile.Version, ID: "20260302-093000-ab12", Source: profile.SignalECS, Begun: begun,
		Labels: map[string]string{LabelService: "api-service", LabelTaskDefinition: "api-task"},
		Subjects: []profile.Subject{{Name: "api", Image: "registry.example.com/team/api:1.2", Manifest: "sha256:" + strings.Repeat("ab", 32), Mode: "lazy",
			Runs: []profile.Run{run}}}}
}

func starts(t *testing.T, r *profile.Record, o Options) []Start {
	t.Helper()
	all, err := Starts(r, o)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// schema compiles one of testdata.
func schema(t *testing.T, name string) *jsonschema.Schema {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource(name, doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile(name)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestEMFLine: a start is the line that the specification shows, whole.
func TestEMFLine(t *testing.T) {
	r := full()
	r.Subjects[0].Runs[0].Phases = slices.DeleteFunc(r.Subjects[0].Runs[0].Phases, func(p profile.Phase) bool {
		return p.Name != profile.PhasePull && p.Name != profile.PhaseFirstRequest
	})
	got, err := EMF(starts(t, r, Options{}), ResolutionStandard)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"_aws":{"Timestamp":1772443800480,"CloudWatchMetrics":[{"Namespace":"ECS/ColdStart","Dimensions":[["Service"],["Service","TaskDefinition"]],` +
		`"Metrics":[{"Name":"ColdStartDuration","Unit":"Milliseconds"},{"Name":"ColdStartCount","Unit":"Count"},` +
		`{"Name":"StartupPhase_image_pull","Unit":"Milliseconds"},{"Name":"FirstRequestPenalty","Unit":"Milliseconds"}]}]},` +
		`"Service":"api-service","TaskDefinition":"api-task","ColdStartDuration":480,"ColdStartCount":1,"StartupPhase_image_pull":20,"FirstRequestPenalty":80,` +
		`"task":"arn:aws:ecs:eu-west-1:123456789012:task/shop/0af7","image":"registry.example.com/team/api:1.2@sha256:` + strings.Repeat("ab", 32) + `",` +
		`"cold":"L0","mode":"lazy","record":"20260302-093000-ab12","subject":"api","run":1,"cold_proven":true}` + "\n"
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Error(diff)
	}
}

// event is an EMF event as CloudWatch reads it: the metrics that it makes of it, by name and
// dimensions, as in {Service=a}.
func event(t *testing.T, line []byte) map[string]float64 {
	t.Helper()
	var root map[string]any
	if err := json.Unmarshal(line, &root); err != nil {
		t.Fatal(err)
	}
	var e struct {
		AWS struct {
			Timestamp         int64
			CloudWatchMetrics []struct {
				Namespace  string
				Dimensions [][]string
				Metrics    []struct {
					Name, Unit        string
					StorageResolution int
				}
			}
		} `json:"_aws"`
	}
	if err := json.Unmarshal(line, &e); err != nil {
		t.Fatal(err)
	}
	all := map[string]float64{}
	for _, d := range e.AWS.CloudWatchMetrics {
		for _, set := range d.Dimensions {
			var pairs []string
			for _, name := range set {
				value, ok := root[name].(string)
				if !ok {
					t.Errorf("dimension %s is no string of the root: %v", name, root[name])
				}
				pairs = append(pairs, name, value)
			}
			for _, m := range d.Metrics {
				value, ok := root[m.Name].(float64)
				if !ok {
					t.Errorf("metric %s is no number of the root: %v", m.Name, root[m.Name])
				}
				all[identity(d.Namespace, m.Name, pairs...)] = value
			}
		}
	}
	return all
}

// identity of a metric: two that differ in a dimension are two.
func identity(namespace, name string, dimensions ...string) string {
	var pairs []string
	for i := 0; i < len(dimensions); i += 2 {
		pairs = append(pairs, dimensions[i]+"="+dimensions[i+1])
	}
	slices.Sort(pairs)
	return namespace + " " + name + " {" + strings.Join(pairs, ",") + "}"
}

// TestEMF: every line of real looking records is valid by AWS' schema, and says what is
// known and nothing else.
func TestEMF(t *testing.T) {
	valid := schema(t, "emf.schema.json")
	for seed, r := range []*profile.Record{full(), profiletest.Record(1), profiletest.Modes(2, profiletest.PythonML)} {
		all := starts(t, r, Options{})
		for _, resolution := range []int{ResolutionStandard, ResolutionHigh} {
			out, err := EMF(all, resolution)
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for line := range bytes.Lines(out) {
				doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(line))
				if err != nil {
					t.Fatal(err)
				}
				if err := valid.Validate(doc); err != nil {
					t.Errorf("record %d: %v", seed, err)
				}
				got, want := event(t, line), map[string]float64{}
				for _, dims := range [][]string{{"Service", all[n].Service}, {"Service", all[n].Service, "TaskDefinition", all[n].TaskDefinition}} {
					want[identity("ECS/ColdStart", "ColdStartCount", dims...)] = 1
					want[identity("ECS/ColdStart", "ColdStartDuration", dims...)] = *all[n].DurationMs
					for _, p := range all[n].Phases {
						name := "StartupPhase_" + p.Name
						if p.Name == "first_request_penalty" {
							name = "FirstRequestPenalty"
						}
						want[identity("ECS/ColdStart", name, dims...)] = p.Ms
					}
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("record %d: %s", seed, diff)
				}
				if has := bytes.Contains(line, []byte(`"StorageResolution":1}`)); has != (resolution == ResolutionHigh) {
					t.Errorf("resolution %d: %s", resolution, line)
				}
				n++
			}
			if n != len(all) || n == 0 {
				t.Errorf("%d lines of %d starts", n, len(all))
			}
		}
	}
}

// TestUnknown: what is not known is absent, and never 0; what failed has no times.
func TestUnknown(t *testing.T) {
	r := full()
	run := &r.Subjects[0].Runs[0]
	run.TotalMs = nil
	for i := range run.Phases {
		switch p := &run.Phases[i]; p.Name {
		case profile.PhasePull: // a reader's mistake: a number that nobody vouches for
			p.Confidence = profile.Unknown
		case profile.PhaseQueue:
			p.Ms = nil
		case profile.PhaseHydration:
			p.Ms = ptr(math.NaN())
		case profile.PhaseFirstRequest:
			p.Ms = ptr(-2.) // noise
		}
	}
	run.Phases = append(run.Phases, profile.Phase{Name: "theirs", Ms: ptr(5.), Confidence: profile.Measured})
	r.Subjects[0].Runs = append(r.Subjects[0].Runs, profile.Run{Begun: begun, Error: "it died", TotalMs: ptr(3.), Phases: run.Phases})
	all := starts(t, r, Options{})
	out, err := EMF(all, ResolutionStandard)
	if err != nil {
		t.Fatal(err)
	}
	first, second, _ := bytes.Cut(out, []byte("\n"))
	for _, name := range []string{"ColdStartDuration", "image_pull", "queue", "hydration", "theirs"} {
		if bytes.Contains(first, []byte(name)) {
			t.Errorf("%s is not known, and told: %s", name, first)
		}
	}
	if got := event(t, first)["ECS/ColdStart FirstRequestPenalty {Service=api-service}"]; got != 0 {
		t.Errorf("a penalty of %g", got)
	}
	if got := event(t, second); len(got) != 2 || got["ECS/ColdStart ColdStartCount {Service=api-service}"] != 1 || !bytes.Contains(second, []byte(`"error":"it died"`)) {
		t.Errorf("a start that failed: %s", second)
	}
	calls, err := PutMetricData(all, ResolutionStandard)
	if err != nil || len(calls) != 1 {
		t.Fatal(calls, err)
	}
	for _, d := range calls[0].Data {
		if d.Name == MetricCount && (len(d.Values) != 1 || d.Counts[0] != 2) {
			t.Errorf("counts %v of %v", d.Counts, d.Values)
		}
		if slices.Contains([]string{MetricDuration, MetricPhase("image_pull"), MetricPhase("theirs")}, d.Name) {
			t.Errorf("%s is told", d.Name)
		}
	}
}

func TestNames(t *testing.T) {
	for image, want := range map[string]string{"nginx": "nginx", "docker.io/library/nginx:1": "nginx", "team/app": "team/app",
		"registry.example.com:5000/team/app:1.2@sha256:" + strings.Repeat("0a", 32): "team/app", "oci:/tmp/some/layout:node": "node", "oci:/tmp/some/layout": "layout",
		"oci:/tmp/some/layout:1.2": "layout", "oci:/tmp/some/layout:v3": "layout", "oci:/tmp/some/layout:latest": "layout", "Not A Reference": "Not A Reference"} {
		if got := ServiceName(image); got != want {
			t.Errorf("service of %s is %q, want %q", image, got, want)
		}
	}
	r := full()
	for _, c := range []struct {
		labels  map[string]string
		o       Options
		service string
		task    string
	}{
		{nil, Options{}, "team/api", "team/api"},
		{map[string]string{"service": "s"}, Options{}, "s", "s"},
		{map[string]string{"service": "s", "task_definition": "t"}, Options{}, "s", "t"},
		{map[string]string{"service": "s", "task_definition": "t:7"}, Options{}, "s", "t"},
		{map[string]string{"service": "s", "task_definition": "t:x"}, Options{}, "s", "t:x"},
		{map[string]string{"service": "s", "task_definition": "t"}, Options{Service: "a", TaskDefinition: "b:3"}, "a", "b:3"},
	} {
		r.Labels = c.labels
		if got := starts(t, r, c.o)[0]; got.Service != c.service || got.TaskDefinition != c.task {
			t.Errorf("%v %v: %s, %s", c.labels, c.o, got.Service, got.TaskDefinition)
		}
	}
	r.Subjects[0].Labels = map[string]string{"service": "own", "task_definition": "own:8"} // goes before the record's
	if got := starts(t, r, Options{})[0]; got.Service != "own" || got.TaskDefinition != "own" || got.Revision != "8" {
		t.Errorf("a subject's own labels: %+v", got)
	}
	r.Labels, r.Subjects[0].Labels, r.Subjects[0].Image = nil, nil, ""
	if _, err := Starts(r, Options{}); err == nil {
		t.Error("a start of nothing has a service")
	}
}

func TestChoose(t *testing.T) {
	r := profiletest.Modes(1, profiletest.Node)
	n := len(r.Subjects[0].Runs)
	r.Subjects[0].Runs[3].Coldness.Level = profile.ColdL2
	for _, c := range []struct {
		o    Options
		want int
	}{{Options{}, 2 * n}, {Options{Cold: "L2"}, 1}, {Options{Cold: "L0"}, 2*n - 1}} {
		if got := len(starts(t, r, c.o)); got != c.want {
			t.Errorf("%+v: %d starts, want %d", c.o, got, c.want)
		}
	}
	if _, err := Starts(r, Options{Cold: "L3"}); !errors.Is(err, ErrNothing) {
		t.Errorf("of L3: %v", err)
	}
	if got := starts(t, r, Options{Cold: "L2"})[0]; got.Run != 4 {
		t.Errorf("it is run %d", got.Run)
	}
}

// TestRefused: what CloudWatch would refuse, or drop without a word, is an error.
func TestRefused(t *testing.T) {
	for name, change := range map[string]func(*profile.Record){
		"printable ASCII":     func(r *profile.Record) { r.Labels[LabelService] = "dienst-ä" },
		"begin with a colon":  func(r *profile.Record) { r.Labels[LabelTaskDefinition] = ":3" },
		"too long":            func(r *profile.Record) { r.Labels[LabelService] = strings.Repeat("x", 1025) },
		"empty":               func(r *profile.Record) { r.Labels[LabelService] = " " },
		"when run 1 of api":   func(r *profile.Record) { r.Begun, r.Subjects[0].Runs[0].Begun = time.Time{}, time.Time{} },
		"CloudWatch takes 10": func(r *profile.Record) { r.Subjects[0].Runs[0].Error = strings.Repeat("x", 1<<20) },
	} {
		r := full()
		change(r)
		all := starts(t, r, Options{})
		if _, err := EMF(all, ResolutionStandard); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: EMF says %v", name, err)
		}
		if _, err := PutMetricData(all, ResolutionStandard); (err == nil) != (name == "CloudWatch takes 10") { // which has no such member
			t.Errorf("%s: PutMetricData says %v", name, err)
		}
	}
	all := starts(t, full(), Options{})
	for after, want := range map[time.Duration]int{0: 0, 13 * 24 * time.Hour: 0, 15 * 24 * time.Hour: 1, -3 * time.Hour: 1} {
		if got := Stale(all, begun.Add(after)); got != want {
			t.Errorf("after %v %d are stale", after, got)
		}
	}
}

// TestPutMetricData: the numbers of EMF, by the minute, in calls that AWS takes.
func TestPutMetricData(t *testing.T) {
	r := full()
	run := r.Subjects[0].Runs[0]
	for i := range 400 { // in 2 minutes, each with a time of its own
		one := run
		one.Begun, one.TotalMs = begun.Add(time.Duration(i%2)*time.Minute), ptr(float64(i)/8+1)
		r.Subjects[0].Runs = append(r.Subjects[0].Runs, one)
	}
	for i := range 200 { // and in 200 more
		one := run
		one.Begun = begun.Add(time.Hour + time.Duration(i)*time.Minute)
		r.Subjects[0].Runs = append(r.Subjects[0].Runs, one)
	}
	all := starts(t, r, Options{})
	calls, err := PutMetricData(all, ResolutionStandard)
	if err != nil {
		t.Fatal(err)
	}
	got, want := map[string]float64{}, map[string]float64{}
	sums := map[string]float64{}
	for _, c := range calls {
		if len(c.Data) > 1000 || c.Namespace != "ECS/ColdStart" {
			t.Errorf("%d data in %s", len(c.Data), c.Namespace)
		}
		for _, d := range c.Data {
			if len(d.Values) > 150 || len(d.Values) == 0 || len(d.Values) != len(d.Counts) || d.Resolution != 60 || !d.At.Equal(d.At.Truncate(time.Minute)) {
				t.Errorf("a datum of %d values and %d counts", len(d.Values), len(d.Counts))
			}
			var dims []string
			for _, dim := range d.Dimensions {
				dims = append(dims, dim.Name, dim.Value)
			}
			for i, v := range d.Values {
				id := identity(c.Namespace, d.Name, dims...)
				got[id] += d.Counts[i]
				sums[id] += v * d.Counts[i]
			}
		}
	}
	out, err := EMF(all, ResolutionStandard)
	if err != nil {
		t.Fatal(err)
	}
	wantSums := map[string]float64{}
	for line := range bytes.Lines(out) {
		for id, v := range event(t, line) {
			want[id]++
			wantSums[id] += v
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(wantSums, sums); diff != "" {
		t.Error(diff)
	}
	if len(calls) < 4 {
		t.Errorf("%d calls", len(calls))
	}
	high, err := PutMetricData(all[:1], ResolutionHigh)
	if err != nil || high[0].Data[0].Resolution != 1 || !high[0].Data[0].At.Equal(begun) {
		t.Errorf("%+v, %v", high, err)
	}
}
