package fuse

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const benchBytes = 64 << 20

// benchmarkRead reads a file from another process, as containers do, past the EROFS page cache and from the layer file's.
func benchmarkRead(b *testing.B, complete bool, size int) {
	m, _, image, spec := mounted(b, benchBytes, complete)
	if err := image.Layers[0].Complete(); err != nil {
		b.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	before := m.Stats().Inline
	cmd := exec.Command(self, filepath.Join(spec.Dir, "f"), strconv.Itoa(b.N), strconv.Itoa(size))
	cmd.Env = append(os.Environ(), modeEnv+"=reader")
	out, err := cmd.Output()
	if err != nil {
		b.Fatal(err)
	}
	took, err := time.ParseDuration(string(out))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(took)/float64(b.N), "ns/op")
	b.ReportMetric(float64(size)*float64(b.N)/took.Seconds()/1e6, "MB/s")
	b.ReportMetric(float64(m.Stats().Inline-before)/float64(b.N), "requests/op")
}

// readerMain is that process. It prints how long its reads took.
func readerMain() int {
	f, err := os.Open(os.Args[1])
	if err != nil {
		return 1
	}
	reads, _ := strconv.Atoi(os.Args[2])
	size, _ := strconv.Atoi(os.Args[3])
	advice := unix.FADV_NORMAL
	if size == 4096 {
		advice = unix.FADV_RANDOM
	}
	var took time.Duration
	p := make([]byte, size)
	for reads > 0 {
		if unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) != nil || unix.Fadvise(int(f.Fd()), 0, 0, advice) != nil {
			return 1
		}
		start := time.Now()
		for at := int64(0); at < benchBytes && reads > 0; at += int64(size) {
			if _, err := f.ReadAt(p, at); err != nil {
				return 1
			}
			reads--
		}
		took += time.Since(start)
	}
	fmt.Print(took)
	return 0
}

// A layer that is there but was not complete when it was mounted.
func BenchmarkHydratedPage(b *testing.B)       { benchmarkRead(b, false, 4096) }
func BenchmarkHydratedSequential(b *testing.B) { benchmarkRead(b, false, 1<<20) }

// A layer that is passed through.
func BenchmarkCompletePage(b *testing.B)       { benchmarkRead(b, true, 4096) }
func BenchmarkCompleteSequential(b *testing.B) { benchmarkRead(b, true, 1<<20) }
