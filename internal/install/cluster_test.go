package install

import (
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
)

func TestWanted(t *testing.T) {
	const set, node = "/apis/apps/v1/namespaces/thaw-system/daemonsets/thaw", "/api/v1/nodes/n1"
	good := map[string]string{set: `{"metadata":{"name":"thaw"}}`, node: `{"metadata":{"labels":{"thaw.dev/node":"true"}}}`}
	with := func(path, answer string) map[string]string {
		return map[string]string{set: good[set], node: good[node], path: answer}
	}
	for _, c := range []struct {
		name    string
		answers map[string]string // "404" and the like are statuses
		asked   bool              // it had answered well before
		want    bool
		err     string
	}{
		{"all is well", good, false, true, ""},
		{"the set is gone", with(set, "404"), true, false, ""},
		{"the set is going", with(set, `{"metadata":{"deletionTimestamp":"2026-01-01T00:00:00Z"}}`), true, false, ""},
		{"another label", with(node, `{"metadata":{"labels":{"thaw.dev/node":"false"}}}`), true, false, ""},
		{"no label", with(node, `{"metadata":{}}`), true, false, ""},
		{"the node is gone", with(node, "404"), true, false, ""},
		{"never allowed to ask", with(set, "403"), false, false, "403"},
		{"not allowed to ask any more", with(set, "403"), true, false, ""},
		{"not known any more", with(set, "401"), true, false, ""},
		{"the cluster is ill", with(set, "500"), true, false, "500"},
		{"rubbish", with(set, "<html>"), true, false, "invalid"},
	} {
		t.Run(c.name, func(t *testing.T) {
			srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Authorization") != "Bearer secret" {
					w.WriteHeader(http.StatusTeapot)
				}
				switch answer := c.answers[r.URL.Path]; answer {
				case "401":
					w.WriteHeader(http.StatusUnauthorized)
				case "403":
					w.WriteHeader(http.StatusForbidden)
				case "404", "":
					w.WriteHeader(http.StatusNotFound)
				case "500":
					w.WriteHeader(http.StatusInternalServerError)
				default:
					w.Write([]byte(answer))
				}
			}))
			t.Cleanup(srv.Close)
			account := t.TempDir()
			write(t, filepath.Join(account, "ca.crt"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})))
			write(t, filepath.Join(account, "token"), "secret\n")
			cluster, err := newCluster(srv.URL, account)
			if err != nil {
				t.Fatal(err)
			}
			cluster.Node, cluster.Label, cluster.Namespace, cluster.DaemonSet, cluster.asked = "n1", "thaw.dev/node=true", "thaw-system", "thaw", c.asked
			got, err := cluster.Wanted(t.Context())
			if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
				t.Fatalf("got error %v, want %q", err, c.err)
			}
			if got != c.want {
				t.Errorf("wanted: %v", got)
			}
			srv.Close()
			if got, err := cluster.Wanted(t.Context()); got || err == nil {
				t.Errorf("without a cluster: wanted %v, %v", got, err)
			}
		})
	}
}

func TestInCluster(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	if _, err := InCluster(); err != ErrNoCluster {
		t.Errorf("got %v", err)
	}
}
