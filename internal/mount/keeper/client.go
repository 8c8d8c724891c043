package keeper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/mount/fanotify/group"
)

// ErrBusy is returned by Connect when another daemon stays connected to the keeper.
var ErrBusy = errors.New("another daemon is connected to the keeper")

const (
	busyPatience   = 5 * time.Second // how long a predecessor may take to be gone
	busyRetry      = 20 * time.Millisecond
	welcomeTimeout = 10 * time.Second
	syncTimeout    = 10 * time.Second
	reconnectDelay = 200 * time.Millisecond // after an attempt to replace a dead keeper failed
)

// ClientOptions configure Connect.
type ClientOptions struct {
	// Socket is the keeper's.
	Socket string
	// Command starts a keeper where none listens; it must come to Run. Empty: there must be one.
	Command []string
	// LogPath is where a keeper that is started writes; empty: nowhere.
	LogPath string
	// Store holds the same descriptors once more, in a service manager; nil: there is none.
	Store Store
	// Stored are those that Store gave back at the start of this process, by name. They are used where no keeper has any. Connect owns them.
	Stored map[string]*os.File
	Log    *slog.Logger
}

// Store keeps descriptors under names while this process is away. Its methods do not wait, and log what goes wrong.
type Store interface {
	// Put has a duplicate of a descriptor kept under a name that has none.
	Put(name string, fd int)
	// Remove lets go of what is kept under a name; that there is nothing is no error.
	Remove(name string)
}

// Client is a daemon's connection to its keeper. It owns duplicates of all descriptors it handed over or got, and hands
// them to a new keeper should this one die.
type Client struct {
	opts      ClientOptions
	log       *slog.Logger
	inherited bool
	leave     context.CancelFunc // ends attempts to replace a dead keeper
	done      chan struct{}      // closed when run has returned

	mu      sync.Mutex // guards what follows; held while messages are sent, so that they keep their order
	conn    *net.UnixConn
	process *os.Process // of the keeper, where this client started it
	about   About       // the keeper
	bye     bool        // goodbye was said
	heir    bool        // this process is going to be another program
	restart string      // the text of the last kindRestart
	group   int         // -1: none
	pending *group.Pending
	stale   []group.Stale
	layers  map[digest.Digest]int
	closed  bool
	syncs   map[uint32]chan struct{}
	lastID  uint32
}

// Connect connects to the node's keeper, and starts one where there is none.
func Connect(ctx context.Context, opts ClientOptions) (*Client, error) {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	c := &Client{
		opts: opts, log: opts.Log, done: make(chan struct{}),
		group: -1, layers: map[digest.Digest]int{}, syncs: map[uint32]chan struct{}{},
	}
	stored := takeStored(opts.Stored)
	conn, held, err := c.connect(ctx)
	if err != nil {
		stored.close()
		return nil, fmt.Errorf("connect to keeper: %w", err)
	}
	restored := held.empty() && !stored.empty()
	kept := stored.names() // what need not be stored again
	if restored {
		held, stored = stored, held
	} else {
		there := held.names()
		maps.DeleteFunc(kept, func(name string, fd int) bool {
			other, ok := there[name]
			return !ok || !sameOpenFile(fd, other)
		})
	}
	stored.close()
	c.conn, c.group, c.layers, c.inherited = conn, held.group, held.layers, held.group >= 0
	if held.pending != nil {
		c.pending, c.stale = held.pending, held.pending.Reserve()
	} else if c.pending, err = group.NewPending(); err == nil {
		err = send(c.conn, message{kind: kindPending}, c.pending.FD())
	}
	if err == nil && restored {
		c.log.Warn("daemon and keeper were both gone: the service manager had kept what they held", "layers", len(c.layers))
		err = c.giveAll(conn)
	}
	if err != nil {
		conn.Close()
		held.close()
		return nil, fmt.Errorf("connect to keeper: %w", err)
	}
	c.storeAll(kept)
	run, leave := context.WithCancel(context.WithoutCancel(ctx))
	c.leave = leave
	go c.run(run)
	return c, nil
}

// Inherited says whether the group was in use by an earlier daemon, whose unanswered events must be swept.
func (c *Client) Inherited() bool { return c.inherited }

// Group returns a duplicate of the group's descriptor, the caller's to close, or nil when the keeper had none.
func (c *Client) Group() (*os.File, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.group < 0 {
		return nil, nil
	}
	return duplicate(c.group, "fanotify")
}

// Pending returns the table of events that are not answered yet, which lives until the client is closed.
func (c *Client) Pending() *group.Pending { return c.pending }

// TakeStale returns the events that an earlier daemon did not answer, with their numbers reserved, for the caller to answer. The second call returns none.
func (c *Client) TakeStale() []group.Stale {
	c.mu.Lock()
	defer c.mu.Unlock()
	stale := c.stale
	c.stale = nil
	return stale
}

// Layers returns duplicates, the caller's to close, of the first descriptors that are held.
func (c *Client) Layers() (map[digest.Digest]*os.File, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	files := make(map[digest.Digest]*os.File, len(c.layers))
	for blob, fd := range c.layers {
		f, err := duplicate(fd, blob.String())
		if err != nil {
			for _, f := range files {
				f.Close()
			}
			return nil, err
		}
		files[blob] = f
	}
	return files, nil
}

// SetGroup gives the keeper a new group. When it returns nil the keeper holds it.
func (c *Client) SetGroup(ctx context.Context, f *os.File) error {
	fd, err := duplicateFD(f)
	if err != nil {
		return err
	}
	c.mu.Lock()
	if c.group >= 0 {
		unix.Close(c.group)
	}
	c.group = fd
	c.store(nameGroup, fd)
	_ = send(c.conn, message{kind: kindGroup}, fd) // should the keeper be gone, run gives it to the next
	c.mu.Unlock()
	return c.sync(ctx)
}

// Hold gives the keeper the layers' first descriptors, which stay the caller's too. When it returns nil the keeper holds
// them, and the files may be marked.
func (c *Client) Hold(ctx context.Context, layers map[digest.Digest]*os.File) error {
	for blob, file := range layers {
		fd, err := duplicateFD(file)
		if err != nil {
			return fmt.Errorf("hold layer %s: %w", blob, err)
		}
		c.mu.Lock()
		if old, ok := c.layers[blob]; ok {
			unix.Close(old)
		}
		c.layers[blob] = fd
		c.store(storeName(blob), fd)
		_ = send(c.conn, message{kind: kindLayer, text: blob.String()}, fd)
		c.mu.Unlock()
	}
	return c.sync(ctx)
}

// Drop lets go of a layer that is not watched any more. It does not wait.
func (c *Client) Drop(blob digest.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fd, ok := c.layers[blob]
	if !ok {
		return
	}
	unix.Close(fd)
	delete(c.layers, blob)
	if c.opts.Store != nil {
		c.opts.Store.Remove(storeName(blob))
	}
	_ = send(c.conn, message{kind: kindDrop, text: blob.String()}, -1)
}

// Goodbye tells the keeper that this daemon leaves on purpose, and closes the client. A keeper that holds no layers exits;
// one that does waits for another daemon, and denies its readers after the grace time. After HandOver it says that instead.
// The caller has stopped reading the group.
func (c *Client) Goodbye() {
	c.mu.Lock()
	bye := kindGoodbye
	if c.heir {
		bye = kindHandover
	}
	c.bye = true // before it is said: the keeper ends the connection then, and is not gone
	_ = send(c.conn, message{kind: bye}, -1)
	gone := c.process != nil && len(c.layers) == 0 && !c.heir
	process := c.process
	if len(c.layers) == 0 && c.opts.Store != nil {
		c.opts.Store.Remove(nameGroup)
		c.opts.Store.Remove(namePending)
	}
	c.mu.Unlock()
	c.close(false)
	if gone {
		_, _ = process.Wait()
	}
}

// Close ends the connection as a crash would: the keeper starts another daemon.
// The caller has stopped reading the group.
func (c *Client) Close() { c.close(true) }

// close waits for run, which sees the end of the connection: at once, or when the keeper has understood the goodbye.
func (c *Client) close(atOnce bool) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return
	}
	c.closed = true
	c.leave()
	if atOnce {
		c.conn.Close()
	} else {
		_ = c.conn.SetReadDeadline(time.Now().Add(syncTimeout))
	}
	c.mu.Unlock()
	<-c.done
	c.conn.Close()
	for _, s := range c.stale {
		unix.Close(int(s.FD))
	}
	held{group: c.group, pending: c.pending, layers: c.layers}.close()
}

// sync returns when the keeper, or the one after it, has all that was sent before.
func (c *Client) sync(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	c.mu.Lock()
	c.lastID++
	id, answered := c.lastID, make(chan struct{})
	c.syncs[id] = answered
	_ = send(c.conn, message{kind: kindSync, value: id}, -1)
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.syncs, id)
		c.mu.Unlock()
	}()
	select {
	case <-answered:
		return nil
	case <-c.done:
		return fmt.Errorf("wait for keeper: %w", net.ErrClosed)
	case <-ctx.Done():
		return fmt.Errorf("wait for keeper: %w", ctx.Err())
	}
}

// run reads the keeper's answers, and replaces it when it dies.
func (c *Client) run(ctx context.Context) {
	defer close(c.done)
	for {
		conn := c.current()
		m, fd, err := receive(conn)
		closeFD(fd)
		if err == nil {
			if m.kind == kindSynced {
				c.mu.Lock()
				if answered, ok := c.syncs[m.value]; ok {
					close(answered)
					delete(c.syncs, m.value)
				}
				c.mu.Unlock()
			}
			continue
		}
		for !c.replace(ctx, conn, err) {
			timer := time.NewTimer(reconnectDelay)
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
				return
			}
		}
		if ctx.Err() != nil || c.left() {
			return
		}
	}
}

func (c *Client) left() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bye
}

func (c *Client) current() *net.UnixConn {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.conn
}

// replace gets another keeper and gives it everything. False: it is to be tried again.
func (c *Client) replace(ctx context.Context, dead *net.UnixConn, cause error) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.bye || c.conn != dead {
		return true
	}
	c.log.Error("keeper is gone: starting another", "cause", cause)
	c.conn.Close()
	if c.process != nil {
		_ = c.process.Kill() // it closed the connection: if it is not dead it must not be reading
		_, _ = c.process.Wait()
		c.process = nil
	}
	conn, held, err := c.connect(ctx)
	if err != nil {
		c.log.Error("replace keeper: a crash now would break running containers", "err", err)
		return false
	}
	held.close() // what it holds is replaced by what we have
	if err := c.giveAll(conn); err != nil {
		conn.Close()
		c.log.Error("replace keeper", "err", err)
		return false
	}
	c.conn = conn
	return true
}

// giveAll hands everything to a keeper that has nothing. Its caller holds mu, or nobody else has the client.
func (c *Client) giveAll(conn *net.UnixConn) error {
	err := send(conn, message{kind: kindPending}, c.pending.FD())
	if c.group >= 0 && err == nil {
		err = send(conn, message{kind: kindGroup}, c.group)
	}
	for blob, fd := range c.layers {
		err = errors.Join(err, send(conn, message{kind: kindLayer, text: blob.String()}, fd))
	}
	if c.restart != "" {
		err = errors.Join(err, send(conn, message{kind: kindRestart, text: c.restart}, -1))
	}
	for id := range c.syncs {
		err = errors.Join(err, send(conn, message{kind: kindSync, value: id}, -1))
	}
	return err
}

// held are descriptors that a keeper gave back.
type held struct {
	group   int
	pending *group.Pending // nil: none, or of another version
	layers  map[digest.Digest]int
}

func (h held) empty() bool { return h.group < 0 && len(h.layers) == 0 }

// names returns the descriptors under their names in a Store.
func (h held) names() map[string]int {
	all := make(map[string]int, len(h.layers)+2)
	if h.group >= 0 {
		all[nameGroup] = h.group
	}
	if h.pending != nil {
		all[namePending] = h.pending.FD()
	}
	for blob, fd := range h.layers {
		all[storeName(blob)] = fd
	}
	return all
}

func (h held) close() {
	for _, fd := range h.layers {
		unix.Close(fd)
	}
	closeFD(h.group)
	if h.pending != nil {
		h.pending.Close()
	}
}

// connect dials the keeper, starting one if need be, and waits for a predecessor to leave.
func (c *Client) connect(ctx context.Context) (*net.UnixConn, held, error) {
	deadline := time.Now().Add(busyPatience)
	for {
		conn, err := net.DialUnix(network, nil, &net.UnixAddr{Name: c.opts.Socket, Net: network})
		if err != nil && len(c.opts.Command) > 0 && (errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED)) {
			if c.process, err = Start(c.opts.Socket, c.opts.LogPath, c.opts.Command); err != nil {
				return nil, held{}, err
			}
			conn, err = net.DialUnix(network, nil, &net.UnixAddr{Name: c.opts.Socket, Net: network})
		}
		if err != nil {
			return nil, held{}, err
		}
		got, about, err := readWelcome(conn)
		if err == nil {
			c.about = about
			return conn, got, nil
		}
		conn.Close()
		// A keeper that is just leaving ends the connection, and one that has not seen its last daemon's end refuses.
		leaving := errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET)
		if !leaving && !errors.Is(err, ErrBusy) || time.Now().After(deadline) {
			return nil, held{}, err
		}
		timer := time.NewTimer(busyRetry)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, held{}, ctx.Err()
		}
	}
}

func readWelcome(conn *net.UnixConn) (held, About, error) {
	_ = conn.SetReadDeadline(time.Now().Add(welcomeTimeout))
	defer func() { _ = conn.SetReadDeadline(time.Time{}) }()
	m, fd, err := receive(conn)
	if err != nil {
		return held{}, About{}, fmt.Errorf("read keeper's welcome: %w", err)
	}
	got := held{group: fd, layers: map[digest.Digest]int{}}
	switch m.kind {
	case kindWelcome:
	case kindRefused:
		return held{}, About{}, fmt.Errorf("%w (%s)", ErrBusy, m.text)
	default:
		got.close()
		return held{}, About{}, fmt.Errorf("read keeper's welcome: message of kind %d", m.kind)
	}
	var about About
	_ = json.Unmarshal([]byte(m.text), &about) // only told to users
	for range m.value {
		m, fd, err := receive(conn)
		switch {
		case err == nil && m.kind == kindPending && got.pending == nil:
			got.pending, _ = group.OpenPending(fd) // one that is not understood is replaced, and its events denied
			continue
		case err == nil && m.kind == kindLayer:
			got.layers[digest.Digest(m.text)] = fd
			continue
		case err == nil:
			err = fmt.Errorf("message of kind %d", m.kind)
		}
		closeFD(fd)
		got.close()
		return held{}, About{}, fmt.Errorf("read descriptors from keeper: %w", err)
	}
	return got, about, nil
}

func duplicate(fd int, name string) (*os.File, error) {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate descriptor of %s: %w", name, err)
	}
	return os.NewFile(uintptr(dup), name), nil
}

// duplicateFD does not use Fd, which would make a file in the poller blocking for all who share it.
func duplicateFD(f *os.File) (int, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, fmt.Errorf("duplicate descriptor: %w", err)
	}
	dup, dupErr := -1, error(nil)
	err = raw.Control(func(fd uintptr) { dup, dupErr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) })
	if err = errors.Join(err, dupErr); err != nil {
		return -1, fmt.Errorf("duplicate descriptor: %w", err)
	}
	return dup, nil
}
