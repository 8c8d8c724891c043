package index

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/thaw-project/thaw/internal/testenv"
)

// corpusImage is an image of the corpus: where its layers are.
type corpusImage struct {
	name   string
	layers []BuildInput
	paths  []string
}

// corpus returns the images of the corpus by name.
func corpus(t testing.TB) map[string]corpusImage {
	t.Helper()
	dir := filepath.Join(testenv.Corpus(t), "oci")
	blob := func(d digest.Digest) string { return filepath.Join(dir, "blobs", "sha256", d.Encoded()) }
	load := func(path string, v any) {
		t.Helper()
		b, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(b, v)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var ix v1.Index
	load(filepath.Join(dir, "index.json"), &ix)
	images := map[string]corpusImage{}
	for _, desc := range ix.Manifests {
		var m v1.Manifest
		var c v1.Image
		load(blob(desc.Digest), &m)
		load(blob(m.Config.Digest), &c)
		img := corpusImage{name: desc.Annotations[v1.AnnotationRefName]}
		for i, l := range m.Layers {
			img.layers = append(img.layers, BuildInput{Blob: l.Digest, BlobBytes: l.Size, DiffID: c.RootFS.DiffIDs[i]})
			img.paths = append(img.paths, blob(l.Digest))
		}
		images[img.name] = img
	}
	return images
}

func (img corpusImage) build(t testing.TB, i int) *Layer {
	t.Helper()
	f, err := os.Open(img.paths[i])
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	l, err := BuildLayer(t.Context(), f, img.layers[i])
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func (img corpusImage) buildAll(t testing.TB) []*LayerBlob {
	t.Helper()
	var blobs []*LayerBlob
	for i := range img.layers {
		b, err := EncodeLayer(img.build(t, i))
		if err != nil {
			t.Fatal(err)
		}
		blobs = append(blobs, b)
	}
	return blobs
}

// maxIndexPercent is the budget of an index: its size in percent of the
// compressed image.
const maxIndexPercent = 2.0

// TestCorpusIndex builds the index of each image and reports what it takes.
func TestCorpusIndex(t *testing.T) {
	images := corpus(t)
	for _, name := range []string{"nginx", "node", "python-ml"} {
		img, ok := images[name]
		if !ok || testing.Short() && name == "python-ml" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			blobs := img.buildAll(t)
			took := time.Since(start)
			start = time.Now()
			head, err := Assemble(blobs)
			if err != nil {
				t.Fatal(err)
			}
			assembled := time.Since(start)
			b, err := head.Encode()
			if err != nil {
				t.Fatal(err)
			}
			var image, index, windows, spans, tar int64
			for i, l := range blobs {
				image += img.layers[i].BlobBytes
				index += int64(len(l.Bytes))
				windows += int64(len(l.Windows))
				spans += int64(len(l.Spans))
				tar += l.TarBytes
			}
			index += int64(len(b))
			percent := func(n int64) string { return fmt.Sprintf("%d bytes (%.2f%%)", n, 100*float64(n)/float64(image)) }
			t.Logf("image %d bytes, tar %d, %d spans; index %s: head %s, windows %s, entries and spans %s; layers %v, assemble %v",
				image, tar, spans, percent(index), percent(int64(len(b))), percent(windows), percent(index-windows-int64(len(b))),
				took.Round(time.Millisecond), assembled.Round(time.Millisecond))
			if p := 100 * float64(index) / float64(image); p > maxIndexPercent {
				t.Errorf("index has %.2f%% of the image, at most %v%% are wanted", p, maxIndexPercent)
			}
			again, err := DecodeImage(b)
			if err != nil {
				t.Fatal(err)
			}
			metadata, err := again.Erofs()
			if err != nil {
				t.Fatal(err)
			}
			if want, _ := head.Erofs(); !bytes.Equal(metadata, want) {
				t.Error("EROFS image differs after a round trip")
			}
		})
	}
}

// BenchmarkBuildLayer makes the index of the largest layer of node from its
// compressed bytes, as an ingest does: the caller proves the diffID.
func BenchmarkBuildLayer(b *testing.B) {
	for _, name := range []string{"nginx", "node"} {
		img, ok := corpus(b)[name]
		if !ok {
			continue
		}
		largest := 0
		for i, l := range img.layers {
			if l.BlobBytes > img.layers[largest].BlobBytes {
				largest = i
			}
		}
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				l := img.build(b, largest)
				b.SetBytes(l.TarBytes)
			}
		})
	}
}

// BenchmarkAssemble merges the layers of an image and writes its head.
func BenchmarkAssemble(b *testing.B) {
	img, ok := corpus(b)["node"]
	if !ok {
		b.Skip("no such image")
	}
	blobs := slices.Clone(img.buildAll(b))
	for b.Loop() {
		head, err := Assemble(blobs)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := head.Encode(); err != nil {
			b.Fatal(err)
		}
	}
}
