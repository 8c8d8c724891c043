package index

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	digest "github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/erofs"
	"github.com/thaw-project/thaw/internal/layertar"
	"github.com/thaw-project/thaw/internal/layertar/layertartest"
	"github.com/thaw-project/thaw/internal/testenv"
)

// fact is all that a tree says of one name.
type fact struct {
	Mode, UID, GID     uint32
	Sec                int64
	Nsec               uint32
	Size               int64
	DevMajor, DevMinor uint32
	Link               string
	Xattrs             map[string]string
	Group              string // first name of the file in order of the walk
	Sum                string // of a regular file's bytes
}

// maxSum keeps tests from reading the holes of huge files.
const maxSum = 64 << 20

// diskFacts walks a directory.
func diskFacts(t testing.TB, dir string) map[string]fact {
	t.Helper()
	facts, first := map[string]fact{}, map[uint64]string{}
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		name := strings.TrimPrefix(strings.TrimPrefix(path, dir), "/")
		if _, ok := first[st.Ino]; !ok {
			first[st.Ino] = name
		}
		f := fact{Mode: st.Mode, UID: st.Uid, GID: st.Gid, Sec: st.Mtim.Sec, Nsec: uint32(st.Mtim.Nsec),
			DevMajor: unix.Major(st.Rdev), DevMinor: unix.Minor(st.Rdev), Xattrs: diskXattrs(t, path), Group: first[st.Ino]}
		switch st.Mode & modeType {
		case modeSymlink:
			f.Link, err = os.Readlink(path)
		case modeRegular:
			f.Size = st.Size
			if st.Size <= maxSum {
				b, rerr := os.ReadFile(path)
				f.Sum, err = sum(b), rerr
			}
		}
		facts[name] = f
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return facts
}

func sum(b []byte) string { return fmt.Sprintf("%x", sha256.Sum256(b)) }

func diskXattrs(t testing.TB, path string) map[string]string {
	t.Helper()
	m := map[string]string{}
	buf := make([]byte, 1<<16)
	n, err := unix.Llistxattr(path, buf)
	if err != nil {
		t.Fatalf("list xattrs of %q: %v", path, err)
	}
	value := make([]byte, 1<<16)
	for name := range strings.SplitSeq(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			t.Fatalf("get xattr %q of %q: %v", name, path, err)
		}
		m[name] = string(value[:n])
	}
	return m
}

// erofsFacts walks an EROFS image whose devices are the layers' tars.
func erofsFacts(t testing.TB, metadata []byte, tars [][]byte) map[string]fact {
	t.Helper()
	img, err := erofs.Open(metadata)
	if err != nil {
		t.Fatal(err)
	}
	facts, first := map[string]fact{}, map[uint64]string{}
	err = img.Walk(func(path string, n *erofs.Info) error {
		if _, ok := first[n.NID]; !ok {
			first[n.NID] = path
		}
		f := fact{Mode: n.Mode, UID: n.UID, GID: n.GID, Sec: n.MtimeSec, Nsec: n.MtimeNsec, Size: n.SizeBytes,
			DevMajor: n.DevMajor, DevMinor: n.DevMinor, Link: n.Link, Xattrs: map[string]string{}, Group: first[n.NID]}
		for _, x := range n.Xattrs {
			f.Xattrs[x.Name] = string(x.Value)
		}
		if n.Mode&modeType == modeRegular && n.SizeBytes <= maxSum {
			b := make([]byte, n.SizeBytes)
			for _, e := range n.Extents {
				copy(b[e.Offset:e.Offset+e.Length], tars[e.Device-1][e.OffsetDevice:])
			}
			f.Sum = sum(b)
		}
		if n.Mode&modeType != modeRegular {
			f.Size = 0
		}
		facts[path] = f
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return facts
}

// blobsOf indexes uncompressed layers.
func blobsOf(t testing.TB, tars [][]byte) []*LayerBlob {
	t.Helper()
	var blobs []*LayerBlob
	for _, b := range tars {
		l, err := BuildLayer(t.Context(), bytes.NewReader(b), inputFor(b, b))
		if err != nil {
			t.Fatal(err)
		}
		lb, err := EncodeLayer(l)
		if err != nil {
			t.Fatal(err)
		}
		blobs = append(blobs, lb)
	}
	return blobs
}

func inputFor(blob, tar []byte) BuildInput {
	return BuildInput{Blob: digest.FromBytes(blob), BlobBytes: int64(len(blob)), DiffID: digest.FromBytes(tar)}
}

func metadataOf(t testing.TB, tars [][]byte) []byte {
	t.Helper()
	head, err := Assemble(blobsOf(t, tars))
	if err != nil {
		t.Fatal(err)
	}
	b, err := head.Erofs()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestMergeEqualsUnpacking compares the merged tree with what an independent
// unpacker makes of the same layers.
func TestMergeEqualsUnpacking(t *testing.T) {
	testenv.NeedRoot(t)
	for name, tars := range map[string][][]byte{
		"everything":       layertartest.Everything(),
		"through symlinks": layertartest.ThroughSymlinks(),
		"more":             moreLayers(),
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := unix.UtimesNanoAt(unix.AT_FDCWD, dir, make([]unix.Timespec, 2), 0); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			for i, b := range tars {
				if err := layertartest.Apply(dir, bytes.NewReader(b)); err != nil {
					t.Fatalf("layer %d: %v", i, err)
				}
			}
			tars = withoutTooManyChunks(t, dir, tars)
			metadata := metadataOf(t, tars)
			if d := cmp.Diff(diskFacts(t, dir), erofsFacts(t, metadata, tars)); d != "" {
				t.Errorf("unpacked (-) and merged (+) differ:\n%s", d)
			}
			checkHuge(t, dir, metadata, tars)
		})
	}
}

// withoutTooManyChunks hides the huge sparse file where EROFS images may not
// have that many chunks.
func withoutTooManyChunks(t *testing.T, dir string, tars [][]byte) [][]byte {
	t.Helper()
	path := filepath.Join(dir, layertartest.HugePath)
	if _, err := os.Lstat(path); err != nil || erofs.MaxChunks > layertartest.HugeBytes>>12 {
		return tars
	}
	t.Logf("%s needs more chunks than %d: left out", layertartest.HugePath, erofs.MaxChunks)
	top := new(layertartest.Builder).Whiteout(layertartest.HugePath).End().Bytes()
	if err := layertartest.Apply(dir, bytes.NewReader(top)); err != nil {
		t.Fatal(err)
	}
	return append(tars[:len(tars):len(tars)], top)
}

// checkHuge compares the stored parts of the one file that is too large to sum.
func checkHuge(t *testing.T, dir string, metadata []byte, tars [][]byte) {
	t.Helper()
	img, err := erofs.Open(metadata)
	if err != nil {
		t.Fatal(err)
	}
	n, err := img.Lookup(layertartest.HugePath)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	f, err := os.Open(filepath.Join(dir, layertartest.HugePath))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if len(n.Extents) == 0 {
		t.Error("a huge file has no extents")
	}
	for _, e := range n.Extents {
		b := make([]byte, e.Length)
		if _, err := f.ReadAt(b, e.Offset); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(b, tars[e.Device-1][e.OffsetDevice:][:e.Length]) {
			t.Errorf("bytes at %d of %s differ", e.Offset, layertartest.HugePath)
		}
	}
}

// moreLayers has changes that need more layers than two: deleted and back,
// links over several layers, types that change back and forth.
func moreLayers() [][]byte {
	tar := func(f func(b *layertartest.Builder)) []byte {
		b := new(layertartest.Builder)
		f(b)
		return b.End().Bytes()
	}
	return [][]byte{
		tar(func(b *layertartest.Builder) {
			b.Dir("a").File("a/f", []byte("0")).Hardlink("a/g", "a/f").Dir("d").Dir("d/e").File("d/e/f", []byte("deep"))
			b.Symlink("s", "d").File("file", []byte("was a file")).Symlink("s2", "/s/e")
		}),
		tar(func(b *layertartest.Builder) {
			b.Whiteout("a").Hardlink("d/link", "s/e/f").File("s2/new", []byte("through two links"))
			b.Opaque("file/").Dir("file").File("file/child", []byte("file became a directory"))
		}),
		tar(func(b *layertartest.Builder) {
			b.Dir("a").File("a/f", []byte("2")).Whiteout("d/e/f").Whiteout("s2/none").Symlink("file/again", "child")
			b.File("s", []byte("the link is a file now"))
		}),
		tar(func(b *layertartest.Builder) {
			b.Opaque("").File("only", []byte("all else is hidden")).Hardlink("only2", "only")
		}),
		tar(func(b *layertartest.Builder) { b.Whiteout("only").Hardlink("only3", "only2") }),
	}
}

func TestMergeOpaqueRoot(t *testing.T) {
	low := new(layertartest.Builder).Dir("a").File("a/b", []byte("x")).End().Bytes()
	up := new(layertartest.Builder).Opaque("").File("only", []byte("y")).End().Bytes()
	tars := [][]byte{low, up}
	got := erofsFacts(t, metadataOf(t, tars), tars)
	if len(got) != 2 || got["only"].Sum != sum([]byte("y")) {
		t.Errorf("tree is %v, want the root and only", got)
	}
}

func TestMergeErrors(t *testing.T) {
	file := func(path string) layertar.Entry {
		return layertar.Entry{Path: path, Type: layertar.TypeReg, Mode: 0o644}
	}
	hard := func(path, to string) layertar.Entry {
		return layertar.Entry{Path: path, Type: layertar.TypeHardlink, Link: to}
	}
	sym := func(path, to string) layertar.Entry {
		return layertar.Entry{Path: path, Type: layertar.TypeSymlink, Link: to}
	}
	dir := layertar.Entry{Path: "d", Type: layertar.TypeDir, Mode: 0o755}
	cases := []struct {
		name    string
		entries []layertar.Entry
		path    string
		want    error
	}{
		{"below a file", []layertar.Entry{file("f"), file("f/x")}, "f/x", errNotDir},
		{"loop", []layertar.Entry{sym("l", "l"), file("l/x")}, "l/x", errLinks},
		{"link to nothing", []layertar.Entry{hard("h", "none")}, "h", errNoTarget},
		{"link to a directory", []layertar.Entry{dir, hard("h", "d")}, "h", errDirTarget},
		{"link to itself through a link", []layertar.Entry{dir, sym("s", "d"), file("d/f"), hard("d/f", "s/f")}, "d/f", errSelfTarget},
		{"root is a file", []layertar.Entry{file("")}, "", errRootType},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := Merge([][]layertar.Entry{nil, c.entries})
			var me *MergeError
			if !errors.As(err, &me) || me.Path != c.path || me.Layer != 1 || !errors.Is(err, c.want) {
				t.Errorf("error %v, want layer 1, %q: %v", err, c.path, c.want)
			}
		})
	}
}

// TestMergeDropsOverlayXattrs: an overlay above the tree would obey them.
func TestMergeDropsOverlayXattrs(t *testing.T) {
	e := layertar.Entry{Path: "d", Type: layertar.TypeDir, Xattrs: []layertar.Xattr{
		{Name: "trusted.overlay.redirect", Value: []byte("/etc")}, {Name: "trusted.other", Value: []byte("kept")}}}
	root, err := Merge([][]layertar.Entry{{e}})
	if err != nil {
		t.Fatal(err)
	}
	want := []erofs.Xattr{{Name: "trusted.other", Value: []byte("kept")}}
	if d := cmp.Diff(want, root.Children[0].Inode.Xattrs); d != "" {
		t.Error(d)
	}
}

// TestMergeDeep: a deep tree costs no stack, a wide one no time.
func TestMergeDeep(t *testing.T) {
	deep := layertar.Entry{Path: strings.Repeat("d/", 1000) + "f", Type: layertar.TypeReg}
	if _, err := Merge([][]layertar.Entry{{deep}, {deep}}); err != nil {
		t.Fatal(err)
	}
}
