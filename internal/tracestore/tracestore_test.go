package tracestore

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/trace"
)

var (
	imageA = digest.FromString("image a")
	imageB = digest.FromString("image b")
)

func open(t *testing.T) (*Store, *bytes.Buffer) {
	t.Helper()
	var log bytes.Buffer
	s, err := Open(filepath.Join(t.TempDir(), "traces"), slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	return s, &log
}

func run(image digest.Digest, number int64, command ...string) *trace.Trace {
	return &trace.Trace{Version: trace.Version, Image: image, Command: command, Runs: 1, Created: time.Unix(number, 0).UTC(),
		Accesses: []trace.Access{{Layer: digest.FromString("layer"), Offset: 512, Length: 512 * number, Phase: trace.PhaseReady}}}
}

func put(t *testing.T, s *Store, traces ...*trace.Trace) {
	t.Helper()
	for _, tr := range traces {
		if err := s.Put(tr); err != nil {
			t.Fatal(err)
		}
	}
}

func TestStore(t *testing.T) {
	s, _ := open(t)
	one, two, other := run(imageA, 1, "sh"), run(imageA, 2, "sh"), run(imageA, 3, "sh", "-c")
	put(t, s, one, two, other, run(imageB, 4, "sh"))
	keys, err := s.List()
	if err != nil || len(keys) != 3 {
		t.Fatalf("keys %v, %v", keys, err)
	}
	got, err := s.Get(KeyOf(one))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]*trace.Trace{one, two}, got); diff != "" {
		t.Error(diff)
	}
	merged, err := s.Merged(KeyOf(one))
	if err != nil || merged.Runs != 2 {
		t.Errorf("merged %+v, %v", merged, err)
	}
	if last := s.LastRun(KeyOf(one)); time.Since(last) > time.Minute || !s.LastRun(Key{imageB, "x"}).IsZero() {
		t.Errorf("last run at %v", last)
	}
	if err := s.Remove(KeyOf(one)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(KeyOf(one)); !errors.Is(err, ErrNotFound) {
		t.Errorf("removed trace: %v", err)
	}
	if err := s.Remove(KeyOf(other)); err != nil {
		t.Fatal(err)
	}
	if entries, _ := os.ReadDir(s.dir); len(entries) != 1 {
		t.Errorf("directories left: %v", entries)
	}
	if a, b := (Key{imageA, "x"}).ID(), (Key{imageB, "x"}).ID(); a == b || len(a) != 12 {
		t.Errorf("ids %q, %q", a, b)
	}
}

func TestBounds(t *testing.T) {
	s, _ := open(t)
	for i := range int64(MaxRuns + 3) {
		put(t, s, run(imageA, i+1, "sh"))
	}
	got, err := s.Get(KeyOf(run(imageA, 1, "sh")))
	if err != nil || len(got) != MaxRuns || got[0].Created.Unix() != 4 {
		t.Fatalf("%d runs are left, the oldest of %v, %v", len(got), got[0].Created, err)
	}
	var size int64
	for _, f := range s.runs(KeyOf(got[0])) {
		info, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		size = max(size, info.Size())
	}
	s.limit = 5 * size
	for i := range 20 {
		put(t, s, run(imageB, 50, "sh", fmt.Sprint(i%7)))
	}
	var sum int64
	files, err := filepath.Glob(filepath.Join(s.dir, "*/*/*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		info, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		sum += info.Size()
	}
	if sum > s.limit || len(files) < 3 {
		t.Errorf("%d bytes in %d files, the limit is %d", sum, len(files), s.limit)
	}
	if s.Runs(KeyOf(got[0])) != 0 {
		t.Error("the oldest are still there")
	}
}

func TestDamaged(t *testing.T) {
	s, log := open(t)
	put(t, s, run(imageA, 1, "sh"), run(imageA, 2, "sh"), run(imageA, 3, "sh"))
	k := KeyOf(run(imageA, 1, "sh"))
	files := s.runs(k)
	for i, damage := range []func([]byte) []byte{
		func(b []byte) []byte { return b[:len(b)/2] },
		func(b []byte) []byte { // of another image
			var other bytes.Buffer
			if err := trace.Encode(&other, run(imageB, 1, "sh")); err != nil {
				t.Fatal(err)
			}
			return other.Bytes()
		},
	} {
		b, err := os.ReadFile(files[i])
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(files[i], damage(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := s.Get(k)
	if err != nil || len(got) != 1 || got[0].Created.Unix() != 3 {
		t.Errorf("got %v, %v", got, err)
	}
	if n := strings.Count(log.String(), "damaged"); n != 2 {
		t.Errorf("%d lines in the log: %s", n, log)
	}
}

func TestSweep(t *testing.T) {
	s, _ := open(t)
	for _, name := range []string{".tmp-999999999-a", fmt.Sprintf(".tmp-%d-b", os.Getpid()), fmt.Sprintf(".tmp-%d-c", startAndForget(t))} {
		if err := os.WriteFile(filepath.Join(s.dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Open(s.dir, s.log); err != nil {
		t.Fatal(err)
	}
	if entries, _ := os.ReadDir(s.dir); len(entries) != 1 {
		t.Errorf("left: %v", entries)
	}
}

// startAndForget returns the pid of a process that has ended, and whose exit code
// is asked for when the test is over.
func startAndForget(t *testing.T) int {
	t.Helper()
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Wait() })
	if err := unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid
}
