package journal

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

type record struct {
	N    int
	Text string
}

func open(t *testing.T, path string, kept int) *Journal[record] {
	t.Helper()
	j := Open[record](path, kept, slog.New(slog.DiscardHandler))
	t.Cleanup(j.Close)
	return j
}

func all(record) bool { return true }

// TestJournal: what was added is there, the newest first, for the next process too.
func TestJournal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j")
	j := open(t, path, 3)
	for i := range 5 {
		j.Add(record{N: i})
	}
	want := []record{{N: 4}, {N: 3}, {N: 2}}
	if diff := cmp.Diff(want, j.List(all)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	j.Close()
	j.Add(record{N: 5}) // in memory only
	again := open(t, path, 3)
	if diff := cmp.Diff(want, again.List(all)); diff != "" {
		t.Errorf("opened again, -want +got:\n%s", diff)
	}
	if got := again.List(func(r record) bool { return r.N == 3 }); len(got) != 1 {
		t.Errorf("found %v, want one", got)
	}
}

// TestBound: the file does not grow past its bound, whatever is added.
func TestBound(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j")
	j := open(t, path, 1000)
	text := strings.Repeat("x", 10<<10)
	for i := range 500 {
		j.Add(record{i, text})
		if info, err := os.Stat(path); err != nil || info.Size() > maxBytes || info.Size() != j.size {
			t.Fatalf("after %d records: %v, %v", i, info, err)
		}
	}
	j.Close()
	if got := open(t, path, 1000).List(all); len(got) < 50 || got[0].N != 499 {
		t.Errorf("%d records are left", len(got))
	}
	if left, _ := filepath.Glob(path + "*"); len(left) != 1 {
		t.Errorf("files %v", left)
	}
}

// TestDamaged: a torn or foreign line costs that line, a directory in its place the file.
func TestDamaged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j")
	if err := os.WriteFile(path, []byte("{\"N\":1}\nrubbish\n{\"N\":2}\n{\"N\":"), 0o600); err != nil {
		t.Fatal(err)
	}
	j := open(t, path, 10)
	j.Add(record{N: 3})
	j.Close()
	if diff := cmp.Diff([]record{{N: 3}, {N: 2}, {N: 1}}, open(t, path, 10).List(all)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	j = open(t, t.TempDir(), 10)
	j.Add(record{N: 1})
	j.Add(record{Text: strings.Repeat("x", maxLine)})
	if got := j.List(all); len(got) != 2 {
		t.Errorf("without a file %v are kept, want both", got)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte("{\"N\":1}\n[]\n\n{"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if got := decode[record](b, 4); len(got) > 4 {
			t.Errorf("%d records kept", len(got))
		}
	})
}
