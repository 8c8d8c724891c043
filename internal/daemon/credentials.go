package daemon

import (
	"fmt"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/thaw-project/thaw/internal/credentials"
	"github.com/thaw-project/thaw/internal/criproxy"
	"github.com/thaw-project/thaw/internal/registry"
)

// Credentials are where passwords come from besides docker's configuration.
type Credentials struct {
	InMemory bool   // what pulls were made with is not kept on disk
	KeyFile  string // of what is kept there; empty: one in the state directory
	// Providers is the kubelet's file of credential providers, ProvidersDir where
	// their programs are. Empty: none.
	Providers, ProvidersDir string
}

// openCredentials makes ready what all clients of registries share.
func (d *Daemon) openCredentials() (err error) {
	opts := credentials.StoreOptions{Dir: filepath.Join(d.cfg.Root, "credentials"), InMemory: d.cfg.Credentials.InMemory, KeyFile: d.cfg.Credentials.KeyFile, Log: d.log}
	if !opts.InMemory && d.cfg.Containerd.ImageService == "" {
		opts.Dir = ""
	}
	if d.handed, err = credentials.OpenStore(opts); err != nil {
		return err
	}
	if d.cfg.Credentials.Providers != "" {
		d.providers, err = credentials.LoadPlugins(d.cfg.Credentials.Providers, d.cfg.Credentials.ProvidersDir, d.log)
	}
	return err
}

// keychain asks in the kubelet's order: what a pull brought, then what the node has.
func (d *Daemon) keychain(dockerConfig string) authn.Keychain {
	chain := credentials.Chain{d.handed, credentials.Keychain(registry.DockerKeychain(dockerConfig))}
	if d.providers != nil {
		chain = append(chain, d.providers)
	}
	return chain
}

// serveImageService stands between the kubelet and containerd until the daemon
// leaves.
func (d *Daemon) serveImageService() error {
	s, err := criproxy.Serve(d.cfg.Containerd.ImageService, d.cfg.Containerd.Address, d.handed, d.log)
	if err != nil {
		return fmt.Errorf("serve the kubelet: %w", err)
	}
	d.wg.Go(func() {
		<-d.ctx.Done()
		if err := s.Close(); err != nil {
			d.log.Error("close image service", "err", err)
		}
	})
	d.log.Info("image service is ready", "socket", d.cfg.Containerd.ImageService, "containerd", d.cfg.Containerd.Address)
	return nil
}
