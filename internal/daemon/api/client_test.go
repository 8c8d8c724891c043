package api

import (
	"errors"
	"net"
	"path/filepath"
	"testing"
)

// TestStatusOfDyingDaemon: one that takes the connection and dies is as good as none.
func TestStatusOfDyingDaemon(t *testing.T) {
	root := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(root, SocketName))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	for range 20 {
		if _, err := NewClient(root).Status(t.Context()); !errors.Is(err, ErrNotRunning) {
			t.Errorf("error %v, want %v", err, ErrNotRunning)
		}
	}
}
