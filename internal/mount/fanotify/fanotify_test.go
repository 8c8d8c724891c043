package fanotify

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/mount"
	"github.com/thaw-project/thaw/internal/mount/keeper"
	"github.com/thaw-project/thaw/internal/mount/mounttest"
	"github.com/thaw-project/thaw/internal/testenv"
)

// modeEnv makes the test binary another process: a keeper, or a daemon of the kill test.
const modeEnv = "THAW_TEST_MODE"

func TestMain(m *testing.M) {
	switch os.Getenv(modeEnv) {
	case "keeper":
		os.Exit(keeperMain())
	case "reader":
		os.Exit(readerMain())
	case "daemon":
		os.Exit(daemonMain())
	}
	testenv.Main(m)
}

func keeperMain() int {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	keeper.Prepare(log)
	grace, _ := time.ParseDuration(os.Args[2])
	err := keeper.Run(context.Background(), keeper.Options{
		Socket: os.Args[1], Grace: grace, RestartCommand: os.Args[3:], StableAfter: time.Millisecond, Log: log,
	})
	if err != nil {
		log.Error("keeper", "err", err)
		return 1
	}
	return 0
}

// keeperCommand is a keeper in a process of its own.
func keeperCommand(socket string, grace time.Duration, restart ...string) []string {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return append([]string{"/usr/bin/env", modeEnv + "=keeper", self, socket, grace.String()}, restart...)
}

func connect(t testing.TB, grace time.Duration) *keeper.Client {
	t.Helper()
	dir := t.TempDir()
	socket := filepath.Join(dir, "keeper.sock")
	client, err := keeper.Connect(t.Context(), keeper.ClientOptions{
		Socket: socket, Command: keeperCommand(socket, grace), LogPath: filepath.Join(dir, "keeper.log"), Log: testLog(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func testLog(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}

func TestMounter(t *testing.T) {
	testenv.NeedFanotify(t)
	t.Run("keeper", func(t *testing.T) {
		mounttest.Run(t, func(t *testing.T, h mount.Handler) mount.Mounter {
			return newMounter(t, h, connect(t, time.Minute))
		})
	})
	t.Run("alone", func(t *testing.T) {
		mounttest.Run(t, func(t *testing.T, h mount.Handler) mount.Mounter { return newMounter(t, h, nil) })
	})
}

func TestSeen(t *testing.T) {
	testenv.NeedFanotify(t)
	mounttest.RunSeen(t, func(t *testing.T, h mount.Handler, seen mount.Seen) mount.Mounter {
		m, err := New(t.Context(), Options{Handler: h, Seen: seen, Log: testLog(t)})
		if err != nil {
			t.Fatal(err)
		}
		return m
	})
}

func newMounter(t testing.TB, h mount.Handler, client *keeper.Client) *Mounter {
	t.Helper()
	m, err := New(t.Context(), Options{Handler: h, Keeper: client, Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestReadsAreJoined: the kernel asks for a file's neighbouring pages together,
// not for each by itself. The layout of the metadata image decides that.
func TestReadsAreJoined(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.NeedFanotify(t)
	image := mounttest.NewImage(t, 2, []mounttest.File{{Name: "other", Mode: 0o644, Data: mounttest.Bytes(1, 100)}, {Name: "f", Mode: 0o644, Data: mounttest.Bytes(2, 1<<20)}})
	source := &mounttest.Source{}
	source.Add(image.Layers...)
	m := newMounter(t, source, nil)
	defer m.Close()
	dir := t.TempDir()
	if err := m.Mount(t.Context(), image.Spec(dir)); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(dir, "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// Read ahead as for a mapping: single pages in the cache. (A real mapping's page faults would wait for this process while
	// its scheduler waits for them.)
	if err := unix.Fadvise(int(f.Fd()), 0, 1<<20, unix.FADV_WILLNEED); err != nil {
		t.Fatal(err)
	}
	if s := m.Stats(); s.Inline+s.Waited > 64 || s.Inline+s.Waited == 0 {
		t.Errorf("%d reads of the layer file for 256 pages", s.Inline+s.Waited)
	}
	if got, err := os.ReadFile(f.Name()); err != nil || !bytes.Equal(got, image.Data("f")) {
		t.Errorf("%d bytes: %v", len(got), err)
	}
}
