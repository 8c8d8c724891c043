package profile_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/thaw-project/thaw/internal/profile"
	"github.com/thaw-project/thaw/internal/profile/profiletest"
)

var update = flag.Bool("update", false, "write golden files anew")

func pointer[T any](v T) *T { return &v }

// full is a small record in which every field has a value.
func full() *profile.Record {
	begun := time.Date(2026, 3, 2, 9, 30, 0, 0, time.UTC)
	return &profile.Record{Version: 1, ID: "20260302-093000-00ff", Name: "one start of everything", Source: profile.SourceMeasure, Begun: begun, Ended: begun.Add(90 * time.Second),
		Labels: map[string]string{"service": "shop"}, Tool: "1.0.0", Machine: profile.Machine{Kernel: "6.18.0", CPUs: 2, MemoryBytes: 8 << 30},
		Network:  profile.Network{Name: "cloud", LatencyMs: 20, Bandwidth: 250_000_000},
		Signals:  []profile.Signal{{Name: profile.SignalReads, Used: true}, {Name: profile.SignalTracefs, Reason: "no tracefs is mounted"}},
		Warnings: []string{"the machine was busy"},
		Subjects: []profile.Subject{{Name: "app", Image: "registry.example.com/app:1.2", Manifest: "sha256:12", Mode: "lazy", Cold: profile.ColdL0, Command: []string{"app", "-p", "80"}, Probe: "http://127.0.0.1:80/",
			Labels: map[string]string{"task_definition": "app:7"}, ImageBytes: 1000, UnpackedBytes: 3000, Layers: []profile.Layer{{Digest: "sha256:34", Bytes: 1000, UnpackedBytes: 3000, Instruction: "COPY . /app"}},
			Files: []profile.File{{Path: "/app/a.py", Bytes: 2000, CompressedBytes: 700, Layer: 0, Package: "python:a", First: profile.PhaseDependencyLoad, ReadBytes: 1500, Runs: 1}},
			Runs: []profile.Run{{Begun: begun.Add(time.Second), Container: "c1", Error: "it ended with exit code 1", Coldness: &profile.Coldness{Level: profile.ColdL0, Files: 1, StoredBytes: 2, CachedBytes: 3, Reason: "a file was cached"},
				Events: []profile.Event{{Name: profile.EventRequested, AtMs: 0, Source: profile.SignalTimeline, Confidence: profile.Measured, Detail: "docker run", PrecisionMs: 1000, WaitedMs: 30}},
				Phases: []profile.Phase{
					{Name: profile.PhasePull, StartMs: pointer(1.5), EndMs: pointer(40.25), Ms: pointer(38.75), Source: profile.SignalTimeline, Confidence: profile.Measured, LazyWaitMs: pointer(3.), Bytes: pointer(int64(4096)), Files: pointer(1), CPUMs: pointer(7.5)},
					{Name: profile.PhaseHealthLB, Confidence: profile.Unknown, Reason: "there is no load balancer"},
					{Name: profile.PhaseFirstRequest, Ms: pointer(8.), Source: profile.SignalProbe, Confidence: profile.Measured, Routes: []profile.Route{{Route: "GET /", FirstMs: 9, SteadyMs: 1, PenaltyMs: 8, Files: 2, Bytes: 300, WaitMs: 4}}}},
				TotalMs: pointer(480.), Processes: []profile.Process{{Pid: 7, Parent: 1, Command: "app", StartMs: 41, EndMs: pointer(500.)}},
				Reads:    []profile.Read{{Path: "/app/a.py", AtMs: 42, Phase: profile.PhaseDependencyLoad, Bytes: 1500, TookMs: 0.5}},
				Packages: []profile.Package{{Name: "python:a", Phase: profile.PhaseDependencyLoad, Ms: 0.5, Bytes: 1500, Files: 1}},
				Waits:    []profile.Wait{{StartMs: 41, EndMs: 44, Path: "/app/a.py", Layer: "sha256:34", Bytes: 1500}},
				Requests: []profile.Request{{Route: "GET /", N: 1, StartMs: 481, EndMs: 490, Status: 500, Error: "it said 500", Files: 2, Bytes: 300, WaitMs: 4}},
				Health:   &profile.Health{Kind: "ecs", Source: profile.SignalComputed, TicksMs: []float64{30_000}, HealthyMs: pointer(30_050.), DeadlineMs: pointer(90_150.)},
				Cost:     &profile.Cost{NetworkBytes: 900, Requests: 4, RegistryBytes: 700, CacheBytes: 100, HereBytes: 50, CPUMs: 200, ThrottledMs: 10, NeededBytes: 1500, CompleteBytes: 1200},
				Warnings: []string{"a probe was late"}}}}}}
}

// TestGolden: records of this version have been written, and are read for good.
func TestGolden(t *testing.T) {
	b, err := profile.Encode(full())
	if err != nil {
		t.Fatal(err)
	}
	var indented bytes.Buffer
	if err := json.Indent(&indented, b, "", "  "); err != nil {
		t.Fatal(err)
	}
	const name = "testdata/record.json"
	if *update {
		if err := os.WriteFile(name, indented.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), indented.String()); diff != "" {
		t.Errorf("it is written otherwise now: %s", diff)
	}
	r, err := profile.Decode(want)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(full(), r); diff != "" {
		t.Errorf("it is read otherwise: %s", diff)
	}
}

// TestGoldenIsFull: no field of the model is missing in the golden record, and all are
// in the document of the format.
func TestGoldenIsFull(t *testing.T) {
	doc, err := os.ReadFile("../../docs/formats/profile.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]bool{}
	for _, m := range regexp.MustCompile("`([a-z_0-9]+)`").FindAllStringSubmatch(string(doc), -1) {
		documented[m[1]] = true
	}
	var walk func(at string, v reflect.Value)
	set := map[string]bool{} // by type and field: somewhere it has a value
	walk = func(at string, v reflect.Value) {
		switch v.Kind() {
		case reflect.Pointer:
			if !v.IsNil() {
				walk(at, v.Elem())
			}
		case reflect.Slice:
			for i := range v.Len() {
				walk(at, v.Index(i))
			}
		case reflect.Struct:
			if _, ok := v.Interface().(time.Time); ok {
				return
			}
			for i := range v.NumField() {
				f := v.Type().Field(i)
				name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
				key := v.Type().Name() + "." + f.Name
				set[key] = set[key] || !v.Field(i).IsZero()
				if !documented[name] {
					t.Errorf("docs/formats/profile.md does not have `%s` (%s)", name, key)
				}
				walk(key, v.Field(i))
			}
		}
	}
	walk("Record", reflect.ValueOf(*full()))
	for key, ok := range set {
		switch key {
		case "File.Layer", "Event.AtMs", "Coldness.Proven": // 0 and false are values of theirs
		default:
			if !ok {
				t.Errorf("the golden record has no %s", key)
			}
		}
	}
}

func TestRoundTrip(t *testing.T) {
	for _, r := range []*profile.Record{profiletest.Record(1), profiletest.Modes(2, profiletest.PythonML)} {
		b, err := profile.Encode(r)
		if err != nil {
			t.Fatal(err)
		}
		got, err := profile.DecodeFrom(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(r, got); diff != "" {
			t.Fatal(diff)
		}
	}
}

// TestEncodeLists: lists that everybody goes through are never null.
func TestEncodeLists(t *testing.T) {
	r := full()
	r.Subjects = []profile.Subject{{Name: "a"}, {Name: "b", Runs: []profile.Run{{}}}}
	b, err := profile.Encode(r)
	if err != nil {
		t.Fatal(err)
	}
	if s := string(b); strings.Contains(s, `"runs":null`) || strings.Contains(s, `"events":null`) || strings.Contains(s, `"phases":null`) {
		t.Error(s)
	}
	if r.Subjects[0].Runs != nil || r.Subjects[1].Runs[0].Events != nil {
		t.Error("encoding changed the record")
	}
}

// TestCheck: what a record may not have, and where it is said to be.
func TestCheck(t *testing.T) {
	run := func(r *profile.Record) *profile.Run { return &r.Subjects[0].Runs[0] }
	for name, c := range map[string]struct {
		change func(r *profile.Record)
		want   string
	}{
		"version":         {func(r *profile.Record) { r.Version = 2 }, "version is 2"},
		"id":              {func(r *profile.Record) { r.ID = "../../x" }, `id "../../x"`},
		"no time":         {func(r *profile.Record) { r.Begun = time.Time{} }, "begun"},
		"far future":      {func(r *profile.Record) { r.Ended = time.Date(10_000, 1, 1, 0, 0, 0, 0, time.UTC) }, "ended"},
		"escape sequence": {func(r *profile.Record) { r.Name = "\x1b[2J" }, `name "\x1b[2J" is not printable`},
		"label":           {func(r *profile.Record) { r.Labels = map[string]string{"a": "b\nc"} }, "label"},
		"own label":       {func(r *profile.Record) { r.Subjects[0].Labels = map[string]string{"a\n": "b"} }, "subjects[0]: label"},
		"twice":           {func(r *profile.Record) { r.Subjects = append(r.Subjects, r.Subjects[0]) }, "subjects[1]: name"},
		"NaN":             {func(r *profile.Record) { run(r).TotalMs = pointer(math.NaN()) }, "subjects[0].runs[0]: total_ms is NaN"},
		"infinite":        {func(r *profile.Record) { run(r).Events[0].AtMs = math.Inf(1) }, "subjects[0].runs[0].events[0]: at_ms"},
		"a year":          {func(r *profile.Record) { run(r).Events[0].AtMs = 3e10 }, "at_ms"},
		"backwards":       {func(r *profile.Record) { run(r).Waits[0].EndMs = 1 }, "runs[0].waits[0]: it ends at 1, before"},
		"negative phase":  {func(r *profile.Record) { run(r).Phases[0].Ms = pointer(-1.) }, "runs[0].phases[0]: ms is -1"},
		"known":           {func(r *profile.Record) { run(r).Phases[0].Ms = nil }, "confidence"},
		"unknown":         {func(r *profile.Record) { run(r).Phases[1].Ms = pointer(0.) }, "confidence"},
		"phase twice":     {func(r *profile.Record) { run(r).Phases[1].Name = run(r).Phases[0].Name }, "another phase has it"},
		"no such layer":   {func(r *profile.Record) { r.Subjects[0].Files[0].Layer = 1 }, "subjects[0].files[0]: layer 1"},
		"negative bytes":  {func(r *profile.Record) { run(r).Reads[0].Bytes = -1 }, "reads[0]: bytes is -1"},
		"cost":            {func(r *profile.Record) { run(r).Cost.Requests = -1 }, "cost.requests is -1"},
		"share":           {func(r *profile.Record) { r.Subjects[0].Files[0].Runs = 2 }, "no share"},
		"many runs":       {func(r *profile.Record) { r.Subjects[0].Runs = make([]profile.Run, 10_001) }, "subjects[0]: runs has 10001 items"},
		"long text":       {func(r *profile.Record) { run(r).Error = strings.Repeat("x", 200_000) }, "error has 200000 bytes"},
		"tick":            {func(r *profile.Record) { run(r).Health.TicksMs[0] = math.Inf(-1) }, "ticks_ms[0]"},
		"route":           {func(r *profile.Record) { run(r).Phases[2].Routes[0].FirstMs = -1 }, "phases[2].routes[0]: first_ms"},
	} {
		r := full()
		c.change(r)
		if _, err := profile.Encode(r); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
	r := full() // the first request may have been the quickest
	run(r).Phases[2].Ms = pointer(-1.)
	if _, err := profile.Encode(r); err != nil {
		t.Error(err)
	}
}

func TestIDs(t *testing.T) {
	r := full()
	for id, ok := range map[string]bool{"20260302-093000-00ff": true, "20260302-093000-00fF": false, "20260302-093000-00fg": false, "20260302-093000-0": false, "": false, "20260302-093000-00fff": false,
		"2026030a-093000-00ff": false, "20260302_093000-00ff": false, "20260302-093000-00f\n": false, profile.NewID(time.Now()): true, profile.NewID(time.Time{}): true} {
		if r.ID = id; (r.Check() == nil) != ok {
			t.Errorf("%q: %v", id, r.Check())
		}
	}
}

func TestDecodeErrors(t *testing.T) {
	golden, err := os.ReadFile("testdata/record.json")
	if err != nil {
		t.Fatal(err)
	}
	newer := strings.Replace(string(golden), `"version": 1,`, `"version": 1, "later": {"x": [1]},`, 1)
	if _, err := profile.Decode([]byte(newer)); err != nil {
		t.Errorf("an unknown field: %v", err)
	}
	for text, want := range map[string]string{
		"":               "unexpected end",
		"{}":             "no version",
		`{"version": 9}`: "version 9",
		`[1]`:            "a record is no place for this: array, at byte 1",
		strings.Replace(string(golden), `"total_ms": 480`, `"total_ms": "480"`, 1): "subjects.runs.total_ms is no place for this: string",
		// Two bytes each, and each would be a run.
		`{"version":1,"subjects":[{"runs":[0` + strings.Repeat(",0", 2<<20) + `]}]}`: "its lists have 2097154 items, more than 2097152",
		`{"version":1,"name":"` + strings.Repeat(`,[{\"`, 2<<20) + `"}`:              `id ""`,
		string(golden) + "x":     "invalid character",
		string(golden)[:300]:     "unexpected end",
		`{"version":1,"id":"x"}`: `id "x"`,
	} {
		if _, err := profile.Decode([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.20q: %v, want %s", text, err, want)
		}
	}
}

// FuzzDecode: what is read can be written, read again to the same, and used.
func FuzzDecode(f *testing.F) {
	golden, err := os.ReadFile("testdata/record.json")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(golden)
	f.Add([]byte(`{"version":1,"id":"20260302-093000-00ff","begun":"2026-03-02T09:30:00Z","subjects":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := profile.Decode(b)
		if err != nil {
			return
		}
		out, err := profile.Encode(r)
		if err != nil {
			t.Fatalf("read, but not written: %v", err)
		}
		again, err := profile.Decode(out)
		if err != nil {
			t.Fatalf("written, but not read: %v", err)
		}
		twice, err := profile.Encode(again)
		if err != nil || !bytes.Equal(out, twice) {
			t.Fatalf("written twice it differs: %v\n%s\n%s", err, out, twice)
		}
		for i := range r.Subjects {
			s := &r.Subjects[i]
			sum := s.Summarize()
			if _, err := json.Marshal(sum); err != nil {
				t.Fatalf("summary: %v", err)
			}
			if _, err := json.Marshal(profile.CompareSubjects(&r.Subjects[0], s)); err != nil {
				t.Fatalf("comparison: %v", err)
			}
		}
	})
}

// TestShrink: what is too large keeps one run's details, and all runs' phases.
func TestShrink(t *testing.T) {
	r := &profile.Record{Version: profile.Version, ID: profile.NewID(time.Now()), Begun: time.Now().UTC(), Source: profile.SourceMeasure, Subjects: []profile.Subject{{Name: "a"}}}
	for i := range 5 {
		ms := float64(100 + i)
		r.Subjects[0].Runs = append(r.Subjects[0].Runs, profile.Run{Begun: r.Begun, TotalMs: &ms, Reads: make([]profile.Read, 200_000)})
	}
	long := strings.Repeat("x", 200)
	for i := range r.Subjects[0].Runs {
		for j := range r.Subjects[0].Runs[i].Reads {
			r.Subjects[0].Runs[i].Reads[j].Path = long
		}
	}
	if _, err := profile.Encode(r); !errors.Is(err, profile.ErrTooLarge) {
		t.Fatalf("too large: %v", err)
	}
	r.Shrink()
	if _, err := profile.Encode(r); err != nil {
		t.Fatal(err)
	}
	many := *r // of which one byte each is enough
	many.Subjects = slices.Repeat(r.Subjects, 11)
	for i := range many.Subjects {
		many.Subjects[i].Name = fmt.Sprint(i)
		many.Subjects[i].Runs = []profile.Run{{Begun: r.Begun, Waits: make([]profile.Wait, 200_000)}}
	}
	if _, err := profile.Encode(&many); !errors.Is(err, profile.ErrTooLarge) || !strings.Contains(err.Error(), "items") {
		t.Errorf("too many: %v", err)
	}
	for i, run := range r.Subjects[0].Runs {
		if (run.Reads != nil) != (i == 2) || run.TotalMs == nil {
			t.Errorf("run %d: %d reads", i, len(run.Reads))
		}
	}
}
