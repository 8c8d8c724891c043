package metrics

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// TestHandler: what a scraper gets is what was put in, in the format it asks for.
func TestHandler(t *testing.T) {
	h := NewHistogram(time.Millisecond, time.Second)
	for _, d := range []time.Duration{0, time.Millisecond, 2 * time.Millisecond, time.Minute} {
		h.Observe(d)
	}
	srv := httptest.NewServer(Handler(func(s *Set) {
		s.Counter("things_total", "Things.", 3, Label{Name: "kind", Value: "odd \"\n\xff"})
		s.Counter("things_total", "", 4, Label{Name: "kind", Value: "even"})
		s.Gauge("level", "A level.", 1.5)
		h.Put(s, "took_seconds", "How long.", Label{Name: "phase", Value: "x"})
	}))
	defer srv.Close()
	for accept, want := range map[string]string{
		"": `# HELP level A level.
# TYPE level gauge
level 1.5
# HELP things_total Things.
# TYPE things_total counter
things_total{kind="odd \"\n` + "\uFFFD" + `"} 3
things_total{kind="even"} 4
# HELP took_seconds How long.
# TYPE took_seconds histogram
took_seconds_bucket{phase="x",le="0.001"} 2
took_seconds_bucket{phase="x",le="1"} 3
took_seconds_bucket{phase="x",le="+Inf"} 4
took_seconds_sum{phase="x"} 60.003
took_seconds_count{phase="x"} 4
`,
		"application/openmetrics-text;version=1.0.0": "# TYPE things counter",
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Accept", accept)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || !strings.Contains(string(body), want) {
			t.Errorf("accept %q: %v\n%s\nwant\n%s", accept, err, body, want)
		}
		if accept != "" {
			if !strings.HasSuffix(string(body), "# EOF\n") {
				t.Errorf("OpenMetrics without its end: %s", body)
			}
			continue
		}
		parser := expfmt.NewTextParser(model.UTF8Validation)
		families, err := parser.TextToMetricFamilies(strings.NewReader(string(body)))
		if err != nil || len(families) != 3 {
			t.Errorf("%d families, %v", len(families), err)
		}
	}
}

// TestScrapes: those that are too many are refused, not queued.
func TestScrapes(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	h := Handler(func(*Set) { entered <- struct{}{}; <-leave })
	done := make(chan int, maxScrapes)
	get := func() int {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
		return w.Code
	}
	for range maxScrapes {
		go func() { done <- get() }()
		<-entered
	}
	if code := get(); code != http.StatusServiceUnavailable {
		t.Errorf("one scrape too many: status %d", code)
	}
	close(leave)
	for range maxScrapes {
		if code := <-done; code != http.StatusOK {
			t.Errorf("status %d", code)
		}
	}
}
