package trust

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sigstore/sigstore/pkg/signature"

	"github.com/thaw-project/thaw/internal/registry"
)

// hostileRepo answers every question with the same bytes.
type hostileRepo struct {
	registry.Repository
	manifest, blob []byte
}

func (r hostileRepo) Manifest(context.Context, string) ([]byte, v1.Descriptor, error) {
	return r.manifest, v1.Descriptor{MediaType: v1.MediaTypeImageManifest}, nil
}

func (r hostileRepo) Blob(context.Context, v1.Descriptor) ([]byte, error) { return r.blob, nil }

func (r hostileRepo) Referrers(context.Context, digest.Digest, string) ([]v1.Descriptor, error) {
	return []v1.Descriptor{{Digest: digest.FromBytes(r.manifest)}}, nil
}

// FuzzSignatures: whatever a registry has as signatures, and whatever was signed,
// reading it is an error or gives signatures, few of them, and none that is of a
// manifest that nobody signed.
func FuzzSignatures(f *testing.F) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	both, err := signature.LoadSignerVerifier(private, crypto.SHA256)
	if err != nil {
		f.Fatal(err)
	}
	key, signer := &Key{both}, &Signer{both}
	signed, other := digest.FromString("signed"), digest.FromString("other")
	s, err := signer.Sign("registry.test/app", signed)
	if err != nil {
		f.Fatal(err)
	}
	encode := func(v any) []byte {
		b, err := json.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		return b
	}
	manifest := func(mediaType string) []byte {
		return encode(v1.Manifest{Layers: []v1.Descriptor{{MediaType: mediaType, Digest: signed, Size: 1,
			Annotations: map[string]string{annotationSignature: base64.StdEncoding.EncodeToString(s.Bytes)}}}})
	}
	statement := []byte(`{"_type":"` + statementType + `","predicateType":"` + predicateSign + `","subject":[{"digest":{"sha256":"` + signed.Encoded() + `"}}]}`)
	f.Add(manifest(typeSimple), s.Payload)
	f.Add(manifest(typeBundle), encode(map[string]any{"dsseEnvelope": map[string]any{"payload": statement, "payloadType": "application/vnd.in-toto+json",
		"signatures": []any{map[string]any{"sig": s.Bytes}}}}))
	f.Add([]byte(`{"layers":[{}]}`), statement)
	f.Add([]byte(`{`), []byte(`{"critical":{"type":"`+simpleType+`","image":{}}}`))
	if found, err := Fetch(f.Context(), hostileRepo{manifest: manifest(typeSimple), blob: s.Payload}, signed); err != nil || key.Verify(signed, found) != nil {
		f.Fatalf("the seed does not verify: %v", err)
	}
	f.Fuzz(func(t *testing.T, manifest, blob []byte) {
		found, err := Fetch(t.Context(), hostileRepo{manifest: manifest, blob: blob}, other)
		if err == nil && len(found) > 2*maxSignatures {
			t.Errorf("%d signatures", len(found))
		}
		if err := key.Verify(other, found); !errors.Is(err, ErrUnsigned) {
			t.Errorf("verify: %v", err)
		}
		// What the key's owner was made to sign.
		for _, digests := range []func([]byte) ([]digest.Digest, error){simpleDigest, statementDigests} {
			if of, err := digests(blob); err != nil && of != nil {
				t.Errorf("%v with an error: %v", of, err)
			}
		}
	})
}
