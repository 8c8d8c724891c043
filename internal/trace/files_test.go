package trace

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
)

var layerC = digest.FromString("layer c")

func file(path string, extents ...Extent) File { return File{path, extents} }

func TestSplit(t *testing.T) {
	files := NewFiles([]File{
		file("a", Extent{0, layerA, 512, 1000}), // its last block ends at 1536
		file("a-again", Extent{0, layerA, 512, 1000}),
		file("empty"),
		file("sparse", Extent{0, layerA, 2048, 512}, Extent{8192, layerA, 2560, 512}),
		file("b", Extent{0, layerB, 512, 100}),
	})
	got := files.Split(layerA, 256, 2560)
	want := []Part{
		{"", 0, 256, 256},
		{"a", 0, 512, 1024},
		{"", 0, 1536, 512},
		{"sparse", 0, 2048, 512},
		{"sparse", 8192, 2560, 256},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]Part{{"", 0, 0, 10}}, files.Split(layerC, 0, 10)); diff != "" {
		t.Errorf("an unknown layer: %s", diff)
	}
	if diff := cmp.Diff([]Part{{"a", 1000 - 512, 1000, 1}}, files.Split(layerA, 1000, 1)); diff != "" {
		t.Error(diff)
	}
}

func TestMap(t *testing.T) {
	old := NewFiles([]File{
		file("app/main", Extent{0, layerB, 512, 3000}),
		file("app/moved-1/lib.so", Extent{0, layerB, 4096, 1000}),
		file("app/gone", Extent{0, layerB, 8192, 1000}),
		file("etc/shadowed", Extent{0, layerA, 512, 600}),
		file("usr/shared", Extent{0, layerA, 2048, 600}),
	})
	recent := NewFiles([]File{
		file("app/main", Extent{0, layerC, 10240, 2000}), // shorter now
		file("app/moved-2/lib.so", Extent{0, layerC, 20480, 1000}),
		file("app/other/lib.so", Extent{0, layerC, 30720, 1001}),
		file("etc/shadowed", Extent{0, layerC, 512, 700}), // replaced by an upper layer
		file("usr/shared", Extent{0, layerA, 2048, 600}),
	})
	tr := run(1,
		Access{Layer: layerB, Offset: 512, Length: 3072, Phase: PhaseStart},
		Access{Layer: layerA, Offset: 512, Length: 1024}, // all of shadowed
		Access{Layer: layerA, Offset: 2048, Length: 512}, // a part of shared
		Access{Layer: layerB, Offset: 4096, Length: 1024},
		Access{Layer: layerB, Offset: 8192, Length: 1024},
		Access{Layer: layerB, Offset: 1024, Length: 100}, // again
	)
	image := digest.FromString("image b")
	got := Map(tr, image, old, recent)
	if err := got.check(); err != nil {
		t.Fatal(err)
	}
	type rng struct {
		Layer          digest.Digest
		Offset, Length int64
	}
	var have []rng
	for _, a := range got.Accesses {
		have = append(have, rng{a.Layer, a.Offset, a.Length})
	}
	// Whole pages of the new layer.
	want := []rng{{layerC, 8192, 4096}, {layerC, 0, 4096}, {layerA, 2048, 512}, {layerC, 20480, 4096}}
	if diff := cmp.Diff(want, have); diff != "" {
		t.Error(diff)
	}
	if got.Image != image || got.Accesses[0].Phase != PhaseStart || got.Runs != 1 {
		t.Errorf("head: %+v", got)
	}
}

// Onto the same image everything stays where it is.
func TestMapSame(t *testing.T) {
	files := NewFiles([]File{file("a", Extent{0, layerA, 512, 5000}), file("b", Extent{0, layerB, 512, 5000})})
	tr := run(1, Access{Layer: layerA, Offset: 1024, Length: 512}, Access{Layer: layerB, Offset: 512, Length: 5000})
	got := Map(tr, tr.Image, files, files)
	if diff := cmp.Diff(tr, got); diff != "" {
		t.Error(diff)
	}
}
