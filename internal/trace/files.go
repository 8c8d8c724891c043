package trace

import (
	"cmp"
	"path"
	"slices"

	"github.com/opencontainers/go-digest"
)

// blockBytes is the unit of tar and of EROFS: a file's last block is read as a
// whole.
const blockBytes = 512

// pageBytes is the unit in which the kernel asks for a layer's bytes.
const pageBytes = 4096

// File is where a file of an image lies.
type File struct {
	Path    string   // from the image's root, without a leading slash
	Extents []Extent // in the order of the file; gaps are holes
}

// Extent is a part of a file in one layer.
type Extent struct {
	In     int64 // offset in the file
	Layer  digest.Digest
	Offset int64 // in the uncompressed tar
	Length int64
}

func (e Extent) valid() bool {
	return e.In >= 0 && e.In <= maxTarBytes && e.Offset >= 0 && e.Offset <= maxTarBytes && e.Length > 0 && e.Length <= maxTarBytes-e.Offset
}

// whole is the extent's length up to the end of its last block.
func (e Extent) whole() int64 { return (e.Length + blockBytes - 1) &^ (blockBytes - 1) }

// size is the end of the last extent.
func (f *File) size() int64 {
	var end int64
	for _, e := range f.Extents {
		end = max(end, e.In+e.Length)
	}
	return end
}

// Files is a table of where the files of an image lie. It is not changed once
// it is made.
type Files struct {
	files   []File // as they were given
	byPath  map[string]int
	byName  map[name][]int
	extents map[digest.Digest][]fileExtent // by offset
}

type fileExtent struct {
	Extent
	file int
}

// name is what a moved file keeps.
type name struct {
	base string
	size int64
}

// NewFiles makes a table, whose Split names a file that has several names by the
// first of them. Extents are taken up to the end of their last block, as the
// kernel reads them; those that are empty or outside of any layer are left out.
func NewFiles(files []File) *Files {
	t := &Files{files: files, byPath: map[string]int{}, byName: map[name][]int{}, extents: map[digest.Digest][]fileExtent{}}
	for i := range files {
		f := &files[i]
		t.byPath[f.Path] = i
		n := name{path.Base(f.Path), f.size()}
		t.byName[n] = append(t.byName[n], i)
		for _, e := range f.Extents {
			if !e.valid() {
				continue
			}
			e.Length = e.whole()
			t.extents[e.Layer] = append(t.extents[e.Layer], fileExtent{e, i})
		}
	}
	for l, list := range t.extents {
		slices.SortStableFunc(list, func(a, b fileExtent) int { return cmp.Compare(a.Offset, b.Offset) })
		// Names of one file, and the overlaps of a hostile image, would make one
		// byte be of several files.
		var end int64
		t.extents[l] = slices.DeleteFunc(list, func(e fileExtent) bool {
			if e.Offset < end {
				return true
			}
			end = e.Offset + e.Length
			return false
		})
	}
	return t
}

// Part is a part of a range of a layer, and the file it belongs to.
type Part struct {
	Path   string // "" for what belongs to no file
	In     int64  // offset in the file
	Offset int64  // in the uncompressed tar
	Length int64
}

// Split says which files a range of a layer belongs to, in order and without
// gaps.
func (t *Files) Split(layer digest.Digest, offset, length int64) []Part {
	var parts []Part
	list := t.extents[layer]
	end := offset + length
	i, _ := slices.BinarySearchFunc(list, offset, func(e fileExtent, off int64) int {
		if e.Offset+e.Length <= off {
			return -1
		}
		return 1
	})
	for ; offset < end; i++ {
		if i == len(list) || list[i].Offset >= end {
			return append(parts, Part{Offset: offset, Length: end - offset})
		}
		e := list[i]
		if e.Offset > offset {
			parts = append(parts, Part{Offset: offset, Length: e.Offset - offset})
			offset = e.Offset
		}
		n := min(end, e.Offset+e.Length) - offset
		parts = append(parts, Part{Path: t.files[e.file].Path, In: e.In + offset - e.Offset, Offset: offset, Length: n})
		offset += n
	}
	return parts
}

// find returns the file at a path, or the only one of the same base name and
// size elsewhere.
func (t *Files) find(p string, size int64) (*File, bool) {
	if i, ok := t.byPath[p]; ok {
		return &t.files[i], true
	}
	if same := t.byName[name{path.Base(p), size}]; len(same) == 1 {
		return &t.files[same[0]], true
	}
	return nil, false
}

// Map carries a trace over to another image. What is of a file in both, at the
// same place of the same layer, stays as it is. The rest goes by names: the same
// bytes of the file at the same path or, where the other image has no such path,
// of the only file with its base name and size, and all of the pages of the
// layer that they lie in. What the other image does not have is left out. The
// result names image as its image.
func Map(old *Trace, image digest.Digest, oldFiles, newFiles *Files) *Trace {
	mapped := *old
	mapped.Image = image
	mapped.Command = slices.Clone(old.Command)
	mapped.Accesses = nil
	add := func(a Access, layer digest.Digest, offset, length int64) {
		a.Layer, a.Offset, a.Length = layer, offset, length
		mapped.Accesses = append(mapped.Accesses, a)
	}
	for _, a := range old.Accesses {
		for _, here := range newFiles.Split(a.Layer, a.Offset, a.Length) {
			if here.Path != "" {
				add(a, a.Layer, here.Offset, here.Length)
				continue
			}
			for _, part := range oldFiles.Split(a.Layer, here.Offset, here.Length) {
				for _, e := range newFiles.same(oldFiles, part) {
					begin := e.Offset &^ (pageBytes - 1)
					add(a, e.Layer, begin, (e.Offset+e.Length+pageBytes-1)&^(pageBytes-1)-begin)
				}
			}
		}
	}
	return Merge([]*Trace{&mapped}, MergeOptions{})
}

// same finds the bytes of a part of another image's file.
func (t *Files) same(other *Files, part Part) []Extent {
	if part.Path == "" {
		return nil
	}
	f, ok := t.find(part.Path, other.files[other.byPath[part.Path]].size())
	if !ok {
		return nil
	}
	var found []Extent
	for _, e := range f.Extents {
		if !e.valid() {
			continue
		}
		from, to := max(e.In, part.In), min(e.In+e.whole(), part.In+part.Length)
		if from < to {
			found = append(found, Extent{from, e.Layer, e.Offset + from - e.In, to - from})
		}
	}
	return found
}
