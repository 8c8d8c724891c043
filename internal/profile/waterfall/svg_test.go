package waterfall

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/thaw-project/thaw/internal/profile"
	"github.com/thaw-project/thaw/internal/profile/profiletest"
)

// wellFormed fails unless b is XML that needs nothing from elsewhere.
func wellFormed(t *testing.T, b []byte) {
	t.Helper()
	for d := xml.NewDecoder(bytes.NewReader(b)); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%v in %s", err, b)
		}
		if e, ok := token.(xml.StartElement); ok {
			for _, a := range e.Attr {
				if a.Name.Local == "href" || a.Name.Local == "src" || strings.HasPrefix(a.Name.Local, "on") || strings.Contains(a.Value, "NaN") || strings.Contains(a.Value, "Inf") || (a.Name.Local == "width" && strings.HasPrefix(a.Value, "-")) {
					t.Errorf("%s has %s=%q", e.Name.Local, a.Name.Local, a.Value)
				}
			}
		}
	}
	if bytes.Contains(b, []byte("url(")) || bytes.Contains(b, []byte("@import")) {
		t.Error("it refers to something elsewhere")
	}
}

func TestDraw(t *testing.T) {
	r := profiletest.Record(1)
	for i := range r.Subjects {
		run, _ := r.Subjects[i].MedianRun()
		var b bytes.Buffer
		if err := Draw(&b, &r.Subjects[i], run, Options{Title: r.Subjects[i].Name, Subtitle: "<a & b>"}); err != nil {
			t.Fatal(err)
		}
		wellFormed(t, b.Bytes())
		for _, want := range []string{">image_pull<", "&lt;a &amp; b&gt;", "ready @", "prefers-color-scheme:dark", "unknown: nothing is known of a load balancer", `class="wait"`, `class="package"`} {
			if !strings.Contains(b.String(), want) {
				t.Errorf("%s: no %s", r.Subjects[i].Name, want)
			}
		}
	}
}

// TestDrawMany: a picture is no larger than somebody can look at, whatever a record has.
func TestDrawMany(t *testing.T) {
	var r profile.Run
	for i := range 20_000 {
		at := float64(i)
		r.Waits = append(r.Waits, profile.Wait{StartMs: at, EndMs: at + 0.5})
		r.Requests = append(r.Requests, profile.Request{Route: "GET /", N: 1, EndMs: 20_000})
		r.Processes = append(r.Processes, profile.Process{Command: "sh", StartMs: at})
	}
	var b bytes.Buffer
	if err := Draw(&b, &profile.Subject{}, &r, Options{}); err != nil {
		t.Fatal(err)
	}
	wellFormed(t, b.Bytes())
	if b.Len() > 8<<20 || strings.Count(b.String(), `class="request"`) != maxRequests || strings.Count(b.String(), `class="process"`) != maxProcesses {
		t.Errorf("%d bytes, %d requests", b.Len(), strings.Count(b.String(), `class="request"`))
	}
}

// TestDrawOdd: what a start may be short of, and names that would be markup.
func TestDrawOdd(t *testing.T) {
	ms := func(f float64) *float64 { return &f }
	for name, r := range map[string]profile.Run{
		"nothing": {},
		"markup":  {Processes: []profile.Process{{Pid: 1, Command: `</text><script>alert(1)</script>` + "\x00\x1b"}}, Requests: []profile.Request{{Route: `GET /"><x`, N: 1, StartMs: 1, EndMs: 2}}},
		"before":  {Events: []profile.Event{{Name: profile.EventStarted, AtMs: -500}, {Name: profile.EventReady, AtMs: 500}}, Phases: []profile.Phase{{Name: profile.PhaseQueue, StartMs: ms(-1), EndMs: ms(-1), Ms: ms(0)}}},
		"days":    {Events: []profile.Event{{Name: profile.EventReady, AtMs: 1e10}}},
		"unknown": {Phases: []profile.Phase{{Name: profile.PhasePull, Confidence: profile.Unknown, Reason: "no & clock"}}},
	} {
		var b bytes.Buffer
		if err := Draw(&b, &profile.Subject{}, &r, Options{Title: name}); err != nil {
			t.Fatal(err)
		}
		wellFormed(t, b.Bytes())
		if strings.Contains(b.String(), "<script") {
			t.Error("markup got through")
		}
	}
}

func TestStep(t *testing.T) {
	for length, want := range map[float64]float64{1: 0.1, 100: 10, 480: 50, 1200: 100, 2500: 500, 60_000: 5000} {
		if got := step(length); got != want {
			t.Errorf("%v: a line each %v, want %v", length, got, want)
		}
	}
}
