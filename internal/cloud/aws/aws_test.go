package aws

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/thaw-project/thaw/internal/cloud"
	documents "github.com/thaw-project/thaw/internal/sources/ecs"
)

// fakeAWS speaks ECS' protocol (AWS JSON 1.1) and that of the load balancers (AWS query).
type fakeAWS struct {
	*testing.T
	mu     sync.Mutex
	tasks  []map[string]any // as DescribeTasks has them on the wire: times are seconds
	deny   string           // action that is not allowed
	faults []func(w http.ResponseWriter)
	asked  []string // actions
	looks  int      // at target health
	signed bool
}

func newFakeAWS(t *testing.T) *fakeAWS {
	t.Helper()
	f := &fakeAWS{T: t, signed: true}
	s := httptest.NewServer(f)
	t.Cleanup(s.Close)
	empty := filepath.Join(t.TempDir(), "none")
	for name, value := range map[string]string{"AWS_ENDPOINT_URL": s.URL, "AWS_REGION": "us-west-2", "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "secret",
		"AWS_CONFIG_FILE": empty, "AWS_SHARED_CREDENTIALS_FILE": empty, "AWS_EC2_METADATA_DISABLED": "true", "AWS_PROFILE": "", "AWS_SESSION_TOKEN": ""} {
		t.Setenv(name, value)
	}
	return f
}

const target = "AmazonEC2ContainerServiceV20141113."

func (f *fakeAWS) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !strings.HasPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/") {
		f.signed = false
	}
	action, ours := strings.CutPrefix(r.Header.Get("X-Amz-Target"), target)
	if !ours {
		f.Error(r.ParseForm())
		action = r.Form.Get("Action")
	}
	f.asked = append(f.asked, action)
	if len(f.faults) > 0 {
		fault := f.faults[0]
		f.faults = f.faults[1:]
		fault(w)
		return
	}
	if action == f.deny {
		if !ours {
			f.queryError(w, 403, "AccessDenied", "User is not authorized to perform: elasticloadbalancing:"+action)
			return
		}
		f.jsonError(w, "AccessDeniedException", "User is not authorized to perform: ecs:"+action)
		return
	}
	var in struct {
		Tasks         []string `json:"tasks"`
		NextToken     string   `json:"nextToken"`
		DesiredStatus string   `json:"desiredStatus"`
		Cluster       string   `json:"cluster"`
		Services      []string `json:"services"`
		ServiceName   string   `json:"serviceName"`
	}
	if ours {
		f.Error(json.NewDecoder(r.Body).Decode(&in))
	}
	switch action {
	case "ListTasks":
		f.listTasks(w, in.DesiredStatus, in.NextToken)
	case "DescribeTasks":
		if len(in.Tasks) > 100 || len(in.Tasks) == 0 {
			f.jsonError(w, "InvalidParameterException", "Tasks cannot have more than 100 elements.")
			return
		}
		var out []map[string]any
		for _, t := range f.tasks {
			if slices.Contains(in.Tasks, t["taskArn"].(string)) {
				out = append(out, t)
			}
		}
		f.answer(w, map[string]any{"tasks": out, "failures": []any{map[string]string{"arn": "gone", "reason": "MISSING"}}})
	case "DescribeServices":
		if in.Cluster == "none" {
			f.jsonError(w, "ClusterNotFoundException", "Cluster not found.")
			return
		}
		if in.Services[0] == "none" {
			f.answer(w, map[string]any{"services": []any{}, "failures": []any{}})
			return
		}
		f.answer(w, map[string]any{"services": []any{map[string]any{"serviceName": "api", "loadBalancers": []any{map[string]any{"targetGroupArn": "tg-1", "containerPort": 8080}}}}})
	case "DescribeTargetHealth":
		state := "initial"
		if f.looks++; f.looks > 1 {
			state = "healthy"
		}
		fmt.Fprintf(w, `<DescribeTargetHealthResponse xmlns="http://elasticloadbalancing.amazonaws.com/doc/2015-12-01/"><DescribeTargetHealthResult><TargetHealthDescriptions>
<member><HealthCheckPort>8080</HealthCheckPort><TargetHealth><State>%s</State></TargetHealth><Target><Port>8080</Port><Id>10.0.215.105</Id></Target></member>
</TargetHealthDescriptions></DescribeTargetHealthResult><ResponseMetadata><RequestId>1</RequestId></ResponseMetadata></DescribeTargetHealthResponse>`, state)
	default:
		f.jsonError(w, "InvalidAction", action)
	}
}

// Error fails the test if there is an error.
func (f *fakeAWS) Error(err error) {
	if err != nil {
		f.T.Error(err)
	}
}

// listTasks gives the tasks of a status, ten a page.
func (f *fakeAWS) listTasks(w http.ResponseWriter, status, token string) {
	var arns []string
	for _, t := range f.tasks {
		if stopped := t["lastStatus"] == "STOPPED"; stopped == (status == "STOPPED") {
			arns = append(arns, t["taskArn"].(string))
		}
	}
	from := 0
	_, _ = fmt.Sscanf(token, "page-%d", &from)
	out := map[string]any{"taskArns": arns[from:min(from+10, len(arns))]}
	if from+10 < len(arns) {
		out["nextToken"] = fmt.Sprintf("page-%d", from+10)
	}
	f.answer(w, out)
}

func (f *fakeAWS) answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	f.Error(json.NewEncoder(w).Encode(v))
}

func (f *fakeAWS) jsonError(w http.ResponseWriter, code, message string) {
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	w.WriteHeader(http.StatusBadRequest)
	f.Error(json.NewEncoder(w).Encode(map[string]string{"__type": code, "message": message}))
}

func (f *fakeAWS) queryError(w http.ResponseWriter, status int, code, message string) {
	w.WriteHeader(status)
	fmt.Fprintf(w, `<ErrorResponse xmlns="http://elasticloadbalancing.amazonaws.com/doc/2015-12-01/"><Error><Type>Sender</Type><Code>%s</Code><Message>%s</Message></Error><RequestId>1</RequestId></ErrorResponse>`, code, message)
}

// wire reads the recorded tasks as they are on the wire.
func wire(t *testing.T) []map[string]any {
	t.Helper()
	b, err := os.ReadFile("../../sources/ecs/testdata/describe-tasks.json")
	if err != nil {
		t.Fatal(err)
	}
	var in struct {
		Tasks []map[string]any `json:"tasks"`
	}
	if err := json.Unmarshal(b, &in); err != nil {
		t.Fatal(err)
	}
	for _, task := range in.Tasks {
		for name, v := range task {
			if s, ok := v.(string); ok && strings.HasSuffix(name, "At") {
				var at documents.Time
				if err := json.Unmarshal([]byte(`"`+s+`"`), &at); err != nil {
					t.Fatal(err)
				}
				task[name] = float64(at.UnixMicro()) / 1e6
			}
		}
	}
	return in.Tasks
}

// ask calls the handler as the program does, and reads what it sends.
func ask(t *testing.T, args cloud.ECS) (*documents.Reader, error) {
	t.Helper()
	raw, err := json.Marshal(args)
	if err != nil {
		t.Fatal(err)
	}
	var r documents.Reader
	return &r, ECS(t.Context(), raw, func(v any) error {
		b, err := json.Marshal(v)
		if err != nil {
			return err
		}
		return r.Read(b)
	})
}

// TestECS: what is asked for is what the command line of AWS would have printed.
func TestECS(t *testing.T) {
	f := newFakeAWS(t)
	f.tasks = wire(t)
	r, err := ask(t, cloud.ECS{Cluster: "shop"})
	if err != nil {
		t.Fatal(err)
	}
	got, err := r.Record(documents.Options{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile("../../sources/ecs/testdata/describe-tasks.json")
	if err != nil {
		t.Fatal(err)
	}
	var file documents.Reader
	if err := file.Read(b); err != nil {
		t.Fatal(err)
	}
	want, err := file.Record(documents.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if !f.signed {
		t.Error("requests were not signed")
	}
}

// TestPages: all of many tasks, none twice, no more at once than ECS takes; and what is
// throttled, or breaks off, is asked for again.
func TestPages(t *testing.T) {
	f := newFakeAWS(t)
	one := wire(t)[0]
	for i := range 234 {
		task := map[string]any{}
		for k, v := range one {
			task[k] = v
		}
		task["taskArn"] = fmt.Sprintf("arn:aws:ecs:us-west-2:111122223333:task/shop/%032d", i)
		if i >= 200 {
			task["lastStatus"] = "STOPPED"
		}
		f.tasks = append(f.tasks, task)
	}
	f.faults = append(f.faults, func(w http.ResponseWriter) { f.jsonError(w, "ThrottlingException", "Rate exceeded") },
		func(http.ResponseWriter) { panic(http.ErrAbortHandler) })
	r, err := ask(t, cloud.ECS{Cluster: "shop"})
	if err != nil {
		t.Fatal(err)
	}
	rec, err := r.Record(documents.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(rec.Subjects[0].Runs); n != 234 {
		t.Errorf("%d runs", n)
	}
	if n := len(f.asked); n != 20+4+3+2 {
		t.Errorf("%d requests: %v", n, f.asked)
	}
}

// TestWatch: the load balancer is asked until the end, and then the tasks.
func TestWatch(t *testing.T) {
	f := newFakeAWS(t)
	f.tasks = wire(t)[:1]
	for name := range f.tasks[0] {
		if strings.HasSuffix(name, "At") { // of another day: what is seen now is to be soon after
			delete(f.tasks[0], name)
		}
	}
	f.tasks[0]["createdAt"] = float64(time.Now().Add(-time.Minute).Unix())
	r, err := ask(t, cloud.ECS{Cluster: "shop", Service: "api", WatchMs: 900})
	if err != nil {
		t.Fatal(err)
	}
	rec, err := r.Record(documents.Options{})
	if err != nil {
		t.Fatal(err)
	}
	e := rec.Subjects[0].Runs[0].Event("lb_healthy")
	if e == nil || e.PrecisionMs < 900 || e.PrecisionMs > 60_000 {
		t.Errorf("event %+v", e)
	}
	if first, last := f.asked[0], f.asked[len(f.asked)-1]; first != "DescribeServices" || last != "DescribeTasks" {
		t.Errorf("asked %v", f.asked)
	}
}

// TestDenied: who lacks a permission hears which, and is not asked to wait.
func TestDenied(t *testing.T) {
	for _, c := range []struct {
		deny string
		args cloud.ECS
		want string
	}{
		{"ListTasks", cloud.ECS{}, "ecs:ListTasks"},
		{"DescribeTasks", cloud.ECS{}, "ecs:DescribeTasks"},
		{"DescribeServices", cloud.ECS{Service: "api"}, "ecs:DescribeServices"},
		{"DescribeTargetHealth", cloud.ECS{Service: "api", WatchMs: 1}, "elasticloadbalancing:DescribeTargetHealth"},
	} {
		t.Run(c.deny, func(t *testing.T) {
			f := newFakeAWS(t)
			f.tasks, f.deny = wire(t), c.deny
			_, err := ask(t, c.args)
			var e *cloud.Error
			if !errors.As(err, &e) || !strings.Contains(e.Hint, "Allow for "+c.want+" on") || !strings.Contains(e.Message, "not authorized") {
				t.Errorf("error %v", err)
			}
			if n := strings.Count(strings.Join(f.asked, " "), c.deny); n != 1 {
				t.Errorf("asked %d times", n)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	f := newFakeAWS(t)
	for _, c := range []struct {
		args cloud.ECS
		want string
	}{
		{cloud.ECS{Cluster: "none", Service: "api"}, "aws ecs list-clusters"},
		{cloud.ECS{Service: "none"}, "aws ecs list-services"},
	} {
		_, err := ask(t, c.args)
		var e *cloud.Error
		if !errors.As(err, &e) || !strings.Contains(e.Hint, c.want) {
			t.Errorf("%+v: error %v", c.args, err)
		}
	}
	t.Setenv("AWS_REGION", "")
	if _, err := ask(t, cloud.ECS{}); err == nil || !strings.Contains(err.Error(), "no AWS region") {
		t.Errorf("error %v", err)
	}
	if len(f.asked) != 2 {
		t.Errorf("asked %v", f.asked)
	}
}
