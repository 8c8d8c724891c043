package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/cloud"
	"github.com/thaw-project/thaw/internal/cloud/aws"
	"github.com/thaw-project/thaw/internal/cloud/kube"
	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/lab"
	"github.com/thaw-project/thaw/internal/mount"
	"github.com/thaw-project/thaw/internal/spans"
	"github.com/thaw-project/thaw/internal/spans/export"
	"github.com/thaw-project/thaw/internal/testenv"
)

// envBeThaw makes the test binary thaw itself. Daemons, keepers and everything
// else that is started inherits it, so that all of them are the code under test,
// with the race detector where the test has it.
const envBeThaw = "THAW_TEST_BE_THAW"

// patience bounds everything that has to happen at some time. It is no
// measurement: the machine may be busy.
const patience = 3 * time.Minute

// atOnce is how many tests run at once, unless -parallel says it: each has a node
// of its own, and waits most of the time. Tests that would mind the others' load, or
// that change the environment, are not parallel.
const atOnce = 6

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == spans.Program {
		if err := export.Serve(context.Background(), os.Stdin, export.Options{Strict: slices.Contains(os.Args[1:], spans.FlagStrict)}); err != nil {
			fmt.Fprintln(os.Stderr, "thaw-otel:", err)
			os.Exit(1)
		}
		return
	}
	if filepath.Base(os.Args[0]) == cloud.Program {
		if err := cloud.Serve(context.Background(), os.Stdin, os.Stdout, map[string]cloud.Handler{cloud.CallMetrics: aws.Metrics, cloud.CallECS: aws.ECS, cloud.CallKubernetes: kube.Pods}); err != nil {
			panic(err)
		}
		return
	}
	if os.Getenv(envBeThaw) != "" {
		if exe, err := os.Executable(); err == nil && strings.HasPrefix(filepath.Base(exe), programPrefix) {
			version = filepath.Base(exe)
		}
		main()
		return
	}
	if os.Getenv(envChaosReader) != "" {
		chaosReader()
		return
	}
	flag.Parse()
	if parallel := flag.Lookup("test.parallel").Value; parallel.String() == strconv.Itoa(runtime.GOMAXPROCS(0)) { // the default
		_ = parallel.Set(strconv.Itoa(max(atOnce, runtime.GOMAXPROCS(0))))
	}
	dir, err := os.MkdirTemp("", "thaw-shared")
	if err != nil {
		panic(err)
	}
	shared = dir
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// shared is a directory for what is made once for all tests.
var shared string

// node is a machine's worth of thaw: a state directory and all that is started
// for it. When the test ends it is stopped, and nothing of it may be left.
type node struct {
	testing.TB
	base string // all of the node's files are below it
	root string // state directory
	ran  *int   // containers
}

// newNode makes a node; config is added to its configuration file.
func newNode(t testing.TB, config ...string) *node {
	t.Helper()
	testenv.NeedRoot(t)
	testenv.NeedFanotify(t)
	base, err := os.MkdirTemp("", "thaw*n") // t.TempDir is too long for sockets; no name begins another
	if err != nil {
		t.Fatal(err)
	}
	n := &node{TB: t, base: base, root: filepath.Join(base, "r"), ran: new(int)}
	n.write("config.toml", strings.Join(config, "\n"))
	t.Cleanup(n.end)
	return n
}

// in is the node in a subtest.
func (n *node) in(t testing.TB) *node {
	m := *n
	m.TB = t
	return &m
}

func (n *node) path(name string) string { return filepath.Join(n.base, name) }

func (n *node) write(name, content string) string {
	n.Helper()
	if err := os.WriteFile(n.path(name), []byte(content), 0o644); err != nil {
		n.Fatal(err)
	}
	return n.path(name)
}

// mkdir makes a new directory of the node, such as a mount point.
func (n *node) mkdir() string {
	n.Helper()
	dir, err := os.MkdirTemp(n.base, "d")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		n.Fatal(err)
	}
	return dir
}

func (n *node) environ() []string {
	return append(os.Environ(), envBeThaw+"=1", "GORACE=atexit_sleep_ms=0", "HOME="+n.base, "DOCKER_CONFIG=", "THAW_ROOT=", "THAW_CONFIG="+n.path("config.toml"))
}

// command is a thaw command that is not started yet.
func (n *node) command(args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", append([]string{"--root", n.root}, args...)...)
	cmd.Args[0] = "thaw"
	cmd.Env = n.environ()
	cmd.Dir = n.base
	cmd.WaitDelay = patience
	return cmd
}

// result is what a command did.
type result struct {
	args           []string
	stdout, stderr string
	code           int
	took           time.Duration
}

func (r result) String() string {
	return fmt.Sprintf("thaw %s: exit code %d\nstdout: %s\nstderr: %s", strings.Join(r.args, " "), r.code, r.stdout, r.stderr)
}

// process is a command under way.
type process struct {
	node *node
	cmd  *exec.Cmd
	args []string
	out  *output
	err  *output
	done chan struct{}
	res  result
}

// start starts a command. It is killed at the end of the test at the latest.
func (n *node) start(args ...string) *process { n.Helper(); return n.startWith(nil, args...) }

// startWith is start with something to read.
func (n *node) startWith(stdin *os.File, args ...string) *process {
	n.Helper()
	cmd := n.command(args...)
	if stdin != nil {
		cmd.Stdin = stdin
	}
	p := &process{node: n, cmd: cmd, args: args, out: newOutput(), err: newOutput(), done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = p.out, p.err
	begun := time.Now()
	if err := cmd.Start(); err != nil {
		n.Fatal(err)
	}
	go func() {
		defer close(p.done)
		err := cmd.Wait()
		p.res = result{args, p.out.String(), p.err.String(), cmd.ProcessState.ExitCode(), time.Since(begun)}
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			p.res.stderr += "\n" + err.Error()
		}
	}()
	n.Cleanup(func() { cmd.Process.Kill(); <-p.done })
	return p
}

// wait returns when the command has ended.
func (p *process) wait() result {
	p.node.Helper()
	select {
	case <-p.done:
		return p.res
	case <-time.After(patience):
		p.cmd.Process.Kill()
		p.node.Fatalf("thaw %s hangs\nstdout: %s\nstderr: %s", strings.Join(p.args, " "), p.out, p.err)
	}
	return result{}
}

func (p *process) signal(sig unix.Signal) {
	p.node.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		p.node.Fatal(err)
	}
}

// prints waits until the command has printed text.
func (p *process) prints(text string) {
	p.node.Helper()
	if !p.out.wait(text, p.done) {
		p.node.Fatalf("thaw %s does not print %q\nstdout: %s\nstderr: %s", strings.Join(p.args, " "), text, p.out, p.err)
	}
}

// try runs a command to its end.
func (n *node) try(args ...string) result {
	n.Helper()
	return n.start(args...).wait()
}

// thaw runs a command that has to succeed, and returns what it printed.
func (n *node) thaw(args ...string) string {
	n.Helper()
	r := n.try(args...)
	if r.code != 0 {
		n.Fatal(r)
	}
	return r.stdout
}

// refuses runs a command that has to fail with a code and a text.
func (n *node) refuses(code int, text string, args ...string) result {
	n.Helper()
	r := n.try(args...)
	if r.code != code || !strings.Contains(r.stderr, text) {
		n.Errorf("want exit code %d and %q\n%v", code, text, r)
	}
	return r
}

// runArgs is a thaw run whose cgroup can be told from those of other tests.
func (n *node) runArgs(args ...string) []string {
	*n.ran++
	return append([]string{"run", "--name", filepath.Base(n.base) + "-" + strconv.Itoa(*n.ran)}, args...)
}

func (n *node) run(args ...string) result      { n.Helper(); return n.try(n.runArgs(args...)...) }
func (n *node) launch(args ...string) *process { n.Helper(); return n.start(n.runArgs(args...)...) }

// pushIndex puts an image's index into its registry, and nothing on the node.
func (n *node) pushIndex(ref string) {
	n.Helper()
	n.thaw("--root", filepath.Join(shared, "index"), "index", "build", "--push", ref)
}

// status asks the daemon, which has to be there.
func (n *node) status() api.Status {
	n.Helper()
	s, err := n.statusNow()
	if err != nil {
		n.Fatal(err)
	}
	return *s
}

func (n *node) statusNow() (*api.Status, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return api.NewClient(n.root).Status(ctx)
}

// daemon waits for a daemon other than those given, and returns its pid.
func (n *node) daemon(not ...int) int {
	n.Helper()
	pid := 0
	n.eventually("there is a daemon", func() bool {
		s, err := n.statusNow()
		if err != nil {
			return false
		}
		pid = s.Pid
		for _, old := range not {
			if pid == old {
				return false
			}
		}
		return true
	})
	return pid
}

func (n *node) layers() []api.Layer {
	n.Helper()
	var out struct{ Items []api.Layer }
	if err := json.Unmarshal([]byte(n.thaw("cache", "ls", "--json")), &out); err != nil {
		n.Fatal(err)
	}
	return out.Items
}

// eventually polls until ok.
func (n *node) eventually(what string, ok func() bool) {
	n.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			n.Fatalf("waited %v until %s", patience, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// logs waits until the daemon's log has texts: a line may come a moment after what
// it tells of was seen.
func (n *node) logs(texts ...string) {
	n.Helper()
	for _, text := range texts {
		n.eventually("the log says "+text, func() bool { return strings.Contains(n.log("daemon.log"), text) })
	}
}

// forgotten waits until nothing is mounted, and nothing is left of what was.
func (n *node) forgotten() {
	n.Helper()
	n.eventually("nothing is mounted", func() bool { return len(n.status().Mounts) == 0 })
	n.eventually("no directory of a mount is left", func() bool {
		records, _ := filepath.Glob(filepath.Join(n.root, "mounts", "*"))
		return len(records) == 0
	})
}

// freeze stops a process, and returns when it does nothing any more.
func (n *node) freeze(pid int) {
	n.Helper()
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		n.Fatal(err)
	}
	n.eventually("it is stopped", func() bool { return processState(pid) == 'T' })
}

// processState is what /proc says of a process, such as 'S', or 0 if there is none.
func processState(pid int) byte {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if at := bytes.LastIndexByte(b, ')'); err == nil && at >= 0 && at+2 < len(b) {
		return b[at+2]
	}
	return 0
}

// alive says that a process is there, and not only its exit code. Its first thread may
// have ended before others, who have its files and locks yet.
func alive(pid int) bool {
	switch processState(pid) {
	case 0, 'X':
		return false
	case 'Z':
		threads, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		return len(threads) > 1
	}
	return true
}

// log returns one of the node's logs, daemon.log or keeper.log.
func (n *node) log(name string) string {
	b, _ := os.ReadFile(filepath.Join(n.root, name))
	return string(b)
}

// pids are the processes that have to do with this node.
func (n *node) pids(mode string) []int {
	entries, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	var pids []int
	for _, e := range entries {
		b, err := os.ReadFile(e)
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(e)))
		args := strings.ReplaceAll(string(b), "\x00", " ")
		if err == nil && pid != os.Getpid() && strings.Contains(args, n.base) && strings.Contains(args, mode) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// leftovers lists what is there of a node besides its state directory.
func (n *node) leftovers() []string {
	var left []string
	for _, pid := range n.pids("") {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		left = append(left, fmt.Sprintf("process %d: %s", pid, bytes.ReplaceAll(b, []byte{0}, []byte(" "))))
	}
	mounts, err := mount.ListUnder(n.base)
	if err != nil {
		left = append(left, err.Error())
	}
	for _, m := range mounts {
		left = append(left, "mount "+m.Dir)
	}
	for _, pattern := range []string{"/sys/fs/cgroup/thaw/", "/sys/fs/cgroup/*/thaw/"} {
		cgroups, _ := filepath.Glob(pattern + filepath.Base(n.base) + "*")
		left = append(left, cgroups...)
	}
	records, _ := filepath.Glob(filepath.Join(n.root, "mounts", "*"))
	left = append(left, records...)
	filepath.WalkDir(n.root, func(path string, d os.DirEntry, err error) error {
		if err == nil && strings.HasPrefix(d.Name(), ".tmp-") {
			left = append(left, path)
		}
		return nil
	})
	return left
}

// end stops the daemon; then nothing may be left. What is left nevertheless is
// removed by force, since readers of a lost mount hang.
func (n *node) end() {
	n.stop()
	deadline := time.Now().Add(patience)
	left := n.leftovers()
	for len(left) > 0 && time.Now().Before(deadline) {
		time.Sleep(20 * time.Millisecond)
		left = n.leftovers()
	}
	if len(left) > 0 {
		n.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
	for _, pid := range n.pids("") {
		unix.Kill(pid, unix.SIGKILL)
	}
	mounts, _ := mount.ListUnder(n.base)
	for i := len(mounts) - 1; i >= 0; i-- {
		unix.Unmount(mounts[i].Dir, unix.MNT_DETACH)
	}
	for _, name := range []string{"daemon.log", "keeper.log"} {
		text := n.log(name)
		for _, bad := range []string{"DATA RACE", "panic:", "fatal error:"} {
			if strings.Contains(text, bad) {
				n.Errorf("%s in %s", bad, name)
			}
		}
		if n.Failed() {
			n.Logf("%s:\n%s", name, text[max(0, len(text)-8000):])
		}
	}
	if err := os.RemoveAll(n.base); err != nil {
		n.Error(err)
	}
}

// stop ends the daemon and takes away what is mounted.
func (n *node) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for ctx.Err() == nil && len(n.pids(" daemon ")) > 0 { // it may not answer yet
		cmd := n.command("daemon", "stop", "--force")
		stop := exec.CommandContext(ctx, cmd.Path, cmd.Args[1:]...)
		stop.Args[0], stop.Env, stop.WaitDelay = "thaw", cmd.Env, patience
		before := n.pids(" daemon ")
		if out, err := stop.CombinedOutput(); err != nil {
			if slices.ContainsFunc(before, alive) {
				n.Errorf("stop daemon: %v: %s", err, out)
			} else { // the test has killed it
				n.Logf("stop daemon: %v: %s", err, out)
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// within runs f, which may hang if thaw does.
func (n *node) within(d time.Duration, f func() error) {
	n.Helper()
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		if err != nil {
			n.Error(err)
		}
	case <-time.After(d):
		n.Fatalf("hangs for %v", d)
	}
}

// newLab serves a layout until the end of the test.
func newLab(t testing.TB, layout, network string) *lab.Server {
	t.Helper()
	shape, err := lab.Profile(network)
	if err != nil {
		t.Fatal(err)
	}
	s, err := lab.New(lab.Options{Dir: layout, Network: shape})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func setFaults(t testing.TB, s *lab.Server, texts ...string) {
	t.Helper()
	var faults []lab.Fault
	for _, text := range texts {
		f, err := lab.ParseFault(text)
		if err != nil {
			t.Fatal(err)
		}
		faults = append(faults, f)
	}
	if err := s.SetFaults(faults); err != nil {
		t.Fatal(err)
	}
}
