package daemon

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/thaw-project/thaw/internal/daemon/api"
)

// offer serves a socket of the node's, if one is named. Where that cannot be done
// the daemon says so and goes on: containers wait for their bytes.
func (d *Daemon) offer(socket string, serve func() error) {
	if socket == "" {
		return
	}
	err := freeSocket(socket)
	if err == nil {
		err = serve()
	}
	if err == nil {
		d.offered = true
		return
	}
	d.log.Error("socket is not served", "socket", socket, "err", err)
	d.notServed = append(d.notServed, fmt.Sprintf("%s: %v", socket, err))
}

// freeSocket returns an error if a socket of the node's, outside of the state
// directory, cannot be made in place of what is at path: another daemon, with
// another state directory, may answer there, and containerd would lose all that it
// has of that one; or it is no socket at all. The state directory is locked. No path is free.
func freeSocket(path string) error {
	if path == "" {
		return nil
	}
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for %s: %w", path, err)
	}
	if info.Mode().Type() != os.ModeSocket {
		return api.Errorf(api.CodeInvalid, "name another path", "listen on %s: it is there and is no socket", path)
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err != nil {
		return nil // a dead daemon's
	}
	conn.Close()
	return api.Errorf(api.CodeInUse, "end it, or leave this socket out of the configuration of one of the two", "listen on %s: another process answers there", path)
}
