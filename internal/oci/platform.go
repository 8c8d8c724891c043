package oci

import (
	"fmt"
	"runtime"
	"slices"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// HostPlatform is the platform this program runs on.
func HostPlatform() v1.Platform {
	return v1.Platform{OS: "linux", Architecture: runtime.GOARCH}
}

// ParsePlatform parses "os/arch[/variant]" or "arch"; empty is the host's.
func ParsePlatform(s string) (v1.Platform, error) {
	if s == "" {
		return HostPlatform(), nil
	}
	parts := strings.Split(s, "/")
	if len(parts) == 1 {
		parts = []string{"linux", s}
	}
	if len(parts) > 3 || slices.Contains(parts, "") {
		return v1.Platform{}, fmt.Errorf("parse platform %q: want os/arch or os/arch/variant", s)
	}
	p := v1.Platform{OS: strings.ToLower(parts[0]), Architecture: normalArch(parts[1])}
	if len(parts) == 3 {
		p.Variant = strings.ToLower(parts[2])
	}
	return p, nil
}

func normalArch(arch string) string {
	switch arch = strings.ToLower(arch); arch {
	case "x86_64", "x86-64":
		return "amd64"
	case "aarch64":
		return "arm64"
	case "i386", "i686":
		return "386"
	}
	return arch
}

// variants lists what runs on (arch, variant), best first. "" in an image index
// means the base variant of the architecture.
func variants(arch, variant string) []string {
	var all []string
	switch arch {
	case "amd64":
		all = []string{"v4", "v3", "v2", "v1"}
	case "arm64":
		all = []string{"v9", "v8"}
	case "arm":
		all = []string{"v8", "v7", "v6", "v5"}
	default:
		return []string{variant, ""}
	}
	base := baseVariant(arch)
	if variant == "" {
		variant = base
	}
	i := slices.Index(all, variant)
	if i < 0 {
		return []string{variant}
	}
	var out []string
	for _, v := range all[i:] {
		out = append(out, v)
		if v == base {
			out = append(out, "")
		}
	}
	return out
}

func baseVariant(arch string) string {
	return map[string]string{"amd64": "v1", "arm64": "v8", "arm": "v7"}[arch]
}

// FormatPlatform is the inverse of [ParsePlatform].
func FormatPlatform(p v1.Platform) string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

// SelectPlatform picks the manifest of an image index that runs best on p, or
// an error that lists what there is. A sole entry without a platform is taken
// for the image; nested image indexes without a platform are skipped.
func SelectPlatform(idx v1.Index, p v1.Platform) (v1.Descriptor, error) {
	if p.OS == "" && p.Architecture == "" {
		p = HostPlatform()
	}
	var images []v1.Descriptor
	for _, d := range idx.Manifests {
		if IsImageManifest(d.MediaType) || IsImageIndex(d.MediaType) {
			images = append(images, d)
		}
	}
	for _, variant := range variants(p.Architecture, p.Variant) {
		for _, d := range images {
			if d.Platform != nil && d.Platform.OS == p.OS && normalArch(d.Platform.Architecture) == p.Architecture && d.Platform.Variant == variant {
				return d, nil
			}
		}
	}
	if len(images) == 1 && images[0].Platform == nil {
		return images[0], nil
	}
	var have []string
	for _, d := range images {
		// Build attestations are listed as unknown/unknown.
		if d.Platform != nil && d.Platform.OS != "unknown" {
			have = append(have, FormatPlatform(*d.Platform))
		}
		if len(have) == 20 {
			have = append(have, "...")
			break
		}
	}
	return v1.Descriptor{}, fmt.Errorf("select image for %s: the image index has only [%s]", FormatPlatform(p), strings.Join(have, " "))
}
