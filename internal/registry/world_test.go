package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/google/go-containerregistry/pkg/authn"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/thaw-project/thaw/internal/oci"
	"github.com/thaw-project/thaw/internal/testenv"
)

func TestMain(m *testing.M) {
	log.SetOutput(io.Discard) // the registry handler's
	testenv.Main(m)
}

// world is a network in memory, so that tests run in a synctest bubble: real
// HTTP clients and servers, and time that passes only when all of them wait.
type world struct {
	t    *testing.T
	mu   sync.Mutex // guards dial
	dial map[string]*pipeListener
}

func newWorld(t *testing.T) *world { return &world{t: t, dial: make(map[string]*pipeListener)} }

// serve starts a host. The host can be closed and served again.
func (w *world) serve(host string, h http.Handler) (stop func()) {
	ln := &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
	srv := &http.Server{Handler: h, ErrorLog: log.New(io.Discard, "", 0)}
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(ln) })
	w.mu.Lock()
	w.dial[host] = ln
	w.mu.Unlock()
	stop = sync.OnceFunc(func() {
		w.mu.Lock()
		delete(w.dial, host)
		w.mu.Unlock()
		srv.Close()
		wg.Wait()
	})
	w.t.Cleanup(stop)
	return stop
}

var errRefused = errors.New("connection refused")

func (w *world) transport() *http.Transport {
	return &http.Transport{
		DisableCompression: true,
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			addr = strings.TrimSuffix(addr, ":80")
			w.mu.Lock()
			ln := w.dial[addr]
			w.mu.Unlock()
			if ln == nil {
				return nil, errRefused
			}
			ours, theirs := net.Pipe()
			select {
			case ln.conns <- theirs:
				return ours, nil
			case <-ln.done:
				return nil, errRefused
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		},
	}
}

// client makes a client in this world that is closed with the test.
func (w *world) client(opts Options) *Client {
	opts.Transport = w.transport()
	if opts.Keychain == nil {
		opts.Keychain = authn.NewMultiKeychain()
	}
	c := New(opts)
	w.t.Cleanup(func() { c.Close() })
	return c
}

func (w *world) repo(c *Client, name string) Repository {
	w.t.Helper()
	ref, err := oci.ParseReference(name)
	if err != nil {
		w.t.Fatal(err)
	}
	r, err := c.Repository(ref)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

type pipeListener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l *pipeListener) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{} }

// fakeRegistry is a real registry handler behind a script of faults.
type fakeRegistry struct {
	http.Handler

	mu       sync.Mutex // guards the following
	requests []*http.Request
	// fault handles request number n (from 0) among those with the path part,
	// or returns false to let the registry answer.
	fault map[string]func(n int, w http.ResponseWriter, r *http.Request, next http.Handler) bool
	seen  map[string]int
}

type faultFunc = func(n int, w http.ResponseWriter, r *http.Request, next http.Handler) bool

func newFakeRegistry(opts ...ggcr.Option) *fakeRegistry {
	quiet := ggcr.Logger(log.New(io.Discard, "", 0))
	return &fakeRegistry{Handler: ggcr.New(append(opts, quiet)...), fault: make(map[string]faultFunc), seen: make(map[string]int)}
}

func (f *fakeRegistry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.requests = append(f.requests, r.Clone(context.Background()))
	var fault faultFunc
	n := 0
	for part, fn := range f.fault {
		if strings.Contains(r.URL.Path, part) {
			fault, n = fn, f.seen[part]
			f.seen[part]++
		}
	}
	f.mu.Unlock()
	if fault == nil || !fault(n, w, r, f.Handler) {
		f.Handler.ServeHTTP(w, r)
	}
}

func (f *fakeRegistry) on(part string, fn faultFunc) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fault[part], f.seen[part] = fn, 0
}

func (f *fakeRegistry) count(part string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, r := range f.requests {
		if strings.Contains(r.URL.Path, part) {
			n++
		}
	}
	return n
}

func (f *fakeRegistry) put(t testing.TB, method, path, contentType string, b []byte) {
	t.Helper()
	req := httptest.NewRequest(method, path, bytes.NewReader(b))
	req.Header.Set("Content-Type", contentType)
	rec := httptest.NewRecorder()
	f.Handler.ServeHTTP(rec, req)
	if rec.Code != http.StatusCreated {
		t.Fatalf("%s %s: %d %s", method, path, rec.Code, rec.Body)
	}
}

func (f *fakeRegistry) addBlob(t testing.TB, repo, mediaType string, b []byte) v1.Descriptor {
	t.Helper()
	d := v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	f.put(t, http.MethodPost, "/v2/"+repo+"/blobs/uploads/?digest="+d.Digest.String(), "application/octet-stream", b)
	return d
}

func (f *fakeRegistry) addManifest(t testing.TB, repo, name, mediaType string, v any) v1.Descriptor {
	t.Helper()
	b := mustJSON(t, v)
	d := v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	if name == "" {
		name = d.Digest.String()
	}
	f.put(t, http.MethodPut, "/v2/"+repo+"/manifests/"+name, mediaType, b)
	return d
}

// addImage pushes an image of one layer for each architecture under the tag.
func (f *fakeRegistry) addImage(t testing.TB, repo, tag string, layer []byte) v1.Descriptor {
	t.Helper()
	l := f.addBlob(t, repo, v1.MediaTypeImageLayer, layer)
	cfg := v1.Image{Platform: v1.Platform{OS: "linux", Architecture: "amd64"}, RootFS: v1.RootFS{Type: "layers", DiffIDs: []digest.Digest{l.Digest}}}
	c := f.addBlob(t, repo, v1.MediaTypeImageConfig, mustJSON(t, cfg))
	return f.addManifest(t, repo, tag, v1.MediaTypeImageManifest, v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, Config: c, Layers: []v1.Descriptor{l},
	})
}

func mustJSON(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// randomBytes are the same for every run.
func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

// bubble runs a test with a world in a synctest bubble, and ends its servers
// and clients inside.
func bubble(t *testing.T, f func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(t, newWorld(t)) })
}

func readRange(ctx context.Context, repo Repository, d v1.Descriptor, off, n int64) ([]byte, error) {
	r, err := repo.ReadRange(ctx, d, off, n)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}
