package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	ctdmount "github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/layertar/layertartest"
	"github.com/thaw-project/thaw/internal/oci"
	"github.com/thaw-project/thaw/internal/registry"
	"github.com/thaw-project/thaw/internal/testenv"
)

// snapNode is a node whose daemon is a snapshotter, and the test containerd.
type snapNode struct {
	*node
	sn   snapshots.Snapshotter
	keys int
}

// newSnapNode makes a node with a mount path; config is added to its configuration.
func newSnapNode(t testing.TB, mode string, config ...string) *snapNode {
	t.Helper()
	if mode == api.ModeFUSE {
		testenv.NeedFUSE(t)
	}
	n := newNode(t)
	n.write("config.toml", strings.Join(append([]string{"mount = \"" + mode + "\""}, append(config, "[containerd]", "listen = \""+n.path("s.sock")+"\"")...), "\n"))
	return connectSnap(t, n)
}

// connectSnap makes sure that the node's daemon runs, and connects.
func connectSnap(t testing.TB, n *node) *snapNode {
	t.Helper()
	n.thaw("cache", "ls")
	conn, err := grpc.NewClient("unix://"+n.path("s.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &snapNode{node: n, sn: proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "thaw")}
}

// snapImage is an image as containerd knows it when it is about to unpack it.
type snapImage struct {
	ref      string
	manifest digest.Digest
	blobs    []digest.Digest
	chains   []string
}

// image reads an image of a layout, which the lab serves as ref.
func (n *snapNode) image(layout, name, ref string) snapImage {
	n.Helper()
	parsed, err := oci.ParseReference("oci:" + layout + ":" + name)
	if err != nil {
		n.Fatal(err)
	}
	repo, err := registry.New(registry.Options{}).Repository(parsed)
	if err != nil {
		n.Fatal(err)
	}
	img, err := registry.ResolveImage(n.Context(), repo, parsed, v1.Platform{})
	if err != nil {
		n.Fatal(err)
	}
	s := snapImage{ref: ref, manifest: img.ManifestDescriptor.Digest}
	var diffIDs []digest.Digest
	for _, l := range img.Layers {
		s.blobs, diffIDs = append(s.blobs, l.Descriptor.Digest), append(diffIDs, l.DiffID)
	}
	for _, c := range identity.ChainIDs(diffIDs) {
		s.chains = append(s.chains, c.String())
	}
	return s
}

func (s *snapImage) labels(i int) map[string]string {
	return map[string]string{"containerd.io/snapshot.ref": s.chains[i], "containerd.io/snapshot/cri.image-ref": s.ref,
		"containerd.io/snapshot/cri.manifest-digest": s.manifest.String(), "containerd.io/snapshot/cri.layer-digest": s.blobs[i].String()}
}

func (s *snapImage) top() string { return s.chains[len(s.chains)-1] }

func (n *snapNode) key(what string) string {
	n.keys++
	return fmt.Sprintf("default/%d/%s-%d", n.keys, what, n.keys)
}

// pull does what containerd does of a pull, where every layer has to be one that it does not unpack.
func (n *snapNode) pull(s snapImage) {
	n.Helper()
	if at, err := n.tryPull(s); err != nil || at < len(s.chains) {
		n.Fatalf("pull %s: layer %d of %d: %v", s.ref, at, len(s.chains), err)
	}
}

// tryPull returns how many layers there are without being unpacked. That it has been asked to unpack
// the next one is undone.
func (n *snapNode) tryPull(s snapImage) (int, error) {
	parent := ""
	for i, chain := range s.chains {
		key := n.key("extract")
		_, err := n.sn.Prepare(n.Context(), key, parent, snapshots.WithLabels(s.labels(i)))
		if err == nil {
			return i, n.sn.Remove(n.Context(), key)
		}
		if !errdefs.IsAlreadyExists(err) {
			return i, err
		}
		if _, err := n.sn.Stat(n.Context(), chain); err != nil {
			return i, err
		}
		parent = chain
	}
	return len(s.chains), nil
}

// see mounts a view of a snapshot for as long as f runs.
func (n *snapNode) see(parent string, f func(dir string)) {
	n.Helper()
	key := n.key("view")
	mounts, err := n.sn.View(n.Context(), key, parent)
	if err != nil {
		n.Fatalf("view of %s: %v", parent, err)
	}
	n.mounted(mounts, f)
	if err := n.sn.Remove(n.Context(), key); err != nil {
		n.Error(err)
	}
}

// mounted mounts what the snapshotter says for as long as f runs.
func (n *snapNode) mounted(mounts []ctdmount.Mount, f func(dir string)) {
	n.Helper()
	dir := n.mkdir()
	if err := ctdmount.All(mounts, dir); err != nil {
		n.Fatalf("mount %v: %v", mounts, err)
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			n.Errorf("unmount: %v", errors.Join(err, unix.Unmount(dir, unix.MNT_DETACH)))
		}
	}()
	f(dir)
}

// remove removes all snapshots of an image that nothing else stands on, as containerd's garbage collection does.
func (n *snapNode) remove(s snapImage) {
	n.Helper()
	for i := len(s.chains) - 1; i >= 0; i-- {
		if err := n.sn.Remove(n.Context(), s.chains[i]); err != nil && !errdefs.IsNotFound(err) && !errdefs.IsFailedPrecondition(err) {
			n.Errorf("remove %s: %v", s.chains[i], err)
		}
	}
	if err := n.sn.(snapshots.Cleaner).Cleanup(n.Context()); err != nil {
		n.Errorf("clean up: %v", err)
	}
}

// empty waits until nothing is left of any snapshot.
func (n *snapNode) empty() {
	n.Helper()
	n.eventually("nothing is left of what was removed", func() bool {
		if err := n.sn.(snapshots.Cleaner).Cleanup(n.Context()); err != nil {
			n.Error(err)
		}
		for _, pattern := range []string{"snapshotter/snapshots/*", "images/*", "mounts/*", "index/images/*", "index/layers/*", "metadata/*"} {
			if left, _ := filepath.Glob(filepath.Join(n.root, pattern)); len(left) > 0 {
				return false
			}
		}
		return len(n.status().Mounts) == 0 && len(n.layers()) == 0
	})
}

func eachLazyMode(t *testing.T, f func(t *testing.T, mode string)) {
	for _, mode := range []string{api.ModeFanotify, api.ModeFUSE} {
		t.Run(mode, func(t *testing.T) { f(t, mode) })
	}
}

// chainTree is what the first layers of an image hold.
func chainTree(t testing.TB, layers [][]byte) tree {
	t.Helper()
	dir := t.TempDir()
	for _, l := range layers {
		if err := layertartest.Apply(dir, strings.NewReader(string(l))); err != nil {
			t.Fatal(err)
		}
	}
	want, err := readTree(dir)
	if err != nil {
		t.Fatal(err)
	}
	return want
}

// sameChain compares a view of a chain with its layers. Of the root only what is in it is.
func (n *snapNode) sameChain(chain string, want tree) {
	n.Helper()
	n.see(chain, func(dir string) {
		got, err := readTree(dir)
		if err != nil {
			n.Error(err)
			return
		}
		for name, err := range got.errors {
			n.Errorf("read %s: %v", name, err)
		}
		got.facts[""] = want.facts[""]
		if err := want.diff(got); err != nil {
			n.Errorf("view of %s: %v", chain, err)
		}
	})
}

// TestSnapshotChains views every chain of an image with all that layers can have, twice: the
// second time by a daemon that took the mounts over.
func TestSnapshotChains(t *testing.T) {
	eachLazyMode(t, func(t *testing.T, mode string) {
		n := newSnapNode(t, mode)
		layout := t.TempDir()
		layers := layertartest.Everything()
		if mode == api.ModeFUSE {
			layers = layertartest.ThroughSymlinks() // less to read
		}
		writeImage(t, layout, "every", compressions[0], layers)
		var want []tree
		for i := range layers {
			want = append(want, chainTree(t, layers[:i+1]))
		}
		ref := newLab(t, layout, "none").Addr() + "/every:latest"
		n.pushIndex(ref)
		img := n.image(layout, "every", ref)
		n.pull(img)
		check := func() {
			for i, chain := range img.chains {
				n.sameChain(chain, want[i])
			}
		}
		check()
		// One view of the middle stays over the daemon's death.
		key := n.key("view")
		mounts, err := n.sn.View(t.Context(), key, img.chains[0])
		if err != nil {
			t.Fatal(err)
		}
		pid := n.daemon()
		n.kill(pid)
		n.thaw("cache", "ls")
		n.daemon(pid)
		check()
		n.mounted(mounts, func(dir string) {
			got, err := readTree(dir)
			if err != nil {
				t.Fatal(err)
			}
			got.facts[""] = want[0].facts[""]
			if err := want[0].diff(got); err != nil {
				t.Error(err)
			}
		})
		if err := n.sn.Remove(t.Context(), key); err != nil {
			t.Error(err)
		}
		if left := n.status().Mounts; len(left) != 1 {
			t.Errorf("%d mounts, want that of the whole image only", len(left))
		}
		n.remove(img)
		n.empty()
	})
}

// writable makes a container's snapshot and lets f change it; it returns its key.
func (n *snapNode) writable(parent string, f func(dir string)) string {
	n.Helper()
	key := n.key("container")
	mounts, err := n.sn.Prepare(n.Context(), key, parent)
	if err != nil {
		n.Fatalf("prepare on %s: %v", parent, err)
	}
	n.mounted(mounts, f)
	return key
}

// TestSnapshotCommit commits what containers changed of an image, on all of it and on a part.
func TestSnapshotCommit(t *testing.T) {
	n := newSnapNode(t, api.ModeFanotify)
	layout := t.TempDir()
	layers := manySpans()
	writeImage(t, layout, "many", compressions[0], layers)
	ref := newLab(t, layout, "none").Addr() + "/many:latest"
	n.pushIndex(ref)
	img := n.image(layout, "many", ref)
	n.pull(img)
	var names []string
	for i, chain := range img.chains {
		key := n.writable(chain, func(dir string) {
			err := errors.Join(os.Chmod(filepath.Join(dir, "data/a"), 0o600), os.Rename(filepath.Join(dir, "data/d"), filepath.Join(dir, "moved")),
				os.Remove(filepath.Join(dir, "data/g")), os.WriteFile(filepath.Join(dir, "new"), []byte("new"), 0o644))
			if err != nil {
				t.Error(err)
			}
		})
		name := fmt.Sprint("committed-", i)
		if err := n.sn.Commit(t.Context(), name, key); err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
		usage, err := n.sn.Usage(t.Context(), name)
		if err != nil || usage.Size > 100_000 || usage.Inodes < 4 {
			t.Errorf("usage of a few changes: %+v, %v", usage, err)
		}
		want := chainTree(t, layers[:i+1])
		n.see(name, func(dir string) {
			for was, is := range map[string]string{"data/a": "data/a", "data/d": "moved", "data/b": "data/b", "data/e": "data/e"} {
				sum, err := sumFile(filepath.Join(dir, is))
				if w := want.facts[was]; err != nil || sum != w.Sum {
					t.Errorf("%s, of %s: %s, %v, want %s", is, was, sum, err, w.Sum)
				}
			}
			if st, err := os.Stat(filepath.Join(dir, "data/a")); err != nil || st.Mode() != 0o600 {
				t.Errorf("data/a: %v, %v", st, err)
			}
			if _, err := os.Stat(filepath.Join(dir, "data/g")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("data/g is there: %v", err)
			}
		})
	}
	for _, name := range names {
		if err := n.sn.Remove(t.Context(), name); err != nil {
			t.Error(err)
		}
	}
	n.remove(img)
	n.empty()
}

// TestSnapshotShared removes an image whose lower layers another one has.
func TestSnapshotShared(t *testing.T) {
	n := newSnapNode(t, api.ModeFanotify)
	layout := t.TempDir()
	layers := manySpans()
	other := new(layertartest.Builder)
	other.File("data/a", layertartest.Fill(7, 2<<20)).File("other", layertartest.Fill(8, 1<<20))
	otherLayers := [][]byte{layers[0], other.End().Bytes()}
	writeImage(t, layout, "one", compressions[0], layers)
	writeImage(t, layout, "two", compressions[0], otherLayers)
	addr := newLab(t, layout, "none").Addr()
	one, two := n.image(layout, "one", addr+"/one:latest"), n.image(layout, "two", addr+"/two:latest")
	n.pushIndex(one.ref)
	n.pushIndex(two.ref)
	n.pull(one)
	n.pull(two)
	if one.chains[0] != two.chains[0] {
		t.Fatal("they share no layer")
	}
	n.remove(one)
	n.eventually("the first image is let go of", func() bool {
		if err := n.sn.(snapshots.Cleaner).Cleanup(t.Context()); err != nil {
			t.Error(err)
		}
		return len(n.status().Mounts) == 1
	})
	n.eventually("what only the first image has makes room", func() bool {
		if err := n.sn.(snapshots.Cleaner).Cleanup(t.Context()); err != nil {
			t.Error(err)
		}
		return !slices.ContainsFunc(n.layers(), func(l api.Layer) bool { return slices.Contains(one.blobs[1:], l.Blob) })
	})
	n.sameChain(two.chains[1], chainTree(t, otherLayers))
	n.sameChain(two.chains[0], chainTree(t, otherLayers[:1])) // of the removed image's snapshot
	n.pull(one)
	n.sameChain(one.top(), chainTree(t, layers))
	for _, l := range n.layers() {
		if len(l.Pins) == 0 {
			t.Errorf("layer %s is not pinned any more", l.Blob)
		}
	}
	n.remove(one)
	n.remove(two)
	n.empty()
}

// TestSnapshotAlone has every mount taken away, as a reboot does, and no registry afterwards.
func TestSnapshotAlone(t *testing.T) {
	n := newSnapNode(t, api.ModeFanotify)
	layout := t.TempDir()
	layers := manySpans()
	writeImage(t, layout, "many", compressions[0], layers)
	registry := newLab(t, layout, "none")
	img := n.image(layout, "many", registry.Addr()+"/many:latest")
	n.pushIndex(img.ref)
	n.pull(img)
	key := n.writable(img.top(), func(string) {})
	n.eventually("the image is complete", func() bool { m := n.status().Mounts; return len(m) == 1 && m[0].Stats.Complete })
	n.refuses(1, "containerd has snapshots", "cache", "rm", img.ref+"@"+img.manifest.String())
	n.refuses(1, "containerd's", "umount", n.status().Mounts[0].Dir)
	registry.Close()
	n.stop()
	if left := n.leftovers(); len(left) > 0 {
		t.Errorf("after the end of the daemon: %v", left)
	}
	again := connectSnap(t, n.node)
	again.keys = n.keys
	again.thaw("cache", "gc")
	mounts, err := again.sn.Mounts(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	again.mounted(mounts, func(dir string) {
		if _, err := os.Stat(filepath.Join(dir, "data/a")); err != nil {
			t.Error(err)
		}
	})
	for i, chain := range img.chains {
		again.sameChain(chain, chainTree(t, layers[:i+1]))
	}
	if err := again.sn.Remove(t.Context(), key); err != nil {
		t.Error(err)
	}
	again.remove(img)
	again.empty()
}

// TestSnapshotSocket starts a second daemon with the same configuration and another state directory.
func TestSnapshotSocket(t *testing.T) {
	n := newSnapNode(t, api.ModeEager)
	key := n.key("container")
	if _, err := n.sn.Prepare(t.Context(), key, ""); err != nil {
		t.Fatal(err)
	}
	other := n.mkdir() // of a daemon that goes on without the socket
	n.thaw("--root", other, "cache", "ls")
	if text := n.thaw("--root", other, "daemon", "status"); !strings.Contains(text, "another process answers there") {
		t.Errorf("the second daemon does not say that it is not asked: %s", text)
	}
	n.thaw("--root", other, "daemon", "stop")
	if _, err := n.sn.Stat(t.Context(), key); err != nil {
		t.Errorf("the first daemon is not asked any more: %v", err)
	}
	n.stop()
	again := connectSnap(t, n.node) // in place of the socket of the dead one
	if err := again.sn.Remove(t.Context(), key); err != nil {
		t.Error(err)
	}
}

// TestSnapshotLate removes an image while another process has a copy of its mount, as one that is about to become
// a container has for a moment.
func TestSnapshotLate(t *testing.T) {
	testenv.NeedTool(t, "unshare")
	n := newSnapNode(t, api.ModeFanotify, `background = "off"`)
	layout := t.TempDir()
	writeImage(t, layout, "many", compressions[0], manySpans())
	img := n.image(layout, "many", newLab(t, layout, "none").Addr()+"/many:latest")
	n.pushIndex(img.ref)
	n.pull(img)
	holder := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", "echo; exec sleep 1000")
	out, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Error(err)
	}
	n.remove(img)
	if left := n.layers(); len(left) != len(img.blobs) {
		t.Errorf("%d layers while their mount is open, want %d", len(left), len(img.blobs))
	}
	if err := holder.Process.Kill(); err != nil {
		t.Error(err)
	}
	holder.Wait()
	n.empty()
}
