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
// If the keeper dies, the daemon's Client (which holds the same descriptors) starts another one and hands all over again. It does the same
// to replace a keeper of an older program (Client.Renew): the socket's name in the file system says which keeper is in charge.
//
// It fetches nothing, answers no read with anything but EIO, and has no state on disk. If daemon and keeper are
// killed at the same moment the watches are lost, unless a service manager holds the descriptors too (ClientOptions.Store): a new daemon
// finds no group, and must unmount what it finds mounted.
package keeper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/mount/fanotify/group"
)

const (
	// DefaultGrace is how long readers wait for a new daemon before their reads fail.
	DefaultGrace = 30 * time.Second
	// idleCheck is how often a keeper whose daemon left for good looks whether it is still needed.
	idleCheck = 30 * time.Second
	// sendTimeout bounds how long a daemon that does not read can hold up the keeper.
	sendTimeout = 5 * time.Second
)

// Options configure Run.
type Options struct {
	// Socket is the path of the unix socket, made with mode 0600. It is not made when Start passed one.
	Socket string
	// Grace is how long readers wait for a daemon; DefaultGrace when 0.
	Grace time.Duration
	// RestartCommand starts a daemon when one died without goodbye. Empty: nobody is started. A daemon that answers calls replaces it by its own.
	RestartCommand []string
	// Program is what starts daemons in place of RestartCommand's first word when that did not come to anything: this very program, whatever lies
	// under its name now. Empty: there is no other.
	Program string
	// Version is told to daemons.
	Version string
	// StableAfter is how long a daemon must have been connected to be started at once after its death; 10 s when 0.
	StableAfter time.Duration
	// HeirPatience is how long a program that is to be the next daemon may take to connect before it is killed; 20 s when 0.
	HeirPatience time.Duration
	Log          *slog.Logger
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
	if opts.HeirPatience == 0 {
		opts.HeirPatience = heirPatience
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
	id, err := socketOf(listener.Addr().String())
	if err != nil {
		listener.Close()
		return err
	}
	k := &keeper{
		opts: opts, socket: id, log: opts.Log, group: -1, pending: -1, layers: map[digest.Digest]int{}, stop: make(chan struct{}),
		accepted: make(chan *net.UnixConn), received: make(chan received), exited: make(chan *child),
		heirGone: make(chan *heir),
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

	socket fileID // that this keeper listens on, whatever its name is by now

	group   int // -1: none yet
	pending int // the table of pending events, group.Pending; -1: none yet
	layers  map[digest.Digest]int

	conn        *net.UnixConn // the daemon; nil: away
	peer        *heir         // its process
	connectedAt time.Time
	confirmed   bool  // it answers calls
	dying       bool  // it was at the last look
	goodbye     bool  // the daemon that is away left on purpose
	left        bool  // and events that it had read and did not answer
	heir        *heir // non-nil: the process that becomes the next daemon

	denier     *denier     // non-nil: nobody came in time
	fuseDenier *fuseDenier // the same for a FUSE connection
	child      *child      // a daemon that was started and has not exited
	restarts   int         // in a row, of daemons that did not live long
	fallback   bool        // the next one is started with Options.Program
	grace      *time.Timer // non-nil while the daemon is away and readers wait
	restart    *time.Timer // non-nil when a start is due
	late       *time.Timer // non-nil while an heir is waited for
	waiting    <-chan time.Time
	idle       <-chan time.Time

	stop     chan struct{} // closed when loop has returned
	accepted chan *net.UnixConn
	received chan received
	exited   chan *child
	heirGone chan *heir
}

func (k *keeper) loop(ctx context.Context) error {
	stuck := time.NewTicker(stuckCheck)
	defer stuck.Stop()
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
		case c := <-k.exited:
			k.childExited(c)
		case <-fires(k.restart):
			k.restart = nil
			k.startDaemon()
		case <-fires(k.grace):
			k.grace = nil
			k.deny()
		case h := <-k.heirGone:
			k.disinherit(h)
		case <-fires(k.late):
			k.late = nil
			k.overdue()
		case <-stuck.C:
			k.free()
		case <-k.waiting:
			k.wake()
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
	peer, err := peerOf(conn)
	if err == nil {
		err = k.welcome(conn)
	}
	if err != nil {
		k.log.Warn("daemon went away while it was connecting", "err", err)
		peer.close()
		conn.Close()
		k.away()
		return
	}
	k.conn, k.peer, k.connectedAt, k.confirmed, k.goodbye, k.idle, k.waiting = conn, peer, time.Now(), false, false, nil, nil
	if k.child != nil && k.child.Process.Pid == peer.pid {
		k.child.connected = true
	}
	k.heir.close()
	k.heir = nil
	stopTimer(&k.grace)
	stopTimer(&k.restart)
	stopTimer(&k.late)
	go k.read(conn)
}

// About is what a keeper says of itself.
type About struct {
	Version string `json:"version"`
	Pid     int    `json:"pid"`
}

func (k *keeper) welcome(conn *net.UnixConn) error {
	follow := len(k.layers)
	if k.pending >= 0 {
		follow++
	}
	about, err := json.Marshal(About{Version: k.opts.Version, Pid: os.Getpid()})
	if err != nil {
		return err
	}
	if err := send(conn, message{kind: kindWelcome, value: uint32(follow), text: string(about)}, k.group); err != nil {
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
	if in.err != nil && k.superseded() {
		k.log.Info("keeper leaves: another one has taken its place")
		return true
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
	case kindHandover:
		k.log.Info("daemon hands over to another program: its readers wait", "layers", len(k.layers))
		k.heir, k.peer = k.peer, nil
		k.disconnect()
		k.away()
		k.await()
	case kindRestart:
		k.confirm(in.text)
	default: // of a later version
		closeFD(in.fd)
		k.log.Warn("daemon sent a message of an unknown kind", "kind", in.kind)
	}
	return false
}

func (k *keeper) drop(blob digest.Digest) {
	if fd, ok := k.layers[blob]; ok {
		unix.Close(fd)
		delete(k.layers, blob)
	}
}

// deny is the state after the grace time: reads fail until a daemon comes.
func (k *keeper) deny() {
	k.idle = time.Tick(idleCheck)
	if device, ok := k.layers[FUSEDevice]; ok {
		k.log.Error("no daemon came: reads through FUSE fail with EIO", "grace", k.opts.Grace)
		d, err := startFUSEDenier(device, false, k.log)
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
	if !k.superseded() {
		os.Remove(k.opts.Socket) // before nobody listens: from then on another keeper may put its own there
	}
	listener.Close()
	k.stopDeniers()
	if k.conn != nil {
		k.conn.Close()
	}
	k.peer.close()
	k.heir.close()
	stopTimer(&k.grace)
	stopTimer(&k.restart)
	stopTimer(&k.late)
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
	cred, err := credentials(conn)
	if err != nil {
		return err
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("peer %d has uid %d", cred.Pid, cred.Uid)
	}
	return nil
}

func credentials(conn *net.UnixConn) (*unix.Ucred, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return nil, err
	}
	if credErr != nil {
		return nil, fmt.Errorf("read peer's credentials: %w", credErr)
	}
	return cred, nil
}
