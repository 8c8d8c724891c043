package export

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"
)

const lines = `{"image":"a","begun":"2026-01-02T03:04:05Z","phases":[{"name":"mount","start":"2026-01-02T03:04:05Z","end":"2026-01-02T03:04:06Z","detail":"x"}]}
rubbish
{"image":"b","begun":"2026-01-02T03:04:05Z","error":"it failed","traceparent":"00-nonsense"}
`

// TestServe: all that came before the end of the input is sent, what cannot be read is
// passed over.
func TestServe(t *testing.T) {
	var spans atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		var req collector.ExportTraceServiceRequest
		if err != nil || proto.Unmarshal(b, &req) != nil {
			t.Error("not a request of OTLP")
		}
		for _, rs := range req.ResourceSpans {
			for _, ss := range rs.ScopeSpans {
				spans.Add(int64(len(ss.Spans)))
			}
		}
	}))
	defer srv.Close()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", srv.URL)
	if err := Serve(t.Context(), strings.NewReader(lines), Options{}); err != nil {
		t.Fatal(err)
	}
	if n := spans.Load(); n != 3 {
		t.Errorf("%d spans, want 3", n)
	}
}

// TestServeWrong: what the environment asks for in vain is said, and a collector that is
// not there holds the end up for a moment only.
func TestServeWrong(t *testing.T) {
	for _, c := range []struct{ name, value, want string }{
		{"OTEL_EXPORTER_OTLP_PROTOCOL", "smoke", "smoke"},
		{"OTEL_TRACES_EXPORTER", "zipkin", "zipkin"},
		{"OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1", ""}, // the SDK says it
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv(c.name, c.value)
			if err := Serve(t.Context(), strings.NewReader(lines), Options{}); (err != nil) != (c.want != "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}
