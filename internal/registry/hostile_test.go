package registry

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/thaw-project/thaw/internal/oci"
	"github.com/thaw-project/thaw/internal/testenv"
)

const hostileBytes = 100 << 20

// flood sends 100 MB of JSON that never gets to its end; honest says so before.
func flood(w http.ResponseWriter, honest bool) {
	if honest {
		w.Header().Set("Content-Length", fmt.Sprint(hostileBytes))
	}
	w.Header().Set("Content-Type", v1.MediaTypeImageManifest)
	chunk := []byte(`{"schemaVersion":2,"manifests":[` + strings.Repeat(" ", 1<<20))
	for sent := 0; sent < hostileBytes; sent += len(chunk) {
		if _, err := w.Write(chunk[:min(len(chunk), hostileBytes-sent)]); err != nil {
			return
		}
	}
}

// TestFloods: 100 MB where a manifest, config, list of referrers or token should be,
// redirects in circles and lists without end are refused, in little memory and time.
func TestFloods(t *testing.T) {
	want := digest.FromString("config")
	manifest := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":%q,"digest":%q,"size":%d},"layers":[]}`,
		v1.MediaTypeImageManifest, v1.MediaTypeImageConfig, want, oci.MaxConfigBytes)
	layers := strings.Repeat(fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":1},`, v1.MediaTypeImageLayer, want), 5000)
	for name, c := range map[string]struct {
		serve func(w http.ResponseWriter, r *http.Request, self string)
		call  func(t *testing.T, repo Repository, ref oci.Reference) error
		want  string // in the error; "": none
	}{
		"manifest":           {func(w http.ResponseWriter, _ *http.Request, _ string) { flood(w, false) }, callManifest, "more than"},
		"manifest, honestly": {func(w http.ResponseWriter, _ *http.Request, _ string) { flood(w, true) }, callManifest, "more than"},
		"error":              {func(w http.ResponseWriter, _ *http.Request, _ string) { w.WriteHeader(403); flood(w, false) }, callManifest, "403"},
		"config": {func(w http.ResponseWriter, r *http.Request, _ string) {
			if strings.Contains(r.URL.Path, "/manifests/") {
				w.Header().Set("Content-Type", v1.MediaTypeImageManifest)
				fmt.Fprint(w, manifest)
				return
			}
			flood(w, false)
		}, callImage, "sha256"},
		"5000 layers": {func(w http.ResponseWriter, _ *http.Request, _ string) {
			w.Header().Set("Content-Type", v1.MediaTypeImageManifest)
			fmt.Fprint(w, strings.Replace(manifest, `"layers":[`, `"layers":[`+strings.TrimSuffix(layers, ","), 1))
		}, callImage, "more than 1000"},
		"referrers": {func(w http.ResponseWriter, _ *http.Request, _ string) { flood(w, false) }, callReferrers, "more than"},
		"referrers without end": {func(w http.ResponseWriter, r *http.Request, _ string) {
			w.Header().Set("Link", fmt.Sprintf(`<%s?n=%d>; rel="next"`, r.URL.Path, time.Now().UnixNano()))
			fmt.Fprintf(w, `{"schemaVersion":2,"manifests":[%s]}`, strings.TrimSuffix(strings.Repeat(fmt.Sprintf(`{"mediaType":"x","digest":%q,"size":1},`, want), 5000), ","))
		}, callReferrers, ""},
		"token": {func(w http.ResponseWriter, r *http.Request, self string) {
			if strings.HasPrefix(r.URL.Path, "/token") {
				flood(w, false)
				return
			}
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="x"`, self))
			w.WriteHeader(http.StatusUnauthorized)
		}, callManifest, "longer than"},
		"challenge": {func(w http.ResponseWriter, _ *http.Request, self string) {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",scope=%q`, self, strings.Repeat("s", 500<<10)))
			w.WriteHeader(http.StatusUnauthorized)
		}, callManifest, "headers exceeded"},
		"redirects in a circle": {func(w http.ResponseWriter, r *http.Request, self string) {
			http.Redirect(w, r, self+r.URL.Path+"?x", http.StatusTemporaryRedirect)
		}, callManifest, "redirects"},
		"blob": {func(w http.ResponseWriter, _ *http.Request, _ string) { flood(w, false) }, func(t *testing.T, repo Repository, _ oci.Reference) error {
			_, err := repo.Blob(t.Context(), v1.Descriptor{Digest: want, Size: 1000})
			return err
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var srv *httptest.Server
			srv = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { c.serve(w, r, srv.URL) }))
			defer srv.Close()
			ref, err := oci.ParseReference(strings.TrimPrefix(srv.URL, "http://") + "/app:1")
			if err != nil {
				t.Fatal(err)
			}
			client := New(Options{Keychain: authn.NewMultiKeychain(), GiveUp: time.Second})
			defer client.Close()
			repo, err := client.Repository(ref)
			if err != nil {
				t.Fatal(err)
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			watch := testenv.Start()
			err = c.call(t, repo, ref)
			over, starved := watch.Over(30 * time.Second)
			runtime.ReadMemStats(&after)
			allocated := (after.TotalAlloc - before.TotalAlloc) >> 20
			t.Logf("%d MiB allocated in %v: %.200v", allocated, watch.Took().Round(time.Millisecond), err)
			if name != "referrers without end" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("error %v, want %q", err, c.want)
			}
			// All of it, over all tries, this server's part included.
			if allocated > 128 || over {
				t.Errorf("%d MiB and %v, the machine was busy for %v", allocated, watch.Took(), starved)
			}
		})
	}
}

func callManifest(t *testing.T, repo Repository, _ oci.Reference) error {
	_, _, err := repo.Manifest(t.Context(), "1")
	return err
}

func callImage(t *testing.T, repo Repository, ref oci.Reference) error {
	_, err := ResolveImage(t.Context(), repo, ref, v1.Platform{})
	return err
}

func callReferrers(t *testing.T, repo Repository, _ oci.Reference) error {
	list, err := repo.Referrers(t.Context(), digest.FromString("image"), "application/x")
	if len(list) > oci.MaxIndexEntries*2 {
		t.Errorf("%d referrers", len(list))
	}
	return err
}
