package startup

import (
	"cmp"
	"math"
	"slices"
	"sort"

	digest "github.com/opencontainers/go-digest"

	"github.com/thaw-project/thaw/internal/trace"
)

const (
	// pieceMax is the largest piece: what comes in one is there at once, and its
	// digest costs 48 bytes.
	pieceMax = 128 << 10
	// alignBytes: pieces begin and end at pages, as reads do.
	alignBytes = 4 << 10
	// gapMax is the largest gap between two ranges that is filled: it costs less
	// than a reader's wait for what the record missed by a little.
	gapMax = 16 << 10
	// frameMax is how much a frame unpacks to. The first ones are smaller: somebody
	// is waiting for them already.
	frameMax   = 1 << 20
	frameFirst = 256 << 10
	// framesFirst is how many are small.
	framesFirst = 4
)

// planned is a piece, and the first access that reads any of it.
type planned struct {
	Piece
	rank int
}

// interval is a range of a layer, and the access that reads it.
type interval struct {
	off, end int64
	rank     int
}

// plan makes pieces of what a trace reads of the layers, in frames, in the order
// of their first use. Digests are not set.
func plan(t *trace.Trace, layers []Layer) [][]Piece {
	number := map[digest.Digest]int{}
	for i, l := range layers {
		number[l.Blob] = i
	}
	reads := make([][]interval, len(layers))
	for rank, a := range t.Accesses {
		i, ok := number[a.Layer]
		if !ok || a.Offset < 0 || a.Length <= 0 || a.Offset >= layers[i].TarBytes {
			continue
		}
		tar := layers[i].TarBytes
		end := a.Offset + min(a.Length, tar-a.Offset)
		reads[i] = append(reads[i], interval{a.Offset &^ (alignBytes - 1), min((end+alignBytes-1)&^(alignBytes-1), tar), rank})
	}
	var all []planned
	for i := range reads {
		all = append(all, cut(i, reads[i])...)
	}
	slices.SortFunc(all, func(a, b planned) int {
		return cmp.Or(cmp.Compare(a.rank, b.rank), cmp.Compare(a.Layer, b.Layer), cmp.Compare(a.Offset, b.Offset))
	})
	return frames(all)
}

// cut joins ranges of a layer that overlap or nearly touch, and cuts what comes
// out along a grid, so that the order of use is kept within long ranges. Spans
// are a multiple of the grid: no piece crosses one.
func cut(layer int, reads []interval) []planned {
	slices.SortFunc(reads, func(a, b interval) int { return cmp.Or(cmp.Compare(a.off, b.off), cmp.Compare(a.rank, b.rank)) })
	var pieces []planned
	fill := func(off, end int64) {
		for off < end {
			stop := min(end, (off/pieceMax+1)*pieceMax)
			if n := len(pieces); n > 0 && pieces[n-1].Offset+pieces[n-1].Length == off && off%pieceMax != 0 {
				pieces[n-1].Length += stop - off
			} else {
				pieces = append(pieces, planned{Piece{Layer: layer, Offset: off, Length: stop - off}, math.MaxInt})
			}
			off = stop
		}
	}
	end := int64(math.MinInt64 / 2)
	for _, r := range reads {
		from := max(r.off, end)
		if r.off-end <= gapMax {
			from = end
		}
		fill(from, r.end)
		end = max(end, r.end)
	}
	for _, r := range reads {
		at := sort.Search(len(pieces), func(i int) bool { return pieces[i].Offset+pieces[i].Length > r.off })
		for ; at < len(pieces) && pieces[at].Offset < r.end; at++ {
			pieces[at].rank = min(pieces[at].rank, r.rank)
		}
	}
	for i := range pieces { // only the filling of a gap has none
		if pieces[i].rank == math.MaxInt && i > 0 {
			pieces[i].rank = pieces[i-1].rank
		}
	}
	return pieces
}

// frames groups pieces in their order. Within a frame they are sorted by where
// they lie, which compresses better and is written in order.
func frames(all []planned) [][]Piece {
	var out [][]Piece
	size := int64(0)
	for _, p := range all {
		limit := int64(frameMax)
		if len(out) <= framesFirst {
			limit = frameFirst
		}
		if len(out) == 0 || size+p.Length > limit {
			out = append(out, nil)
			size = 0
		}
		out[len(out)-1] = append(out[len(out)-1], p.Piece)
		size += p.Length
	}
	for _, f := range out {
		slices.SortFunc(f, func(a, b Piece) int { return cmp.Or(cmp.Compare(a.Layer, b.Layer), cmp.Compare(a.Offset, b.Offset)) })
	}
	return out
}
