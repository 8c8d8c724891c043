package daemon

import (
	"context"
	"encoding/json"
	"fmt"

	digest "github.com/opencontainers/go-digest"

	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/indexstore"
	"github.com/thaw-project/thaw/internal/trust"
)

// trusts says whether an index of the local store may be used. One that this
// node built from the image's own bytes always may: to trust it is to trust the
// image.
func (d *Daemon) trusts(local *indexstore.Image) error {
	if local.Local || d.cfg.Trust != trust.Local && d.cfg.Trust != trust.Signed {
		return nil
	}
	if d.cfg.Trust == trust.Local {
		return fmt.Errorf("index %s was not built on this node (trust = %q)", local.Digest, d.cfg.Trust)
	}
	var all []trust.Signature
	if len(local.Proof) > 0 {
		if err := json.Unmarshal(local.Proof, &all); err != nil {
			return fmt.Errorf("decode signatures of index %s: %w", local.Digest, err)
		}
	}
	return d.cfg.TrustKey.Verify(local.Digest, all)
}

// fetchProof returns the signatures of an index, to be kept with it, if it may
// be used. Without that policy nothing is fetched.
func (d *Daemon) fetchProof(ctx context.Context, img *image, manifest digest.Digest) ([]byte, error) {
	if d.cfg.Trust != trust.Signed {
		return nil, nil
	}
	all, err := trust.Fetch(ctx, img.repo, manifest)
	if err != nil {
		return nil, err
	}
	if err := d.cfg.TrustKey.Verify(manifest, all); err != nil {
		return nil, fmt.Errorf("trust = %q: %w", d.cfg.Trust, err)
	}
	return json.Marshal(all)
}

// noIndex says what to do about an image without an index that may be used.
func (d *Daemon) noIndex(name string, img *image) error {
	switch d.cfg.Trust {
	case trust.Local:
		return api.Errorf(api.CodeNoIndex, "thaw pull "+name+" builds one on this node; or set trust = \"any\" or \"signed\"",
			"image %s has no index that this node built", img.ref)
	case trust.Signed:
		return api.Errorf(api.CodeNoIndex, "sign it where it was built: thaw index sign --key KEY "+name,
			"image %s has no index that is signed with the trusted key", img.ref)
	}
	return api.Errorf(api.CodeNoIndex, "make one with: thaw index build --push "+name, "image %s has no index, here or in its registry", img.ref)
}
