package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/thaw-project/thaw/internal/index"
	"github.com/thaw-project/thaw/internal/indexstore"
	"github.com/thaw-project/thaw/internal/oci"
	"github.com/thaw-project/thaw/internal/registry"
	"github.com/thaw-project/thaw/internal/watch"
)

func TestWatchWanted(t *testing.T) {
	linux := func(arch, variant string) v1.Platform {
		return v1.Platform{OS: "linux", Architecture: arch, Variant: variant}
	}
	some := &watchTask{platforms: []v1.Platform{linux("amd64", ""), linux("arm", "v7")}}
	for _, c := range []struct {
		task *watchTask
		p    v1.Platform
		want bool
	}{
		{&watchTask{}, linux("s390x", ""), true}, {&watchTask{}, v1.Platform{OS: "windows", Architecture: "amd64"}, false}, {&watchTask{}, v1.Platform{}, true},
		{some, linux("amd64", ""), true}, {some, linux("amd64", "v3"), true}, {some, linux("arm", "v7"), true}, {some, linux("arm", "v6"), false},
		{some, linux("arm", ""), true}, {some, linux("arm64", ""), false}, {some, v1.Platform{OS: "windows", Architecture: "amd64"}, false},
	} {
		if got := c.task.wanted(c.p); got != c.want {
			t.Errorf("%+v of %v: %v", c.p, c.task.platforms, got)
		}
	}
}

func TestWatchLoopback(t *testing.T) {
	for listen, want := range map[string]bool{"127.0.0.1:80": true, "[::1]:80": true, "localhost:0": true, ":80": false, "0.0.0.0:80": false, "10.0.0.1:80": false, "example.com:80": false, "127.0.0.1": false} {
		if got := loopback(listen); got != want {
			t.Errorf("%s: %v", listen, got)
		}
	}
}

// TestWatchSweep: indexes of layers that were made long ago go.
func TestWatchSweep(t *testing.T) {
	dir := t.TempDir()
	store, err := indexstore.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	task := &watchTask{store: store, log: slog.New(slog.DiscardHandler)}
	for _, b := range manySpans() {
		built, err := index.BuildLayer(t.Context(), bytes.NewReader(b), index.BuildInput{Blob: digest.FromBytes(b), BlobBytes: int64(len(b)), DiffID: digest.FromBytes(b)})
		if err != nil {
			t.Fatal(err)
		}
		blob, err := index.EncodeLayer(built)
		if err == nil {
			err = store.PutLayer(blob)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	files, err := filepath.Glob(filepath.Join(dir, "layers", "*"))
	if err != nil || len(files) != 2 {
		t.Fatal(files, err)
	}
	long := time.Now().Add(-layerIndexAge - time.Hour)
	if err := os.Chtimes(files[0], long, long); err != nil {
		t.Fatal(err)
	}
	task.sweep()
	if left, _ := filepath.Glob(filepath.Join(dir, "layers", "*")); len(left) != 1 || left[0] != files[1] {
		t.Errorf("left: %v", left)
	}
}

// TestWatchTLS: --tls-cert and --tls-key.
func TestWatchTLS(t *testing.T) {
	opts := &indexWatchOptions{tlsCert: filepath.Join(t.TempDir(), "cert"), tlsKey: filepath.Join(t.TempDir(), "key")}
	pool := writeCertificate(t, opts.tlsCert, opts.tlsKey)
	config, err := opts.tls()
	if err != nil {
		t.Fatal(err)
	}
	w, err := watch.New(watch.Options{Dir: t.TempDir(), Queue: 1, Workers: 1, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- w.Serve(ctx, l, config, nil) }()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true}}
	resp, err := client.Get("https://" + l.Addr().String() + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Error(resp.Status)
	}
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func writeCertificate(t *testing.T, cert, key string) *x509.CertPool {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	for file, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool.AddCert(parsed)
	return pool
}

// TestWatchTree: image indexes that name each other many times cost one request for
// each, and none has more manifests than are looked at.
func TestWatchTree(t *testing.T) {
	manifests := map[string][]byte{}
	put := func(children ...v1.Descriptor) v1.Descriptor {
		b, err := json.Marshal(v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: children})
		if err != nil {
			t.Fatal(err)
		}
		d := v1.Descriptor{MediaType: v1.MediaTypeImageIndex, Digest: digest.FromBytes(b), Size: int64(len(b))}
		manifests["/v2/team/app/manifests/"+d.Digest.String()] = b
		return d
	}
	requests := 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests++
		b, ok := manifests[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", v1.MediaTypeImageIndex)
		w.Header().Set("Content-Length", strconv.Itoa(len(b)))
		_, _ = w.Write(b)
	}))
	defer srv.Close()
	host := srv.Listener.Addr().String()
	client := registry.New(registry.Options{Insecure: []string{host}})
	defer client.Close()
	task := &watchTask{client: client, log: slog.New(slog.DiscardHandler)}
	look := func(d v1.Descriptor) ([]watch.Outcome, error) {
		requests = 0
		return task.index(t.Context(), oci.Reference{Registry: host, Repository: "team/app", Digest: d.Digest})
	}

	leaf := v1.Descriptor{MediaType: "application/vnd.example", Digest: digest.FromString("x"), Size: 1}
	top := put(leaf)
	for range maxNested - 1 {
		top = put(slices.Repeat([]v1.Descriptor{top}, 100)...)
	}
	if got, err := look(top); err != nil || len(got) != 1 || requests != maxNested {
		t.Errorf("named again and again: %d outcomes with %d requests, %v", len(got), requests, err)
	}
	var many []v1.Descriptor
	for i := range maxManifests {
		leaf.Annotations = map[string]string{"n": strconv.Itoa(i)}
		many = append(many, put(leaf))
	}
	got, err := look(put(many...))
	if err != nil || requests != maxManifests || got[len(got)-1].Result != watch.ResultFailed {
		t.Errorf("too many: %v with %d requests, %v", got[len(got)-1:], requests, err)
	}
}
