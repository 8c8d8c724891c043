package main

import (
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/layertar/layertartest"
	"github.com/thaw-project/thaw/internal/testenv"
)

var modelSeed = flag.Uint64("seed", 0, "of TestGarbageModel; 0: another each time")

// waiter is an ELF program for Linux on amd64 that reads a byte, or the end of
// its input, and ends.
func waiter() []byte {
	code := []byte{
		0x31, 0xc0, 0x31, 0xff, // read(0,
		0x48, 0x8d, 0x74, 0x24, 0xf8, 0xba, 1, 0, 0, 0, 0x0f, 0x05, // &below the stack, 1)
		0xb8, 60, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05, // exit(0)
	}
	const base, headers = 0x400000, 64 + 56
	b := []byte("\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	le := binary.LittleEndian
	for _, v := range []uint16{2, 62} { // executable, x86-64
		b = le.AppendUint16(b, v)
	}
	b = le.AppendUint32(b, 1)
	for _, v := range []uint64{base + headers, 64, 0} { // entry, program headers, sections
		b = le.AppendUint64(b, v)
	}
	b = le.AppendUint32(b, 0)
	for _, v := range []uint16{64, 56, 1, 64, 0, 0} {
		b = le.AppendUint16(b, v)
	}
	b = le.AppendUint32(le.AppendUint32(b, 1), 5) // load, readable and executable
	size := uint64(headers + len(code))
	for _, v := range []uint64{0, base, base, size, size, 4096} {
		b = le.AppendUint64(b, v)
	}
	return append(b, code...)
}

// gcImage is an image of the model's.
type gcImage struct {
	ref      string
	manifest digest.Digest
	layers   []digest.Digest
	local    bool // has no index in its registry
	want     tree
}

// gcModel knows what of the images must be on the node.
type gcModel struct {
	*node
	rng    *rand.Rand
	images []*gcImage
	dirs   map[string]*gcImage   // mounted there
	runs   map[*process]*gcImage // with its input open
	stdin  map[*process]io.Closer
	known  map[*gcImage]bool // pulled, and not removed or let go of since
	killed []int             // daemons
	evicts bool              // whatever nothing needs goes by itself
}

// newGCModel makes a node and a registry of five images that share layers.
func newGCModel(t *testing.T, seed uint64, config ...string) *gcModel {
	n := newNode(t, config...)
	m := &gcModel{node: n, rng: rand.New(rand.NewPCG(seed, 0)), dirs: map[string]*gcImage{}, runs: map[*process]*gcImage{},
		stdin: map[*process]io.Closer{}, known: map[*gcImage]bool{}, evicts: len(config) > 0}
	var layers [][]byte
	for i := range 6 {
		b := new(layertartest.Builder)
		if i == 0 {
			b.Entry(layertartest.Header{Type: '0', Name: "wait", Mode: 0o755, Size: int64(len(waiter()))}, waiter())
			for _, dir := range []string{"proc", "sys", "dev", "etc"} {
				b.Dir(dir)
			}
		}
		for f := range 3 {
			b.File(fmt.Sprintf("file-%d-%d", i, f), layertartest.Fill(10*i+f, 700_000))
		}
		layers = append(layers, b.End().Bytes())
	}
	layout := n.mkdir()
	for i, of := range [][]int{{0, 1}, {0, 1, 2}, {0, 3}, {0, 4}, {0, 3, 5}} {
		img := &gcImage{local: i == 4}
		var bytes [][]byte
		for _, l := range of {
			bytes = append(bytes, layers[l])
		}
		manifest := writeImage(t, layout, fmt.Sprint("image", i), compressions[0], bytes)
		img.manifest = digest.FromBytes(marshal(t, manifest))
		for _, l := range manifest.Layers {
			img.layers = append(img.layers, l.Digest)
		}
		img.want = n.apply(bytes)
		m.images = append(m.images, img)
	}
	s := newLab(t, layout, "none")
	for i, img := range m.images {
		img.ref = fmt.Sprintf("%s/image%d", s.Addr(), i)
		if !img.local {
			n.pushIndex(img.ref)
		}
	}
	t.Cleanup(func() {
		for p := range m.runs {
			m.stdin[p].Close()
		}
	})
	t.Cleanup(func() { m.offline(s.Close) })
	return m
}

// used are the images that are mounted or run.
func (m *gcModel) used() map[*gcImage]bool {
	used := map[*gcImage]bool{}
	for _, img := range m.dirs {
		used[img] = true
	}
	for _, img := range m.runs {
		used[img] = true
	}
	return used
}

func pick[K comparable](m *gcModel, from map[K]*gcImage, less func(a, b K) int) (k K, ok bool) {
	keys := slices.SortedFunc(maps.Keys(from), less)
	if len(keys) == 0 {
		return k, false
	}
	return keys[m.rng.IntN(len(keys))], true
}

func (m *gcModel) pickRun() (*process, bool) {
	return pick(m, m.runs, func(a, b *process) int { return a.cmd.Process.Pid - b.cmd.Process.Pid })
}

// ended waits until the daemon has cleaned up after a run.
func (m *gcModel) ended(p *process) {
	m.Helper()
	p.wait()
	name := p.args[slices.Index(p.args, "--name")+1]
	m.eventually("the container's mount is gone", func() bool {
		s, err := m.statusNow()
		return err == nil && !slices.ContainsFunc(s.Mounts, func(x api.Mount) bool { return x.ID == name })
	})
	delete(m.runs, p)
}

// step does one thing at random and says what.
func (m *gcModel) step() string {
	m.Helper()
	img := m.images[m.rng.IntN(len(m.images))]
	what := []string{"pull", "mount", "mount", "umount", "run", "run", "end", "kill run", "rm", "unpin", "gc", "gc", "kill daemon", "restart"}[m.rng.IntN(14)]
	if (what == "run" || what == "mount") && len(m.runs)+len(m.dirs) > 4 {
		what = "umount"
	}
	switch what {
	case "pull":
		m.thaw("pull", img.ref)
		m.known[img] = true
	case "mount":
		dir := m.mkdir()
		m.thaw("mount", img.ref, dir)
		m.dirs[dir] = img
	case "umount":
		if dir, ok := pick(m, m.dirs, strings.Compare); ok {
			m.thaw("umount", dir)
			delete(m.dirs, dir)
		}
	case "run":
		r, w, err := os.Pipe()
		if err != nil {
			m.Fatal(err)
		}
		p := m.startWith(r, m.runArgs("-i", "--network", "none", "--entrypoint", "/wait", img.ref)...)
		r.Close()
		m.runs[p], m.stdin[p] = img, w
		name := p.args[slices.Index(p.args, "--name")+1]
		m.eventually("the container is mounted", func() bool {
			select {
			case <-p.done:
				m.Fatalf("it has ended: %v", p.res)
			default:
			}
			s, err := m.statusNow()
			return err == nil && slices.ContainsFunc(s.Mounts, func(x api.Mount) bool { return x.ID == name })
		})
	case "end":
		if p, ok := m.pickRun(); ok {
			m.stdin[p].Close()
			if m.ended(p); p.res.code != 0 {
				m.Error(p.res)
			}
		}
	case "kill run":
		if p, ok := m.pickRun(); ok {
			p.signal(unix.SIGKILL)
			m.ended(p)
			m.stdin[p].Close()
		}
	case "rm":
		if r := m.try("cache", "rm", img.ref); r.code != 0 && (m.known[img] || !strings.Contains(r.stderr, "not on this node")) {
			m.Error(r)
		}
		delete(m.known, img)
	case "unpin":
		if r := m.try("cache", "unpin", img.ref); (r.code == 0) != m.known[img] {
			m.Error(r)
		}
		delete(m.known, img)
	case "gc":
		m.thaw("cache", "gc")
		m.collected()
	case "kill daemon":
		pid := m.daemon(m.killed...)
		m.kill(pid)
		m.killed = append(m.killed, pid)
		if len(m.dirs)+len(m.runs) == 0 {
			m.thaw("cache", "ls") // starts one
		}
		m.daemon(m.killed...)
	case "restart":
		pid := m.daemon(m.killed...)
		if err := unix.Kill(pid, unix.SIGTERM); err != nil {
			m.Error(err)
		}
		m.eventually("the daemon is gone", func() bool { return !alive(pid) })
		m.thaw("cache", "ls")
		m.daemon(pid)
	}
	return what + " " + img.ref
}

// check holds the node against the model: what is needed is there.
func (m *gcModel) check() {
	m.Helper()
	for dir, img := range m.dirs {
		got, err := readTree(dir)
		if err != nil || len(got.errors) > 0 {
			m.Fatalf("read %s of %s: %v, %v", dir, img.ref, err, got.errors)
		}
		want, err := img.want.ignoreRootTime(dir)
		if err != nil {
			m.Fatal(err)
		}
		if err := want.diff(got); err != nil {
			m.Fatalf("%s of %s: %v", dir, img.ref, err)
		}
	}
	for p := range m.runs {
		select {
		case <-p.done:
			m.Fatalf("a container has ended: %v", p.res)
		default:
		}
	}
	here := map[digest.Digest]api.Layer{}
	for _, l := range m.layers() {
		here[l.Blob] = l
	}
	for img := range m.known {
		for _, blob := range img.layers {
			if l := here[blob]; !l.Complete || !slices.Contains(l.Pins, "image:"+m.fullRef(img)) {
				m.Fatalf("layer %s of %s, which is pulled, is %+v", blob, img.ref, l)
			}
		}
	}
	for img := range m.used() {
		for _, blob := range img.layers {
			if l := here[blob]; !l.InUse {
				m.Fatalf("layer %s of %s, which is mounted, is %+v", blob, img.ref, l)
			}
		}
	}
}

// fullRef is an image's reference as the daemon writes it.
func (m *gcModel) fullRef(img *gcImage) string { return img.ref + ":latest" }

// collected checks that what nothing needs is gone, and of what is needed
// nothing is.
func (m *gcModel) collected() {
	m.Helper()
	layers, heads, refs := map[string]bool{}, map[string]bool{}, map[string]bool{}
	needed := m.used()
	metadata := len(needed)
	maps.Copy(needed, m.known)
	for img := range needed {
		heads["sha256-"+img.manifest.Encoded()], refs[m.fullRef(img)] = true, true
		for _, blob := range img.layers {
			layers["sha256-"+blob.Encoded()] = true
		}
	}
	m.same("layers", layers, m.names("store/layers", ""))
	got := m.names("index/images", "")
	for _, img := range m.images {
		if name := "sha256-" + img.manifest.Encoded(); img.local && !heads[name] {
			delete(got, name) // it is kept for a week
		}
	}
	m.same("indexes", heads, got)
	if n := len(m.names("metadata", "")); n != metadata {
		m.Errorf("%d files of metadata, %d images are mounted", n, metadata)
	}
	known := map[string]bool{}
	for name := range m.names("images", "") {
		b, err := os.ReadFile(filepath.Join(m.root, "images", name))
		var stored struct{ Ref string }
		if err == nil {
			err = json.Unmarshal(b, &stored)
		}
		if err != nil {
			m.Error(err)
		}
		known[stored.Ref] = true
	}
	for img := range needed { // what is only run is remembered, and forgotten by rm meanwhile
		if !m.known[img] {
			delete(refs, m.fullRef(img))
			delete(known, m.fullRef(img))
		}
	}
	m.same("images", refs, known)
	for _, dir := range []string{"store/tmp", "store/quarantine"} {
		m.same(dir, nil, m.names(dir, ""))
	}
}

func (m *gcModel) names(dir, suffix string) map[string]bool {
	m.Helper()
	entries, err := os.ReadDir(filepath.Join(m.root, dir))
	if err != nil && !os.IsNotExist(err) {
		m.Fatal(err)
	}
	names := map[string]bool{}
	for _, e := range entries {
		names[strings.TrimSuffix(e.Name(), suffix)] = true
	}
	return names
}

func (m *gcModel) same(what string, want, got map[string]bool) {
	m.Helper()
	if len(want) != len(got) || !maps.Equal(want, got) && len(want) > 0 {
		m.Fatalf("%s are\n%v, want\n%v", what, slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
	}
}

// offline: what was pulled is mounted without a registry.
func (m *gcModel) offline(closeRegistry func() error) {
	if m.Failed() {
		return
	}
	closeRegistry()
	for img := range m.known {
		dir := m.mkdir()
		m.thaw("mount", "--pull=never", img.ref, dir)
		m.sameImage(img.want, dir)
		m.thaw("umount", dir)
	}
}

// TestGarbageModel: nothing that a mount or a pulled image needs is removed, by
// no sequence of commands, kills and evictions; and what nothing needs is.
func TestGarbageModel(t *testing.T) {
	t.Parallel()
	if runtime.GOARCH != "amd64" {
		t.Skip("its container's program is for amd64")
	}
	testenv.NeedRuntime(t)
	seed, steps := *modelSeed, 20
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	if os.Getenv("THAW_LONG") != "" {
		steps = 400
	}
	for name, config := range map[string][]string{"gc": nil, "evict": {"[cache]", `max-size = "1"`}} {
		t.Run(name, func(t *testing.T) {
			t.Logf("-seed=%d", seed)
			m := newGCModel(t, seed, config...)
			var done []string
			defer func() {
				if t.Failed() {
					t.Logf("after\n%s", strings.Join(done, "\n"))
				}
			}()
			m.thaw("cache", "ls")
			for range steps {
				done = append(done, "") // it may not come back
				done[len(done)-1] = m.step()
				m.check()
			}
			m.thaw("cache", "gc")
			m.collected()
			if m.evicts {
				for dir := range m.dirs {
					m.thaw("umount", dir)
					delete(m.dirs, dir)
				}
				m.eventually("what nothing needs is evicted", func() bool {
					for _, l := range m.layers() {
						if !l.InUse && len(l.Pins) == 0 {
							return false
						}
					}
					return true
				})
			}
		})
	}
}
