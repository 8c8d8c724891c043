package daemon

import (
	"context"
	"errors"
	"io"
	"path/filepath"

	"github.com/thaw-project/thaw/internal/registry"
	"github.com/thaw-project/thaw/internal/snapshotter"
)

// Containerd is how the daemon serves containerd.
type Containerd struct {
	Listen string // socket of the snapshotter; empty: off
	// ImageService is the socket of CRI's image service, which forwards to Address,
	// containerd's own; empty: off.
	ImageService, Address string
	Content               bool // gets the layers too, see Daemon.fillContent
	// Mode says how an image is had, by its reference: SnapshotLazy, SnapshotEager
	// or SnapshotOff; empty: no wish. nil: no wish for any.
	Mode func(ref string) string
}

// serveContainerd answers containerd until the daemon leaves.
func (d *Daemon) serveContainerd() error {
	content, err := snapshotter.NewContent(d.cfg.Containerd.Address)
	if err != nil {
		return err
	}
	images := newImageSnapshots(d)
	d.wg.Go(images.keepLate)
	s, err := snapshotter.New(d.ctx, snapshotter.Options{Root: filepath.Join(d.cfg.Root, "snapshotter"), Images: images,
		Content: content, Declined: d.declinedSnapshot, Log: d.log})
	if err != nil {
		return errors.Join(err, content.Close())
	}
	enter := func(ctx context.Context) (context.Context, func(), bool) {
		if !d.enter() {
			return nil, nil, false
		}
		// What is under way when the daemon stops is given up.
		ctx, cancel := context.WithCancel(ctx)
		stop := context.AfterFunc(d.ctx, cancel)
		return ctx, func() { stop(); cancel(); d.exit() }, true
	}
	srv, err := snapshotter.Listen(s, d.cfg.Containerd.Listen, enter)
	if err != nil {
		return errors.Join(err, s.Close(), content.Close())
	}
	d.wg.Go(func() {
		if err := srv.Serve(); err != nil {
			d.log.Error("containerd is not answered any more", "err", err)
		}
	})
	d.wg.Go(func() {
		<-d.ctx.Done()
		srv.Stop()
		if err := errors.Join(s.Close(), content.Close()); err != nil {
			d.log.Error("close state of snapshots", "err", err)
		}
	})
	d.log.Info("snapshotter is ready", "socket", d.cfg.Containerd.Listen)
	return nil
}

// fillContent gives containerd the layers of an image, which are here. It has its own
// content store, where they are compressed, and asks nobody when it wants one.
func (d *Daemon) fillContent(ctx context.Context, m *mounted) {
	for _, l := range m.img.oci.Layers {
		err := d.content.Fill(ctx, m.Namespace, l.Descriptor, func(ctx context.Context) (io.ReadCloser, error) {
			return registry.Stream(ctx, m.img.repo, l.Descriptor, registry.StreamOptions{}), nil
		})
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			d.log.Warn("layer is not in containerd's content store: export and push of the image will not work", "image", m.img.ref, "layer", l.Descriptor.Digest, "err", err)
			return
		}
	}
	d.log.Info("containerd has the image's layers too", "image", m.img.ref, "namespace", m.Namespace)
}
