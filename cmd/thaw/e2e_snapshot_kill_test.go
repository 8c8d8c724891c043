package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/layertar/layertartest"
)

// snapModel is what a snapshotter has to have after what it was asked for.
type snapModel struct {
	n       *snapNode
	images  []snapImage
	sums    []string          // of the file data/a of each image
	parents map[string]string // of all that is there, by name
	active  map[string]bool   // of those
	written map[string]string // what a container's snapshot, or one committed of it, has in the file /mark
	image   map[string]int    // that a snapshot stands on
	doubt   map[string]bool   // the call about it was cut off
}

// TestSnapshotKill kills the daemon at random points of pulls, starts, commits and removals. What was
// answered holds, what was not has happened or not, and all can be removed without a trace.
func TestSnapshotKill(t *testing.T) {
	rounds := 6
	if os.Getenv("THAW_LONG") != "" {
		rounds = 100
	}
	mode := api.ModeFanotify
	if os.Getenv("THAW_FUSE") != "" {
		mode = api.ModeFUSE
	}
	n := newSnapNode(t, mode)
	layout := t.TempDir()
	m := &snapModel{n: n, parents: map[string]string{}, active: map[string]bool{}, written: map[string]string{}, image: map[string]int{}, doubt: map[string]bool{}}
	base := manySpans()[0]
	for i := range 2 {
		top := new(layertartest.Builder).File("data/a", layertartest.Fill(50+i, 300_000)).End().Bytes()
		name := fmt.Sprint("image", i)
		writeImage(t, layout, name, compressions[0], [][]byte{base, top})
		m.sums = append(m.sums, chainTree(t, [][]byte{base, top}).facts["data/a"].Sum)
	}
	addr := newLab(t, layout, "none").Addr()
	for i := range m.sums {
		name := fmt.Sprint("image", i)
		m.images = append(m.images, n.image(layout, name, addr+"/"+name+":latest"))
		n.pushIndex(m.images[i].ref)
	}
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	pid := n.daemon()
	for range rounds {
		after := time.Duration(random.IntN(400)) * time.Millisecond
		killer := make(chan error, 1)
		go func() {
			time.Sleep(after) // at a random point
			killer <- unix.Kill(pid, unix.SIGKILL)
		}()
		for len(killer) == 0 && m.step(random) { // the next daemon may be there before the next call
		}
		if err := <-killer; err != nil {
			t.Fatal(err)
		}
		n = connectSnap(t, n.node)
		n.keys = m.n.keys
		pid, m.n = n.daemon(pid), n
		m.check()
		if t.Failed() {
			return
		}
	}
	m.removeAll()
	n.empty()
}

// step does something, and reports whether the daemon still answers.
func (m *snapModel) step(random *rand.Rand) bool {
	var committed, active []string
	for name := range m.parents {
		if m.active[name] {
			active = append(active, name)
		} else {
			committed = append(committed, name)
		}
	}
	slices.Sort(committed)
	slices.Sort(active)
	what := random.IntN(10)
	if len(m.parents) > 30 { // each is looked at after each kill
		what = 9
	}
	switch {
	case len(committed) == 0 || what < 2:
		return m.pull(random.IntN(len(m.images)))
	case what < 5 || len(active) == 0:
		return m.prepare(committed[random.IntN(len(committed))])
	case what < 7:
		return m.commit(active[random.IntN(len(active))])
	default:
		all := append(committed, active...)
		return m.remove(all[random.IntN(len(all))])
	}
}

// answered reports whether a call was answered, and is not in doubt about what it was about.
func (m *snapModel) answered(err error, about ...string) bool {
	if err == nil || errdefs.IsAlreadyExists(err) || errdefs.IsFailedPrecondition(err) || errdefs.IsNotFound(err) {
		return true
	}
	if !errdefs.IsUnavailable(err) && !errdefs.IsCanceled(err) {
		m.n.Errorf("about %v: %v", about, err)
	}
	for _, name := range about {
		m.doubt[name] = true
	}
	return false
}

func (m *snapModel) pull(i int) bool {
	img, parent := m.images[i], ""
	for layer, chain := range img.chains {
		_, err := m.n.sn.Prepare(m.n.Context(), m.n.key("extract"), parent, snapshots.WithLabels(img.labels(layer)))
		if !m.answered(err, chain) {
			return false
		}
		if !errdefs.IsAlreadyExists(err) {
			m.n.Errorf("layer %d of %s is to be unpacked: %v", layer, img.ref, err)
			return false
		}
		if _, ok := m.parents[chain]; !ok {
			m.parents[chain], m.image[chain] = parent, -1
			if layer == len(img.chains)-1 {
				m.image[chain] = i
			}
		}
		parent = chain
	}
	return true
}

func (m *snapModel) prepare(parent string) bool {
	key := m.n.key("container")
	mounts, err := m.n.sn.Prepare(m.n.Context(), key, parent)
	if !m.answered(err, key) {
		return false
	}
	if err != nil {
		m.n.Errorf("prepare on %s: %v", parent, err)
		return false
	}
	m.parents[key], m.active[key], m.image[key], m.written[key] = parent, true, m.image[parent], key
	// A kill in the middle is nothing to who writes.
	m.n.mounted(mounts, func(dir string) {
		if err := os.WriteFile(filepath.Join(dir, "mark"), []byte(key), 0o644); err != nil {
			m.n.Error(err)
		}
	})
	return true
}

func (m *snapModel) commit(key string) bool {
	name := "commit-" + filepath.Base(key)
	if !m.answered(m.n.sn.Commit(m.n.Context(), name, key), name, key) {
		// One of the two is there.
		m.written[name], m.image[name] = m.written[key], m.image[key]
		return false
	}
	m.parents[name], m.written[name], m.image[name] = m.parents[key], m.written[key], m.image[key]
	m.forget(key)
	return true
}

func (m *snapModel) remove(name string) bool {
	err := m.n.sn.Remove(m.n.Context(), name)
	if !m.answered(err, name) {
		return false
	}
	child := false
	for _, parent := range m.parents {
		child = child || parent == name
	}
	if child != errdefs.IsFailedPrecondition(err) || !child && err != nil {
		m.n.Errorf("remove %s, with children %v: %v", name, child, err)
	}
	if err == nil {
		m.forget(name)
	}
	return true
}

func (m *snapModel) forget(name string) {
	delete(m.parents, name)
	delete(m.active, name)
}

// check compares what is there with what has to be, and goes on from there.
func (m *snapModel) check() {
	m.n.Helper()
	there := map[string]snapshots.Info{}
	err := m.n.sn.Walk(m.n.Context(), func(_ context.Context, info snapshots.Info) error {
		there[info.Name] = info
		return nil
	})
	if err != nil {
		m.n.Fatal(err)
	}
	for name, parent := range m.parents {
		info, ok := there[name]
		if m.doubt[name] {
			continue
		}
		if !ok || info.Parent != parent || (info.Kind == snapshots.KindActive) != m.active[name] {
			m.n.Errorf("snapshot %s on %q, active %v: there is %v, %+v", name, parent, m.active[name], ok, info)
		}
	}
	for name, info := range there {
		if _, ok := m.parents[name]; !ok && !m.doubt[name] && filepath.Base(name)[:4] != "extr" {
			m.n.Errorf("snapshot %s, that nobody made, or that was removed", name)
		}
		if _, ok := m.image[name]; !ok {
			m.image[name] = m.imageOf(there, name)
		}
		m.parents[name] = info.Parent
		m.active[name] = info.Kind == snapshots.KindActive
	}
	for name := range m.parents {
		if _, ok := there[name]; !ok {
			m.forget(name)
		}
	}
	m.content()
	m.rubbish(len(there))
	clear(m.doubt)
}

func (m *snapModel) imageOf(there map[string]snapshots.Info, name string) int {
	for ; name != ""; name = there[name].Parent {
		if i := slices.IndexFunc(m.images, func(img snapImage) bool { return img.top() == name }); i >= 0 {
			return i
		}
	}
	return -1
}

// content reads every snapshot that is there.
func (m *snapModel) content() {
	for name := range m.parents {
		look := func(dir string) {
			mark, err := os.ReadFile(filepath.Join(dir, "mark"))
			if want := m.written[name]; want != "" && string(mark) != want && !m.doubt[name] {
				m.n.Errorf("%s has the mark %q of %q: %v", name, mark, want, err)
			}
			if i := m.image[name]; i >= 0 {
				if sum, err := sumFile(filepath.Join(dir, "data/a")); err != nil || sum != m.sums[i] {
					m.n.Errorf("%s: data/a is %s, %v, want %s", name, sum, err, m.sums[i])
				}
			}
		}
		if !m.active[name] {
			m.n.see(name, look)
			continue
		}
		mounts, err := m.n.sn.Mounts(m.n.Context(), name)
		if err != nil {
			m.n.Errorf("mounts of %s: %v", name, err)
			continue
		}
		m.n.mounted(mounts, look)
	}
}

// rubbish says that the daemon's start left no directory without a snapshot.
func (m *snapModel) rubbish(most int) {
	dirs, err := os.ReadDir(filepath.Join(m.n.root, "snapshotter", "snapshots"))
	if err != nil || len(dirs) > most {
		m.n.Errorf("%d directories of %d snapshots, %v", len(dirs), most, err)
	}
}

// removeAll removes everything, children first.
func (m *snapModel) removeAll() {
	for range 10_000 {
		if len(m.parents) == 0 {
			return
		}
		for name := range m.parents {
			m.remove(name)
		}
	}
	m.n.Errorf("cannot be removed: %v", m.parents)
}
