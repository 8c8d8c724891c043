package registry

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/thaw-project/thaw/internal/oci"
)

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// FuzzAnswers has a registry answer anything to each kind of request: what comes
// back are bytes with the digests that were asked for, or an error.
func FuzzAnswers(f *testing.F) {
	manifest := `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[]}`
	list := `{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:` + strings.Repeat("a", 64) + `","size":3}]}`
	f.Add(200, v1.MediaTypeImageManifest, "", "", []byte(manifest))
	f.Add(200, v1.MediaTypeImageIndex, `</v2/app/referrers/sha256:x?n=1>; rel="next"`, "", []byte(list))
	f.Add(206, "", "", "bytes 0-9/10", []byte("0123456789"))
	f.Add(401, `Bearer realm="http://127.0.0.1:1/token",service="x"`, "", "", []byte(`{"token":"t","expires_in":1}`))
	f.Add(307, "http://127.0.0.1:1/loop", "", "", []byte(""))
	f.Add(429, "0", "", "", []byte(`{"errors":[{"code":"TOOMANYREQUESTS","message":"\u001b[31m"}]}`))
	f.Fuzz(func(t *testing.T, status int, a, b, c string, body []byte) {
		if status < 200 || status > 599 || len(body) > 1<<16 {
			return
		}
		requests := 0
		answer := func(req *http.Request) (*http.Response, error) {
			if requests++; requests > 2000 {
				t.Error("requests without end")
			}
			if err := req.Context().Err(); err != nil {
				return nil, err
			}
			h := http.Header{}
			for name, value := range map[string]string{"Content-Type": a, "Www-Authenticate": a, "Location": a, "Retry-After": a, "Link": b,
				"Docker-Content-Digest": b, "Content-Encoding": "", "Content-Range": c, "Content-Length": c} {
				if value != "" {
					h.Set(name, value)
				}
			}
			return &http.Response{StatusCode: status, Header: h, Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body)), Request: req}, nil
		}
		client := New(Options{Transport: roundTripper(answer), Keychain: authn.NewMultiKeychain(), GiveUp: time.Millisecond, IdleTimeout: time.Second})
		defer client.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		ref, err := oci.ParseReference("127.0.0.1:1/app:1")
		if err != nil {
			t.Fatal(err)
		}
		repo, err := client.Repository(ref)
		if err != nil {
			t.Fatal(err)
		}
		checkAnswers(ctx, t, repo, ref, body)
	})
}

func checkAnswers(ctx context.Context, t *testing.T, repo Repository, ref oci.Reference, body []byte) {
	want := digest.FromString("what was asked for")
	if got, desc, err := repo.Manifest(ctx, "1"); err == nil && (digest.FromBytes(got) != desc.Digest || int64(len(got)) != desc.Size) {
		t.Errorf("manifest of %d bytes is described as %v", len(got), desc)
	}
	if got, _, err := repo.Manifest(ctx, want.String()); err == nil && digest.FromBytes(got) != want {
		t.Error("another manifest than was asked for")
	}
	if got, err := repo.Blob(ctx, v1.Descriptor{Digest: want, Size: int64(len(body))}); err == nil && digest.FromBytes(got) != want {
		t.Error("another blob than was asked for")
	}
	if list, err := repo.Referrers(ctx, want, "application/x"); err == nil {
		for _, d := range list {
			if d.Digest.Validate() != nil || d.Size < 0 || d.ArtifactType != "application/x" {
				t.Errorf("referrer %v", d)
			}
		}
	}
	if r, err := repo.ReadRange(ctx, v1.Descriptor{Digest: want, Size: 1 << 20}, 3, 8); err == nil {
		got, err := io.ReadAll(r)
		if err == nil && len(got) != 8 || len(got) > 8 {
			t.Errorf("%d bytes of a range of 8, %v", len(got), err)
		}
		r.Close()
	}
	if img, err := ResolveImage(ctx, repo, ref, v1.Platform{}); err == nil && len(img.Layers) != len(img.Config.RootFS.DiffIDs) {
		t.Error("an image with other layers than diffIDs")
	}
}

// FuzzDockerConfig: whatever is in config.json, credentials are found, or not, or
// there is an error.
func FuzzDockerConfig(f *testing.F) {
	f.Add([]byte(`{"auths":{"registry.example.com":{"auth":"dXNlcjpwYXNz"}}}`))
	f.Add([]byte(`{"auths":{"registry.example.com":{"identitytoken":"x","registrytoken":"y"}},"HttpHeaders":{"A":"b"}}`))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		if lower := bytes.ToLower(b); bytes.Contains(lower, []byte("cred")) || bytes.Contains(lower, []byte(`\u`)) {
			return // would run programs
		}
		if err := os.WriteFile(filepath.Join(dir, "config.json"), b, 0o600); err != nil {
			t.Fatal(err)
		}
		a, err := configDir(dir).Resolve(resource{"registry.example.com", "app"})
		if err != nil {
			return
		}
		cfg, err := authn.Authorization(t.Context(), a)
		if err == nil && strings.ContainsAny(basicHeader(cfg), "\r\n") {
			t.Errorf("header %q", basicHeader(cfg))
		}
	})
}
