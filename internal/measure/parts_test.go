package measure

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/thaw-project/thaw/internal/index"
	"github.com/thaw-project/thaw/internal/measure/clock"
	"github.com/thaw-project/thaw/internal/profile"
)

func TestParseRoute(t *testing.T) {
	for s, want := range map[string]string{
		"GET:/api/x":             "GET /api/x -> http://127.0.0.1:8080/api/x",
		"/x?a=b:c":               "GET /x?a=b:c -> http://127.0.0.1:8080/x?a=b:c",
		"post:/x":                "POST /x -> http://127.0.0.1:8080/x",
		"http://127.0.0.1:9/y":   "GET http://127.0.0.1:9/y -> http://127.0.0.1:9/y",
		"PUT:http://127.0.0.1/y": "PUT http://127.0.0.1/y -> http://127.0.0.1/y",
	} {
		r, err := ParseRoute(s)
		if got := r.String() + " -> " + r.url("http://127.0.0.1:8080/ready"); err != nil || got != want {
			t.Errorf("%s: %s, %v, want %s", s, got, err, want)
		}
		if got := r.url("tcp:8080"); strings.HasPrefix(r.Path, "/") && !strings.HasPrefix(got, "http://127.0.0.1:8080/") {
			t.Errorf("%s at a port: %s", s, got)
		}
	}
	for _, s := range []string{"", "x", "GET:x", ":/x", "ftp://h/x"} {
		if r, err := ParseRoute(s); err == nil {
			t.Errorf("%q is %v", s, r)
		}
	}
}

const mounts = `22 1 0:20 / / rw - ext4 /dev/vda rw
30 22 0:40 / /run/a\040b rw,relatime shared:1 - overlay overlay rw,lowerdir=/x/l1:/x/l2::/x/data,upperdir=/x/u,workdir=/x/w
31 22 0:41 / /run/new rw - overlay overlay rw,lowerdir+=/y/1,lowerdir+=/y\0402,upperdir=/u
32 22 0:42 / /run/tmp rw - tmpfs tmpfs rw
33 22 0:43 / /run/new rw - overlay overlay rw,lowerdir=/z
`

func TestParseLowers(t *testing.T) {
	for dir, want := range map[string][]string{"/run/a b": {"/x/l1", "/x/l2", "/x/data"}, "/run/new": {"/z"}, "/run/tmp": nil, "/none": nil} {
		got, ok := parseLowers(mounts, dir)
		if d := cmp.Diff(want, got); d != "" || ok != (want != nil) {
			t.Errorf("%s: %v\n%s", dir, ok, d)
		}
	}
}

func FuzzParseLowers(f *testing.F) {
	f.Add(mounts, "/run/new")
	f.Fuzz(func(t *testing.T, s, dir string) {
		if got, ok := parseLowers(s, dir); !ok && len(got) > 0 {
			t.Error(got)
		}
	})
}

// TestCached: of files that were read, in whichever lower directory, and of no others.
func TestCached(t *testing.T) {
	upper, lower := t.TempDir(), t.TempDir()
	file := filepath.Join(lower, "f")
	if err := os.WriteFile(file, make([]byte, 10000), 0o644); err != nil {
		t.Fatal(err)
	}
	n, known, err := cached([]string{upper, lower}, "/f")
	if err != nil || !known || n != 10000 {
		t.Errorf("%d bytes, %v, %v", n, known, err)
	}
	if n, known, err := cached([]string{upper, lower}, "/missing"); err != nil || known || n != 0 {
		t.Errorf("what is not there: %d bytes, %v, %v", n, known, err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if n, err := residentByMincore(f, 10000); err != nil || n != 10000 {
		t.Errorf("by mincore %d bytes, %v", n, err)
	}
}

func TestShare(t *testing.T) {
	spans := []index.Span{{BytesCompressed: 100}, {BytesCompressed: 1000}}
	for _, tt := range []struct {
		off, n int64
		want   float64
	}{{0, index.SpanBytes, 100}, {index.SpanBytes / 2, index.SpanBytes, 550}, {0, 2 * index.SpanBytes, 1100}, {index.SpanBytes, 0, 0}, {5 * index.SpanBytes, 9, 0}} {
		if got := share(spans, tt.off, tt.n); got != tt.want {
			t.Errorf("%d+%d: %v, want %v", tt.off, tt.n, got, tt.want)
		}
	}
}

func TestInstructions(t *testing.T) {
	const config = `{"config":{"Entrypoint":["/e"],"Cmd":["c"]},"history":[{"created_by":"/bin/sh -c #(nop) ADD file:1 in / "},{"created_by":"ENV X=1","empty_layer":true},{"created_by":"RUN make"}]}`
	if d := cmp.Diff([]string{"ADD file:1 in /", "RUN make"}, instructions([]byte(config), 2)); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{""}, instructions([]byte(config), 1)); d != "" { // another image's
		t.Error(d)
	}
	if d := cmp.Diff([]string{"ADD file:1 in /", "RUN make", ""}, instructions([]byte(config), 3)); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"/e", "c"}, command([]byte(config))); d != "" {
		t.Error(d)
	}
	if got := instructions([]byte(`{"history":[{"created_by":"RUN `+strings.Repeat("é", maxInstruction)+`"}]}`), 1); len(got[0]) > maxInstruction+3 || !utf8.ValidString(got[0]) {
		t.Errorf("%d bytes", len(got[0]))
	}
	if got := instructions([]byte("x"), 1); got[0] != "" || command([]byte("x")) != nil {
		t.Error(got)
	}
}

// TestSummarizeFiles: most runs say when a file is first read; those that failed do not.
func TestSummarizeFiles(t *testing.T) {
	s := &profile.Subject{Files: []profile.File{{Path: "/a"}, {Path: "/b"}, {Path: "/c"}}, Runs: []profile.Run{
		{Reads: []profile.Read{{Path: "/a", Phase: profile.PhaseBootstrap, Bytes: 10}, {Path: "/b", Phase: profile.ReadLater}}},
		{Reads: []profile.Read{{Path: "/a", Phase: profile.PhaseDependencyLoad, Bytes: 20}}},
		{Reads: []profile.Read{{Path: "/a", Phase: profile.PhaseDependencyLoad, Bytes: 30}}},
		{Error: "it failed", Reads: []profile.Read{{Path: "/c", Phase: profile.PhaseBootstrap}}},
	}}
	summarizeFiles(s)
	want := []profile.File{{Path: "/a", First: profile.PhaseDependencyLoad, ReadBytes: 20, Runs: 1}, {Path: "/b", First: profile.ReadLater, Runs: 1. / 3}, {Path: "/c"}}
	if d := cmp.Diff(want, s.Files); d != "" {
		t.Error(d)
	}
}

// TestEnough: as many runs as were asked for, or until the median is known.
func TestEnough(t *testing.T) {
	runs := func(n int, spread float64) []profile.Run {
		var all []profile.Run
		for i := range n {
			ms := 100 + spread*float64(i%5)
			all = append(all, profile.Run{TotalMs: &ms})
		}
		return all
	}
	for _, tt := range []struct {
		runs, n int
		spread  float64
		want    bool
	}{{3, 2, 0, false}, {3, 3, 50, true}, {0, 9, 0, false}, {0, 10, 0, true}, {0, 10, 50, false}, {0, 49, 50, false}, {0, 50, 50, true}} {
		m := &measurement{Options: Options{Runs: tt.runs}, record: &profile.Record{Subjects: []profile.Subject{{Runs: runs(tt.n, tt.spread)}}}}
		if got := m.enough(tt.n); got != tt.want {
			t.Errorf("%+v: %v", tt, got)
		}
	}
}

func TestWarnings(t *testing.T) {
	s := &profile.Subject{Name: "app"}
	for i := range 10 {
		ms := 100.0 + float64(i)/10
		if i == 4 {
			ms = 900
		}
		s.Runs = append(s.Runs, profile.Run{TotalMs: &ms})
	}
	s.Runs = append(s.Runs, profile.Run{Error: "it failed"})
	got := strings.Join(warnings(s), "\n")
	for _, want := range []string{"app: 1 of 11 runs failed", "run 5 is an outlier: 900 ms"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in %s", want, got)
		}
	}
}

// TestStale: directories of this process stay, what is not ours does too, one of a
// process that is no more goes.
func TestStale(t *testing.T) {
	base := t.TempDir()
	own, err := NewDir(base)
	if err != nil {
		t.Fatal(err)
	}
	stale := filepath.Join(base, dirPrefix+strconv.Itoa(os.Getpid())+"-"+strconv.FormatUint(clock.Started(os.Getpid())+1, 10)+"-1")
	other := filepath.Join(base, dirPrefix+"something")
	foreign, link := stale+"2", stale+"3"
	for _, dir := range []string{stale, other, foreign} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(other, link); err != nil {
		t.Fatal(err)
	}
	gone := os.Chown(foreign, 1, 1) != nil // without root it is ours
	if err := RemoveStale(t.Context(), "/bin/false", base); err != nil {
		t.Fatal(err)
	}
	for dir, there := range map[string]bool{own: true, other: true, stale: false, foreign: !gone, link: true} {
		if _, err := os.Stat(dir); (err == nil) != there {
			t.Errorf("%s: %v", dir, err)
		}
	}
}

func TestMachine(t *testing.T) {
	if m := machine(); m.CPUs < 1 || m.Kernel == "" || m.MemoryBytes < 1<<20 {
		t.Errorf("%+v", m)
	}
}

// TestClockSet: a clock that somebody sets is told from one that runs.
func TestClockSet(t *testing.T) {
	var st *started
	for range 100 { // each clock is asked by itself, and this may have to wait in between
		st = &started{begun: time.Now(), zero: clock.Now()}
		if st.clockSet().Abs() <= clockSlack {
			break
		}
	}
	st.begun = st.begun.Add(-time.Minute) // as if it had been set on
	if off := st.clockSet(); (off - time.Minute).Abs() > time.Second {
		t.Errorf("set by a minute: %v", off)
	}
}
