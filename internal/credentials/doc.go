// Package credentials finds the passwords and tokens by which a node's daemon
// reads private images, as clusters have them: the ones handed with a pull (image
// pull secrets), and those of the kubelet's credential-provider plugins. Docker's
// config.json is package registry's own.
//
// Its model: a [Store] holds what was handed with pulls that succeeded, by
// repository, and keeps it sealed on disk, so that the next daemon can go on
// hydrating what is mounted. [Plugins] runs the kubelet's plugins and remembers
// their answers as long as they say. [Chain] asks several in order, and gives all
// that may work: which one does, the registry says.
//
// It speaks to no registry and never logs a secret.
package credentials

import (
	"context"
	"errors"
	"iter"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
)

// Source is one place that credentials come from.
type Source interface {
	// Credentials returns what there is for a repository ("host/path"), the
	// likeliest first. None is no error.
	Credentials(ctx context.Context, repository string) ([]authn.AuthConfig, error)
}

// Chain is a keychain that asks sources in order. Its Candidates method is what
// package registry asks.
type Chain []Source

// Candidates asks one source after the other, as long as more is wanted. After
// what there is comes none: a password that does not hold any more is to be no
// obstacle to what anybody may read.
func (c Chain) Candidates(ctx context.Context, target authn.Resource) iter.Seq2[authn.AuthConfig, error] {
	return func(yield func(authn.AuthConfig, error) bool) {
		some := false
		for _, s := range c {
			found, err := s.Credentials(ctx, repositoryOf(target))
			if err != nil && !yield(authn.AuthConfig{}, err) {
				return
			}
			for _, cfg := range found {
				if some = true; !yield(cfg, nil) {
					return
				}
			}
		}
		if some {
			yield(authn.AuthConfig{}, nil)
		}
	}
}

// Resolve implements authn.Keychain.
func (c Chain) Resolve(target authn.Resource) (authn.Authenticator, error) {
	return c.ResolveContext(context.Background(), target)
}

// ResolveContext implements authn.ContextKeychain: the likeliest one.
func (c Chain) ResolveContext(ctx context.Context, target authn.Resource) (authn.Authenticator, error) {
	var errs []error
	for cfg, err := range c.Candidates(ctx, target) {
		if err == nil {
			return authn.FromConfig(cfg), nil
		}
		errs = append(errs, err)
	}
	return authn.Anonymous, errors.Join(errs...)
}

// Keychain makes a source of a keychain, such as docker's.
func Keychain(k authn.Keychain) Source { return keychain{k} }

type keychain struct{ authn.Keychain }

func (k keychain) Credentials(ctx context.Context, repository string) ([]authn.AuthConfig, error) {
	host, _, _ := strings.Cut(repository, "/")
	authenticator, err := authn.Resolve(ctx, k.Keychain, resource{dockerHubToIndex(host), dockerHubToIndex(repository)})
	if err != nil {
		return nil, err
	}
	cfg, err := authn.Authorization(ctx, authenticator)
	if err != nil {
		return nil, err
	}
	if *cfg == (authn.AuthConfig{}) {
		return nil, nil
	}
	return []authn.AuthConfig{*cfg}, nil
}

type resource struct{ registry, repository string }

func (r resource) RegistryStr() string { return r.registry }
func (r resource) String() string      { return r.repository }

// Docker's configuration calls docker.io index.docker.io, everyone else docker.io.
const (
	dockerHub      = "docker.io"
	dockerHubIndex = "index.docker.io"
)

func dockerHubToIndex(name string) string { return renameHost(name, dockerHub, dockerHubIndex) }

func renameHost(name, from, to string) string {
	if host, rest, slash := strings.Cut(name, "/"); host == from {
		if !slash {
			return to
		}
		return to + "/" + rest
	}
	return name
}

func repositoryOf(target authn.Resource) string {
	return renameHost(target.String(), dockerHubIndex, dockerHub)
}
