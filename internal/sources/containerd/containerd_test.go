package containerd

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/thaw-project/thaw/internal/profile"
)

func record(t *testing.T, b string) *profile.Record {
	t.Helper()
	var r Reader
	if err := r.Read([]byte(b)); err != nil {
		t.Fatal(err)
	}
	rec, err := r.Record()
	if err != nil {
		t.Fatal(err)
	}
	return rec
}

func recorded(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("testdata/events.txt")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// lines are a run's phases, one a line.
func lines(run *profile.Run) (all []string) {
	for _, p := range run.Phases {
		if p.Ms == nil {
			all = append(all, p.Name+" unknown")
			continue
		}
		all = append(all, fmt.Sprintf("%s %.3f-%.3f %s", p.Name, *p.StartMs, *p.EndMs, p.Confidence))
	}
	return all
}

func TestEvents(t *testing.T) {
	want := []string{"queue 0.000-0.000 estimated", "image_pull 0.000-3503.037 estimated", "runtime_init 3503.037-3699.571 measured", "dependency_load unknown",
		"app_bootstrap unknown", "health_wait_container unknown", "health_wait_lb unknown"}
	// As nerdctl prints them.
	var nerdctl strings.Builder
	for line := range strings.Lines(recorded(t)) {
		e, ok := parse(strings.TrimSpace(line))
		if !ok {
			t.Fatalf("not read: %s", line)
		}
		body := line[strings.Index(line, "{"):]
		b, _ := json.Marshal(map[string]string{"Timestamp": e.At.Format("2006-01-02T15:04:05.999999999Z07:00"), "Namespace": e.Namespace, "Topic": e.Topic, "Event": strings.TrimSpace(body)})
		nerdctl.Write(append(b, '\n'))
	}
	for name, text := range map[string]string{"ctr": recorded(t), "nerdctl": nerdctl.String()} {
		rec := record(t, text)
		if len(rec.Subjects) != 1 || len(rec.Subjects[0].Runs) != 1 || rec.Subjects[0].Mode != "containerd/overlayfs" {
			t.Fatalf("%s: subjects %+v", name, rec.Subjects)
		}
		run := &rec.Subjects[0].Runs[0]
		if diff := cmp.Diff(want, lines(run)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		if run.Container != "one" || run.Event(profile.EventCreated).AtMs != 3692.885 {
			t.Errorf("%s: run %+v", name, run)
		}
	}
}

// TestThere: an image that came long before is not part of the start, nor is another's
// pull.
func TestThere(t *testing.T) {
	text := recorded(t)
	for _, c := range []struct {
		name, text string
		want       string
	}{
		{"long before", strings.ReplaceAll(strings.ReplaceAll(text, "18:16:50.598", "18:17:50.598"), "18:16:50.6", "18:17:50.6"), "0.000-0.000"},
		{"no pull", text[strings.Index(text, "2026-11-21 18:16:50.598"):], "0.000-0.000"},
		{"of another image", strings.ReplaceAll(text[:strings.Index(text, "2026-11-21 18:16:50.598")], "sha256:", "sha256:0") + text[strings.Index(text, "2026-11-21 18:16:50.62"):], "0.000-3503.037"},
		{"another before", "2026-11-21 18:16:46.9 +0000 UTC default /content/create {\"digest\":\"sha256:0\"}\n2026-11-21 18:16:47 +0000 UTC default /images/create {\"name\":\"other\"}\n" + text, "0.000-3503.037"},
		{"another namespace", "2026-11-21 18:16:46.9 +0000 UTC k8s.io /content/create {\"digest\":\"sha256:0\"}\n" + text, "0.000-3503.037"},
	} {
		run := &record(t, c.text).Subjects[0].Runs[0]
		if got := fmt.Sprintf("%.3f-%.3f", *run.Phase(profile.PhasePull).StartMs, *run.Phase(profile.PhasePull).EndMs); got != c.want {
			t.Errorf("%s: pull %s, want %s", c.name, got, c.want)
		}
	}
}

func TestRefused(t *testing.T) {
	var r Reader
	if err := r.Read([]byte("hello\n2026 /x {}\n")); err == nil || r.Skipped != 2 {
		t.Errorf("%v, %d skipped", err, r.Skipped)
	}
	if err := r.Read([]byte("2026-11-21 18:16:47 +0000 UTC default /content/create {}\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Record(); err != ErrNoContainers {
		t.Errorf("%v", err)
	}
}

func FuzzRead(f *testing.F) {
	b, err := os.ReadFile("testdata/events.txt")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"Timestamp":"2026-11-21T18:16:47Z","Namespace":"default","Topic":"/containers/create","Event":"{\"id\":\"a\"}"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var r Reader
		if r.Read(b) != nil {
			return
		}
		rec, err := r.Record()
		if err != nil {
			return
		}
		for _, s := range rec.Subjects {
			for _, run := range s.Runs {
				for _, p := range run.Phases {
					if (p.Ms == nil) != (p.Confidence == profile.Unknown) || p.Ms != nil && *p.Ms < 0 {
						t.Fatalf("phase %+v", p)
					}
				}
			}
		}
	})
}

// TestMany: as many containers as a node starts in months are read in no time.
func TestMany(t *testing.T) {
	const n = 50_000
	var r Reader
	at := time.Date(2026, 11, 20, 10, 0, 0, 0, time.UTC)
	for i := range n {
		id := fmt.Sprint("c", i%(n/2))
		for _, e := range []Event{{Topic: TopicSnapshotPrepare, Body: Body{Key: id, Snapshotter: "overlayfs"}}, {Topic: TopicContainer, Body: Body{ID: id, Image: "app"}},
			{Topic: TopicTaskStart, Body: Body{ContainerID: id, Pid: uint32(i + 1)}}} {
			at = at.Add(time.Second)
			e.At, e.Namespace = at, "k8s.io"
			if err := r.Add(e); err != nil {
				t.Fatal(err)
			}
		}
	}
	rec, err := r.Record()
	if err != nil {
		t.Fatal(err)
	}
	runs := rec.Subjects[0].Runs
	if len(rec.Subjects) != 1 || len(runs) != n || rec.Subjects[0].Mode != "containerd/overlayfs" {
		t.Fatalf("%d subjects, %d runs", len(rec.Subjects), len(runs))
	}
	for i := range runs { // each its own task, although two have a name
		if e := runs[i].Event(profile.EventStarted); e == nil || e.AtMs != 1000 || e.Detail != fmt.Sprintf("/tasks/start: pid %d", i+1) {
			t.Fatalf("run %d: %+v", i, e)
		}
	}
}
