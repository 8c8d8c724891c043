package trust

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/thaw-project/thaw/internal/registry"
)

const (
	typeSimple          = "application/vnd.dev.cosign.simplesigning.v1+json"
	typeBundle          = "application/vnd.dev.sigstore.bundle.v0.3+json"
	annotationSignature = "dev.cosignproject.cosign/signature"

	maxSignatures     = 16      // that are looked at
	maxSignatureBytes = 1 << 20 // of a payload or bundle
)

// tag is where cosign keeps the signatures of a manifest.
func tag(manifest digest.Digest) string {
	return strings.Replace(manifest.String(), ":", "-", 1) + ".sig"
}

// Fetch returns the signatures of a manifest that lie beside it. None is no error; what is not understood is left out.
func Fetch(ctx context.Context, repo registry.Repository, manifest digest.Digest) ([]Signature, error) {
	all, err := fetchTagged(ctx, repo, manifest)
	if err != nil {
		return nil, fmt.Errorf("fetch signatures of %s: %w", manifest, err)
	}
	found, err := repo.Referrers(ctx, manifest, typeBundle)
	if err != nil {
		return nil, fmt.Errorf("fetch signatures of %s: %w", manifest, err)
	}
	for _, desc := range found[:min(len(found), maxSignatures)] {
		m, err := fetchManifest(ctx, repo, desc.Digest.String())
		if err != nil {
			return nil, fmt.Errorf("fetch signature %s: %w", desc.Digest, err)
		}
		for _, l := range m.Layers {
			if l.MediaType != typeBundle || l.Size > maxSignatureBytes || len(all) >= maxSignatures {
				continue
			}
			b, err := repo.Blob(ctx, l)
			if err != nil {
				return nil, fmt.Errorf("fetch signature %s: %w", desc.Digest, err)
			}
			all = append(all, fromBundle(b)...)
		}
	}
	return all, nil
}

func fetchManifest(ctx context.Context, repo registry.Repository, tagOrDigest string) (*v1.Manifest, error) {
	b, _, err := repo.Manifest(ctx, tagOrDigest)
	if err != nil {
		return nil, err
	}
	var m v1.Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("decode manifest: %w", err)
	}
	return &m, nil
}

func fetchTagged(ctx context.Context, repo registry.Repository, manifest digest.Digest) ([]Signature, error) {
	m, err := fetchManifest(ctx, repo, tag(manifest))
	if errors.Is(err, registry.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []Signature
	for _, l := range m.Layers {
		sig, err := base64.StdEncoding.DecodeString(l.Annotations[annotationSignature])
		if err != nil || len(sig) == 0 || l.MediaType != typeSimple || l.Size > maxSignatureBytes || len(all) >= maxSignatures {
			continue
		}
		payload, err := repo.Blob(ctx, l)
		if err != nil {
			return nil, err
		}
		all = append(all, Signature{Payload: payload, Bytes: sig})
	}
	return all, nil
}

// fromBundle returns the signatures in a sigstore bundle.
func fromBundle(b []byte) []Signature {
	var bundle struct {
		Envelope struct {
			Payload     []byte `json:"payload"`
			PayloadType string `json:"payloadType"`
			Signatures  []struct {
				Sig []byte `json:"sig"`
			} `json:"signatures"`
		} `json:"dsseEnvelope"`
	}
	if json.Unmarshal(b, &bundle) != nil || bundle.Envelope.PayloadType == "" {
		return nil
	}
	var all []Signature
	for _, s := range bundle.Envelope.Signatures[:min(len(bundle.Envelope.Signatures), maxSignatures)] {
		all = append(all, Signature{Payload: bundle.Envelope.Payload, Bytes: s.Sig, PayloadType: bundle.Envelope.PayloadType})
	}
	return all
}

// Push puts a signature of a manifest beside it, to those that are there.
func Push(ctx context.Context, repo registry.Repository, manifest digest.Digest, s Signature) error {
	m, err := fetchManifest(ctx, repo, tag(manifest))
	if errors.Is(err, registry.ErrNotFound) {
		m, err = &v1.Manifest{}, nil
	}
	if err != nil {
		return fmt.Errorf("push signature: %w", err)
	}
	push := func(mediaType string, b []byte) (v1.Descriptor, error) {
		desc := v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
		return desc, repo.PushBlob(ctx, desc, func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil })
	}
	layer, err := push(typeSimple, s.Payload)
	if err != nil {
		return fmt.Errorf("push signature: %w", err)
	}
	layer.Annotations = map[string]string{annotationSignature: base64.StdEncoding.EncodeToString(s.Bytes)}
	m.Versioned, m.MediaType, m.Layers = specs.Versioned{SchemaVersion: 2}, v1.MediaTypeImageManifest, append(m.Layers, layer)
	config := v1.Image{RootFS: v1.RootFS{Type: "layers"}}
	for _, l := range m.Layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, l.Digest)
	}
	b, err := json.Marshal(config)
	if err == nil {
		m.Config, err = push(v1.MediaTypeImageConfig, b)
	}
	if err == nil {
		b, err = json.Marshal(m)
	}
	if err == nil {
		err = repo.PushManifest(ctx, tag(manifest), m.MediaType, b)
	}
	if err != nil {
		return fmt.Errorf("push signature: %w", err)
	}
	return nil
}
