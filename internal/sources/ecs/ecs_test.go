package ecs

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/thaw-project/thaw/internal/profile"
)

func read(t *testing.T, files ...string) *Reader {
	t.Helper()
	var r Reader
	for _, name := range files {
		b, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Read(b); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	return &r
}

func record(t *testing.T, r *Reader, opts Options) *profile.Record {
	t.Helper()
	rec, err := r.Record(opts)
	if err != nil {
		t.Fatal(err)
	}
	return rec
}

// lines are a run's phases, one a line.
func lines(run *profile.Run) (all []string) {
	for _, p := range run.Phases {
		if p.Ms == nil {
			all = append(all, fmt.Sprintf("%s unknown", p.Name))
			if p.Confidence != profile.Unknown || p.Reason == "" {
				all = append(all, "without a reason")
			}
			continue
		}
		all = append(all, fmt.Sprintf("%s %.3f-%.3f %s", p.Name, *p.StartMs, *p.EndMs, p.Confidence))
	}
	return all
}

func eventAt(t *testing.T, run *profile.Run, name string) time.Time {
	t.Helper()
	e := run.Event(name)
	if e == nil {
		t.Fatalf("no event %s in %+v", name, run.Events)
	}
	return run.Begun.Add(time.Duration(e.AtMs * 1e6))
}

func TestDescribeTasks(t *testing.T) {
	rec := record(t, read(t, "describe-tasks.json"), Options{})
	if len(rec.Subjects) != 2 || len(rec.Subjects[0].Runs) != 2 || len(rec.Subjects[1].Runs) != 1 {
		t.Fatalf("subjects %+v", rec.Subjects)
	}
	s := rec.Subjects[0]
	if s.Name != "api api:41" || !strings.HasSuffix(s.Image, "/api:1.41") || !strings.HasPrefix(s.Manifest, "sha256:4c8a") {
		t.Errorf("subject %q %q %q", s.Name, s.Image, s.Manifest)
	}
	want := []string{"queue 0.000-14189.000 reported", "image_pull 14189.000-54142.000 reported", "runtime_init 54142.000-61778.000 reported",
		"dependency_load unknown", "app_bootstrap unknown", "health_wait_container unknown", "health_wait_lb unknown"}
	if diff := cmp.Diff(want, lines(&s.Runs[0])); diff != "" {
		t.Error(diff)
	}
	if s.Runs[0].TotalMs != nil {
		t.Error("a total without knowing when it was healthy")
	}
	if p := s.Runs[0].Phase(profile.PhaseHealthContainer); !strings.Contains(p.Reason, "#849") {
		t.Errorf("reason of an unknown health: %q", p.Reason)
	}
	// The second one was printed in another zone.
	if at := s.Runs[1].Begun; !at.Equal(time.Date(2026, 3, 2, 5, 2, 38, 100e6, time.UTC)) {
		t.Errorf("begun %v", at)
	}
	if e := rec.Subjects[1].Runs[0].Error; !strings.HasPrefix(e, "Task failed to start: CannotPullContainerError") {
		t.Errorf("error %q", e)
	}
	if l := rec.Labels; l["cluster"] != "shop" || l["launch_type"] != "FARGATE" || l["service"] != "" {
		t.Errorf("labels %v", l)
	}
}

// TestTogether: task metadata adds what a container does, and DescribeTasks when the task
// was asked for.
func TestTogether(t *testing.T) {
	for _, files := range [][]string{{"describe-tasks.json", "metadata-fargate.json"}, {"metadata-fargate.json", "describe-tasks.json", "metadata-fargate.json"}} {
		rec := record(t, read(t, files...), Options{})
		i := slices.IndexFunc(rec.Subjects, func(s profile.Subject) bool { return s.Mode == "containerd/soci" })
		if i < 0 {
			t.Fatalf("subjects %+v", rec.Subjects)
		}
		run := &rec.Subjects[i].Runs[0]
		want := []string{"queue 0.000-14189.331 reported", "image_pull 14189.331-54142.068 reported", "runtime_init 54142.068-56925.683 reported",
			"dependency_load unknown", "app_bootstrap unknown", "health_wait_container 56925.683-87013.397 reported", "health_wait_lb unknown"}
		if diff := cmp.Diff(want, lines(run)); diff != "" {
			t.Error(diff)
		}
		if run.TotalMs == nil || *run.TotalMs != 87013.397 {
			t.Errorf("total %v", run.TotalMs)
		}
		if e := run.Event(profile.EventHealthy); e.PrecisionMs != 0.447 || e.Source != profile.SignalECS {
			t.Errorf("healthy %+v", e)
		}
	}
	// Of the other container, which has no health check.
	rec := record(t, read(t, "metadata-fargate.json"), Options{Container: "log-router"})
	if at := eventAt(t, &rec.Subjects[0].Runs[0], profile.EventStarted); at.Second() != 33 {
		t.Errorf("log-router started %v", at)
	}
	if rec.Subjects[0].Runs[0].Phase(profile.PhaseQueue).Ms != nil {
		t.Error("a queue of nothing")
	}
	if _, err := read(t, "metadata-fargate.json").Record(Options{Container: "none"}); err == nil {
		t.Error("a container that is not there was taken")
	}
}

// TestPullOfAnother: ECS says when the task's last image was pulled, which need not be
// this container's.
func TestPullOfAnother(t *testing.T) {
	rec := record(t, read(t, "metadata-ec2.json"), Options{})
	run := &rec.Subjects[0].Runs[0]
	want := []string{"queue unknown", "image_pull unknown", "runtime_init unknown", "dependency_load unknown", "app_bootstrap unknown",
		"health_wait_container 1575.026-31932.253 reported", "health_wait_lb unknown"}
	if diff := cmp.Diff(want, lines(run)); diff != "" {
		t.Error(diff)
	}
	if p := run.Phase(profile.PhasePull); !strings.Contains(p.Reason, "last image") {
		t.Errorf("reason %q", p.Reason)
	}
	sidecar := record(t, read(t, "metadata-ec2.json"), Options{Container: "sidecar"})
	if p := sidecar.Subjects[0].Runs[0].Phase(profile.PhasePull); p.Ms == nil || *p.Ms != 9288.737 {
		t.Errorf("the sidecar's pull: %+v", p)
	}
}

// TestEvents: all five times are right, whatever order and number events come in.
func TestEvents(t *testing.T) {
	day := time.Date(2026, 5, 2, 14, 19, 0, 0, time.UTC)
	want := map[string]time.Duration{profile.EventRequested: 14980, profile.EventConnected: 19928, profile.EventPullStart: 27907, profile.EventPullEnd: 32427, profile.EventStarted: 34520}
	for _, file := range []string{"events.jsonl", "tail.log", "filter-log-events.json"} {
		r := read(t, file)
		rec := record(t, r, Options{})
		if len(rec.Subjects) != 1 || len(rec.Subjects[0].Runs) != 1 {
			t.Fatalf("%s: %d subjects", file, len(rec.Subjects))
		}
		run := &rec.Subjects[0].Runs[0]
		for name, at := range want {
			if got := eventAt(t, run, name).Sub(day); got.Round(time.Millisecond) != at*time.Millisecond {
				t.Errorf("%s: %s at %v, want %v", file, name, got, at*time.Millisecond)
			}
		}
		if run.Error != "" {
			t.Errorf("%s: a task that was stopped later has error %q", file, run.Error)
		}
		if file == "events.jsonl" && r.Skipped != 1 {
			t.Errorf("%d skipped", r.Skipped)
		}
	}
}

// TestEventsAnyOrder: the same, in every order.
func TestEventsAnyOrder(t *testing.T) {
	b, err := os.ReadFile("testdata/events.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	all := strings.SplitAfter(strings.TrimSpace(string(b)), "\n")
	var first *profile.Record
	var permute func(k int)
	permute = func(k int) {
		if k < len(all) {
			for i := k; i < len(all); i++ {
				all[k], all[i] = all[i], all[k]
				permute(k + 1)
				all[k], all[i] = all[i], all[k]
			}
			return
		}
		var r Reader
		if err := r.Read([]byte(strings.Join(all, "\n"))); err != nil {
			t.Fatal(err)
		}
		rec := record(t, &r, Options{})
		if first == nil {
			first = rec
		} else if diff := cmp.Diff(first, rec); diff != "" {
			t.Fatal(diff)
		}
	}
	permute(0)
}

func TestTargetHealth(t *testing.T) {
	rec := record(t, read(t, "target-health.jsonl", "events.jsonl"), Options{})
	run := &rec.Subjects[0].Runs[0]
	p := run.Phase(profile.PhaseHealthLB)
	if p.Ms == nil || *p.Ms != 10480 || run.Event(profile.EventLBHealthy).PrecisionMs != 1000 {
		t.Errorf("phase %+v, event %+v", p, run.Event(profile.EventLBHealthy))
	}
	// Healthy at the first question: nobody knows since when.
	b, _ := os.ReadFile("testdata/target-health.jsonl")
	r := read(t, "events.jsonl")
	if err := r.Read(b[strings.Index(string(b), `{"time": "2026-05-02T14:19:45Z"`):]); err != nil {
		t.Fatal(err)
	}
	if p := record(t, r, Options{}).Subjects[0].Runs[0].Phase(profile.PhaseHealthLB); p.Ms != nil || !strings.Contains(p.Reason, "before it was asked first") {
		t.Errorf("phase %+v", p)
	}
	if err := new(Reader).Read([]byte(`{"TargetHealthDescriptions": []}`)); err == nil {
		t.Error("an answer without a time was taken")
	}
}

func TestRefused(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"", "empty"},
		{"hello", "not JSON"},
		{`{"a": `, "read JSON"},
		{`{"tasks": [{"containers": []}]}`, "without its ARN"},
		{`{"taskArn": "a", "containers": [], "createdAt": "yesterday"}`, "RFC 3339"},
		{`{"taskArn": "a", "containers": [], "createdAt": 1608240571123}`, "seconds since 1970"},
		{`{"DockerId": "a", "Name": "b", "Labels": {}}`, "/task"},
	} {
		err := new(Reader).Read([]byte(c.in))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.in, err, c.want)
		}
	}
	var r Reader
	if err := r.Read([]byte(`{"detail-type": "ECS Service Action", "detail": {}} {"what": "else"}`)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Record(Options{}); !errors.Is(err, ErrNoTasks) || r.Skipped != 2 {
		t.Errorf("%v, %d skipped", err, r.Skipped)
	}
}

func TestTime(t *testing.T) {
	want := time.Date(2026, 3, 2, 5, 2, 37, 988e6, time.UTC)
	for _, in := range []string{`"2026-03-02T05:02:37.988Z"`, `"2026-03-02T05:02:37.988000+00:00"`, `"2026-03-02T14:02:37.988+09:00"`, `"2026-03-02T14:02:37.988+0900"`, `1772427757.988`} {
		var at Time
		if err := json.Unmarshal([]byte(in), &at); err != nil || !at.Equal(want) {
			t.Errorf("%s: %v, %v", in, at, err)
		}
	}
	for _, in := range []string{`null`, `""`, `"0001-01-01T00:00:00Z"`} {
		var at Time
		if err := json.Unmarshal([]byte(in), &at); err != nil || !at.IsZero() {
			t.Errorf("%s: %v, %v", in, at, err)
		}
	}
}

func FuzzRead(f *testing.F) {
	files, _ := filepath.Glob("testdata/*")
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var r Reader
		if r.Read(b) != nil {
			return
		}
		rec, err := r.Record(Options{})
		if err != nil {
			return
		}
		for _, s := range rec.Subjects {
			for _, run := range s.Runs {
				for _, p := range run.Phases {
					if (p.Ms == nil) != (p.Confidence == profile.Unknown) || p.Ms == nil && p.Reason == "" || p.Ms != nil && *p.Ms < 0 {
						t.Fatalf("phase %+v", p)
					}
				}
			}
		}
		if _, err := json.Marshal(rec); err != nil {
			t.Fatal(err)
		}
	})
}

// TestHealthyAgain: a container that is healthy again after half a year has not started for
// so long, and the others of its service are known nevertheless.
func TestHealthyAgain(t *testing.T) {
	var r Reader
	for _, month := range []string{"05", "11"} {
		if err := r.Read([]byte(`{"TaskARN": "` + month + `", "Family": "api", "Revision": "1", "Containers": [{"Name": "c", "StartedAt": "2026-05-02T14:19:14Z", "Health": {"status": "HEALTHY", "statusSince": "2026-` + month + `-02T14:19:44Z"}}]}`)); err != nil {
			t.Fatal(err)
		}
	}
	rec := record(t, &r, Options{})
	rec.Version, rec.ID = profile.Version, profile.NewID(rec.Begun)
	if err := rec.Check(); err != nil {
		t.Error(err)
	}
	runs := rec.Subjects[0].Runs
	if len(runs) != 2 || runs[0].Event(profile.EventHealthy) == nil || runs[1].Event(profile.EventHealthy) != nil || len(runs[1].Warnings) != 1 || !strings.Contains(runs[1].Warnings[0], "healthy (ecs) is said to be 184 days from the start") {
		t.Errorf("%+v", runs)
	}
}

// TestNewestCounts: what a task is, its newest version says.
func TestNewestCounts(t *testing.T) {
	made := `{"taskArn": "a", "version": 1, "lastStatus": "PROVISIONING", "containers": [{"name": "c"}], "createdAt": "2026-05-02T14:19:14Z"}`
	failed := `{"taskArn": "a", "version": 3, "lastStatus": "STOPPED", "containers": [{"name": "c"}], "stopCode": "TaskFailedToStart", "stoppedReason": "no room", "stoppedAt": "2026-05-02T14:20:14Z"}`
	for _, in := range []string{made + failed, failed + made} {
		var r Reader
		if err := r.Read([]byte(in)); err != nil {
			t.Fatal(err)
		}
		if run := record(t, &r, Options{}).Subjects[0].Runs[0]; run.Error != "no room" || len(run.Events) != 1 {
			t.Errorf("run %+v", run)
		}
	}
}
