package report

import (
	"cmp"
	"path"
	"slices"
	"strings"

	"github.com/thaw-project/thaw/internal/profile"
)

// fileMap are an image's files for the map of its bytes: the large ones and those
// that were read each, the others by directory, layer, package and phase.
type fileMap struct {
	Dirs     []string `json:"dirs"`
	Packages []string `json:"packages"` // the first is that of no package
	Phases   []string `json:"phases"`   // the first is never
	// Leaves are rows of directory, name, layer, package, phase, compressed bytes,
	// bytes, bytes read, and files if it stands for more than one.
	Leaves      [][]any `json:"leaves"`
	Files       int     `json:"files"`
	Compressed  bool    `json:"compressed"` // bytes are: else their share is taken from their layer's
	NeededBytes int64   `json:"needed_bytes"`
	LaterBytes  int64   `json:"later_bytes"` // read, but after ready
	UnreadBytes int64   `json:"unread_bytes"`

	unread map[string]int64 // by directory
}

// layerView is how much of a layer a start read.
type layerView struct {
	Digest      string  `json:"digest"`
	Bytes       int64   `json:"bytes"`
	Unpacked    int64   `json:"unpacked"`
	Instruction string  `json:"instruction"`
	Used        int64   `json:"used"`  // bytes read until ready
	Later       int64   `json:"later"` // read after it
	Files       int     `json:"files"`
	FilesUsed   int     `json:"files_used"`
	Known       bool    `json:"known"` // which of its files were read
	Share       float64 `json:"share"` // Used of its files' bytes
}

// Bounds of the map.
const (
	maxLeaves = 1000 // files that have a leaf of their own
	maxGroups = 800
	maxLayers = 130
)

// startPhase tells whether what is first read in a phase is read until ready.
func startPhase(name string) bool { return slices.Contains(profile.Phases[:profile.StartPhases], name) }

// newFileMap returns nil for the map if no files are known.
func newFileMap(s *profile.Subject) (*fileMap, []layerView) {
	layers := []layerView{}
	for _, l := range s.Layers[:min(len(s.Layers), maxLayers)] {
		layers = append(layers, layerView{Digest: l.Digest, Bytes: l.Bytes, Unpacked: l.UnpackedBytes, Instruction: l.Instruction})
	}
	if len(s.Files) == 0 {
		return nil, layers
	}
	files := withoutLinks(s.Files)
	total := make([]int64, len(layers))
	// What is not known of a layer's files is shared by those that it is not known of.
	known, unknown := make([]int64, len(layers)), make([]int64, len(layers))
	var lacking, all int64
	for _, f := range files {
		all += f.Bytes
		if f.CompressedBytes == 0 {
			lacking += f.Bytes
		}
		if f.Layer >= 0 && f.Layer < len(layers) {
			total[f.Layer] += f.Bytes
			known[f.Layer] += f.CompressedBytes
			if f.CompressedBytes == 0 {
				unknown[f.Layer] += f.Bytes
			}
		}
	}
	m := &fileMap{Files: len(s.Files), Compressed: lacking <= all/50, unread: map[string]int64{}, Leaves: [][]any{}, Packages: []string{""}, Phases: []string{""}}
	leaves := make([]leaf, 0, len(files))
	for _, f := range files {
		l := leaf{dir: path.Dir(path.Clean("/" + f.Path)), name: path.Base(f.Path), layer: f.Layer, pkg: f.Package, phase: f.First, bytes: f.Bytes, read: f.ReadBytes, compressed: f.CompressedBytes, files: 1}
		if l.compressed == 0 && f.Bytes > 0 {
			l.compressed = f.Bytes
			if i := f.Layer; i >= 0 && i < len(layers) && unknown[i] > 0 && layers[i].Bytes > 0 {
				l.compressed = int64(float64(f.Bytes) / float64(unknown[i]) * float64(max(layers[i].Bytes-known[i], 0)))
			}
		}
		m.count(&l)
		if l.layer >= 0 && l.layer < len(layers) {
			layers[l.layer].count(&l)
		}
		leaves = append(leaves, l)
	}
	for i := range layers {
		if v := &layers[i]; total[i] > 0 {
			v.Share = round(float64(v.Used) / float64(total[i]))
		}
	}
	m.put(leaves)
	return m, layers
}

// leastLink is how large a file has to be to be taken for another name of one like it.
const leastLink = 64 << 10

// withoutLinks leaves out further names of files: their bytes are in the image once. Of
// one layer, of one size and with exactly one share of the layer's compressed bytes,
// which depends on where a file lies, they are taken for hard links; the one that was
// read stands for all.
func withoutLinks(files []profile.File) []profile.File {
	type key struct {
		layer             int
		bytes, compressed int64
	}
	at := map[key]int{}
	out := make([]profile.File, 0, len(files))
	for _, f := range files {
		k := key{f.Layer, f.Bytes, f.CompressedBytes}
		if i, ok := at[k]; ok && f.Bytes >= leastLink && f.CompressedBytes > 0 {
			if out[i].First == "" {
				out[i] = f
			}
			continue
		}
		at[k] = len(out)
		out = append(out, f)
	}
	return out
}

// leaf is a file, or several of one kind.
type leaf struct {
	dir, name               string
	layer                   int
	pkg, phase              string
	compressed, bytes, read int64
	files                   int
}

func (m *fileMap) count(l *leaf) {
	switch {
	case l.phase == "":
		m.UnreadBytes += l.compressed
		parts := strings.SplitN(strings.TrimPrefix(l.dir, "/"), "/", 4)
		m.unread["/"+strings.Join(parts[:min(len(parts), 3)], "/")] += l.compressed
	case startPhase(l.phase):
		m.NeededBytes += l.compressed
	default:
		m.LaterBytes += l.compressed
	}
}

func (v *layerView) count(l *leaf) {
	v.Known = true
	v.Files++
	read := min(cmp.Or(l.read, l.bytes), l.bytes) // where the bytes are not known the file is taken
	switch {
	case l.phase == "":
	case startPhase(l.phase):
		v.FilesUsed++
		v.Used += read
	default:
		v.Later += read
	}
}

type unreadDir struct {
	Name  string
	Bytes int64
}

// unreadMost are the directories with most that was never read.
func (m *fileMap) unreadMost(n int) []unreadDir {
	var all []unreadDir
	for name, bytes := range m.unread {
		all = append(all, unreadDir{name, bytes})
	}
	slices.SortFunc(all, func(a, b unreadDir) int {
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), strings.Compare(a.Name, b.Name))
	})
	return all[:min(n, len(all))]
}

// put makes rows of leaves: of the largest, read ones first, one each; of the others
// one for all of a kind, in directories as deep as there is room for.
func (m *fileMap) put(leaves []leaf) {
	slices.SortStableFunc(leaves, func(a, b leaf) int {
		weight := func(l *leaf) int64 {
			if l.phase != "" {
				return 4 * l.compressed
			}
			return l.compressed
		}
		return cmp.Or(cmp.Compare(weight(&b), weight(&a)), strings.Compare(a.dir, b.dir), strings.Compare(a.name, b.name))
	})
	own := leaves[:min(len(leaves), maxLeaves)]
	var rest []leaf
	for depth := 8; depth >= 0; depth-- {
		if rest = grouped(leaves[len(own):], depth); len(rest) <= maxGroups {
			break
		}
	}
	dirs, packages, phases := numbers{}, numbers{"": 0}, numbers{"": 0}
	for _, l := range slices.Concat(own, rest) {
		row := []any{dirs.of(l.dir, &m.Dirs), l.name, l.layer, packages.of(l.pkg, &m.Packages), phases.of(l.phase, &m.Phases), l.compressed, l.bytes, l.read}
		if l.files > 1 {
			row = append(row, l.files)
		}
		m.Leaves = append(m.Leaves, row)
	}
}

// grouped sums leaves of one layer, package and phase in directories up to a depth.
func grouped(leaves []leaf, depth int) []leaf {
	type key struct {
		dir, pkg, phase string
		layer           int
	}
	at := map[key]int{}
	var out []leaf
	for _, l := range leaves {
		if parts := strings.SplitN(l.dir, "/", depth+2); len(parts) > depth+1 { // the first is empty
			l.dir = cmp.Or(strings.Join(parts[:depth+1], "/"), "/")
		}
		if depth < 2 {
			l.pkg = ""
		}
		k := key{l.dir, l.pkg, l.phase, l.layer}
		i, ok := at[k]
		if !ok {
			at[k] = len(out)
			l.name = ""
			out = append(out, l)
			continue
		}
		o := &out[i]
		o.compressed, o.bytes, o.read, o.files = o.compressed+l.compressed, o.bytes+l.bytes, o.read+l.read, o.files+l.files
	}
	return out
}

// numbers numbers words as they come.
type numbers map[string]int

func (n numbers) of(word string, list *[]string) int {
	i, ok := n[word]
	if !ok {
		i = len(*list)
		n[word] = i
		*list = append(*list, word)
	}
	return i
}
