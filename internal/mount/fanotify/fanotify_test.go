package fanotify

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

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
	goleak.VerifyTestMain(m)
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
