package registry

import (
	"bytes"
	"context"
	"errors"
	"iter"
	"net/http"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// ring is a keychain of several credentials.
type ring struct {
	mu  sync.Mutex // guards all
	all []authn.AuthConfig
}

func (r *ring) set(all ...authn.AuthConfig) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = all
}

func (r *ring) Candidates(context.Context, authn.Resource) iter.Seq2[authn.AuthConfig, error] {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := r.all
	return func(yield func(authn.AuthConfig, error) bool) {
		if !yield(authn.AuthConfig{}, errors.New("a source that fails")) && len(all) == 0 {
			return
		}
		for _, cfg := range all {
			if !yield(cfg, nil) {
				return
			}
		}
	}
}

func (r *ring) Resolve(authn.Resource) (authn.Authenticator, error) { return authn.Anonymous, nil }

// basicServer wants a password with each request.
type basicServer struct {
	next       http.Handler
	mu         sync.Mutex // guards the rest
	user, pass string
	refused    int
}

func (s *basicServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	user, pass, _ := r.BasicAuth()
	s.mu.Lock()
	ok := user == s.user && pass == s.pass
	if !ok {
		s.refused++
	}
	s.mu.Unlock()
	if ok {
		s.next.ServeHTTP(w, r)
		return
	}
	w.Header().Set("WWW-Authenticate", `Basic realm="lab"`)
	w.WriteHeader(http.StatusUnauthorized)
}

// The first credential that works is used from then on; when it works no more,
// the others are tried, also ones that were refused before.
func TestCandidates(t *testing.T) {
	one, two, three := authn.AuthConfig{Username: "one", Password: "1"}, authn.AuthConfig{Username: "two", Password: "2"}, authn.AuthConfig{Username: "three", Password: "3"}
	for _, scheme := range []string{"basic", "bearer"} {
		t.Run(scheme, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				reg := newFakeRegistry()
				blob := randomBytes(10_000)
				d := reg.addBlob(t, "a/b", v1.MediaTypeImageLayer, blob)
				basic := &basicServer{next: reg}
				bearer := &tokenServer{next: reg, host: "localhost:5000", uses: 3, expiresIn: 300}
				want := func(cfg authn.AuthConfig) {
					basic.mu.Lock()
					basic.user, basic.pass, basic.refused = cfg.Username, cfg.Password, 0
					basic.mu.Unlock()
					bearer.mu.Lock()
					bearer.user, bearer.pass = cfg.Username, cfg.Password
					bearer.mu.Unlock()
				}
				if scheme == "basic" {
					w.serve("localhost:5000", basic)
				} else {
					w.serve("localhost:5000", bearer)
				}
				keys := &ring{}
				repo := w.repo(w.client(Options{Keychain: keys}), "localhost:5000/a/b")
				read := func(step string, ok bool) {
					t.Helper()
					for range 5 {
						b, err := readRange(t.Context(), repo, d, 7, 1000)
						if ok && (err != nil || !bytes.Equal(b, blob[7:1007])) {
							t.Fatalf("%s: %v", step, err)
						}
						if !ok && err == nil {
							t.Fatalf("%s: it can be read", step)
						}
					}
				}
				want(two)
				read("none", false)
				keys.set(one)
				read("a wrong one", false)
				keys.set(one, two, three)
				read("the second", true)
				if scheme == "basic" && basic.refused > 12 {
					t.Errorf("the wrong ones are tried again and again: %d refusals", basic.refused)
				}
				want(three)
				read("the second works no more", true)
				want(one)
				read("the first works again", true)
				keys.set(one)
				want(two)
				read("the only one is wrong again", false)
			})
		})
	}
}
