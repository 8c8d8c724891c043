package fuse

import (
	"log/slog"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/thaw-project/thaw/internal/mount"
	"github.com/thaw-project/thaw/internal/mount/mounttest"
	"github.com/thaw-project/thaw/internal/testenv"
)

// modeEnv makes the test binary another process.
const modeEnv = "THAW_TEST_MODE"

func TestMain(m *testing.M) {
	switch os.Getenv(modeEnv) {
	case "daemon":
		os.Exit(daemonMain())
	case "reader":
		os.Exit(readerMain())
	}
	goleak.VerifyTestMain(m)
}

func testLog(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}

func newMounter(t testing.TB, h mount.Handler) *Mounter {
	t.Helper()
	m, err := New(t.Context(), Options{Handler: h, Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestMounter(t *testing.T) {
	testenv.NeedFUSE(t)
	mounttest.Run(t, func(t *testing.T, h mount.Handler) mount.Mounter { return newMounter(t, h) })
}
