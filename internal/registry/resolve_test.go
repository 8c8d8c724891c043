package registry

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/thaw-project/thaw/internal/oci"
	"github.com/thaw-project/thaw/internal/testenv"
)

func TestResolveImage(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		reg := newFakeRegistry()
		amd := reg.addImage(t, "a/b", "amd", []byte("amd layer"))
		arm := reg.addImage(t, "a/b", "arm", []byte("arm layer"))
		index := func(mediaType string, list ...v1.Descriptor) v1.Index {
			return v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: mediaType, Manifests: list}
		}
		on := func(d v1.Descriptor, arch string) v1.Descriptor {
			d.Platform = &v1.Platform{OS: "linux", Architecture: arch}
			return d
		}
		for tag, typ := range map[string]string{"oci": v1.MediaTypeImageIndex, "docker": oci.MediaTypeDockerManifestList} {
			reg.addManifest(t, "a/b", tag, typ, index(typ, on(amd, "amd64"), on(arm, "arm64")))
		}
		nested := reg.addManifest(t, "a/b", "", v1.MediaTypeImageIndex, index(v1.MediaTypeImageIndex, on(amd, "amd64")))
		reg.addManifest(t, "a/b", "nested", v1.MediaTypeImageIndex, index(v1.MediaTypeImageIndex, on(arm, "arm64"), on(nested, "amd64")))
		reg.addManifest(t, "a/b", "artifact", v1.MediaTypeImageManifest, v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, Config: v1.DescriptorEmptyJSON})
		w.serve("localhost:1", reg)
		c := w.client(Options{})
		tests := []struct {
			ref, arch string
			want      digest.Digest
			err       string
		}{
			{"amd", "amd64", amd.Digest, ""},
			{"b@" + arm.Digest.String(), "amd64", arm.Digest, ""},
			{"oci", "amd64", amd.Digest, ""},
			{"oci", "arm64", arm.Digest, ""},
			{"docker", "amd64", amd.Digest, ""},
			{"docker", "arm64", arm.Digest, ""},
			{"nested", "amd64", amd.Digest, ""},
			{"nested", "arm64", arm.Digest, ""},
			{"nested", "s390x", "", "has only [linux/arm64 linux/amd64]"},
			{"artifact", "amd64", "", "not a container image"},
			{"missing", "amd64", "", "404 Not Found"},
		}
		for _, tt := range tests {
			name := "localhost:1/a/b:" + tt.ref
			if rest, ok := strings.CutPrefix(tt.ref, "b@"); ok {
				name = "localhost:1/a/b@" + rest
			}
			ref, err := oci.ParseReference(name)
			if err != nil {
				t.Fatal(err)
			}
			img, err := ResolveImage(t.Context(), w.repo(c, name), ref, v1.Platform{OS: "linux", Architecture: tt.arch})
			switch {
			case tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)):
				t.Errorf("%s on %s: %v", tt.ref, tt.arch, err)
			case tt.err == "" && (err != nil || img.ManifestDescriptor.Digest != tt.want || img.Reference != ref):
				t.Errorf("%s on %s: %v", tt.ref, tt.arch, err)
			}
		}
	})
}

func TestManifestIsVerified(t *testing.T) {
	flip := func(_ int, w http.ResponseWriter, r *http.Request, next http.Handler) bool {
		rec := record(r, next)
		copyHeader(w, rec)
		w.WriteHeader(rec.Code)
		b := bytes.Replace(rec.Body.Bytes(), []byte(`"schemaVersion"`), []byte(`"schemaversion"`), 1)
		_, _ = w.Write(b)
		return true
	}
	body := func(s string) faultFunc {
		return func(_ int, w http.ResponseWriter, _ *http.Request, _ http.Handler) bool {
			_, _ = io.WriteString(w, s)
			return true
		}
	}
	tests := []struct {
		name   string
		fault  faultFunc
		byName string // error by tag, "" for success
		byDgst string
	}{
		{"flipped now and then", first(2, flip), "", ""},
		{"flipped always", flip, "the bytes hash to", "the bytes hash to"},
		{"500 and resets", first(3, func(n int, w http.ResponseWriter, r *http.Request, next http.Handler) bool {
			return []faultFunc{status(500), cutAfter(20), stall(10)}[n](n, w, r, next)
		}), "", ""},
		{"a web page", body("<html>"), "invalid character", "the bytes hash to"},
		{"endless", body(strings.Repeat(" ", oci.MaxManifestBytes+1)), "more than 8388608", "more than 8388608"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				reg := newFakeRegistry()
				d := reg.addImage(t, "a/b", "x", []byte("layer"))
				w.serve("localhost:1", reg)
				repo := w.repo(w.client(Options{}), "localhost:1/a/b")
				for name, want := range map[string]string{"x": tt.byName, d.Digest.String(): tt.byDgst} {
					reg.on("/manifests/", tt.fault)
					_, got, err := repo.Manifest(t.Context(), name)
					if want == "" && (err != nil || got.Digest != d.Digest || got.Size != d.Size || got.MediaType != d.MediaType) {
						t.Errorf("%s: %+v, %v", name, got, err)
					}
					if want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
						t.Errorf("%s: %v", name, err)
					}
				}
			})
		})
	}
}

func TestNamesStayOutOfURLs(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		reg := newFakeRegistry()
		w.serve("localhost:1", reg)
		repo := w.repo(w.client(Options{}), "localhost:1/a/b")
		for _, name := range []string{"", "../../x", "a/b", "x?y", "x#y", "x y", "sha256:x"} {
			if _, _, err := repo.Manifest(t.Context(), name); err == nil || Retryable(err) {
				t.Errorf("manifest %q: %v", name, err)
			}
			if name != "" {
				if err := repo.PushManifest(t.Context(), name, v1.MediaTypeImageManifest, []byte("{}")); err == nil {
					t.Errorf("push manifest %q", name)
				}
			}
			if _, err := repo.Blob(t.Context(), v1.Descriptor{Digest: digest.Digest(name), Size: 5}); err == nil {
				t.Errorf("blob %q", name)
			}
			if _, err := repo.Referrers(t.Context(), digest.Digest(name), ""); err == nil {
				t.Errorf("referrers of %q", name)
			}
		}
		if n := len(reg.requests); n != 0 {
			t.Errorf("%d requests", n)
		}
	})
}

// A registry may think for a while after an upload; it is not a stall.
func TestPushSlowCommit(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		reg := newFakeRegistry()
		reg.on("/uploads/", func(_ int, _ http.ResponseWriter, r *http.Request, _ http.Handler) bool {
			if r.Method == http.MethodPut {
				b, _ := io.ReadAll(r.Body)
				r.Body = io.NopCloser(bytes.NewReader(b))
				time.Sleep(40 * time.Second)
			}
			return false
		})
		w.serve("localhost:1", reg)
		d, open := blobToPush(randomBytes(50_000))
		start := time.Now()
		if err := w.repo(w.client(Options{}), "localhost:1/a/b").PushBlob(t.Context(), d, open); err != nil {
			t.Error(err)
		}
		if took := time.Since(start); took != 40*time.Second {
			t.Errorf("took %v", took)
		}
	})
}

// An embedded blob needs no request.
func TestEmbeddedBlob(t *testing.T) {
	c := New(Options{})
	defer c.Close()
	for _, ref := range []oci.Reference{{Registry: "example.com", Repository: "x"}, {LayoutDir: t.TempDir()}} {
		repo, err := c.Repository(ref)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := repo.Blob(t.Context(), v1.DescriptorEmptyJSON); err != nil || string(b) != "{}" {
			t.Errorf("%s: %q, %v", ref, b, err)
		}
	}
	if n := c.Stats().Requests.Load(); n != 0 {
		t.Errorf("%d requests", n)
	}
}

// A real layout, and the sole image of one.
func TestCorpusLayout(t *testing.T) {
	dir := filepath.Join(testenv.Corpus(t), "oci")
	c := New(Options{})
	defer c.Close()
	ref, err := oci.ParseReference("oci:" + dir + ":nginx")
	if err != nil {
		t.Fatal(err)
	}
	repo, err := c.Repository(ref)
	if err != nil {
		t.Fatal(err)
	}
	img, err := ResolveImage(t.Context(), repo, ref, v1.Platform{})
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range img.Layers {
		s := Stream(t.Context(), repo, l.Descriptor, StreamOptions{})
		if n, err := io.Copy(io.Discard, s); err != nil || n != l.Size {
			t.Errorf("%s: %d bytes, %v", l.Digest, n, err)
		}
		s.Close()
	}
	if _, _, err := repo.Manifest(t.Context(), ""); err == nil || !strings.Contains(err.Error(), "nginx") {
		t.Errorf("several images, none named: %v", err)
	}
	var e *Error
	if _, _, err := repo.Manifest(t.Context(), "nope"); !errors.As(err, &e) || !errors.Is(err, ErrNotFound) {
		t.Errorf("missing: %v", err)
	}
}
