package kubernetes

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
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

func record(t *testing.T, r *Reader) *profile.Record {
	t.Helper()
	rec, err := r.Record(Options{})
	if err != nil {
		t.Fatal(err)
	}
	return rec
}

// lines are a run's phases, one a line.
func lines(run *profile.Run) (all []string) {
	for _, p := range run.Phases {
		if p.Ms == nil {
			if p.Confidence != profile.Unknown || p.Reason == "" {
				all = append(all, "without a reason")
			}
			all = append(all, p.Name+" unknown")
			continue
		}
		all = append(all, fmt.Sprintf("%s %.3f-%.3f %s", p.Name, *p.StartMs, *p.EndMs, p.Confidence))
	}
	return all
}

// pulledFirst is what is known of the pod whose image was pulled.
var pulledFirst = []string{"queue 0.000-6000.000 reported", "image_pull 6000.000-14255.000 reported", "runtime_init 14255.000-15000.000 reported",
	"dependency_load unknown", "app_bootstrap unknown", "health_wait_container 15000.000-24000.000 reported", "health_wait_lb unknown"}

func TestList(t *testing.T) {
	r := read(t, "list.json")
	rec := record(t, r)
	if len(rec.Subjects) != 3 || len(rec.Subjects[0].Runs) != 2 || r.Skipped != 1 {
		t.Fatalf("%d skipped, subjects %+v", r.Skipped, rec.Subjects)
	}
	api := &rec.Subjects[0]
	if api.Name != "api" || api.Image != "registry.example.com/shop/api:1.41" || !strings.HasPrefix(api.Manifest, "sha256:4c8a") || api.ImageBytes != 45465097 {
		t.Errorf("subject %q %q %q, %d bytes", api.Name, api.Image, api.Manifest, api.ImageBytes)
	}
	first := &api.Runs[0]
	if diff := cmp.Diff(pulledFirst, lines(first)); diff != "" {
		t.Error(diff)
	}
	for name, want := range map[string]string{profile.EventPullEnd: "in 6.712s, after 1.543s of waiting", profile.EventScheduled: "event Scheduled", profile.EventConnected: "sandbox"} {
		if e := first.Event(name); e == nil || !strings.Contains(e.Detail, want) {
			t.Errorf("%s: %+v, want %q", name, e, want)
		}
	}
	if e := first.Event(profile.EventScheduled); e.AtMs != 412.345 || e.PrecisionMs != 1 {
		t.Errorf("scheduled %+v", e)
	}
	if e := first.Event(profile.EventStarted); e.PrecisionMs != 1000 {
		t.Errorf("started %+v", e)
	}
	if p := first.Phase(profile.PhaseQueue); p.Reason != "with 2 s of init containers: migrate" {
		t.Errorf("queue %+v", p)
	}
	// The image was there: that is known, and is no time at all.
	if p := api.Runs[1].Phase(profile.PhasePull); p.Ms == nil || *p.Ms != 0 || api.Runs[1].Event(profile.EventPullEnd).Detail != "event Pulled: the image was on the node" {
		t.Errorf("pull %+v", p)
	}
	failed := rec.Subjects[1].Runs[0]
	if !strings.HasPrefix(failed.Error, "container api: ImagePullBackOff") || failed.Phase(profile.PhasePull).Ms != nil {
		t.Errorf("failed run %+v", failed)
	}
	if rec.Labels["namespace"] != "shop" || rec.Labels["service"] != "" {
		t.Errorf("labels %v", rec.Labels)
	}
}

// TestCut: times that were cut to seconds do not contradict what is known exactly.
func TestCut(t *testing.T) {
	run := &record(t, read(t, "list.json")).Subjects[2].Runs[0]
	want := []string{"queue 0.000-2100.000 reported", "image_pull 2100.000-5000.000 reported", "runtime_init 5000.000-5000.000 reported",
		"dependency_load unknown", "app_bootstrap unknown", "health_wait_container unknown", "health_wait_lb unknown"}
	if diff := cmp.Diff(want, lines(run)); diff != "" {
		t.Error(diff)
	}
	if p := run.Phase(profile.PhaseHealthContainer); !strings.Contains(p.Reason, "no readiness probe") || len(run.Warnings) > 0 {
		t.Errorf("%+v, warnings %v", p, run.Warnings)
	}
}

// TestShapes: lists, single objects, YAML, and events of either API say the same.
func TestShapes(t *testing.T) {
	for _, files := range [][]string{{"pod.json", "events-v1.json"}, {"events-v1.json", "pod.json"}, {"list.yaml"}, {"list.yaml", "pod.json", "events-v1.json", "list.yaml"}} {
		rec := record(t, read(t, files...))
		if len(rec.Subjects) != 1 || len(rec.Subjects[0].Runs) != 1 {
			t.Fatalf("%v: %+v", files, rec.Subjects)
		}
		if diff := cmp.Diff(pulledFirst, lines(&rec.Subjects[0].Runs[0])); diff != "" {
			t.Errorf("%v: %s", files, diff)
		}
	}
	rec := record(t, read(t, "pod.json"))
	if p := rec.Subjects[0].Runs[0].Phase(profile.PhasePull); p.Ms != nil || !strings.Contains(p.Reason, "an hour") || len(rec.Warnings) != 1 {
		t.Errorf("without events: %+v, warnings %v", p, rec.Warnings)
	}
}

func TestChain(t *testing.T) {
	at := func(ms int) moment {
		return moment{time.UnixMilli(1_780_000_000_000 + int64(ms)), time.Second}
	}
	for _, c := range []struct {
		name   string
		at     []int
		pulled int // how long the last but one took
		want   []int
	}{
		{"in order", []int{0, 2000, 4000, 6000}, -1, []int{0, 2000, 4000, 6000}},
		{"a pull that ends in the second of the start", []int{0, 2000, 5000, 5000}, 2900, []int{0, 2100, 5000, 5000}},
		{"a pull that would end after the start", []int{0, 2000, 4000, 4000}, 2900, []int{0, 2000, 4900, 4900}},
		{"two clocks", []int{0, 2000, 9000, 9000}, 2900, []int{0, 2000, 9000, 9000}},
		{"two clocks, again", []int{5000, 2000, 9000, 9000}, -1, []int{5000, 2000, 9000, 9000}},
	} {
		var ch chain
		for i, ms := range c.at {
			ch.add(fmt.Sprint(i), at(ms), "")
		}
		if c.pulled >= 0 {
			ch.links[2].exact, ch.links[2].after = true, time.Duration(c.pulled)*time.Millisecond
		}
		ch.settle()
		var got []int
		for _, l := range ch.links {
			got = append(got, int(l.moment.UnixMilli()-1_780_000_000_000))
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: %s", c.name, diff)
		}
	}
}

func TestPulled(t *testing.T) {
	for message, want := range map[string][3]string{
		`Successfully pulled image "nginx" in 1.018572802s`:                                             {"1.018572802s", "", ""},
		`Successfully pulled image "nginx" in 562.2444ms`:                                               {"562.2444ms", "", ""},
		`Successfully pulled image "a/b:c" in 2m27.88s (3m1.2s including waiting)`:                      {"2m27.88s", "3m1.2s", ""},
		`Successfully pulled image "a" in 312ms (312ms including waiting). Image size: 64753325 bytes.`: {"312ms", "312ms", "64753325"},
		`Successfully pulled image "x" in "y" in 1s (2s including waiting). Image size: 1 bytes.`:       {"1s", "2s", "1"},
		`Container image "busybox" already present on machine`:                                          {},
		`Successfully pulled image "k8s.gcr.io/busybox"`:                                                {},
	} {
		m := pulled().FindStringSubmatch(message)
		if m == nil {
			m = make([]string, 4)
		}
		if got := [3]string(m[1:]); got != want {
			t.Errorf("%s: %q, want %q", message, got, want)
		}
	}
}

func TestRefused(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"", "empty"},
		{"hello", "neither JSON nor YAML"},
		{"a: [", "read YAML"},
		{`{"kind": `, "read JSON"},
		{`{"kind": "Pod"}`, "without a name"},
		{`{"kind": "Pod", "metadata": {"name": "a", "creationTimestamp": "today"}}`, "RFC 3339"},
	} {
		if err := new(Reader).Read([]byte(c.in)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.in, err, c.want)
		}
	}
	var r Reader
	if err := r.Read([]byte(`{"kind": "List", "items": [{"kind": "Node"}]} {"kind": "Service"}`)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Record(Options{}); !errors.Is(err, ErrNoPods) || r.Skipped != 2 {
		t.Errorf("%v, %d skipped", err, r.Skipped)
	}
	if _, err := read(t, "list.json").Record(Options{Container: "none"}); err == nil {
		t.Error("a container that is not there was taken")
	}
}

func FuzzRead(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.*")
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
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
