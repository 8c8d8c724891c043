package index

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"

	"github.com/thaw-project/thaw/internal/erofs"
	"github.com/thaw-project/thaw/internal/inflate"
	"github.com/thaw-project/thaw/internal/layertar"
	"github.com/thaw-project/thaw/internal/layertar/layertartest"
)

var update = flag.Bool("update", false, "write the golden files")

// compressed returns a tar in all the forms that layers come in.
func compressed(t testing.TB, tar []byte) map[string][]byte {
	t.Helper()
	z := func(parts int) []byte {
		var b bytes.Buffer
		for i := range parts {
			w, err := zstd.NewWriter(&b)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(tar[len(tar)*i/parts : len(tar)*(i+1)/parts]); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
		}
		return b.Bytes()
	}
	var stored bytes.Buffer
	w, err := gzip.NewWriterLevel(&stored, gzip.NoCompression)
	if err != nil {
		t.Fatal(err)
	}
	w.Write(tar)
	w.Close()
	return map[string][]byte{
		"plain": tar, "gzip": layertartest.Gzip(tar, 1), "gzip-members": layertartest.Gzip(tar, 7),
		"gzip-stored": stored.Bytes(), "zstd-frame": z(1), "zstd-frames": z(5),
	}
}

// testTar is a small layer of a few spans.
func testTar() []byte {
	b := new(layertartest.Builder)
	b.Dir("dir").File("dir/a", layertartest.Fill(1, 3<<20)).File("dir/b", layertartest.Fill(2, 777))
	b.PAX("SCHILY.xattr.user.x", "y").File("dir/c", []byte("c")).Hardlink("dir/d", "dir/c").Symlink("dir/e", "../dir/a")
	b.SparseGNU("sparse", 1<<20, []layertartest.Part{{Offset: 4096, Data: layertartest.Fill(3, 512)}})
	return b.End().Bytes()
}

func TestBuildLayerFormats(t *testing.T) {
	tar := testTar()
	want, err := layertar.ReadAll(bytes.NewReader(tar), layertar.DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	for name, blob := range compressed(t, tar) {
		t.Run(name, func(t *testing.T) {
			var seen bytes.Buffer
			in := inputFor(blob, tar)
			in.Span = func(i int, data []byte) error {
				if int64(seen.Len()) != int64(i)*SpanBytes {
					t.Errorf("span %d comes at byte %d", i, seen.Len())
				}
				seen.Write(data)
				return nil
			}
			l, err := BuildLayer(t.Context(), bytes.NewReader(blob), in)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(seen.Bytes(), tar) {
				t.Error("spans are not the tar")
			}
			if d := cmp.Diff(want, l.Entries); d != "" {
				t.Error(d)
			}
			b, at, err := l.Encode()
			if err != nil {
				t.Fatal(err)
			}
			again, err := DecodeLayer(b)
			if err != nil {
				t.Fatal(err)
			}
			decodeSpansOf(t, again.LayerMeta, again.Spans, b[at:], blob, tar)
		})
	}
}

// decodeSpansOf decodes every span on its own and compares it with the tar.
func decodeSpansOf(t *testing.T, m LayerMeta, spans []Span, windows, blob, tar []byte) {
	t.Helper()
	if m.TarBytes != int64(len(tar)) || m.SpanCount() != int64(len(spans)) {
		t.Fatalf("%d bytes in %d spans, want %d bytes", m.TarBytes, len(spans), len(tar))
	}
	var d inflate.Decoder
	for i := len(spans) - 1; i >= 0; i-- {
		s := spans[i]
		p, err := s.Point(i, windows[s.OffsetWindow:][:s.BytesWindow])
		if err != nil {
			t.Fatal(err)
		}
		want := tar[i*SpanBytes : min(len(tar), (i+1)*SpanBytes)]
		got := make([]byte, len(want))
		if _, err := d.Decode(got, p, blob[s.OffsetCompressed:][:s.BytesCompressed]); err != nil {
			t.Fatalf("span %d: %v", i, err)
		}
		if !bytes.Equal(got, want) || sha256.Sum256(got) != s.Digest {
			t.Errorf("span %d differs", i)
		}
	}
}

func TestBuildLayerErrors(t *testing.T) {
	tar := testTar()
	blob := layertartest.Gzip(tar, 1)
	t.Run("diffID", func(t *testing.T) {
		in := inputFor(blob, tar)
		in.DiffID = digest.FromString("other")
		_, err := BuildLayer(t.Context(), bytes.NewReader(blob), in)
		var de *DiffIDError
		if !errors.As(err, &de) || de.Blob != in.Blob || de.Want != in.DiffID || de.Have != digest.FromBytes(tar) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("cut", func(t *testing.T) {
		_, err := BuildLayer(t.Context(), bytes.NewReader(blob[:len(blob)/2]), inputFor(blob, tar))
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("reader", func(t *testing.T) {
		r := io.MultiReader(bytes.NewReader(blob[:len(blob)/2]), errReader{})
		if _, err := BuildLayer(t.Context(), r, inputFor(blob, tar)); !errors.Is(err, errTest) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("sink", func(t *testing.T) {
		in := inputFor(blob, tar)
		in.Span = func(i int, _ []byte) error { return errTest }
		if _, err := BuildLayer(t.Context(), bytes.NewReader(blob), in); !errors.Is(err, errTest) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		in := inputFor(blob, tar)
		in.Span = func(int, []byte) error { cancel(); return nil }
		if _, err := BuildLayer(ctx, bytes.NewReader(blob), in); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("bomb", func(t *testing.T) {
		in := inputFor(blob, tar)
		in.MaxBytes = 1 << 20
		if _, err := BuildLayer(t.Context(), bytes.NewReader(blob), in); !errors.Is(err, inflate.ErrTooLarge) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("hostile tar", func(t *testing.T) {
		bad := new(layertartest.Builder).File("../out", nil).End().Bytes()
		_, err := BuildLayer(t.Context(), bytes.NewReader(bad), inputFor(bad, bad))
		var ee *layertar.EntryError
		if !errors.As(err, &ee) || !strings.Contains(err.Error(), "../out") || !strings.Contains(err.Error(), inputFor(bad, bad).Blob.String()) {
			t.Errorf("error %v names not both layer and entry", err)
		}
	})
}

var errTest = errors.New("test")

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errTest }

// TestNotForEROFS: what containerd would run and EROFS cannot hold is refused
// with its name, never dropped in silence.
func TestNotForEROFS(t *testing.T) {
	cut := new(layertartest.Builder).File("dir/last", []byte("no padding")).Bytes()
	cut = cut[:512+10]
	xattr := new(layertartest.Builder).PAX("SCHILY.xattr.user.big", strings.Repeat("v", 1<<16)).File("dir/big", nil).End().Bytes()
	for name, c := range map[string]struct {
		tar        []byte
		path, want string
	}{
		"last block cut": {cut, "dir/last", "padding"},
		"large xattr":    {xattr, "dir/big", "user.big"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Assemble(blobsOf(t, [][]byte{c.tar}))
			if err == nil || !strings.Contains(err.Error(), c.path) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v does not say %q of %q", err, c.want, c.path)
			}
		})
	}
	// A cut last block is no harm where it holds no file's data.
	if _, err := Assemble(blobsOf(t, [][]byte{append(testTar(), "tail"...)})); err != nil {
		t.Error(err)
	}
}

// TestEmptyLayer: no entries, or no bytes at all.
func TestEmptyLayer(t *testing.T) {
	for name, tar := range map[string][]byte{"end only": make([]byte, 1024), "nothing": {}} {
		t.Run(name, func(t *testing.T) {
			tars := [][]byte{tar, testTar(), tar}
			head, err := Assemble(blobsOf(t, tars))
			if err != nil {
				t.Fatal(err)
			}
			b, err := head.Encode()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := DecodeImage(b); err != nil {
				t.Error(err)
			}
		})
	}
}

var compareLayers = cmp.Options{cmpopts.EquateEmpty(), cmp.AllowUnexported(Layer{}, LayerMeta{}, section{}, Image{}, ImageLayer{})}

// TestLayerRoundTrip has every kind of entry, and is the same each time.
func TestLayerRoundTrip(t *testing.T) {
	for i, tar := range append(layertartest.Everything(), layertartest.ThroughSymlinks()...) {
		blob := layertartest.Gzip(tar, 3)
		var first []byte
		for range 2 {
			l, err := BuildLayer(t.Context(), bytes.NewReader(blob), inputFor(blob, tar))
			if err != nil {
				t.Fatal(err)
			}
			b, at, err := l.Encode()
			if err != nil {
				t.Fatal(err)
			}
			again, err := OpenLayer(b)
			if err != nil {
				t.Fatalf("layer %d: %v", i, err)
			}
			if d := cmp.Diff(l, again.Layer, compareLayers); d != "" {
				t.Errorf("layer %d changed (-before +after):\n%s", i, d)
			}
			if again.OffsetWindows != at || again.Digest != digest.FromBytes(b) {
				t.Errorf("windows at %d, want %d", again.OffsetWindows, at)
			}
			if first != nil && !bytes.Equal(first, b) {
				t.Errorf("layer %d: two builds differ", i)
			}
			first = b
		}
	}
}

func TestHeadRoundTrip(t *testing.T) {
	tars := [][]byte{testTar(), layertartest.ThroughSymlinks()[0], layertartest.ThroughSymlinks()[1]}
	var first []byte
	for range 2 {
		head, err := Assemble(blobsOf(t, tars))
		if err != nil {
			t.Fatal(err)
		}
		b, err := head.Encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := DecodeImage(b)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(head, again, compareLayers); d != "" {
			t.Errorf("head changed (-before +after):\n%s", d)
		}
		if first != nil && !bytes.Equal(first, b) {
			t.Error("two heads differ")
		}
		first = b
	}
}

// TestUnknownSurvives: what a later version adds is written again.
func TestUnknownSurvives(t *testing.T) {
	blobs := blobsOf(t, [][]byte{testTar()})
	newer := section{kind: 77, encoding: 9, rawBytes: 5, stored: []byte("later")}
	l := *blobs[0].Layer
	l.unknown = []section{newer}
	l.extra = map[string]json.RawMessage{"new": json.RawMessage(`{"a":[1,2]}`)}
	lb, err := EncodeLayer(&l)
	if err != nil {
		t.Fatal(err)
	}
	l2, err := DecodeLayer(lb.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	again, _, err := l2.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(lb.Bytes, again) || !bytes.Contains(again, []byte("later")) || !bytes.Contains(again, []byte(`"new":{"a":[1,2]}`)) {
		t.Error("the layer's unknown parts are lost")
	}
	head, err := Assemble([]*LayerBlob{lb})
	if err != nil {
		t.Fatal(err)
	}
	head.unknown = []section{newer}
	head.extra = map[string]json.RawMessage{"bundle": json.RawMessage(`"x"`)}
	head.Layers[0].extra = map[string]json.RawMessage{"soci": json.RawMessage(`7`)}
	b, err := head.Encode()
	if err != nil {
		t.Fatal(err)
	}
	h2, err := DecodeImage(b)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(head, h2, compareLayers); d != "" {
		t.Error(d)
	}
}

// TestGolden fails when the bytes of the format change. That is a new version,
// or a new compressor: then -update, and say so in the changelog.
func TestGolden(t *testing.T) {
	tar := new(layertartest.Builder).Dir("dir").File("dir/a", layertartest.Fill(1, SpanBytes)).Hardlink("dir/b", "dir/a").End().Bytes()
	lb := blobsOf(t, [][]byte{tar})[0]
	head, err := Assemble([]*LayerBlob{lb})
	if err != nil {
		t.Fatal(err)
	}
	b, err := head.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for name, got := range map[string][]byte{"layer": lb.Bytes, "head": b} {
		path := filepath.Join("testdata", name+".golden")
		if *update {
			if err := os.MkdirAll("testdata", 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s differs from %s", name, path)
		}
	}
}

// TestCheckFiles: every lie about a file is found, and named.
func TestCheckFiles(t *testing.T) {
	blobs := blobsOf(t, [][]byte{testTar()})
	head, err := Assemble(blobs)
	if err != nil {
		t.Fatal(err)
	}
	truth := [][]layertar.Entry{blobs[0].Layer.Entries}
	if err := head.CheckFiles(truth); err != nil {
		t.Fatal(err)
	}
	root := func() *erofs.Inode {
		r, err := Merge(truth)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	file := func(r *erofs.Inode, path string) *erofs.Dirent {
		var d *erofs.Dirent
		for name := range strings.SplitSeq(path, "/") {
			for i := range r.Children {
				if r.Children[i].Name == name {
					d = &r.Children[i]
				}
			}
			r = d.Inode
		}
		return d
	}
	for name, c := range map[string]struct {
		path string
		lie  func(r *erofs.Inode)
	}{
		"mode":   {"dir/a", func(r *erofs.Inode) { file(r, "dir/a").Inode.Mode |= 0o4000 }},
		"owner":  {"dir/b", func(r *erofs.Inode) { file(r, "dir/b").Inode.UID = 1 }},
		"time":   {"dir", func(r *erofs.Inode) { file(r, "dir").Inode.MtimeNsec++ }},
		"offset": {"dir/b", func(r *erofs.Inode) { file(r, "dir/b").Inode.Extents[0].OffsetDevice -= 512 }},
		"size":   {"dir/b", func(r *erofs.Inode) { file(r, "dir/b").Inode.SizeBytes--; file(r, "dir/b").Inode.Extents[0].Length-- }},
		"name":   {"dir/b", func(r *erofs.Inode) { file(r, "dir/b").Name = "z" }},
		"extra": {"dir/x", func(r *erofs.Inode) {
			d := file(r, "dir").Inode
			d.Children = append(d.Children, erofs.Dirent{Name: "x", Inode: &erofs.Inode{Mode: 0o100644}})
		}},
		"xattr":    {"dir/c", func(r *erofs.Inode) { file(r, "dir/c").Inode.Xattrs = nil }},
		"target":   {"dir/e", func(r *erofs.Inode) { file(r, "dir/e").Inode.Link = "../dir/b" }},
		"group":    {"dir/d", func(r *erofs.Inode) { c := *file(r, "dir/c").Inode; file(r, "dir/d").Inode = &c }},
		"hole":     {"sparse", func(r *erofs.Inode) { file(r, "sparse").Inode.Extents = nil }},
		"root":     {"", func(r *erofs.Inode) { r.Mode |= 0o22 }},
		"no such?": {"dir", func(r *erofs.Inode) { r.Children = r.Children[1:] }},
	} {
		t.Run(name, func(t *testing.T) {
			r := root()
			// Children are in no order yet.
			for i := range r.Children {
				if r.Children[i].Name == "dir" {
					r.Children[0], r.Children[i] = r.Children[i], r.Children[0]
				}
			}
			c.lie(r)
			b, err := erofs.Write(r, []erofs.Device{{Tag: blobs[0].DiffID.Encoded(), SizeBytes: blobs[0].TarBytes}})
			if err != nil {
				t.Fatal(err)
			}
			err = NewImage(head.Layers, b).CheckFiles(truth)
			var lie *LieError
			if !errors.As(err, &lie) || lie.Path != c.path || lie.Reason == "" {
				t.Errorf("error %v, want one about %q", err, c.path)
			}
		})
	}
	t.Run("device", func(t *testing.T) {
		b, err := erofs.Write(root(), []erofs.Device{{Tag: blobs[0].DiffID.Encoded(), SizeBytes: blobs[0].TarBytes + 4096}})
		if err != nil {
			t.Fatal(err)
		}
		var lie *LieError
		if err := NewImage(head.Layers, b).CheckFiles(truth); !errors.As(err, &lie) {
			t.Errorf("error %v", err)
		}
	})
}

// sectionAt returns the offset of the record of a section in the table.
func sectionAt(t testing.TB, b []byte, kind uint32) int {
	t.Helper()
	for at := headerBytes; at < len(b); at += sectionBytes {
		if binary.LittleEndian.Uint32(b[at:]) == kind {
			return at
		}
	}
	t.Fatalf("no section %d", kind)
	return 0
}
