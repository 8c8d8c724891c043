package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/testenv"
	"github.com/thaw-project/thaw/internal/trace"
)

// traces are what thaw trace ls lists.
func (n *node) traces() []api.TraceInfo {
	n.Helper()
	var out struct{ Items []api.TraceInfo }
	if err := json.Unmarshal([]byte(n.thaw("trace", "ls", "--json")), &out); err != nil {
		n.Fatal(err)
	}
	return out.Items
}

// recorded waits until so many starts were recorded.
func (n *node) recorded(want int) (all []api.TraceInfo) {
	n.Helper()
	n.eventually(fmt.Sprintf("%d starts are recorded", want), func() bool { all = n.traces(); return len(all) == want })
	return all
}

// pause stops the processes of a container.
func (n *node) pause(id string) (resume func()) {
	n.Helper()
	var pids []int
	for _, pattern := range []string{"/sys/fs/cgroup/thaw/", "/sys/fs/cgroup/*/thaw/"} {
		files, _ := filepath.Glob(pattern + id + "*/cgroup.procs")
		for _, file := range files {
			b, _ := os.ReadFile(file)
			for field := range strings.FieldsSeq(string(b)) {
				if pid, err := strconv.Atoi(field); err == nil && !slices.Contains(pids, pid) {
					pids = append(pids, pid)
				}
			}
		}
	}
	if len(pids) == 0 {
		n.Fatalf("container %s has no processes", id)
	}
	for _, pid := range pids {
		n.freeze(pid)
	}
	return func() {
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGCONT)
		}
	}
}

func (n *node) trace(name string) api.Trace {
	n.Helper()
	var t api.Trace
	if err := json.Unmarshal([]byte(n.thaw("trace", "show", "--json", name)), &t); err != nil {
		n.Fatal(err)
	}
	return t
}

// traceOf is the trace of the start whose command has a text.
func (n *node) traceOf(text string) api.Trace {
	n.Helper()
	for _, t := range n.traces() {
		if strings.Contains(strings.Join(t.Command, " "), text) {
			return n.trace(t.ID)
		}
	}
	n.Fatalf("no start with %q was recorded: %+v", text, n.traces())
	return api.Trace{}
}

const pageSize = 4096

// pages are those of files: path, number of the page.
type pages map[string]map[int64]bool

func (p pages) add(path string, page int64) {
	if p[path] == nil {
		p[path] = map[int64]bool{}
	}
	p[path][page] = true
}

func (p pages) count() int {
	n := 0
	for _, file := range p {
		n += len(file)
	}
	return n
}

// resident asks the kernel which pages of a mounted image it has read: the
// judge of what a recording is to have seen.
func resident(t testing.TB, dir string) pages {
	t.Helper()
	all := pages{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil || info.Size() == 0 {
			return err
		}
		m, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
		if err != nil {
			return fmt.Errorf("map %s: %w", path, err)
		}
		defer unix.Munmap(m)
		core := make([]byte, (len(m)+pageSize-1)/pageSize)
		_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&m[0])), uintptr(len(m)), uintptr(unsafe.Pointer(&core[0])))
		if errno != 0 {
			return fmt.Errorf("mincore %s: %w", path, errno)
		}
		for i, here := range core {
			if here&1 != 0 {
				all.add(strings.TrimPrefix(path, dir), int64(i))
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// recordedPages are the pages of a trace's files, whole ones.
func recordedPages(t api.Trace, size func(path string) int64) pages {
	all := pages{}
	have := map[string]map[int64]int64{} // bytes of a page
	for _, r := range t.Reads {
		if r.Path == "" {
			continue
		}
		if have[r.Path] == nil {
			have[r.Path] = map[int64]int64{}
		}
		for off := r.Offset; off < r.Offset+r.Bytes; {
			next := min((off/pageSize+1)*pageSize, r.Offset+r.Bytes)
			have[r.Path][off/pageSize] += next - off
			off = next
		}
	}
	for path, file := range have {
		for page, n := range file {
			if n >= min(pageSize, size(path)-page*pageSize) {
				all.add(path, page)
			}
		}
	}
	return all
}

// checkTrace holds a trace against what the kernel had read some time after the
// container was ready and before the recording ended: nothing may be missing.
// (There may be more: what was under way, and what left the cache since.)
func checkTrace(t testing.TB, got api.Trace, want pages, dir string) {
	t.Helper()
	have := recordedPages(got, func(path string) int64 {
		info, err := os.Lstat(filepath.Join(dir, path))
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	})
	names := linkNames(t, dir)
	for path, file := range want {
		for page := range file {
			if !have[names[path]][page] {
				t.Errorf("page %d of %s was read and is not in the trace", page, path)
				break
			}
		}
	}
	if want.count() == 0 {
		t.Error("the kernel read nothing")
	}
}

// linkNames maps each file's names to the first of them.
func linkNames(t testing.TB, dir string) map[string]string {
	t.Helper()
	names, first := map[string]string{}, map[uint64]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		name := strings.TrimPrefix(path, dir)
		if first[st.Ino] == "" {
			first[st.Ino] = name
		}
		names[name] = first[st.Ino]
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// TestTrace: a start is recorded, all that it read, in order, whoever brought the
// bytes and whenever the layers were complete.
func TestTrace(t *testing.T) {
	t.Parallel()
	testenv.NeedRuntime(t)
	for _, test := range []struct{ name, image, config, ready, first, then string }{
		{"nginx", "nginx", "", "/ready", "/entrypoint.sh", "/usr/sbin/nginx"},
		{"node", "node", "", "/health/ready", "/usr/bin/node", "/app/server.js"},
		{"fuse", "nginx", `mount = "fuse"`, "/ready", "/entrypoint.sh", "/usr/sbin/nginx"},
	} {
		t.Run(test.name, func(t *testing.T) {
			testenv.NeedRoot(t)
			layout := filepath.Join(testenv.Corpus(t), "oci")
			n := newNode(t, test.config)
			ref := newLab(t, layout, "none").Addr() + "/" + test.image
			n.pushIndex(ref)
			dir := n.mkdir()
			n.thaw("mount", "--background=off", ref, dir) // is not recorded, and tells what is in the image

			port, line := freePort(t), n.path("line")
			p := n.launch("-e", "PORT="+port, "--ready", "http://127.0.0.1:"+port+test.ready, "--timeline-file", line, ref)
			n.eventually("it is ready", func() bool { _, err := os.Stat(line); return err == nil })
			id, unpacked := "", int64(0)
			for _, m := range n.status().Mounts {
				if m.Recording != (m.Pid != 0) {
					t.Errorf("mount %+v", m)
				}
				if m.Recording {
					id, unpacked = m.ID, m.Stats.UnpackedBytes
				}
			}
			resume := n.pause(id) // what it reads after the recording is not in the trace
			want := resident(t, filepath.Join(n.root, "mounts", id, "image"))
			resume()
			if test.image == "node" { // does not listen to SIGTERM
				n.eventually("the recording is over", func() bool { return len(n.traces()) > 0 })
				p.signal(unix.SIGKILL)
			} else {
				p.signal(unix.SIGTERM)
			}
			p.wait()

			all := n.recorded(1)
			if all[0].Image != ref+":latest" || all[0].Runs != 1 || all[0].Ready <= 0 || len(all[0].Command) == 0 {
				t.Fatalf("traces %+v", all)
			}
			got := n.trace(ref)
			checkTrace(t, got, want, dir)
			if got.Bytes > unpacked/2 { // the background brings all
				t.Errorf("%d of %d bytes were read", got.Bytes, unpacked)
			}
			first := func(path string) int {
				return slices.IndexFunc(got.Reads, func(r api.TraceRead) bool { return r.Path == path })
			}
			if a, b := first(test.first), first(test.then); a < 0 || b < a {
				t.Errorf("%s is read %d., %s %d.", test.first, a, test.then, b)
			}
			phase := 0
			for _, r := range got.Reads {
				at := slices.Index(trace.Phases, r.Phase)
				if at < phase || r.Phase == trace.PhaseAfter && r.At < got.Ready || r.Phase == trace.PhaseReady && r.At > got.Ready {
					t.Errorf("ready after %v, read %+v", got.Ready, r)
				}
				phase = at
			}
			if test.name == "nginx" {
				n.traceCommands(ref, all[0])
			}
		})
	}
}

// traceCommands tries the commands on a node with one trace.
func (n *node) traceCommands(ref string, info api.TraceInfo) {
	n.Helper()
	if text := n.thaw("trace", "ls"); !strings.Contains(text, info.ID) || !strings.Contains(text, ref) || strings.Count(text, "\n") != 2 {
		n.Errorf("trace ls prints\n%s", text)
	}
	if text := n.thaw("trace", "show", info.ID); !strings.Contains(text, "/usr/sbin/nginx\n") || !strings.Contains(text, "  ready ") {
		n.Errorf("trace show prints\n%s", text)
	}
	n.thaw("trace", "export", ref, n.path("exported"))
	b, err := os.ReadFile(n.path("exported"))
	if err != nil {
		n.Fatal(err)
	}
	if out := n.thaw("trace", "export", info.Manifest.String(), "-"); out != string(b) {
		n.Errorf("export to stdout has %d bytes, to a file %d", len(out), len(b))
	}
	exported, err := trace.Decode(bytes.NewReader(b), trace.Limits{})
	if err != nil || exported.Image != info.Manifest || len(exported.Accesses) != info.Accesses || exported.Bytes() != info.Bytes {
		n.Errorf("exported trace %+v: %v", exported, err)
	}
	// A file that was torn is as good as none.
	files, err := filepath.Glob(filepath.Join(n.root, "traces", "*", "*", "*"))
	if err != nil || len(files) != 1 {
		n.Fatalf("files %v, %v", files, err)
	}
	if err := os.Truncate(files[0], 100); err != nil {
		n.Fatal(err)
	}
	n.refuses(1, "no start of "+ref+" was recorded", "trace", "show", ref)
	n.logs("trace is damaged and ignored")
	if err := os.WriteFile(files[0], b, 0o600); err != nil {
		n.Fatal(err)
	}
	if text := n.thaw("trace", "rm", ref); text != info.ID+"\n" || len(n.traces()) != 0 {
		n.Errorf("trace rm prints %q", text)
	}
	if err := os.MkdirAll(filepath.Dir(files[0]), 0o700); err != nil {
		n.Fatal(err)
	}
	if err := os.WriteFile(files[0], b, 0o600); err != nil {
		n.Fatal(err)
	}
	if len(n.traces()) != 1 {
		n.Error("the trace is not back")
	}
	for _, m := range n.status().Mounts {
		n.thaw("umount", m.Dir)
	}
	// Kept when all else is collected, unless it is a month old; removed with its image.
	n.thaw("cache", "gc")
	if len(n.traces()) != 1 {
		n.Error("the trace was collected")
	}
	old := time.Now().Add(-31 * 24 * time.Hour)
	if err := os.Chtimes(files[0], old, old); err != nil {
		n.Fatal(err)
	}
	n.thaw("cache", "gc")
	if len(n.traces()) != 0 {
		n.Error("an old trace of an image that is not here was not collected")
	}
	if err := os.MkdirAll(filepath.Dir(files[0]), 0o700); err != nil {
		n.Fatal(err)
	}
	if err := os.WriteFile(files[0], b, 0o600); err != nil {
		n.Fatal(err)
	}
	n.thaw("pull", ref)
	n.thaw("cache", "rm", ref)
	if len(n.traces()) != 0 {
		n.Error("the trace of a removed image is there")
	}
}

// TestTraceWhose: starts of one image, and of images that share a layer, at the
// same moment, and a mount that somebody else reads. Each trace has what its own
// container read of the shared layer.
func TestTraceWhose(t *testing.T) {
	t.Parallel()
	for _, config := range []string{"", `mount = "fuse"`} {
		t.Run(config, func(t *testing.T) {
			n, nginx := newRunNode(t, config)
			layout := filepath.Join(testenv.Corpus(t), "oci")
			node := newLab(t, layout, "none").Addr() + "/node"
			n.pushIndex(node)
			dir := n.mkdir()
			n.thaw("mount", "--background=1MB", nginx, dir)
			files := []string{"/usr/bin/perl", "/usr/bin/bash", "/usr/bin/dpkg", "/usr/bin/tar"} // all of the shared layer
			var all []*process
			for i, ref := range []string{nginx, nginx, node} {
				script := "echo up; while ! [ -e /host/go ]; do sleep 0.05; done; cat " + files[i] + " | wc -c; sh -c 'cat " + files[i] + "' > /dev/null"
				all = append(all, n.launch(append([]string{"--background=1MB", "-v", n.base + ":/host"}, shell(ref, script)...)...))
			}
			for _, p := range all {
				p.prints("up\n")
			}
			n.write("go", "")
			if b, err := os.ReadFile(filepath.Join(dir, files[3])); err != nil || len(b) == 0 {
				t.Errorf("read %d bytes: %v", len(b), err)
			}
			for _, p := range all {
				if r := p.wait(); r.code != 0 {
					t.Error(r)
				}
			}
			n.recorded(3)
			for i, file := range files[:3] {
				read := map[string]int64{}
				got := n.traceOf("cat " + file)
				for _, r := range got.Reads {
					read[r.Path] += r.Bytes
				}
				info, err := os.Stat(filepath.Join(dir, file))
				if i == 2 {
					err = nil // another image
				}
				if err != nil || info != nil && read[file] < info.Size() || read[file] < 100_000 {
					t.Errorf("%s was read, the trace has %d bytes of it", file, read[file])
				}
				for _, other := range files {
					if other != file && read[other] > 2*pageSize {
						t.Errorf("%d bytes of %s in the trace of a start that read %s", read[other], other, file)
					}
				}
			}
		})
	}
}

// TestTraceComplete: an image that is complete before it is started is recorded
// once, and then starts without marks. While a recording goes on the marks of
// layers that are complete stay, and no longer.
func TestTraceComplete(t *testing.T) {
	t.Parallel()
	n, ref := newRunNode(t)
	n.thaw("pull", ref)
	once := shell(ref, "cat /usr/bin/perl | wc -c")
	if r := n.run(append([]string{"--record=false"}, once...)...); r.code != 0 || len(n.traces()) != 0 {
		t.Errorf("recorded against the user's will: %v", r)
	}
	n.write("config.toml", "record = false")
	if r := n.run(once...); r.code != 0 || len(n.traces()) != 0 {
		t.Errorf("recorded against the configuration: %v", r)
	}
	n.write("config.toml", "")
	for range 2 {
		if r := n.run(once...); r.code != 0 {
			t.Error(r)
		}
		if all := n.recorded(1); all[0].Runs != 1 {
			t.Fatalf("traces %+v", all)
		}
	}
	perl := int64(0)
	for _, r := range n.traceOf("perl").Reads {
		if r.Path == "/usr/bin/perl" {
			perl += r.Bytes
		}
	}
	if perl < 1_000_000 {
		t.Errorf("%d bytes of perl in the trace", perl)
	}
	// It reads now and then, and is recorded all the while.
	p := n.launch(append([]string{"-v", n.base + ":/host"}, shell(ref, "echo reads; for f in /usr/bin/* /usr/lib/*/*.so*; do cat $f > /dev/null; sleep 0.1; [ ! -e /host/quiet ] || break; done; "+
		loop(`trap "exit 0" TERM`))...)...)
	p.prints("reads\n")
	if s := n.status(); !s.Mounts[0].Recording || len(n.marks()) != 3 {
		t.Errorf("mounts %+v, marks %v", s.Mounts, n.marks())
	}
	n.write("quiet", "")
	p.prints("up\n")
	n.eventually("the recording is over", func() bool { return !n.status().Mounts[0].Recording })
	n.eventually("no file is marked", func() bool { return len(n.marks()) == 0 })
	n.recorded(2)
	p.signal(unix.SIGTERM)
	if r := p.wait(); r.code != 0 {
		t.Error(r)
	}
	if all := n.traces(); len(all) != 2 {
		t.Errorf("traces %+v", all)
	}
}

// TestTraceKilled: a daemon that dies in the middle of a recording loses it, and
// nothing else.
func TestTraceKilled(t *testing.T) {
	t.Parallel()
	n, ref := newRunNode(t)
	args := append([]string{"--background=2MB", "-v", n.base + ":/host"},
		shell(ref, "cat /usr/bin/bash > /dev/null; echo up; while ! [ -e /host/go ]; do sleep 0.05; done; cat /usr/bin/perl | wc -c")...)
	p := n.launch(args...)
	p.prints("up\n")
	pid := n.daemon()
	n.kill(pid)
	n.daemon(pid)
	if s := n.status(); len(s.Mounts) != 1 || s.Mounts[0].Recording {
		t.Errorf("the next daemon records the rest: %+v", s.Mounts)
	}
	n.write("go", "")
	if r := p.wait(); r.code != 0 {
		t.Error(r)
	}
	if all := n.traces(); len(all) != 0 {
		t.Errorf("half a start was recorded: %+v", all)
	}
	if r := n.run(args...); r.code != 0 {
		t.Error(r)
	}
	read := map[string]int64{}
	for _, r := range n.traceOf("perl").Reads {
		read[r.Path] += r.Bytes
	}
	if read["/usr/bin/bash"] < 1_000_000 || read["/usr/bin/perl"] < 1_000_000 {
		t.Errorf("the next start's trace has %d bytes of bash, %d of perl", read["/usr/bin/bash"], read["/usr/bin/perl"])
	}
}

// BenchmarkRecording starts nginx with and without a recording, in turn: cold,
// and warm with all layers marked, as the first start of a pulled image is.
// on/off is the median ratio of neighbours' times, p25 and p75 its spread.
func BenchmarkRecording(b *testing.B) {
	for _, warm := range []bool{false, true} {
		b.Run(fmt.Sprintf("warm=%t", warm), func(b *testing.B) {
			n, ref := newRunNode(b)
			if warm {
				n.thaw("pull", ref)
			}
			n.timelineOf(ref, "--record=false") // starts the daemon
			var on, ratios []float64
			for i := 0; b.Loop(); i++ {
				var ms [2]float64
				for k := range 2 {
					record := (i+k)%2 == 0
					if !warm {
						n.thaw("cache", "gc")
					} else if len(n.traces()) > 0 {
						n.thaw("trace", "rm", ref) // or it is not recorded
					}
					at := 0
					if record {
						at = 1
					}
					ms[at] = *n.timelineOf(ref, fmt.Sprintf("--record=%t", record)).ReadyMs
				}
				on = append(on, ms[1])
				ratios = append(ratios, ms[1]/ms[0])
			}
			slices.Sort(on)
			slices.Sort(ratios)
			at := func(list []float64, q float64) float64 { return list[int(q*float64(len(list)-1))] }
			b.ReportMetric(at(on, 0.5), "ready-ms")
			b.ReportMetric(at(ratios, 0.5), "on/off")
			b.ReportMetric(at(ratios, 0.25), "p25")
			b.ReportMetric(at(ratios, 0.75), "p75")
			b.ReportMetric(0, "ns/op")
		})
	}
}
