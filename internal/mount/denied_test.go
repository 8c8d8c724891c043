package mount

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestDeniedLog: a place is logged once a minute, whoever tries again.
func TestDeniedLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		l := NewDeniedLog(slog.New(slog.NewTextHandler(&out, nil)))
		lines := func() int { return strings.Count(out.String(), "\n") }
		denied := errors.New("span 3 is wrong")
		l.Denied("sha256:a", 0, 4096, denied, "pid", 7)
		if got := out.String(); !strings.Contains(got, "layer=sha256:a off=0 count=4096 pid=7 cause=\"span 3 is wrong\"") {
			t.Errorf("logged %s", got)
		}
		l.Denied("sha256:a", 8192, 4096, denied)
		if n := lines(); n != 1 {
			t.Errorf("%d lines of one place, want 1", n)
		}
		l.Denied("sha256:a", 1<<20, 4096, denied)
		l.Denied("sha256:b", 0, 4096, denied)
		if n := lines(); n != 3 {
			t.Errorf("%d lines of three places, want 3", n)
		}
		time.Sleep(deniedEvery)
		l.Denied("sha256:a", 0, 4096, denied)
		if n := lines(); n != 4 {
			t.Errorf("%d lines a minute later, want 4", n)
		}
		for i := range int64(3 * deniedKeep) {
			l.Denied("sha256:c", i<<deniedPlaceBits, 1, denied)
		}
		if n := len(l.said); n > deniedKeep {
			t.Errorf("%d places are remembered, want %d at most", n, deniedKeep)
		}
	})
}
