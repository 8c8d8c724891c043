package keeper

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// network makes message boundaries the kernel's business.
const network = "unixpacket"

// listenerEnv tells a keeper that Start made its socket, and as which descriptor.
const listenerEnv = "THAW_KEEPER_LISTENER"

// listen makes the socket, in place of one whose keeper died.
func listen(path string) (*net.UnixListener, error) {
	address := &net.UnixAddr{Name: path, Net: network}
	if conn, err := net.DialUnix(network, nil, address); err == nil {
		conn.Close()
		return nil, fmt.Errorf("listen on %s: another keeper is there", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove old socket: %w", err)
	}
	listener, err := net.ListenUnix(network, address)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	listener.SetUnlinkOnClose(false) // the one that starts a keeper closes its copy
	if err := os.Chmod(path, 0o600); err != nil {
		listener.Close()
		return nil, fmt.Errorf("listen: %w", err)
	}
	return listener, nil
}

// inheritedListener returns the socket that Start passed, or nil.
func inheritedListener() (*net.UnixListener, error) {
	text := os.Getenv(listenerEnv)
	if text == "" {
		return nil, nil
	}
	os.Unsetenv(listenerEnv) // not for the daemons that the keeper starts
	fd, err := strconv.Atoi(text)
	if err != nil {
		return nil, fmt.Errorf("inherit socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), "listener")
	if f == nil {
		return nil, fmt.Errorf("inherit socket: bad descriptor %d", fd)
	}
	defer f.Close()
	listener, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("inherit socket: %w", err)
	}
	unixListener, ok := listener.(*net.UnixListener)
	if !ok {
		listener.Close()
		return nil, fmt.Errorf("inherit socket: descriptor %d is none", fd)
	}
	return unixListener, nil
}

// Start starts a keeper: command must come to Run. It runs in a session of its own, with its output appended to logPath
// (empty: nowhere). The socket exists and can be dialed when Start returns. Whoever starts it waits for the process
// when it ends.
func Start(socket, logPath string, command []string) (*os.Process, error) {
	if len(command) == 0 {
		return nil, errors.New("start keeper: no command")
	}
	listener, err := listen(socket)
	if err != nil {
		return nil, fmt.Errorf("start keeper: %w", err)
	}
	defer listener.Close()
	passed, err := listener.File()
	if err != nil {
		return nil, fmt.Errorf("start keeper: %w", err)
	}
	defer passed.Close()
	if logPath == "" {
		logPath = os.DevNull
	}
	log, err := os.OpenFile(logPath, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start keeper: %w", err)
	}
	defer log.Close()
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{passed}
	// What the daemon is to its service manager is not for the keeper, nor for the daemons that it starts.
	cmd.Env = slices.DeleteFunc(os.Environ(), func(s string) bool { return strings.HasPrefix(s, "NOTIFY_SOCKET=") })
	cmd.Env = append(cmd.Env, listenerEnv+"=3")
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start keeper: %w", err)
	}
	return cmd.Process, nil
}
