package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/thaw-project/thaw/internal/bench"
	"github.com/thaw-project/thaw/internal/testenv"
)

// readerFiles is how many files a reader reads in each run of BenchmarkReader.
const readerFiles = 150

// BenchmarkReader has a reader open files all over an image that was just
// mounted, one after the other through the network of a cloud, with and without
// the background bringing the rest at full speed, in turn. on/off is the ratio of
// the 99th percentiles of a file's time; the goal is at most 1.3.
func BenchmarkReader(b *testing.B) {
	testenv.NeedRuntime(b)
	image := "node"
	if hasImage(b, "python-ml") { // its background goes on for longer
		image = "python-ml"
	}
	layout, _ := corpus(b, image)
	n := newNode(b)
	ref := newLab(b, layout, "cloud").Addr() + "/" + image
	n.pushIndex(ref)
	var on, off bench.Samples
	for i := 0; b.Loop(); i++ {
		for k := range 2 {
			background := (i+k)%2 == 0
			took, err := n.readFresh(ref, background, uint64(i))
			if err != nil {
				b.Fatal(err)
			}
			if background {
				on = append(on, took...)
			} else {
				off = append(off, took...)
			}
		}
	}
	p99 := func(s bench.Samples) float64 { slices.Sort(s); return s[len(s)*99/100] }
	b.ReportMetric(p99(on), "on-p99-ms")
	b.ReportMetric(p99(off), "off-p99-ms")
	b.ReportMetric(p99(on)/p99(off), "on/off")
	b.ReportMetric(on.Median(), "on-p50-ms")
	b.ReportMetric(off.Median(), "off-p50-ms")
	b.ReportMetric(0, "ns/op")
}

// readFresh mounts an image of which nothing is here and returns how long the
// reading of each file took, in ms.
func (n *node) readFresh(ref string, background bool, seed uint64) (bench.Samples, error) {
	n.Helper()
	n.thaw("cache", "gc")
	if err := bench.DropCaches(n.Context()); err != nil {
		return nil, err
	}
	dir := n.mkdir()
	args := []string{"mount", "--index=require", ref, dir}
	if !background {
		args = append(args, "--background=off")
	}
	n.thaw(args...)
	defer n.thaw("umount", dir)
	files, err := filesOf(dir)
	if err != nil {
		return nil, err
	}
	random := rand.New(rand.NewPCG(seed, 1))
	random.Shuffle(len(files), func(i, j int) { files[i], files[j] = files[j], files[i] })
	var took bench.Samples
	for _, name := range files[:min(len(files), readerFiles)] {
		begun := time.Now()
		if _, err := os.ReadFile(filepath.Join(dir, name)); err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
		took = append(took, time.Since(begun).Seconds()*1000)
	}
	return took, nil
}
