package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/thaw-project/thaw/internal/layertar/layertartest"
	"github.com/thaw-project/thaw/internal/testenv"
)

// deriveImages makes a layout of n images: those of the corpus by turns, each
// with a small layer of its own on top, which holds the file /own.
func deriveImages(t testing.TB, n int, of ...string) (layout string, own []string) {
	t.Helper()
	base := filepath.Join(testenv.Corpus(t), "oci")
	layout, err := os.MkdirTemp(shared, "many")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(layout) })
	read := func(name string, v any) {
		b, err := os.ReadFile(filepath.Join(base, name))
		if err == nil {
			err = json.Unmarshal(b, v)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	blob := func(d v1.Descriptor) string {
		return filepath.Join(v1.ImageBlobsDir, d.Digest.Algorithm().String(), d.Digest.Encoded())
	}
	var all, index v1.Index
	read(v1.ImageIndexFile, &all)
	index.SchemaVersion = 2
	for i := range n {
		var m v1.Manifest
		var config v1.Image
		for _, desc := range all.Manifests {
			if desc.Annotations[v1.AnnotationRefName] == of[i%len(of)] {
				read(blob(desc), &m)
			}
		}
		read(blob(m.Config), &config)
		for _, l := range m.Layers {
			to := filepath.Join(layout, blob(l))
			err := os.MkdirAll(filepath.Dir(to), 0o755)
			if err == nil {
				err = os.Symlink(filepath.Join(base, blob(l)), to)
			}
			if err != nil && !os.IsExist(err) {
				t.Fatal(err)
			}
		}
		data := layertartest.Fill(1000+i, 300_000)
		own = append(own, fmt.Sprintf("%x", sha256.Sum256(data)))
		tar := new(layertartest.Builder).File("own", data).End().Bytes()
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(tar))
		m.Layers = append(m.Layers, writeBlob(t, layout, v1.MediaTypeImageLayerGzip, layertartest.Gzip(tar, 1)))
		m.Config = writeBlob(t, layout, v1.MediaTypeImageConfig, marshal(t, config))
		desc := writeBlob(t, layout, v1.MediaTypeImageManifest, marshal(t, m))
		desc.Platform = &config.Platform
		desc.Annotations = map[string]string{v1.AnnotationRefName: fmt.Sprint("image", i)}
		index.Manifests = append(index.Manifests, desc)
	}
	for name, v := range map[string]any{v1.ImageIndexFile: index, v1.ImageLayoutFile: v1.ImageLayout{Version: v1.ImageLayoutVersion}} {
		if err := os.WriteFile(filepath.Join(layout, name), marshal(t, v), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return layout, own
}

// procBytes reads fields in kB of a file of /proc/PID, such as VmHWM of status.
func procBytes(pid int, file, field string) int64 {
	f, err := os.Open(fmt.Sprintf("/proc/%d/%s", pid, file))
	if err != nil {
		return 0
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), field+":"); ok {
			kb, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kb << 10
		}
	}
	return 0
}

func countFiles(dir string) int {
	entries, _ := os.ReadDir(dir)
	return len(entries)
}

// TestManyContainers starts many containers of several images at once: all of
// them come up, and the daemon stays small. THAW_LONG=1: 200 of 20 images.
func TestManyContainers(t *testing.T) {
	testenv.NeedRuntime(t)
	containers, images := 12, 4
	if os.Getenv("THAW_LONG") != "" {
		containers, images = 200, 20
	}
	layout, own := deriveImages(t, images, "nginx", "node")
	n := newNode(t)
	s := newLab(t, layout, "fast")
	refs := make([]string, images)
	for i := range refs {
		refs[i] = fmt.Sprintf("%s/image%d", s.Addr(), i)
		n.pushIndex(refs[i])
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close(); r.Close() })
	// A few files of every layer, and then to the end of its input.
	script := "sha256sum /own; for f in /usr/bin/perl /usr/share/perl5 /etc /usr/lib/x86_64-linux-gnu/libc.so.6; do " +
		"find $f -xdev -type f 2>/dev/null | head -n 50 | xargs -r cat; done > /dev/null && echo up; cat > /dev/null; echo end"
	begun := time.Now()
	var all []*process
	for i := range containers {
		args := append([]string{"-i", "--network", "none"}, shell(refs[i%images], script)...)
		all = append(all, n.startWith(r, n.runArgs(args...)...))
	}
	r.Close()
	var clients, clientsPrivate, largest int64
	for _, p := range all {
		p.prints("up\n")
	}
	ready := time.Since(begun)
	for i, p := range all {
		if out := p.out.String(); !strings.HasPrefix(out, own[i%images]) {
			t.Errorf("container %d printed %q, want %s first", i, out, own[i%images])
		}
		clients += procBytes(p.cmd.Process.Pid, "smaps_rollup", "Rss")
		clientsPrivate += procBytes(p.cmd.Process.Pid, "smaps_rollup", "Pss")
		largest = max(largest, procBytes(p.cmd.Process.Pid, "status", "VmHWM"))
	}
	st := n.status()
	if len(st.Mounts) != containers {
		t.Errorf("%d mounts", len(st.Mounts))
	}
	peak := procBytes(st.Pid, "status", "VmHWM")
	const mib = 1 << 20
	t.Logf("%d containers of %d images are up after %.1f s; daemon: peak %d MiB, now %d MiB, %d goroutines, %d descriptors, %d threads, %d layers",
		containers, images, ready.Seconds(), peak/mib, procBytes(st.Pid, "status", "VmRSS")/mib, st.Goroutines,
		countFiles(fmt.Sprintf("/proc/%d/fd", st.Pid)), countFiles(fmt.Sprintf("/proc/%d/task", st.Pid)), st.Layers)
	for _, pid := range n.pids(" keeper ") {
		t.Logf("keeper: peak %d MiB, proportional %d MiB, %d descriptors", procBytes(pid, "status", "VmHWM")/mib,
			procBytes(pid, "smaps_rollup", "Pss")/mib, countFiles(fmt.Sprintf("/proc/%d/fd", pid)))
	}
	t.Logf("thaw run: %.1f MiB resident each, %.1f MiB of its own, peak %d MiB", float64(clients)/mib/float64(containers),
		float64(clientsPrivate)/mib/float64(containers), largest/mib)
	if peak > 300e6 {
		t.Errorf("the daemon took %d bytes at its peak", peak)
	}
	if limit := 150 + 10*containers; st.Goroutines > limit {
		t.Errorf("%d goroutines, want %d at most", st.Goroutines, limit)
	}
	w.Close()
	for _, p := range all {
		if r := p.wait(); r.code != 0 || !strings.HasSuffix(r.stdout, "up\nend\n") {
			t.Error(r)
		}
	}
	n.forgotten()
	n.eventually("no goroutine is left of them", func() bool { return n.status().Goroutines < 150 })
}

// TestManyLayers mounts images of many small layers, all of them watched: what
// a layer takes is what the daemon's limits count on. THAW_LONG=1: 6000 layers.
func TestManyLayers(t *testing.T) {
	t.Parallel()
	images, each := 2, 60
	if os.Getenv("THAW_LONG") != "" {
		images, each = 60, 100
	}
	n := newNode(t)
	layout := n.mkdir()
	for i := range images {
		var layers [][]byte
		for l := range each {
			layers = append(layers, new(layertartest.Builder).File(fmt.Sprint("f", l), fmt.Appendf(nil, "layer %d of image %d", l, i)).End().Bytes())
		}
		writeImage(t, layout, fmt.Sprint("image", i), compressions[0], layers)
	}
	s := newLab(t, layout, "none")
	dirs := make([]string, images)
	files := func() (daemon, keeper int) {
		st := n.status()
		for _, pid := range n.pids(" keeper ") {
			keeper = countFiles(fmt.Sprintf("/proc/%d/fd", pid))
		}
		return countFiles(fmt.Sprintf("/proc/%d/fd", st.Pid)), keeper
	}
	n.thaw("cache", "ls")
	daemon, keeper := files()
	begun := time.Now()
	for i := range images {
		ref := fmt.Sprintf("%s/image%d", s.Addr(), i)
		n.pushIndex(ref)
		dirs[i] = n.mkdir()
		n.thaw("mount", "--background=off", ref, dirs[i])
	}
	st := n.status()
	daemonNow, keeperNow := files()
	t.Logf("%d layers in %d mounts after %.1f s: %d descriptors of the daemon, %d of the keeper, daemon's peak %d MiB", st.Layers, images,
		time.Since(begun).Seconds(), daemonNow-daemon, keeperNow-keeper, procBytes(st.Pid, "status", "VmHWM")>>20)
	if st.Layers != images*each || len(n.marks()) != st.Layers {
		t.Errorf("%d layers, %d marks, want %d", st.Layers, len(n.marks()), images*each)
	}
	if most := 3*st.Layers + 50; daemonNow-daemon > most || keeperNow-keeper > most { // as limits.go of the daemon has it
		t.Errorf("%d and %d descriptors for %d layers", daemonNow-daemon, keeperNow-keeper, st.Layers)
	}
	for i, dir := range dirs {
		for l := range each {
			got, err := os.ReadFile(filepath.Join(dir, fmt.Sprint("f", l)))
			if want := fmt.Sprintf("layer %d of image %d", l, i); err != nil || string(got) != want {
				t.Fatalf("%q, %v, want %q", got, err, want)
			}
		}
		n.thaw("umount", dir)
	}
}
