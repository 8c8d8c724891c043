package fanotify

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/erofs"
	"github.com/thaw-project/thaw/internal/mount"
	"github.com/thaw-project/thaw/internal/mount/keeper"
	"github.com/thaw-project/thaw/internal/mount/mounttest"
	"github.com/thaw-project/thaw/internal/testenv"
)

// hangAfter is when a test that waits for something calls it a hang.
const hangAfter = 2 * time.Minute

// node is a directory with a keeper and, most of the time, a daemon.
type node struct {
	dir      string
	restart  []string
	keeper   *os.Process
	daemons  chan daemonConn
	listener net.Listener
	first    *exec.Cmd // the daemon that the test started itself
	pid      atomic.Int64
}

type daemonConn struct {
	pid  int
	conn net.Conn
}

// newNode starts a keeper, which starts daemons again when restart is set, and the first daemon.
func newNode(t *testing.T, grace time.Duration, restart bool) *node {
	t.Helper()
	testenv.NeedFanotify(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	n := &node{dir: t.TempDir(), daemons: make(chan daemonConn, 100)}
	n.restart = []string{"/usr/bin/env", modeEnv + "=daemon", self, n.dir}
	n.makeFiles(t)
	if n.listener, err = net.Listen("unix", filepath.Join(n.dir, "test.sock")); err != nil {
		t.Fatal(err)
	}
	go n.accept()
	var command []string
	if restart {
		command = n.restart
	}
	n.keeper, err = keeper.Start(n.socket(), filepath.Join(n.dir, "log"), keeperCommand(n.socket(), grace, command...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.stop(t) })
	n.startDaemon(t)
	return n
}

func (n *node) socket() string { return filepath.Join(n.dir, "keeper.sock") }
func (n *node) file() string   { return filepath.Join(n.dir, "root", "f") }

func (n *node) makeFiles(t *testing.T) {
	t.Helper()
	file := &erofs.Inode{Mode: unix.S_IFREG | 0o644, SizeBytes: killFileBytes, Extents: []erofs.Extent{{Length: killFileBytes, Device: 1, OffsetDevice: 512}}}
	metadata, err := erofs.Write(
		&erofs.Inode{Mode: unix.S_IFDIR | 0o755, Children: []erofs.Dirent{{Name: "f", Inode: file}}},
		[]erofs.Device{{Tag: "layer", SizeBytes: killLayerBytes}})
	if err != nil {
		t.Fatal(err)
	}
	layer, err := os.Create(filepath.Join(n.dir, "layer"))
	if err == nil {
		err = errors.Join(layer.Truncate(killLayerBytes), layer.Close(),
			os.WriteFile(filepath.Join(n.dir, "metadata"), metadata, 0o600), os.Mkdir(filepath.Join(n.dir, "root"), 0o755))
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (n *node) accept() {
	for {
		conn, err := n.listener.Accept()
		if err != nil {
			close(n.daemons)
			return
		}
		line, _ := bufio.NewReader(conn).ReadString('\n')
		if pid, err := strconv.Atoi(strings.TrimSpace(line)); err == nil {
			n.pid.Store(int64(pid))
			n.daemons <- daemonConn{pid, conn}
		}
	}
}

func (n *node) startDaemon(t *testing.T) {
	t.Helper()
	log, err := os.OpenFile(filepath.Join(n.dir, "log"), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	n.first = exec.Command(n.restart[0], n.restart[1:]...)
	n.first.Stdout, n.first.Stderr = log, log
	if err := n.first.Start(); err != nil {
		t.Fatal(err)
	}
}

// next waits for a daemon that is ready.
func (n *node) next(t *testing.T) daemonConn {
	t.Helper()
	select {
	case d := <-n.daemons:
		return d
	case <-time.After(hangAfter):
		t.Fatal("no daemon came")
		return daemonConn{}
	}
}

func (n *node) kill(t *testing.T, d daemonConn) {
	t.Helper()
	if err := unix.Kill(d.pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	d.conn.Close()
	if n.first != nil && n.first.Process.Pid == d.pid {
		_ = n.first.Wait()
		n.first = nil
	}
}

// close tells the last daemon to close, and waits until it and the keeper are gone.
func (n *node) close(t *testing.T, d daemonConn) {
	t.Helper()
	if _, err := fmt.Fprintln(d.conn, "close"); err != nil {
		t.Error(err)
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = n.keeper.Wait()
	}()
	select {
	case <-gone:
	case <-time.After(hangAfter):
		t.Error("keeper did not leave")
	}
}

// stop leaves nothing behind, whatever state the test ended in: the keeper goes first, so that it starts no other daemon, then
// the daemon; with them goes the group, which lets go of all readers.
func (n *node) stop(t *testing.T) {
	_ = n.keeper.Kill()
	_, _ = n.keeper.Wait()
	n.listener.Close()
	if pid := int(n.pid.Load()); pid > 0 {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	if n.first != nil {
		_ = n.first.Process.Kill()
		_ = n.first.Wait()
	}
	left, err := mount.ListUnder(n.dir)
	if err != nil || len(left) > 0 {
		t.Errorf("still mounted: %v, %v", left, err)
		for _, info := range left {
			_ = unix.Unmount(info.Dir, unix.MNT_DETACH)
		}
	}
	if t.Failed() {
		log, _ := os.ReadFile(filepath.Join(n.dir, "log"))
		t.Logf("log:\n%s", log[max(0, len(log)-20_000):])
	}
}

// readers verify random parts of the node's file until they are stopped.
type readers struct {
	stop                       atomic.Bool
	done                       sync.WaitGroup
	ticks                      chan struct{} // one for each read, for whoever listens
	reads, zeros, wrong, fails atomic.Int64
	firstError                 atomic.Pointer[string]
}

func (r *readers) failf(count *atomic.Int64, format string, args ...any) {
	count.Add(1)
	text := fmt.Sprintf(format, args...)
	r.firstError.CompareAndSwap(nil, &text)
}

func (r *readers) verify(got []byte, at int64) {
	want := make([]byte, len(got))
	mounttest.Fill(want, killSeed, at+512)
	if !bytes.Equal(got, want) {
		for i := range got {
			if got[i] != want[i] && bytes.Equal(got[i:min(i+8, len(got))], make([]byte, min(8, len(got)-i))) {
				r.failf(&r.zeros, "zeros at %d", at+int64(i))
				return
			}
		}
		r.failf(&r.wrong, "wrong bytes in %d at %d", len(got), at)
	}
	r.reads.Add(1)
	select {
	case r.ticks <- struct{}{}:
	default:
	}
}

// pread reads random pages or runs of pages, with or without read-ahead, past the page cache.
func (r *readers) pread(path string, seed uint64, sizeBytes, advice int) {
	f, err := os.Open(path)
	if err != nil {
		r.failf(&r.fails, "open: %v", err)
		return
	}
	defer f.Close()
	_ = unix.Fadvise(int(f.Fd()), 0, 0, advice)
	random := rand.New(rand.NewPCG(seed, 1))
	p := make([]byte, sizeBytes)
	for !r.stop.Load() {
		at := random.Int64N(killFileBytes-int64(sizeBytes)) &^ 4095
		_ = unix.Fadvise(int(f.Fd()), at, int64(sizeBytes), unix.FADV_DONTNEED)
		if _, err := f.ReadAt(p, at); err != nil {
			r.failf(&r.fails, "read at %d: %v", at, err)
			continue
		}
		r.verify(p, at)
	}
}

// mmap faults random ranges in. The faults are taken in madvise(2), because one in Go code would hold up the whole test.
func (r *readers) mmap(path string, seed uint64, sizeBytes int) {
	f, err := os.Open(path)
	if err != nil {
		r.failf(&r.fails, "open: %v", err)
		return
	}
	defer f.Close()
	random := rand.New(rand.NewPCG(seed, 2))
	for !r.stop.Load() {
		at := random.Int64N(killFileBytes-int64(sizeBytes)) &^ 4095
		_ = unix.Fadvise(int(f.Fd()), at, int64(sizeBytes), unix.FADV_DONTNEED)
		b, err := unix.Mmap(int(f.Fd()), at, sizeBytes, unix.PROT_READ, unix.MAP_PRIVATE)
		if err != nil {
			r.failf(&r.fails, "mmap at %d: %v", at, err)
			continue
		}
		if err = unix.Madvise(b, unix.MADV_POPULATE_READ); err != nil {
			r.failf(&r.fails, "fault at %d: %v", at, err)
		} else {
			r.verify(b, at)
		}
		_ = unix.Munmap(b)
	}
}

func startReaders(path string) *readers {
	r := &readers{ticks: make(chan struct{})}
	for i := range uint64(6) {
		r.done.Go(func() { r.pread(path, i, 4096, unix.FADV_RANDOM) })
	}
	for i := range uint64(6) {
		r.done.Go(func() { r.pread(path, 10+i, 64<<10, unix.FADV_NORMAL) })
	}
	for i := range uint64(4) {
		r.done.Go(func() { r.mmap(path, 20+i, 32<<10) })
	}
	return r
}

// progress waits for a number of verified reads.
func (r *readers) progress(t *testing.T, reads int) {
	t.Helper()
	timeout := time.After(hangAfter)
	for range reads {
		select {
		case <-r.ticks:
		case <-timeout:
			t.Fatal("readers hang")
		}
	}
}

func (r *readers) finish(t *testing.T) {
	t.Helper()
	r.stop.Store(true)
	gone := make(chan struct{})
	go func() { r.done.Wait(); close(gone) }()
	select {
	case <-gone:
	case <-time.After(hangAfter):
		t.Fatal("readers hang")
	}
	t.Logf("%d reads: %d zeros, %d wrong, %d errors", r.reads.Load(), r.zeros.Load(), r.wrong.Load(), r.fails.Load())
	if first := r.firstError.Load(); first != nil {
		t.Errorf("%s", *first)
	}
}

// TestKill kills the daemon, again and again, while 16 readers verify what they read: they wait, and never see an error
// or a wrong byte.
func TestKill(t *testing.T) {
	kills := 40
	if testing.Short() {
		kills = 10
	}
	n := newNode(t, time.Minute, true)
	d := n.next(t)
	r := startReaders(n.file())
	defer r.stop.Store(true)
	random := rand.New(rand.NewPCG(1, 1))
	for range kills {
		// Half of the daemons die while readers still wait for what the last one left.
		if random.IntN(2) == 0 {
			r.progress(t, 1+random.IntN(5))
		} else {
			r.progress(t, 20+random.IntN(200))
		}
		n.kill(t, d)
		d = n.next(t)
	}
	r.progress(t, 100)
	r.finish(t)
	n.close(t, d)
}

// TestGrace lets the grace time pass: readers get EIO, not zeros, and a later daemon heals them.
func TestGrace(t *testing.T) {
	n := newNode(t, 300*time.Millisecond, false)
	d := n.next(t)
	read := func(at int64) ([]byte, error) {
		f, err := os.Open(n.file())
		if err != nil {
			return nil, err
		}
		defer f.Close()
		p := make([]byte, 8192)
		_, err = f.ReadAt(p, at)
		return p, err
	}
	r := &readers{}
	check := func(at int64) {
		t.Helper()
		p, err := read(at)
		if err != nil {
			t.Errorf("read at %d: %v", at, err)
			return
		}
		r.verify(p, at)
	}
	check(0)
	n.kill(t, d)
	for _, at := range []int64{1 << 20, 5 << 20} {
		if _, err := read(at); !errors.Is(err, unix.EIO) {
			t.Errorf("read at %d after the grace time: %v, want EIO", at, err)
		}
	}
	n.startDaemon(t)
	d = n.next(t)
	check(1 << 20)
	check(5 << 20)
	check(100 << 20)
	if first := r.firstError.Load(); first != nil {
		t.Error(*first)
	}
	for deadline := time.Now().Add(hangAfter); ; time.Sleep(10 * time.Millisecond) {
		log, err := os.ReadFile(filepath.Join(n.dir, "log"))
		if err == nil && bytes.Contains(log, []byte("denied a read: no daemon")) && bytes.Contains(log, []byte(killBlob)) {
			break
		}
		if time.Now().After(deadline) {
			t.Errorf("keeper's log does not name the layer: %v\n%s", err, log)
			break
		}
	}
	n.close(t, d)
	if err := n.first.Wait(); err != nil {
		t.Errorf("daemon: %v", err)
	}
	n.first = nil
}

// TestHandover replaces the daemon in good order, under readers.
func TestHandover(t *testing.T) {
	n := newNode(t, time.Minute, false)
	d := n.next(t)
	r := startReaders(n.file())
	defer r.stop.Store(true)
	for range 5 {
		r.progress(t, 50)
		if _, err := fmt.Fprintln(d.conn, "handover"); err != nil {
			t.Fatal(err)
		}
		if err := n.first.Wait(); err != nil {
			t.Errorf("daemon: %v", err)
		}
		n.startDaemon(t)
		d = n.next(t)
	}
	r.progress(t, 50)
	r.finish(t)
	n.close(t, d)
	_ = n.first.Wait()
	n.first = nil
}
