package health

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.yaml.in/yaml/v3"
)

func TestParse(t *testing.T) {
	ecs := func(change func(c *Container)) *Container { c := ECSDefaults; change(&c); return &c }
	docker := func(change func(c *Container)) *Container { c := DockerDefaults; change(&c); return &c }
	probe := func(change func(p *Probe)) *Probe { p := ProbeDefaults; change(&p); return &p }
	curl := []string{"CMD", "curl", "-f", "http://localhost:8000/health"}
	for name, want := range map[string][]Check{
		"task.json": {
			{Kind: KindECS, Name: "default", Path: "/containerDefinitions/0/healthCheck", Container: ecs(func(c *Container) {
				c.Command = []string{"CMD-SHELL", "curl -f http://localhost:8000/health || exit 1"}
			})},
			{Kind: KindECS, Name: "tuned", Path: "/containerDefinitions/1/healthCheck", Container: ecs(func(c *Container) {
				c.Command, c.Interval, c.Timeout, c.Retries, c.StartPeriod = []string{"CMD", "/healthcheck"}, 5*second, 3*second, 2, 10*second
			})},
			{Kind: KindECS, Name: "sidecar", Path: "/containerDefinitions/2/healthCheck"},
		},
		"target-groups.json": {{Kind: KindTarget, Name: "my-targets", Path: "/TargetGroups/0", Target: &Target{30 * second, 5 * second, 5, 2, "/"}}},
		"service.json":       nil,
		"image.json": {{Kind: KindImage, Name: "image", Path: "/config/Healthcheck", Container: docker(func(c *Container) {
			c.Command, c.Interval, c.StartPeriod, c.Retries = []string{"CMD-SHELL", "wget -qO- localhost:8000"}, 5*second, 10*second, 2
		})}},
		"Dockerfile": {{Kind: KindDockerfile, Name: "stage app", Line: 13, End: 18, Container: docker(func(c *Container) {
			c.Command, c.StartPeriod, c.StartInterval, c.Retries = []string{"CMD", "python", "-m", "app.health"}, 2*time.Minute, second, 5
		})}},
		"compose.yaml": {
			{Kind: KindCompose, Name: "cache", Path: "/services/cache/healthcheck"},
			{Kind: KindCompose, Name: "quiet", Path: "/services/quiet/healthcheck"},
			{Kind: KindCompose, Name: "web", Path: "/services/web/healthcheck", Container: docker(func(c *Container) {
				c.Command, c.Interval, c.Timeout, c.StartPeriod = curl, 90*second, 10*second, 40*second
			})},
			{Kind: KindCompose, Name: "worker", Path: "/services/worker/healthcheck", Container: docker(func(c *Container) {
				c.Command, c.Interval, c.Timeout, c.StartPeriod, c.Retries = []string{"CMD-SHELL", "pgrep worker"}, 90*second, 10*second, 40*second, 5
			})},
		},
		"deployment.yaml": {
			{Kind: KindKubernetes, Name: "deployment/web app", Document: 1, Path: "/spec/template/spec/containers/0", Pod: &Pod{
				Readiness: probe(func(p *Probe) { p.Delay = 20 * second }),
				Liveness:  probe(func(p *Probe) { p.Delay, p.Period, p.Exec = 15*second, 20*second, true })}},
			{Kind: KindKubernetes, Name: "deployment/web full", Document: 1, Path: "/spec/template/spec/containers/1", Pod: &Pod{
				Startup:   probe(func(p *Probe) { p.Period, p.Failure = 5*second, 30 }),
				Readiness: probe(func(p *Probe) { p.Period, p.Success = 5*second, 2 })}},
			{Kind: KindKubernetes, Name: "deployment/web none", Document: 1, Path: "/spec/template/spec/containers/2", Pod: &Pod{}},
		},
	} {
		if diff := cmp.Diff(want, read(t, name).Checks, cmpopts.IgnoreUnexported(Check{})); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	if diff := cmp.Diff([]Service{{"web", 60 * second}}, read(t, "service.json").Services); diff != "" {
		t.Error(diff)
	}
}

// TestParseShapes: the same in what other commands print.
func TestParseShapes(t *testing.T) {
	for name, c := range map[string]struct{ file, doc, path string }{
		"describe-task-definition": {"x", `{"taskDefinition": {"containerDefinitions": [{"name": "a", "healthCheck": {"command": ["CMD", "x"]}}]}, "tags": []}`, "/taskDefinition/containerDefinitions/0/healthCheck"},
		"create-target-group":      {"x", `{"Name": "tg", "HealthCheckIntervalSeconds": 10}`, ""},
		"docker inspect":           {"x", `[{"Id": "1", "Config": {"Healthcheck": {"Test": ["CMD", "x"]}}}]`, "/0/Config/Healthcheck"},
		"list":                     {"x", "kind: List\nitems:\n- kind: Pod\n  metadata: {name: p}\n  spec: {containers: [{name: c, readinessProbe: {tcpSocket: {port: 1}}}]}", "/items/0/spec/containers/0"},
		"cron job":                 {"x", "kind: CronJob\nspec: {jobTemplate: {spec: {template: {spec: {containers: [{name: c}]}}}}}", "/spec/jobTemplate/spec/template/spec/containers/0"},
		"containerfile":            {"app.Containerfile", "FROM scratch\n", ""},
		"backtick":                 {"Dockerfile.windows", "# escape=`\nFROM x\nHEALTHCHECK --interval=5s `\n CMD C:\\check\\\nUSER a\n", ""},
		"tabs":                     {"Dockerfile", "FROM\tx\nHEALTHCHECK\tCMD x\n", ""},
	} {
		f, err := Parse(c.file, []byte(c.doc))
		if err != nil || len(f.Checks) != 1 || f.Checks[0].Path != c.path {
			t.Errorf("%s: %+v, %v", name, f, err)
		}
	}
}

func TestParseWrong(t *testing.T) {
	for doc, want := range map[string]string{
		"":                            "is in it",
		"{}":                          "is in it",
		"kind: Service":               "is in it",
		"a: [":                        "yaml",
		`{"containerDefinitions": 7}`: "cannot unmarshal",
		`{"containerDefinitions": [{"healthCheck": {"command": ["x"], "interval": -1}}]}`:                                      "not a time",
		`{"containerDefinitions": [{"healthCheck": {"command": ["x"], "interval": 0}}]}`:                                       "more than nothing",
		`{"containerDefinitions": [{"healthCheck": {"command": ["x"], "retries": 0}}]}`:                                        "not a number of checks",
		`{"TargetGroups": [{"HealthCheckIntervalSeconds": 0}]}`:                                                                "more than nothing",
		"services: {a: {healthcheck: {test: x, interval: '${I}'}}}":                                                            "docker compose config",
		"services: {a: {healthcheck: {test: x, interval: 5}}}":                                                                 "not a time such as 5s",
		"services: {a: {healthcheck: {test: x, retries: many}}}":                                                               "not a number",
		"kind: Pod\nspec: {containers: [{livenessProbe: {successThreshold: 2}}]}":                                              "has to be 1",
		"kind: Pod\nspec: {containers: [{livenessProbe: {periodSeconds: -3}}]}":                                                "not a time",
		`{"config": {"Healthcheck": {"Test": ["CMD", "x"], "Interval": -5}}}`:                                                  "nanoseconds",
		`{"containerDefinitions": [{"name": "c", "healthCheck": {"command": ["x"], "interval": 3600000, "retries": 100000}}]}`: "c: so many checks",
		`{"TargetGroups": [{"HealthCheckIntervalSeconds": 3600000, "UnhealthyThresholdCount": 100000}]}`:                       "so many checks",
		"kind: Pod\nspec: {containers: [{livenessProbe: {periodSeconds: 3600000, failureThreshold: 100000}}]}":                 "so many checks",
		"Dockerfile:FROM x\nHEALTHCHECK --interval=1000h --retries=99999 CMD x":                                                "so many checks",
		"Dockerfile:":                    "no FROM",
		"Dockerfile:FROM x\nHEALTHCHECK": "want CMD",
		"Dockerfile:FROM x\nHEALTHCHECK --interval=5 CMD x": "not a time such as",
		"Dockerfile:FROM x\nHEALTHCHECK --every=5s CMD x":   "unknown option",
		"Dockerfile:FROM x\nHEALTHCHECK CMD":                "command is missing",
	} {
		name, rest, ok := strings.Cut(doc, ":")
		if name != "Dockerfile" || !ok {
			name, rest = "x", doc
		}
		if f, err := Parse(name, []byte(rest)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %+v, %v, want %q", doc, f, err, want)
		}
	}
}

// patched applies the operations that Tune writes, by RFC 6902.
func patched(t *testing.T, doc any, patch []Operation) any {
	t.Helper()
	b, err := json.Marshal(patch) // as it is printed
	if err != nil {
		t.Fatal(err)
	}
	var ops []Operation
	if err := json.Unmarshal(b, &ops); err != nil {
		t.Fatal(err)
	}
	for _, op := range ops {
		parts := strings.Split(op.Path, "/")[1:]
		at := doc
		for _, part := range parts[:len(parts)-1] {
			switch v := at.(type) {
			case map[string]any:
				at = v[part]
			case []any:
				i, err := strconv.Atoi(part)
				if err != nil {
					t.Fatal(err)
				}
				at = v[i]
			}
		}
		object, ok := at.(map[string]any)
		if !ok {
			t.Fatalf("%s: %s: no object there", op.Op, op.Path)
		}
		last := parts[len(parts)-1]
		if op.Op == "remove" {
			if _, ok := object[last]; !ok {
				t.Fatalf("remove %s: it is not there", op.Path)
			}
			delete(object, last)
		} else {
			object[last] = op.Value
		}
	}
	return doc
}

// TestTune: the patch, applied and read again, is the check that was promised; it
// is soon, gives nobody up, and keeps to limits and costs.
func TestTune(t *testing.T) {
	for _, name := range []string{"task.json", "target-groups.json", "compose.yaml", "deployment.yaml", "Dockerfile"} {
		for _, ready := range []Ready{{secs(0.48), secs(2)}, {secs(5.2), secs(12)}, {secs(25), secs(60)}} {
			for _, probe := range []float64{0.001, 0.05, 0.4} {
				o := Options{Ready: ready, Probe: secs(probe)}
				f := read(t, name)
				tuned := 0
				for i := range f.Checks {
					c := &f.Checks[i]
					got, err := Tune(c, o)
					if c.Container == nil && c.Target == nil && len(c.probes) == 0 {
						if err == nil {
							t.Errorf("%s: %s has no check, and is tuned", name, c.Name)
						}
						continue
					}
					if err != nil {
						t.Errorf("%s: %s, %v: %v", name, c.Name, ready, err)
						continue
					}
					tuned++
					again := reread(t, name, got).check(t, c.Name)
					opts := cmp.Options{cmpopts.IgnoreUnexported(Check{}), cmpopts.IgnoreFields(Check{}, "Line", "End", "Document")}
					if diff := cmp.Diff(&got.Check, again, opts); diff != "" {
						t.Errorf("%s: %s: the patch makes %s", name, c.Name, diff)
					}
					before, after := Evaluate(c, o), Evaluate(again, o)
					for _, finding := range after.Findings {
						if finding.Level != LevelNote && finding.ID != "HC006" {
							t.Errorf("%s: %s, %v: after tuning %s: %s", name, c.Name, ready, finding.ID, finding.Text)
						}
					}
					e := after.Estimates[0]
					for _, e := range after.Estimates { // of every engine
						if e.GivenUp > 0.002 || e.Variant == Moby2026 && e.Wasted > 1.3 {
							t.Errorf("%s: %s, %v: after tuning %+v", name, c.Name, ready, e)
						}
					}
					if e.GivenUp > 0.002 || e.Mean > before.Estimates[0].Mean+0.2 && before.Estimates[0].GivenUp == 0 && before.Estimates[0].Mean > 0 {
						t.Errorf("%s: %s, %v: from %+v to %+v", name, c.Name, ready, before.Estimates[0], e)
					}
					if c.Pod == nil && after.CostPerDay > max(864.1, before.CostPerDay) {
						t.Errorf("%s: %s: probes take %v s a day", name, c.Name, after.CostPerDay)
					}
				}
				if tuned == 0 {
					t.Errorf("%s: nothing is tuned", name)
				}
			}
		}
	}
}

// reread applies what was tuned to a file, and reads it.
func reread(t *testing.T, name string, got *Tuned) *File {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	if got.Text != "" {
		b = got.Apply(b)
	} else {
		dec := yaml.NewDecoder(bytes.NewReader(b))
		var doc any
		for range got.Document + 1 {
			doc = nil
			if err := dec.Decode(&doc); err != nil {
				t.Fatal(err)
			}
		}
		if b, err = yaml.Marshal(patched(t, doc, got.Patch)); err != nil {
			t.Fatal(err)
		}
	}
	f, err := Parse(name, b)
	if err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	return f
}

// TestTuneGrace: a service waits for its slow targets too, and one that does is left alone.
func TestTuneGrace(t *testing.T) {
	c := &read(t, "target-groups.json").Checks[0]
	for _, v := range []struct {
		grace float64
		want  int
	}{{0, 18}, {17, 18}, {18, 0}, {600, 0}} {
		o := Options{Ready: Ready{secs(5.2), secs(12)}, Probe: secs(0.05), Services: []Service{{"web", secs(v.grace)}}}
		got, err := Tune(c, o)
		if err != nil || got.GraceSeconds != v.want {
			t.Errorf("grace %v: %+v, %v, want %d", v.grace, got, err, v.want)
			continue
		}
		o.Services = got.Graced(o.Services)
		for _, finding := range Evaluate(&got.Check, o).Findings {
			if finding.ID == "HC006" {
				t.Errorf("grace %v: after tuning %s", v.grace, finding.Text)
			}
		}
	}
	slow := Options{Ready: Ready{secs(5.2), secs(6)}, Probe: secs(0.05), Registered: secs(30), Services: []Service{{"web", 0}}}
	if got, err := Tune(c, slow); err != nil || got.GraceSeconds != 36 { // 30 s until it is registered, an interval, an answer
		t.Errorf("%+v, %v", got, err)
	}
}

// TestTuneImpossible: what no setting can wait for is said.
func TestTuneImpossible(t *testing.T) {
	o := Options{Ready: Ready{secs(1000), secs(4000)}, Probe: secs(0.05)}
	for _, name := range []string{"task.json", "target-groups.json"} {
		if got, err := Tune(&read(t, name).Checks[0], o); err == nil || !strings.Contains(err.Error(), "one start in a thousand") {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

// TestEvaluateFindings: what goes wrong is found, by its number.
func TestEvaluateFindings(t *testing.T) {
	ids := func(r Result) string {
		var out []string
		for _, f := range r.Findings {
			out = append(out, f.ID)
		}
		return strings.Join(out, " ")
	}
	slow := Options{Ready: Ready{secs(25), secs(60)}, Probe: secs(0.05)}
	quick := Options{Ready: Ready{secs(0.48), secs(2)}, Probe: secs(0.05)}
	late := quick
	late.Probe = secs(40)
	served := slow
	served.Services = read(t, "service.json").Services
	for _, c := range []struct {
		file, name string
		o          Options
		want       string
	}{
		{"task.json", "tuned", slow, "HC001 HC001 HC011 LZ002"},
		{"task.json", "default", quick, "HC008 HC011 LZ002"},
		{"task.json", "default", slow, "HC011 LZ002"},
		{"task.json", "default", late, "HC003"},
		{"task.json", "sidecar", quick, "HC007"},
		{"target-groups.json", "my-targets", quick, "HC012"},
		{"target-groups.json", "my-targets", slow, "HC005 HC006 HC012"},
		{"target-groups.json", "my-targets", served, "HC005 HC006 HC012"},
		{"deployment.yaml", "deployment/web app", slow, "HC001 HC009"},
		{"deployment.yaml", "deployment/web none", quick, "HC010"},
		{"deployment.yaml", "deployment/web full", quick, "HC008"},
		{"compose.yaml", "cache", quick, "HC007"},
	} {
		if got := ids(Evaluate(read(t, c.file).check(t, c.name), c.o)); got != c.want {
			t.Errorf("%s: %s: %s, want %s", c.file, c.name, got, c.want)
		}
	}
}

// FuzzParse: any file is read or an error, and what was read can be evaluated and
// tuned.
func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/*.*")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range append(files, "testdata/Dockerfile") {
		b, err := os.ReadFile(name)
		if err != nil {
			continue // the corpus' directory
		}
		f.Add(filepath.Base(name) == "Dockerfile", b)
	}
	f.Fuzz(func(t *testing.T, dockerfile bool, b []byte) {
		name := "file"
		if dockerfile {
			name = "Dockerfile"
		}
		file, err := Parse(name, b)
		if err != nil {
			return
		}
		o := Options{Ready: Ready{secs(5), secs(20)}, Probe: secs(0.05), Services: file.Services}
		for i := range file.Checks[:min(len(file.Checks), 3)] {
			r := Evaluate(&file.Checks[i], o)
			if _, err := json.Marshal(r); err != nil {
				t.Fatalf("%+v: %v", r, err)
			}
			if tuned, err := Tune(&file.Checks[i], o); err == nil && tuned.Text != "" && dockerfile {
				if _, err := Parse(name, tuned.Apply(b)); err != nil {
					t.Fatalf("tuned:\n%s\n%v", tuned.Apply(b), err)
				}
			}
		}
	})
}
