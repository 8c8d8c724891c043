package main

import (
	"cmp"
	"errors"
	"slices"

	"github.com/thaw-project/thaw/internal/bench"
	"github.com/thaw-project/thaw/internal/daemon/api"
)

// peer is a containerd and one of its snapshotters.
type peer struct{ socket, snapshotter string }

// defaultSnapshotter is containerd's.
const defaultSnapshotter = "overlayfs"

// lazySnapshotters fetch what is read, as far as is known: their starts need not
// bring all of an image.
var lazySnapshotters = []string{"soci", "stargz", "nydus", "overlaybd", thawSnapshotter}

// thawSnapshotter is our own name there.
const thawSnapshotter = "thaw"

// socketValue begins a peer, snapshotterValue names the last one's snapshotter.
type (
	socketValue      []peer
	snapshotterValue []peer
)

func (v *socketValue) String() string { return "" }
func (v *socketValue) Type() string   { return "socket" }
func (v *socketValue) Set(s string) error {
	if s == "" {
		return errors.New("want a socket")
	}
	*v = append(*v, peer{socket: s})
	return nil
}

func (v *snapshotterValue) String() string { return "" }
func (v *snapshotterValue) Type() string   { return "name" }
func (v *snapshotterValue) Set(s string) error {
	if len(*v) == 0 {
		return errors.New("it comes after --vs-containerd SOCKET")
	}
	last := &(*v)[len(*v)-1]
	if last.snapshotter == "" {
		last.snapshotter = s
		return nil
	}
	*v = append(*v, peer{last.socket, s})
	return nil
}

// peerProgram speaks to containerd for us.
const peerProgram = "thaw-bench-containerd"

// findPeerExe looks for the program beside thaw, then in PATH.
func findPeerExe() (string, error) {
	path, err := findProgram(peerProgram)
	if err != nil {
		return "", api.Errorf(api.CodeUnsupported, "make build-bench makes it: put it beside thaw or into PATH", "--vs-containerd needs the program %s", peerProgram)
	}
	return path, nil
}

// peer is starts with a containerd as a mode.
func (b *bencher) peer(p peer, tuned bool) bench.Mode {
	p.snapshotter = cmp.Or(p.snapshotter, defaultSnapshotter)
	name := "containerd/" + p.snapshotter
	first := slices.IndexFunc(b.peers, func(o peer) bool { return cmp.Or(o.snapshotter, defaultSnapshotter) == p.snapshotter })
	if b.peers[first].socket != p.socket {
		name = "containerd@" + p.socket + "/" + p.snapshotter
	}
	ref, registry := b.ref, b.registry
	if p.snapshotter == thawSnapshotter && slices.Contains(b.modes, modeBundle) {
		ref, registry = b.bundleRef, b.bundleRegistry // to be compared with that mode
	}
	args := []string{"--socket", p.socket, "--snapshotter", p.snapshotter, "--image", ref, "--ready", b.ready}
	if tuned {
		name += "+tuned"
		args = append(args, "--tuned")
	}
	if b.plainHTTP {
		args = append(args, "--plain-http")
	}
	for _, e := range b.env {
		args = append(args, "--env", e)
	}
	args = append(append(args, "--"), b.args...)
	return bench.Mode{Name: name, Registry: registry, Eager: !slices.Contains(lazySnapshotters, p.snapshotter), Way: bench.NewProgram(b.peerExe, args...)}
}
