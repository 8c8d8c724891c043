package registry

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// storage serves blobs to those with a signature that is good for some requests.
type storage struct {
	next http.Handler
	uses int

	mu      sync.Mutex
	signed  map[string]int
	served  int
	refused int
	leaked  bool // an Authorization header arrived
}

func (s *storage) sign(path string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.signed == nil {
		s.signed = make(map[string]int)
	}
	sig := fmt.Sprint(len(s.signed))
	s.signed[sig] = 0
	return "http://storage.localhost" + path + "?X-Amz-Signature=" + sig
}

func (s *storage) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.leaked = s.leaked || r.Header.Get("Authorization") != ""
	sig := r.URL.Query().Get("X-Amz-Signature")
	uses, ok := s.signed[sig]
	if !ok || uses >= s.uses {
		s.refused++
		s.mu.Unlock()
		http.Error(w, "<Code>AccessDenied</Code><Message>Request has expired</Message>", http.StatusForbidden)
		return
	}
	s.signed[sig]++
	s.served++
	s.mu.Unlock()
	s.next.ServeHTTP(w, r)
}

func TestRedirectsToPresignedURLs(t *testing.T) {
	blob := randomBytes(100_000)
	tests := []struct {
		name              string
		uses, reads       int
		redirects, served int
		wantErr           bool
	}{
		{"the target is used again", 100, 10, 1, 10, false},
		{"a fresh one when it has expired", 3, 10, 4, 10, false},
		{"fresh ones that are refused", 0, 1, 0, 0, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				reg := newFakeRegistry()
				d := reg.addBlob(t, "a/b", v1.MediaTypeImageLayer, blob)
				store := &storage{next: reg.Handler, uses: tt.uses}
				reg.on("/blobs/", func(_ int, w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
					http.Redirect(w, r, store.sign(r.URL.Path), http.StatusTemporaryRedirect)
					return true
				})
				s := &tokenServer{next: reg, host: "localhost:5000", user: "u", pass: "p", expiresIn: 300}
				w.serve("localhost:5000", s)
				w.serve("storage.localhost", store)
				repo := w.repo(w.client(Options{Keychain: keys{Username: "u", Password: "p"}}), "localhost:5000/a/b")
				start := time.Now()
				for i := range tt.reads {
					got, err := readRange(t.Context(), repo, d, int64(i), 50_000)
					if tt.wantErr {
						if !errors.Is(err, ErrUnauthorized) || !Retryable(err) || time.Since(start) > 21*time.Second || strings.Contains(err.Error(), "Signature") || !strings.Contains(err.Error(), "storage.localhost") {
							t.Errorf("got %v after %v", err, time.Since(start))
						}
					} else if err != nil || !bytes.Equal(got, blob[i:i+50_000]) {
						t.Fatalf("read %d: %d bytes, %v", i, len(got), err)
					}
				}
				if store.leaked {
					t.Error("the storage saw an Authorization header")
				}
				if n := reg.count("/blobs/"); !tt.wantErr && (n != tt.redirects || store.served != tt.served) {
					t.Errorf("%d redirects and %d reads from storage, want %d and %d", n, store.served, tt.redirects, tt.served)
				}
			})
		})
	}
}

// A presigned URL that breaks in the middle of a range is replaced, and the
// read goes on from there.
func TestRedirectBreaksHalfway(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		blob := randomBytes(200_000)
		reg := newFakeRegistry()
		d := reg.addBlob(t, "a/b", v1.MediaTypeImageLayer, blob)
		store := &storage{uses: 1}
		store.next = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			cutAfter(80_000)(0, w, r, reg.Handler)
		})
		reg.on("/blobs/", func(_ int, w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
			http.Redirect(w, r, store.sign(r.URL.Path), http.StatusFound)
			return true
		})
		w.serve("localhost:5000", reg)
		w.serve("storage.localhost", store)
		got, err := readRange(t.Context(), w.repo(w.client(Options{}), "localhost:5000/a/b"), d, 0, d.Size)
		if err != nil || !bytes.Equal(got, blob) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		if store.served != 3 || store.refused != 2 {
			t.Errorf("storage served %d and refused %d, want 3 and 2", store.served, store.refused)
		}
	})
}

func TestMirrors(t *testing.T) {
	blob := randomBytes(100_000)
	down := func(_ int, _ http.ResponseWriter, _ *http.Request, _ http.Handler) bool { abort(); return true }
	tests := []struct {
		name           string
		one, two       faultFunc // faults of the mirrors; nil: works
		origin, mirror int       // blob requests that arrived at the origin and at mirror two, of 5
	}{
		{"first works", nil, nil, 0, 0},
		{"first is down", down, nil, 0, 5},
		{"first has 500", status(500), nil, 0, 5},
		{"first does not have it", status(404), nil, 0, 5},
		{"first breaks off halfway", cutAfter(10_000), nil, 0, 0},
		{"first stalls", stall(-1), nil, 0, 5},
		{"first stalls after its header", stall(0), nil, 0, 5},
		{"first stalls halfway", stall(30_000), nil, 0, 5},
		{"both are down", down, down, 5, 2},
		{"both refuse", status(401), status(403), 5, 1},
		{"first has no ranges", noRanges, nil, 0, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				hosts := make([]*fakeRegistry, 3)
				var d v1.Descriptor
				for i, host := range []string{"one.localhost", "two.localhost", "localhost:5000"} {
					hosts[i] = newFakeRegistry()
					repo := "a/b"
					if i == 1 {
						repo = "cache/a/b"
					}
					d = hosts[i].addBlob(t, repo, v1.MediaTypeImageLayer, blob)
					hosts[i].addImage(t, repo, "latest", blob)
					w.serve(host, hosts[i])
				}
				for i, f := range []faultFunc{tt.one, tt.two} {
					if f != nil {
						hosts[i].on("/blobs/", f)
					}
				}
				repo := w.repo(w.client(Options{Mirrors: map[string][]string{"localhost:5000": {"http://one.localhost", "http://two.localhost/v2/cache/"}}}), "localhost:5000/a/b")
				start := time.Now()
				if _, _, err := repo.Manifest(t.Context(), "latest"); err != nil {
					t.Fatal(err)
				}
				for i := range 5 {
					got, err := readRange(t.Context(), repo, d, int64(i), 50_000)
					if err != nil || !bytes.Equal(got, blob[i:i+50_000]) {
						t.Fatalf("read %d: %d bytes, %v", i, len(got), err)
					}
				}
				if took := time.Since(start); took > 11*time.Second {
					t.Errorf("took %v", took)
				}
				if n, m := hosts[2].count("/blobs/"), hosts[1].count("/blobs/"); n != tt.origin || m != tt.mirror {
					t.Errorf("%d requests at the origin and %d at the second mirror, want %d and %d", n, m, tt.origin, tt.mirror)
				}
			})
		})
	}
}

func TestMirrorDetails(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		blob := randomBytes(1000)
		mirror, origin := newFakeRegistry(), newFakeRegistry()
		d := origin.addBlob(t, "a/b", v1.MediaTypeImageLayer, blob)
		mirror.addBlob(t, "a/b", v1.MediaTypeImageLayer, blob)
		// The mirror lies about the bytes and has another image under the tag.
		mirror.on("/blobs/", func(_ int, w http.ResponseWriter, r *http.Request, next http.Handler) bool {
			rec := record(r, next)
			copyHeader(w, rec)
			w.WriteHeader(rec.Code)
			b := rec.Body.Bytes()
			b[0] ^= 1
			_, _ = w.Write(b)
			return true
		})
		want := origin.addImage(t, "a/b", "latest", blob)
		mirror.addImage(t, "a/b", "latest", blob[:5])
		w.serve("mirror.localhost", mirror)
		w.serve("localhost:5000", origin)
		repo := w.repo(w.client(Options{Mirrors: map[string][]string{"localhost:5000": {"http://mirror.localhost/"}}}), "localhost:5000/a/b")

		if _, got, err := repo.Manifest(t.Context(), want.Digest.String()); err != nil || got.Digest != want.Digest {
			t.Errorf("by digest: %v, %v", got, err)
		}
		if b, err := repo.Blob(t.Context(), d); err != nil || !bytes.Equal(b, blob) {
			t.Errorf("verified blob: %v", err)
		}
		if b, err := readRange(t.Context(), repo, d, 0, 10); err != nil || bytes.Equal(b, blob[:10]) {
			t.Errorf("the range should be the mirror's lie, got the truth and %v", err)
		}
		if b, err := readRange(FromOrigin(t.Context()), repo, d, 0, 10); err != nil || !bytes.Equal(b, blob[:10]) {
			t.Errorf("the range from the origin: %v", err)
		}
		mirror.mu.Lock()
		defer mirror.mu.Unlock()
		for _, r := range mirror.requests {
			if r.URL.Query().Get("ns") != "localhost:5000" {
				t.Errorf("%s does not say which registry is meant", r.URL)
			}
		}
	})
}

func TestMirrorConfig(t *testing.T) {
	for url, ok := range map[string]bool{
		"https://mirror.example": true, "https://mirror.example/prefix": true, "http://localhost:1": true,
		"http://mirror.example": false, "mirror.example": false, "ftp://mirror.example": false, "https://u:p@mirror.example": false, "https://": false, "%": false,
	} {
		c := New(Options{Mirrors: map[string][]string{"example.com": {url}}})
		if _, err := c.newEndpoints("example.com"); (err == nil) != ok {
			t.Errorf("%s: %v", url, err)
		}
	}
	for path, want := range map[string]string{"": "/v2", "/": "/v2", "/v2/proxy/": "/v2/proxy", "/v2": "/v2", "/art/docker": "/art/docker/v2"} {
		if got := mirrorPrefix(path); got != want {
			t.Errorf("prefix of %q is %q, want %q", path, got, want)
		}
	}
}

func TestPlainHTTPOnlyWhereAllowed(t *testing.T) {
	c := New(Options{Insecure: []string{"lab.example", "one.example:80"}})
	for host, want := range map[string]string{
		"docker.io": "https", "example.com": "https", "10.0.0.1:5000": "https", "localhost.example.com": "https",
		"localhost": "http", "localhost:5000": "http", "127.8.8.8:1": "http", "[::1]:5000": "http", "x.localhost": "http",
		"lab.example": "http", "lab.example:99": "http", "one.example:80": "http", "one.example": "https", "one.example:81": "https",
	} {
		eps, err := c.newEndpoints(host)
		if err != nil {
			t.Fatal(err)
		}
		if got := eps[0].scheme(); got != want {
			t.Errorf("%s: %s, want %s", host, got, want)
		}
	}
	eps, _ := c.newEndpoints("docker.io")
	if got := eps[0].url("library/nginx", "manifests/latest").String(); got != "https://registry-1.docker.io/v2/library/nginx/manifests/latest" {
		t.Errorf("Docker Hub is at %s", got)
	}
}
