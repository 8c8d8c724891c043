// Package keeper keeps a node's lazy mounts alive while their daemon is away.
//
// The kernel lets reads through, as zeros, once nobody holds the event group that watches the layer files. So a
// second process holds the group's descriptor, every watched layer's first descriptor, and the table of events not answered yet
// (group.Pending): the keeper. One daemon at a
// time is connected to it by a unix socket, gives it what it must hold, and gets all back after a restart. While no daemon
// is there nobody reads the group, so readers wait in the kernel; the keeper starts the daemon again, and when none has come
// within the grace time it reads the group itself and denies everything with EIO, until one comes. Only one process
// ever reads the group: the keeper stops before it hands it over.
//
// A FUSE connection (package fuse) is held in the same way: its requests wait in the kernel, and are denied after the grace time.
//
// If the keeper dies, the daemon's Client (which holds the same descriptors) starts another one and hands all over again.
//
// It fetches nothing, answers no read with anything but EIO, and has no state on disk. If daemon and keeper are
// killed at the same moment the watches are lost: a new daemon finds no group, and must unmount what it finds mounted.
package keeper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/mount/fanotify/group"
)

const (
	// DefaultGrace is how long readers wait for a new daemon before their reads fail.
	DefaultGrace = 30 * time.Second
	// stableAfter is how long a daemon has been connected when its death counts as a first one again.
	stableAfter = 10 * time.Second
	// idleCheck is how often a keeper whose daemon left for good looks whether it is still needed.
	idleCheck = 30 * time.Second
	// sendTimeout bounds how long a daemon that does not read can hold up the keeper.
	sendTimeout = 5 * time.Second
)

// restartDelays are the waits before the first, second, ... start of a daemon that keeps ending; the last one repeats.
var restartDelays = []time.Duration{0, 200 * time.Millisecond, time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second}

// servedDelay is the longest of these waits for a daemon that had been connected, or was killed: it can start, and its readers wait.
const servedDelay = 300 * time.Millisecond

// Options configure Run.
type Options struct {
	// Socket is the path of the unix socket, made with mode 0600. It is not made when Start passed one.
	Socket string
	// Grace is how long readers wait for a daemon; DefaultGrace when 0.
	Grace time.Duration
	// RestartCommand starts a daemon when one died without goodbye. Empty: nobody is started.
	RestartCommand []string
	// StableAfter is how long a daemon must have been connected to be started at once after its death; 10 s when 0.
	StableAfter time.Duration
	Log         *slog.Logger
}

// Prepare makes this process a keeper: safe from the kernel's out-of-memory killer, with limited descriptors, in the
// root directory so that it keeps no file system busy. It logs what it may not do.
func Prepare(log *slog.Logger) {
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0); err != nil {
		log.Warn("keeper can be killed when memory is short", "err", err)
	}
	if err := group.LimitFiles(); err != nil {
		log.Warn("keeper cannot limit its descriptors", "err", err)
	}
	_, _ = unix.Setsid() // fails where Start has done it
	if err := os.Chdir("/"); err != nil {
		log.Warn("keeper stays in its directory", "err", err)
	}
}

// Run is the keeper. It returns nil when a daemon said goodbye and nothing is left to hold, or later, once nobody uses
// what is left. Ending its context while layers are held lets their readers see zeros: do that only when no daemon is
// wanted and nothing is mounted. Call Prepare first in a process of its own.
func Run(ctx context.Context, opts Options) error {
	if opts.Grace == 0 {
		opts.Grace = DefaultGrace
	}
	if opts.StableAfter == 0 {
		opts.StableAfter = stableAfter
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	listener, err := inheritedListener()
	if err == nil && listener == nil {
		listener, err = listen(opts.Socket)
	}
	if err != nil {
		return err
	}
	k := &keeper{
		opts: opts, log: opts.Log, group: -1, pending: -1, layers: map[digest.Digest]int{}, stop: make(chan struct{}),
		accepted: make(chan *net.UnixConn), received: make(chan received), exited: make(chan error),
	}
	defer k.close(listener)
	go k.accept(listener)
	return k.loop(ctx)
}

// received is what a connection's reader got; err ends the connection.
type received struct {
	conn *net.UnixConn
	message
	fd  int
	err error
}

// keeper is the state of Run; all of it belongs to loop, the channels excepted.
type keeper struct {
	opts Options
	log  *slog.Logger

	group   int // -1: none yet
	pending int // the table of pending events, group.Pending; -1: none yet
	layers  map[digest.Digest]int

	conn        *net.UnixConn // the daemon; nil: away
	connectedAt time.Time
	goodbye     bool // the daemon that is away left on purpose

	denier     *denier     // non-nil: nobody came in time
	fuseDenier *fuseDenier // the same for a FUSE connection
	child      *exec.Cmd   // a daemon that was started and has not exited
	restarts   int         // in a row, of daemons that did not live long
	grace      *time.Timer // non-nil while the daemon is away and readers wait
	restart    *time.Timer // non-nil when a start is due
	idle       <-chan time.Time

	stop     chan struct{} // closed when loop has returned
	accepted chan *net.UnixConn
	received chan received
	exited   chan error // what the child's Wait returned
}

func (k *keeper) loop(ctx context.Context) error {
	k.away()
	for {
		select {
		case <-ctx.Done():
			if len(k.layers) > 0 {
				k.log.Error("keeper stops while layers are held: reads of what is not there will be zeros", "layers", len(k.layers))
			}
			return context.Cause(ctx)
		case conn := <-k.accepted:
			k.connect(conn)
		case in := <-k.received:
			if k.handle(in) {
				return nil
			}
		case err := <-k.exited:
			k.child = nil
			if k.conn == nil && !k.goodbye && k.restart == nil { // else the next one's start is due already
				k.log.Warn("daemon exited before it connected", "err", err)
				k.scheduleRestart(killed(err))
			}
		case <-fires(k.restart):
			k.restart = nil
			k.startDaemon()
		case <-fires(k.grace):
			k.grace = nil
			k.deny()
		case <-k.idle:
			if k.unused() {
				k.log.Info("keeper leaves: nobody uses its layers", "layers", len(k.layers))
				return nil
			}
		}
	}
}

func fires(t *time.Timer) <-chan time.Time {
	if t == nil {
		return nil
	}
	return t.C
}

// connect makes a new connection the daemon's and hands over all descriptors.
func (k *keeper) connect(conn *net.UnixConn) {
	_ = conn.SetWriteDeadline(time.Now().Add(sendTimeout))
	if k.conn != nil {
		_ = send(conn, message{kind: kindRefused, text: "another daemon is connected"}, -1)
		conn.Close()
		return
	}
	k.stopDeniers() // one reader at a time: they have stopped when this returns
	if err := k.welcome(conn); err != nil {
		k.log.Warn("daemon went away while it was connecting", "err", err)
		conn.Close()
		k.away()
		return
	}
	k.conn, k.connectedAt, k.goodbye, k.idle = conn, time.Now(), false, nil
	stopTimer(&k.grace)
	stopTimer(&k.restart)
	go k.read(conn)
}

func (k *keeper) welcome(conn *net.UnixConn) error {
	follow := len(k.layers)
	if k.pending >= 0 {
		follow++
	}
	if err := send(conn, message{kind: kindWelcome, value: uint32(follow)}, k.group); err != nil {
		return err
	}
	if k.pending >= 0 {
		if err := send(conn, message{kind: kindPending}, k.pending); err != nil {
			return err
		}
	}
	for blob, fd := range k.layers {
		if err := send(conn, message{kind: kindLayer, text: blob.String()}, fd); err != nil {
			return err
		}
	}
	return nil
}

// handle does what a message says; true: the keeper is done.
func (k *keeper) handle(in received) bool {
	if in.conn != k.conn {
		closeFD(in.fd)
		return false
	}
	if in.err != nil {
		k.log.Warn("daemon is gone without goodbye: its readers wait", "cause", in.err, "layers", len(k.layers), "grace", k.opts.Grace)
		k.disconnect()
		if len(k.layers) == 0 && len(k.opts.RestartCommand) == 0 {
			return true
		}
		k.away()
		return false
	}
	switch in.kind {
	case kindGroup:
		closeFD(k.group)
		k.group = in.fd
	case kindPending:
		closeFD(k.pending)
		k.pending = in.fd
	case kindLayer:
		k.drop(digest.Digest(in.text))
		k.layers[digest.Digest(in.text)] = in.fd
	case kindDrop:
		k.drop(digest.Digest(in.text))
	case kindSync:
		_ = k.conn.SetWriteDeadline(time.Now().Add(sendTimeout))
		if err := send(k.conn, message{kind: kindSynced, value: in.value}, -1); err != nil {
			k.log.Warn("answer daemon", "err", err) // its reader sees the end of the connection
		}
	case kindGoodbye:
		k.goodbye = true
		k.disconnect()
		if len(k.layers) == 0 {
			return true
		}
		k.log.Warn("daemon left with layers that are still watched: their readers wait", "layers", len(k.layers), "grace", k.opts.Grace)
		k.away()
	default:
		k.log.Warn("daemon sent a message it should not", "kind", in.kind)
	}
	return false
}

func (k *keeper) drop(blob digest.Digest) {
	if fd, ok := k.layers[blob]; ok {
		unix.Close(fd)
		delete(k.layers, blob)
	}
}

func (k *keeper) disconnect() {
	k.conn.Close()
	k.conn = nil
	if time.Since(k.connectedAt) >= k.opts.StableAfter {
		k.restarts = 0
	}
}

// away is the state between daemons: readers wait, and another daemon is started unless the last one left on purpose.
// The one that started the keeper has not been here yet; whoever started it notices its death.
func (k *keeper) away() {
	stopTimer(&k.grace)
	k.grace = time.NewTimer(k.opts.Grace)
	if !k.goodbye && !k.connectedAt.IsZero() {
		k.scheduleRestart(true)
	}
}

// scheduleRestart has a daemon started; served says that the last one was not at fault for sure.
func (k *keeper) scheduleRestart(served bool) {
	if len(k.opts.RestartCommand) == 0 {
		return
	}
	stopTimer(&k.restart)
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
		k.restarts-- // it lost its connection, or is still on its way to it: when it exits this is called again
		return
	}
	cmd := exec.Command(k.opts.RestartCommand[0], k.opts.RestartCommand[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		k.log.Error("start daemon", "err", err)
		k.scheduleRestart(false)
		return
	}
	k.log.Info("started a daemon", "pid", cmd.Process.Pid)
	k.child = cmd
	go func() {
		err := cmd.Wait()
		select {
		case k.exited <- err:
		case <-k.stop:
		}
	}()
}

// deny is the state after the grace time: reads fail until a daemon comes.
func (k *keeper) deny() {
	k.idle = time.Tick(idleCheck)
	if device, ok := k.layers[FUSEDevice]; ok {
		k.log.Error("no daemon came: reads through FUSE fail with EIO", "grace", k.opts.Grace)
		d, err := startFUSEDenier(device, k.log)
		if err != nil {
			k.log.Error("deny reads through FUSE: they wait for a daemon instead", "err", err)
		}
		k.fuseDenier = d
	}
	if k.group < 0 {
		return
	}
	k.log.Error("no daemon came: reads of layers that are not complete fail with EIO", "grace", k.opts.Grace, "layers", len(k.layers))
	d, err := startDenier(k.group, k.layers, k.log)
	if err != nil {
		k.log.Error("deny reads: they wait for a daemon instead", "err", err)
		return
	}
	k.denier = d
}

func (k *keeper) stopDeniers() {
	if k.denier != nil {
		k.denier.close()
		k.denier = nil
	}
	if k.fuseDenier != nil {
		k.fuseDenier.close()
		k.fuseDenier = nil
	}
}

// unused says that no daemon is expected, and nobody else has a layer open. Who uses a FUSE connection the kernel does not say: one that is
// held is in use.
func (k *keeper) unused() bool {
	if k.conn != nil || (!k.goodbye && len(k.opts.RestartCommand) > 0 && len(k.layers) > 0) {
		return false
	}
	if _, ok := k.layers[FUSEDevice]; ok {
		return false
	}
	for blob, fd := range k.layers {
		used, err := group.InUse(fd)
		if err != nil {
			k.log.Warn("keep layer", "layer", blob, "err", err)
		}
		if used || err != nil {
			return false
		}
	}
	return true
}

func (k *keeper) accept(listener *net.UnixListener) {
	for {
		conn, err := listener.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			err = checkPeer(conn)
		}
		if err != nil {
			k.log.Warn("refused a connection", "err", err)
			if conn != nil {
				conn.Close()
			} else {
				time.Sleep(10 * time.Millisecond) // no descriptor is left, say
			}
			continue
		}
		select {
		case k.accepted <- conn:
		case <-k.stop:
			conn.Close()
			return
		}
	}
}

func (k *keeper) read(conn *net.UnixConn) {
	for {
		m, fd, err := receive(conn)
		select {
		case k.received <- received{conn: conn, message: m, fd: fd, err: err}:
		case <-k.stop:
			closeFD(fd)
			return
		}
		if err != nil {
			return
		}
	}
}

func (k *keeper) close(listener *net.UnixListener) {
	close(k.stop)
	os.Remove(k.opts.Socket) // before nobody listens: from then on another keeper may put its own there
	listener.Close()
	k.stopDeniers()
	if k.conn != nil {
		k.conn.Close()
	}
	stopTimer(&k.grace)
	stopTimer(&k.restart)
	for blob := range k.layers {
		k.drop(blob)
	}
	closeFD(k.group)
	closeFD(k.pending)
}

func closeFD(fd int) {
	if fd >= 0 {
		unix.Close(fd)
	}
}

func stopTimer(t **time.Timer) {
	if *t != nil {
		(*t).Stop()
		*t = nil
	}
}

// checkPeer lets in root and the user that the keeper runs as.
func checkPeer(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return err
	}
	if credErr != nil {
		return fmt.Errorf("read peer's credentials: %w", credErr)
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("peer %d has uid %d", cred.Pid, cred.Uid)
	}
	return nil
}
