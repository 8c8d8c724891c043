package main

import (
	"context"
	"fmt"
	"os"
	"slices"

	digest "github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/index"
	"github.com/thaw-project/thaw/internal/trust"
)

type indexSignOptions struct {
	key, digest string
	plainHTTP   bool
}

func newIndexSignCommand(g *globalOptions) *cobra.Command {
	var opts indexSignOptions
	cmd := &cobra.Command{
		Use:   "sign --key KEY IMAGE",
		Short: "Sign the index that was built here and pushed, for nodes that trust only signed ones",
		Long: `Sign the index of an image and put the signature beside it, as cosign sign --key
does: cosign verify --key reads it, and a daemon with trust = "signed" takes
signatures that cosign made. The index is the one that was built here; another
one that lies beside the image is signed when its digest is given.

KEY is a private key in PEM. A password is taken from COSIGN_PASSWORD.`,
		Example: `  thaw index build --push registry.example.com/app:1.2
  thaw index sign --key cosign.key registry.example.com/app:1.2`,
		Args: exactArgs("IMAGE"),
		RunE: func(cmd *cobra.Command, args []string) error { return runIndexSign(cmd, g, &opts, args[0]) },
	}
	cmd.Flags().StringVar(&opts.key, "key", "", "file of a private key, such as cosign.key")
	cmd.Flags().StringVar(&opts.digest, "index", "", "digest of the index, where it was not built here")
	cmd.Flags().BoolVar(&opts.plainHTTP, "plain-http", false, "speak plain http to the image's registry")
	return cmd
}

func runIndexSign(cmd *cobra.Command, g *globalOptions, opts *indexSignOptions, image string) error {
	if opts.key == "" {
		return usageError{fmt.Errorf("--key is missing; see %s --help", cmd.CommandPath())}
	}
	signer, err := trust.LoadSigner(opts.key, func() []byte { return []byte(os.Getenv("COSIGN_PASSWORD")) })
	if err != nil {
		return err
	}
	t, err := g.indexTask(cmd.Context(), image, opts.plainHTTP)
	if err != nil {
		return err
	}
	defer t.client.Close()
	manifest, err := t.toSign(cmd.Context(), digest.Digest(opts.digest))
	if err != nil {
		return err
	}
	ref := t.img.Reference
	s, err := signer.Sign(ref.Registry+"/"+ref.Repository, manifest)
	if err != nil {
		return err
	}
	if err := trust.Push(cmd.Context(), t.repo, manifest, s); err != nil {
		return err
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s: index %s is signed\n", ref, manifest)
	return nil
}

// toSign returns the digest of the index to sign: what is signed unseen has to
// be named, or made here.
func (t *indexTask) toSign(ctx context.Context, wanted digest.Digest) (digest.Digest, error) {
	subject := t.img.ManifestDescriptor.Digest
	if wanted == "" {
		local, err := t.store.Get(subject)
		if err != nil || !local.Local {
			return "", api.Errorf(api.CodeNoIndex, fmt.Sprintf("thaw index build --push %s first, or name one with --index", t.img.Reference),
				"no index of %s was built here", t.img.Reference)
		}
		wanted = local.Digest
	}
	found, err := t.repo.Referrers(ctx, subject, index.ArtifactType)
	if err != nil {
		return "", err
	}
	if !slices.ContainsFunc(found, func(d v1.Descriptor) bool { return d.Digest == wanted }) {
		return "", api.Errorf(api.CodeNotFound, "thaw index build --push puts it there", "index %s is not beside image %s", wanted, t.img.Reference)
	}
	return wanted, nil
}
