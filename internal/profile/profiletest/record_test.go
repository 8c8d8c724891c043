package profiletest

import (
	"encoding/json"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/thaw-project/thaw/internal/profile"
)

// TestRecords: they are what real ones are: phases add up, files exist, and what holds
// of the starts of such images does.
func TestRecords(t *testing.T) {
	for seed := range uint64(5) {
		r := Record(seed)
		if diff := cmp.Diff(r, Record(seed)); diff != "" {
			t.Fatalf("not the same again: %s", diff)
		}
		for _, r := range []*profile.Record{r, Modes(seed, PythonML), Modes(seed, Nginx)} {
			for i := range r.Subjects {
				checkSubject(t, &r.Subjects[i])
			}
		}
		modes := Modes(seed, PythonML)
		if c := profile.CompareSubjects(&modes.Subjects[0], &modes.Subjects[1]); c.Measure(profile.PhasePull).Verdict != profile.Slower || c.Measure(profile.MeasureTotal).Verdict != profile.Slower {
			t.Errorf("eager is not slower: %+v", c.Measures[0])
		}
	}
	b, err := json.Marshal(Record(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes of JSON", len(b))
}

func checkSubject(t *testing.T, s *profile.Subject) {
	t.Helper()
	paths := map[string]bool{}
	for _, f := range s.Files {
		if paths[f.Path] || f.Layer >= len(s.Layers) || f.ReadBytes > f.Bytes {
			t.Fatalf("%s: %+v", s.Name, f)
		}
		paths[f.Path] = true
	}
	for i := range s.Runs {
		r := &s.Runs[i]
		sum := 0.
		for _, p := range r.Phases[:profile.StartPhases] {
			sum += *p.Ms
			if *p.LazyWaitMs > *p.Ms || *p.LazyWaitMs < 0 {
				t.Fatalf("%s, run %d: %s: waits %v of %v", s.Name, i, p.Name, *p.LazyWaitMs, *p.Ms)
			}
		}
		if math.Abs(sum-*r.TotalMs) > 0.01 || len(r.Phases) != len(profile.Phases) {
			t.Fatalf("%s, run %d: phases come to %v of %v", s.Name, i, sum, *r.TotalMs)
		}
		for _, read := range r.Reads {
			if !paths[read.Path] || r.Phase(read.Phase) == nil {
				t.Fatalf("%s, run %d: %+v", s.Name, i, read)
			}
		}
	}
	sum := s.Summarize()
	if sum.TotalMs.N != runs || sum.TotalMs.HalfWidth == nil || *sum.TotalMs.HalfWidth > 0.1 || len(sum.Routes) == 0 || sum.Routes[len(sum.Routes)-1].Ratio.P50 < 2 {
		t.Errorf("%s: %+v, %+v", s.Name, sum.TotalMs, sum.Routes)
	}
}
