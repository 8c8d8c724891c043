package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

const hex64 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestParseReference(t *testing.T) {
	tests := []struct {
		in   string
		want Reference
		str  string
	}{
		{"nginx", Reference{Registry: "docker.io", Repository: "library/nginx", Tag: "latest"}, "docker.io/library/nginx:latest"},
		{"nginx:1.27", Reference{Registry: "docker.io", Repository: "library/nginx", Tag: "1.27"}, "docker.io/library/nginx:1.27"},
		{"user/app", Reference{Registry: "docker.io", Repository: "user/app", Tag: "latest"}, "docker.io/user/app:latest"},
		{"index.docker.io/nginx", Reference{Registry: "docker.io", Repository: "library/nginx", Tag: "latest"}, "docker.io/library/nginx:latest"},
		{"registry-1.docker.io/library/nginx", Reference{Registry: "docker.io", Repository: "library/nginx", Tag: "latest"}, "docker.io/library/nginx:latest"},
		{"localhost/x", Reference{Registry: "localhost", Repository: "x", Tag: "latest"}, "localhost/x:latest"},
		{"host:5000/a/b:tag", Reference{Registry: "host:5000", Repository: "a/b", Tag: "tag"}, "host:5000/a/b:tag"},
		{"[::1]:5000/a:b", Reference{Registry: "[::1]:5000", Repository: "a", Tag: "b"}, "[::1]:5000/a:b"},
		{"ghcr.io/a/b__c/d-e@sha256:" + hex64, Reference{Registry: "ghcr.io", Repository: "a/b__c/d-e", Digest: "sha256:" + hex64}, "ghcr.io/a/b__c/d-e@sha256:" + hex64},
		{"x:1@sha256:" + hex64, Reference{Registry: "docker.io", Repository: "library/x", Tag: "1", Digest: "sha256:" + hex64}, "docker.io/library/x:1@sha256:" + hex64},
		{"oci:dir", Reference{LayoutDir: "dir"}, "oci:dir"},
		{"oci:/a/b//c/:docker.io/library/nginx:1", Reference{LayoutDir: "/a/b/c", Tag: "docker.io/library/nginx:1"}, "oci:/a/b/c:docker.io/library/nginx:1"},
		{"oci:../x@sha256:" + hex64, Reference{LayoutDir: "../x", Digest: "sha256:" + hex64}, "oci:../x@sha256:" + hex64},
	}
	for _, tt := range tests {
		got, err := ParseReference(tt.in)
		if err != nil {
			t.Errorf("%s: %v", tt.in, err)
			continue
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.in, diff)
		}
		if got.String() != tt.str {
			t.Errorf("%s: String is %s, want %s", tt.in, got, tt.str)
		}
		if again, err := ParseReference(got.String()); err != nil || again != got {
			t.Errorf("%s: parsed again: %+v, %v", tt.in, again, err)
		}
	}
}

func TestParseReferenceRefuses(t *testing.T) {
	for _, s := range []string{
		"", " ", "/", "Nginx", "a//b", "a/../b", "a/./b", "x:", "x:-tag", "x:" + strings.Repeat("t", 129), "x@", "x@sha256:abc",
		"x@sha512:" + hex64 + hex64, "x@md5:" + hex64[:32], "https://host/x", "user@host/x", "host:/x", "host:99999999/x", "a b", "x\n",
		"-/x", "host/", "oci:", "oci::tag", "oci:dir:", "oci:dir:a b", "oci:a\x00b", strings.Repeat("a", 5000), "host?x/y", "x:a@sha256:" + hex64 + "@x",
	} {
		if got, err := ParseReference(s); err == nil {
			t.Errorf("%.60q is accepted as %+v", s, got)
		}
	}
}

func FuzzParseReference(f *testing.F) {
	for _, s := range []string{"nginx", "host:5000/a/b:tag", "x:1@sha256:" + hex64, "oci:dir:tag", "oci:/a/../b@sha256:" + hex64, "[::1]:5000/a:b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ref, err := ParseReference(s)
		if err != nil {
			return
		}
		again, err := ParseReference(ref.String())
		if err != nil || again != ref {
			t.Fatalf("%q is %+v, its string %q is %+v, %v", s, ref, ref, again, err)
		}
		if ref.IsLayout() != (ref.Registry == "") || ref.IsLayout() != (ref.Repository == "") {
			t.Fatalf("%q is neither remote nor a layout: %+v", s, ref)
		}
		if strings.ContainsAny(ref.Registry+ref.Repository, "?#@% \\\n") || strings.Contains("/"+ref.Repository+"/", "/../") {
			t.Fatalf("%q is unsafe in a URL: %+v", s, ref)
		}
	})
}

// testImage is a valid image with some layers, to be spoilt by tests.
func testImage(layers int) (map[string]any, map[string]any) {
	var diffIDs, descs []any
	for i := range layers {
		diffIDs = append(diffIDs, digest.FromString(fmt.Sprint("diff", i)))
		descs = append(descs, map[string]any{"mediaType": v1.MediaTypeImageLayerGzip, "digest": digest.FromString(fmt.Sprint("blob", i)), "size": 100 + i})
	}
	config := map[string]any{"architecture": "amd64", "os": "linux", "rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs}}
	manifest := map[string]any{
		"schemaVersion": 2, "mediaType": v1.MediaTypeImageManifest, "layers": descs,
		"config": map[string]any{"mediaType": v1.MediaTypeImageConfig},
	}
	return manifest, config
}

// encode fills in the config's descriptor and encodes both.
func encode(t testing.TB, manifest, config map[string]any) (m, c []byte) {
	t.Helper()
	c, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	if d, ok := manifest["config"].(map[string]any); ok {
		own := map[string]any{"digest": digest.FromBytes(c), "size": len(c)}
		maps.Copy(own, d)
		manifest["config"] = own
	}
	if m, err = json.Marshal(manifest); err != nil {
		t.Fatal(err)
	}
	return m, c
}

func TestParseImage(t *testing.T) {
	for _, layers := range []int{0, 1, 3, MaxLayers} {
		m, c := encode(t, first(testImage(layers)), second(testImage(layers)))
		img, err := ParseImage(m, c)
		if err != nil {
			t.Fatal(err)
		}
		if len(img.Layers) != layers || img.ManifestDescriptor.Digest != digest.FromBytes(m) || img.ManifestDescriptor.MediaType != v1.MediaTypeImageManifest {
			t.Errorf("%d layers, %+v", len(img.Layers), img.ManifestDescriptor)
		}
		if layers == 3 && (img.SizeBytes() != 303 || img.Layers[1].DiffID != digest.FromString("diff1") || img.Layers[1].Digest != digest.FromString("blob1")) {
			t.Errorf("%+v", img.Layers)
		}
	}
}

func first(a, _ map[string]any) map[string]any  { return a }
func second(_, b map[string]any) map[string]any { return b }

func TestParseImageDocker(t *testing.T) {
	m, c := testImage(2)
	delete(m, "mediaType")
	m["config"].(map[string]any)["mediaType"] = MediaTypeDockerConfig
	m["layers"].([]any)[0].(map[string]any)["mediaType"] = MediaTypeDockerLayerGzip
	mb, cb := encode(t, m, c)
	if _, err := ParseImage(mb, cb); err != nil {
		t.Error(err)
	}
	m["mediaType"] = MediaTypeDockerManifest
	mb, cb = encode(t, m, c)
	if img, err := ParseImage(mb, cb); err != nil || img.ManifestDescriptor.MediaType != MediaTypeDockerManifest {
		t.Error(err)
	}
}

func TestParseImageRefuses(t *testing.T) {
	layer := func(m map[string]any, i int) map[string]any { return m["layers"].([]any)[i].(map[string]any) }
	tests := []struct {
		name        string
		edit        func(m, c map[string]any)
		want        string
		unsupported bool
	}{
		{"negative size", func(m, _ map[string]any) { layer(m, 1)["size"] = -1 }, "size -1", false},
		{"huge size", func(m, _ map[string]any) { layer(m, 1)["size"] = int64(1) << 60 }, "layer 1", false},
		{"size not an integer", func(m, _ map[string]any) { layer(m, 1)["size"] = 1.5 }, "decode manifest", false},
		{"bad digest", func(m, _ map[string]any) { layer(m, 0)["digest"] = "sha256:../../etc" }, "layer 0", false},
		{"sha512", func(m, _ map[string]any) { layer(m, 0)["digest"] = digest.SHA512.FromString("x") }, "only sha256", false},
		{"unknown layer type", func(m, _ map[string]any) { layer(m, 1)["mediaType"] = "application/wasm" }, `layer 1 has media type "application/wasm"`, true},
		{"no layer type", func(m, _ map[string]any) { delete(layer(m, 1), "mediaType") }, "no media type", true},
		{"encrypted", func(m, _ map[string]any) { layer(m, 0)["mediaType"] = v1.MediaTypeImageLayerGzip + "+encrypted" }, "encrypted", true},
		{"nondistributable", func(m, _ map[string]any) {
			layer(m, 0)["mediaType"] = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
		}, "not kept in the registry", true},
		{"foreign", func(m, _ map[string]any) {
			layer(m, 0)["mediaType"] = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
		}, "not kept in the registry", true},
		{"urls", func(m, _ map[string]any) { layer(m, 0)["urls"] = []string{"https://x"} }, "urls", true},
		{"an artifact", func(m, _ map[string]any) { m["config"] = map[string]any{"mediaType": v1.MediaTypeEmptyJSON} }, "artifact", true},
		{"too many layers", func(m, c map[string]any) { bm, bc := testImage(MaxLayers + 1); maps.Copy(m, bm); maps.Copy(c, bc) }, "1001 layers", false},
		{"fewer diffIDs", func(_, c map[string]any) { c["rootfs"] = map[string]any{"diff_ids": []string{}} }, "0 diffIDs for 2 layers", false},
		{"bad diffID", func(_, c map[string]any) { c["rootfs"] = map[string]any{"diff_ids": []string{"x", "y"}} }, "diffID 0", false},
		{"windows", func(_, c map[string]any) { c["os"] = "windows" }, "windows", false},
		{"one blob, two diffIDs", func(m, _ map[string]any) { layer(m, 1)["digest"], layer(m, 1)["size"] = layer(m, 0)["digest"], 100 }, "the same blob", false},
		{"config of another size", func(m, _ map[string]any) { m["config"].(map[string]any)["size"] = 5 }, "the manifest says 5", false},
		{"another config", func(m, _ map[string]any) { m["config"].(map[string]any)["digest"] = digest.FromString("x") }, "hash to", false},
		{"both image and index", func(m, _ map[string]any) { m["manifests"] = []string{} }, "both", false},
		{"neither", func(m, _ map[string]any) { delete(m, "layers"); delete(m, "config") }, "neither", false},
		{"schema 1", func(m, _ map[string]any) { m["schemaVersion"] = 1 }, "first image format", true},
		{"says it is an index", func(m, _ map[string]any) { m["mediaType"] = v1.MediaTypeImageIndex }, "not what its fields show", true},
	}
	for _, tt := range tests {
		m, c := testImage(2)
		tt.edit(m, c)
		_, err := ParseImage(encode(t, m, c))
		var unsupported *UnsupportedError
		if err == nil || !strings.Contains(err.Error(), tt.want) || errors.As(err, &unsupported) != tt.unsupported {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	for _, b := range []string{"", "null", "[]", "{", "<html>", `{"schemaVersion":2}`} {
		if _, err := ParseImage([]byte(b), nil); err == nil {
			t.Errorf("%q is an image", b)
		}
	}
	if _, err := ParseImage(make([]byte, MaxManifestBytes+1), nil); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("huge manifest: %v", err)
	}
}

func FuzzParseImage(f *testing.F) {
	m, c := encode(f, first(testImage(2)), second(testImage(2)))
	f.Add(m, c)
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"sha256:`+hex64+`"}]}`), []byte(`{}`))
	f.Fuzz(func(t *testing.T, m, c []byte) {
		if idx, err := ParseImageIndex(m); err == nil {
			_, _ = SelectPlatform(idx, v1.Platform{})
		}
		img, err := ParseImage(m, c)
		if err != nil {
			return
		}
		if len(img.Layers) != len(img.Config.RootFS.DiffIDs) || img.SizeBytes() < 0 {
			t.Errorf("%+v", img)
		}
	})
}

func TestSelectPlatform(t *testing.T) {
	entry := func(s string) v1.Descriptor {
		d := v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: digest.FromString(s), Size: 1}
		if s != "" {
			parts := append(strings.Split(s, "/"), "")
			d.Platform = &v1.Platform{OS: parts[0], Architecture: parts[1], Variant: parts[2]}
		}
		return d
	}
	tests := []struct{ have, want, got string }{
		{"linux/amd64 linux/arm64", "linux/arm64", "linux/arm64"},
		{"linux/amd64 linux/arm64/v8", "linux/arm64", "linux/arm64/v8"},
		{"linux/arm64", "linux/arm64/v8", "linux/arm64"},
		{"linux/amd64/v3 linux/amd64", "linux/amd64", "linux/amd64"},
		{"linux/amd64 linux/amd64/v2 linux/amd64/v3 linux/amd64/v4", "linux/amd64/v3", "linux/amd64/v3"},
		{"linux/amd64 linux/amd64/v2", "linux/amd64/v3", "linux/amd64/v2"},
		{"linux/arm/v5 linux/arm/v6 linux/arm/v7", "linux/arm", "linux/arm/v7"},
		{"linux/arm/v5 linux/arm/v7", "linux/arm/v6", "linux/arm/v5"},
		{"windows/amd64 linux/amd64", "linux/amd64", "linux/amd64"},
		{"linux/s390x", "linux/s390x", "linux/s390x"},
		{"linux/amd64 unknown/unknown", "linux/arm64", "!has only [linux/amd64]"},
		{"linux/amd64/v3", "linux/amd64", "!has only [linux/amd64/v3]"},
		{"linux/arm64/v9", "linux/arm64", "!has only"},
	}
	for _, tt := range tests {
		var idx v1.Index
		for s := range strings.FieldsSeq(tt.have) {
			idx.Manifests = append(idx.Manifests, entry(s))
		}
		p, err := ParsePlatform(tt.want)
		if err != nil {
			t.Fatal(err)
		}
		d, err := SelectPlatform(idx, p)
		if want, bad := strings.CutPrefix(tt.got, "!"); bad {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s of %s: %v, %v", tt.want, tt.have, d.Platform, err)
			}
		} else if err != nil || FormatPlatform(*d.Platform) != want {
			t.Errorf("%s of %s: %v, %v", tt.want, tt.have, d.Platform, err)
		}
	}
	if _, err := SelectPlatform(v1.Index{Manifests: []v1.Descriptor{entry("")}}, v1.Platform{}); err != nil {
		t.Errorf("sole entry without a platform: %v", err)
	}
	if _, err := SelectPlatform(v1.Index{}, v1.Platform{}); err == nil {
		t.Error("empty index")
	}
	for _, s := range []string{"a/b/c/d", "linux/", "/amd64"} {
		if _, err := ParsePlatform(s); err == nil {
			t.Errorf("%q is a platform", s)
		}
	}
	if p, _ := ParsePlatform("aarch64"); FormatPlatform(p) != "linux/arm64" {
		t.Errorf("aarch64 is %v", p)
	}
	if p, _ := ParsePlatform(""); FormatPlatform(p) != FormatPlatform(HostPlatform()) {
		t.Errorf("the host is %v", p)
	}
}

func TestReferrersTag(t *testing.T) {
	if got := ReferrersTag("sha256:" + hex64); got != "sha256-"+hex64 || !ValidTag(got) {
		t.Error(got)
	}
}
