package aws

import (
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/smithy-go/encoding/cbor"
	"github.com/google/go-cmp/cmp"

	"github.com/thaw-project/thaw/internal/cloud"
	"github.com/thaw-project/thaw/internal/emit"
	"github.com/thaw-project/thaw/internal/profile/profiletest"
)

// fakeCloudWatch speaks CloudWatch's protocol (Smithy's RPC v2 with CBOR), and keeps what it
// got: sums by metric, dimensions, unit and minute.
type fakeCloudWatch struct {
	t      *testing.T
	refuse func(call int) (status int, code, message string) // nil: nothing

	mu    sync.Mutex // guards what follows
	calls int
	zip   int
	sums  map[string]float64
}

func (f *fakeCloudWatch) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	w.Header().Set("Smithy-Protocol", "rpc-v2-cbor")
	w.Header().Set("Content-Type", "application/cbor")
	if r.Method != http.MethodPost || r.URL.Path != "/service/GraniteServiceVersion20100801/operation/PutMetricData" || r.Header.Get("Smithy-Protocol") != "rpc-v2-cbor" ||
		!strings.Contains(r.Header.Get("Authorization"), "/eu-west-1/monitoring/aws4_request") {
		f.t.Errorf("%s %s %v", r.Method, r.URL, r.Header)
	}
	if f.refuse != nil {
		if status, code, message := f.refuse(f.calls); status != 0 {
			w.Header().Set("X-Amzn-Query-Error", code+";Sender")
			w.WriteHeader(status)
			w.Write(cbor.Encode(cbor.Map{"__type": cbor.String("com.amazonaws.cloudwatch#" + code), "message": cbor.String(message)}))
			return
		}
	}
	body := io.Reader(r.Body)
	if r.Header.Get("Content-Encoding") == "gzip" {
		f.zip++
		z, err := gzip.NewReader(r.Body)
		if err != nil {
			f.t.Error(err)
			return
		}
		body = z
	}
	b, err := io.ReadAll(body)
	if err != nil || len(b) > 1<<20 {
		f.t.Errorf("%d bytes, %v", len(b), err)
	}
	v, err := cbor.Decode(b)
	if err != nil {
		f.t.Error(err)
		return
	}
	f.take(v.(cbor.Map))
	w.Write(cbor.Encode(cbor.Map{}))
}

// take checks a call against the limits of PutMetricData and adds it up.
func (f *fakeCloudWatch) take(in cbor.Map) {
	data := in["MetricData"].(cbor.List)
	if len(data) == 0 || len(data) > 1000 {
		f.t.Errorf("%d data in a call", len(data))
	}
	for _, d := range data {
		d := d.(cbor.Map)
		values, counts := d["Values"].(cbor.List), d["Counts"].(cbor.List)
		at, err := cbor.AsTime(d["Timestamp"])
		if err != nil || len(values) == 0 || len(values) > 150 || len(values) != len(counts) || d["Value"] != nil {
			f.t.Errorf("%v: %d values, %d counts", err, len(values), len(counts))
		}
		id := fmt.Sprintf("%s %s %s %s", in["Namespace"], d["MetricName"], d["Unit"], at.UTC().Format(time.RFC3339))
		for _, dim := range d["Dimensions"].(cbor.List) {
			dim := dim.(cbor.Map)
			id += fmt.Sprintf(" %s=%s", dim["Name"], dim["Value"])
		}
		for i := range values {
			v, _ := cbor.AsFloat64(values[i])
			n, _ := cbor.AsFloat64(counts[i])
			f.sums[id] += v * n
		}
	}
}

// serve points the SDK at a fake.
func (f *fakeCloudWatch) serve() {
	f.t.Helper()
	f.sums = map[string]float64{}
	srv := httptest.NewServer(f)
	f.t.Cleanup(srv.Close)
	for name, value := range map[string]string{"AWS_ENDPOINT_URL_CLOUDWATCH": srv.URL, "AWS_REGION": "eu-west-1", "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "secret",
		"AWS_CONFIG_FILE": "/nowhere", "AWS_SHARED_CREDENTIALS_FILE": "/nowhere", "AWS_EC2_METADATA_DISABLED": "true"} {
		f.t.Setenv(name, value)
	}
}

func metricsArgs(t *testing.T, calls []emit.Call) json.RawMessage {
	t.Helper()
	raw, err := json.Marshal(calls)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(cloud.Metrics{Calls: raw})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func starts(t *testing.T) []emit.Start {
	t.Helper()
	r := profiletest.Record(3)
	for i := range r.Subjects { // enough for several calls
		s := &r.Subjects[i]
		for n := range 300 {
			run := s.Runs[n%15]
			run.Begun = run.Begun.Add(time.Duration(n) * time.Hour)
			s.Runs = append(s.Runs, run)
		}
	}
	all, err := emit.Starts(r, emit.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestMetrics: what CloudWatch gets is the sum of all starts, by minute and dimension set.
func TestMetrics(t *testing.T) {
	all := starts(t)
	calls, err := emit.PutMetricData(all, emit.ResolutionStandard)
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeCloudWatch{t: t}
	f.serve()
	if err := Metrics(t.Context(), metricsArgs(t, calls), nil); err != nil {
		t.Fatal(err)
	}
	want := map[string]float64{}
	for i := range all {
		s := &all[i]
		for _, dims := range []string{"Service=" + s.Service, "Service=" + s.Service + " TaskDefinition=" + s.TaskDefinition} {
			at := s.At.Truncate(time.Minute).Format(time.RFC3339)
			want["ECS/ColdStart ColdStartCount Count "+at+" "+dims]++
			want["ECS/ColdStart ColdStartDuration Milliseconds "+at+" "+dims] += *s.DurationMs
			for _, p := range s.Phases {
				want["ECS/ColdStart "+emit.MetricPhase(p.Name)+" Milliseconds "+at+" "+dims] += p.Ms
			}
		}
	}
	if diff := cmp.Diff(want, f.sums, cmp.Comparer(func(a, b float64) bool { return a-b < 1e-6 && b-a < 1e-6 })); diff != "" {
		t.Error(diff)
	}
	if f.calls != len(calls) || f.calls < 3 || f.zip == 0 {
		t.Errorf("%d calls, %d of them compressed, want %d", f.calls, f.zip, len(calls))
	}
}

// TestMetricsRefused: errors say what is to be done about them.
func TestMetricsRefused(t *testing.T) {
	calls, err := emit.PutMetricData(starts(t), emit.ResolutionStandard)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		refuse        func(int) (int, string, string)
		message, hint string
	}{
		"denied": {func(int) (int, string, string) {
			return 403, "AccessDenied", "User is not authorized to perform: cloudwatch:PutMetricData"
		},
			"cloudwatch:PutMetricData: AccessDenied: User is not authorized", "the IAM policy of who asks needs Allow for cloudwatch:PutMetricData on *"},
		"later": {func(n int) (int, string, string) {
			if n < 3 {
				return 0, "", ""
			}
			return 400, "InvalidParameterValue", "The parameter MetricData.member.1.Timestamp must specify a time no more than two weeks in the past."
		}, "two weeks in the past.; 2 of ", ""},
		"expired": {func(int) (int, string, string) {
			return 403, "ExpiredToken", "The security token included in the request is expired"
		}, "ExpiredToken", "sign in again"},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fakeCloudWatch{t: t, refuse: c.refuse}
			f.serve()
			err := Metrics(t.Context(), metricsArgs(t, calls), nil)
			var e *cloud.Error
			if !errors.As(err, &e) || !strings.Contains(e.Message, c.message) || !strings.Contains(e.Hint, c.hint) {
				t.Errorf("%+v", err)
			}
		})
	}
	t.Run("throttled for a moment", func(t *testing.T) {
		f := &fakeCloudWatch{t: t, refuse: func(n int) (int, string, string) {
			if n == 1 {
				return 400, "Throttling", "Rate exceeded"
			}
			return 0, "", ""
		}}
		f.serve()
		if err := Metrics(t.Context(), metricsArgs(t, calls[:1]), nil); err != nil || f.calls != 2 {
			t.Errorf("%d calls, %v", f.calls, err)
		}
	})
	t.Run("no region", func(t *testing.T) {
		(&fakeCloudWatch{t: t}).serve()
		t.Setenv("AWS_REGION", "")
		if err := Metrics(t.Context(), metricsArgs(t, calls[:1]), nil); err == nil || !strings.Contains(err.Error(), "no AWS region") {
			t.Error(err)
		}
	})
	if err := Metrics(t.Context(), []byte("["), nil); err == nil {
		t.Error("rubbish was taken")
	}
}
