package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/testenv"
)

// manager is a service manager as far as a service sees it: sd_notify(3) with
// its store of descriptors, and the start with what is in the store.
type manager struct {
	node *node
	conn *net.UnixConn
	path string

	mu    sync.Mutex // guards what follows
	store map[string][]*os.File
	ready int // how often it was said
	pid   int
	gone  chan struct{} // closed when that process was reaped
}

func (n *node) manager() *manager {
	n.Helper()
	m := &manager{node: n, path: n.path("notify"), store: map[string][]*os.File{}}
	var err error
	if m.conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.path, Net: "unixgram"}); err != nil {
		n.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(m.listen)
	n.Cleanup(func() {
		m.conn.Close()
		wg.Wait()
		m.mu.Lock()
		defer m.mu.Unlock()
		for _, files := range m.store {
			for _, f := range files {
				f.Close()
			}
		}
	})
	return m
}

func (m *manager) listen() {
	b, oob := make([]byte, 64<<10), make([]byte, 4096)
	for {
		n, oobn, _, _, err := m.conn.ReadMsgUnix(b, oob)
		if err != nil {
			return
		}
		var fds []int
		control, _ := unix.ParseSocketControlMessage(oob[:oobn])
		for i := range control {
			got, _ := unix.ParseUnixRights(&control[i])
			fds = append(fds, got...)
		}
		m.notified(string(b[:n]), fds)
	}
}

func (m *manager) notified(text string, fds []int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	state := map[string]string{}
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		state[key] = value
	}
	name := state["FDNAME"]
	switch {
	case state["READY"] == "1":
		m.ready++
	case state["FDSTORE"] == "1" && len(fds) == 1 && state["FDPOLL"] == "0" && !strings.ContainsRune(name, ':'):
		m.store[name] = append(m.store[name], os.NewFile(uintptr(fds[0]), name))
		return
	case state["FDSTOREREMOVE"] == "1":
		for _, f := range m.store[name] {
			f.Close()
		}
		delete(m.store, name)
	case state["STOPPING"] != "1":
		m.node.Errorf("not understood: %q with %d descriptors", text, len(fds))
	}
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// start starts the service, with the store, and waits until it is ready.
func (m *manager) start() {
	m.node.Helper()
	cmd := m.node.command("daemon", "--idle-exit=0s", "--log-level=info")
	cmd.Args = append([]string{"sh", "-c", `LISTEN_PID=$$ exec "$@"`, "sh", "/proc/self/exe"}, cmd.Args[1:]...)
	exe, err := os.Executable()
	if err != nil {
		m.node.Fatal(err)
	}
	cmd.Args[4] = exe
	if cmd.Path, err = exec.LookPath("sh"); err != nil {
		m.node.Fatal(err)
	}
	log, err := os.OpenFile(filepath.Join(m.node.base, "service.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		m.node.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	m.mu.Lock()
	var names []string
	for name, files := range m.store {
		for _, f := range files {
			names, cmd.ExtraFiles = append(names, name), append(cmd.ExtraFiles, f)
		}
	}
	ready := m.ready
	m.mu.Unlock()
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+m.path)
	if len(names) > 0 {
		cmd.Env = append(cmd.Env, "LISTEN_FDS="+strconv.Itoa(len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	}
	if err := cmd.Start(); err != nil {
		m.node.Fatal(err)
	}
	m.pid = cmd.Process.Pid
	done := make(chan struct{})
	m.gone = done
	go func() { defer close(done); _ = cmd.Wait() }()
	m.node.Cleanup(func() { <-done })
	m.node.Cleanup(func() {
		if m.node.Failed() {
			b, _ := os.ReadFile(log.Name())
			m.node.Logf("service.log:\n%s", b)
		}
	})
	m.node.eventually("the service is ready", func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.ready > ready
	})
}

func (m *manager) names() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	kinds := map[string]int{}
	for name, files := range m.store {
		kind, _, _ := strings.Cut(name, "-")
		kinds[kind] += len(files)
	}
	return fmt.Sprint(kinds)
}

// TestServiceManagerHoldsDescriptors kills daemon and keeper at the same moment,
// which nothing but a third process that holds the descriptors can make good:
// readers wait for the next daemon, and what they read is right.
func TestServiceManagerHoldsDescriptors(t *testing.T) {
	t.Parallel()
	for mode, want := range map[string]string{"fanotify": "map[group:1 pending:1 sha256:3]", "fuse": "map[fuse:3 pending:1]"} {
		t.Run(mode, func(t *testing.T) {
			layout, wantTree := corpus(t, "nginx")
			n := newNode(t, `mount = "`+mode+`"`)
			ref := newLab(t, layout, "cloud").Addr() + "/nginx"
			n.pushIndex(ref)
			m := n.manager()
			m.start()
			dir := n.mkdir()
			n.thaw("mount", "--background=1MB", ref, dir)
			n.eventually("the manager has everything", func() bool { return m.names() == want })
			r := n.readersOf(wantTree, dir, 4)
			for range 3 {
				n.eventually("files are read", func() bool { return r.reads.Load() > 0 })
				keepers := n.keepers()
				n.freeze(m.pid) // else it would start another keeper
				n.kill(append(keepers, m.pid)...)
				<-m.gone // as a service manager waits: its lock is free, too
				n.eventually("the keeper is gone", func() bool { return !alive(keepers[0]) })
				time.Sleep(100 * time.Millisecond) // readers come
				r.reads.Store(0)
				m.start()
			}
			if s := n.status(); len(s.Mounts) != 1 {
				t.Errorf("mounts %+v", s.Mounts)
			}
			// The keeper does not start daemons here: that is the manager's.
			n.kill(m.pid)
			<-m.gone
			m.start()
			// The program changes, the pid does not.
			program := n.program("2")
			if out, err := n.as(program, "daemon", "--upgrade"); err != nil || n.status().Pid != m.pid {
				t.Errorf("%v: %s", err, out)
			}
			r.end()
			n.sameImage(wantTree, dir)
			n.thaw("umount", dir)
			n.thaw("daemon", "stop")
			n.eventually("the manager has nothing", func() bool { return m.names() == "map[]" })
			n.eventually("the log says that the service manager had kept it", func() bool {
				b, err := os.ReadFile(n.path("service.log"))
				return err == nil && strings.Contains(string(b), "the service manager had kept")
			})
		})
	}
}

// keepers waits until there is one keeper, and returns its pid.
func (n *node) keepers() (pids []int) {
	n.Helper()
	n.eventually("there is one keeper", func() bool { pids = n.pids(" keeper "); return len(pids) == 1 })
	return pids
}

// TestUnits has systemd judge the units that are shipped.
func TestUnits(t *testing.T) {
	testenv.NeedTool(t, "systemd-analyze")
	b, err := os.ReadFile("../../deploy/systemd/thaw.service")
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "thaw")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	unit := filepath.Join(t.TempDir(), "thaw.service")
	if err := os.WriteFile(unit, []byte(strings.ReplaceAll(string(b), "/usr/local/bin/thaw", program)), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("systemd-analyze", "verify", "--man=no", unit).CombinedOutput()
	text := string(out)
	for line := range strings.Lines(text) {
		if strings.Contains(line, "thaw.service") && !strings.Contains(line, "FileDescriptorStorePreserve") { // since 254
			t.Error(line)
		}
	}
	if err != nil {
		t.Errorf("%v: %s", err, text)
	}
}
