package erofs

import (
	"archive/tar"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/testenv"
)

// distro is a tree with the shape of a distribution's: directories of a dozen
// files, some links, times that packages share, five layers.
func distro(files int) (*Inode, []Device) {
	rng := newRand(7)
	devices := make([]Device, 5)
	stems := strings.Fields("lib core init util test main config data parse index http json types version base common model")
	root := dir()
	dirs := []*Inode{root}
	for i := range files {
		parent := dirs[rng.IntN(len(dirs))]
		in := &Inode{MtimeSec: 1_700_000_000 + int64(rng.IntN(200))*86_413}
		name := fmt.Sprintf("%s_%s%d", stems[rng.IntN(len(stems))], stems[rng.IntN(len(stems))], i%100)
		switch k := rng.IntN(100); {
		case k < 9:
			in.Mode = ModeDir | 0o755
			dirs = append(dirs, in)
		case k < 13:
			in.Mode, in.Link, name = ModeSymlink|0o777, "../lib/"+name+".so.1", name+".so"
		default:
			in.Mode, in.SizeBytes = ModeRegular|0o644, int64(rng.ExpFloat64()*12_000)
			name += []string{".py", ".pyc", ".h", ".js"}[rng.IntN(4)]
			layer := rng.IntN(len(devices))
			d := &devices[layer]
			if d.SizeBytes += 512; in.SizeBytes > 0 {
				in.Extents = []Extent{{0, in.SizeBytes, uint16(layer + 1), d.SizeBytes}}
			}
			d.SizeBytes = roundUp(d.SizeBytes+in.SizeBytes, blockSize)
		}
		parent.Children = append(parent.Children, Dirent{fmt.Sprintf("%s-%d", name, i), in})
	}
	return root, devices
}

func reportSizes(b *testing.B, img []byte, files int) {
	b.Helper()
	b.ReportMetric(float64(len(img))/float64(files), "B/file")
	for name, level := range map[string]zstd.EncoderLevel{"zstd-default-B/file": zstd.SpeedDefault, "zstd-better-B/file": zstd.SpeedBetterCompression} {
		enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(level), zstd.WithEncoderConcurrency(1))
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(len(enc.EncodeAll(img, nil)))/float64(files), name)
	}
}

func BenchmarkWrite50k(b *testing.B) {
	benchmarkWrite(b, 50_000, func() (*Inode, []Device) { return distro(50_000) })
}

// BenchmarkWriteCorpus writes the largest image of the corpus.
func BenchmarkWriteCorpus(b *testing.B) {
	root, devices, names := corpusTree(b, "python-ml")
	benchmarkWrite(b, names, func() (*Inode, []Device) { return root, devices })
}

func benchmarkWrite(b *testing.B, files int, tree func() (*Inode, []Device)) {
	root, devices := tree()
	b.ReportAllocs()
	var img []byte
	for b.Loop() {
		var err error
		if img, err = Write(root, devices); err != nil {
			b.Fatal(err)
		}
	}
	reportSizes(b, img, files)
}

func BenchmarkWalk50k(b *testing.B) {
	bench50k(b, func(img *Image) error { return img.Walk(func(string, *Info) error { return nil }) })
}

func BenchmarkCheck50k(b *testing.B) { bench50k(b, (*Image).Check) }

// BenchmarkRedirect50k has half of the files on second devices.
func BenchmarkRedirect50k(b *testing.B) {
	bench50k(b, func(img *Image) error {
		_, err := Redirect(img.data, func(e Extent) bool { return e.OffsetDevice>>blockBits%2 == 0 })
		return err
	})
}

func bench50k(b *testing.B, walk func(*Image) error) {
	root, devices := distro(50_000)
	img := mustWrite(b, root, devices)
	b.ReportAllocs()
	for b.Loop() {
		im, err := Open(img)
		if err != nil {
			b.Fatal(err)
		}
		if err := walk(im); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkMount57k mounts and unmounts; find57k also visits every inode, with
// nothing of the file system in memory but the image's pages.
func BenchmarkMount57k(b *testing.B) {
	testenv.NeedRoot(b)
	root, devices := distro(57_000)
	tmp := b.TempDir()
	meta := filepath.Join(tmp, "meta")
	if err := os.WriteFile(meta, mustWrite(b, root, devices), 0o600); err != nil {
		b.Fatal(err)
	}
	var paths []string
	for i, d := range devices {
		paths = append(paths, filepath.Join(tmp, fmt.Sprint(i)))
		f, err := os.Create(paths[i])
		if err != nil {
			b.Fatal(err)
		}
		if err := f.Truncate(d.SizeBytes); err != nil {
			b.Fatal(err)
		}
		f.Close()
	}
	for _, find := range []bool{false, true} {
		b.Run(map[bool]string{false: "mount", true: "find"}[find], func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				mnt := b.TempDir()
				b.StartTimer()
				attach(b, meta, paths, mnt)
				if find {
					walkTree(b, mnt)
				}
				b.StopTimer()
				if err := unix.Unmount(mnt, 0); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}

func walkTree(b *testing.B, mnt string) {
	b.Helper()
	err := filepath.Walk(mnt, func(_ string, _ os.FileInfo, err error) error { return err })
	if err != nil {
		b.Fatal(err)
	}
}

// corpusTree merges the layers of a real image, but for whiteouts, and returns
// the number of names in it.
func corpusTree(t testing.TB, name string) (*Inode, []Device, int) {
	t.Helper()
	blobs := filepath.Join(testenv.Corpus(t), "oci")
	type descriptor struct {
		Digest      string
		Annotations map[string]string
	}
	var index struct{ Manifests, Layers []descriptor }
	load := func(p string) {
		b, err := os.ReadFile(filepath.Join(blobs, p))
		if err == nil {
			err = json.Unmarshal(b, &index)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	blob := func(d descriptor) string { return filepath.Join("blobs", strings.Replace(d.Digest, ":", "/", 1)) }
	load("index.json")
	for _, m := range index.Manifests {
		if m.Annotations["org.opencontainers.image.ref.name"] == name {
			load(blob(m))
		}
	}
	if len(index.Layers) == 0 {
		t.Skipf("no image %s in the corpus", name)
	}
	tree := map[string]*Inode{".": dir()}
	var devices []Device
	for i, l := range index.Layers {
		devices = append(devices, Device{l.Digest[7:], addLayer(t, tree, filepath.Join(blobs, blob(l)), uint16(i+1))})
	}
	for p, in := range tree {
		if p == "." {
			continue
		}
		if parent := tree[path.Dir(p)]; parent != nil && parent.Mode&ModeType == ModeDir {
			parent.Children = append(parent.Children, Dirent{path.Base(p), in})
		}
	}
	return tree["."], devices, len(tree)
}

type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

func addLayer(t testing.TB, tree map[string]*Inode, file string, device uint16) int64 {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	gz, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	c := &counter{r: gz}
	for tr := tar.NewReader(c); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		p := path.Clean(h.Name)
		in := &Inode{Mode: uint32(h.Mode) & 0o7777, UID: uint32(h.Uid), GID: uint32(h.Gid), MtimeSec: h.ModTime.Unix(), MtimeNsec: uint32(h.ModTime.Nanosecond())}
		switch h.Typeflag {
		case tar.TypeDir:
			in.Mode |= ModeDir
		case tar.TypeSymlink:
			in.Mode, in.Link = in.Mode|ModeSymlink, h.Linkname
		case tar.TypeLink:
			in = tree[path.Clean(h.Linkname)]
		case tar.TypeReg:
			in.Mode, in.SizeBytes = in.Mode|ModeRegular, h.Size
			if h.Size > 0 {
				in.Extents = []Extent{{0, h.Size, device, c.n}}
			}
		default:
			continue
		}
		if in != nil {
			tree[p] = in
		}
	}
	io.Copy(io.Discard, c)
	return c.n
}
