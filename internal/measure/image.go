package measure

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	digest "github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/thaw-project/thaw/internal/index"
	"github.com/thaw-project/thaw/internal/indexstore"
	"github.com/thaw-project/thaw/internal/profile"
)

// maxFiles is how many files of an image a record has at most, maxFileBytes what they
// may take of it, and maxInstruction what a layer's instruction may:
// some have whole files in them.
const (
	maxFiles       = 500_000
	maxFileBytes   = 32 << 20
	fileBytes      = 120 // beside its path
	maxInstruction = 4 << 10
)

// describeImage fills in what the subject's image is: its layers, and its files with
// their shares of the layers' compressed bytes, by the index that the state directory
// has of it.
func describeImage(s *profile.Subject, root string, manifest digest.Digest, config []byte) error {
	s.Manifest = manifest.String()
	store, err := indexstore.Open(filepath.Join(root, "index"))
	if err != nil {
		return err
	}
	im, err := store.Peek(manifest)
	if err != nil {
		return fmt.Errorf("list files of image: %w", err)
	}
	head, err := index.DecodeImage(im.Head)
	if err != nil {
		return fmt.Errorf("list files of image: %w", err)
	}
	instructions := instructions(config, len(head.Layers))
	number := map[digest.Digest]int{}
	s.Layers, s.Files, s.ImageBytes, s.UnpackedBytes = nil, nil, 0, 0
	for i, l := range head.Layers {
		number[l.Blob] = i
		s.Layers = append(s.Layers, profile.Layer{Digest: l.Blob.String(), Bytes: l.BlobBytes, UnpackedBytes: l.TarBytes, Instruction: instructions[i]})
		s.ImageBytes += l.BlobBytes
		s.UnpackedBytes += l.TarBytes
	}
	files, err := head.ListFiles()
	if err != nil {
		return fmt.Errorf("list files of image: %w", err)
	}
	if len(files) > maxFiles {
		return fmt.Errorf("list files of image: it has %d, more than %d", len(files), maxFiles)
	}
	size := 0
	for _, f := range files {
		size += len(f.Path) + fileBytes
	}
	if size > maxFileBytes {
		return fmt.Errorf("list files of image: %d with such names are too many for a record", len(files))
	}
	for _, f := range files {
		one := profile.File{Path: "/" + f.Path, Package: profile.PackageOf("/" + f.Path)}
		compressed := 0.0
		for _, e := range f.Extents {
			one.Bytes = max(one.Bytes, e.In+e.Length)
			one.Layer = number[e.Layer]
			compressed += share(head.Layers[one.Layer].Spans, e.Offset, e.Length)
		}
		one.CompressedBytes = int64(compressed)
		s.Files = append(s.Files, one)
	}
	slices.SortFunc(s.Files, func(a, b profile.File) int { return strings.Compare(a.Path, b.Path) })
	return nil
}

// share is how many compressed bytes a range of a layer has: of each span as much as it
// has of the span.
func share(spans []index.Span, off, n int64) float64 {
	sum := 0.0
	for i := off / index.SpanBytes; i < int64(len(spans)) && i*index.SpanBytes < off+n; i++ {
		part := min(off+n, (i+1)*index.SpanBytes) - max(off, i*index.SpanBytes)
		sum += float64(spans[i].BytesCompressed) * float64(part) / index.SpanBytes
	}
	return sum
}

// instructions are what made each of n layers, by the image's config, or empty.
func instructions(config []byte, n int) []string {
	out := make([]string, n)
	var c v1.Image
	if json.Unmarshal(config, &c) != nil {
		return out
	}
	i := 0
	for _, h := range c.History {
		if h.EmptyLayer {
			continue
		}
		if i == n {
			return make([]string, n) // it is of another image
		}
		out[i] = strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(strings.TrimPrefix(h.CreatedBy, "/bin/sh -c")), "#(nop)"))
		if len(out[i]) > maxInstruction {
			out[i] = strings.ToValidUTF8(out[i][:maxInstruction], "") + "..."
		}
		i++
	}
	return out
}

// summarizeFiles says of each file when most runs read it first, and how much of it.
func summarizeFiles(s *profile.Subject) {
	type use struct {
		phases map[string]int
		bytes  []float64
	}
	uses, runs := map[string]*use{}, 0
	for i := range s.Runs {
		if !s.Runs[i].Good() {
			continue
		}
		runs++
		for _, r := range s.Runs[i].Reads {
			u := uses[r.Path]
			if u == nil {
				u = &use{phases: map[string]int{}}
				uses[r.Path] = u
			}
			u.phases[r.Phase]++
			u.bytes = append(u.bytes, float64(r.Bytes))
		}
	}
	for i := range s.Files {
		f := &s.Files[i]
		u := uses[f.Path]
		if u == nil {
			continue
		}
		for _, phase := range append(slices.Clone(profile.Phases), profile.ReadLater) {
			if n := u.phases[phase]; n > u.phases[f.First] || f.First == "" && n > 0 {
				f.First = phase
			}
		}
		f.ReadBytes = int64(profile.Percentile(u.bytes, 0.5))
		f.Runs = float64(len(u.bytes)) / float64(runs)
	}
}

// command is what an image runs by itself.
func command(config []byte) []string {
	var c v1.Image
	if json.Unmarshal(config, &c) != nil {
		return nil
	}
	return append(slices.Clone(c.Config.Entrypoint), c.Config.Cmd...)
}
