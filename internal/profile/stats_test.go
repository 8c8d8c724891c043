package profile

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func near(a, b float64) bool { return math.Abs(a-b) <= 1e-9*max(1, math.Abs(a), math.Abs(b)) }

// TestPercentile: numbers of numpy.percentile, and of R's quantile(type=7).
func TestPercentile(t *testing.T) {
	oneToTen := []float64{10, 9, 8, 7, 6, 5, 4, 3, 2, 1}
	for _, c := range []struct {
		samples []float64
		q, want float64
	}{
		{[]float64{15, 20, 35, 40, 50}, 0.40, 29}, // https://en.wikipedia.org/wiki/Percentile, C = 1
		{[]float64{1, 2, 3, 4}, 0.75, 3.25},
		{oneToTen, 0.5, 5.5}, {oneToTen, 0.9, 9.1}, {oneToTen, 0.95, 9.55}, {oneToTen, 0.99, 9.91}, {oneToTen, 0, 1}, {oneToTen, 1, 10},
		{[]float64{7}, 0.99, 7}, {[]float64{1, 3}, 0.5, 2}, {[]float64{-3, -1}, 0.5, -2},
	} {
		if got := Percentile(c.samples, c.q); !near(got, c.want) {
			t.Errorf("%v, %v: %v, want %v", c.samples, c.q, got, c.want)
		}
	}
	if got := Percentile(nil, 0.5); !math.IsNaN(got) {
		t.Errorf("the median of nothing is %v", got)
	}
}

func TestSummarize(t *testing.T) {
	s := Summarize([]float64{2, 4, 4, 4, 5, 5, 7, 9})
	if s.N != 8 || s.Min != 2 || s.Max != 9 || s.Avg != 5 || s.P50 != 4.5 || !near(s.SD, math.Sqrt(32./7)) {
		t.Errorf("%+v", s)
	}
	if s.MedianCI == nil || !s.MedianCI.Has(4.5) || s.HalfWidth == nil || !near(*s.HalfWidth, (s.MedianCI.High-s.MedianCI.Low)/2/4.5) {
		t.Errorf("interval of the median: %+v, half of it %v", s.MedianCI, s.HalfWidth)
	}
	for _, samples := range [][]float64{nil, {3}, {3, 3, 3, 4}} {
		if s := Summarize(samples); s.N != len(samples) || s.MedianCI != nil || s.HalfWidth != nil || s.Outliers != nil {
			t.Errorf("%v: %+v", samples, s)
		}
	}
	if s := Summarize([]float64{0, 0, 0, 0, 0}); s.MedianCI == nil || s.HalfWidth != nil || s.Outliers != nil {
		t.Errorf("zeros: %+v", s)
	}
}

// TestSummarizeProperties of random samples: an order that holds always, no word that
// depends on the order of samples, and the same of scaled ones.
func TestSummarizeProperties(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	for range 200 {
		samples := make([]float64, 1+rnd.IntN(40))
		for i := range samples {
			samples[i] = math.Exp(rnd.NormFloat64()) * 100
			if rnd.IntN(4) == 0 {
				samples[i] = math.Round(samples[i]) // ties
			}
		}
		s := Summarize(samples)
		if !slices.IsSorted([]float64{s.Min, s.P50, s.P90, s.P95, s.P99, s.Max}) || s.Avg < s.Min || s.Avg > s.Max || s.SD < 0 {
			t.Fatalf("%v: %+v", samples, s)
		}
		if s.MedianCI != nil && !(s.Min <= s.MedianCI.Low && s.MedianCI.Low <= s.MedianCI.High && s.MedianCI.High <= s.Max) {
			t.Fatalf("%v: %+v", samples, s.MedianCI)
		}
		shuffled := slices.Clone(samples)
		rnd.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		again := Summarize(shuffled)
		s.Outliers, again.Outliers = nil, nil
		if diff := cmp.Diff(s, again); diff != "" {
			t.Fatalf("in another order: %s", diff)
		}
	}
}

// TestBootstrapExact compares the interval with what it comes to with endless resamples:
// the median of an odd number n of draws is at most sample k if more than half of them
// are, which is binomial.
func TestBootstrapExact(t *testing.T) {
	for _, n := range []int{5, 7, 15, 25, 51} {
		samples := make([]float64, n)
		for i := range samples {
			samples[i] = float64(i + 1)
		}
		below := func(k int) float64 { // share of resamples whose median is at most k
			sum := 0.
			for j := (n + 1) / 2; j <= n; j++ {
				lg := func(x int) float64 { v, _ := math.Lgamma(float64(x + 1)); return v }
				p := float64(k) / float64(n)
				switch {
				case p == 1:
					return 1
				case p > 0:
					sum += math.Exp(lg(n) - lg(j) - lg(n-j) + float64(j)*math.Log(p) + float64(n-j)*math.Log(1-p))
				}
			}
			return sum
		}
		ci := *Summarize(samples).MedianCI
		// Its ends are those of a share within 0.7 % of what is left at each of them.
		tail := math.Erfc(Student(n-1)*math.Sqrt(float64(n)/float64(n-1))/math.Sqrt2) / 2
		for _, end := range []struct{ at, share float64 }{{ci.Low, tail}, {ci.High, 1 - tail}} {
			k := int(math.Ceil(end.at))
			if from, to := below(k-1), below(k); from > end.share+0.007 || to < end.share-0.007 {
				t.Errorf("%d samples: %+v: the median is at most %d in %.3f to %.3f of resamples", n, ci, k, from, to)
			}
		}
	}
}

// TestBootstrapCoverage: about 95 % of intervals have the true median.
func TestBootstrapCoverage(t *testing.T) {
	rnd := rand.New(rand.NewPCG(2, 2))
	const sets = 400
	within := 0
	for range sets {
		samples := make([]float64, 15)
		for i := range samples {
			samples[i] = math.Exp(rnd.NormFloat64())
		}
		if Summarize(samples).MedianCI.Has(1) {
			within++
		}
	}
	if share := float64(within) / sets; share < 0.91 || share > 0.995 {
		t.Errorf("%v of the intervals have the median", share)
	}
}

// TestStudent: printed tables.
func TestStudent(t *testing.T) {
	for degrees, want := range map[int]float64{4: 2.776, 5: 2.571, 9: 2.262, 14: 2.145, 30: 2.042, 120: 1.980} {
		if got := Student(degrees); math.Abs(got-want) > 0.003*want {
			t.Errorf("%d degrees of freedom: %v, want %v", degrees, got, want)
		}
	}
}

func TestPercentileCI(t *testing.T) {
	for q, want := range map[float64]int{0: 5, 0.5: 5, 0.9: 5, 0.95: 10, 0.99: 50, 1: 5, 0.05: 10} {
		if got := RunsFor(q); got != want {
			t.Errorf("percentile %v takes %d runs, want %d", q, got, want)
		}
	}
	samples := []float64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}
	if _, ok := PercentileCI(samples[:9], 0.95); ok {
		t.Error("9 runs are enough for p95")
	}
	ci, ok := PercentileCI(samples, 0.95)
	if !ok || !ci.Has(9.55) || ci.High > 10 || ci.Low < 5 || ci.Low >= 9.55 {
		t.Errorf("%+v, %v", ci, ok)
	}
}

func TestOutliers(t *testing.T) {
	for _, c := range []struct {
		samples []float64
		want    []int
	}{
		{[]float64{100, 101, 99, 250, 100.5, 98}, []int{3}},
		{[]float64{100, 101, 99, 102, 100.5, 98}, nil},
		{[]float64{5, 5, 5, 5, 5, 5, 5, 5, 90}, []int{8}}, // no median deviation
		{[]float64{5, 5, 5, 5, 5}, nil},
		{[]float64{1, 1, 1, 1000}, nil}, // too few
		{[]float64{-400, 100, 101, 99, 102, 700}, []int{0, 5}},
	} {
		if diff := cmp.Diff(c.want, Outliers(c.samples)); diff != "" {
			t.Errorf("%v: %s", c.samples, diff)
		}
	}
}
