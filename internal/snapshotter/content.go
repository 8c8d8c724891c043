package snapshotter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	digest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

const (
	maxDocumentBytes = 8 << 20 // of a manifest or config
	maxKnown         = 4096
	// contentPatience bounds what is asked while containerd waits for us.
	contentPatience = 5 * time.Second

	filterManifests = `labels."containerd.io/gc.ref.content.config"`
	sourcePrefix    = "containerd.io/distribution.source."
)

// Content is containerd's content store, which has an image's manifest and config when its
// layers are unpacked. Clients that do not say which image a layer is of (nerdctl, ctr
// pull --local) have it found there.
type Content struct {
	conn *grpc.ClientConn
	api  contentapi.ContentClient

	mu    sync.Mutex // guards known
	known map[digest.Digest]*document
}

// document is what is known of a manifest, of which nothing changes.
type document struct {
	chains []digest.Digest // nil: it is not an image's
}

// NewContent returns the content store of the containerd at address, a socket. It
// connects when it is asked.
func NewContent(address string) (*Content, error) {
	conn, err := grpc.NewClient("unix://"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("use containerd at %s: %w", address, err)
	}
	return &Content{conn: conn, api: contentapi.NewContentClient(conn), known: map[digest.Digest]*document{}}, nil
}

// Close ends the connection.
func (c *Content) Close() error { return c.conn.Close() }

// errNoImage says that no manifest has layers that make a chain.
var errNoImage = errors.New("no manifest in containerd's content store has such layers")

// find says which image has layers that make a chain: the manifest that came last.
func (c *Content) find(ctx context.Context, namespace string, chainID digest.Digest) (Image, error) {
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(ctx, namespace), contentPatience)
	defer cancel()
	infos, err := c.manifests(ctx)
	if err != nil {
		return Image{}, err
	}
	for _, info := range infos {
		d, err := c.document(ctx, digest.Digest(info.Digest))
		if err != nil && ctx.Err() != nil {
			return Image{}, err
		}
		if err != nil {
			continue // this one is just removed, or too large to be an image's
		}
		if ref := source(info.Labels); ref != "" && slices.Contains(d.chains, chainID) {
			return Image{Ref: ref + "@" + info.Digest, Manifest: digest.Digest(info.Digest), ChainID: chainID, Namespace: namespace}, nil
		}
	}
	return Image{}, errNoImage
}

// manifests lists the manifests of images, the last that came first.
func (c *Content) manifests(ctx context.Context) ([]*contentapi.Info, error) {
	list, err := c.api.List(ctx, &contentapi.ListContentRequest{Filters: []string{filterManifests}})
	if err != nil {
		return nil, fmt.Errorf("list containerd's manifests: %w", err)
	}
	var infos []*contentapi.Info
	for {
		r, err := list.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("list containerd's manifests: %w", err)
		}
		infos = append(infos, r.Info...)
	}
	slices.SortFunc(infos, func(a, b *contentapi.Info) int { return b.UpdatedAt.AsTime().Compare(a.UpdatedAt.AsTime()) })
	return infos, nil
}

// source is the name that an image was pulled by, without its tag. The port of its registry is not known.
func source(labels map[string]string) string {
	for k, v := range labels {
		if host, ok := strings.CutPrefix(k, sourcePrefix); ok && host != "" {
			repository, _, _ := strings.Cut(v, ",")
			return host + "/" + repository
		}
	}
	return ""
}

// document reads a manifest and its config, once.
func (c *Content) document(ctx context.Context, manifest digest.Digest) (*document, error) {
	c.mu.Lock()
	d := c.known[manifest]
	c.mu.Unlock()
	if d != nil {
		return d, nil
	}
	b, err := c.Read(ctx, manifest)
	if err != nil {
		return nil, err
	}
	d = &document{}
	var m v1.Manifest
	if json.Unmarshal(b, &m) == nil && len(m.Layers) > 0 {
		b, err := c.Read(ctx, m.Config.Digest)
		if err != nil {
			return &document{}, nil // it is still to come: nothing of it is unpacked yet
		}
		d.chains = chains(b)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.known) >= maxKnown {
		clear(c.known)
	}
	c.known[manifest] = d
	return d, nil
}

// chains are the chain IDs of an image by its config.
func chains(config []byte) []digest.Digest {
	var image v1.Image
	if json.Unmarshal(config, &image) != nil {
		return nil
	}
	for _, d := range image.RootFS.DiffIDs {
		if d.Validate() != nil {
			return nil
		}
	}
	return identity.ChainIDs(slices.Clone(image.RootFS.DiffIDs))
}

// Read reads a manifest or a config. The context has a namespace. What is returned has the digest.
func (c *Content) Read(ctx context.Context, dgst digest.Digest) ([]byte, error) {
	if err := dgst.Validate(); err != nil {
		return nil, fmt.Errorf("read %q from containerd: %w", dgst, err)
	}
	stream, err := c.api.Read(ctx, &contentapi.ReadContentRequest{Digest: dgst.String()})
	if err != nil {
		return nil, fmt.Errorf("read %s from containerd: %w", dgst, err)
	}
	var b []byte
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil && len(b)+len(r.Data) > maxDocumentBytes {
			err = fmt.Errorf("more than %d bytes", maxDocumentBytes)
		}
		if err != nil {
			return nil, fmt.Errorf("read %s from containerd: %w", dgst, err)
		}
		b = append(b, r.Data...)
	}
	if got := dgst.Algorithm().FromBytes(b); got != dgst {
		return nil, fmt.Errorf("read %s from containerd: it is %s", dgst, got)
	}
	return b, nil
}
