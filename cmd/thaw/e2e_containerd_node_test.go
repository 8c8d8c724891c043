package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/mount"
	"github.com/thaw-project/thaw/internal/testenv"
)

// cluster is a node with a containerd of its own that has thaw as a snapshotter.
type cluster struct {
	*node
	series   string // of containerd
	programs string
	pause    string // reference of the sandbox image
	config   string // of containerd; empty: containerdConfig

	containerd *exec.Cmd
	ended      chan struct{} // containerd has
	log        *output       // of all its runs
}

// clusters counts them.
var clusters atomic.Int32

// newCluster starts both daemons. config is added to thaw's; settings of its table
// containerd have the table's name.
func newCluster(t testing.TB, series string, config ...string) *cluster {
	t.Helper()
	testenv.NeedRuntime(t)
	programs := testenv.NeedContainerd(t, series)
	n := newNode(t)
	var table []string
	config = slices.DeleteFunc(config, func(line string) bool {
		setting, ok := strings.CutPrefix(line, "containerd.")
		if ok {
			table = append(table, setting)
		}
		return ok
	})
	config = append(config, "[containerd]", fmt.Sprintf("listen = %q", n.path("t.sock")), fmt.Sprintf("address = %q", n.path("c.sock")),
		fmt.Sprintf("image-service = %q", n.path("i.sock")))
	n.write("config.toml", strings.Join(append(config, table...), "\n"))
	c := &cluster{node: n, series: series, programs: programs, log: newOutput(), pause: newPause(n)}
	c.writeCNI()
	c.startThaw()
	c.startContainerd()
	n.Cleanup(c.end)
	return c
}

func (c *cluster) startThaw() {
	c.Helper()
	c.start("daemon", "--grace=60s")
	c.eventually("thaw's snapshotter listens", func() bool { return listens(c.path("t.sock")) })
}

// killThaw kills the daemon, and its keeper too if asked to, and sees to it that there is
// another, whether the keeper starts it or, as a service manager does, we.
func (c *cluster) killThaw(keeper bool) {
	c.Helper()
	old := c.status().Pid
	unix.Kill(old, unix.SIGKILL)
	if keeper {
		for _, pid := range c.pids(" keeper ") {
			unix.Kill(pid, unix.SIGKILL)
		}
	}
	var ours *process
	c.eventually("there is another daemon", func() bool {
		s, err := c.statusNow()
		if err == nil && s.Pid != old {
			return listens(c.path("t.sock"))
		}
		if ours == nil && (keeper || len(c.pids(" keeper ")) == 0) || ours != nil && ours.ended() {
			ours = c.start("daemon", "--grace=60s")
		}
		return false
	})
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// startContainerd runs containerd, and waits until it answers.
func (c *cluster) startContainerd() {
	c.Helper()
	c.write("containerd.toml", cmp.Or(c.config, c.containerdConfig()))
	cmd := exec.Command(filepath.Join(c.programs, "containerd"), "--config", c.path("containerd.toml"), "--log-level", "warn")
	cmd.Env = append(os.Environ(), "PATH="+c.programs+":"+os.Getenv("PATH"))
	cmd.Stdout, cmd.Stderr = c.log, c.log
	cmd.WaitDelay = time.Second // shims keep its stderr
	if err := cmd.Start(); err != nil {
		c.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		cmd.Wait()
	}()
	c.containerd, c.ended = cmd, ended
	c.eventually("containerd answers", func() bool {
		select {
		case <-ended:
			c.Fatalf("containerd ends: %s", c.log)
		default:
		}
		_, err := c.tryCtr("version")
		return err == nil
	})
}

func (c *cluster) stopContainerd(sig unix.Signal) {
	c.Helper()
	c.containerd.Process.Signal(sig)
	<-c.ended
}

func listens(socket string) bool {
	conn, err := net.Dial("unix", socket)
	if err == nil {
		conn.Close()
	}
	return err == nil
}

// containerdConfig is for the series. CRI runs pods on thaw.
func (c *cluster) containerdConfig() string {
	cni := testenv.NeedCNI(c)
	replace := strings.NewReplacer("@", c.base, "CNI", cni)
	head := `
root = '@/c/root'
state = '@/c/state'
[grpc]
  address = '@/c.sock'
[ttrpc]
  address = '@/c.sock.ttrpc'
[proxy_plugins.thaw]
  type = 'snapshot'
  address = '@/t.sock'
  [proxy_plugins.thaw.exports]
    root = '@/r'
    enable_remote_snapshot_annotations = 'true'
`
	if c.series == "1.7" {
		return replace.Replace("version = 2\ndisabled_plugins = ['io.containerd.nri.v1.nri']" + head + `
[plugins.'io.containerd.grpc.v1.cri']
  sandbox_image = '` + c.pause + `'
  restrict_oom_score_adj = true
  [plugins.'io.containerd.grpc.v1.cri'.containerd]
    snapshotter = 'thaw'
    disable_snapshot_annotations = false
  [plugins.'io.containerd.grpc.v1.cri'.cni]
    bin_dir = 'CNI'
    conf_dir = '@/cni'
`)
	}
	return replace.Replace("version = 3\ndisabled_plugins = ['io.containerd.nri.v1.nri']" + head + `
[plugins.'io.containerd.transfer.v1.local']
  [[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
    platform = 'linux/amd64'
    snapshotter = 'thaw'
[plugins.'io.containerd.cri.v1.images']
  snapshotter = 'thaw'
  disable_snapshot_annotations = false
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = '` + c.pause + `'
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ['CNI']
  conf_dir = '@/cni'
`)
}

// tryCtr runs containerd's own client. Containers are runc's in a directory of this
// containerd: runc's own is the machine's, where others have the same names.
func (c *cluster) tryCtr(args ...string) (string, error) {
	if args[0] == "run" {
		args = slices.Insert(slices.Clone(args), 1, "--runc-root", c.path("runc"))
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(c.programs, "ctr"), append([]string{"-a", c.path("c.sock")}, args...)...)
	cmd.WaitDelay = time.Second
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("ctr %s: %w: %s", strings.Join(args, " "), errors.Join(err, ctx.Err()), &stderr)
	}
	return out.String(), nil
}

func (c *cluster) ctr(args ...string) string {
	c.Helper()
	out, err := c.tryCtr(args...)
	if err != nil {
		c.Fatal(err)
	}
	return out
}

// pull has ctr pull an image for thaw. For some seconds after thaw was killed containerd does
// not try to connect to it again.
func (c *cluster) pull(ref string) {
	c.Helper()
	var err error
	c.eventually("containerd pulls "+ref, func() bool {
		_, err = c.tryCtr("images", "pull", "--plain-http", "--snapshotter", "thaw", ref)
		if err != nil && !strings.Contains(err.Error(), "connection refused") {
			c.Fatal(err)
		}
		return err == nil
	})
}

// run runs a command in a container of an image, and returns what it printed.
func (c *cluster) runIn(ref, id string, command ...string) string {
	c.Helper()
	return c.ctr(append([]string{"run", "--rm", "--snapshotter", "thaw", ref, id}, command...)...)
}

// words are the fields of each line but the first.
func words(table string) [][]string {
	var all [][]string
	for i, line := range strings.Split(strings.TrimSpace(table), "\n") {
		if i > 0 && line != "" {
			all = append(all, strings.Fields(line))
		}
	}
	return all
}

func firsts(table string) []string {
	var all []string
	for _, w := range words(table) {
		all = append(all, w[0])
	}
	return all
}

// usedNamespaces are those that tests use.
var usedNamespaces = []string{"default", "k8s.io"}

// removeAll removes all tasks, containers and images; the error is what could not be.
func (c *cluster) removeAll() error {
	var errs []error
	for _, ns := range usedNamespaces {
		ctr := func(args ...string) string {
			out, err := c.tryCtr(append([]string{"-n", ns}, args...)...)
			if err != nil && !strings.Contains(err.Error(), "not found") {
				errs = append(errs, err)
			}
			return out
		}
		for _, id := range firsts(ctr("tasks", "ls")) {
			ctr("tasks", "rm", "-f", id)
		}
		for _, id := range firsts(ctr("containers", "ls")) {
			ctr("containers", "rm", id)
		}
		for _, ref := range firsts(ctr("images", "ls")) {
			ctr("images", "rm", "--sync", ref)
		}
		for _, lease := range firsts(ctr("leases", "ls")) {
			ctr("leases", "rm", "--sync", lease)
		}
	}
	return errors.Join(errs...)
}

// snapshots lists all of thaw's, as containerd says.
func (c *cluster) snapshots() ([]string, error) {
	var all []string
	for _, ns := range usedNamespaces {
		out, err := c.tryCtr("-n", ns, "snapshots", "--snapshotter", "thaw", "ls")
		if err != nil {
			return nil, err
		}
		all = append(all, firsts(out)...)
	}
	return all, nil
}

// empty says what is still there after all was removed: snapshots, mounts,
// records, directories, layers that are held.
func (c *cluster) empty() (left []string) {
	all, err := c.snapshots()
	if err != nil {
		left = append(left, err.Error())
	}
	for _, s := range all {
		left = append(left, "snapshot "+s)
	}
	mounts, err := mount.ListUnder(c.root)
	if err != nil {
		left = append(left, err.Error())
	}
	for _, m := range mounts {
		left = append(left, "mount "+m.Dir)
	}
	for _, pattern := range []string{"mounts/*", "snapshotter/snapshots/*", "images/*"} {
		found, _ := filepath.Glob(filepath.Join(c.root, pattern))
		left = append(left, found...)
	}
	st, err := c.statusNow()
	if err != nil {
		return append(left, err.Error())
	}
	// A layer may stay for a while, for anything to have the room that wants it, when
	// another container's mount namespace still has its image.
	if n := st.Cache.DiskBytes - st.Cache.EvictableBytes; n > 0 {
		left = append(left, fmt.Sprintf("%d bytes of layers that something needs", n))
	}
	return left
}

// end removes everything through containerd, and fails if something stays.
func (c *cluster) end() {
	if c.Failed() {
		c.Logf("snapshots, mounts: %v", c.empty())
	}
	if _, err := c.statusNow(); err != nil { // what a test started has ended with it
		c.startThaw()
	}
	c.check()
	c.removePods()
	if err := c.removeAll(); err != nil {
		c.Error(err)
	}
	c.gone()
	c.stopContainerd(unix.SIGTERM)
	c.endShims()
	if c.Failed() {
		text := c.log.String()
		c.Logf("containerd: %s", text[max(0, len(text)-8000):])
	}
}

// endShims waits for containerd's shims to end. One that containerd was killed while it
// started has nobody to end it.
func (c *cluster) endShims() {
	deadline := time.Now().Add(5 * time.Second)
	for len(c.pids("containerd-shim")) > 0 && time.Now().Before(deadline) {
		time.Sleep(20 * time.Millisecond)
	}
	for _, pid := range c.pids("containerd-shim") {
		c.Logf("shim %d is left by containerd", pid)
		unix.Kill(pid, unix.SIGKILL)
	}
	mounts, _ := mount.ListUnder(c.path("c"))
	for _, m := range mounts {
		unix.Unmount(m.Dir, unix.MNT_DETACH)
	}
}

// gone waits until nothing is left of what was removed. containerd collects garbage again
// when a snapshot was removed, and finds those that it was killed before it wrote them down.
func (c *cluster) gone() {
	c.Helper()
	deadline := time.Now().Add(patience)
	left := c.empty()
	for len(left) > 0 && time.Now().Before(deadline) {
		time.Sleep(50 * time.Millisecond)
		c.collect()
		left = c.empty()
	}
	if len(left) > 0 {
		c.Errorf("removed, but still there:\n%s", strings.Join(left, "\n"))
	}
}

// collect has containerd collect garbage.
func (c *cluster) collect() {
	c.tryCtr("snapshots", "--snapshotter", "thaw", "prepare", "collect")
	c.tryCtr("snapshots", "--snapshotter", "thaw", "rm", "collect")
	c.tryCtr("leases", "create", "--id", "collect")
	c.tryCtr("leases", "rm", "--sync", "collect")
}

// check compares what containerd, the kernel and thaw's state directory say.
func (c *cluster) check() {
	c.Helper()
	if problems := c.disagreements(); len(problems) > 0 {
		c.Errorf("containerd, mounts and state disagree:\n%s", strings.Join(problems, "\n"))
	}
}

func (c *cluster) disagreements() (problems []string) {
	s, err := c.statusNow()
	if err != nil {
		return []string{err.Error()}
	}
	mounted := map[string]bool{}
	mounts, err := mount.ListUnder(c.root)
	if err != nil {
		return []string{err.Error()}
	}
	for _, m := range mounts {
		if mounted[m.Dir] {
			problems = append(problems, "mounted twice: "+m.Dir)
		}
		mounted[m.Dir] = true
	}
	for _, m := range s.Mounts {
		if !mounted[m.Dir] {
			problems = append(problems, "not mounted: "+m.Dir)
		}
		delete(mounted, m.Dir)
	}
	for dir := range mounted {
		problems = append(problems, "mounted by nobody: "+dir)
	}
	records, _ := filepath.Glob(filepath.Join(c.root, "mounts", "*"))
	if len(records) != len(s.Mounts) {
		problems = append(problems, fmt.Sprintf("%d mounts, records %v", len(s.Mounts), records))
	}
	all, err := c.snapshots()
	if err != nil {
		problems = append(problems, err.Error())
	}
	if len(all) == 0 && len(s.Mounts) > 0 {
		problems = append(problems, fmt.Sprintf("%d mounts without a snapshot", len(s.Mounts)))
	}
	return problems
}

// diskBytes is what files below a directory take.
func diskBytes(dir string) (total int64) {
	filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // removed meanwhile
		}
		var st unix.Stat_t
		if unix.Lstat(path, &st) == nil {
			total += st.Blocks * 512
		}
		return nil
	})
	return total
}

// fallbacks are what thaw says of images that it could not have lazily.
func (c *cluster) fallbacks() string {
	b, _ := os.ReadFile(filepath.Join(c.root, "fallbacks.json"))
	return string(b)
}
