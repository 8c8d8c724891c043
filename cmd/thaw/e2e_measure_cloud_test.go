package main

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/thaw-project/thaw/internal/cloud"
	"github.com/thaw-project/thaw/internal/profile"
)

// measures runs thaw measure in this process.
func measures(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), append([]string{"--root", t.TempDir(), "measure"}, args...), strings.NewReader(""), &out, &errs)
	return code, out.String(), errs.String()
}

// wants measures, and expects one run of the phases.
func wants(t *testing.T, ms map[string]float64, args ...string) {
	t.Helper()
	code, stdout, stderr := measures(t, append(args, "--json")...)
	if code != 0 {
		t.Fatalf("%q: exit code %d: %s", args, code, stderr)
	}
	rec, err := profile.Decode([]byte(stdout))
	if err != nil {
		t.Fatal(err)
	}
	if len(rec.Subjects) != 1 || len(rec.Subjects[0].Runs) != 1 {
		t.Fatalf("%q: %s", args, stdout)
	}
	for name, want := range ms {
		if p := rec.Subjects[0].Runs[0].Phase(name); p == nil || p.Ms == nil || *p.Ms != want {
			t.Errorf("%q: %s is %+v, want %g ms", args, name, p, want)
		}
	}
}

// TestMeasureECS: thaw measure ecs asks ECS through thaw-cloud, and the task's own metadata
// itself.
func TestMeasureECS(t *testing.T) {
	withPrograms(t, cloud.Program)
	denied, looks := false, 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/x-amz-json-1.1")
		switch action := strings.TrimPrefix(r.Header.Get("X-Amz-Target"), "AmazonEC2ContainerServiceV20141113."); {
		case r.URL.Path == "/v4/one/task":
			health := `"UNKNOWN"`
			if looks++; looks > 2 {
				health = `"HEALTHY","statusSince":"2026-03-02T05:03:39Z"`
			}
			fmt.Fprintf(w, `{"TaskARN":"arn/task","Family":"api","Revision":"1","PullStartedAt":"2026-03-02T05:02:52Z","PullStoppedAt":"2026-03-02T05:03:32.5Z",
"Containers":[{"Name":"api","Image":"r/api:1","StartedAt":"2026-03-02T05:03:34Z","Health":{"status":%s}}]}`, health)
		case denied:
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprint(w, `{"__type":"AccessDeniedException","message":"no"}`)
		case action == "DescribeServices":
			fmt.Fprint(w, `{"services":[{"serviceName":"api"}]}`)
		case action == "ListTasks":
			fmt.Fprint(w, `{"taskArns":["arn/task"]}`)
		default:
			fmt.Fprint(w, `{"tasks":[{"taskArn":"arn/task","group":"service:api","taskDefinitionArn":"arn/api:1","containers":[{"name":"api","image":"r/api:1"}],
"createdAt":1772427757.5,"pullStartedAt":1772427772,"pullStoppedAt":1772427812.25}]}`)
		}
	}))
	defer srv.Close()
	for name, value := range map[string]string{"AWS_ENDPOINT_URL": srv.URL, "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "secret",
		"AWS_CONFIG_FILE": "/nowhere", "AWS_SHARED_CREDENTIALS_FILE": "/nowhere", "AWS_EC2_METADATA_DISABLED": "true"} {
		t.Setenv(name, value)
	}
	wants(t, map[string]float64{profile.PhaseQueue: 14500, profile.PhasePull: 40250}, "ecs", "--cluster", "shop", "--service", "api", "--region", "eu-west-1")
	t.Setenv("ECS_CONTAINER_METADATA_URI_V4", srv.URL+"/v4/one")
	wants(t, map[string]float64{profile.PhasePull: 40500, profile.PhaseRuntimeInit: 1500}, "ecs", "--metadata")
	wants(t, map[string]float64{profile.PhaseHealthContainer: 5000}, "ecs", "--metadata", "--watch", "5m")
	denied = true
	if code, _, stderr := measures(t, "ecs", "--cluster", "shop", "--region", "eu-west-1"); code != 1 || !strings.Contains(stderr, "thaw: hint: the IAM policy of who asks needs Allow for ecs:ListTasks") {
		t.Errorf("denied: %d, %s", code, stderr)
	}
}

// TestMeasureKubernetes: thaw measure k8s asks a cluster through thaw-cloud.
func TestMeasureKubernetes(t *testing.T) {
	withPrograms(t, cloud.Program)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch r.URL.Path {
		case "/api/v1/namespaces/shop/pods":
			fmt.Fprint(w, `{"kind":"PodList","apiVersion":"v1","items":[{"metadata":{"name":"api","namespace":"shop","uid":"a","creationTimestamp":"2026-06-01T10:00:00Z"},
"spec":{"containers":[{"name":"api","image":"r/api:1"}]},"status":{"containerStatuses":[{"name":"api","state":{"running":{"startedAt":"2026-06-01T10:00:15Z"}}}]}}]}`)
		case "/api/v1/namespaces/shop/events":
			fmt.Fprint(w, `{"kind":"EventList","apiVersion":"v1","items":[{"metadata":{"name":"e"},"reason":"Pulled","firstTimestamp":"2026-06-01T10:00:14Z",
"message":"Successfully pulled image \"r/api:1\" in 2.5s (2.5s including waiting). Image size: 7 bytes.",
"involvedObject":{"kind":"Pod","namespace":"shop","name":"api","uid":"a","fieldPath":"spec.containers{api}"}}]}`)
		default:
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","message":"no","reason":"Forbidden","code":403}`)
		}
	}))
	defer srv.Close()
	config := filepath.Join(t.TempDir(), "config")
	text := fmt.Sprintf("apiVersion: v1\nkind: Config\ncurrent-context: a\ncontexts: [{name: a, context: {cluster: a}}]\nclusters: [{name: a, cluster: {server: %q}}]\n", srv.URL)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	wants(t, map[string]float64{profile.PhasePull: 2500, profile.PhaseRuntimeInit: 1000}, "k8s", "-n", "shop", "-l", "app=api", "--kubeconfig", config)
	t.Setenv("KUBECONFIG", config)
	if code, _, stderr := measures(t, "k8s", "--namespace", "secret"); code != 1 || !strings.Contains(stderr, "needs the verb list on pods") {
		t.Errorf("denied: %d, %s", code, stderr)
	}
}
