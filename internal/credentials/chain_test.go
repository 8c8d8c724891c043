package credentials_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/thaw-project/thaw/internal/credentials"
	"github.com/thaw-project/thaw/internal/oci"
	"github.com/thaw-project/thaw/internal/registry"
)

// TestChainWithoutLogin: a password that does not hold any more is no obstacle to
// what anybody may read.
func TestChainWithoutLogin(t *testing.T) {
	const manifest = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[]}`
	var srv *httptest.Server
	srv = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch _, _, login := r.BasicAuth(); {
		case r.URL.Path == "/token" && !login:
			fmt.Fprint(w, `{"token":"of-anybody"}`)
		case r.URL.Path != "/token" && r.Header.Get("Authorization") == "Bearer of-anybody":
			w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
			fmt.Fprint(w, manifest)
		default:
			w.Header().Set("WWW-Authenticate", fmt.Sprintf("Bearer realm=%q", srv.URL+"/token"))
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	defer srv.Close()
	host := srv.Listener.Addr().String()
	s, err := credentials.OpenStore(credentials.StoreOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s.Offer(host+"/team/app", authn.AuthConfig{Username: "alice", Password: "of last year"})(true)
	client := registry.New(registry.Options{Insecure: []string{host}, Keychain: credentials.Chain{s}})
	defer client.Close()
	repo, err := client.Repository(oci.Reference{Registry: host, Repository: "team/app", Tag: "1"})
	if err != nil {
		t.Fatal(err)
	}
	if b, _, err := repo.Manifest(t.Context(), "1"); err != nil || string(b) != manifest {
		t.Errorf("%s, %v", b, err)
	}
}
