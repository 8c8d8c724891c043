package mounttest

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/erofs"
	"github.com/thaw-project/thaw/internal/mount"
)

// SpanBytes is the unit in which a test Source hydrates.
const SpanBytes = 64 << 10

// Layer is a layer with known contents whose file starts as one hole.
type Layer struct {
	Blob  digest.Digest
	Data  []byte // what the file holds once it is complete
	Path  string
	First *os.File

	have []atomic.Bool
}

// Source is a mount.Handler that hydrates from memory. Its hooks are set before it is used, or under a test's own order.
type Source struct {
	// OnFetch, if set, is called before a range is written; its error is Fetch's.
	OnFetch atomic.Pointer[func(blob digest.Digest, off, n int64) error]
	// OnHave, if set, is called by Have.
	OnHave atomic.Pointer[func()]

	Haves, Fetches atomic.Int64

	mu     sync.Mutex // guards layers
	layers map[digest.Digest]*Layer
}

// Add lets the source serve more layers.
func (s *Source) Add(layers ...*Layer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	clone := maps.Clone(s.layers)
	if clone == nil {
		clone = map[digest.Digest]*Layer{}
	}
	for _, layer := range layers {
		clone[layer.Blob] = layer
	}
	s.layers = clone
}

func (s *Source) layer(blob digest.Digest) *Layer {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.layers[blob]
}

// Have implements mount.Handler.
func (s *Source) Have(blob digest.Digest, off, n int64) bool {
	s.Haves.Add(1)
	if hook := s.OnHave.Load(); hook != nil {
		(*hook)()
	}
	layer := s.layer(blob)
	if layer == nil {
		return false
	}
	for i := off / SpanBytes; i*SpanBytes < off+n; i++ {
		if !layer.have[i].Load() {
			return false
		}
	}
	return true
}

// Fetch implements mount.Handler.
func (s *Source) Fetch(ctx context.Context, blob digest.Digest, off, n int64) error {
	s.Fetches.Add(1)
	if hook := s.OnFetch.Load(); hook != nil {
		if err := (*hook)(blob, off, n); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	layer := s.layer(blob)
	if layer == nil {
		return fmt.Errorf("unknown layer %s", blob)
	}
	return layer.hydrate(off, n)
}

func (l *Layer) hydrate(off, n int64) error {
	for i := off / SpanBytes; i*SpanBytes < off+n; i++ {
		start, end := i*SpanBytes, min((i+1)*SpanBytes, int64(len(l.Data)))
		if _, err := l.First.WriteAt(l.Data[start:end], start); err != nil {
			return err
		}
		l.have[i].Store(true)
	}
	return nil
}

// Complete hydrates the rest of the layer and syncs it.
func (l *Layer) Complete() error {
	if err := l.hydrate(0, int64(len(l.Data))); err != nil {
		return err
	}
	return l.First.Sync()
}

// Mountable is the layer as a Mounter wants it.
func (l *Layer) Mountable() mount.Layer {
	return mount.Layer{Blob: l.Blob, Path: l.Path, File: l.First, SizeBytes: int64(len(l.Data))}
}

// NewLayer makes a layer file of that content in dir, with nothing in it.
func NewLayer(t testing.TB, dir string, data []byte) *Layer {
	t.Helper()
	blob := digest.FromBytes(data)
	l := &Layer{Blob: blob, Data: data, Path: filepath.Join(dir, blob.Encoded()), have: make([]atomic.Bool, len(data)/SpanBytes+1)}
	var err error
	if l.First, err = os.OpenFile(l.Path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.First.Close() })
	if err := l.First.Truncate(int64(len(data))); err != nil {
		t.Fatal(err)
	}
	return l
}

// File is one file of an Image.
type File struct {
	Name string
	Mode uint32
	Data []byte
}

// Image is a metadata image over layers of its own.
type Image struct {
	Metadata string
	Layers   []*Layer
	Files    []File
}

// NewImage makes an image with the files given, dealt out over a number of layers.
func NewImage(t testing.TB, layers int, files []File) *Image {
	t.Helper()
	dir := t.TempDir()
	image := &Image{Metadata: filepath.Join(dir, "metadata"), Files: files}
	tars := make([]bytes.Buffer, layers)
	root := &erofs.Inode{Mode: unix.S_IFDIR | 0o755}
	for i, file := range files {
		tar := &tars[i%layers]
		tar.Write(make([]byte, 512)) // where a tar has its header
		root.Children = append(root.Children, erofs.Dirent{Name: file.Name, Inode: &erofs.Inode{
			Mode: unix.S_IFREG | file.Mode, SizeBytes: int64(len(file.Data)), MtimeSec: 1e9,
			Extents: []erofs.Extent{{Length: int64(len(file.Data)), Device: uint16(i%layers) + 1, OffsetDevice: int64(tar.Len())}},
		}})
		tar.Write(file.Data)
		tar.Write(make([]byte, (512-len(file.Data)%512)%512))
	}
	devices := make([]erofs.Device, layers)
	for i := range tars {
		tars[i].WriteString(fmt.Sprintf("%-512d", i)) // so that no two are the same
		image.Layers = append(image.Layers, NewLayer(t, dir, tars[i].Bytes()))
		devices[i] = erofs.Device{Tag: image.Layers[i].Blob.Encoded(), SizeBytes: int64(tars[i].Len())}
	}
	metadata, err := erofs.Write(root, devices)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(image.Metadata, metadata, 0o600); err != nil {
		t.Fatal(err)
	}
	return image
}

// Spec is the image to be mounted on dir.
func (i *Image) Spec(dir string) mount.Spec {
	spec := mount.Spec{Dir: dir, Metadata: i.Metadata}
	for _, layer := range i.Layers {
		spec.Layers = append(spec.Layers, layer.Mountable())
	}
	return spec
}

// Data returns the contents of a file.
func (i *Image) Data(name string) []byte {
	at := slices.IndexFunc(i.Files, func(f File) bool { return f.Name == name })
	return i.Files[at].Data
}

// Fill fills p with the bytes at off, a multiple of 8, of a stream that has no zero byte run of 8 and differs everywhere.
func Fill(p []byte, seed uint64, off int64) {
	var word [8]byte
	for i := 0; i < len(p); i += 8 {
		x := seed ^ uint64(off+int64(i))
		x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
		x = (x ^ x>>27) * 0x94d049bb133111eb
		binary.LittleEndian.PutUint64(word[:], x|1)
		copy(p[i:], word[:])
	}
}

// Bytes returns n bytes of such a stream.
func Bytes(seed uint64, n int) []byte {
	p := make([]byte, n)
	Fill(p, seed, 0)
	return p
}

// Files returns n files of mixed sizes with contents of their own.
func Files(n int) []File {
	random := rand.New(rand.NewPCG(1, uint64(n)))
	sizes := []int{1, 511, 512, 513, 4096, 5000, 70_000, 200_001}
	files := make([]File, n)
	for i := range files {
		files[i] = File{Name: fmt.Sprintf("f%04d", i), Mode: 0o644, Data: Bytes(random.Uint64(), sizes[i%len(sizes)])}
	}
	return files
}
