package snapshotter

import (
	"bytes"
	"encoding/json"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/services/content/contentserver"
	digest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
)

// labels keeps those of contents in memory.
type labels struct {
	mu  sync.Mutex
	all map[digest.Digest]map[string]string
}

func (l *labels) Get(d digest.Digest) (map[string]string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.all[d]), nil
}

func (l *labels) Set(d digest.Digest, labels map[string]string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all[d] = labels
	return nil
}

func (l *labels) Update(d digest.Digest, labels map[string]string) (map[string]string, error) {
	return labels, l.Set(d, labels)
}

// newContent is containerd's content store behind its own service.
func newContent(t *testing.T) (root string, _ content.Store, _ *Content) {
	t.Helper()
	root = t.TempDir()
	store, err := local.NewLabeledStore(root, &labels{all: map[digest.Digest]map[string]string{}})
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "c.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	contentapi.RegisterContentServer(srv, contentserver.New(store))
	go srv.Serve(l)
	t.Cleanup(srv.Stop)
	c, err := NewContent(socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return root, store, c
}

// put keeps a document, as a pull does.
func put(t *testing.T, store content.Store, v any, labels map[string]string) v1.Descriptor {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	desc := v1.Descriptor{Digest: digest.FromBytes(b), Size: int64(len(b))}
	if err := content.WriteBlob(t.Context(), store, desc.Digest.String(), bytes.NewReader(b), desc, content.WithLabels(labels)); err != nil {
		t.Fatal(err)
	}
	return desc
}

func TestContentFind(t *testing.T) {
	root, store, c := newContent(t)
	ids := []digest.Digest{digest.FromString("a"), digest.FromString("b"), digest.FromString("c")}
	source := map[string]string{sourcePrefix + "registry.lan": "team/app,other", "containerd.io/gc.ref.content.config": "sha256:"}
	image := func(labels map[string]string, diffIDs ...digest.Digest) v1.Descriptor {
		config := put(t, store, v1.Image{RootFS: v1.RootFS{Type: "layers", DiffIDs: diffIDs}}, nil)
		return put(t, store, v1.Manifest{Config: config, Layers: make([]v1.Descriptor, len(diffIDs))}, labels)
	}
	image(map[string]string{"containerd.io/gc.ref.content.config": "sha256:"}, ids[2]) // imported: nobody knows from where
	put(t, store, "no manifest", source)
	put(t, store, strings.Repeat("x", maxDocumentBytes), source) // looked at first: it came last
	late := put(t, store, v1.Manifest{Config: v1.Descriptor{Digest: digest.FromString("not here")}, Layers: make([]v1.Descriptor, 1)}, source)
	old := image(source, ids[0], ids[2])
	before := time.Now().Add(-time.Hour)
	if err := os.Chtimes(filepath.Join(root, "blobs", "sha256", old.Digest.Encoded()), before, before); err != nil {
		t.Fatal(err)
	}
	app := image(source, ids[0], ids[1])
	after := time.Now().Add(time.Hour) // this store has the access time as that of the last update
	if err := os.Chtimes(filepath.Join(root, "blobs", "sha256", app.Digest.Encoded()), after, before); err != nil {
		t.Fatal(err)
	}
	chains := identity.ChainIDs([]digest.Digest{ids[0], ids[1]})
	for range 2 { // the second time from memory
		for chain, want := range map[digest.Digest]digest.Digest{chains[0]: app.Digest, chains[1]: app.Digest,
			identity.ChainID([]digest.Digest{ids[0], ids[2]}): old.Digest} {
			got, err := c.find(t.Context(), "default", chain)
			if err != nil || got.Manifest != want || got.Ref != "registry.lan/team/app@"+want.String() {
				t.Errorf("image of chain %s: %+v, %v, want %s", chain, got, err, want)
			}
		}
	}
	if got, err := c.find(t.Context(), "default", ids[2]); err == nil {
		t.Errorf("image without a name: %+v", got)
	}
	b, err := c.Read(namespaces.WithNamespace(t.Context(), "default"), app.Digest)
	if err != nil || digest.FromBytes(b) != app.Digest {
		t.Errorf("read: %v", err)
	}
	if _, err := c.Read(namespaces.WithNamespace(t.Context(), "default"), late.Digest+"0"); err == nil {
		t.Error("read by a wrong digest")
	}
}

func TestContentGone(t *testing.T) {
	c, err := NewContent(filepath.Join(t.TempDir(), "nobody.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.find(t.Context(), "default", digest.FromString("a")); err == nil || !strings.Contains(err.Error(), "list containerd's manifests") {
		t.Errorf("of nobody: %v", err)
	}
}

func FuzzChains(f *testing.F) {
	f.Add([]byte(`{"rootfs":{"diff_ids":["sha256:` + strings.Repeat("0", 64) + `","sha256:` + strings.Repeat("1", 64) + `"]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, c := range chains(b) {
			if c.Validate() != nil {
				t.Errorf("chain ID %q", c)
			}
		}
	})
}
