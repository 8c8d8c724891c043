package keeper

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/mount/fanotify/group"
	"github.com/thaw-project/thaw/internal/testenv"
)

const modeEnv = "THAW_TEST_MODE"

func TestMain(m *testing.M) {
	if os.Getenv(modeEnv) == "keeper" {
		log := slog.New(slog.NewTextHandler(os.Stderr, nil))
		Prepare(log)
		if err := Run(context.Background(), Options{Socket: os.Args[1], Log: log}); err != nil {
			log.Error("keeper", "err", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	testenv.Main(m)
}

func clientOptions(t *testing.T) ClientOptions {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	socket := filepath.Join(dir, "keeper.sock")
	return ClientOptions{
		Socket: socket, Command: []string{"/usr/bin/env", modeEnv + "=keeper", self, socket}, LogPath: filepath.Join(dir, "log"),
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
}

func connect(t *testing.T, opts ClientOptions) *Client {
	t.Helper()
	c, err := Connect(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func tempFile(t *testing.T, name string) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func inode(t *testing.T, f *os.File) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(f.Name(), &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// checkLayers compares what a client holds with what it should.
func checkLayers(t *testing.T, c *Client, want map[digest.Digest]*os.File) {
	t.Helper()
	files, err := c.Layers()
	if err != nil {
		t.Fatal(err)
	}
	got, wanted := map[digest.Digest]uint64{}, map[digest.Digest]uint64{}
	for blob, f := range files {
		info, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		got[blob] = info.Sys().(*syscall.Stat_t).Ino
		f.Close()
	}
	for blob, f := range want {
		wanted[blob] = inode(t, f)
	}
	if diff := cmp.Diff(wanted, got); diff != "" {
		t.Errorf("layers (-want +got):\n%s", diff)
	}
}

// TestDescriptorsSurvive gives a keeper a group and layers, vanishes, and gets them back.
func TestDescriptorsSurvive(t *testing.T) {
	testenv.NeedFanotify(t)
	opts := clientOptions(t)
	first := connect(t, opts)
	if first.Inherited() {
		t.Error("a new keeper has a group")
	}
	if g, err := first.Group(); g != nil || err != nil {
		t.Errorf("a new keeper's group: %v, %v", g, err)
	}
	g, err := group.New()
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if err := first.SetGroup(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	layers := map[digest.Digest]*os.File{}
	for _, name := range []string{"a", "b", "c"} {
		layers[digest.FromString(name)] = tempFile(t, name)
	}
	if err := first.Hold(t.Context(), layers); err != nil {
		t.Fatal(err)
	}
	first.Drop(digest.FromString("b"))
	delete(layers, digest.FromString("b"))
	checkLayers(t, first, layers)
	first.Close()
	t.Cleanup(func() { _, _ = first.process.Wait() })

	opts.Command = nil // it must be there
	second := connect(t, opts)
	if !second.Inherited() {
		t.Error("the group is lost")
	}
	if back, err := second.Group(); err != nil || back == nil {
		t.Errorf("group: %v", err)
	} else {
		back.Close()
	}
	checkLayers(t, second, layers)
	for blob := range layers {
		second.Drop(blob)
	}
	second.Goodbye()
	if _, err := Connect(t.Context(), opts); err == nil {
		t.Error("the keeper did not leave")
	}
}

// TestStaleEventsAreReserved has a daemon die with an event in its table: the next one gets the number, occupied.
func TestStaleEventsAreReserved(t *testing.T) {
	opts := clientOptions(t)
	first := connect(t, opts)
	if err := first.Hold(t.Context(), map[digest.Digest]*os.File{"layer": tempFile(t, "a")}); err != nil {
		t.Fatal(err)
	}
	first.Pending().Put(1000, 1, 2, 3, 4)
	first.Pending().Put(1001, 1, 2, 3, 4)
	first.Pending().Clear(1001)
	first.Close()
	t.Cleanup(func() { _, _ = first.process.Wait() })
	second := connect(t, opts)
	stale := second.TakeStale()
	if diff := cmp.Diff([]group.Stale{{FD: 1000, Dev: 1, Ino: 2, Off: 3, N: 4}}, stale); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	for _, s := range stale {
		if err := unix.Close(int(s.FD)); err != nil {
			t.Errorf("number %d is not occupied: %v", s.FD, err)
		}
	}
	second.Drop("layer")
	second.Goodbye()
}

// TestKeeperKilled kills the keeper: the client starts another, which has everything.
func TestKeeperKilled(t *testing.T) {
	opts := clientOptions(t)
	c := connect(t, opts)
	layers := map[digest.Digest]*os.File{}
	for i := range 3 {
		blob := digest.FromString(string(rune('a' + i)))
		layers[blob] = tempFile(t, "layer")
		if err := c.process.Kill(); err != nil {
			t.Fatal(err)
		}
		// Hold is not done before a keeper has it, be it this one or the next.
		if err := c.Hold(t.Context(), map[digest.Digest]*os.File{blob: layers[blob]}); err != nil {
			t.Fatal(err)
		}
	}
	process := c.process
	c.Close()
	t.Cleanup(func() { _, _ = process.Wait() })
	opts.Command = nil
	next := connect(t, opts)
	checkLayers(t, next, layers)
	for blob := range layers {
		next.Drop(blob)
	}
	next.Goodbye()
}

// run runs a keeper in this process.
func run(t *testing.T, opts Options) (stop func() error) {
	t.Helper()
	listener, err := listen(opts.Socket)
	if err != nil {
		t.Fatal(err)
	}
	f, err := listener.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	listener.Close()
	dup, err := unix.Dup(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(listenerEnv, strconv.Itoa(dup))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, opts) }()
	return func() error { cancel(); return <-done }
}

func TestRefusesSecondDaemon(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	stop := run(t, Options{Socket: socket})
	first := connect(t, ClientOptions{Socket: socket})
	conn, err := net.DialUnix(network, nil, &net.UnixAddr{Name: socket, Net: network})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, _, err := readWelcome(conn); !errors.Is(err, ErrBusy) {
		t.Errorf("second daemon: %v", err)
	}
	info, err := os.Stat(socket)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", info.Mode(), err)
	}
	first.Goodbye()
	if err := stop(); err != nil {
		t.Errorf("keeper: %v", err)
	}
	if _, err := os.Stat(socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket is left: %v", err)
	}
}

// TestGarbage sends what no daemon sends: the connection ends, and the keeper goes on.
func TestGarbage(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	stop := run(t, Options{Socket: socket, RestartCommand: []string{"/bin/true"}})
	for _, garbage := range []string{"x", "TK\x03\x01\x00\x00\x00\x00\x00\x00\x00\x00", "TK\x02\x02\x00\x00\x00\x00\x00\x00\x00\x00", string(make([]byte, 5000))} {
		conn, err := net.DialUnix(network, nil, &net.UnixAddr{Name: socket, Net: network})
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := readWelcome(conn); err != nil && !errors.Is(err, ErrBusy) {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte(garbage)); err != nil {
			t.Fatal(err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
		if n, err := conn.Read(make([]byte, 100)); !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("after garbage: %d bytes, %v", n, err)
		}
		conn.Close()
	}
	connect(t, ClientOptions{Socket: socket}).Goodbye()
	if err := stop(); err != nil {
		t.Errorf("keeper: %v", err)
	}
}

// TestRestart has a keeper start a daemon for one that vanished, as often as it takes.
// TestRestartAtOnce: a daemon that can start is started at once, however often it was killed.
func TestRestartAtOnce(t *testing.T) {
	dir := t.TempDir()
	socket, started, leave := filepath.Join(dir, "s"), filepath.Join(dir, "started"), filepath.Join(dir, "leave")
	for _, fifo := range []string{started, leave} {
		if err := unix.Mkfifo(fifo, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	stop := run(t, Options{Socket: socket, RestartCommand: []string{"/bin/sh", "-c", "echo started > " + started + "; read line < " + leave}})
	file := tempFile(t, "a")
	watch := testenv.Start()
	const times = 8 // the waits before as many starts of one that cannot start are half a minute
	for i := range times {
		c := connect(t, ClientOptions{Socket: socket})
		if err := c.Hold(t.Context(), map[digest.Digest]*os.File{"a": file}); err != nil {
			t.Fatal(err)
		}
		if i > 0 {
			if err := os.WriteFile(leave, []byte("\n"), 0); err != nil { // the child has ended when it is said to be gone
				t.Fatal(err)
			}
		}
		if i == times-1 {
			c.Drop("a")
			c.Goodbye()
			break
		}
		c.Close()
		if _, err := os.ReadFile(started); err != nil {
			t.Fatal(err)
		}
	}
	if over, starved := watch.Over(15 * time.Second); over {
		t.Errorf("%d starts took %v, the machine was busy for %v", times, watch.Took(), starved)
	}
	if err := stop(); err != nil {
		t.Errorf("keeper: %v", err)
	}
}

func TestRestart(t *testing.T) {
	dir := t.TempDir()
	socket, fifo := filepath.Join(dir, "s"), filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	stop := run(t, Options{Socket: socket, RestartCommand: []string{"/bin/sh", "-c", "echo started > " + fifo}})
	c := connect(t, ClientOptions{Socket: socket})
	if err := c.Hold(t.Context(), map[digest.Digest]*os.File{"a": tempFile(t, "a")}); err != nil {
		t.Fatal(err)
	}
	c.Close()
	for range 3 { // each exits without connecting
		line, err := os.ReadFile(fifo)
		if err != nil || string(line) != "started\n" {
			t.Fatalf("%q, %v", line, err)
		}
	}
	last := connect(t, ClientOptions{Socket: socket})
	last.Drop("a")
	last.Goodbye()
	if err := stop(); err != nil {
		t.Errorf("keeper: %v", err)
	}
}

// TestChildWithoutConnection: a daemon that loses its connection, and neither exits nor comes back, does not keep others from being started.
func TestChildWithoutConnection(t *testing.T) {
	dir := t.TempDir()
	socket, started, leave := filepath.Join(dir, "s"), filepath.Join(dir, "started"), filepath.Join(dir, "leave")
	for _, fifo := range []string{started, leave} {
		if err := unix.Mkfifo(fifo, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	open := func(path string) *os.File {
		f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0) // waits for nobody
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	lines, leaving := open(started), open(leave)
	child := func() {
		t.Helper()
		b := make([]byte, len("started\n"))
		if err := lines.SetReadDeadline(time.Now().Add(2 * time.Minute)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(lines, b); err != nil {
			t.Fatalf("no daemon is started: %v", err)
		}
	}
	stop := run(t, Options{Socket: socket, HeirPatience: time.Second,
		RestartCommand: []string{"/bin/sh", "-c", "echo started > " + started + "; read line < " + leave}})
	file := tempFile(t, "a")
	for range 2 { // the second time with a child that stays
		c := connect(t, ClientOptions{Socket: socket})
		if err := c.Hold(t.Context(), map[digest.Digest]*os.File{"a": file}); err != nil {
			t.Fatal(err)
		}
		c.Close()
		child()
	}
	c := connect(t, ClientOptions{Socket: socket})
	if _, err := leaving.WriteString("\n"); err != nil {
		t.Fatal(err)
	}
	c.Drop("a")
	c.Goodbye()
	if err := stop(); err != nil {
		t.Errorf("keeper: %v", err)
	}
}

// memoryStore is a Store that keeps duplicates in this process, and counts.
type memoryStore struct {
	t       *testing.T
	files   map[string]*os.File
	removed map[string]int
}

func (s *memoryStore) Put(name string, fd int) {
	f, err := duplicate(fd, name)
	if err != nil {
		s.t.Error(err)
		return
	}
	if s.files[name] != nil {
		s.t.Errorf("%s is put twice", name)
	}
	s.files[name] = f
}

func (s *memoryStore) Remove(name string) {
	s.removed[name]++
	s.files[name].Close() // of nil it does nothing
	delete(s.files, name)
}

// give is what a service manager does when it starts the process again.
func (s *memoryStore) give() map[string]*os.File {
	all := map[string]*os.File{}
	for name, f := range s.files {
		dup, err := duplicateFD(f)
		if err != nil {
			s.t.Fatal(err)
		}
		all[name] = os.NewFile(uintptr(dup), name)
	}
	clear(s.removed)
	return all
}

// TestStoreKeepsWhatItHas: what came back from the store stays there all the while, unless it is not what the keeper has.
func TestStoreKeepsWhatItHas(t *testing.T) {
	s := &memoryStore{t: t, files: map[string]*os.File{}, removed: map[string]int{}}
	defer func() {
		for _, f := range s.files {
			f.Close()
		}
	}()
	opts := clientOptions(t)
	opts.Store = s
	c := connect(t, opts)
	a, b := digest.FromString("a"), digest.FromString("b")
	fileB := tempFile(t, "b")
	layers := map[digest.Digest]*os.File{a: tempFile(t, "a"), b: fileB}
	if err := c.SetGroup(t.Context(), tempFile(t, "group")); err != nil {
		t.Fatal(err)
	}
	if err := c.Hold(t.Context(), layers); err != nil {
		t.Fatal(err)
	}
	c.Close()
	// As after a crash in between: another open file of the same inode, one too many, one too few.
	again, err := os.Open(fileB.Name())
	if err != nil {
		t.Fatal(err)
	}
	s.files[storeName(b)].Close()
	s.files[storeName(b)] = again
	s.Put("sha256-old", int(again.Fd()))
	s.Remove(namePending)
	opts.Stored = s.give()
	c = connect(t, opts)
	if diff := cmp.Diff(map[string]int{namePending: 1, storeName(b): 1, "sha256-old": 1}, s.removed); diff != "" {
		t.Errorf("removed (-want +got):\n%s", diff)
	}
	checkLayers(t, c, layers)
	c.Close()
	opts.Stored = s.give()
	c = connect(t, opts)
	if len(s.removed) > 0 || len(s.files) != 4 {
		t.Errorf("removed %v, there are %d", s.removed, len(s.files))
	}
	for blob := range layers {
		c.Drop(blob)
	}
	c.Goodbye()
	if len(s.files) > 0 {
		t.Errorf("left: %v", s.files)
	}
}

// TestGoodbye: a daemon that left on purpose is started again for readers, long after the grace time as well: nobody denies them meanwhile.
func TestGoodbye(t *testing.T) {
	for name, c := range map[string]struct {
		before, after func(t *testing.T, c *Client, kernel int)
	}{
		"who comes later": {after: func(t *testing.T, _ *Client, kernel int) {
			request := make([]byte, fuseInHeaderBytes)
			binary.NativeEndian.PutUint32(request[4:], fuseRead)
			if _, err := unix.Write(kernel, request); err != nil {
				t.Error(err)
			}
		}},
		"who was not answered": {before: func(_ *testing.T, c *Client, _ int) { c.Pending().Put(1000, 1, 2, 3, 4) }},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			socket, fifo := filepath.Join(dir, "s"), filepath.Join(dir, "fifo")
			if err := unix.Mkfifo(fifo, 0o600); err != nil {
				t.Fatal(err)
			}
			pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			if err := unix.SetNonblock(pair[1], true); err != nil { // as /dev/fuse is opened
				t.Fatal(err)
			}
			kernel, device := pair[0], os.NewFile(uintptr(pair[1]), "device")
			defer unix.Close(kernel)
			defer device.Close()
			stop := run(t, Options{Socket: socket, Grace: time.Millisecond, RestartCommand: []string{"/bin/sh", "-c", "echo started > " + fifo}})
			client := connect(t, ClientOptions{Socket: socket})
			if err := client.Hold(t.Context(), map[digest.Digest]*os.File{FUSEDevice: device}); err != nil {
				t.Fatal(err)
			}
			if c.before != nil {
				c.before(t, client, kernel)
			}
			client.Goodbye()
			answer := make([]byte, 100)
			if n, err := unix.Read(kernel, answer); err != nil || n != fuseOutHeaderBytes || answer[4] != fuseNotifyResend {
				t.Fatalf("the kernel is not asked for requests that were not answered: %x, %v", answer[:max(n, 0)], err)
			}
			if c.after != nil {
				c.after(t, client, kernel)
			}
			started := make(chan struct{})
			go func() {
				defer close(started)
				if _, err := os.ReadFile(fifo); err != nil {
					t.Error(err)
				}
			}()
			select {
			case <-started:
			case <-time.After(2 * time.Minute):
				t.Error("no daemon was started for the reader")
				if err := os.WriteFile(fifo, nil, 0); err != nil { // lets go of the goroutine
					t.Error(err)
				}
				<-started
			}
			client = connect(t, ClientOptions{Socket: socket})
			client.Drop(FUSEDevice)
			client.Goodbye()
			if err := stop(); err != nil {
				t.Errorf("keeper: %v", err)
			}
		})
	}
}

func TestListenTwice(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	listener, err := listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	if second, err := listen(socket); err == nil {
		second.Close()
		t.Error("no error for a socket in use")
	}
	listener.Close() // the file stays
	again, err := listen(socket)
	if err != nil {
		t.Fatalf("listen in place of a dead keeper: %v", err)
	}
	again.Close()
}

// TestGoodbyeIsNoDeath says goodbye again and again with layers left: the keeper ends the connection, which is not to be taken for its death.
func TestGoodbyeIsNoDeath(t *testing.T) {
	opts := clientOptions(t)
	file := tempFile(t, "a")
	first := connect(t, opts)
	t.Cleanup(func() { _, _ = first.process.Wait() })
	begun := time.Now()
	for c := first; ; c = connect(t, opts) {
		if err := c.Hold(t.Context(), map[digest.Digest]*os.File{"a": file}); err != nil {
			t.Fatal(err)
		}
		before := c.current()
		last := time.Since(begun) > time.Second
		if last {
			c.Drop("a")
		}
		c.Goodbye()
		if c.conn != before {
			t.Fatal("another keeper, or the same once more, was connected to after goodbye")
		}
		if last {
			return
		}
	}
}
