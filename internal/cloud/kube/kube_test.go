package kube

import (
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/thaw-project/thaw/internal/cloud"
	"github.com/thaw-project/thaw/internal/sources/kubernetes"
)

// fakeAPI is an API server with the recorded pods and events, two a page.
type fakeAPI struct {
	*testing.T
	mu     sync.Mutex
	kinds  map[string][]json.RawMessage // by resource
	deny   string                       // resource
	busy   int                          // how often it is, from now on
	asked  []string
	config string // kubeconfig
}

func newFakeAPI(t *testing.T) *fakeAPI {
	t.Helper()
	b, err := os.ReadFile("../../sources/kubernetes/testdata/list.json")
	if err != nil {
		t.Fatal(err)
	}
	var all struct{ Items []json.RawMessage }
	if err := json.Unmarshal(b, &all); err != nil {
		t.Fatal(err)
	}
	f := &fakeAPI{T: t, kinds: map[string][]json.RawMessage{}}
	for _, item := range all.Items {
		var o struct{ Kind string }
		if err := json.Unmarshal(item, &o); err != nil {
			t.Fatal(err)
		}
		resource := strings.ToLower(o.Kind) + "s"
		f.kinds[resource] = append(f.kinds[resource], item)
	}
	s := httptest.NewTLSServer(f)
	t.Cleanup(s.Close)
	f.config = filepath.Join(t.TempDir(), "config")
	config := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: here, cluster: {server: %q, certificate-authority-data: %s}}]
users: [{name: me, user: {token: sesame}}]
contexts:
- {name: shop, context: {cluster: here, user: me, namespace: shop}}
- {name: other, context: {cluster: here, user: me, namespace: other}}
current-context: shop
`, s.URL, base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})))
	if err := os.WriteFile(f.config, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *fakeAPI) status(w http.ResponseWriter, code int, reason, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","message":%q,"reason":%q,"code":%d}`, message, reason, code)
}

func (f *fakeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	q := r.URL.Query()
	f.asked = append(f.asked, r.URL.Path+" "+q.Get("labelSelector")+q.Get("fieldSelector"))
	resource, ok := strings.CutPrefix(r.URL.Path, "/api/v1/namespaces/shop/")
	switch {
	case r.Header.Get("Authorization") != "Bearer sesame":
		f.status(w, 401, "Unauthorized", "Unauthorized")
		return
	case f.busy > 0:
		f.busy--
		w.Header().Set("Retry-After", "0")
		f.status(w, 429, "TooManyRequests", "too many requests")
		return
	case resource == f.deny:
		f.status(w, 403, "Forbidden", resource+` is forbidden: User "me" cannot list resource`)
		return
	case !ok:
		resource = "none"
	}
	items := f.kinds[resource]
	from, _ := strconv.Atoi(q.Get("continue"))
	limit, _ := strconv.Atoi(q.Get("limit"))
	if limit == 0 {
		f.Error("without a limit")
	}
	to := min(from+2, len(items))
	next := ""
	if to < len(items) {
		next = strconv.Itoa(to)
	}
	some, err := json.Marshal(items[from:to])
	if err != nil {
		f.Error(err)
	}
	w.Header().Set("Content-Type", "application/json")
	kind := map[string]string{"pods": "PodList", "events": "EventList"}[resource]
	if kind == "" {
		kind = "PodList"
	}
	fmt.Fprintf(w, `{"apiVersion":"v1","kind":%q,"metadata":{"resourceVersion":"1","continue":%q},"items":%s}`, kind, next, some)
}

func ask(t *testing.T, args cloud.Kubernetes) (*kubernetes.Reader, error) {
	t.Helper()
	raw, err := json.Marshal(args)
	if err != nil {
		t.Fatal(err)
	}
	var r kubernetes.Reader
	return &r, Pods(t.Context(), raw, func(v any) error {
		b, err := json.Marshal(v)
		if err != nil {
			return err
		}
		return r.Read(b)
	})
}

// TestPods: what is asked for, page by page, is what kubectl would have printed.
func TestPods(t *testing.T) {
	f := newFakeAPI(t)
	f.busy = 1
	r, err := ask(t, cloud.Kubernetes{Kubeconfig: f.config, Selector: "app=api"})
	if err != nil {
		t.Fatal(err)
	}
	got, err := r.Record(kubernetes.Options{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile("../../sources/kubernetes/testdata/list.json")
	if err != nil {
		t.Fatal(err)
	}
	var file kubernetes.Reader
	if err := file.Read(b); err != nil {
		t.Fatal(err)
	}
	want, err := file.Record(kubernetes.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if f.asked[0] != "/api/v1/namespaces/shop/pods app=api" || f.asked[len(f.asked)-1] != "/api/v1/namespaces/shop/events involvedObject.kind=Pod" {
		t.Errorf("asked %v", f.asked)
	}
}

// TestWhere: the context and the namespace are those that are named.
func TestWhere(t *testing.T) {
	f := newFakeAPI(t)
	t.Setenv("KUBECONFIG", f.config)
	for _, c := range []struct {
		args cloud.Kubernetes
		want string
	}{
		{cloud.Kubernetes{Context: "other"}, "/api/v1/namespaces/other/pods "},
		{cloud.Kubernetes{Context: "other", Namespace: "third"}, "/api/v1/namespaces/third/pods "},
	} {
		f.asked = nil
		if _, err := ask(t, c.args); err != nil {
			t.Errorf("%+v: %v", c.args, err)
		}
		if len(f.asked) != 1 || f.asked[0] != c.want {
			t.Errorf("%+v: asked %v", c.args, f.asked)
		}
	}
	if _, err := ask(t, cloud.Kubernetes{Context: "none"}); err == nil {
		t.Error("a context that is not there was taken")
	}
}

// TestDenied: who lacks a permission hears which verb on what.
func TestDenied(t *testing.T) {
	for _, resource := range []string{"pods", "events"} {
		f := newFakeAPI(t)
		f.deny = resource
		_, err := ask(t, cloud.Kubernetes{Kubeconfig: f.config})
		var e *cloud.Error
		if !errors.As(err, &e) || !strings.Contains(e.Hint, "needs the verb list on "+resource) || !strings.Contains(e.Hint, "namespace shop") {
			t.Errorf("%s: %v", resource, err)
		}
	}
	f := newFakeAPI(t)
	b, err := os.ReadFile(f.config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(f.config, []byte(strings.ReplaceAll(string(b), "sesame", "wrong")), 0o600); err != nil {
		t.Fatal(err)
	}
	var e *cloud.Error
	if _, err := ask(t, cloud.Kubernetes{Kubeconfig: f.config}); !errors.As(err, &e) || !strings.Contains(e.Hint, "does not know these credentials") {
		t.Errorf("credentials: %v", err)
	}
}
