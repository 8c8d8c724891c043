package fuse

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/mount"
	"github.com/thaw-project/thaw/internal/mount/keeper"
	"github.com/thaw-project/thaw/internal/mount/mounttest"
	"github.com/thaw-project/thaw/internal/testenv"
)

// killFileBytes is the size of the kill tests' file; its first half is there, and a test daemon never brings the rest.
const killFileBytes = 8 << 20

// daemonMain is a daemon that is made to be killed: it mounts, hands its connection to the test, and answers reads.
func daemonMain() int {
	if err := runDaemon(os.Args[1], digest.Digest(os.Args[2]), os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, "daemon:", err)
		return 1
	}
	return 0
}

func runDaemon(dir string, blob digest.Digest, layerPath string) error {
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: filepath.Join(dir, "test.sock"), Net: "unixpacket"})
	if err != nil {
		return err
	}
	layer := mount.Layer{Blob: blob, Path: layerPath}
	if layer.File, err = os.OpenFile(layerPath, os.O_RDWR, 0); err != nil {
		return err
	}
	info, err := layer.File.Stat()
	if err != nil {
		return err
	}
	layer.SizeBytes = info.Size()
	var client *keeper.Client
	if socket := filepath.Join(dir, "keeper.sock"); exists(socket) {
		if client, err = keeper.Connect(context.Background(), keeper.ClientOptions{Socket: socket}); err != nil {
			return err
		}
	}
	m, err := New(context.Background(), Options{Handler: &half{test: conn}, Keeper: client})
	if err != nil {
		return err
	}
	spec := mount.Spec{Dir: filepath.Join(dir, "root"), Metadata: filepath.Join(dir, "metadata"), Layers: []mount.Layer{layer}}
	if err := m.Mount(context.Background(), spec); err != nil {
		return err
	}
	held, err := m.Connection()
	if err != nil {
		return err
	}
	rights := unix.UnixRights(int(held.Device.Fd()), int(held.Tree.Fd()), int(held.Init.Fd()))
	if _, _, err := conn.WriteMsgUnix([]byte("ready"), rights, nil); err != nil {
		return err
	}
	held.Close()
	_, err = conn.Read(make([]byte, 1)) // for the test to end
	return errors.Join(err, m.Close())
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// keeperMain is a keeper in a process of its own.
func keeperMain() int {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	keeper.Prepare(log)
	grace, _ := time.ParseDuration(os.Args[2])
	if err := keeper.Run(context.Background(), keeper.Options{Socket: os.Args[1], Grace: grace, Log: log}); err != nil {
		log.Error("keeper", "err", err)
		return 1
	}
	return 0
}

// half has the first half of the file, and never brings the rest.
type half struct{ test net.Conn }

func (h *half) Have(_ digest.Digest, off, n int64) bool { return off+n <= 512+killFileBytes/2 }

func (h *half) Fetch(ctx context.Context, _ digest.Digest, off, n int64) error {
	if _, err := h.test.Write([]byte("waiting")); err != nil {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}

// killed is a daemon in a process of its own.
type killed struct {
	dir    string
	image  *mounttest.Image
	cmd    *exec.Cmd
	conn   *net.UnixConn
	held   *Connection
	reader errgroup.Group
}

func startKilled(t *testing.T, hold bool) *killed { return startKilledIn(t, t.TempDir(), hold) }

func startKilledIn(t *testing.T, dir string, hold bool) *killed {
	t.Helper()
	testenv.NeedFUSE(t)
	k := &killed{dir: dir, image: mounttest.NewImage(t, 1, []mounttest.File{{Name: "f", Mode: 0o644, Data: mounttest.Bytes(fileSeed, killFileBytes)}})}
	layer := k.image.Layers[0]
	half := layer.Data[:512+killFileBytes/2]
	if _, err := layer.First.WriteAt(half, 0); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Mkdir(filepath.Join(k.dir, "root"), 0o755), os.Link(k.image.Metadata, filepath.Join(k.dir, "metadata"))); err != nil {
		t.Fatal(err)
	}
	listener, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: filepath.Join(k.dir, "test.sock"), Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	k.cmd = exec.Command(self, k.dir, layer.Blob.String(), layer.Path)
	k.cmd.Env = append(os.Environ(), modeEnv+"=daemon")
	k.cmd.Stderr = t.Output()
	if err := k.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		k.kill()
		if _, err := mount.Unmount(context.Background(), k.root()); err != nil {
			t.Error(err)
		}
	})
	_ = listener.SetDeadline(time.Now().Add(2 * time.Minute))
	if k.conn, err = listener.AcceptUnix(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.conn.Close() })
	k.held = receiveConnection(t, k.conn)
	if !hold {
		k.held.Close()
	}
	return k
}

func (k *killed) root() string { return filepath.Join(k.dir, "root") }

func (k *killed) kill() {
	_ = k.cmd.Process.Kill()
	_ = k.cmd.Wait()
}

func receiveConnection(t *testing.T, conn *net.UnixConn) *Connection {
	t.Helper()
	_ = conn.SetReadDeadline(time.Now().Add(2 * time.Minute))
	control := make([]byte, unix.CmsgSpace(3*4))
	_, n, _, _, err := conn.ReadMsgUnix(make([]byte, 16), control)
	if err != nil {
		t.Fatal(err)
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil || len(messages) != 1 {
		t.Fatalf("%d control messages, %v", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 3 {
		t.Fatalf("descriptors %v, %v", fds, err)
	}
	for _, fd := range fds {
		unix.CloseOnExec(fd)
	}
	return &Connection{Device: os.NewFile(uintptr(fds[0]), "device"), Tree: os.NewFile(uintptr(fds[1]), "tree"), Init: os.NewFile(uintptr(fds[2]), "init")}
}

// startReader reads bytes that the daemon never brings, and returns when the daemon was asked for them.
func (k *killed) startReader(t *testing.T, at int64) {
	t.Helper()
	k.reader.Go(func() error {
		got, err := k.read(at)
		if err == nil && !bytes.Equal(got, k.image.Data("f")[at:][:len(got)]) {
			err = errors.New("wrong bytes")
		}
		return err
	})
	if _, err := k.conn.Read(make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
}

func (k *killed) read(at int64) ([]byte, error) {
	f, err := os.Open(filepath.Join(k.root(), "f"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM); err != nil {
		return nil, err
	}
	got := make([]byte, 4096)
	_, err = io.ReadFull(io.NewSectionReader(f, at, 4096), got)
	return got, err
}

// TestKilledFailsClosed kills the daemon while nobody holds its connection: all reads fail, also of what is there, and none gives
// zeros.
func TestKilledFailsClosed(t *testing.T) {
	k := startKilled(t, false)
	if got, err := k.read(1 << 20); err != nil && !bytes.Equal(got, k.image.Data("f")[1<<20:][:4096]) {
		t.Fatalf("read of what is there: %v", err)
	}
	k.startReader(t, 6<<20)
	k.kill()
	if err := k.reader.Wait(); !errors.Is(err, unix.EIO) {
		t.Errorf("read that waited: %v, want EIO", err)
	}
	for _, at := range []int64{2 << 20, 7 << 20} {
		if _, err := k.read(at); !errors.Is(err, unix.EIO) {
			t.Errorf("read at %d: %v, want EIO", at, err)
		}
	}
}

// TestKilledTakeOver kills the daemon while its connection is held: readers wait, and another daemon answers them.
func TestKilledTakeOver(t *testing.T) {
	k := startKilled(t, true)
	k.startReader(t, 6<<20)
	k.startReader(t, 7<<20)
	k.kill()
	k.reader.Go(func() error { // nobody has seen this one
		got, err := k.read(5 << 20)
		if err == nil && !bytes.Equal(got, k.image.Data("f")[5<<20:][:4096]) {
			err = errors.New("wrong bytes")
		}
		return err
	})
	source := &mounttest.Source{}
	source.Add(k.image.Layers...)
	m, err := New(t.Context(), Options{Handler: source, Connection: k.held, Layers: []mount.Layer{k.image.Layers[0].Mountable()}, Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	spec := k.image.Spec(k.root())
	if err := m.Adopt(spec); err != nil {
		t.Error(err)
	}
	if err := k.reader.Wait(); err != nil {
		t.Error(err)
	}
	if got, err := os.ReadFile(filepath.Join(k.root(), "f")); err != nil || !bytes.Equal(got, k.image.Data("f")) {
		t.Errorf("read: %v", err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if left, err := mount.ListUnder(k.root()); err != nil || len(left) > 0 {
		t.Errorf("still mounted: %v, %v", left, err)
	}
}

// TestKeeper kills the daemon while a keeper holds its connection, and lets the grace time pass: readers get EIO, also those whose read
// the dead daemon had, and a later daemon heals them.
func TestKeeper(t *testing.T) {
	testenv.NeedFUSE(t)
	dir := t.TempDir()
	socket, logPath := filepath.Join(dir, "keeper.sock"), filepath.Join(dir, "log")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	process, err := keeper.Start(socket, logPath, []string{"/usr/bin/env", modeEnv + "=keeper", self, socket, "300ms"})
	if err != nil {
		t.Fatal(err)
	}
	gone := make(chan struct{})
	go func() { defer close(gone); _, _ = process.Wait() }()
	t.Cleanup(func() { _ = process.Kill(); <-gone })
	k := startKilledIn(t, dir, false)
	k.startReader(t, 6<<20)
	k.kill()
	if err := k.reader.Wait(); !errors.Is(err, unix.EIO) {
		t.Errorf("read that the daemon had: %v, want EIO", err)
	}
	for _, at := range []int64{2 << 20, 7 << 20} {
		if _, err := k.read(at); !errors.Is(err, unix.EIO) {
			t.Errorf("read at %d: %v, want EIO", at, err)
		}
	}
	client, err := keeper.Connect(t.Context(), keeper.ClientOptions{Socket: socket, Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	source := &mounttest.Source{}
	source.Add(k.image.Layers...)
	m, err := New(t.Context(), Options{Handler: source, Keeper: client, Layers: []mount.Layer{k.image.Layers[0].Mountable()}, Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Adopt(k.image.Spec(k.root())); err != nil {
		t.Error(err)
	}
	if got, err := os.ReadFile(filepath.Join(k.root(), "f")); err != nil || !bytes.Equal(got, k.image.Data("f")) {
		t.Errorf("read after the keeper denied: %v", err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	select {
	case <-gone:
	case <-time.After(2 * time.Minute):
		t.Error("keeper did not leave")
	}
	if t.Failed() {
		log, _ := os.ReadFile(logPath)
		t.Logf("keeper's log:\n%s", log)
	}
}
