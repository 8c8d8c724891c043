package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"os"
	"os/exec"
	"strings"
	"testing"

	digest "github.com/opencontainers/go-digest"

	"github.com/thaw-project/thaw/internal/index"
	"github.com/thaw-project/thaw/internal/oci"
	"github.com/thaw-project/thaw/internal/registry"
	"github.com/thaw-project/thaw/internal/trust"
)

// keyPair writes a new key, as openssl would, and returns both files.
func (n *node) keyPair(name string) (private, public string) {
	n.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		n.Fatal(err)
	}
	b, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		n.Fatal(err)
	}
	private = n.write(name+".key", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: b})))
	if b, err = x509.MarshalPKIXPublicKey(&key.PublicKey); err != nil {
		n.Fatal(err)
	}
	return private, n.write(name+".pub", string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: b})))
}

// mountedIndex mounts the image and reads it, and returns where its index came
// from, and what was said on the way.
func (n *smallImage) mountedIndex() (origin, said string) {
	n.Helper()
	dir := n.mkdir()
	r := n.try("mount", n.ref, dir)
	if r.code != 0 {
		n.Fatal(r)
	}
	origin = n.status().Mounts[0].Index
	n.sameTree(n.want, dir)
	n.thaw("umount", dir)
	return origin, r.stderr
}

// forget makes the node as if it had never seen an image, with another policy.
func (n *node) forget(config string) {
	n.Helper()
	n.stop()
	if err := os.RemoveAll(n.root); err != nil {
		n.Fatal(err)
	}
	n.write("config.toml", config)
}

// policy changes the daemon's policy.
func (n *node) policy(config string) {
	n.Helper()
	n.stop()
	n.write("config.toml", config)
}

func (n *smallImage) repo() registry.Repository {
	n.Helper()
	ref, err := oci.ParseReference(n.ref)
	if err != nil {
		n.Fatal(err)
	}
	c := registry.New(registry.Options{})
	n.Cleanup(func() { c.Close() })
	repo, err := c.Repository(ref)
	if err != nil {
		n.Fatal(err)
	}
	return repo
}

// pushedIndex is the digest of the index beside the image.
func (n *smallImage) indexBeside(repo registry.Repository) digest.Digest {
	n.Helper()
	b, err := json.Marshal(n.manifest)
	if err != nil {
		n.Fatal(err)
	}
	found, err := repo.Referrers(n.Context(), digest.FromBytes(b), index.ArtifactType)
	if err != nil || len(found) != 1 {
		n.Fatalf("%v, %v", found, err)
	}
	return found[0].Digest
}

// TestTrustSigned: an index is taken if its signature verifies with the key.
// Without one the image is brought whole, and it is said why.
func TestTrustSigned(t *testing.T) {
	t.Parallel()
	n := newSmallImage(t)
	build := []string{"--root", n.path("ci"), "index"}
	n.thaw(append(build, "build", "--push", n.ref)...)
	private, public := n.keyPair("right")
	wrongPrivate, wrongPublic := n.keyPair("wrong")
	signed := func(key string) string { return "trust = \"signed\"\ntrust-key = \"" + key + "\"\n" }
	expect := func(what, origin, said string) {
		t.Helper()
		if got, text := n.mountedIndex(); got != origin || !strings.Contains(text, said) {
			t.Errorf("%s: index is %s, want %s; said: %s", what, got, origin, text)
		}
	}
	repo := n.repo()
	manifest := n.indexBeside(repo)

	n.policy(signed(public))
	r := n.refuses(1, "no index that is signed with the trusted key", "mount", "--index=require", n.ref, n.mkdir())
	if !strings.Contains(r.stderr, "hint: sign it") {
		t.Error(r)
	}
	expect("unsigned", "built", "not signed with the trusted key: there is no signature")
	expect("unsigned, built here", "local", "")

	n.forget(signed(public))
	n.thaw(append(build, "sign", "--key", wrongPrivate, n.ref)...)
	expect("wrong key", "built", "not signed with the trusted key")

	signer, err := trust.LoadSigner(private, nil)
	if err != nil {
		t.Fatal(err)
	}
	other, err := signer.Sign("elsewhere", digest.FromString("another index"))
	if err != nil {
		t.Fatal(err)
	}
	tampered := other
	tampered.Payload = []byte(strings.Replace(string(other.Payload), digest.FromString("another index").String(), manifest.String(), 1))
	for what, s := range map[string]trust.Signature{"of another": other, "tampered with": tampered} {
		n.forget(signed(public))
		if err := trust.Push(t.Context(), repo, manifest, s); err != nil {
			t.Fatal(err)
		}
		expect(what, "built", "not signed with the trusted key")
	}

	n.forget(signed(public))
	n.thaw(append(build, "sign", "--key", private, n.ref)...)
	expect("right key", "registry", "")
	n.policy(signed(public))
	expect("right key, kept", "stored", "")
	n.policy(signed(wrongPublic))
	expect("right key, kept, with all of its signatures", "stored", "")
	n.policy("trust = \"local\"\n")
	expect("local", "built", "only indexes that this node built are trusted")
	expect("local, again", "local", "")
	_, third := n.keyPair("third")
	n.forget("")
	expect("any", "registry", "")
	n.policy(signed(third))
	expect("kept without a look at its signatures", "built", "not signed with the trusted key")

	n.policy("trust = \"some\"\n")
	n.refuses(1, "its log is", "cache", "ls")
	n.policy("trust = \"signed\"\n")
	n.refuses(1, "its log is", "cache", "ls")
	n.refuses(2, "has to name a public key", "daemon")
	n.refuses(2, "use any, local or signed", "daemon", "--trust=some")
	n.refuses(2, "--key is missing", "index", "sign", n.ref)
	n.refuses(1, "no index of", "--root", n.path("elsewhere"), "index", "sign", "--key", private, n.ref)
	n.policy("")
}

// TestCosign: signatures are cosign's, both ways.
func TestCosign(t *testing.T) {
	cosign, err := exec.LookPath("cosign")
	if err != nil {
		t.Skip("needs cosign in PATH")
	}
	for _, c := range []struct {
		name string
		args []string
	}{{"simple signing", nil}, {"bundle", []string{"--new-bundle-format"}}} {
		t.Run(c.name, func(t *testing.T) {
			n := newSmallImage(t)
			run := func(args ...string) {
				t.Helper()
				cmd := exec.Command(cosign, args...)
				cmd.Dir, cmd.Env = n.base, append(os.Environ(), "COSIGN_PASSWORD=secret", "HOME="+n.base)
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Fatalf("cosign %v: %v: %s", args, err, out)
				}
			}
			run("generate-key-pair")
			n.thaw("--root", n.path("ci"), "index", "build", "--push", n.ref)
			manifest := n.indexBeside(n.repo())
			name := strings.TrimSuffix(n.ref, ":latest") + "@" + manifest.String()
			if c.args == nil {
				t.Setenv("COSIGN_PASSWORD", "secret")
				n.thaw("--root", n.path("ci"), "index", "sign", "--key", n.path("cosign.key"), n.ref)
				run("verify", "--insecure-ignore-tlog", "--allow-http-registry", "--key", "cosign.pub", name)
				n2 := newSmallImage(t)
				n2.thaw("--root", n2.path("ci"), "index", "build", "--push", n2.ref)
				n, name = n2, n2.ref+"@"+n2.indexBeside(n2.repo()).String()
				run("generate-key-pair")
			}
			run(append([]string{"sign", "--yes", "--tlog-upload=false", "--allow-http-registry", "--key", "cosign.key", name}, c.args...)...)
			n.policy("trust = \"signed\"\ntrust-key = \"" + n.path("cosign.pub") + "\"\n")
			if origin, said := n.mountedIndex(); origin != "registry" {
				t.Errorf("index is %s; said: %s", origin, said)
			}
		})
	}
}
