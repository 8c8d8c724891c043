package layertar_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/layertar"
	"github.com/thaw-project/thaw/internal/layertar/layertartest"
	"github.com/thaw-project/thaw/internal/testenv"
)

// sourceTree makes a directory for tar programs to pack.
func sourceTree(t *testing.T, root bool) string {
	t.Helper()
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	write := func(name string, data []byte) {
		t.Helper()
		must(os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		must(os.WriteFile(filepath.Join(dir, name), data, 0o644))
	}
	write("small", []byte("small"))
	write("empty", nil)
	write("block", layertartest.Fill(1, 512))
	write("big", layertartest.Fill(2, 1<<20+17))
	write("latin-\xe9", []byte("x"))
	write(strings.Repeat("d", 60)+"/"+strings.Repeat("e", 80)+"/"+strings.Repeat("f", 90), []byte("ustar prefix, or GNU and PAX long name"))
	must(os.Link(filepath.Join(dir, "small"), filepath.Join(dir, "small-link")))
	must(os.Symlink("/etc/passwd", filepath.Join(dir, "symlink")))
	must(os.Mkdir(filepath.Join(dir, "empty-dir"), 0o700))
	must(os.Chmod(filepath.Join(dir, "small"), 0o4755|os.ModeSetuid))
	must(os.Chtimes(filepath.Join(dir, "empty"), time.Time{}, time.Unix(-100, 5e8)))
	must(os.Chtimes(filepath.Join(dir, "block"), time.Time{}, time.Unix(1600000000, 123456789)))
	for name, at := range map[string][]int64{"sparse-few": {0, 1 << 20}, "sparse-tail": {4096}, "sparse-hole": nil, "sparse-many": nil} {
		f, err := os.Create(filepath.Join(dir, name))
		must(err)
		if name == "sparse-many" {
			for i := range int64(100) {
				at = append(at, i*64<<10)
			}
		}
		for _, o := range at {
			_, err := f.WriteAt(layertartest.Fill(int(o), 4096), o)
			must(err)
		}
		must(f.Truncate(8<<20 + 100))
		must(f.Close())
	}
	must(unix.Setxattr(filepath.Join(dir, "big"), "user.color", []byte("bl\x00ue"), 0))
	must(unix.Mkfifo(filepath.Join(dir, "fifo"), 0o644))
	if root {
		must(unix.Setxattr(filepath.Join(dir, "small"), "security.capability", []byte(layertartest.Capability), 0))
		must(unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
		must(os.Chown(filepath.Join(dir, "empty"), 1_500_000, 1_500_000))
	}
	return dir
}

func TestToolsTars(t *testing.T) {
	dir := sourceTree(t, os.Geteuid() == 0)
	for _, c := range []struct {
		tool string
		args []string
	}{
		{"tar", []string{"--format=v7", "--warning=no-all", "--exclude=./d*", "--exclude=./null", "--exclude=./fifo", "--exclude=./empty"}},
		{"tar", []string{"--format=ustar", "--exclude=./empty"}}, // no uid over 2^21, no time below 0
		{"tar", []string{"--format=oldgnu"}},
		{"tar", []string{"--format=gnu"}},
		{"tar", []string{"--format=gnu", "--sparse"}},
		{"tar", []string{"--format=posix", "--xattrs", "--xattrs-include=*"}},
		{"tar", []string{"--format=posix", "--sparse", "--sparse-version=0.0"}},
		{"tar", []string{"--format=posix", "--sparse", "--sparse-version=0.1"}},
		{"tar", []string{"--format=posix", "--sparse", "--sparse-version=1.0", "--xattrs", "--xattrs-include=*"}},
		{"bsdtar", []string{"--format=pax"}},
		{"bsdtar", []string{"--format=gnutar"}},
	} {
		t.Run(c.tool+" "+strings.Join(c.args, " "), func(t *testing.T) {
			testenv.NeedTool(t, c.tool)
			cmd := exec.Command(c.tool, append([]string{"-c", "-f", "-", "-C", dir}, append(c.args, ".")...)...)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			raw, err := cmd.Output()
			if err != nil && len(raw) < 1<<20 { // v7 cannot hold some, which it says and goes on
				t.Fatalf("%v: %s", err, stderr.String())
			}
			got, err := layertar.ReadAll(bytes.NewReader(raw), layertar.Limits{})
			if err != nil {
				t.Fatal(err)
			}
			want, err := judge(bytes.NewReader(raw), 64<<20)
			if err != nil {
				t.Fatal(err)
			}
			sameAsJudge(t, raw, got, want)
			// bsdtar looks for holes by itself, where its format can say them.
			args := strings.Join(c.args, " ")
			sparse := strings.Contains(args, "--sparse") || c.tool == "bsdtar" && strings.Contains(args, "pax")
			sameAsTree(t, dir, raw, got, sparse)
		})
	}
}

// sameAsTree compares files' bytes with the directory they came from.
func sameAsTree(t *testing.T, dir string, raw []byte, got []layertar.Entry, sparse bool) {
	t.Helper()
	files, sparseFiles := 0, 0
	for _, e := range got {
		if e.Type != layertar.TypeReg {
			continue
		}
		files++
		if e.Segments != nil {
			sparseFiles++
		}
		want, err := os.ReadFile(filepath.Join(dir, e.Path))
		if err != nil {
			t.Error(err)
		} else if !bytes.Equal(fileData(raw, &e), want) {
			t.Errorf("%q: data is not the file's", e.Path)
		}
	}
	if files < 8 || sparse != (sparseFiles >= 4) {
		t.Errorf("%d files, %d of them sparse", files, sparseFiles)
	}
}

// corpusLayers returns the blobs of the gzip layers of the corpus, smaller ones first.
func corpusLayers(t testing.TB) []string {
	t.Helper()
	blobs := filepath.Join(testenv.Corpus(t), "oci", "blobs", "sha256")
	var layers []string
	var walk func(hex string)
	walk = func(hex string) {
		var m struct {
			Manifests, Layers []struct{ MediaType, Digest string }
		}
		b, err := os.ReadFile(filepath.Join(blobs, hex))
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(b, &m); err != nil {
			t.Fatal(err)
		}
		for _, c := range m.Manifests {
			walk(strings.TrimPrefix(c.Digest, "sha256:"))
		}
		for _, l := range m.Layers {
			if strings.HasSuffix(l.MediaType, "gzip") {
				layers = append(layers, filepath.Join(blobs, strings.TrimPrefix(l.Digest, "sha256:")))
			}
		}
	}
	var index struct{ Manifests []struct{ Digest string } }
	b, err := os.ReadFile(filepath.Join(filepath.Dir(filepath.Dir(blobs)), "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &index); err != nil {
		t.Fatal(err)
	}
	for _, m := range index.Manifests {
		walk(strings.TrimPrefix(m.Digest, "sha256:"))
	}
	return layers
}

func gunzip(t testing.TB, name string) []byte {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// maxCorpusLayer (compressed bytes) keeps the test's memory and time small.
const maxCorpusLayer = 40 << 20

func TestCorpus(t *testing.T) {
	seen := map[string]bool{}
	for _, name := range corpusLayers(t) {
		if fi, err := os.Stat(name); err != nil || fi.Size() > maxCorpusLayer || seen[name] {
			continue
		}
		seen[name] = true
		t.Run(filepath.Base(name)[:12], func(t *testing.T) {
			raw := gunzip(t, name)
			want, err := judge(bytes.NewReader(raw), 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			got, err := scan(raw, 64<<10-7, layertar.Limits{})
			if err != nil {
				t.Fatal(err)
			}
			sameAsJudge(t, raw, got, want)
			t.Logf("%d entries, %d bytes", len(got), len(raw))
		})
	}
	if len(seen) == 0 {
		t.Fatal("corpus has no gzip layers")
	}
}

// benchTar is a tar of n files of fileBytes each; pax gives each a PAX header.
func benchTar(n, fileBytes int, pax bool) []byte {
	b := new(layertartest.Builder)
	data := layertartest.Fill(1, fileBytes)
	for i := range n {
		if pax {
			b.PAX("mtime", "1700000000.123456789", "atime", "1700000000.1", "SCHILY.xattr.user.x", "y")
		}
		b.File(fmt.Sprintf("usr/lib/python3/dist-packages/pkg%d/mod%d.py", i/100, i), data)
	}
	return b.End().Bytes()
}

func BenchmarkScanner(b *testing.B) {
	for _, c := range []struct {
		name      string
		n, bytes  int
		pax       bool
		writeSize int
	}{
		{"headers", 20_000, 0, false, 256 << 10},
		{"headers-pax", 20_000, 0, true, 256 << 10},
		{"headers-odd-writes", 20_000, 0, false, 1000},
		{"files-8K", 5_000, 8 << 10, false, 256 << 10},
		{"files-1M", 50, 1 << 20, false, 256 << 10},
	} {
		b.Run(c.name, func(b *testing.B) {
			raw := benchTar(c.n, c.bytes, c.pax)
			b.SetBytes(int64(len(raw)))
			b.ReportAllocs()
			for b.Loop() {
				entries := 0
				s := layertar.NewScanner(layertar.Limits{}, func(layertar.Entry) error { entries++; return nil })
				for p := raw; len(p) > 0; {
					k := min(c.writeSize, len(p))
					if _, err := s.Write(p[:k]); err != nil {
						b.Fatal(err)
					}
					p = p[k:]
				}
				if err := s.Close(); err != nil || entries != c.n {
					b.Fatal(err, entries)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(c.n), "ns/entry")
			b.ReportMetric(float64(c.n)*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
		})
	}
}
