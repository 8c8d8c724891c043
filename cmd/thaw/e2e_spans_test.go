package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/thaw-project/thaw/internal/spans"
)

// spanCollector is an OpenTelemetry collector that keeps what it gets.
type spanCollector struct {
	mu    sync.Mutex
	spans []*tracev1.Span
	names []string // of services
}

func (c *spanCollector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	var req collector.ExportTraceServiceRequest
	if err == nil {
		err = proto.Unmarshal(b, &req)
	}
	if err != nil || r.URL.Path != "/v1/traces" {
		http.Error(w, "not a trace", http.StatusBadRequest)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, rs := range req.ResourceSpans {
		for _, a := range rs.Resource.Attributes {
			if a.Key == "service.name" {
				c.names = append(c.names, a.Value.GetStringValue())
			}
		}
		for _, ss := range rs.ScopeSpans {
			c.spans = append(c.spans, ss.Spans...)
		}
	}
}

// of returns the spans of one trace, by their names.
func (c *spanCollector) of(trace string) map[string]*tracev1.Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	found := map[string]*tracev1.Span{}
	for _, s := range c.spans {
		if strings.Contains(string(s.TraceId), trace) {
			found[s.Name] = s
		}
	}
	return found
}

// newTracedNode is a node whose daemon sends traces to the collector.
func newTracedNode(t *testing.T) (*node, string, *spanCollector) {
	t.Helper()
	c := &spanCollector{}
	srv := httptest.NewServer(c)
	t.Cleanup(srv.Close)
	withPrograms(t, spans.Program)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", srv.URL)
	t.Setenv("OTEL_SERVICE_NAME", "thaw-under-test")
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
	n, ref := newRunNode(t)
	return n, ref, c
}

// TestSpans: a start is a trace with a span for each phase, below the caller's where
// there is one; a start that fails is one with an error.
func TestSpans(t *testing.T) {
	n, ref, c := newTracedNode(t)
	const id = "\x0a\xf7\x65\x19\x16\xcd\x43\xdd\x84\x48\xeb\x21\x1c\x80\x31\x9c"
	t.Setenv("TRACEPARENT", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	if r := n.try(n.readyArgs(ref)...); r.code != 0 {
		t.Fatal(r)
	}
	t.Setenv("TRACEPARENT", "")
	n.refuses(1, "thaw: error: ", "mount", ref+":none", n.mkdir())
	n.eventually("both starts are told", func() bool { return len(c.of("")) > 0 && c.of(id)["start"] != nil && hasFailed(c) })
	all := c.of(id)
	root := all["start"]
	want := []string{"create", "index", "mount", "ready", "resolve", "start"}
	for _, name := range []string{"resolve", "index", "mount", "create", "ready"} {
		s := all[name]
		if s == nil || string(s.ParentSpanId) != string(root.SpanId) || s.StartTimeUnixNano < root.StartTimeUnixNano || s.EndTimeUnixNano > root.EndTimeUnixNano ||
			s.EndTimeUnixNano < s.StartTimeUnixNano {
			t.Errorf("span %s is %v, below %v", name, s, root)
		}
	}
	for _, name := range want {
		if all[name] == nil {
			t.Errorf("there is no span %s", name)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.names) == 0 || slices.ContainsFunc(c.names, func(s string) bool { return s != "thaw-under-test" }) {
		t.Errorf("services %q", c.names)
	}
}

func hasFailed(c *spanCollector) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.ContainsFunc(c.spans, func(s *tracev1.Span) bool { return s.GetStatus().GetCode() == tracev1.Status_STATUS_CODE_ERROR })
}
