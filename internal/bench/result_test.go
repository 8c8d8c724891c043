package bench

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

func TestFloor(t *testing.T) {
	f := Floor{RoundTrips: 3, LatencyMs: 20, NeededBytes: 5_000_000, Bandwidth: 250_000_000, WarmMs: 85}
	if !near(f.Ms(), 60+20+85) {
		t.Errorf("floor %v", f.Ms())
	}
	const want = "3 round trips x 20 ms + 5MB / 250MB/s + warm 85 ms = 60 + 20 + 85 = 165 ms"
	if f.String() != want {
		t.Errorf("arithmetic %q, want %q", f, want)
	}
	f.Bandwidth = 0
	if !near(f.Ms(), 60+85) || !strings.Contains(f.String(), "unlimited") {
		t.Errorf("without a limit %s", f)
	}
}

// made is a result of three runs of three modes.
func made(line *Line) *Result {
	opts := Options{Runs: 3, Line: line, Limit: 0.2, Read: "/bin/x", Pages: []string{"http://p/"}, Modes: []Mode{
		{Name: "eager", Eager: true, Registry: &Registry{}}, {Name: "lazy", Registry: &Registry{}}, {Name: "warm", Warm: true}}}
	r := newResult(opts)
	r.Image = "oci:x"
	r.setImage(Image{"sha256:1", 50_000_000})
	r.setImage(Image{}) // a way that does not say
	for i, name := range r.Order {
		m := r.Modes[name]
		for run := range 3 {
			m.ReadyMs = append(m.ReadyMs, float64(100*(3-i)+run))
			m.Residue = append(m.Residue, Residue{Files: run, StoredBytes: int64(1000 * i), CachedBytes: 500})
			m.firstRead, m.secondRead = append(m.firstRead, 20), append(m.secondRead, 2.5)
			m.Pages[0].first, m.Pages[0].second = append(m.Pages[0].first, 5), append(m.Pages[0].second, 0.25)
			if name != "warm" {
				m.bytes, m.requests = append(m.bytes, float64(10_000_000*(2-i)+run)), append(m.requests, float64(7+i))
			}
		}
	}
	r.finish(opts, map[string]int64{"lazy": 4_000_000})
	return r
}

func TestResult(t *testing.T) {
	r := made(&Line{Latency: 20 * time.Millisecond, Bandwidth: 250_000_000})
	eager, lazy, warm := r.Modes["eager"], r.Modes["lazy"], r.Modes["warm"]
	if want := 2*20 + 200 + 101.0; eager.FloorMs == nil || !near(*eager.FloorMs, want) || !near(*eager.FloorRatio, 301/want) {
		t.Errorf("floor of eager %+v", eager.Floor)
	}
	if want := 3*20 + 16 + 101.0; lazy.FloorMs == nil || !near(*lazy.FloorMs, want) || !near(*lazy.FloorRatio, 201/want) {
		t.Errorf("floor of lazy %+v: it needs what the run without background did", lazy.Floor)
	}
	if warm.FloorMs != nil || warm.BytesUntilReady != nil || warm.Cold || warm.CountedBy != "" {
		t.Errorf("warm %+v", warm)
	}
	if *lazy.BytesUntilReady != 10_000_001 || *lazy.RequestsUntilReady != 8 || lazy.CountedBy != "lab" || !lazy.Cold {
		t.Errorf("lazy %+v", lazy)
	}
	if r.Noise.Verdict != Quiet || r.Manifest != "sha256:1" || r.ImageBytes != 50_000_000 {
		t.Errorf("result %+v", r)
	}
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"version":1`, `"ready_ms":[200,201,202]`, `"median_ms":201`, `"bytes_until_ready":10000001`,
		`"requests_until_ready":8`, `"floor_ms":null`, `"first_read_ms":{"values":[20,20,20]`, `"verdict":"quiet"`} {
		if !strings.Contains(string(b), want) {
			t.Errorf("no %s in %s", want, b)
		}
	}
	if r := made(nil); r.Modes["lazy"].FloorMs != nil || r.Modes["lazy"].BytesUntilReady == nil {
		t.Error("a floor without a network")
	}
}

func TestRender(t *testing.T) {
	r := made(&Line{Latency: 20 * time.Millisecond, Bandwidth: 250_000_000})
	r.Network.Name = "cloud"
	var text, markdown strings.Builder
	if err := r.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	if err := r.WriteMarkdown(&markdown); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"oci:x: 50MB of layers; 3 interleaved runs; network cloud: 20 ms to the first byte, 250MB/s; ",
		"\nlazy      200  201  202  201     0 %     177    1.14   10MB     8\n",
		"floor of lazy: 3 round trips x 20 ms + 4MB / 250MB/s + warm 101 ms = 60 + 16 + 101 = 177 ms\n",
		"before each of 6 cold starts", "at most 1kB on disk and 500B in the page cache", "page http://p/ ms", "read of /bin/x ms",
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, &text)
		}
	}
	for _, want := range []string{"| ready ms | min | avg | max |", "\n|---|---|", "| lazy | 200 | 201 | 202 | 201 | 0 % | 177 | 1.14 | 10MB | 8 |\n",
		"| lazy | 20 | 20 | 20 | 20 | 2.50 | 2.50 | 2.50 | 2.50 |\n", "- floor of eager: "} {
		if !strings.Contains(markdown.String(), want) {
			t.Errorf("no %q in\n%s", want, &markdown)
		}
	}
	r.Noise = Noise{Verdict: Noisy, Limit: 0.2, Modes: []string{"lazy"}}
	if got := strings.Join(r.notes(), "\n"); !strings.Contains(got, "too noisy to say: the middle half of the runs of lazy") {
		t.Error(got)
	}
}
