package main

import (
	"bytes"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/erofs"
	"github.com/thaw-project/thaw/internal/layertar/layertartest"
	"github.com/thaw-project/thaw/internal/testenv"
)

// ignoreRootTime makes the time of the root, which no layer has, that of dir.
func (t tree) ignoreRootTime(dir string) (tree, error) {
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return tree{}, err
	}
	same := tree{map[string]fact{}, t.errors}
	for name, f := range t.facts {
		if name == "" {
			f.Sec, f.Nsec = st.Mtim.Sec, st.Mtim.Nsec
		}
		same.facts[name] = f
	}
	return same, nil
}

func (n *node) sameImage(want tree, dir string) {
	n.Helper()
	want, err := want.ignoreRootTime(dir)
	if err != nil {
		n.Fatal(err)
	}
	n.sameTree(want, dir)
}

func TestMountEqualsUnpacking(t *testing.T) {
	t.Parallel()
	for _, image := range []string{"nginx", "node", "python-ml"} {
		t.Run(image, func(t *testing.T) {
			if image == "python-ml" && os.Getenv("THAW_LONG") == "" {
				t.Skip("needs THAW_LONG: reads 2 GB twice")
			}
			layout, want := corpus(t, image)
			n, s := newNode(t), newLab(t, layout, "none")
			ref := s.Addr() + "/" + image
			n.pushIndex(ref)
			dir := n.mkdir()
			n.thaw("mount", ref, dir)
			n.sameImage(want, dir)
			n.thaw("umount", dir)
		})
	}
}

// TestMountOfSyntheticLayers has all that layers may hold, compressed in all
// ways, against an unpacker that shares nothing with thaw.
func TestMountOfSyntheticLayers(t *testing.T) {
	t.Parallel()
	testenv.NeedRoot(t)
	for name, layers := range map[string][][]byte{
		"everything":       withoutHuge(layertartest.Everything()),
		"through symlinks": layertartest.ThroughSymlinks(),
		"many spans":       manySpans(),
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			want := n.apply(layers)
			layout := n.mkdir()
			for _, c := range compressions {
				writeImage(t, layout, c.name, c, layers)
			}
			s := newLab(t, layout, "none")
			for _, c := range compressions {
				t.Run(c.name, func(t *testing.T) {
					n, dir := n.in(t), n.mkdir()
					ref := s.Addr() + "/" + c.name
					n.thaw("mount", "--index=ignore", "oci:"+layout+":"+c.name, dir)
					n.sameTree(want, dir)
					n.thaw("umount", dir)
					n.thaw("cache", "gc")

					n.pushIndex(ref)
					n.thaw("mount", "--index=require", "--background=off", ref, dir)
					n.sameTree(want, dir)
					n.thaw("umount", dir)
					n.thaw("cache", "gc")
				})
			}
		})
	}
}

// withoutHuge hides the sparse file of more chunks than EROFS images may have.
func withoutHuge(layers [][]byte) [][]byte {
	if erofs.MaxChunks > layertartest.HugeBytes>>12 {
		return layers
	}
	return append(layers, new(layertartest.Builder).Whiteout(layertartest.HugePath).End().Bytes())
}

// apply unpacks uncompressed layers.
func (n *node) apply(layers [][]byte) tree {
	n.Helper()
	dir := n.mkdir()
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, dir, make([]unix.Timespec, 2), 0); err != nil {
		n.Fatal(err)
	}
	for i, b := range layers {
		if err := layertartest.Apply(dir, bytes.NewReader(b)); err != nil {
			n.Fatalf("layer %d: %v", i, err)
		}
	}
	want, err := readTree(dir)
	if err != nil {
		n.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		n.Fatal(err)
	}
	return want
}

// manySpans has files that lie in several spans, and spans with several files.
func manySpans() [][]byte {
	base, top := new(layertartest.Builder), new(layertartest.Builder)
	base.Dir("data")
	for i, size := range []int{5 << 20, 1, 100_000, 1<<20 - 512, 3<<20 + 7, 0, 400_000} {
		base.File("data/"+string(rune('a'+i)), layertartest.Fill(i, size))
	}
	top.File("data/b", layertartest.Fill(99, 2_500_000)).Whiteout("data/c").Hardlink("data/link", "data/a")
	return [][]byte{base.End().Bytes(), top.End().Bytes()}
}
