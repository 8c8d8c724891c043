package fuse

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	protocol "github.com/hanwen/go-fuse/v2/fuse"
	"github.com/opencontainers/go-digest"

	"github.com/thaw-project/thaw/internal/mount"
	"github.com/thaw-project/thaw/internal/mount/keeper"
	"github.com/thaw-project/thaw/internal/testenv"
)

// stuckMain is a daemon that opens a file that it serves itself, as a mount does, and has not answered yet.
func stuckMain() int {
	d, err := openDevice(nil, newServer(protocol.NewDefaultRawFileSystem(), slog.New(slog.NewTextHandler(os.Stderr, nil))))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	client, err := keeper.Connect(context.Background(), keeper.ClientOptions{Socket: os.Args[1], Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err == nil {
		err = client.Hold(context.Background(), map[digest.Digest]*os.File{
			keeper.FUSEDevice: d.Device, keeper.FUSETree: d.Tree, keeper.FUSEInit: d.Init})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	tree, err := mount.RawFD(d.Tree)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	go func() {
		if f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d/1234", tree)); err == nil {
			f.Close()
		}
	}()
	b := make([]byte, bufferBytes)
	for {
		n, err := d.Device.Read(b)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		if opcode := binary.NativeEndian.Uint32(b[4:]); n >= inHeaderBytes && opcode == 1 { // LOOKUP
			fmt.Println("stuck")
			select {}
		}
		if err := d.handle(append([]byte(nil), b[:n]...), b); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
}

// TestStuckDaemon kills a daemon in the middle of its own mount. Its thread waits in the kernel for an answer, whatever it was killed
// with, until the keeper gives it.
func TestStuckDaemon(t *testing.T) {
	testenv.NeedFUSE(t)
	dir := t.TempDir()
	socket, logPath := filepath.Join(dir, "keeper.sock"), filepath.Join(dir, "log")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	process, err := keeper.Start(socket, logPath, []string{"/usr/bin/env", modeEnv + "=keeper", self, socket, "1m"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = process.Kill(); _, _ = process.Wait() })
	daemon := exec.Command(self, socket)
	daemon.Env = append(os.Environ(), modeEnv+"=stuck")
	daemon.Stderr = os.Stderr
	out, err := daemon.StdoutPipe()
	if err == nil {
		err = daemon.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, len("stuck\n"))); err != nil {
		t.Fatal(err)
	}
	if err := daemon.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	dead := make(chan struct{})
	go func() { defer close(dead); _ = daemon.Wait() }()
	select {
	case <-dead:
	case <-time.After(2 * time.Minute):
		log, _ := os.ReadFile(logPath)
		_ = process.Kill() // nobody holds the connection any more
		t.Fatalf("the daemon cannot die; the keeper's log:\n%s", log)
	}
}
