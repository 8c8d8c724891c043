// Package trust tells whether an index was signed with a key, and signs.
//
// The model: a signature is a payload and bytes that sign it. The payload names the digest of what is signed: here the manifest of an index, which
// by digests holds all of the index and names the image that it is about. Both forms that cosign writes are read: the simple signing payload under
// the tag sha256-HEX.sig (cosign 1 and 2), and the bundle with an in-toto statement, a referrer of the manifest (cosign 3). The first is written, as
// all versions read it. Keys, algorithms and the check of a signature are sigstore's.
//
// Only keys are known: no certificates, no transparency log, and nobody is asked over the network but the image's own registry. The name in a payload
// is not looked at: an index is about one manifest, by digest, wherever that lies.
//
// Sources: cosign's SIGNATURE_SPEC.md; sigstore's bundle v0.3; DSSE v1.
package trust

import (
	"bytes"
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/opencontainers/go-digest"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"github.com/sigstore/sigstore/pkg/signature"
)

// Which indexes are taken.
const (
	Any    = "any"    // all: what they lead to is compared with the image in any case
	Local  = "local"  // those that this node built
	Signed = "signed" // those, and others that are signed with the key
)

// ErrUnsigned says that there is no signature that the key verifies.
var ErrUnsigned = errors.New("not signed with the trusted key")

// maxKeyBytes bounds a key file.
const maxKeyBytes = 64 << 10

// Signature is a signature as it was found, checked by Key.Verify alone.
type Signature struct {
	Payload []byte `json:"payload"`
	Bytes   []byte `json:"signature"`
	// PayloadType is that of a DSSE envelope; empty for the simple signing format.
	PayloadType string `json:"payloadType,omitempty"`
}

// Key is a public key.
type Key struct{ verifier signature.Verifier }

// LoadKey reads a public key in PEM: ECDSA, Ed25519 or RSA, as cosign generate-key-pair or openssl write them.
func LoadKey(path string) (*Key, error) {
	b, err := readKey(path)
	if err != nil {
		return nil, err
	}
	public, err := cryptoutils.UnmarshalPEMToPublicKey(b)
	if err != nil {
		return nil, fmt.Errorf("read public key %s: %w", path, err)
	}
	v, err := signature.LoadVerifier(public, crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("read public key %s: %w", path, err)
	}
	return &Key{v}, nil
}

func readKey(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxKeyBytes))
	if err != nil {
		return nil, fmt.Errorf("read key %s: %w", path, err)
	}
	return b, nil
}

// Verify says that one of the signatures is of the manifest with that digest, and by this key. Else the error is ErrUnsigned, with what is wrong
// about each.
func (k *Key) Verify(manifest digest.Digest, all []Signature) error {
	if len(all) == 0 {
		return fmt.Errorf("%w: there is no signature", ErrUnsigned)
	}
	var errs []error
	for _, s := range all {
		err := k.verify(manifest, s)
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return fmt.Errorf("%w: %w", ErrUnsigned, errors.Join(errs...))
}

// The payload is believed only after its signature was.
func (k *Key) verify(manifest digest.Digest, s Signature) error {
	signed, digestOf := s.Payload, simpleDigest
	if s.PayloadType != "" {
		signed, digestOf = pae(s.PayloadType, s.Payload), statementDigests
	}
	if err := k.verifier.VerifySignature(bytes.NewReader(s.Bytes), bytes.NewReader(signed)); err != nil {
		return fmt.Errorf("verify signature: %w", err)
	}
	of, err := digestOf(s.Payload)
	if err != nil {
		return err
	}
	for _, d := range of {
		if d == manifest {
			return nil
		}
	}
	return fmt.Errorf("the signature is of %v, not of %s", of, manifest)
}

// pae is DSSE's pre-authentication encoding.
func pae(payloadType string, payload []byte) []byte {
	return fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(payloadType), payloadType, len(payload), payload)
}

const simpleType = "cosign container image signature"

// simple is the simple signing payload.
type simple struct {
	Critical struct {
		Identity struct {
			Reference string `json:"docker-reference"`
		} `json:"identity"`
		Image struct {
			Digest digest.Digest `json:"docker-manifest-digest"`
		} `json:"image"`
		Type string `json:"type"`
	} `json:"critical"`
	Optional map[string]any `json:"optional"`
}

func simpleDigest(payload []byte) ([]digest.Digest, error) {
	var p simple
	if err := json.Unmarshal(payload, &p); err != nil {
		return nil, fmt.Errorf("decode signature's payload: %w", err)
	}
	if p.Critical.Type != simpleType {
		return nil, fmt.Errorf("decode signature's payload: it is of type %q", p.Critical.Type)
	}
	return []digest.Digest{p.Critical.Image.Digest}, nil
}

const (
	statementType = "https://in-toto.io/Statement/v1"
	predicateSign = "https://sigstore.dev/cosign/sign/v1"
)

// statementDigests reads an in-toto statement that is a signature and nothing else: whoever signs, say, a list of what an image is made of does not
// vouch for it.
func statementDigests(payload []byte) ([]digest.Digest, error) {
	var s struct {
		Type          string `json:"_type"`
		PredicateType string `json:"predicateType"`
		Subject       []struct {
			Digest map[string]string `json:"digest"`
		} `json:"subject"`
	}
	if err := json.Unmarshal(payload, &s); err != nil {
		return nil, fmt.Errorf("decode signed statement: %w", err)
	}
	if s.Type != statementType || s.PredicateType != predicateSign {
		return nil, fmt.Errorf("decode signed statement: it is a %q of %q", s.Type, s.PredicateType)
	}
	var all []digest.Digest
	for _, subject := range s.Subject {
		all = append(all, digest.NewDigestFromEncoded(digest.SHA256, subject.Digest["sha256"]))
	}
	return all, nil
}

// Signer signs with a private key.
type Signer struct{ signer signature.Signer }

// LoadSigner reads a private key in PEM. password is asked where the key has one.
func LoadSigner(path string, password func() []byte) (*Signer, error) {
	b, err := readKey(path)
	if err != nil {
		return nil, err
	}
	private, err := cryptoutils.UnmarshalPEMToPrivateKey(b, func(bool) ([]byte, error) { return password(), nil })
	if err != nil {
		return nil, fmt.Errorf("read private key %s: %w", path, err)
	}
	s, err := signature.LoadSigner(private, crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("read private key %s: %w", path, err)
	}
	return &Signer{s}, nil
}

// Sign signs the manifest with a digest; reference is where it lies, for people.
func (s *Signer) Sign(reference string, manifest digest.Digest) (Signature, error) {
	var p simple
	p.Critical.Type, p.Critical.Identity.Reference, p.Critical.Image.Digest = simpleType, reference, manifest
	payload, err := json.Marshal(p)
	if err != nil {
		return Signature{}, fmt.Errorf("sign %s: %w", manifest, err)
	}
	b, err := s.signer.SignMessage(bytes.NewReader(payload))
	if err != nil {
		return Signature{}, fmt.Errorf("sign %s: %w", manifest, err)
	}
	return Signature{Payload: payload, Bytes: b}, nil
}
