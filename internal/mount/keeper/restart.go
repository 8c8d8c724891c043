package keeper

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/mount/fanotify/group"
)

const (
	// stableAfter is how long a daemon has been connected when its death counts as a first one again.
	stableAfter = 10 * time.Second
	// heirPatience is how long the program that a daemon became, or one that was started, may take to connect.
	heirPatience = 20 * time.Second
	// wakeEvery is how often a keeper whose daemon left with mounts looks whether somebody reads from them.
	wakeEvery = time.Second
)

// restartDelays are the waits before the first, second, ... start of a daemon that keeps ending; the last one repeats.
var restartDelays = []time.Duration{0, 200 * time.Millisecond, time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second}

// servedDelay is the longest of these waits for a daemon that had been connected, or was killed: it can start, and its readers wait.
const servedDelay = 300 * time.Millisecond

func (k *keeper) disconnect() {
	k.stopDeniers() // of a daemon that could not die
	k.conn.Close()
	k.conn, k.dying = nil, false
	k.peer.close()
	k.peer = nil
	if time.Since(k.connectedAt) >= k.opts.StableAfter {
		k.restarts = 0
	}
	if k.confirmed {
		k.fallback = false
	} else {
		k.fallback = !k.fallback // it got no further than this: another program may
	}
}

// away is the state between daemons: readers wait, and another daemon is started unless the last one left on purpose, or becomes the
// next one itself. One that left on purpose is missed when somebody reads from what it left: the grace time begins then.
// The one that started the keeper has not been here yet; whoever started it notices its death.
func (k *keeper) away() {
	stopTimer(&k.grace)
	if k.goodbye && len(k.opts.RestartCommand) > 0 && k.resend() {
		// Nobody reads what is held meanwhile: whoever waits is seen, and has a daemon started, however late that is.
		k.waiting, k.idle, k.left = time.Tick(wakeEvery), time.Tick(idleCheck), k.unanswered()
		return
	}
	k.grace = time.NewTimer(k.opts.Grace)
	switch {
	case k.goodbye: // nobody is to be started
	case k.heir == nil && !k.connectedAt.IsZero():
		k.scheduleRestart(true)
	}
}

// confirm is told that the daemon answers calls, and how to start another one like it.
func (k *keeper) confirm(text string) {
	var command []string
	if text != "" {
		if err := json.Unmarshal([]byte(text), &command); err != nil {
			k.log.Error("the command that starts daemons stays the same", "err", err)
			return
		}
	}
	k.confirmed, k.opts.RestartCommand = true, command
}

// wake starts a daemon for readers that wait although the last one left on purpose.
func (k *keeper) wake() {
	if len(k.opts.RestartCommand) == 0 || !k.left && !k.readersWait() {
		return
	}
	k.log.Warn("somebody reads from what the daemon left mounted: starting another", "layers", len(k.layers))
	k.goodbye, k.waiting = false, nil
	k.grace = time.NewTimer(k.opts.Grace)
	k.scheduleRestart(true)
}

// resend has the kernel send FUSE requests again that the last daemon did not answer. False: it cannot, so nobody would see them.
func (k *keeper) resend() bool {
	device, held := k.layers[FUSEDevice]
	if !held {
		return true
	}
	err := fuseAnswer(device, fuseNotifyResend, 0)
	if err != nil {
		k.log.Error("ask for FUSE requests that were not answered: their readers wait for a daemon", "err", err)
	}
	return err == nil
}

// unanswered says whether the last daemon left events that it had read.
func (k *keeper) unanswered() bool {
	if k.pending < 0 {
		return false
	}
	fd, err := unix.FcntlInt(uintptr(k.pending), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return true // to start a daemon in vain does no harm
	}
	table, err := group.OpenPending(fd)
	if err != nil {
		return true
	}
	defer table.Close()
	return table.Waiting()
}

func (k *keeper) readersWait() bool {
	var fds []unix.PollFd
	if k.group >= 0 {
		fds = append(fds, unix.PollFd{Fd: int32(k.group), Events: unix.POLLIN})
	}
	if device, ok := k.layers[FUSEDevice]; ok {
		fds = append(fds, unix.PollFd{Fd: int32(device), Events: unix.POLLIN})
	}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0
}

// scheduleRestart has a daemon started; served says that the last one was not at fault for sure.
func (k *keeper) scheduleRestart(served bool) {
	if len(k.opts.RestartCommand) == 0 {
		return
	}
	stopTimer(&k.restart)
	if k.fallback && k.opts.Program != "" { // the other program has not been tried yet
		k.restart = time.NewTimer(0)
		return
	}
	delay := restartDelays[min(k.restarts, len(restartDelays)-1)]
	if served {
		delay = min(delay, servedDelay)
	}
	k.restart = time.NewTimer(delay)
	k.restarts++
}

// killed says whether what Wait returned is a process's end by a signal.
func killed(err error) bool {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return false
	}
	status, ok := exit.Sys().(syscall.WaitStatus)
	return ok && status.Signaled()
}

func (k *keeper) startDaemon() {
	if k.child != nil {
		k.restarts = max(0, k.restarts-1) // it lost its connection, or is still on its way to it: when it exits this is called again
		if k.late == nil {
			k.late = time.NewTimer(k.opts.HeirPatience) // it may neither exit nor connect anew
		}
		return
	}
	program, args := k.opts.RestartCommand[0], k.opts.RestartCommand[1:]
	if k.fallback && k.opts.Program != "" {
		program = k.opts.Program
		k.log.Warn("the daemon's program does not work: trying the keeper's own")
	}
	cmd := exec.Command(program, args...)
	cmd.Args[0] = k.opts.RestartCommand[0]
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		k.log.Error("start daemon", "err", err)
		k.fallback = !k.fallback
		k.scheduleRestart(false)
		return
	}
	k.log.Info("started a daemon", "pid", cmd.Process.Pid)
	c := &child{Cmd: cmd}
	k.child = c
	stopTimer(&k.late)
	k.late = time.NewTimer(k.opts.HeirPatience)
	go func() {
		c.err = cmd.Wait()
		select {
		case k.exited <- c:
		case <-k.stop:
		}
	}()
}

// heir is the process at the other end of a connection, which may become another program. A nil one is nobody.
type heir struct {
	pid   int
	pidfd *os.File
}

func peerOf(conn *net.UnixConn) (*heir, error) {
	cred, err := credentials(conn)
	if err != nil {
		return nil, err
	}
	fd, err := unix.PidfdOpen(int(cred.Pid), unix.O_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", cred.Pid, err)
	}
	return &heir{pid: int(cred.Pid), pidfd: os.NewFile(uintptr(fd), "pidfd")}, nil
}

func (h *heir) close() {
	if h != nil {
		h.pidfd.Close()
	}
}

func (h *heir) kill() {
	raw, err := h.pidfd.SyscallConn()
	if err == nil {
		_ = raw.Control(func(fd uintptr) { _ = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) })
	}
}

// ended returns when the process has ended, or is not waited for any more.
func (h *heir) ended() {
	raw, err := h.pidfd.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return err == nil && n == 1
	})
}

// await waits for the heir to connect, to end, or to be late.
func (k *keeper) await() {
	k.late = time.NewTimer(k.opts.HeirPatience)
	h := k.heir
	go func() {
		h.ended()
		select {
		case k.heirGone <- h:
		case <-k.stop:
		}
	}()
}

// child is a daemon that the keeper started.
type child struct {
	*exec.Cmd
	connected bool
	err       error // of Wait
}

// childExited has another daemon started in place of a child.
func (k *keeper) childExited(c *child) {
	if c != k.child {
		return
	}
	k.child = nil
	if k.heir != nil {
		return // what it became, or the daemon that came first, is waited for
	}
	stopTimer(&k.late)
	if !c.connected {
		k.log.Warn("daemon exited before it connected", "err", c.err)
		k.fallback = !k.fallback
	}
	if k.conn == nil && !k.goodbye && k.restart == nil { // else the next one's start is due already
		k.scheduleRestart(c.connected || killed(c.err))
	}
}

// overdue ends a program that neither connects nor exits: it may hold what the next one needs.
func (k *keeper) overdue() {
	k.log.Error("a daemon does not connect: it is killed", "after", k.opts.HeirPatience)
	switch {
	case k.heir != nil:
		k.heir.kill()
	case k.child != nil:
		_ = k.child.Process.Kill()
	}
}

// disinherit has another daemon started in place of an heir that died.
func (k *keeper) disinherit(h *heir) {
	if h != k.heir {
		return // it connected, and is watched by its connection
	}
	k.log.Error("the program that the daemon became has ended before it connected: going back", "pid", h.pid)
	h.close()
	k.heir = nil
	if k.child != nil && k.child.Process.Pid == h.pid {
		k.child = nil
	}
	stopTimer(&k.late)
	k.restarts, k.fallback = 0, false
	k.scheduleRestart(true)
}

// socketOf names a socket, whatever its name in the file system becomes.
func socketOf(path string) (fileID, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return fileID{}, fmt.Errorf("find socket %s: %w", path, err)
	}
	return fileID{st.Dev, st.Ino}, nil
}

// superseded says that another keeper listens in this one's place, which has all that this one holds.
func (k *keeper) superseded() bool {
	there, err := socketOf(k.opts.Socket)
	return err == nil && there != k.socket
}
