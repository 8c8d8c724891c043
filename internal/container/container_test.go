package container

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// probe is the program that runs in the containers, built once.
var probe = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "thaw-probe-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	c := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, "probe"), "./testdata/probe")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		return nil, errors.Join(err, errors.New(string(out)))
	}
	return os.ReadFile(filepath.Join(dir, "probe"))
})

const passwd = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1001:Ann:/home/ann:/bin/sh\n"
const group = "root:x:0:\nann:x:1001:\nwheel:x:10:ann\nvideo:x:44:bob,ann\n"

// rootfs makes a root file system that holds the probe and accounts.
func rootfs(t testing.TB) string {
	t.Helper()
	program, err := probe()
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	for _, dir := range []string{"bin", "etc", "home/ann"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for path, content := range map[string]string{"etc/passwd": passwd, "etc/group": group, "bin/probe": string(program), "bin/text": "not a program"} {
		mode := os.FileMode(0o644)
		if strings.HasPrefix(path, "bin/") {
			mode = 0o755
		}
		if err := os.WriteFile(filepath.Join(root, path), []byte(content), mode); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// forEachRuntime runs a test with every runtime there is, and afterwards looks
// for what the container left behind.
func forEachRuntime(t *testing.T, test func(t *testing.T, opts Options)) {
	testenv.NeedRuntime(t)
	for _, name := range runtimes {
		if _, err := FindRuntime(name); err != nil {
			continue
		}
		t.Run(name, func(t *testing.T) {
			if name == "crun" && !crunCan() {
				t.Skip("crun refuses machines that use both cgroup versions")
			}
			opts := Options{
				ID:      "test-" + name + "-" + strconv.Itoa(os.Getpid()),
				Bundle:  t.TempDir(),
				Rootfs:  rootfs(t),
				Config:  v1.ImageConfig{Entrypoint: []string{"/bin/probe"}},
				Runtime: name,
				Stderr:  t.Output(),
			}
			test(t, opts)
			checkNothingLeft(t, opts)
		})
	}
}

func checkNothingLeft(t *testing.T, opts Options) {
	t.Helper()
	roots, err := cgroupRoots()
	if err != nil {
		t.Fatal(err)
	}
	for _, root := range roots {
		if _, err := os.Stat(filepath.Join(root, cgroupParent, cgroupName(opts.ID, opts.Bundle))); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("cgroup left in %s: %v", root, err)
		}
	}
	if entries, _ := os.ReadDir(filepath.Join(opts.Bundle, "runtime")); len(entries) > 0 {
		t.Errorf("runtime state left: %v", entries)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(mounts, []byte(opts.Rootfs)) || bytes.Contains(mounts, []byte(opts.Bundle)) {
		t.Error("mounts left")
	}
	if children := childProcesses(t); len(children) > 0 {
		t.Errorf("child processes left: %v", children)
	}
}

func childProcesses(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // a thread that has ended
		}
		for pid := range strings.FieldsSeq(string(b)) {
			comm, _ := os.ReadFile("/proc/" + pid + "/comm")
			out = append(out, pid+" "+strings.TrimSpace(string(comm)))
		}
	}
	return out
}

// view is the probe's, see testdata.
type view struct {
	Args, Env   []string
	UID, GID    int
	Groups      []int
	Cwd         string
	Hostname    string
	Interfaces  []string
	Status      map[string]string
	Cgroup      string
	Files       map[string]string
	Kcore       int
	environment map[string]string
}

func look(t *testing.T, opts Options, files ...string) view {
	t.Helper()
	var out bytes.Buffer
	opts.Stdout = &out
	opts.Args = append([]string{"view"}, files...)
	code, err := Run(t.Context(), opts)
	if err != nil || code != 0 {
		t.Fatalf("code %d, error %v", code, err)
	}
	var v view
	if err := json.Unmarshal(out.Bytes(), &v); err != nil {
		t.Fatalf("%v: %s", err, out.Bytes())
	}
	v.environment = map[string]string{}
	for _, kv := range v.Env {
		key, value, _ := strings.Cut(kv, "=")
		v.environment[key] = value
	}
	return v
}

func TestExitCodes(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, opts Options) {
		cases := []struct {
			command []string
			code    int
			started bool
		}{
			{[]string{"/bin/probe", "exit", "0"}, 0, true},
			{[]string{"/bin/probe", "exit", "3"}, 3, true},
			{[]string{"/bin/probe", "exit", "255"}, 255, true},
			{[]string{"/bin/probe", "die", "9"}, 137, true},
			{[]string{"/bin/probe", "spawn", "leave"}, 0, true},
			{[]string{"/bin/none"}, CodeNotFound, false},
			{[]string{"none"}, CodeNotFound, false},
			{[]string{"/etc/passwd"}, CodeNotExecutable, false},
		}
		for _, c := range cases {
			opts.Entrypoint = c.command
			started := false
			opts.Started = func(time.Time) { started = true }
			code, err := Run(t.Context(), opts)
			if code != c.code || (err == nil) != c.started || started != c.started {
				t.Errorf("%v: code %d, started %v, error %v; want code %d, started %v", c.command, code, started, err, c.code, c.started)
			}
			var start *StartError
			if err != nil && (!errors.As(err, &start) || start.Message == "" || strings.HasPrefix(start.Message, "exit status")) {
				t.Errorf("%v: error %v says nothing", c.command, err)
			}
			checkNothingLeft(t, opts)
		}
	})
}

func TestImageConfigIsHonoured(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, opts Options) {
		opts.Config = v1.ImageConfig{
			Entrypoint: []string{"probe"},
			Cmd:        []string{"none"},
			Env:        []string{"PATH=/bin", "A=1", "B=2"},
			WorkingDir: "/not/there/yet",
			User:       "ann",
		}
		opts.Env = []string{"B=3", "C=4=5"}
		opts.Hostname = "box"
		v := look(t, opts, "/etc/hostname", "/etc/hosts")
		env := map[string]string{"PATH": "/bin", "A": "1", "B": "3", "C": "4=5", "HOME": "/home/ann", "HOSTNAME": "box"}
		if diff := cmp.Diff(env, v.environment); diff != "" {
			t.Error(diff)
		}
		if v.UID != 1000 || v.GID != 1001 || !slices.Equal(v.Groups, []int{10, 44}) {
			t.Errorf("uid %d, gid %d, groups %v", v.UID, v.GID, v.Groups)
		}
		if v.Cwd != "/not/there/yet" || v.Hostname != "box" || v.Files["/etc/hostname"] != "box\n" {
			t.Errorf("cwd %q, hostname %q, /etc/hostname %q", v.Cwd, v.Hostname, v.Files["/etc/hostname"])
		}
		if !strings.Contains(v.Files["/etc/hosts"], "localhost") {
			t.Errorf("/etc/hosts %q", v.Files["/etc/hosts"])
		}
		if v.Status["CapEff"] != "0000000000000000" || v.Status["CapBnd"] != "00000000a80425fb" {
			t.Errorf("capabilities %s of %s", v.Status["CapEff"], v.Status["CapBnd"])
		}
	})
}

func TestDefaults(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, opts Options) {
		opts.User = "0:44"
		opts.WorkDir = "/home"
		v := look(t, opts)
		if v.UID != 0 || v.GID != 44 || v.Cwd != "/home" || v.environment["HOME"] != "/root" {
			t.Errorf("uid %d, gid %d, cwd %q, home %q", v.UID, v.GID, v.Cwd, v.environment["HOME"])
		}
		// The set Docker documents, seccomp in filter mode, privileges to be gained.
		for key, want := range map[string]string{"CapEff": "00000000a80425fb", "Seccomp": "2", "NoNewPrivs": "0"} {
			if v.Status[key] != want {
				t.Errorf("%s %s, want %s", key, v.Status[key], want)
			}
		}
		if v.Kcore != 0 {
			t.Errorf("/proc/kcore is not masked: %d bytes", v.Kcore)
		}
		if len(v.Interfaces) == 0 {
			t.Error("no interfaces in the host's network")
		}
	})
}

func TestNetworkNoneHasOnlyLoopback(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, opts Options) {
		opts.Network = NetworkNone
		v := look(t, opts, "/etc/resolv.conf")
		v.Interfaces = slices.DeleteFunc(v.Interfaces, func(s string) bool { return strings.HasSuffix(s, " false") })
		if diff := cmp.Diff([]string{"lo true"}, v.Interfaces); diff != "" {
			t.Error(diff)
		}
		if v.Files["/etc/resolv.conf"] != "" {
			t.Errorf("resolv.conf %q", v.Files["/etc/resolv.conf"])
		}
	})
}

func TestLimitsAreSet(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, opts Options) {
		opts.MemoryBytes = 64 << 20
		opts.CPUs = 0.5
		opts.Args = []string{"wait"}
		signals := make(chan os.Signal, 1)
		opts.Signals = signals
		var limits []string
		opts.Started = func(time.Time) {
			roots, err := cgroupRoots()
			if err != nil {
				t.Error(err)
			}
			for _, root := range roots {
				for _, name := range []string{"memory.max", "memory.limit_in_bytes", "cpu.max", "cpu.cfs_quota_us"} {
					if b, err := os.ReadFile(filepath.Join(root, cgroupParent, cgroupName(opts.ID, opts.Bundle), name)); err == nil {
						limits = append(limits, strings.TrimSpace(string(b)))
					}
				}
			}
			signals <- unix.SIGKILL
		}
		if code, err := Run(t.Context(), opts); err != nil || code != 137 {
			t.Fatalf("code %d: %v", code, err)
		}
		slices.Sort(limits)
		limits = slices.Compact(limits) // hierarchies may be mounted twice
		if unifiedCgroups() {
			if diff := cmp.Diff([]string{"50000 100000", "67108864"}, limits); diff != "" {
				t.Error(diff)
			}
		} else if diff := cmp.Diff([]string{"50000", "67108864"}, limits); diff != "" {
			t.Error(diff)
		}
	})
}

func TestReadOnlyAndMounts(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, opts Options) {
		writable, fixed := t.TempDir(), filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(fixed, []byte("fixed"), 0o644); err != nil {
			t.Fatal(err)
		}
		opts.Mounts = []Mount{{Source: writable, Target: "/data/deep"}, {Source: fixed, Target: "/etc/hosts", ReadOnly: true}}
		write := func(path string) int {
			t.Helper()
			o := opts
			o.Args, o.Stderr = []string{"write", path}, nil
			code, err := Run(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			return code
		}
		if code := write("/new"); code != 0 {
			t.Errorf("write to a writable root: code %d", code)
		}
		opts.ReadOnly = true
		for path, want := range map[string]int{"/new2": 91, "/data/deep/x": 0, "/dev/shm/x": 0, "/etc/hosts": 91, "/proc/sys/kernel/domainname": 91} {
			if code := write(path); code != want {
				t.Errorf("write %s: code %d, want %d", path, code, want)
			}
		}
		if _, err := os.Stat(filepath.Join(writable, "x")); err != nil {
			t.Error(err)
		}
		if v := look(t, opts, "/etc/hosts"); v.Files["/etc/hosts"] != "fixed" {
			t.Errorf("mount over /etc/hosts: %q", v.Files["/etc/hosts"])
		}
	})
}

// run runs in the background; out are the lines the container prints.
func run(t *testing.T, ctx context.Context, opts Options) (out *bufio.Reader, wait func() (int, error)) {
	t.Helper()
	r, w := io.Pipe()
	opts.Stdout = w
	type result struct {
		code int
		err  error
	}
	done := make(chan result, 1)
	go func() {
		code, err := Run(ctx, opts)
		w.Close()
		done <- result{code, err}
	}()
	return bufio.NewReader(r), func() (int, error) {
		go func() { _, _ = io.Copy(io.Discard, r) }()
		got := <-done
		return got.code, got.err
	}
}

func expect(t *testing.T, out *bufio.Reader, want string) {
	t.Helper()
	line, err := out.ReadString('\n')
	if strings.TrimSpace(line) != want {
		t.Fatalf("read %q (%v), want %q", line, err, want)
	}
}

func TestSignalsAreForwarded(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, opts Options) {
		signals := make(chan os.Signal, 4)
		opts.Signals = signals
		opts.Args = []string{"wait"}
		out, wait := run(t, t.Context(), opts)
		expect(t, out, "waiting")
		signals <- unix.SIGWINCH // not forwarded
		signals <- unix.SIGUSR1
		expect(t, out, "got 10")
		if code, err := wait(); err != nil || code != 40 {
			t.Errorf("code %d: %v", code, err)
		}
	})
}

func TestEndOfContextStops(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, opts Options) {
		for name, c := range map[string]struct {
			args    []string
			signal  string
			timeout time.Duration
			says    string
			code    int
		}{
			"gracefully": {[]string{"wait"}, "SIGQUIT", 0, "got 3", 40},
			"by force":   {[]string{"deaf"}, "", time.Millisecond, "", 137},
			"with child": {[]string{"spawn", "stay"}, "SIGKILL", 0, "", 137},
		} {
			ctx, cancel := context.WithCancel(t.Context())
			o := opts
			o.Args, o.StopTimeout, o.Config.StopSignal = c.args, c.timeout, c.signal
			out, wait := run(t, ctx, o)
			expect(t, out, "waiting")
			cancel()
			if c.says != "" {
				expect(t, out, c.says)
			}
			if code, err := wait(); err != nil || code != c.code {
				t.Errorf("%s: code %d: %v", name, code, err)
			}
			checkNothingLeft(t, o)
		}
	})
}

func TestCancelledBeforeItStarts(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, opts Options) {
		ctx, cancel := context.WithCancel(t.Context())
		opts.Args = []string{"sleep"}
		opts.Created = func(time.Time) { cancel() }
		if code, err := Run(ctx, opts); !errors.Is(err, context.Canceled) || code != CodeNotStarted {
			t.Errorf("code %d: %v", code, err)
		}
	})
}

// TestCleanupAfterTheClientDied ends a container that nobody supervises.
func TestCleanupAfterTheClientDied(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, opts Options) {
		opts.Args = []string{"spawn", "stay"}
		out, wait := run(t, t.Context(), opts)
		expect(t, out, "waiting")
		for range 2 {
			if err := Cleanup(t.Context(), opts.Runtime, opts.ID, opts.Bundle); err != nil {
				t.Fatal(err)
			}
		}
		if code, err := wait(); err != nil || code != 137 {
			t.Errorf("code %d: %v", code, err)
		}
	})
}

// A daemon cleans up while the container's thaw run does the same, and removes the
// bundle: nothing of it comes back.
func TestCleanupByTwo(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, opts Options) {
		for range 10 {
			opts.Bundle = filepath.Join(t.TempDir(), "bundle")
			if err := os.Mkdir(opts.Bundle, 0o755); err != nil {
				t.Fatal(err)
			}
			opts.Args = []string{"spawn", "stay"}
			out, wait := run(t, t.Context(), opts)
			expect(t, out, "waiting")
			err := Cleanup(t.Context(), opts.Runtime, opts.ID, opts.Bundle)
			if err = errors.Join(err, os.RemoveAll(opts.Bundle)); err != nil {
				t.Fatal(err)
			}
			if code, err := wait(); err != nil || code != 137 {
				t.Errorf("code %d: %v", code, err)
			}
			if _, err := os.Lstat(opts.Bundle); err == nil {
				t.Fatal("the bundle is there again")
			}
		}
	})
}

// TestCleanupWithoutState: the runtime's state is lost, its processes are not.
func TestCleanupWithoutState(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, opts Options) {
		opts.Args = []string{"sleep"}
		started := make(chan struct{})
		opts.Started = func(time.Time) { close(started) }
		out, wait := run(t, t.Context(), opts)
		go func() { _, _ = io.Copy(io.Discard, out) }()
		select {
		case <-started:
		case <-time.After(time.Minute):
			t.Fatal("not started")
		}
		if err := os.RemoveAll(filepath.Join(opts.Bundle, "runtime")); err != nil {
			t.Fatal(err)
		}
		if err := Cleanup(t.Context(), opts.Runtime, opts.ID, opts.Bundle); err != nil {
			t.Fatal(err)
		}
		if code, err := wait(); err != nil || code != 137 {
			t.Errorf("code %d: %v", code, err)
		}
	})
}

func TestTwoAtOnce(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, opts Options) {
		var group sync.WaitGroup
		for i := range 4 {
			o := opts
			o.ID += "-" + strconv.Itoa(i)
			o.Bundle, o.Rootfs = t.TempDir(), rootfs(t)
			o.Args = []string{"exit", strconv.Itoa(10 + i)}
			group.Go(func() {
				if code, err := Run(t.Context(), o); err != nil || code != 10+i {
					t.Errorf("code %d, want %d: %v", code, 10+i, err)
				}
			})
		}
		group.Wait()
	})
}

func BenchmarkStart(b *testing.B) {
	testenv.NeedRuntime(b)
	for _, name := range runtimes {
		if _, err := FindRuntime(name); err != nil || name == "crun" && !crunCan() {
			continue
		}
		b.Run(name, func(b *testing.B) {
			root := rootfs(b)
			var created, started time.Duration
			for i := range b.N {
				begin := time.Now()
				opts := Options{
					ID: "bench-" + name + "-" + strconv.Itoa(i), Bundle: b.TempDir(), Rootfs: root, Runtime: name,
					Entrypoint: []string{"/bin/probe", "exit", "0"},
					Created:    func(at time.Time) { created += at.Sub(begin) },
					Started:    func(at time.Time) { started += at.Sub(begin) },
				}
				if code, err := Run(b.Context(), opts); err != nil || code != 0 {
					b.Fatalf("code %d: %v", code, err)
				}
			}
			b.ReportMetric(created.Seconds()*1000/float64(b.N), "created-ms/op")
			b.ReportMetric(started.Seconds()*1000/float64(b.N), "started-ms/op")
		})
	}
}

// A runtime that is prefetched is in the page cache afterwards; one that is
// there, and one that is not installed, are left alone.
func TestPrefetch(t *testing.T) {
	testenv.NeedRuntime(t)
	path, err := FindRuntime("")
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(t.TempDir(), filepath.Base(path))
	if err := os.WriteFile(copied, b, 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(copied, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
	size := int64(len(b))
	if mostlyCached(f, size) {
		t.Skip("the file system keeps the file cached")
	}
	f.Close()
	Prefetch(t.Context(), copied)
	g, err := os.Open(copied)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if !mostlyCached(g, size) {
		t.Error("it is not in the page cache")
	}
	Prefetch(t.Context(), filepath.Join(t.TempDir(), "none"))
}
