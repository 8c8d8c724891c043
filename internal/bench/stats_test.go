package bench

import (
	"math"
	"slices"
	"testing"
)

func near(a, b float64) bool { return math.Abs(a-b) < 1e-9 }

func TestSummary(t *testing.T) {
	for _, c := range []struct {
		in                            Samples
		min, avg, max, median, spread float64
	}{
		{Samples{7}, 7, 7, 7, 7, 0},
		{Samples{3, 1}, 1, 2, 3, 2, 0.5},
		{Samples{5, 1, 3}, 1, 3, 5, 3, 2.0 / 3},
		{Samples{100, 102, 98, 101, 99}, 98, 100, 102, 100, 0.02},
		{Samples{100, 102, 98, 101, 900}, 98, 260.2, 900, 101, 2.0 / 101}, // one disturbed run
		{Samples{0, 0, 0}, 0, 0, 0, 0, 0},
	} {
		before := slices.Clone(c.in)
		s := summarize(c.in)
		if !near(s.Min, c.min) || !near(s.Avg, c.avg) || !near(s.Max, c.max) || !near(s.Median, c.median) || !near(c.in.Spread(), c.spread) {
			t.Errorf("%v: %+v, spread %v; want %+v", c.in, s, c.in.Spread(), c)
		}
		if !slices.Equal(c.in, before) {
			t.Errorf("%v was changed to %v: the order of runs is lost", before, c.in)
		}
	}
	if summarize(nil) != nil || Samples(nil).Median() != 0 {
		t.Error("no samples have a summary")
	}
}

func TestNoise(t *testing.T) {
	ready := map[string]Samples{"calm": {100, 102, 98, 101, 900}, "busy": {100, 150, 80, 200, 120}}
	of := func(name string) Samples { return ready[name] }
	for _, c := range []struct {
		limit   float64
		runs    int
		verdict string
		modes   []string
	}{
		{0.2, 5, Noisy, []string{"busy"}},
		{0.5, 5, Quiet, nil},
		{0.001, 5, Noisy, []string{"calm", "busy"}},
		{0.001, 2, TooFew, nil},
	} {
		n := judge(c.limit, c.runs, []string{"calm", "busy"}, of)
		if n.Verdict != c.verdict || !slices.Equal(n.Modes, c.modes) || n.Limit != c.limit {
			t.Errorf("limit %v of %d runs: %+v, want %s %v", c.limit, c.runs, n, c.verdict, c.modes)
		}
	}
}
