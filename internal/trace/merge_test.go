package trace

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
)

// run is a trace of one run; accesses are a millisecond apart.
func run(created int64, accesses ...Access) *Trace {
	for i := range accesses {
		accesses[i].At = time.Duration(i) * time.Millisecond
		if accesses[i].Phase == "" {
			accesses[i].Phase = PhaseReady
		}
	}
	return &Trace{Version: Version, Image: imageA, Runs: 1, Created: time.Unix(created, 0).UTC(), Accesses: accesses}
}

func at(offset, length int64) Access { return Access{Layer: layerA, Offset: offset, Length: length} }

// ranges leaves out times and phases.
func ranges(t *Trace) [][2]int64 {
	var r [][2]int64
	for _, a := range t.Accesses {
		r = append(r, [2]int64{a.Offset, a.Length})
	}
	return r
}

func TestMerge(t *testing.T) {
	for name, test := range map[string]struct {
		runs []*Trace
		opts MergeOptions
		want [][2]int64
	}{
		"a single run keeps its order and loses what repeats": {
			[]*Trace{run(1, at(5000, 100), at(0, 100), at(50, 100), at(5000, 10), at(5050, 100))}, MergeOptions{},
			[][2]int64{{5000, 100}, {0, 150}, {5100, 50}},
		},
		"neighbours that follow are joined": {
			[]*Trace{run(1, at(0, 512), at(512, 512), at(9000, 1), at(1024, 512))}, MergeOptions{},
			[][2]int64{{0, 1024}, {9000, 1}, {1024, 512}},
		},
		"the order is that of the median": {
			[]*Trace{
				run(1, at(0, 10), at(100, 10), at(200, 10)),
				run(2, at(100, 10), at(0, 10), at(200, 10)),
				run(3, at(100, 10), at(200, 10), at(0, 10)),
			}, MergeOptions{Decay: 1},
			[][2]int64{{100, 10}, {0, 10}, {200, 10}},
		},
		"what few have read is dropped": {
			[]*Trace{
				run(1, at(0, 10), at(100, 10)),
				run(2, at(0, 10), at(200, 10)),
				run(3, at(0, 10), at(300, 10)),
			}, MergeOptions{Decay: 1},
			[][2]int64{{0, 10}},
		},
		"half is enough": {
			[]*Trace{run(1, at(0, 10), at(100, 10)), run(2, at(0, 10))}, MergeOptions{Decay: 1},
			[][2]int64{{0, 10}, {100, 10}},
		},
		"a part of an access is dropped": {
			[]*Trace{run(1, at(0, 100)), run(2, at(0, 30)), run(3, at(10, 20))}, MergeOptions{Decay: 1},
			[][2]int64{{0, 30}},
		},
		"old runs decay": {
			// Three old runs against two new ones.
			[]*Trace{run(1, at(0, 10)), run(2, at(0, 10)), run(3, at(0, 10)), run(4, at(500, 10)), run(5, at(500, 10))}, MergeOptions{Decay: 0.5},
			[][2]int64{{500, 10}},
		},
		"runs that read ahead differently are one": {
			[]*Trace{
				run(1, at(0, 4096), at(4096, 4096), at(8192, 8192)),
				run(2, at(0, 16384)),
			}, MergeOptions{Decay: 1},
			[][2]int64{{0, 16384}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := Merge(test.runs, test.opts)
			if err := got.check(); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, ranges(got)); diff != "" {
				t.Error(diff)
			}
			if got.Runs != len(test.runs) {
				t.Errorf("%d runs, want %d", got.Runs, len(test.runs))
			}
		})
	}
	if Merge(nil, MergeOptions{}) != nil {
		t.Error("a trace of nothing")
	}
}

func TestMergeHead(t *testing.T) {
	old, recent := run(1, at(0, 10)), run(9, at(0, 10))
	old.Reference, old.Command, old.Ready = "old", []string{"a"}, 4*time.Second
	recent.Reference, recent.Command, recent.Ready = "new", []string{"b"}, 0
	got := Merge([]*Trace{recent, old}, MergeOptions{})
	if got.Reference != "new" || got.Command[0] != "b" || !got.Created.Equal(recent.Created) {
		t.Errorf("head of the merged one is not the newest's: %+v", got)
	}
	if got.Ready != 4*time.Second {
		t.Errorf("ready after %v: the run that was never told counts", got.Ready)
	}
}

// A merged trace weighs as much as its runs.
func TestMergeMerged(t *testing.T) {
	four := Merge([]*Trace{run(1, at(0, 10)), run(2, at(0, 10)), run(3, at(0, 10)), run(4, at(0, 10))}, MergeOptions{Decay: 1})
	got := Merge([]*Trace{four, run(5, at(700, 10))}, MergeOptions{Decay: 1})
	if got.Runs != 5 {
		t.Errorf("%d runs, want 5", got.Runs)
	}
	if diff := cmp.Diff([][2]int64{{0, 10}}, ranges(got)); diff != "" {
		t.Error(diff)
	}
}

// Whatever is merged: every byte at most once, exactly those that enough runs
// read, and the runs are not changed.
func TestMergeRandom(t *testing.T) {
	type byteOf struct {
		layer digest.Digest
		at    int64
	}
	for seed := range uint64(100) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		var runs []*Trace
		count := map[byteOf]int{}
		for range 1 + rnd.IntN(5) {
			tr := random(rnd, rnd.IntN(30))
			runs = append(runs, tr)
			mine := map[byteOf]bool{}
			for _, a := range tr.Accesses {
				for i := range a.Length {
					mine[byteOf{a.Layer, a.Offset + i}] = true
				}
			}
			for b := range mine {
				count[b]++
			}
		}
		before := encoded(t, runs[0])
		got := Merge(runs, MergeOptions{Decay: 1})
		if err := got.check(); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		have := map[byteOf]bool{}
		for _, a := range got.Accesses {
			for i := range a.Length {
				b := byteOf{a.Layer, a.Offset + i}
				if have[b] {
					t.Fatalf("seed %d: byte %d is there twice", seed, b.at)
				}
				have[b] = true
				if 2*count[b] < len(runs) {
					t.Fatalf("seed %d: byte %d was read by %d of %d", seed, b.at, count[b], len(runs))
				}
			}
		}
		for b, n := range count {
			if 2*n >= len(runs) && !have[b] {
				t.Fatalf("seed %d: byte %d, read by %d of %d, is missing", seed, b.at, n, len(runs))
			}
		}
		if diff := cmp.Diff(before, encoded(t, runs[0])); diff != "" {
			t.Fatalf("seed %d: a run was changed", seed)
		}
	}
}

// A hostile trace must not take time beyond its size: each access here spans
// all others.
func TestMergeOverlaps(t *testing.T) {
	tr := run(1)
	for i := range int64(100_000) {
		tr.Accesses = append(tr.Accesses, Access{layerA, 100_000 - i, 2*i + 1, 0, PhaseReady})
	}
	if got := Merge([]*Trace{tr, tr}, MergeOptions{}); got.Bytes() != 199_999 {
		t.Errorf("%d bytes, want 199999", got.Bytes())
	}
}

func BenchmarkMerge(b *testing.B) {
	var runs []*Trace
	for seed := range uint64(8) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		tr := run(int64(seed))
		for i := range 5000 {
			tr.Accesses = append(tr.Accesses, Access{layerA, rnd.Int64N(1 << 28), 128 << 10, time.Duration(i) * time.Millisecond, PhaseReady})
		}
		runs = append(runs, tr)
	}
	b.ReportAllocs()
	for b.Loop() {
		Merge(runs, MergeOptions{})
	}
}
