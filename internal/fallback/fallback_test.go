package fallback

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fallbacks.json")
	var out strings.Builder
	log := slog.New(slog.NewTextHandler(&out, nil))
	l := Open(path, log)
	var told []Event
	l.Notify(func(e Event) { told = append(told, e) })
	l.Add(Event{Image: "a", Action: Eager, Reason: NoIndex})
	l.Add(Event{Image: "b", Action: Plain, Reason: NoLogin, Detail: strings.Repeat("x", 2*maxDetail)})
	l.Add(Event{Image: "a", Action: Eager, Reason: NoIndex, Detail: "again"})
	check := func(l *Log) {
		t.Helper()
		got := l.List()
		if len(got) != 2 || got[0].Image != "a" || got[0].Count != 2 || got[0].Detail != "again" || got[0].Time.After(got[0].Last) ||
			got[1].Image != "b" || got[1].Count != 1 || len(got[1].Detail) != maxDetail {
			t.Errorf("events: %+v", got)
		}
	}
	check(l)
	check(Open(path, log)) // the next daemon's
	if len(told) != 3 {
		t.Errorf("told of %d events, want 3", len(told))
	}
	if c := l.Counts(); c[NoIndex] != 2 || c[NoLogin] != 1 || c[Limit] != 0 || len(c) != len(Reasons) {
		t.Errorf("counts: %v", c)
	}
	if !strings.Contains(out.String(), "reason=no-login") {
		t.Errorf("not logged:\n%s", &out)
	}
}

func TestLogIsBounded(t *testing.T) {
	l := Open("", slog.New(slog.DiscardHandler))
	for i := range maxEvents + 10 {
		l.Add(Event{Image: fmt.Sprint(i), Action: Plain, Reason: Registry})
	}
	if got := l.List(); len(got) != maxEvents || got[0].Image != fmt.Sprint(maxEvents+9) {
		t.Errorf("%d events, the last of %s", len(got), got[0].Image)
	}
}

func TestLogDamaged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fallbacks.json")
	if err := os.WriteFile(path, []byte(`[{"time":`), 0o600); err != nil {
		t.Fatal(err)
	}
	l := Open(path, slog.New(slog.DiscardHandler))
	l.Add(Event{Image: "a", Action: Plain, Reason: Registry})
	if got := Open(path, slog.New(slog.DiscardHandler)).List(); len(got) != 1 {
		t.Errorf("events after a damaged log: %v", got)
	}
}

func TestHints(t *testing.T) {
	for _, r := range Reasons {
		if r.Hint() == "" || r != InternalFail && r.Hint() == InternalFail.Hint() {
			t.Errorf("reason %s has no hint of its own", r)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`[{"image":"a","count":1,"reason":"no-index"}]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if events, err := decode(b); err == nil && len(events) > maxEvents {
			t.Errorf("%d events", len(events))
		}
	})
}

// TestDocumented: docs/observability.md explains every reason.
func TestDocumented(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("..", "..", "docs", "observability.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range Reasons {
		if !strings.Contains(string(b), "\n| `"+string(r)+"` | ") {
			t.Errorf("reason %s is not explained", r)
		}
	}
}
