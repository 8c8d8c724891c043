// Package systemd speaks to the service manager that runs this process: it says what state the process is in, and keeps descriptors in the
// manager's store, which gives them back when it starts the process again.
//
// The model: a datagram of lines to the unix socket $NOTIFY_SOCKET (sd_notify(3)), with a descriptor beside it for the store; and at the
// start descriptors from number 3 on, counted by $LISTEN_FDS and named by $LISTEN_FDNAMES (sd_listen_fds(3)). It is little enough that no
// library is used.
//
// It does nothing where no service manager is: a nil *Manager is one that nobody listens to. It never waits for an answer, as there is none.
package systemd

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// firstFD is SD_LISTEN_FDS_START.
const firstFD = 3

// Manager is the service manager of this process.
type Manager struct {
	fd   int // of a socket without a name
	path *unix.SockaddrUnix
	log  *slog.Logger
}

// New returns the manager that $NOTIFY_SOCKET names, or nil where there is none. Programs that this process starts do not speak for it, so
// the caller takes the variable out of their environment.
func New(log *slog.Logger) (*Manager, error) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil, nil
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("speak to service manager: %w", err)
	}
	return &Manager{fd: fd, path: &unix.SockaddrUnix{Name: path}, log: log}, nil // "@" begins an abstract name here too
}

// Ready says that the service answers; status is shown to users.
func (m *Manager) Ready(status string) { m.send("READY=1\nSTATUS="+oneLine(status), -1) }

// Stopping says that the service ends.
func (m *Manager) Stopping() { m.send("STOPPING=1", -1) }

// Put has a duplicate of fd kept until it is removed, also while the service does not run. Names have no colon and no control characters.
// The manager is not to look whether the descriptor has ended (FDPOLL): ours do not.
func (m *Manager) Put(name string, fd int) { m.send("FDSTORE=1\nFDPOLL=0\nFDNAME="+name, fd) }

// Remove lets go of all that is kept under a name.
func (m *Manager) Remove(name string) { m.send("FDSTOREREMOVE=1\nFDNAME="+name, -1) }

func (m *Manager) send(state string, fd int) {
	if m == nil {
		return
	}
	var oob []byte
	if fd >= 0 {
		oob = unix.UnixRights(fd)
	}
	// It blocks while the manager's queue is full, and no longer: a datagram is taken as a whole or not at all.
	err := unix.Sendmsg(m.fd, []byte(state), oob, m.path, 0)
	for errors.Is(err, unix.EINTR) {
		err = unix.Sendmsg(m.fd, []byte(state), oob, m.path, 0)
	}
	if err != nil {
		m.log.Error("tell service manager", "state", oneLine(state), "err", err)
	}
}

func oneLine(s string) string { return strings.ReplaceAll(s, "\n", " ") }

// Inherited returns the descriptors that the manager gave this process, by name, the caller's to close. It is to be called once, before
// anything else is opened: they are this process's alone from then on. A second one of the same name is closed.
func Inherited() (map[string]*os.File, error) {
	pid, count, names := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS"), os.Getenv("LISTEN_FDNAMES")
	err := errors.Join(os.Unsetenv("LISTEN_PID"), os.Unsetenv("LISTEN_FDS"), os.Unsetenv("LISTEN_FDNAMES"))
	if err != nil {
		return nil, fmt.Errorf("take descriptors from service manager: %w", err)
	}
	if count == "" || pid != strconv.Itoa(os.Getpid()) {
		return nil, nil // there are none, or they were another process's
	}
	n, err := strconv.Atoi(count)
	if err != nil || n < 0 {
		return nil, fmt.Errorf("take descriptors from service manager: LISTEN_FDS is %q", count)
	}
	files := map[string]*os.File{}
	all := strings.Split(names, ":")
	for i := range n {
		fd := firstFD + i
		unix.CloseOnExec(fd)
		name := "unknown"
		if i < len(all) && all[i] != "" {
			name = all[i]
		}
		if files[name] != nil {
			unix.Close(fd)
			continue
		}
		files[name] = os.NewFile(uintptr(fd), name)
	}
	return files, nil
}
