package fanotify

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/mount/mounttest"
	"github.com/thaw-project/thaw/internal/testenv"
)

func mounted(b *testing.B, sizeBytes int) (*Mounter, *mounttest.Source, *mounttest.Image, *os.File) {
	b.Helper()
	testenv.NeedFanotify(b)
	image := mounttest.NewImage(b, 1, []mounttest.File{{Name: "f", Mode: 0o644, Data: mounttest.Bytes(1, sizeBytes)}})
	source := &mounttest.Source{}
	source.Add(image.Layers...)
	m := newMounter(b, source, nil)
	dir := b.TempDir()
	if err := m.Mount(b.Context(), image.Spec(dir)); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := m.Close(); err != nil {
			b.Error(err)
		}
	})
	f, err := os.Open(filepath.Join(dir, "f"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { f.Close() })
	return m, source, image, f
}

// benchmarkRead reads single pages that are not in the EROFS page cache, but in the layer file's, from another process, as
// containers do.
func benchmarkRead(b *testing.B, m *Mounter, f *os.File) {
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	before := m.Stats()
	cmd := exec.Command(self, f.Name(), strconv.Itoa(b.N))
	cmd.Env = append(os.Environ(), modeEnv+"=reader")
	out, err := cmd.Output()
	if err != nil {
		b.Fatal(err)
	}
	took, err := time.ParseDuration(string(out))
	if err != nil {
		b.Fatal(err)
	}
	after := m.Stats()
	b.ReportMetric(float64(took)/float64(b.N), "ns/op")
	b.ReportMetric(float64(after.Inline+after.Waited-before.Inline-before.Waited)/float64(b.N), "events/op")
}

// readerMain is that process. It prints how long its reads took.
func readerMain() int {
	f, err := os.Open(os.Args[1])
	if err != nil {
		return 1
	}
	reads, _ := strconv.Atoi(os.Args[2])
	var took time.Duration
	page := make([]byte, 4096)
	for reads > 0 {
		if unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) != nil || unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM) != nil {
			return 1
		}
		start := time.Now()
		for at := int64(0); at < benchBytes && reads > 0; at += 4096 {
			if _, err := f.ReadAt(page, at); err != nil {
				return 1
			}
			reads--
		}
		took += time.Since(start)
	}
	fmt.Print(took)
	return 0
}

const benchBytes = 64 << 20

// BenchmarkEventHydrated is a 4 KiB read whose range is there; BenchmarkEventNone the same without an event. Their
// difference is what an event costs.
func BenchmarkEventHydrated(b *testing.B) {
	m, _, image, f := mounted(b, benchBytes)
	if err := image.Layers[0].Complete(); err != nil {
		b.Fatal(err)
	}
	benchmarkRead(b, m, f)
}

func BenchmarkEventNone(b *testing.B) {
	m, _, image, f := mounted(b, benchBytes)
	if err := image.Layers[0].Complete(); err != nil {
		b.Fatal(err)
	}
	if err := m.Unwatch(image.Layers[0].Blob); err != nil {
		b.Fatal(err)
	}
	benchmarkRead(b, m, f)
}

// BenchmarkEventMiss is the same with a fetch, by a worker, that has nothing to do.
func BenchmarkEventMiss(b *testing.B) {
	testenv.NeedFanotify(b)
	image := mounttest.NewImage(b, 1, []mounttest.File{{Name: "f", Mode: 0o644, Data: mounttest.Bytes(1, benchBytes)}})
	if err := image.Layers[0].Complete(); err != nil {
		b.Fatal(err)
	}
	m := newMounter(b, &missing{}, nil)
	dir := b.TempDir()
	if err := m.Mount(b.Context(), image.Spec(dir)); err != nil {
		b.Fatal(err)
	}
	defer m.Close()
	f, err := os.Open(filepath.Join(dir, "f"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	benchmarkRead(b, m, f)
}

// BenchmarkSequential reads a file that is there from its start to its end.
func BenchmarkSequential(b *testing.B) {
	m, _, image, f := mounted(b, benchBytes)
	if err := image.Layers[0].Complete(); err != nil {
		b.Fatal(err)
	}
	p := make([]byte, 1<<20)
	before := m.Stats()
	b.SetBytes(benchBytes)
	for b.Loop() {
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			b.Fatal(err)
		}
		for at := int64(0); at < benchBytes; at += 1 << 20 {
			if _, err := f.ReadAt(p, at); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(m.Stats().Inline-before.Inline)/float64(b.N), "events/op")
}

// BenchmarkMount mounts 70 layers that are not complete, with a keeper, and takes them away again; only the mounting counts.
func BenchmarkMount(b *testing.B) {
	testenv.NeedFanotify(b)
	image := mounttest.NewImage(b, 70, mounttest.Files(70))
	source := &mounttest.Source{}
	source.Add(image.Layers...)
	m := newMounter(b, source, connect(b, 0))
	defer m.Close()
	dir := b.TempDir()
	for b.Loop() {
		if err := m.Mount(b.Context(), image.Spec(dir)); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := m.Unmount(b.Context(), dir); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// missing never has a range the first time it is asked, and fetches nothing.
type missing struct{ asked atomic.Int64 }

func (h *missing) Have(digest.Digest, int64, int64) bool { return h.asked.Add(1)%2 == 0 }

func (h *missing) Fetch(context.Context, digest.Digest, int64, int64) error { return nil }
