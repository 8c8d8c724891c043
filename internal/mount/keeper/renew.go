package keeper

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"time"
)

// About describes the keeper.
func (c *Client) About() About {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.about
}

// HandOver says that this process is about to become another program, with the same pid, which goes on with what the keeper holds. Goodbye
// then tells the keeper so: it waits for the program, and starts another daemon should that die.
func (c *Client) HandOver() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.heir = true
}

// Serves tells the keeper that this daemon answers calls, and the command that starts another one like it; empty: it is not to start any.
func (c *Client) Serves(restart []string) error {
	text := []byte("[]")
	if len(restart) > 0 {
		var err error
		if text, err = json.Marshal(restart); err != nil {
			return fmt.Errorf("tell keeper how to start a daemon: %w", err)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.restart = string(text)
	return send(c.conn, message{kind: kindRestart, text: c.restart}, -1)
}

// Renew replaces the keeper by one that is this process's program, if it is another. The old one holds everything until the new one does:
// what the socket's name refers to decides which of the two is in charge should this process die meanwhile. After an error the old one stays.
func (c *Client) Renew(ctx context.Context) error {
	if len(c.opts.Command) == 0 || sameProgram(c.About().Pid) {
		return nil
	}
	socket := c.opts.Socket + ".new"
	process, err := Start(socket, c.opts.LogPath, c.opts.Command)
	if err != nil {
		return fmt.Errorf("renew keeper: %w", err)
	}
	fail := func(err error) error {
		os.Remove(socket)
		_ = process.Kill() // it holds nothing that others do not
		_, _ = process.Wait()
		return fmt.Errorf("renew keeper: %w", err)
	}
	conn, err := net.DialUnix(network, nil, &net.UnixAddr{Name: socket, Net: network})
	if err != nil {
		return fail(err)
	}
	held, about, err := readWelcome(conn)
	if err != nil {
		conn.Close()
		return fail(err)
	}
	held.close()
	if err := c.swap(ctx, conn, about, process); err != nil {
		conn.Close()
		return fail(err)
	}
	return nil
}

// renewed is the number of the sync that ends a handover to a new keeper. Others count from 1.
const renewed = 0

// swap gives everything to a new keeper and lets go of the old one.
func (c *Client) swap(ctx context.Context, conn *net.UnixConn, about About, process *os.Process) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.bye {
		return net.ErrClosed
	}
	if err := c.giveAll(conn); err != nil {
		return err
	}
	if err := send(conn, message{kind: kindSync, value: renewed}, -1); err != nil {
		return err
	}
	_ = conn.SetReadDeadline(time.Now().Add(syncTimeout))
	for {
		m, fd, err := receive(conn)
		closeFD(fd)
		if err != nil {
			return fmt.Errorf("wait for new keeper: %w", err)
		}
		if answered, ok := c.syncs[m.value]; ok && m.kind == kindSynced {
			close(answered)
			delete(c.syncs, m.value)
		}
		if m.kind == kindSynced && m.value == renewed {
			break
		}
	}
	_ = conn.SetReadDeadline(time.Time{})
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := os.Rename(c.opts.Socket+".new", c.opts.Socket); err != nil { // from here on the new one is in charge
		return err
	}
	c.log.Info("keeper is replaced", "version", about.Version, "pid", about.Pid, "before", c.about.Version)
	c.conn.Close() // the old one sees that, and leaves
	if c.process != nil {
		_ = c.process.Kill()
		_, _ = c.process.Wait()
	}
	c.conn, c.about, c.process = conn, about, process
	return nil
}

// sameProgram says whether a process runs the same program file as this one, whatever the file's name is by now.
func sameProgram(pid int) bool {
	mine, err := os.Stat("/proc/self/exe")
	if err != nil {
		return true // nothing can be told, so nothing is replaced
	}
	theirs, err := os.Stat(fmt.Sprintf("/proc/%d/exe", pid))
	return err != nil || os.SameFile(mine, theirs)
}
