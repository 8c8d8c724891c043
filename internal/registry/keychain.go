package registry

import (
	"fmt"

	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/types"
	"github.com/google/go-containerregistry/pkg/authn"
)

// DockerKeychain is Docker's: config.json with its credential helpers, in dir
// or, with dir empty, where Docker and Podman keep theirs.
func DockerKeychain(dir string) authn.Keychain {
	if dir == "" {
		return authn.DefaultKeychain
	}
	return configDir(dir)
}

// configDir is a keychain over the config.json in one directory. It is read
// again each time: logins happen while a daemon runs.
type configDir string

func (dir configDir) Resolve(target authn.Resource) (authn.Authenticator, error) {
	file, err := config.Load(string(dir))
	if err != nil {
		return nil, fmt.Errorf("load docker config: %w", err)
	}
	for _, key := range []string{target.String(), target.RegistryStr()} {
		if key == "index.docker.io" {
			key = authn.DefaultAuthKey
		}
		cfg, err := file.GetAuthConfig(key)
		if err != nil {
			return nil, fmt.Errorf("get credentials of %s: %w", key, err)
		}
		cfg.ServerAddress = "" // set to the key even where nothing was found
		if cfg != (types.AuthConfig{}) {
			return authn.FromConfig(authn.AuthConfig{
				Username: cfg.Username, Password: cfg.Password, Auth: cfg.Auth,
				IdentityToken: cfg.IdentityToken, RegistryToken: cfg.RegistryToken,
			}), nil
		}
	}
	return authn.Anonymous, nil
}

// resource names a repository to a keychain.
type resource struct{ registry, repository string }

func (r resource) RegistryStr() string { return r.registry }
func (r resource) String() string      { return r.registry + "/" + r.repository }
