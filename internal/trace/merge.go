package trace

import (
	"cmp"
	"math"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
)

// MergeOptions say what of several runs is kept. The zero value takes what is
// usual.
type MergeOptions struct {
	// MinShare is the least share of the runs, by weight, that must have read a
	// byte for it to be kept. 0 for 0.5.
	MinShare float64
	// Decay is the weight of a run against that of the next newer one. 0 for
	// 0.8: of eight runs the last three weigh more than the rest.
	Decay float64
}

// Merge makes one trace of several of the same image and command, which may be
// merged ones themselves. Every byte stands in the result at most once, at the
// median place of its first use; where accesses of several runs only overlap,
// they are cut at their ends. Image, Reference, Command and Created are those
// of the newest. Merging a single trace removes its repetitions. Merge returns
// nil for no traces, and changes none of them.
func Merge(traces []*Trace, opts MergeOptions) *Trace {
	if len(traces) == 0 {
		return nil
	}
	if opts.MinShare <= 0 {
		opts.MinShare = 0.5
	}
	if opts.Decay <= 0 || opts.Decay > 1 {
		opts.Decay = 0.8
	}
	newestFirst := slices.Clone(traces)
	slices.SortStableFunc(newestFirst, func(a, b *Trace) int { return b.Created.Compare(a.Created) })
	newest := newestFirst[0]
	merged := &Trace{
		Version: Version, Image: newest.Image, Reference: newest.Reference,
		Command: slices.Clone(newest.Command), Created: newest.Created,
	}
	weights := make([]float64, len(newestFirst))
	for i, t := range newestFirst {
		for range min(t.Runs, 64) { // an older one adds nothing that counts
			weights[i] += math.Pow(opts.Decay, float64(merged.Runs))
			merged.Runs++
		}
		merged.Runs += max(0, t.Runs-64)
	}
	merged.Runs = min(merged.Runs, maxRuns)
	var total float64
	for _, w := range weights {
		total += w
	}

	atoms := cut(newestFirst)
	// A little less than the share: weights are sums of fractions.
	kept := atoms.keep(weights, opts.MinShare*total*(1-1e-9))
	atoms.place(newestFirst, kept)
	merged.Accesses = atoms.order(newestFirst, weights, kept)
	merged.Ready = medianReady(newestFirst, weights)
	return merged
}

// atom is a part of a layer that each run has read as a whole or not at all,
// or, where a run read it in parts, whose first use is that of its first one.
type atom struct {
	layer       digest.Digest
	offset, end int64
	uses        []use // at most one a run
}

// use is the first use of an atom in a run.
type use struct {
	run    int
	access int     // which of the run's accesses
	place  float64 // share of what is kept that the run had read before
}

type atoms []atom

// cut cuts what any run has read at the ends of all accesses, and finds the
// first use of each part in each run.
func cut(traces []*Trace) atoms {
	type layerCut struct {
		first int     // its first atom
		edges []int64 // the atoms lie between neighbours
	}
	cuts := map[digest.Digest]*layerCut{}
	var layers []digest.Digest
	for _, t := range traces {
		for _, a := range t.Accesses {
			c := cuts[a.Layer]
			if c == nil {
				c = &layerCut{}
				cuts[a.Layer] = c
				layers = append(layers, a.Layer)
			}
			c.edges = append(c.edges, a.Offset, a.Offset+a.Length)
		}
	}
	slices.Sort(layers)
	var all atoms
	for _, l := range layers {
		c := cuts[l]
		slices.Sort(c.edges)
		c.edges = slices.Compact(c.edges)
		c.first = len(all)
		for i := range len(c.edges) - 1 {
			all = append(all, atom{layer: l, offset: c.edges[i], end: c.edges[i+1]})
		}
	}
	// next leads from an atom to the first one from there on that the run has
	// not used: however accesses overlap, each atom is looked at once.
	next := make([]int, len(all)+1)
	find := func(i int) int {
		root := i
		for next[root] != root {
			root = next[root]
		}
		for next[i] != root {
			i, next[i] = next[i], root
		}
		return root
	}
	for run, t := range traces {
		for i := range next {
			next[i] = i
		}
		for access, a := range t.Accesses {
			c := cuts[a.Layer]
			begin, _ := slices.BinarySearch(c.edges, a.Offset)
			end, _ := slices.BinarySearch(c.edges, a.Offset+a.Length)
			for i := find(c.first + begin); i < c.first+end; i = find(i) {
				all[i].uses = append(all[i].uses, use{run: run, access: access})
				next[i] = i + 1
			}
		}
	}
	return all
}

// keep says which atoms have at least the weight.
func (all atoms) keep(weights []float64, least float64) []bool {
	kept := make([]bool, len(all))
	for i, a := range all {
		var w float64
		for _, u := range a.uses {
			w += weights[u.run]
		}
		kept[i] = len(a.uses) > 0 && w >= least // gaps between accesses have no use
	}
	return kept
}

// place says where in its run each use is, by bytes: times of a run over a slow
// network say nothing about one over a fast one, and numbers of accesses
// depend on how each was read ahead.
func (all atoms) place(traces []*Trace, kept []bool) {
	bytes := make([][]int64, len(traces)) // of an access, first uses that are kept
	for run, t := range traces {
		bytes[run] = make([]int64, len(t.Accesses))
	}
	for i, a := range all {
		for _, u := range a.uses {
			if kept[i] {
				bytes[u.run][u.access] += a.end - a.offset
			}
		}
	}
	sums := make([]int64, len(traces))
	for run := range bytes {
		for access, n := range bytes[run] {
			bytes[run][access] = sums[run]
			sums[run] += n
		}
	}
	for i := range all {
		for k := range all[i].uses {
			if u := &all[i].uses[k]; sums[u.run] > 0 {
				u.place = float64(bytes[u.run][u.access]) / float64(sums[u.run])
			}
		}
	}
}

// order puts what is kept in the order of its median place, and joins
// neighbours.
func (all atoms) order(traces []*Trace, weights []float64, kept []bool) []Access {
	type placed struct {
		Access
		place float64
	}
	var list []placed
	for i, a := range all {
		if !kept[i] {
			continue
		}
		u := weightedMedian(a.uses, func(u use) float64 { return u.place }, func(u use) float64 { return weights[u.run] })
		from := traces[u.run].Accesses[u.access]
		list = append(list, placed{Access{a.layer, a.offset, a.end - a.offset, from.At, from.Phase}, u.place})
	}
	slices.SortFunc(list, func(a, b placed) int {
		return cmp.Or(cmp.Compare(a.place, b.place), cmp.Compare(a.At, b.At), cmp.Compare(a.Layer, b.Layer), cmp.Compare(a.Offset, b.Offset))
	})
	var accesses []Access
	for _, a := range list {
		if n := len(accesses); n > 0 {
			last := &accesses[n-1]
			if last.Layer == a.Layer && last.Offset+last.Length == a.Offset && last.Phase == a.Phase {
				last.Length += a.Length
				continue
			}
			a.At = max(a.At, last.At) // medians of different runs
		}
		accesses = append(accesses, a.Access)
	}
	return accesses
}

// weightedMedian returns the first of values, ordered, with half of the weight
// up to it.
func weightedMedian[T any](values []T, by, weight func(T) float64) T {
	sorted := slices.Clone(values)
	slices.SortStableFunc(sorted, func(a, b T) int { return cmp.Compare(by(a), by(b)) })
	var total, sum float64
	for _, v := range sorted {
		total += weight(v)
	}
	for _, v := range sorted {
		sum += weight(v)
		if sum >= total/2 {
			return v
		}
	}
	return sorted[len(sorted)-1]
}

// medianReady is of those runs that were told to be ready.
func medianReady(traces []*Trace, weights []float64) time.Duration {
	var told []int
	for i, t := range traces {
		if t.Ready > 0 {
			told = append(told, i)
		}
	}
	if len(told) == 0 {
		return 0
	}
	i := weightedMedian(told, func(i int) float64 { return float64(traces[i].Ready) }, func(i int) float64 { return weights[i] })
	return traces[i].Ready
}
