package profile

import (
	"math"
	"math/rand/v2"
	"testing"
)

// TestSignedRank: against the table of Hollander and Wolfe (A.4), and the approximation
// against what is exact.
func TestSignedRank(t *testing.T) {
	for _, tt := range []struct {
		n     int
		share float64
		want  int // -1: none
	}{{4, 0.05, -1}, {5, 0.05, 0}, {5, 0.025, -1}, {6, 0.025, 0}, {6, 0.05, 2}, {10, 0.025, 8}, {10, 0.05, 10}, {15, 0.025, 25}, {20, 0.025, 52}, {30, 0.025, 137}, {30, 0.05, 151}, {50, 0.025, 434}} {
		got, ok := signedRank(tt.n, tt.share)
		if ok != (tt.want >= 0) || ok && got != tt.want {
			t.Errorf("%d signs, %v: %d, %v, want %d", tt.n, tt.share, got, ok, tt.want)
		}
	}
	last, _ := signedRank(exactRuns, 0.025)
	next, _ := signedRank(exactRuns+1, 0.025)
	if step := next - last; step < 20 || step > 30 { // about half of 61, less what the spread grows by
		t.Errorf("from %d to %d", last, next)
	}
}

// TestComparePairs: the ratio is found, with confidence, whatever changes from pair to
// pair.
func TestComparePairs(t *testing.T) {
	if _, ok := ComparePairs(nil, nil); ok {
		t.Error("of none")
	}
	p, ok := ComparePairs([]float64{100, 200, 400}, []float64{110, 220, 440})
	if !ok || p.N != 3 || math.Abs(p.Ratio-1.1) > 1e-9 || p.CI != nil || p.Most != nil || math.Abs(p.Middle.Low-1.1) > 1e-9 {
		t.Errorf("%+v", p)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	has, most, rounds := 0, 0, 400
	for range rounds {
		var a, b []float64
		for range 30 {
			load := 1 + rnd.ExpFloat64() // of the machine, for both
			a = append(a, 700*load*math.Exp(0.05*rnd.NormFloat64()))
			b = append(b, 714*load*math.Exp(0.05*rnd.NormFloat64()))
		}
		p, _ := ComparePairs(a, b)
		if p.CI.Has(1.02) {
			has++
		}
		if *p.Most >= 1.02 {
			most++
		}
		if p.CI.High-p.CI.Low > 0.12 || p.Middle.Low >= p.Middle.High {
			t.Fatalf("%+v", p)
		}
	}
	for name, n := range map[string]int{"the interval has": has, "the bound has": most} {
		if share := float64(n) / float64(rounds); share < 0.92 || share > 0.985 {
			t.Errorf("%s the ratio in %.3f of all cases, want 0.95", name, share)
		}
	}
}
