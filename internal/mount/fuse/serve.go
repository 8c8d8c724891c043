package fuse

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/mount"
)

// read is a read that waits for its answer.
type read struct {
	unique uint64
	id     uint64
	pid    int
	node   *node
	off, n int64
}

var (
	errPanic = errors.New("handler panicked")
	// errHandover ends fetches without an answer: the kernel sends their requests again, to the next daemon.
	errHandover = errors.New("daemon hands over")
)

// serve reads requests until stop sets a deadline or the file system is gone. Several do that at once: each waits for its turn to
// read, then answers while the next one reads.
func (m *Mounter) serve() {
	b := make([]byte, bufferBytes)
	for {
		n, err := m.device.Device.Read(b)
		switch {
		case err == nil:
			m.request(b[:n], b)
		case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, os.ErrClosed), errors.Is(err, io.EOF),
			errors.Is(err, unix.ENODEV), errors.Is(err, unix.ECONNABORTED):
			return
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EINTR): // its reader was killed
		default:
			m.log.Error("read FUSE request", "err", err)
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// request answers a request, or hands it to a worker. It may use b, where the request lies in, as it likes.
func (m *Mounter) request(request, b []byte) {
	if len(request) < inHeaderBytes {
		m.log.Error("FUSE request not understood: its reader waits for a restart", "bytes", len(request))
		return
	}
	r := read{unique: binary.NativeEndian.Uint64(request[8:]), id: binary.NativeEndian.Uint64(request[16:]),
		pid: int(binary.NativeEndian.Uint32(request[32:]))}
	if binary.NativeEndian.Uint32(request[4:]) != opRead {
		var small [maxRequestBytes]byte
		err := error(unix.EIO)
		if len(request) <= len(small) {
			err = m.device.handle(small[:copy(small[:], request)], b)
		}
		if err != nil {
			m.log.Error("answer FUSE request", "opcode", binary.NativeEndian.Uint32(small[4:]), "err", err)
		}
		return
	}
	if len(request) < readInBytes {
		m.deny(r, fmt.Errorf("read request of %d bytes", len(request)))
		return
	}
	off, n := binary.NativeEndian.Uint64(request[48:]), binary.NativeEndian.Uint32(request[56:])
	node := m.node(r.id)
	if node == nil || !node.hold() {
		m.deny(r, fmt.Errorf("file %#x is no layer of ours", r.id))
		return
	}
	r.node = node
	there, err := m.look(&r, off, n)
	switch {
	case err != nil:
		m.deny(r, err)
	case there:
		if m.send(r, b) {
			m.inline.Add(1)
		}
	default:
		m.pending.Add(1)
		m.workers.Go(func() {
			defer node.letGo()
			m.fetch(r)
		})
		return
	}
	node.letGo()
}

// look says whether the range of a read is there. It cuts the range to the layer's size.
func (m *Mounter) look(r *read, off uint64, n uint32) (there bool, err error) {
	defer m.recovered(&err)
	if n > maxReadBytes {
		return false, fmt.Errorf("read of %d bytes, at most %d", n, maxReadBytes)
	}
	if off >= uint64(r.node.sizeBytes) {
		return true, nil // at the end there is nothing to read
	}
	r.off = int64(off)
	r.n = min(int64(n), r.node.sizeBytes-r.off)
	m.seen(r.node.blob, r.off, r.n, r.pid)
	return r.node.complete.Load() || m.handler.Have(r.node.blob, r.off, r.n), nil
}

// fetch is what a worker does with a read.
func (m *Mounter) fetch(r read) {
	defer m.pending.Add(-1)
	m.fetching <- struct{}{}
	err := m.bring(r)
	<-m.fetching
	if err != nil {
		if errors.Is(context.Cause(m.ctx), errHandover) {
			return // the kernel sends it again
		}
		m.deny(r, err)
		return
	}
	b := <-m.buffers
	defer func() { m.buffers <- b }()
	if b == nil {
		b = make([]byte, bufferBytes)
	}
	if m.send(r, b) {
		m.waited.Add(1)
	}
}

func (m *Mounter) bring(r read) (err error) {
	defer m.recovered(&err)
	if err := m.handler.Fetch(m.ctx, r.node.blob, r.off, r.n); err != nil {
		return err
	}
	if !r.node.complete.Load() && !m.handler.Have(r.node.blob, r.off, r.n) {
		return mount.ErrNotThere
	}
	return nil
}

// recovered turns a panic of the handler into an error.
func (m *Mounter) recovered(err *error) {
	if p := recover(); p != nil {
		m.log.Error("handler panicked", "panic", p, "stack", string(debug.Stack()))
		*err = fmt.Errorf("%w: %v", errPanic, p)
	}
}

// send answers a read with all of its bytes, from the layer file, or fails it. The bytes are copied (not spliced): a splice
// that stops in the middle has promised more in the header, and the copy costs less than the pipe for most reads.
func (m *Mounter) send(r read, b []byte) bool {
	p := b[outHeaderBytes : outHeaderBytes+r.n]
	for done := 0; done < len(p); {
		n, err := unix.Pread(r.node.fd, p[done:], r.off+int64(done))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && n == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			m.deny(r, fmt.Errorf("read layer file: %w", err))
			return false
		}
		done += n
	}
	if err := m.device.answer(r.unique, b, len(p)); err != nil {
		m.deny(r, err)
		return false
	}
	return true
}

// deny fails a read.
func (m *Mounter) deny(r read, cause error) {
	m.denied.Add(1)
	var blob digest.Digest
	if r.node != nil {
		blob = r.node.blob
	}
	m.denials.Denied(blob, r.off, r.n, cause, "pid", r.pid)
	if err := m.device.fail(r.unique, unix.EIO); err != nil {
		m.log.Error("answer FUSE request: its reader waits for a restart", "err", err)
	}
}
