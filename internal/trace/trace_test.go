package trace

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
)

var update = flag.Bool("update", false, "write the golden files")

var (
	imageA = digest.FromString("image a")
	layerA = digest.FromString("layer a")
	layerB = digest.FromString("layer b")
)

func example() *Trace {
	return &Trace{
		Version: Version, Image: imageA, Reference: "registry.example/app:1", Command: []string{"sh", "-c", "echo \"ä\"\n"},
		Ready: 1500 * time.Millisecond, Runs: 3, Created: time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC),
		Accesses: []Access{
			{layerB, 512, 4096, 10 * time.Millisecond, PhaseMount},
			{layerA, 0, 131072, 20 * time.Millisecond, PhaseStart},
			{layerB, 1 << 40, 1, 20 * time.Millisecond, PhaseAfter},
		},
	}
}

func text(t testing.TB, encoded []byte) string {
	t.Helper()
	z, err := zstd.NewReader(bytes.NewReader(encoded))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func encoded(t testing.TB, tr *Trace) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := Encode(&b, tr); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestRoundTrip(t *testing.T) {
	for _, want := range []*Trace{example(), {Version: Version, Image: imageA, Runs: 1}} {
		b := encoded(t, want)
		got, err := Decode(bytes.NewReader(b), Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("what was decoded (+) is not what was encoded (-):\n%s", diff)
		}
		if again := encoded(t, got); !bytes.Equal(again, b) {
			t.Error("the same trace gave other bytes")
		}
	}
}

// The golden file was written by the first version; what reads traces must go
// on reading it. Its bytes are zstd's business, so the text is compared.
func TestGolden(t *testing.T) {
	file := filepath.Join("testdata", "v1.trace")
	if *update {
		if err := os.WriteFile(file, encoded(t, example()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Decode(bytes.NewReader(b), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(example(), got); diff != "" {
		t.Errorf("golden file:\n%s", diff)
	}
	if diff := cmp.Diff(text(t, b), text(t, encoded(t, example()))); diff != "" {
		t.Errorf("Encode does not write the golden text any more:\n%s", diff)
	}
}

func compress(t testing.TB, s string) []byte {
	t.Helper()
	z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		t.Fatal(err)
	}
	return z.EncodeAll([]byte(s), nil)
}

func TestDecodeHostile(t *testing.T) {
	head := fmt.Sprintf(`{"kind":"thaw-trace","version":1,"image":%q,"runs":1,"created":"2026-11-21T12:00:00Z","layers":[%q],"accesses":%%d}`+"\n", imageA, layerA)
	with := func(lines ...string) string {
		return fmt.Sprintf(head, len(lines)) + strings.Join(append(lines, ""), "\n")
	}
	if _, err := Decode(bytes.NewReader(compress(t, with(`[0,0,512,1,"ready"]`))), Limits{}); err != nil {
		t.Fatalf("a good one: %v", err)
	}
	for _, test := range []struct{ text, want string }{
		{"", "head"},
		{"{}\n", "not a trace"},
		{"null\n", "not a trace"},
		{"[]\n", "head"},
		{strings.Repeat(" ", maxHeadBytes+1), "more than"},
		{strings.Replace(with(), `"version":1`, `"version":2`, 1), "version 2"},
		{strings.Replace(with(), imageA.String(), "sha256:12", 1), "image"},
		{strings.Replace(with(), layerA.String(), "sha256:12", 1), "layer"},
		{strings.Replace(with(), `"runs":1`, `"runs":0`, 1), "0 runs"},
		{strings.Replace(with(), `"runs":1`, `"runs":1,"readyMicros":-1`, 1), "ready"},
		{fmt.Sprintf(head, -1), "-1 accesses"},
		{fmt.Sprintf(head, 1<<40), "are more than"},
		{fmt.Sprintf(head, 2) + `[0,0,512,1,"ready"]` + "\n", "access 1 of 2"},
		{with(`[0,0,512,1,"ready"]`) + "x", "more after"},
		{with(`[0,0,512,1]`), "4 fields"},
		{with(`[0,0,512,1,"ready",0]`), "6 fields"},
		{with(`[1,0,512,1,"ready"]`), "layer 1 of 1"},
		{with(`[-1,0,512,1,"ready"]`), "layer -1"},
		{with(`[0,-1,512,1,"ready"]`), "outside"},
		{with(`[0,0,0,1,"ready"]`), "outside"},
		{with(`[0,9223372036854775807,9223372036854775807,1,"ready"]`), "outside"},
		{with(`[0,0,1e3,1,"ready"]`), "access 0"},
		{with(`[0,0,512,9223372036854775807,"ready"]`), "microseconds"},
		{with(`[0,0,512,1,"late"]`), "phase"},
		{with(`[0,0,512,2,"ready"]`, `[0,0,512,1,"ready"]`), "before"},
		{with(strings.Repeat(" ", maxLineBytes) + `[0,0,512,1,"ready"]`), "a line"},
	} {
		_, err := Decode(bytes.NewReader(compress(t, test.text)), Limits{})
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%.200q: error %v, want one with %q", test.text, err, test.want)
		}
	}
	good := encoded(t, example())
	for n := range good {
		if _, err := Decode(bytes.NewReader(good[:n]), Limits{}); err == nil {
			t.Fatalf("the first %d of %d bytes are a trace", n, len(good))
		}
	}
	if _, err := Decode(bytes.NewReader(good), Limits{MaxAccesses: 2}); err == nil {
		t.Error("3 accesses were taken with a limit of 2")
	}
}

// A small file must not make a reader use much memory.
func TestDecodeBomb(t *testing.T) {
	bomb := compress(t, strings.Repeat("a", 64<<20))
	allocated := testing.AllocsPerRun(1, func() {
		if _, err := Decode(bytes.NewReader(bomb), Limits{}); err == nil {
			t.Error("a bomb is a trace")
		}
	})
	if allocated > 10000 {
		t.Errorf("%v allocations", allocated)
	}
}

func TestEncodeRefuses(t *testing.T) {
	for name, change := range map[string]func(*Trace){
		"image":   func(tr *Trace) { tr.Image = "" },
		"runs":    func(tr *Trace) { tr.Runs = 0 },
		"range":   func(tr *Trace) { tr.Accesses[0].Length = 0 },
		"phase":   func(tr *Trace) { tr.Accesses[0].Phase = "" },
		"order":   func(tr *Trace) { tr.Accesses[0].At = time.Hour },
		"version": func(tr *Trace) { tr.Version = 0 },
	} {
		tr := example()
		change(tr)
		if err := Encode(io.Discard, tr); err == nil {
			t.Errorf("%s: a wrong trace was encoded", name)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(text(f, encoded(f, example()))))
	f.Add([]byte(`{"kind":"thaw-trace","version":1,"layers":["sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"],"accesses":1}` + "\n[0,1,2,3,\"after\"]\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		// The text is mutated, and the bytes as they are too: a mutated frame is
		// seldom one.
		for _, in := range [][]byte{compress(t, string(b)), b} {
			got, err := Decode(bytes.NewReader(in), Limits{MaxAccesses: 1000})
			if err != nil {
				continue
			}
			again, err := Decode(bytes.NewReader(encoded(t, got)), Limits{})
			if err != nil {
				t.Fatalf("what was decoded is not decoded again: %v", err)
			}
			if diff := cmp.Diff(got, again); diff != "" {
				t.Fatal(diff)
			}
			if m := Merge([]*Trace{got, again}, MergeOptions{}); m.check() != nil {
				t.Fatalf("merged: %v", m.check())
			}
		}
	})
}

// random is a trace whose accesses overlap and repeat.
func random(rnd *rand.Rand, accesses int) *Trace {
	tr := &Trace{Version: Version, Image: imageA, Runs: 1, Created: time.Unix(rnd.Int64N(1000), 0).UTC()}
	for i := range accesses {
		tr.Accesses = append(tr.Accesses, Access{
			Layer: []digest.Digest{layerA, layerB}[rnd.IntN(2)], Offset: rnd.Int64N(200), Length: 1 + rnd.Int64N(40),
			At: time.Duration(i) * time.Millisecond, Phase: Phases[min(i/10, 4)],
		})
	}
	return tr
}
