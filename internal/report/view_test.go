package report

import (
	"bytes"
	"math"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/thaw-project/thaw/internal/profile"
	"github.com/thaw-project/thaw/internal/profile/profiletest"
)

// seed is the start that the specification takes its sentence and its score from.
func seed(total float64, pull float64) *profile.Record {
	run := profile.Run{TotalMs: pointer(total), Events: []profile.Event{{Name: profile.EventReady, AtMs: total}}, Phases: []profile.Phase{
		{Name: profile.PhasePull, StartMs: pointer(0.), EndMs: pointer(pull), Ms: pointer(pull), Confidence: profile.Measured},
		{Name: profile.PhaseBootstrap, StartMs: pointer(pull), EndMs: pointer(total), Ms: pointer(total - pull), Confidence: profile.Measured}}}
	return &profile.Record{Subjects: []profile.Subject{{Name: "web", Image: "web:1", Mode: "eager", ImageBytes: 100e6, Runs: []profile.Run{run},
		Layers: []profile.Layer{{Digest: "sha256:1", Bytes: 100e6, UnpackedBytes: 200e6}},
		Files:  []profile.File{{Path: "/a", Bytes: 20e6, CompressedBytes: 10e6, First: profile.PhaseBootstrap, ReadBytes: 10e6}, {Path: "/b", Bytes: 180e6, CompressedBytes: 90e6}}}}}
}

func viewOf(t *testing.T, records ...*profile.Record) *view {
	t.Helper()
	var all []profile.Record
	for _, r := range records {
		all = append(all, *r)
	}
	v, err := newView(all, Options{})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestHeadline(t *testing.T) {
	for _, c := range []struct {
		name string
		r    *profile.Record
		want string
	}{
		// Nine tenths of the bytes are not read, and so of the pull.
		{"eager", seed(5200, 2100), "1.89 s of 5.20 s can go. Biggest: app bootstrap 3.10 s (60 %)."},
		{"sparse", sparse(), "When it was ready is not known. Longest known phase: image pull, 12.0 s."},
		{"failed", failed(), "No start succeeded: 2 of 2 failed."},
	} {
		if got := viewOf(t, c.r).Subjects[0].Headline.Text; got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
	r := seed(900, 10)
	r.Subjects[0].Files = nil
	r.Subjects[0].Runs[0].Phases = r.Subjects[0].Runs[0].Phases[1:]
	if got := viewOf(t, r).Subjects[0].Headline.Text; !strings.HasPrefix(got, "Ready in 900 ms; nothing") {
		t.Errorf("nothing to save: %q", got)
	}
}

// TestScore: the specification's check, of the curve of the time to ready.
func TestScore(t *testing.T) {
	for seconds, want := range map[float64]float64{0.48: 97, 1: 90, 5.2: 50, 15.4: 20, 21.1: 14} {
		if got := math.Round(100 * curve(1000*seconds, 1000, 5200)); got != want {
			t.Errorf("%v s: %v points, want %v", seconds, got, want)
		}
	}
	s := viewOf(t, seed(1000, 10)).Subjects[0].Score
	if s.Value == nil || *s.Value != 90 || s.Known != .5 {
		t.Errorf("score %v of %v of the weights, want 90 of 0.5", s.Value, s.Known)
	}
	if s := viewOf(t, failed()).Subjects[0].Score; s.Value != nil {
		t.Errorf("a start that failed has %v points", *s.Value)
	}
	weights := 0.
	for _, m := range s.Measures {
		weights += m.Weight
	}
	if math.Abs(weights-1) > 1e-9 {
		t.Errorf("weights add up to %v", weights)
	}
}

// TestOpportunities: what is measured better counts, and nothing counts twice.
func TestOpportunities(t *testing.T) {
	v := viewOf(t, profiletest.Modes(2, profiletest.PythonML))
	eager := v.Subjects[1]
	find := func(s *subjectView, id string) *opportunity {
		for i := range s.Opportunities {
			if s.Opportunities[i].ID == id {
				return &s.Opportunities[i]
			}
		}
		return nil
	}
	pull, ok := eager.Median.ms(profile.PhasePull)
	if o := find(&eager, "pull"); !ok || o == nil || o.Confidence != profile.Measured || !o.Counts || o.SavedMs <= 0 || o.SavedMs > pull {
		t.Errorf("pull of the eager start (%v ms): %+v", pull, o)
	}
	if o := find(&v.Subjects[0], "pull"); o != nil {
		t.Errorf("pull of the lazy start: %+v", o)
	}
	for i := range v.Subjects {
		s := &v.Subjects[i]
		sum := 0.
		for j, o := range s.Opportunities {
			if o.Evidence == "" || o.Do == "" || o.Confidence == "" || o.SavedMs < 0 || j > 0 && o.SavedMs > s.Opportunities[j-1].SavedMs {
				t.Errorf("%s: %+v", s.Name, o)
			}
			if o.Counts {
				sum += o.SavedMs
			}
			if o.Counts && (o.ID == "first-request" || o.ID == "health" || o.ID == "unread") {
				t.Errorf("%s: %s is no part of the start", s.Name, o.ID)
			}
		}
		if s.Headline.SavedMs > s.Total.P50 || math.Abs(s.Headline.SavedMs-min(sum, s.Total.P50)) > .01 {
			t.Errorf("%s: %v ms of %v can go, by opportunities of %v", s.Name, s.Headline.SavedMs, s.Total.P50, sum)
		}
	}
	if o := find(&v.Subjects[0], "first-request"); o == nil || !strings.Contains(o.Evidence, "files") {
		t.Errorf("the route that imports lazily: %+v", o)
	}
}

// TestMap: each file's bytes are in the map once, however it is folded.
func TestMap(t *testing.T) {
	s := profiletest.Modes(2, profiletest.PythonML).Subjects[0]
	for i := range 20_000 { // more than have leaves of their own
		s.Files = append(s.Files, profile.File{Path: "/srv/" + strings.Repeat("d/", i%9) + "f" + strings.Repeat("x", i%40), Bytes: int64(1 + i%97), CompressedBytes: int64(1 + i%31), Layer: i % len(s.Layers)})
	}
	s.Files = append(s.Files, profile.File{Path: "/big", Bytes: 1e6, CompressedBytes: 4e5}, profile.File{Path: "/hard-link", Bytes: 1e6, CompressedBytes: 4e5, First: profile.PhaseBootstrap, ReadBytes: 1e6})
	m, layers := newFileMap(&s)
	var want, got, files int64
	for _, f := range withoutLinks(s.Files) {
		want += f.CompressedBytes
	}
	for _, l := range m.Leaves {
		got += l[5].(int64)
		files++
		if len(l) > 8 {
			files += int64(l[8].(int)) - 1
		}
	}
	if got != want || m.NeededBytes+m.LaterBytes+m.UnreadBytes != want || files != int64(len(withoutLinks(s.Files))) || len(m.Leaves) > maxLeaves+maxGroups {
		t.Errorf("%d bytes of %d, %d files, in %d leaves", got, want, files, len(m.Leaves))
	}
	if len(withoutLinks(s.Files)) != len(s.Files)-1 {
		t.Error("another name of a file is another file")
	}
	for i, l := range layers {
		if l.Used > l.Unpacked || l.Share < 0 || l.Share > 1 {
			t.Errorf("layer %d: %+v", i, l)
		}
	}
}

func TestWriteNothing(t *testing.T) {
	for _, records := range [][]profile.Record{nil, {{}}} {
		if err := Write(&bytes.Buffer{}, records, Options{}); err == nil {
			t.Error("a page of nothing")
		}
	}
}

// TestHostilePage: no word of a record is markup, in any part of the page.
func TestHostilePage(t *testing.T) {
	var b bytes.Buffer
	if err := Write(&b, []profile.Record{*hostile()}, Options{Made: time.Unix(1, 0)}); err != nil {
		t.Fatal(err)
	}
	page := b.String()
	for what, want := range map[string]int{"<script": 2, "</script>": 2, "<style": 1, "<img": 0, "<svg": 0, "onerror=\"": 0, "http://": 1, "https://": 0} {
		got := strings.Count(page, what)
		if what == "http://" { // the name of SVG
			got = len(regexp.MustCompile(`http://(www\.w3\.org/2000/svg)?`).FindAllString(page, -1))
		}
		if got != want {
			t.Errorf("%q is there %d times, want %d", what, got, want)
		}
	}
	for _, want := range []string{"default-src 'none'", "script-src 'sha256-", "style-src 'sha256-", "connect-src 'none'"} {
		if !strings.Contains(page, want) {
			t.Errorf("the policy lacks %s", want)
		}
	}
}
