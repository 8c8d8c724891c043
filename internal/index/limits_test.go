package index

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"

	"github.com/thaw-project/thaw/internal/inflate"
	"github.com/thaw-project/thaw/internal/layertar"
	"github.com/thaw-project/thaw/internal/testenv"
)

const hostileEnv = "THAW_TEST_HOSTILE_LAYER"

// hostileLayers are streams that a registry could serve as a layer. Each writes
// until w refuses. How much of the memory that may take is stated, not a goal.
var hostileLayers = map[string]struct {
	write   func(w io.Writer)
	long    bool  // takes minutes
	maxTar  int64 // what the caller has room for; 0: no limit
	want    string
	peakMiB int64 // that the process may have had in memory
	within  time.Duration
}{
	"10 million entries": {long: true, want: "more than", peakMiB: 1200, within: 5 * time.Minute,
		write: func(w io.Writer) {
			entries(w, func(i int) *tar.Header { return &tar.Header{Name: fmt.Sprint("f", i), Mode: 0o644} })
		}},
	"xattrs without end": {want: "more than", peakMiB: 700, within: time.Minute,
		write: func(w io.Writer) {
			value := map[string]string{"SCHILY.xattr.user.a": strings.Repeat("x", 60<<10), "SCHILY.xattr.user.b": strings.Repeat("y", 60<<10)}
			entries(w, func(i int) *tar.Header {
				return &tar.Header{Name: fmt.Sprint("f", i), Mode: 0o644, PAXRecords: value}
			})
		}},
	"deep nesting": {want: "deeper than", peakMiB: 200, within: time.Minute,
		write: func(w io.Writer) {
			entries(w, func(i int) *tar.Header { return &tar.Header{Name: strings.Repeat("d/", i*100) + "f", Mode: 0o644} })
		}},
	"gzip bomb": {maxTar: 128 << 20, want: "exceeds the limit", peakMiB: 200, within: time.Minute, write: gzipBomb},
	"gzip bomb of many members": {maxTar: 128 << 20, want: "exceeds the limit", peakMiB: 200, within: time.Minute,
		write: func(w io.Writer) {
			var member bytes.Buffer
			z := gzip.NewWriter(&member)
			z.Write(make([]byte, 1<<20))
			z.Close()
			for {
				if _, err := w.Write(member.Bytes()); err != nil {
					return
				}
			}
		}},
	"zstd bomb": {maxTar: 128 << 20, want: "exceeds the limit", peakMiB: 300, within: time.Minute,
		write: func(w io.Writer) {
			z, _ := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1))
			writeZeros(z)
		}},
}

func gzipBomb(w io.Writer) {
	z, _ := gzip.NewWriterLevel(w, gzip.BestCompression)
	writeZeros(z)
}

// writeZeros begins a tar with a file of almost 2 TiB of zeros.
func writeZeros(w io.Writer) {
	t := tar.NewWriter(w)
	t.WriteHeader(&tar.Header{Name: "zeros", Mode: 0o644, Size: 1 << 40})
	zeros := make([]byte, 1<<20)
	for {
		if _, err := t.Write(zeros); err != nil {
			return
		}
	}
}

func entries(w io.Writer, header func(i int) *tar.Header) {
	t := tar.NewWriter(w)
	for i := range 10_000_001 {
		if err := t.WriteHeader(header(i)); err != nil {
			return
		}
	}
	t.Close()
}

// TestHostileLayers builds the index of each hostile layer in a process of its own:
// it is refused, within a bounded time and a bounded part of the memory.
func TestHostileLayers(t *testing.T) {
	if name := os.Getenv(hostileEnv); name != "" {
		buildHostile(t, name)
		return
	}
	for name, c := range hostileLayers {
		t.Run(name, func(t *testing.T) {
			if c.long && os.Getenv("THAW_LONG") == "" {
				t.Skip("takes minutes: THAW_LONG=1")
			}
			cmd := exec.Command(os.Args[0], "-test.run", "^TestHostileLayers$", "-test.v")
			cmd.Env = append(os.Environ(), hostileEnv+"="+name)
			watch := testenv.Start()
			out, err := cmd.CombinedOutput()
			over, starved := watch.Over(c.within)
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			peak := peakMiB(t, out)
			t.Logf("refused after %v with a peak of %d MiB", watch.Took().Round(time.Millisecond), peak)
			limit := c.peakMiB
			if raced() {
				limit *= 3 // the detector's own
			}
			if peak > limit || over {
				t.Errorf("took %v and %d MiB, want %v and %d; the machine was busy for %v", watch.Took(), peak, c.within, limit, starved)
			}
		})
	}
}

// raced says whether the race detector is built in.
func raced() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

var peakRegexp = regexp.MustCompile(`VmHWM:\s*(\d+) kB`)

func peakMiB(t *testing.T, out []byte) int64 {
	t.Helper()
	m := peakRegexp.FindSubmatch(out)
	if m == nil {
		t.Fatalf("no peak in:\n%s", out)
	}
	kib, err := strconv.ParseInt(string(m[1]), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kib >> 10
}

func buildHostile(t *testing.T, name string) {
	c := hostileLayers[name]
	r, w := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.write(w)
		w.Close()
	}()
	some := digest.FromString("some")
	_, err := BuildLayer(t.Context(), r, BuildInput{Blob: some, DiffID: some, BlobBytes: 1 << 40, MaxBytes: c.maxTar})
	r.Close()
	<-done
	var refused *layertar.EntryError
	if err == nil || !strings.Contains(err.Error(), c.want) || !errors.As(err, &refused) && !errors.Is(err, inflate.ErrTooLarge) {
		t.Errorf("error %v, want %q", err, c.want)
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println(peakRegexp.FindString(string(status)))
}
