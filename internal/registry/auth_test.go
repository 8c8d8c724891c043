package registry

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/thaw-project/thaw/internal/oci"
)

// tokenServer wants bearer tokens that it gives out itself.
type tokenServer struct {
	next       http.Handler
	host       string
	user, pass string // empty: anonymous
	expiresIn  int    // told to the client
	uses       int    // a token is good for so many requests; 0: for ever

	mu     sync.Mutex
	tokens map[string]int // token -> uses
	issued int
	scopes []string
	fail   int // answer so many token requests with 503
}

func (s *tokenServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	if s.tokens == nil {
		s.tokens = make(map[string]int)
	}
	if r.URL.Path == "/token" {
		defer s.mu.Unlock()
		s.issue(w, r)
		return
	}
	token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	uses, ok := s.tokens[token]
	if ok && (s.uses == 0 || uses < s.uses) {
		s.tokens[token]++
		s.mu.Unlock()
		s.next.ServeHTTP(w, r)
		return
	}
	s.mu.Unlock()
	w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="svc",scope="repository:a/b:pull"`, s.host))
	http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`, http.StatusUnauthorized)
}

func (s *tokenServer) issue(w http.ResponseWriter, r *http.Request) {
	if s.fail > 0 {
		s.fail--
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	user, pass, _ := r.BasicAuth()
	if r.Method == http.MethodPost {
		_ = r.ParseForm()
		user, pass = "<token>", r.PostForm.Get("refresh_token")
	}
	if user != s.user || pass != s.pass || r.FormValue("service") != "svc" {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	s.issued++
	s.scopes = append(s.scopes, strings.Join(r.Form["scope"], " "))
	token := fmt.Sprintf("token%d", s.issued)
	s.tokens[token] = 0
	fmt.Fprintf(w, `{"token":%q,"expires_in":%d}`, token, s.expiresIn)
}

// keys is a keychain with one password for everything.
type keys authn.AuthConfig

func (k keys) Resolve(authn.Resource) (authn.Authenticator, error) {
	return authn.FromConfig(authn.AuthConfig(k)), nil
}

func TestBearerToken(t *testing.T) {
	blob := randomBytes(100_000)
	tests := []struct {
		name   string
		server tokenServer
		keys   keys
		issued int // tokens for 20 requests, 8 of them at once
		err    string
	}{
		{"anonymous", tokenServer{expiresIn: 300}, keys{}, 1, ""},
		{"password", tokenServer{user: "u", pass: "p", expiresIn: 300}, keys{Username: "u", Password: "p"}, 1, ""},
		{"identity token", tokenServer{user: "<token>", pass: "id", expiresIn: 300}, keys{IdentityToken: "id"}, 1, ""},
		{"expires in the middle of the run", tokenServer{uses: 5, expiresIn: 300}, keys{}, 4, ""},
		{"token server has a bad moment", tokenServer{fail: 3, expiresIn: 300}, keys{}, 1, ""},
		{"wrong password", tokenServer{user: "u", pass: "p"}, keys{Username: "u", Password: "q"}, 0, "refused the user name or password"},
	}
	for i := range tests {
		tt := &tests[i]
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				reg := newFakeRegistry()
				d := reg.addBlob(t, "a/b", v1.MediaTypeImageLayer, blob)
				tt.server.next, tt.server.host = reg, "localhost:5000"
				w.serve("localhost:5000", &tt.server)
				repo := w.repo(w.client(Options{Keychain: tt.keys}), "localhost:5000/a/b")
				errs := make(chan error, 20)
				read := func() {
					b, err := readRange(t.Context(), repo, d, 7, 1000)
					if err == nil && !bytes.Equal(b, blob[7:1007]) {
						err = errors.New("wrong bytes")
					}
					errs <- err
				}
				for range 12 {
					read()
				}
				var wg sync.WaitGroup
				for range 8 {
					wg.Go(read)
				}
				wg.Wait()
				for range 20 {
					err := <-errs
					if tt.err == "" && err != nil {
						t.Error(err)
					}
					if tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err) || !errors.Is(err, ErrUnauthorized) || Retryable(err)) {
						t.Errorf("got %v", err)
					}
				}
				if tt.server.issued != tt.issued {
					t.Errorf("%d tokens, want %d", tt.server.issued, tt.issued)
				}
			})
		})
	}
}

// A token is renewed ahead of its end without a request waiting for it, and
// never used after it.
func TestTokenRefresh(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		reg := newFakeRegistry()
		d := reg.addBlob(t, "a/b", v1.MediaTypeImageLayer, randomBytes(1000))
		s := &tokenServer{next: reg, host: "localhost:5000", expiresIn: 100}
		w.serve("localhost:5000", s)
		repo := w.repo(w.client(Options{}), "localhost:5000/a/b")
		read := func(wantIssued int) {
			t.Helper()
			if _, err := readRange(t.Context(), repo, d, 0, 10); err != nil {
				t.Fatal(err)
			}
			synctest.Wait() // for a refresh that nobody waits for
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.issued != wantIssued {
				t.Fatalf("%d tokens, want %d", s.issued, wantIssued)
			}
		}
		read(1)
		time.Sleep(50 * time.Second)
		read(1)
		time.Sleep(30 * time.Second) // in the last quarter: ahead of time
		read(2)
		time.Sleep(99 * time.Second) // too late for the second one
		read(3)
	})
}

func TestPushScopeAndSharedToken(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		reg := newFakeRegistry()
		s := &tokenServer{next: reg, host: "localhost:5000", expiresIn: 300}
		w.serve("localhost:5000", s)
		c := w.client(Options{})
		d, open := blobToPush(randomBytes(1000))
		if err := w.repo(c, "localhost:5000/a/b").PushBlob(t.Context(), d, open); err != nil {
			t.Fatal(err)
		}
		// Another Repository value of the same name shares the client's token.
		if err := w.repo(c, "localhost:5000/a/b:other").PushBlob(t.Context(), d, open); err != nil {
			t.Fatal(err)
		}
		if s.issued != 1 || !strings.Contains(s.scopes[0], "repository:a/b:pull,push") {
			t.Errorf("%d tokens for %q", s.issued, s.scopes)
		}
	})
}

func TestBasicAuth(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		reg := newFakeRegistry()
		d := reg.addBlob(t, "a/b", v1.MediaTypeImageLayer, randomBytes(1000))
		w.serve("localhost:5000", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if u, p, _ := r.BasicAuth(); u != "u" || p != "p" {
				w.Header().Set("WWW-Authenticate", `Negotiate, Basic realm="x"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			reg.ServeHTTP(w, r)
		}))
		c := w.client(Options{Keychain: keys{Username: "u", Password: "p"}})
		for range 3 {
			if _, err := readRange(t.Context(), w.repo(c, "localhost:5000/a/b"), d, 0, 10); err != nil {
				t.Fatal(err)
			}
		}
		if n := c.Stats().Requests.Load(); n != 4 {
			t.Errorf("%d requests, want 1 refused and 3", n)
		}
		_, err := readRange(t.Context(), w.repo(w.client(Options{}), "localhost:5000/a/b"), d, 0, 10)
		if !errors.Is(err, ErrUnauthorized) || Retryable(err) {
			t.Errorf("without a password: %v", err)
		}
	})
}

func TestCheckRealm(t *testing.T) {
	tests := []struct {
		registry, realm string
		ok              bool
	}{
		{"example.com", "https://auth.example.com/token", true},
		{"example.com", "http://auth.example.com/token", false},
		{"example.com", "https://169.254.169.254/latest", false},
		{"example.com", "https://10.0.0.1/token", false},
		{"example.com", "http://127.0.0.1/token", false},
		{"example.com", "ftp://example.com/token", false},
		{"example.com", "https://user:pw@example.com/token", false},
		{"example.com", "/token", false},
		{"10.0.0.1:5000", "https://10.0.0.2/token", true},
		{"localhost:5000", "http://127.0.0.1:5001/token", true},
	}
	for _, tt := range tests {
		c := New(Options{})
		eps, err := c.newEndpoints(tt.registry)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := eps[0].auth.checkRealm(tt.realm); (err == nil) != tt.ok {
			t.Errorf("%s from %s: %v", tt.realm, tt.registry, err)
		}
	}
}

// Credentials come from config.json and its helpers, in the given directory and
// in Docker's own.
func TestDockerConfig(t *testing.T) {
	reg := newFakeRegistry()
	d := reg.addBlob(t, "a/b", v1.MediaTypeImageLayer, randomBytes(1000))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u, p, _ := r.BasicAuth(); u != "helped" || p != "s3cret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		reg.ServeHTTP(w, r)
	}))
	defer srv.Close()
	host := strings.TrimPrefix(srv.URL, "http://")

	bin := t.TempDir()
	script := "#!/bin/sh\nread host\n[ \"$1\" = get ] && [ \"$host\" = " + host + " ] || { echo 'credentials not found in native keychain'; exit 1; }\n" +
		`printf '{"ServerURL":"%s","Username":"helped","Secret":"s3cret"}' "$host"` + "\n"
	if err := os.WriteFile(filepath.Join(bin, "docker-credential-fake"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+string(os.PathListSeparator)+os.Getenv("PATH"))
	configs := map[string]string{
		"helper": fmt.Sprintf(`{"credHelpers":{%q:"fake"}}`, host),
		"store":  `{"credsStore":"fake"}`,
		"auths":  fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host, base64.StdEncoding.EncodeToString([]byte("helped:s3cret"))),
	}
	ref, err := oci.ParseReference(host + "/a/b")
	if err != nil {
		t.Fatal(err)
	}
	read := func(opts Options) error {
		c := New(opts)
		defer c.Close()
		repo, err := c.Repository(ref)
		if err != nil {
			return err
		}
		_, err = readRange(t.Context(), repo, d, 0, 10)
		return err
	}
	for name, content := range configs {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := read(Options{DockerConfigDir: dir}); err != nil {
				t.Errorf("DockerConfigDir: %v", err)
			}
			t.Setenv("HOME", t.TempDir())
			t.Setenv("DOCKER_CONFIG", dir)
			if err := read(Options{}); err != nil {
				t.Errorf("DOCKER_CONFIG: %v", err)
			}
		})
	}
	if err := read(Options{DockerConfigDir: t.TempDir()}); !errors.Is(err, ErrUnauthorized) {
		t.Errorf("without a config: %v", err)
	}
}
