package profile

import (
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// withU makes rows of n and m different samples with U of the first one.
func withU(n, m, u int) (a, b []float64) {
	for i := range m {
		b = append(b, float64(i+1))
	}
	for i := range n {
		above := min(u, m)
		u -= above
		a = append(a, float64(above)+0.5+float64(i)/1000)
	}
	return a, b
}

// TestMannWhitneyTable: the greatest U that is significant at 5 %, two-sided, as
// statistics books print it (such as Siegel 1956, table K).
func TestMannWhitneyTable(t *testing.T) {
	for _, c := range []struct{ n, m, critical int }{
		{4, 4, 0}, {5, 5, 2}, {5, 6, 3}, {5, 7, 5}, {5, 8, 6}, {5, 20, 20}, {6, 6, 5}, {7, 7, 8}, {8, 8, 13}, {8, 10, 17},
		{10, 10, 23}, {10, 15, 39}, {10, 20, 55}, {12, 12, 37}, {15, 15, 64}, {15, 20, 90}, {20, 20, 127},
	} {
		for _, swap := range []bool{false, true} {
			p := func(u int) float64 {
				a, b := withU(c.n, c.m, u)
				if swap {
					a, b = b, a
				}
				r := MannWhitney(a, b)
				want := float64(u)
				if swap {
					want = float64(c.n*c.m) - want
				}
				if r.U != want || !r.Exact {
					t.Fatalf("%d and %d: U is %v (exact %v), want %v", c.n, c.m, r.U, r.Exact, want)
				}
				return r.P
			}
			if at, above := p(c.critical), p(c.critical+1); at > 0.05 || above <= 0.05 {
				t.Errorf("%d and %d: p is %v at U %d, and %v at one more", c.n, c.m, at, c.critical, above)
			}
		}
	}
}

// TestMannWhitneyKnown: what other programs say.
func TestMannWhitneyKnown(t *testing.T) {
	for _, c := range []struct {
		a, b []float64
		u, p float64
	}{
		// scipy.stats.mannwhitneyu's example
		{[]float64{19, 22, 16, 29, 24}, []float64{20, 11, 17, 12}, 17, 1. / 9},
		{[]float64{1, 2, 3}, []float64{4, 5, 6}, 0, 0.1},
		{[]float64{1, 1, 1}, []float64{1, 1}, 3, 1},
		{nil, []float64{1}, 0, 1},
	} {
		if r := MannWhitney(c.a, c.b); r.U != c.u && len(c.a) > 0 || !near(r.P, c.p) {
			t.Errorf("%v and %v: %+v, want %v and %v", c.a, c.b, r, c.u, c.p)
		}
	}
}

// TestMannWhitneyBruteForce: of few samples with many ties, all ways to divide them.
func TestMannWhitneyBruteForce(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 3))
	for range 300 {
		n, m := 1+rnd.IntN(5), 1+rnd.IntN(5)
		all := make([]float64, n+m)
		for i := range all {
			all[i] = float64(rnd.IntN(6))
		}
		u := func(inA uint) float64 {
			sum := 0.
			for i := range all {
				for j := range all {
					if inA>>i&1 == 1 && inA>>j&1 == 0 {
						switch {
						case all[i] > all[j]:
							sum++
						case all[i] == all[j]:
							sum += 0.5
						}
					}
				}
			}
			return sum
		}
		mean := float64(n*m) / 2
		first := uint(1)<<n - 1
		off := math.Abs(u(first) - mean)
		ways, far := 0, 0
		for s := range uint(1) << (n + m) {
			ones := 0
			for b := s; b > 0; b &= b - 1 {
				ones++
			}
			if ones != n {
				continue
			}
			ways++
			if math.Abs(u(s)-mean) >= off {
				far++
			}
		}
		r := MannWhitney(all[:n], all[n:])
		if want := float64(far) / float64(ways); r.U != u(first) || !near(r.P, want) {
			t.Fatalf("%v and %v: %+v, want %v and %v", all[:n], all[n:], r, u(first), want)
		}
	}
}

// TestMannWhitneyNormal: where the approximation begins it is near the exact one.
func TestMannWhitneyNormal(t *testing.T) {
	rnd := rand.New(rand.NewPCG(4, 4))
	for range 50 {
		a, b := make([]float64, 31), make([]float64, 30)
		for i := range a {
			a[i] = math.Round(rnd.NormFloat64()*10 + 4)
		}
		for i := range b {
			b[i] = math.Round(rnd.NormFloat64() * 10)
		}
		r := MannWhitney(a, b)
		sum, _, ranks := doubleRanks(a, b)
		if want := exactP(len(a), sum, ranks); r.Exact || math.Abs(r.P-want) > 0.003+0.05*want {
			t.Fatalf("%+v, exactly %v", r, want)
		}
	}
}

func normal(rnd *rand.Rand, n int, mean, sd float64) []float64 {
	out := make([]float64, n)
	for i := range out {
		out[i] = mean + rnd.NormFloat64()*sd
	}
	return out
}

func TestCompareVerdict(t *testing.T) {
	rnd := rand.New(rand.NewPCG(5, 5))
	base := normal(rnd, 10, 500, 10)
	for _, c := range []struct {
		name    string
		a, b    []float64
		verdict string
	}{
		{"a tenth less", base, normal(rnd, 10, 450, 10), Faster},
		{"a tenth more", base, normal(rnd, 10, 550, 10), Slower},
		{"the same", base, base, NoEvidence},
		{"a hundredth of their spread", base, normal(rnd, 10, 500.1, 10), NoEvidence},
		{"four runs, far apart", base, []float64{1, 2, 3, 4}, NoEvidence},
		{"one run", base, []float64{1}, NoEvidence},
		{"no run", base, nil, NoEvidence},
		{"nothing at all", nil, nil, NoEvidence},
		{"five runs that do not overlap", []float64{1, 2, 3, 4, 5}, []float64{11, 12, 13, 14, 15}, Slower},
		{"from nothing", []float64{0, 0, 0, 0, 0, 0}, []float64{5, 6, 5, 6, 5, 6}, Slower},
		{"below nothing", []float64{-1, -2, -1, -2, -1, -2}, []float64{5, 6, 5, 6, 5, 6}, Slower},
	} {
		got := Compare(c.a, c.b)
		if got.Verdict != c.verdict || (got.Verdict == NoEvidence) != (got.Reason != "") {
			t.Errorf("%s: %s (%s), %+v", c.name, got.Verdict, got.Reason, got)
		}
		if diff := cmp.Diff(got, Compare(c.a, c.b)); diff != "" {
			t.Errorf("%s: again it is another: %s", c.name, diff)
		}
		if back := Compare(c.b, c.a); back.Verdict != map[string]string{Faster: Slower, Slower: Faster, NoEvidence: NoEvidence}[c.verdict] {
			t.Errorf("%s: the other way round: %s", c.name, back.Verdict)
		}
		if (c.a == nil || Percentile(c.a, 0.5) <= 0) && (got.Ratio != nil || got.RatioCI != nil) {
			t.Errorf("%s: ratio %v", c.name, got.Ratio)
		}
	}
	got := Compare(base, normal(rnd, 10, 450, 10))
	if got.Delta > -30 || !got.DeltaCI.Has(got.Delta) || got.DeltaCI.High >= 0 || !got.RatioCI.Has(*got.Ratio) || !near(*got.Ratio, got.B.P50/got.A.P50) {
		t.Errorf("%+v", got)
	}
}

// TestCompareBoth: either of the two tests is not enough.
func TestCompareBoth(t *testing.T) {
	for want, c := range map[string][2][]float64{
		"the medians may be equal": {{14, 18, 12, 20, 12, 16}, {25, 22, 15, 23, 25, 17, 24}},
		"may be chance": {{104, 103, 121, 148, 101, 131, 128, 127, 101, 101, 100, 101, 102, 100, 101, 102, 101, 102, 101, 101},
			{113, 113, 115, 73, 116, 66, 105, 95, 63, 106, 105, 105, 106, 104, 104, 106, 105, 105, 105, 104}},
	} {
		got := Compare(c[0], c[1])
		if significant := *got.P < alpha; got.Verdict != NoEvidence || !strings.Contains(got.Reason, want) || significant == !got.DeltaCI.Has(0) {
			t.Errorf("%s: %+v, p = %v, %+v", want, got, *got.P, *got.DeltaCI)
		}
	}
}

// TestCompareFalseAlarms: of rows with nothing between them at most 5 % are said to
// differ, and of those with much nearly all.
func TestCompareFalseAlarms(t *testing.T) {
	rnd := rand.New(rand.NewPCG(6, 6))
	const pairs = 300
	alarms, missed := 0, 0
	for range pairs {
		a := normal(rnd, 10, 500, 20)
		if Compare(a, normal(rnd, 10, 500, 20)).Verdict != NoEvidence {
			alarms++
		}
		if Compare(a, normal(rnd, 10, 440, 20)).Verdict != Faster {
			missed++
		}
	}
	if alarms > pairs/15 || missed > pairs/50 {
		t.Errorf("%d false alarms and %d missed of %d", alarms, missed, pairs)
	}
}

func TestSeries(t *testing.T) {
	ms := func(f float64) *float64 { return &f }
	s := Subject{Name: "a", ImageBytes: 5, Runs: []Run{
		{TotalMs: ms(10), Phases: []Phase{{Name: PhaseQueue, Ms: ms(1), LazyWaitMs: ms(0.5), Confidence: Measured, Source: SignalProbe},
			{Name: PhasePull, Ms: ms(3), LazyWaitMs: ms(0.25), Confidence: Estimated},
			{Name: PhaseFirstRequest, Ms: ms(4), Confidence: Measured, Routes: []Route{{Route: "GET /", FirstMs: 6, SteadyMs: 2, PenaltyMs: 4}, {Route: "GET /b", FirstMs: 9, SteadyMs: 1, PenaltyMs: 8}}}},
			Coldness: &Coldness{Proven: true}, Cost: &Cost{NetworkBytes: 100}},
		{Error: "it broke", TotalMs: ms(99)},
		{Phases: []Phase{{Name: PhaseQueue, Confidence: Unknown, Reason: "no clock"}}},
	}}
	for name, want := range map[string]Series{
		MeasureTotal:        {Name: MeasureTotal, Unit: UnitMs, Values: []float64{10}, Runs: []int{0}, Unknown: []Reason{{reasonNotReady, 1}}},
		PhaseQueue:          {Name: PhaseQueue, Unit: UnitMs, Values: []float64{1}, Runs: []int{0}, Unknown: []Reason{{"no clock", 1}}},
		PhaseHydration:      {Name: PhaseHydration, Unit: UnitMs, Unknown: []Reason{{reasonNoWord, 2}}},
		MeasureLazyWait:     {Name: MeasureLazyWait, Unit: UnitMs, Values: []float64{0.75}, Runs: []int{0}, Unknown: []Reason{{reasonNoWord, 1}}},
		MeasureFirstRatio:   {Name: MeasureFirstRatio, Unit: UnitTimes, Values: []float64{9}, Runs: []int{0}, Unknown: []Reason{{reasonNoWord, 1}}},
		MeasureNetworkBytes: {Name: MeasureNetworkBytes, Unit: UnitBytes, Values: []float64{100}, Runs: []int{0}, Unknown: []Reason{{reasonNoCost, 1}}},
		MeasureNeededBytes:  {Name: MeasureNeededBytes, Unit: UnitBytes, Unknown: []Reason{{reasonNoCost, 2}}},
		MeasureImageBytes:   {Name: MeasureImageBytes, Unit: UnitBytes, Values: []float64{5, 5}, Runs: []int{0, 2}},
	} {
		got, ok := s.Series(name)
		if diff := cmp.Diff(want, got); !ok || diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	for _, name := range Measures() {
		if _, ok := s.Series(name); !ok {
			t.Errorf("%s is not known", name)
		}
	}
	if _, ok := s.Series("luck"); ok {
		t.Error("luck is a measure")
	}
	sum := s.Summarize()
	if sum.Runs != 3 || sum.Failed != 1 || sum.NotCold != 1 || sum.TotalMs.N != 1 || len(sum.Phases) != len(Phases) || len(sum.Routes) != 2 || sum.Routes[1].Ratio.P50 != 9 {
		t.Errorf("%+v", sum)
	}
	if p := sum.Phase(PhasePull); p.Confidence != Estimated || *p.Share != 0.75 {
		t.Errorf("%+v", p)
	}
	if p := sum.Phase(PhaseHydration); p.Confidence != Unknown || p.Ms.N != 0 || p.Share != nil {
		t.Errorf("%+v", p)
	}
}

func TestCompareSubjects(t *testing.T) {
	subject := func(name string, totals ...float64) *Subject {
		s := Subject{Name: name}
		for _, ms := range totals {
			s.Runs = append(s.Runs, Run{TotalMs: &ms})
		}
		return &s
	}
	got := CompareSubjects(subject("a", 5, 6, 5, 6, 5), subject("b", 1, 2, 1, 2, 1))
	if len(got.Measures) != 1 || got.Measure(MeasureTotal).Verdict != Faster || got.Measure(PhaseQueue) != nil {
		t.Errorf("%+v", got)
	}
	if !slices.Equal(Measures()[1:1+len(Phases)], Phases) {
		t.Error("phases are not measured in their order")
	}
}
