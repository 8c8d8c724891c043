package oci

import (
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
)

// DockerHub is the registry of references that name none.
const DockerHub = "docker.io"

const (
	layoutPrefix      = "oci:"
	defaultTag        = "latest"
	maxReferenceBytes = 4096
	// maxRepositoryBytes is what go-containerregistry and Docker's registry take.
	maxRepositoryBytes = 255
)

// The grammar of names and tags in the distribution specification. The parser
// of go-containerregistry takes more (empty and dotted path elements, a tag that
// starts with a dash), which would end up in URLs.
var (
	repositoryRegexp = regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagRegexp        = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
	hostRegexp       = regexp.MustCompile(`^(?:[a-zA-Z0-9](?:[a-zA-Z0-9._-]*[a-zA-Z0-9])?|\[[0-9a-fA-F:.]+\])(?::[0-9]{1,5})?$`)
	// image-spec, annotations.md, org.opencontainers.image.ref.name; "_" and a
	// leading separator are found in the wild.
	refNameRegexp      = regexp.MustCompile(`^[A-Za-z0-9._:@/+-]+$`)
	layoutDigestRegexp = regexp.MustCompile(`@(sha256:[a-f0-9]{64})$`)
)

// Reference names an image in a registry or in an OCI layout on disk. The zero
// value names nothing. References are comparable.
type Reference struct {
	// Registry is the host, with a port if one was given; [DockerHub] for
	// every name of Docker's. Empty for a layout.
	Registry string
	// Repository is the name in the registry ("library/nginx"). Empty for a layout.
	Repository string
	// Tag is "latest" where the reference has neither tag nor digest. In a
	// layout it is the whole org.opencontainers.image.ref.name, or empty.
	Tag string
	// Digest wins over Tag where both are set.
	Digest digest.Digest
	// LayoutDir is the cleaned directory of an OCI layout, else empty.
	LayoutDir string
}

// ParseReference parses what other tools take ("nginx", "host:5000/a/b:tag",
// "a/b@sha256:...", both tag and digest) and "oci:DIR[:TAG][@sha256:...]" for an
// OCI layout. DIR ends at the first colon.
func ParseReference(s string) (Reference, error) {
	ref, err := parseReference(s)
	if err != nil {
		return Reference{}, fmt.Errorf("parse reference %.200q: %w", s, err)
	}
	return ref, nil
}

func parseReference(s string) (Reference, error) {
	switch {
	case s == "":
		return Reference{}, errors.New("it is empty")
	case len(s) > maxReferenceBytes:
		return Reference{}, fmt.Errorf("longer than %d bytes", maxReferenceBytes)
	case strings.HasPrefix(s, layoutPrefix):
		return parseLayout(s[len(layoutPrefix):])
	case strings.Contains(s, "://"):
		return Reference{}, errors.New("a reference has no scheme: leave out what is before the host")
	}
	var ref Reference
	rest, dgst, found := strings.Cut(s, "@")
	if found {
		if err := CheckDigest(digest.Digest(dgst)); err != nil {
			return Reference{}, err
		}
		ref.Digest = digest.Digest(dgst)
	}
	if i := strings.LastIndexByte(rest, ':'); i > strings.LastIndexByte(rest, '/') {
		rest, ref.Tag = rest[:i], rest[i+1:]
		if !tagRegexp.MatchString(ref.Tag) {
			return Reference{}, fmt.Errorf("invalid tag %q", ref.Tag)
		}
	}
	if ref.Tag == "" && ref.Digest == "" {
		ref.Tag = defaultTag
	}
	return ref, ref.setRepository(rest)
}

// setRepository splits "host/repository" and applies Docker Hub's defaults.
func (r *Reference) setRepository(s string) error {
	repo, err := name.NewRepository(s, name.WeakValidation)
	if err != nil {
		return err
	}
	r.Registry, r.Repository = repo.RegistryStr(), repo.RepositoryStr()
	if r.Registry == name.DefaultRegistry || r.Registry == "registry-1.docker.io" {
		r.Registry = DockerHub
		if !strings.Contains(r.Repository, "/") {
			r.Repository = "library/" + r.Repository
		}
	}
	if !hostRegexp.MatchString(r.Registry) {
		return fmt.Errorf("invalid registry host %q", r.Registry)
	}
	if len(r.Repository) > maxRepositoryBytes {
		return fmt.Errorf("the repository name is longer than %d bytes", maxRepositoryBytes)
	}
	if !repositoryRegexp.MatchString(r.Repository) {
		return fmt.Errorf("invalid repository name %q (lower-case letters, digits, and . _ - between them)", r.Repository)
	}
	return nil
}

func parseLayout(rest string) (Reference, error) {
	var ref Reference
	if m := layoutDigestRegexp.FindStringSubmatchIndex(rest); m != nil {
		ref.Digest = digest.Digest(rest[m[2]:m[3]])
		rest = rest[:m[0]]
	}
	dir, tag, found := strings.Cut(rest, ":")
	if dir == "" {
		return Reference{}, errors.New("oci: needs a directory, as in oci:DIR:TAG")
	}
	if strings.ContainsRune(dir, 0) {
		return Reference{}, errors.New("the directory has a NUL byte")
	}
	if found && !refNameRegexp.MatchString(tag) {
		return Reference{}, fmt.Errorf("invalid tag %q", tag)
	}
	ref.LayoutDir, ref.Tag = filepath.Clean(dir), tag
	return ref, nil
}

// IsLayout reports whether the image is in an OCI layout on disk.
func (r Reference) IsLayout() bool { return r.LayoutDir != "" }

// Identifier is the digest if there is one, else the tag; empty only for a
// layout reference without either, which means its sole manifest.
func (r Reference) Identifier() string {
	if r.Digest != "" {
		return r.Digest.String()
	}
	return r.Tag
}

// Name is the reference without tag and digest.
func (r Reference) Name() string {
	if r.IsLayout() {
		return layoutPrefix + r.LayoutDir
	}
	return r.Registry + "/" + r.Repository
}

// String is the full reference; parsing it gives the same Reference.
func (r Reference) String() string {
	s := r.Name()
	if r.Tag != "" {
		s += ":" + r.Tag
	}
	if r.Digest != "" {
		s += "@" + r.Digest.String()
	}
	return s
}

// CheckDigest reports whether d is a well-formed sha256 digest, the only
// algorithm by which layers and images are named here.
func CheckDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("digest %.100q: %w", string(d), err)
	}
	if d.Algorithm() != digest.SHA256 {
		return fmt.Errorf("digest %.100q: only sha256 is supported", string(d))
	}
	return nil
}

// ValidTag reports whether s is a tag that a registry can have.
func ValidTag(s string) bool { return tagRegexp.MatchString(s) }

// ReferrersTag is the tag under which registries without the referrers API keep
// the image index of what refers to subject (distribution-spec, "Referrers Tag
// Schema"): the digest with a dash for its colon.
func ReferrersTag(subject digest.Digest) string {
	return strings.ReplaceAll(subject.String(), ":", "-")
}

// SameRepository reports whether a reference, as text, names an image of the same
// repository, or layout, as ref.
func SameRepository(text string, ref Reference) bool {
	other, err := ParseReference(text)
	return err == nil && other.Registry == ref.Registry && other.Repository == ref.Repository && other.LayoutDir == ref.LayoutDir
}
