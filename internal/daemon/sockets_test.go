package daemon

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFreeSocket(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s.sock")
	if err := freeSocket(path); err != nil {
		t.Errorf("nothing there: %v", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if err := freeSocket(path); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("of a process that lives: %v", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	if err := freeSocket(path); err != nil {
		t.Errorf("of a dead process: %v", err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := freeSocket(file); err == nil {
		t.Error("a file would be removed")
	}
}
