package indexer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	digest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/thaw-project/thaw/internal/index"
	"github.com/thaw-project/thaw/internal/layertar"
	"github.com/thaw-project/thaw/internal/layertar/layertartest"
	"github.com/thaw-project/thaw/internal/oci"
	"github.com/thaw-project/thaw/internal/registry"
)

func repositories(t *testing.T) map[string]string {
	t.Helper()
	quiet := ggcr.Logger(log.New(io.Discard, "", 0))
	api := httptest.NewServer(ggcr.New(quiet, ggcr.WithReferrersSupport(true)))
	tags := httptest.NewServer(ggcr.New(quiet))
	t.Cleanup(api.Close)
	t.Cleanup(tags.Close)
	return map[string]string{
		"referrers API": strings.TrimPrefix(api.URL, "http://") + "/a/b:latest",
		"tag fallback":  strings.TrimPrefix(tags.URL, "http://") + "/a/b:latest",
		"layout":        "oci:" + t.TempDir() + ":latest",
	}
}

func openRepository(t *testing.T, name string) (registry.Repository, oci.Reference) {
	t.Helper()
	ref, err := oci.ParseReference(name)
	if err != nil {
		t.Fatal(err)
	}
	c := registry.New(registry.Options{Keychain: authn.NewMultiKeychain()})
	t.Cleanup(func() { c.Close() })
	repo, err := c.Repository(ref)
	if err != nil {
		t.Fatal(err)
	}
	return repo, ref
}

func push(t *testing.T, repo registry.Repository, mediaType string, b []byte) v1.Descriptor {
	t.Helper()
	desc := v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	if err := repo.PushBlob(t.Context(), desc, func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }); err != nil {
		t.Fatal(err)
	}
	return desc
}

// pushImage pushes an image of the tars, the first one twice, and resolves it.
func pushImage(t *testing.T, repo registry.Repository, ref oci.Reference, tars [][]byte) *oci.Image {
	t.Helper()
	config := v1.Image{Platform: v1.Platform{OS: "linux", Architecture: "amd64"}, RootFS: v1.RootFS{Type: "layers"}}
	m := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest}
	for _, tar := range append(tars[:len(tars):len(tars)], tars[0]) {
		m.Layers = append(m.Layers, push(t, repo, v1.MediaTypeImageLayerGzip, layertartest.Gzip(tar, 1)))
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(tar))
	}
	cb, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	m.Config = push(t, repo, v1.MediaTypeImageConfig, cb)
	mb, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if err := repo.PushManifest(t.Context(), "latest", m.MediaType, mb); err != nil {
		t.Fatal(err)
	}
	img, err := registry.ResolveImage(t.Context(), repo, ref, v1.Platform{OS: "linux", Architecture: "amd64"})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// TestBuildAndPush makes the index of an image, puts it beside the image and
// finds it there, byte for byte.
func TestBuildAndPush(t *testing.T) {
	for name, where := range repositories(t) {
		t.Run(name, func(t *testing.T) {
			repo, ref := openRepository(t, where)
			img := pushImage(t, repo, ref, layertartest.ThroughSymlinks())
			var mu sync.Mutex
			read, unpacked := 0, 0
			made, err := Image(t.Context(), img, func(ctx context.Context, i int) (*index.LayerBlob, error) {
				return Layer(ctx, repo, img.Layers[i], Sink{
					Read: func(n int) { mu.Lock(); read += n; mu.Unlock() },
					Span: func(b []byte) error { mu.Lock(); unpacked += len(b); mu.Unlock(); return nil },
				})
			})
			if err != nil {
				t.Fatal(err)
			}
			wantRead, wantUnpacked := int64(0), int64(0)
			for i, l := range img.Layers {
				wantRead += l.Descriptor.Size
				wantUnpacked += made.Image.Layers[i].TarBytes
			}
			if int64(read) != wantRead || int64(unpacked) != wantUnpacked {
				t.Errorf("sink saw %d and %d bytes, want %d and %d", read, unpacked, wantRead, wantUnpacked)
			}
			for range 2 { // pushing again changes nothing
				if err := Push(t.Context(), repo, made.Artifact); err != nil {
					t.Fatal(err)
				}
			}
			checkPushed(t, repo, img, made)
		})
	}
}

func checkPushed(t *testing.T, repo registry.Repository, img *oci.Image, made *Result) {
	t.Helper()
	found, err := repo.Referrers(t.Context(), img.ManifestDescriptor.Digest, index.ArtifactType)
	if err != nil || len(found) != 1 || found[0].Digest != made.Artifact.Descriptor.Digest {
		t.Fatalf("referrers %v, %v", found, err)
	}
	manifest, _, err := repo.Manifest(t.Context(), found[0].Digest.String())
	if err != nil || !bytes.Equal(manifest, made.Artifact.Manifest) {
		t.Fatalf("manifest %s, %v", manifest, err)
	}
	parsed, err := index.ParseManifest(manifest, img.ManifestDescriptor.Digest)
	if err != nil {
		t.Fatal(err)
	}
	headDesc, layers := parsed.Head, parsed.Layers
	head, err := repo.Blob(t.Context(), headDesc)
	if err != nil || !bytes.Equal(head, made.Artifact.Head) {
		t.Errorf("another head came back (%v)", err)
	}
	if len(layers) != len(img.Layers) {
		t.Fatalf("%d layers, want %d", len(layers), len(img.Layers))
	}
	for i, desc := range layers {
		b, err := repo.Blob(t.Context(), desc)
		if err != nil {
			t.Fatal(err)
		}
		l, err := index.OpenLayer(b)
		if err != nil || l.Blob != img.Layers[i].Descriptor.Digest || l.Digest != made.Image.Layers[i].Index {
			t.Errorf("layer %d: %v", i, err)
		}
	}
}

func TestLayerFails(t *testing.T) {
	repo, ref := openRepository(t, "oci:"+t.TempDir()+":latest")
	img := pushImage(t, repo, ref, layertartest.ThroughSymlinks())
	errTest := errors.New("test")
	_, err := Image(t.Context(), img, func(ctx context.Context, i int) (*index.LayerBlob, error) {
		return Layer(ctx, repo, img.Layers[i], Sink{Span: func([]byte) error { return errTest }})
	})
	if !errors.Is(err, errTest) {
		t.Errorf("error %v", err)
	}
	l := img.Layers[0]
	l.DiffID = digest.FromString("another")
	var wrong *index.DiffIDError
	if _, err := Layer(t.Context(), repo, l, Sink{}); !errors.As(err, &wrong) {
		t.Errorf("error %v", err)
	}
}

// TestTooManyEntries: each layer of an image may be within the limit, and all of
// them together not.
func TestTooManyEntries(t *testing.T) {
	long := strings.Repeat("x", 64<<20)
	var made atomic.Int64
	_, err := Image(t.Context(), &oci.Image{Layers: make([]oci.Layer, 100)}, func(ctx context.Context, _ int) (*index.LayerBlob, error) {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		made.Add(1)
		return &index.LayerBlob{Layer: &index.Layer{Entries: []layertar.Entry{{Link: long}}}}, nil
	})
	if err == nil || !strings.Contains(err.Error(), "more than 512 MiB") {
		t.Errorf("error %v", err)
	}
	if n := made.Load(); n > 20 {
		t.Errorf("%d layers were made", n)
	}
}
