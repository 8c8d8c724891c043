package main

import (
	"bytes"
	"compress/gzip"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/smithy-go/encoding/cbor"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/thaw-project/thaw/internal/cloud"
	"github.com/thaw-project/thaw/internal/profile"
	"github.com/thaw-project/thaw/internal/profile/profiletest"
	"github.com/thaw-project/thaw/internal/spans"
)

// withPrograms puts this binary into the PATH as programs of ours.
func withPrograms(t *testing.T, names ...string) {
	t.Helper()
	bin := t.TempDir()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if err := os.Symlink(exe, filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", bin+string(os.PathListSeparator)+os.Getenv("PATH"))
}

// recordFile is a record of python-ml's starts in a file, and the record.
func recordFile(t *testing.T) (string, *profile.Record) {
	t.Helper()
	r := profiletest.Modes(5, profiletest.PythonML)
	for i := range r.Subjects {
		r.Subjects[i].Runs = r.Subjects[i].Runs[:2]
	}
	r.Subjects[1].Runs[1].Error = "it died"
	b, err := profile.Encode(r)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "run.json")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return file, r
}

// emits runs thaw emit in this process.
func emits(t *testing.T, args ...string) (code int, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), append([]string{"emit"}, args...), strings.NewReader(""), &out, &errs)
	if out.Len() > 0 {
		t.Errorf("printed %s", &out)
	}
	return code, errs.String()
}

func attributesOf(s *tracev1.Span) map[string]any {
	all := map[string]any{}
	for _, a := range s.Attributes {
		switch {
		case a.Value.GetStringValue() != "":
			all[a.Key] = a.Value.GetStringValue()
		case strings.HasSuffix(a.Key, "_ms"):
			all[a.Key] = a.Value.GetDoubleValue()
		default:
			all[a.Key] = a.Value.GetIntValue()
		}
	}
	return all
}

// TestEmitOTLP: a trace a start, a span a phase; sent twice they are the same; and a
// collector that is not there, or wants none, is an error.
func TestEmitOTLP(t *testing.T) {
	withPrograms(t, spans.Program)
	file, r := recordFile(t)
	c := &spanCollector{}
	srv := httptest.NewServer(c)
	defer srv.Close()
	for range 2 {
		if code, stderr := emits(t, "otlp", file, "--endpoint", srv.URL, "--service", "shop-api"); code != 0 || stderr != "sent 4 traces\n" {
			t.Fatal(code, stderr)
		}
	}
	traces := map[string]map[string]*tracev1.Span{} // by trace and name
	seen := map[string]int{}
	for _, s := range c.spans {
		if traces[string(s.TraceId)] == nil {
			traces[string(s.TraceId)] = map[string]*tracev1.Span{}
		}
		traces[string(s.TraceId)][s.Name] = s
		seen[string(s.SpanId)]++
	}
	if len(traces) != 4 {
		t.Fatalf("%d traces of 4 starts", len(traces))
	}
	for id, n := range seen {
		if n != 2 {
			t.Errorf("span %x came %d times", id, n)
		}
	}
	failed := 0
	for _, all := range traces {
		root := all["cold start"]
		if root == nil || len(root.ParentSpanId) != 0 {
			t.Fatalf("spans %v", all)
		}
		a := attributesOf(root)
		s := &r.Subjects[0]
		if a["coldstart.subject"] == r.Subjects[1].Name {
			s = &r.Subjects[1]
		}
		run := &s.Runs[a["coldstart.run"].(int64)-1]
		if run.Error != "" {
			failed++
			if root.Status.GetCode() != tracev1.Status_STATUS_CODE_ERROR || root.Status.GetMessage() != "it died" {
				t.Errorf("status %v", root.Status)
			}
		} else if took := float64(root.EndTimeUnixNano-root.StartTimeUnixNano) / 1e6; took < *run.TotalMs-0.01 || a["coldstart.total_ms"] != *run.TotalMs {
			t.Errorf("it took %g ms, says %v, was %g", took, a["coldstart.total_ms"], *run.TotalMs)
		}
		if root.StartTimeUnixNano != uint64(run.Begun.UnixNano()) || a["coldstart.service"] != "shop-api" || a["coldstart.record"] != r.ID || a["coldstart.cold"] != "L0" ||
			a["container.id"] != run.Container || a["container.image.name"] != s.Image || a["thaw.mode"] != s.Mode || a["coldstart.first_request_penalty_ms"] == 0. {
			t.Errorf("attributes %v", a)
		}
		if _, ok := a["thaw.network.bytes"]; ok {
			t.Error("it says what it does not know")
		}
		for _, p := range run.Phases {
			span := all[p.Name]
			if (p.StartMs == nil) != (span == nil) {
				t.Errorf("phase %s: %v", p.Name, span)
			}
			if span == nil {
				continue
			}
			if took := float64(span.EndTimeUnixNano-span.StartTimeUnixNano) / 1e6; took < *p.Ms-0.01 || took > *p.Ms+0.01 || string(span.ParentSpanId) != string(root.SpanId) {
				t.Errorf("%s takes %g ms, want %g", p.Name, took, *p.Ms)
			}
			a := attributesOf(span)
			if a["coldstart.source"] != p.Source || a["coldstart.confidence"] != p.Confidence {
				t.Errorf("%s: %v", p.Name, a)
			}
			if p.Bytes != nil && a["coldstart.bytes"] != *p.Bytes || p.LazyWaitMs != nil && a["coldstart.lazy_wait_ms"] != *p.LazyWaitMs {
				t.Errorf("%s: %v, want %d bytes, %g ms", p.Name, a, *p.Bytes, *p.LazyWaitMs)
			}
		}
	}
	if failed != 1 {
		t.Errorf("%d failed", failed)
	}

	srv.Close()
	if code, stderr := emits(t, "otlp", file, "--endpoint", srv.URL); code != 1 || !strings.Contains(stderr, "connection refused") {
		t.Errorf("no collector: %d, %s", code, stderr)
	}
	refusing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "go away", http.StatusForbidden) }))
	defer refusing.Close()
	if code, stderr := emits(t, "otlp", file, "--endpoint", refusing.URL); code != 1 || !strings.Contains(stderr, "403") {
		t.Errorf("a collector that refuses: %d, %s", code, stderr)
	}
	t.Setenv("OTEL_SDK_DISABLED", "true")
	if code, stderr := emits(t, "otlp", file, "--endpoint", srv.URL); code != 1 || !strings.Contains(stderr, "go nowhere") {
		t.Errorf("disabled: %d, %s", code, stderr)
	}
}

// TestEmitCloudWatch: through thaw-cloud to what speaks CloudWatch's protocol, and its no.
func TestEmitCloudWatch(t *testing.T) {
	withPrograms(t, cloud.Program)
	file, _ := recordFile(t)
	counts := 0.
	denied := false
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Smithy-Protocol", "rpc-v2-cbor")
		w.Header().Set("Content-Type", "application/cbor")
		if denied {
			w.WriteHeader(http.StatusForbidden)
			_, _ = w.Write(cbor.Encode(cbor.Map{"__type": cbor.String("AccessDenied"), "message": cbor.String("no")}))
			return
		}
		var body io.Reader = r.Body
		if r.Header.Get("Content-Encoding") == "gzip" {
			z, err := gzip.NewReader(r.Body)
			if err != nil {
				t.Error(err)
				return
			}
			body = z
		}
		b, err := io.ReadAll(body)
		if err != nil {
			t.Error(err)
		}
		v, err := cbor.Decode(b)
		if err != nil {
			t.Error(err)
			return
		}
		for _, d := range v.(cbor.Map)["MetricData"].(cbor.List) {
			if d := d.(cbor.Map); d["MetricName"] == cbor.String("ColdStartCount") && len(d["Dimensions"].(cbor.List)) == 1 {
				n, _ := cbor.AsFloat64(d["Counts"].(cbor.List)[0])
				counts += n
			}
		}
		_, _ = w.Write(cbor.Encode(cbor.Map{}))
	}))
	defer srv.Close()
	for name, value := range map[string]string{"AWS_ENDPOINT_URL_CLOUDWATCH": srv.URL, "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "secret",
		"AWS_CONFIG_FILE": "/nowhere", "AWS_SHARED_CREDENTIALS_FILE": "/nowhere", "AWS_EC2_METADATA_DISABLED": "true"} {
		t.Setenv(name, value)
	}
	if code, stderr := emits(t, "cloudwatch", file, "--region", "eu-west-1"); code != 0 || counts != 4 || !strings.Contains(stderr, "sent 4 starts in 1 call\n") {
		t.Errorf("%d, %g starts, %s", code, counts, stderr)
	}
	denied = true
	if code, stderr := emits(t, "cloudwatch", file, "--region", "eu-west-1"); code != 1 || !strings.Contains(stderr, "thaw: hint: the IAM policy of who asks needs Allow for cloudwatch:PutMetricData") {
		t.Errorf("denied: %d, %s", code, stderr)
	}
}

// TestColdStartMetrics: the daemon counts its containers' starts, tells a series as 0 first,
// and what it says of how long they took is what thaw run says.
func TestColdStartMetrics(t *testing.T) {
	t.Parallel()
	addr := "127.0.0.1:" + freePort(t)
	n, ref := newRunNode(t, "metrics = \""+addr+"\"")
	first := n.timelineOf(ref)
	m := n.scrape(addr)
	if m["coldstart_seconds"] == nil || m.value("coldstart_seconds") != 0 || m.value("coldstart_starts_total") != 0 {
		t.Errorf("a series that was never told: %v", m["coldstart_seconds"])
	}
	second := n.timelineOf(ref)
	if r := n.run("--ready", "tcp:127.0.0.1:1", "--entrypoint", "sh", ref, "-c", "exit 3"); r.code != 3 {
		t.Fatal(r)
	}
	n.refuses(125, "", n.runArgs(ref+"-none")...)
	n.scrape(addr) // of series that came since
	m = n.scrape(addr)
	for _, c := range []struct {
		metric string
		labels []string
		want   float64
	}{
		{"coldstart_starts_total", []string{"service=nginx"}, 3},
		{"coldstart_starts_total", []string{"service=nginx", "mode=lazy", "cold=L0"}, 1},
		{"coldstart_starts_total", []string{"service=nginx", "mode=lazy", "cold=unknown"}, 2},
		{"coldstart_failures_total", []string{"service=nginx"}, 1},
		{"coldstart_failures_total", []string{"service=nginx-none"}, 1},
		{"coldstart_seconds", []string{"service=nginx"}, 2},
		{"coldstart_phase_seconds", []string{"service=nginx", "phase=queue"}, 2},
		{"coldstart_phase_seconds", []string{"service=nginx", "phase=image_pull"}, 2},
		{"coldstart_phase_seconds", []string{"service=nginx", "phase=runtime_init"}, 2},
		{"coldstart_phase_seconds", []string{"service=nginx", "phase=dependency_load"}, 0},
	} {
		if got := m.value(c.metric, c.labels...); got != c.want {
			t.Errorf("%s%v is %v, want %v", c.metric, c.labels, got, c.want)
		}
	}
	sum, phases := 0.0, 0.0
	for _, one := range m["coldstart_seconds"].Metric {
		sum += one.Histogram.GetSampleSum()
	}
	for _, one := range m["coldstart_phase_seconds"].Metric {
		for _, l := range one.Label {
			if l.GetName() == "phase" && l.GetValue() != "hydration" {
				phases += one.Histogram.GetSampleSum()
			}
		}
	}
	want := (*first.ReadyMs + *second.ReadyMs) / 1000
	if sum < want-0.001 || sum > want+0.001 || phases <= 0 || phases >= sum {
		t.Errorf("two starts took %g s, phases of them %g; thaw run says %g", sum, phases, want)
	}
}
