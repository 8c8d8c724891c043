package layertar_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/thaw-project/thaw/internal/layertar"
	"github.com/thaw-project/thaw/internal/layertar/layertartest"
)

func allLayers() map[string][]byte {
	all := map[string][]byte{}
	for i, l := range layertartest.Everything() {
		all[fmt.Sprintf("everything-%d", i)] = l
	}
	for i, l := range layertartest.ThroughSymlinks() {
		all[fmt.Sprintf("symlinks-%d", i)] = l
	}
	return all
}

func TestEverythingIsWhatArchiveTarSees(t *testing.T) {
	for name, raw := range allLayers() {
		t.Run(name, func(t *testing.T) {
			want, err := judge(bytes.NewReader(raw), 4<<20)
			if err != nil {
				t.Fatal(err)
			}
			got, err := layertar.ReadAll(bytes.NewReader(raw), layertar.Limits{})
			if err != nil {
				t.Fatal(err)
			}
			sameAsJudge(t, raw, got, want)
		})
	}
}

func TestAnyChunkingGivesTheSame(t *testing.T) {
	for name, raw := range allLayers() {
		if name == "everything-0" {
			continue // below
		}
		want, err := scan(raw, len(raw), layertar.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range []int{1, 7, 511, 512, 513, 4096} {
			got, err := scan(raw, n, layertar.Limits{})
			if err != nil {
				t.Fatalf("%s by %d: %v", name, n, err)
			}
			if diff := gocmp.Diff(want, got); diff != "" {
				t.Errorf("%s by %d (-whole +pieces):\n%s", name, n, diff)
			}
		}
	}
	raw := layertartest.Everything()[0]
	want, err := scan(raw, len(raw), layertar.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{1, 333, 100_000} {
		got, err := scan(raw, n, layertar.Limits{})
		if err != nil {
			t.Fatalf("by %d: %v", n, err)
		}
		if diff := gocmp.Diff(want, got); diff != "" {
			t.Errorf("by %d (-whole +pieces):\n%s", n, diff)
		}
	}
}

func TestHostileIsRefused(t *testing.T) {
	for _, c := range layertartest.Hostile() {
		t.Run(c.Name, func(t *testing.T) {
			for _, n := range []int{len(c.Tar), 100} {
				got, err := scan(c.Tar, n, layertar.Limits{})
				var refused *layertar.EntryError
				if !errors.As(err, &refused) {
					t.Fatalf("by %d: error is %v, want an EntryError (entries %+v)", n, err, got)
				}
				if !strings.Contains(refused.Path, c.Entry) || refused.Reason == "" {
					t.Errorf("error is %v, want it to name %q", err, c.Entry)
				}
				if refused.OffsetHeader < 1024 && c.Name != "" {
					t.Errorf("error is at offset %d, which is the good entry", refused.OffsetHeader)
				}
				if len(err.Error()) > 3000 {
					t.Errorf("message of %d bytes", len(err.Error()))
				}
				if len(got) == 0 || got[0].Path != "good" {
					t.Errorf("good entry is missing: %+v", got)
				}
			}
			if _, err := layertar.ReadAll(bytes.NewReader(c.Tar), layertar.Limits{}); err == nil {
				t.Error("ReadAll has no error")
			}
		})
	}
}

func TestLimits(t *testing.T) {
	raw := new(layertartest.Builder).
		PAX("SCHILY.xattr.user.name", "value").File("a/b/c", []byte("xx")).
		Symlink("l", strings.Repeat("t", 50)).File("three", nil).File(".wh..wh.ignored", nil).End().Bytes()
	for _, c := range []struct {
		name   string
		limits layertar.Limits
		ok     bool
	}{
		{"defaults", layertar.DefaultLimits(), true},
		{"entries", layertar.Limits{Entries: 3}, false},
		{"entries just enough", layertar.Limits{Entries: 4}, true},
		{"total", layertar.Limits{TotalBytes: 4*128 + 5}, false},
		{"path", layertar.Limits{PathBytes: 4}, false},
		{"depth", layertar.Limits{Depth: 2}, false},
		{"depth just enough", layertar.Limits{Depth: 3}, true},
		{"meta", layertar.Limits{MetaBytes: 20}, false},
		{"xattrs", layertar.Limits{XattrBytes: 13}, false},
		{"xattrs just enough", layertar.Limits{XattrBytes: 14}, true},
		{"file", layertar.Limits{FileBytes: 1}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := layertar.ReadAll(bytes.NewReader(raw), c.limits)
			var refused *layertar.EntryError
			if c.ok && err != nil || !c.ok && !errors.As(err, &refused) {
				t.Errorf("error is %v, want ok %v", err, c.ok)
			}
		})
	}
}

func TestNames(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"a", "a"}, {"./a", "a"}, {".//a", "a"}, {"././a", "a"}, {"a/", "a"}, {"a//b", "a/b"}, {"a/./b", "a/b"},
		{"./", ""}, {".", ""}, {"/", ""}, {"//", ""}, {"/./", ""}, {"a/.", "a"}, {"...", "..."}, {"a/..b", "a/..b"}, {"..a/b..", "..a/b.."},
		{"a\\..\\b", "a\\..\\b"}, {" ", " "}, {strings.Repeat("x/", 900) + "y", strings.Repeat("x/", 900) + "y"},
		{strings.Repeat("n", 255), strings.Repeat("n", 255)},
	} {
		b := new(layertartest.Builder).PAX("path", c.in).Dir("x").End()
		got, err := layertar.ReadAll(bytes.NewReader(b.Bytes()), layertar.Limits{})
		if err != nil || len(got) != 1 || got[0].Path != c.want {
			t.Errorf("%q: %+v, %v, want path %q", c.in, got, err, c.want)
		}
	}
	b := new(layertartest.Builder).Dir("/a").File("//a/./f", nil).Hardlink("/a/l", "/a/f").Whiteout("/b").Symlink("/s", "/../x").End()
	got, err := layertar.ReadAll(bytes.NewReader(b.Bytes()), layertar.Limits{AbsoluteNames: true})
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	for _, e := range got {
		paths = append(paths, e.Type.String()+" "+e.Path+" "+e.Link)
	}
	if diff := gocmp.Diff([]string{"directory a ", "file a/f ", "hardlink a/l a/f", "whiteout b ", "symlink s /../x"}, paths); diff != "" {
		t.Errorf("absolute names (-want +got):\n%s", diff)
	}
}

func TestSparseSegments(t *testing.T) {
	part := func(off int64, n int) layertartest.Part {
		return layertartest.Part{Offset: off, Data: layertartest.Fill(1, n)}
	}
	const at = 512 // of the data behind the old format's header
	for _, c := range []struct {
		name  string
		size  int64
		parts []layertartest.Part
		want  []layertar.Segment
	}{
		{"whole", 700, []layertartest.Part{part(0, 700)}, nil},
		{"empty", 0, nil, nil},
		{"only a hole", 1 << 40, nil, []layertar.Segment{{OffsetTar: at}}},
		{"hole first", 1536, []layertartest.Part{part(512, 1024)}, []layertar.Segment{{512, 1024, at}}},
		{"hole last", 1500, []layertartest.Part{part(0, 512), part(1500, 0)}, []layertar.Segment{{0, 512, at}}},
		{"two", 5000, []layertartest.Part{part(0, 512), part(4608, 392)}, []layertar.Segment{{0, 512, at}, {4608, 392, at + 512}}},
		{"neighbours", 4096, []layertartest.Part{part(0, 100), part(100, 412), part(512, 512)}, []layertar.Segment{{0, 1024, at}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			raw := new(layertartest.Builder).SparseGNU("f", c.size, c.parts).End().Bytes()
			got, err := layertar.ReadAll(bytes.NewReader(raw), layertar.Limits{})
			if err != nil {
				t.Fatal(err)
			}
			if diff := gocmp.Diff(c.want, got[0].Segments); diff != "" || got[0].SizeBytes != c.size || got[0].OffsetTar != at {
				t.Errorf("entry %+v (-want +got):\n%s", got[0], diff)
			}
		})
	}
}

func TestOffsetHeaderIsThatOfTheGroup(t *testing.T) {
	b := new(layertartest.Builder).File("a", []byte("x"))
	at := int64(b.Len())
	b.PAX("mtime", "1").LongName("b").LongLink("x").File("b", nil)
	b.PAXType('g', "comment", "c")
	after := int64(b.Len())
	b.PAX("mtime", "2").PAXType('g', "comment", "drops what came before")
	last := int64(b.Len())
	b.File("c", nil).End()
	got, err := layertar.ReadAll(bytes.NewReader(b.Bytes()), layertar.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if got[0].OffsetHeader != 0 || got[1].OffsetHeader != at || got[2].OffsetHeader != last || after == last {
		t.Errorf("headers at %d %d %d, want 0 %d %d", got[0].OffsetHeader, got[1].OffsetHeader, got[2].OffsetHeader, at, last)
	}
	if got[1].ModTimeSec != 1 || got[2].ModTimeSec != layertartest.ModTime {
		t.Errorf("times are %d and %d", got[1].ModTimeSec, got[2].ModTimeSec)
	}
}

func TestMemoryIsBounded(t *testing.T) {
	header := new(layertartest.Builder).PAX("comment", strings.Repeat("x", 1<<20-100)).Bytes()
	s := layertar.NewScanner(layertar.Limits{}, func(layertar.Entry) error { return nil })
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 200 {
		if _, err := s.Write(header); err != nil {
			t.Fatal(err)
		}
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 4<<20 {
		t.Errorf("%d bytes were allocated for 200 headers of 1 MiB", n)
	}
}

func TestAufsLinksBecomeFiles(t *testing.T) {
	raw := new(layertartest.Builder).Dir(".wh..wh.plnk").File(".wh..wh.plnk/1.2", []byte("shared")).
		Hardlink("a", ".wh..wh.plnk/1.2").Hardlink("b", ".wh..wh.plnk//1.2").End().Bytes()
	got, err := layertar.ReadAll(bytes.NewReader(raw), layertar.Limits{})
	if err != nil || len(got) != 2 {
		t.Fatalf("%+v, %v", got, err)
	}
	for i, name := range []string{"a", "b"} {
		if e := got[i]; e.Path != name || e.Type != layertar.TypeReg || string(fileData(raw, &e)) != "shared" {
			t.Errorf("entry %+v", e)
		}
	}
}

func TestEnds(t *testing.T) {
	file := new(layertartest.Builder).File("f", []byte("data")).Bytes()
	zero := make([]byte, 2048)
	for _, c := range []struct {
		name string
		raw  []byte
		ok   bool
	}{
		{"nothing", nil, true},
		{"only the end", zero[:1024], true},
		{"no end", file, true},
		{"half an end", append(bytes.Clone(file), zero[:512]...), true},
		{"rest after the end", append(append(bytes.Clone(file), zero...), "garbage"...), true},
		{"no padding", file[:512+4], true},
		{"half the padding", file[:512+100], true},
		{"no data", file[:512], false},
		{"half a header", file[:100], false},
		{"half a zero block", append(bytes.Clone(file), zero[:100]...), false},
	} {
		_, err := layertar.ReadAll(iotest.OneByteReader(bytes.NewReader(c.raw)), layertar.Limits{})
		if c.ok && err != nil || !c.ok && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: error %v, want ok %v", c.name, err, c.ok)
		}
		if _, judgeErr := judge(bytes.NewReader(c.raw), 1<<20); (judgeErr == nil) != c.ok {
			t.Errorf("%s: archive/tar says %v", c.name, judgeErr)
		}
	}
}

func TestErrorsStick(t *testing.T) {
	raw := new(layertartest.Builder).File("a", nil).File("b", nil).End().Bytes()
	stop := errors.New("stop")
	calls := 0
	s := layertar.NewScanner(layertar.Limits{}, func(layertar.Entry) error { calls++; return stop })
	if n, err := s.Write(raw); err != stop || n != 512 {
		t.Errorf("Write: %d, %v", n, err)
	}
	if n, err := s.Write(raw); err != stop || n != 0 || calls != 1 {
		t.Errorf("second Write: %d, %v, %d calls", n, err, calls)
	}
	if err := s.Close(); err != stop {
		t.Errorf("Close: %v", err)
	}
	s = layertar.NewScanner(layertar.Limits{}, func(layertar.Entry) error { return nil })
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Errorf("Close of nothing: %v", err)
	}
	if _, err := s.Write(raw); err == nil {
		t.Error("Write after Close: no error")
	}
	broken := iotest.ErrReader(stop)
	if _, err := layertar.ReadAll(broken, layertar.Limits{}); !errors.Is(err, stop) {
		t.Errorf("ReadAll: %v", err)
	}
}
