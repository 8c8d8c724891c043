package registry

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/thaw-project/thaw/internal/oci"
)

const testArtifact = "application/vnd.test.artifact"

func blobToPush(b []byte) (v1.Descriptor, func() (io.ReadCloser, error)) {
	return v1.Descriptor{MediaType: "application/octet-stream", Digest: digest.FromBytes(b), Size: int64(len(b))}, bytesOpener(b)
}

func artifact(t testing.TB, subject v1.Descriptor, artifactType, note string) []byte {
	return mustJSON(t, v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, ArtifactType: artifactType,
		Config: v1.DescriptorEmptyJSON, Layers: []v1.Descriptor{v1.DescriptorEmptyJSON}, Subject: &subject,
		Annotations: map[string]string{"note": note},
	})
}

// repositories are all kinds of repository that can be pushed to, each with an
// image in it.
func repositories(t *testing.T, w *world) map[string]Repository {
	t.Helper()
	c := w.client(Options{})
	repos := make(map[string]Repository)
	for host, reg := range map[string]*fakeRegistry{
		"localhost:1": newFakeRegistry(),
		"localhost:2": newFakeRegistry(ggcr.WithReferrersSupport(true)),
		"localhost:3": newFakeRegistry(ggcr.WithReferrersSupport(true)),
	} {
		if host == "localhost:3" { // one that maintains the list itself
			reg.on("/manifests/", withHeader(func(h http.Header) { h.Set("OCI-Subject", "yes") }))
		}
		w.serve(host, reg)
		repos[host] = w.repo(c, host+"/a/b")
	}
	repos["layout"] = w.repo(c, "oci:"+filepath.Join(t.TempDir(), "new"))
	return repos
}

func TestPushAndReferrers(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		for name, repo := range repositories(t, w) {
			testPushAndReferrers(t, name, repo)
		}
	})
}

func testPushAndReferrers(t *testing.T, name string, repo Repository) {
	t.Helper()
	ctx := t.Context()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	layer := randomBytes(100_000)
	ld, open := blobToPush(layer)
	check(repo.PushBlob(ctx, ld, open))
	check(repo.PushBlob(ctx, ld, func() (io.ReadCloser, error) { t.Errorf("%s: pushed twice", name); return open() }))
	cfg := mustJSON(t, v1.Image{Platform: v1.Platform{OS: "linux"}, RootFS: v1.RootFS{Type: "layers", DiffIDs: []digest.Digest{ld.Digest}}})
	cd, cfgOpen := blobToPush(cfg)
	check(repo.PushBlob(ctx, cd, cfgOpen))
	check(repo.PushBlob(ctx, v1.DescriptorEmptyJSON, bytesOpener([]byte("{}"))))
	ld.MediaType, cd.MediaType = v1.MediaTypeImageLayer, v1.MediaTypeImageConfig
	m := mustJSON(t, v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, Config: cd, Layers: []v1.Descriptor{ld}})
	check(repo.PushManifest(ctx, "v1", v1.MediaTypeImageManifest, m))

	img, err := ResolveImage(ctx, repo, oci.Reference{Registry: "x", Repository: "y", Tag: "v1"}, v1.Platform{})
	check(err)
	subject := img.ManifestDescriptor
	if subject.Digest != digest.FromBytes(m) || img.Layers[0].DiffID != ld.Digest {
		t.Errorf("%s: resolved %+v", name, img)
	}
	if list, err := repo.Referrers(ctx, subject.Digest, testArtifact); err != nil || len(list) != 0 {
		t.Errorf("%s: referrers at first: %v, %v", name, list, err)
	}
	var want []string
	for _, note := range []string{"one", "two"} {
		b := artifact(t, subject, testArtifact, note)
		check(repo.PushManifest(ctx, "", v1.MediaTypeImageManifest, b))
		check(repo.PushManifest(ctx, digest.FromBytes(b).String(), v1.MediaTypeImageManifest, b))
		want = append(want, digest.FromBytes(b).String())
	}
	check(repo.PushManifest(ctx, "sig", v1.MediaTypeImageManifest, artifact(t, subject, "application/vnd.test.other", "three")))
	check(repo.PushManifest(ctx, "", v1.MediaTypeImageManifest, artifact(t, v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: ld.Digest, Size: 5}, testArtifact, "of another")))

	list, err := repo.Referrers(ctx, subject.Digest, testArtifact)
	check(err)
	var got []string
	for _, d := range list {
		got = append(got, d.Digest.String())
	}
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s: referrers (-want +got):\n%s", name, diff)
	}
	if list, err := repo.Referrers(ctx, subject.Digest, ""); err != nil || len(list) != 3 {
		t.Errorf("%s: all referrers: %d, %v", name, len(list), err)
	}
	// A layout's referrers do not make its sole image ambiguous.
	if name == "layout" {
		if _, d, err := repo.Manifest(ctx, "v1"); err != nil || d.Digest != subject.Digest {
			t.Errorf("%v, %v", d, err)
		}
		if _, d, err := repo.Manifest(ctx, ""); err != nil || d.Digest != subject.Digest {
			t.Errorf("sole image: %v, %v", d, err)
		}
	}
	if err := repo.PushManifest(ctx, "sha256:"+strings.Repeat("0", 64), v1.MediaTypeImageManifest, m); err == nil {
		t.Errorf("%s: pushed under another digest", name)
	}
	bad := ld
	bad.Digest = digest.FromString("something else")
	if err := repo.PushBlob(ctx, bad, open); err == nil {
		t.Errorf("%s: pushed a blob that hashes wrong", name)
	}
	for _, missing := range []string{"nope", digest.FromString("nope").String()} {
		if _, _, err := repo.Manifest(ctx, missing); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: manifest %s: %v", name, missing, err)
		}
	}
	if _, err := repo.Blob(ctx, v1.Descriptor{Digest: digest.FromString("nope"), Size: 4}); !errors.Is(err, ErrNotFound) {
		t.Errorf("%s: missing blob: %v", name, err)
	}
}

// The tag that stands in for the referrers API is kept only where it is needed.
func TestReferrersFallbackTag(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		for name, repo := range repositories(t, w) {
			subject := v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: digest.FromString("subject"), Size: 7}
			if err := repo.PushManifest(t.Context(), "", v1.MediaTypeImageManifest, artifact(t, subject, testArtifact, "")); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			_, _, err := repo.Manifest(t.Context(), oci.ReferrersTag(subject.Digest))
			if want := name == "localhost:1" || name == "localhost:2"; (err == nil) != want {
				t.Errorf("%s: fallback tag: %v", name, err)
			}
		}
	})
}

func TestPushRetries(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		reg := newFakeRegistry()
		faults := 0
		reg.on("/", func(n int, w http.ResponseWriter, r *http.Request, next http.Handler) bool {
			if !slices.Contains([]int{0, 2, 5, 6, 9, 14}, n) {
				return false
			}
			faults++
			if r.Method == http.MethodPut {
				_, _ = io.CopyN(io.Discard, r.Body, 1000)
			}
			if n%2 == 0 {
				abort()
			}
			w.WriteHeader(http.StatusBadGateway)
			return true
		})
		w.serve("localhost:1", reg)
		repo := w.repo(w.client(Options{}), "localhost:1/a/b")
		b := randomBytes(200_000)
		d, open := blobToPush(b)
		if err := repo.PushBlob(t.Context(), d, open); err != nil {
			t.Fatal(err)
		}
		if err := repo.PushManifest(t.Context(), "x", v1.MediaTypeImageManifest, artifact(t, d, testArtifact, "")); err != nil {
			t.Fatal(err)
		}
		got, err := repo.Blob(t.Context(), d)
		if err != nil || !bytes.Equal(got, b) || faults < 3 {
			t.Errorf("%v after %d faults", err, faults)
		}
	})
}

func TestReferrersOfStrangeRegistries(t *testing.T) {
	subject := digest.FromString("subject")
	list := func(n int, types ...string) []byte {
		idx := v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{}}
		for i, typ := range types {
			idx.Manifests = append(idx.Manifests, v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: digest.FromString(string(rune(n*10 + i))), Size: 1, ArtifactType: typ})
		}
		return mustJSON(t, idx)
	}
	tests := []struct {
		name  string
		fault faultFunc
		want  int
	}{
		{"a web page for every path", func(_ int, w http.ResponseWriter, _ *http.Request, _ http.Handler) bool {
			_, _ = io.WriteString(w, "<html>")
			return true
		}, 0},
		{"405", status(405), 0},
		{"404", status(404), 0},
		{"does not filter", func(_ int, w http.ResponseWriter, _ *http.Request, _ http.Handler) bool {
			_, _ = w.Write(list(1, testArtifact, "other", testArtifact))
			return true
		}, 2},
		{"three pages", func(n int, w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
			if n < 2 {
				w.Header().Set("Link", `<`+r.URL.Path+`?page=next>; rel="next"`)
			}
			_, _ = w.Write(list(n+1, testArtifact))
			return true
		}, 3},
		{"a next page elsewhere is not followed", func(_ int, w http.ResponseWriter, _ *http.Request, _ http.Handler) bool {
			w.Header().Set("Link", `<http://evil.localhost/>; rel="next"`)
			_, _ = w.Write(list(1, testArtifact))
			return true
		}, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				reg := newFakeRegistry()
				reg.on("/referrers/", tt.fault)
				w.serve("localhost:1", reg)
				got, err := w.repo(w.client(Options{}), "localhost:1/a/b").Referrers(t.Context(), subject, testArtifact)
				if err != nil || len(got) != tt.want {
					t.Errorf("got %d and %v, want %d", len(got), err, tt.want)
				}
			})
		})
	}
}

func TestLayoutManyWriters(t *testing.T) {
	dir := t.TempDir()
	c := New(Options{})
	defer c.Close()
	subject := v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: digest.FromString("subject"), Size: 7}
	var wg sync.WaitGroup
	for i := range 12 {
		b := artifact(t, subject, testArtifact, string(rune('a'+i)))
		wg.Go(func() {
			repo, err := c.Repository(oci.Reference{LayoutDir: dir})
			if err == nil {
				err = repo.PushManifest(t.Context(), "", v1.MediaTypeImageManifest, b)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	repo, _ := c.Repository(oci.Reference{LayoutDir: dir})
	if list, err := repo.Referrers(t.Context(), subject.Digest, testArtifact); err != nil || len(list) != 12 {
		t.Errorf("%d referrers, %v", len(list), err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*", "*", ".tmp-*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestLayoutDamage(t *testing.T) {
	c := New(Options{})
	defer c.Close()
	dir := t.TempDir()
	repo, _ := c.Repository(oci.Reference{LayoutDir: dir})
	b := randomBytes(1000)
	d, open := blobToPush(b)
	if err := repo.PushBlob(t.Context(), d, open); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "blobs", "sha256", d.Digest.Encoded())
	b[500] ^= 1
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	var wrong *DigestError
	if _, err := repo.Blob(t.Context(), d); !errors.As(err, &wrong) {
		t.Errorf("flipped: %v", err)
	}
	if err := os.Truncate(path, 999); err != nil {
		t.Fatal(err)
	}
	if _, err := repo.ReadRange(t.Context(), d, 0, 10); err == nil || !strings.Contains(err.Error(), "999 bytes") {
		t.Errorf("truncated: %v", err)
	}
	for _, index := range []string{"", "{", `{"manifests":[{"digest":"x"}]}`, `{"manifests":[{"digest":"sha256:../../../x"}]}`} {
		if err := os.WriteFile(filepath.Join(dir, "index.json"), []byte(index), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, _, err := repo.Manifest(t.Context(), "x"); err == nil {
			t.Errorf("index.json %q is accepted", index)
		}
	}
}
