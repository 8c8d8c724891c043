package main

import (
	"encoding/xml"
	"os"
	"strings"
	"testing"

	"github.com/thaw-project/thaw/internal/testenv"
)

// TestMeasureBudget: a measurement is judged as it ends, kept, and judged again, looked
// into and compared afterwards.
func TestMeasureBudget(t *testing.T) {
	testenv.NeedRuntime(t)
	n := newNode(t)
	junit, record := n.path("junit.xml"), n.path("record.json")
	r := n.start(n.measureArgs("nginx", "/ready", "--net", "none", "--mode", "no-index", "--runs", "5", "--budget", "cold-start.p50<=10m", "--budget", "image.compressed<=1kB",
		"--junit", junit, "--json-file", record)...).waitSteps("nginx 5/5")
	if r.code != exitFailed || !strings.Contains(r.stdout, "FAIL  nginx  image.compressed<=1kB") || !strings.Contains(r.stdout, "ok    nginx  cold-start.p50<=10m") {
		t.Fatal(r)
	}
	n.measureLeft()
	b, err := os.ReadFile(junit)
	if err != nil {
		t.Fatal(err)
	}
	var suites struct {
		Suite struct {
			Tests    int `xml:"tests,attr"`
			Failures int `xml:"failures,attr"`
		} `xml:"testsuite"`
	}
	if err := xml.Unmarshal(b, &suites); err != nil || suites.Suite.Tests != 2 || suites.Suite.Failures != 1 {
		t.Errorf("%+v, %v: %s", suites, err, b)
	}
	id := strings.TrimSpace(n.thaw("runs", "ls", "-q"))
	for args, want := range map[string]string{
		"runs check last --budget cold-start.p50<=10m":        "The start keeps to its budget: 1 ok.",
		"runs check last --margin 1000% --baseline " + record: "ok  nginx  cold-start at most 1000 % over the baseline ",
		"time " + id:                       "Startup finished in ",
		"blame last":                       "lib:libc.so.6 ",
		"critical-chain " + id[:len(id)-1]: "└─requested @0.0ms",
		"plot " + record:                   "nginx: ready after ",
		"runs compare last " + record:      "No evidence that nginx starts faster or slower than nginx",
		"runs show last":                   "nginx (no-index, L0): 5 runs, ready after ",
	} {
		if out := n.thaw(strings.Fields(args)...); !strings.Contains(out, want) {
			t.Errorf("%s: no %q in\n%s", args, want, out)
		}
	}
	// The percentile that nobody named takes ten runs.
	if r := n.try("runs", "check", "last", "--budget", "10m"); r.code != exitInvalid || !strings.Contains(r.stdout, "only 5 runs, p95 takes 10") {
		t.Error(r)
	}
}
