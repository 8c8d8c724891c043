package hydrate

import (
	"testing"
	"time"
)

func TestRunBytes(t *testing.T) {
	const mb = 1_000_000
	for _, test := range []struct {
		name    string
		latency time.Duration
		rate    int64
		want    int64
	}{
		{"cloud", 20 * time.Millisecond, 30 * mb, runBytes},
		{"slow", 50 * time.Millisecond, 3 * mb, 1_200_000},
		{"a bad line", 10 * time.Millisecond, mb, runLeast},
		{"in the same rack", 2 * time.Millisecond, 100 * mb, 1_600_000},
	} {
		var p path
		if got := p.runBytes(runBytes); got != runBytes {
			t.Errorf("%s: %d bytes before anything is known", test.name, got)
		}
		for range 50 {
			p.measured(test.latency, time.Second, test.rate)
			p.measured(test.latency, time.Nanosecond, 100) // says nothing
		}
		if got := p.runBytes(runBytes); got < test.want*99/100 || got > test.want {
			t.Errorf("%s: %d bytes, want %d", test.name, got, test.want)
		}
	}
	// It follows a network that changes.
	var p path
	for range 50 {
		p.measured(20*time.Millisecond, time.Second, 60*mb)
	}
	for range 50 {
		p.measured(20*time.Millisecond, time.Second, 4*mb)
	}
	if got := p.runBytes(runBytes); got < 600_000 || got > 700_000 {
		t.Errorf("%d bytes after the network slowed down", got)
	}
}
