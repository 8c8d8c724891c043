package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/thaw-project/thaw/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func newServer(t *testing.T, opts Options) *Server {
	t.Helper()
	s, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func do(t *testing.T, method, url string, header http.Header, body []byte) (*http.Response, error) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if header != nil {
		r.Header = header
	}
	return http.DefaultClient.Do(r)
}

func get(t *testing.T, url string, header http.Header) *http.Response {
	t.Helper()
	resp, err := do(t, http.MethodGet, url, header, nil)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

// fetch returns the answer with what of its body came, and the error that ended it.
func fetch(t *testing.T, url string, header http.Header) (*http.Response, []byte, error) {
	t.Helper()
	resp, err := do(t, http.MethodGet, url, header, nil)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp, b, err
}

func ranged(spec string) http.Header { return http.Header{"Range": {spec}} }

func blobURL(s *Server, dgst digest.Digest) string {
	return fmt.Sprintf("http://%s/v2/test/blobs/%s", s.Addr(), dgst)
}

func pushBlob(t *testing.T, s *Server, b []byte) digest.Digest {
	t.Helper()
	dgst := digest.FromBytes(b)
	to := fmt.Sprintf("http://%s/v2/test/blobs/uploads/?digest=%s", s.Addr(), url.QueryEscape(dgst.String()))
	resp, err := do(t, http.MethodPost, to, nil, b)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		t.Fatalf("push blob: %s", resp.Status)
	}
	return dgst
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(b) // never fails
	return b
}

// testLayout writes an OCI layout of images by ref name.
func testLayout(t *testing.T, images map[string]ggcr.Image) string {
	t.Helper()
	dir := t.TempDir()
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	for ref, img := range images {
		if err := p.AppendImage(img, layout.WithAnnotations(map[string]string{v1.AnnotationRefName: ref})); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func randomImage(t *testing.T) ggcr.Image {
	t.Helper()
	img, err := random.Image(200_000, 3)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func pull(t *testing.T, s *Server, ref string) (ggcr.Image, error) {
	t.Helper()
	r, err := name.ParseReference(s.Addr() + "/" + ref)
	if err != nil {
		t.Fatal(err)
	}
	return remote.Image(r, remote.WithTransport(http.DefaultTransport), remote.WithContext(t.Context()))
}

func TestServedName(t *testing.T) {
	cases := map[string][2]string{
		"nginx":                        {"nginx", "latest"},
		"python-ml":                    {"python-ml", "latest"},
		"nginx:1.27":                   {"nginx", "1.27"},
		"a/b/c:x":                      {"a/b/c", "x"},
		"docker.io/library/nginx:1.27": {"library/nginx", "1.27"},
		"localhost:5000/a":             {"a", "latest"},
		"localhost/a:b":                {"a", "b"},
		"a:b@sha256:00":                {"a", "b"},
	}
	for in, want := range cases {
		repository, tag := servedName(in)
		if diff := cmp.Diff(want, [2]string{repository, tag}); diff != "" {
			t.Errorf("%s: %s", in, diff)
		}
	}
}

func TestServesALayout(t *testing.T) {
	img := randomImage(t)
	index, err := random.Index(1000, 2, 2)
	if err != nil {
		t.Fatal(err)
	}
	dir := testLayout(t, map[string]ggcr.Image{"one": img, "example.com/two/three:v1": randomImage(t)})
	p, err := layout.FromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AppendIndex(index, layout.WithAnnotations(map[string]string{v1.AnnotationRefName: "many"})); err != nil {
		t.Fatal(err)
	}
	s := newServer(t, Options{Dir: dir})
	for _, ref := range []string{"one", "two/three:v1"} {
		got, err := pull(t, s, ref)
		if err != nil {
			t.Fatalf("%s: %v", ref, err)
		}
		if err := validate.Image(got); err != nil {
			t.Errorf("%s: %v", ref, err)
		}
	}
	ref, err := name.ParseReference(s.Addr() + "/many")
	if err != nil {
		t.Fatal(err)
	}
	many, err := remote.Index(ref, remote.WithTransport(http.DefaultTransport))
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(many); err != nil {
		t.Error(err)
	}
	if got := len(s.Images()); got != 3 {
		t.Errorf("%d images served, want 3", got)
	}
}

func TestRanges(t *testing.T) {
	s := newServer(t, Options{})
	body := randomBytes(3 << 20)
	at := blobURL(s, pushBlob(t, s, body))
	cases := []struct {
		spec         string
		status       int
		from, to     int // of the body expected
		contentRange string
	}{
		{"", 200, 0, len(body), ""},
		{"bytes=0-0", 206, 0, 1, "bytes 0-0/3145728"},
		{"bytes=100-199", 206, 100, 200, "bytes 100-199/3145728"},
		{"bytes=1000000-", 206, 1000000, len(body), "bytes 1000000-3145727/3145728"},
		{"bytes=-10", 206, len(body) - 10, len(body), "bytes 3145718-3145727/3145728"},
		{"bytes=3145720-9999999", 206, 3145720, len(body), "bytes 3145720-3145727/3145728"},
		{"bytes=3145728-", 416, 0, 0, "bytes */3145728"},
	}
	for _, c := range cases {
		t.Run(c.spec, func(t *testing.T) {
			resp, got, err := fetch(t, at, ranged(c.spec))
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != c.status || resp.Header.Get("Content-Range") != c.contentRange {
				t.Errorf("status %d, range %q", resp.StatusCode, resp.Header.Get("Content-Range"))
			}
			if c.status < 300 && !bytes.Equal(got, body[c.from:c.to]) {
				t.Errorf("wrong body of %d bytes", len(got))
			}
		})
	}
}

// TestPushAndReferrers is the round trip of an artifact that refers to an image.
func TestPushAndReferrers(t *testing.T) {
	img := randomImage(t)
	dir := testLayout(t, map[string]ggcr.Image{"app": img})
	for _, api := range []bool{true, false} {
		t.Run(fmt.Sprintf("api=%v", api), func(t *testing.T) {
			s := newServer(t, Options{Dir: dir})
			if !api {
				if err := s.SetFaults([]Fault{{Kind: NotFound, Match: "/referrers/"}}); err != nil {
					t.Fatal(err)
				}
			}
			testReferrers(t, s, img)
			_, fallback := tags(t, s, "app")
			if fallback == api {
				t.Errorf("fallback tag written: %v, with the API: %v", fallback, api)
			}
		})
	}
}

func testReferrers(t *testing.T, s *Server, img ggcr.Image) {
	t.Helper()
	repo, err := name.NewRepository(s.Addr() + "/app")
	if err != nil {
		t.Fatal(err)
	}
	dgst, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	desc, err := remote.Head(repo.Digest(dgst.String()), remote.WithTransport(http.DefaultTransport))
	if err != nil {
		t.Fatal(err)
	}
	artifact := mutate.Subject(mutate.MediaType(randomImage(t), v1.MediaTypeImageManifest), *desc).(ggcr.Image)
	artifactDigest, err := artifact.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(repo.Digest(artifactDigest.String()), artifact, remote.WithTransport(http.DefaultTransport)); err != nil {
		t.Fatal(err)
	}
	index, err := remote.Referrers(repo.Digest(dgst.String()), remote.WithTransport(http.DefaultTransport))
	if err != nil {
		t.Fatal(err)
	}
	m, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Manifests) != 1 || m.Manifests[0].Digest != artifactDigest {
		t.Errorf("referrers: %v, want %v", m.Manifests, artifactDigest)
	}
	got, err := remote.Image(repo.Digest(artifactDigest.String()), remote.WithTransport(http.DefaultTransport))
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(got); err != nil {
		t.Error(err)
	}
}

func tags(t *testing.T, s *Server, repository string) (all []string, fallback bool) {
	t.Helper()
	_, b, err := fetch(t, fmt.Sprintf("http://%s/v2/%s/tags/list", s.Addr(), repository), nil)
	if err != nil {
		t.Fatal(err)
	}
	var list struct{ Tags []string }
	if err := json.Unmarshal(b, &list); err != nil {
		t.Fatal(err)
	}
	for _, tag := range list.Tags {
		fallback = fallback || strings.HasPrefix(tag, "sha256-")
	}
	return list.Tags, fallback
}

// TestReferrersByArtifactType: artifactType is the manifest's own, and filters.
func TestReferrersByArtifactType(t *testing.T) {
	s := newServer(t, Options{})
	subject := v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: digest.FromString("subject"), Size: 7}
	for _, kind := range []string{"application/vnd.a", "application/vnd.b"} {
		b, err := json.Marshal(v1.Manifest{
			MediaType: v1.MediaTypeImageManifest, ArtifactType: kind,
			Config: v1.DescriptorEmptyJSON, Layers: []v1.Descriptor{v1.DescriptorEmptyJSON}, Subject: &subject,
		})
		if err != nil {
			t.Fatal(err)
		}
		at := fmt.Sprintf("http://%s/v2/test/manifests/%s", s.Addr(), digest.FromBytes(b))
		resp, err := do(t, http.MethodPut, at, http.Header{"Content-Type": {v1.MediaTypeImageManifest}}, b)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got := resp.Header.Get("OCI-Subject"); got != subject.Digest.String() {
			t.Errorf("OCI-Subject %q", got)
		}
	}
	at := fmt.Sprintf("http://%s/v2/test/referrers/%s", s.Addr(), subject.Digest)
	for query, want := range map[string]int{"": 2, "?artifactType=application/vnd.a": 1, "?artifactType=none": 0} {
		resp, b, err := fetch(t, at+query, nil)
		if err != nil {
			t.Fatal(err)
		}
		var index v1.Index
		if err := json.Unmarshal(b, &index); err != nil {
			t.Fatal(err)
		}
		if len(index.Manifests) != want || (query != "") != (resp.Header.Get("OCI-Filters-Applied") != "") {
			t.Errorf("%q: %d referrers, want %d (filters applied %q)", query, len(index.Manifests), want, resp.Header.Get("OCI-Filters-Applied"))
		}
	}
}

// TestUnnamedReferrersOfALayoutAreServed: an artifact kept in the layout beside
// its image is found.
func TestUnnamedReferrersOfALayoutAreServed(t *testing.T) {
	img := randomImage(t)
	dir := testLayout(t, map[string]ggcr.Image{"app": img})
	p, err := layout.FromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	dgst, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	artifact := mutate.Subject(randomImage(t), ggcr.Descriptor{Digest: dgst}).(ggcr.Image)
	if err := p.AppendImage(artifact); err != nil {
		t.Fatal(err)
	}
	s := newServer(t, Options{Dir: dir})
	_, b, err := fetch(t, fmt.Sprintf("http://%s/v2/app/referrers/%s", s.Addr(), dgst), nil)
	if err != nil {
		t.Fatal(err)
	}
	var index v1.Index
	if err := json.Unmarshal(b, &index); err != nil || len(index.Manifests) != 1 {
		t.Errorf("referrers %s: %v", b, err)
	}
}

func TestDamagedLayoutIsRefused(t *testing.T) {
	img := randomImage(t)
	dir := testLayout(t, map[string]ggcr.Image{"app": img})
	dgst, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "blobs", "sha256", dgst.Hex), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(Options{Dir: dir}); err == nil || !strings.Contains(err.Error(), dgst.String()) {
		t.Errorf("error %v does not name the manifest", err)
	}
	if _, err := New(Options{Dir: t.TempDir()}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("not a layout: %v", err)
	}
}

func TestStats(t *testing.T) {
	s := newServer(t, Options{})
	dgst := pushBlob(t, s, randomBytes(5000))
	s.ResetStats()
	for _, spec := range []string{"bytes=0-99", ""} {
		if _, _, err := fetch(t, blobURL(s, dgst), ranged(spec)); err != nil {
			t.Fatal(err)
		}
	}
	var got Stats
	for deadline := time.Now().Add(time.Minute); got.Bytes < 5100 && time.Now().Before(deadline); { // who has the bytes may be ahead of the count
		_, b, err := fetch(t, "http://"+s.Addr()+"/stats", nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(b, &got); err != nil {
			t.Fatal(err)
		}
	}
	want := map[string]Count{"blob": {2, 5100}}
	if diff := cmp.Diff(want, got.Kinds); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(map[string]Count{dgst.String(): {2, 5100}}, got.Blobs); diff != "" {
		t.Error(diff)
	}
	if got.Version != StatsVersion || got.Requests != 2 || got.Bytes != 5100 {
		t.Errorf("%+v", got)
	}
	if resp, err := do(t, http.MethodPost, "http://"+s.Addr()+"/stats/reset", nil, nil); err != nil || resp.Body.Close() != nil {
		t.Fatal(err)
	}
	if got := s.Stats(); got.Requests != 0 {
		t.Errorf("after reset: %+v", got)
	}
}

// TestConcurrentUse pulls, pushes, asks for stats and changes faults at once.
func TestConcurrentUse(t *testing.T) {
	img := randomImage(t)
	s := newServer(t, Options{Dir: testLayout(t, map[string]ggcr.Image{"app": img}), Network: Network{ConnRate: 50 * mb, Rate: 100 * mb}})
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			got, err := pull(t, s, "app")
			if err == nil {
				err = validate.Image(got)
			}
			if err != nil {
				t.Error(err)
			}
			pushBlob(t, s, randomBytes(100_000+i))
			_ = s.Stats()
			if err := s.SetFaults([]Fault{{Kind: Redirect}}); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
}

func TestCloseCutsRunningAnswers(t *testing.T) {
	s, err := New(Options{Network: Network{ConnRate: 1000}})
	if err != nil {
		t.Fatal(err)
	}
	at := blobURL(s, pushBlob(t, s, randomBytes(1<<20)))
	resp := get(t, at, nil)
	defer resp.Body.Close()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, resp.Body); err == nil {
		t.Error("body ended well")
	}
	if _, err := os.Stat(s.store.pushed); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("pushed blobs are left: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
}

func TestShutdownLetsAnswersFinish(t *testing.T) {
	s, err := New(Options{Network: Network{ConnRate: 10 * mb}})
	if err != nil {
		t.Fatal(err)
	}
	body := randomBytes(1 << 20)
	resp := get(t, blobURL(s, pushBlob(t, s, body)), nil)
	defer resp.Body.Close()
	done := make(chan error, 1)
	go func() { done <- s.Shutdown(context.Background()) }()
	got, err := io.ReadAll(resp.Body)
	if err != nil || !bytes.Equal(got, body) {
		t.Errorf("read %d bytes: %v", len(got), err)
	}
	http.DefaultClient.CloseIdleConnections()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
