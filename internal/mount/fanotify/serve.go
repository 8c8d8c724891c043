package fanotify

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/mount"
	"github.com/thaw-project/thaw/internal/mount/fanotify/group"
)

// longAgo is a deadline that has passed.
var longAgo = time.Unix(1, 0)

// request is a read that waits for a range. Its event's descriptor is closed by answer.
type request struct {
	event  int32
	pid    int32
	layer  *watch
	off, n int64
}

// serve reads the group until stop sets a deadline.
func (m *Mounter) serve() {
	defer close(m.served)
	b := make([]byte, group.ReadBytes)
	for {
		n, err := m.group.Read(b)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		if err != nil {
			// The kernel denied the event that it could not deliver (no descriptor left, say).
			m.denied.Add(1)
			m.log.Error("read fanotify group: a read was denied", "err", err)
			time.Sleep(10 * time.Millisecond)
			continue
		}
		if err := group.ParseEvents(b[:n], m.event); err != nil {
			m.log.Error("fanotify events not understood: their readers wait for a restart", "err", err)
		}
	}
}

// event answers one event, or hands it to the queue.
func (m *Mounter) event(e group.Event) {
	if e.Overflow {
		m.log.Error("fanotify queue overflowed: reads may have returned zeros; unmount and mount again")
	}
	if e.FD < 0 {
		return
	}
	r := request{event: e.FD, pid: e.PID, off: e.Off, n: e.Count}
	queued := false
	err := errPanic
	defer func() {
		if !queued {
			m.answer(r, err, recover())
		}
	}()
	var there bool
	there, err = m.look(&r, e.HasRange)
	if err != nil {
		return
	}
	if there {
		m.inline.Add(1)
		return
	}
	queued = true
	m.enqueue(r)
}

func (m *Mounter) enqueue(r request) {
	m.table.Put(r.event, r.layer.id.dev, r.layer.id.ino, r.off, r.n)
	m.pending.Add(1)
	m.queue.put(r)
}

// resume takes over an event that an earlier daemon read. Its number is occupied here, so it is answered and closed like
// one of our own.
func (m *Mounter) resume(s group.Stale) {
	r := request{event: s.FD, off: s.Off, n: s.N, layer: (*m.watches.Load())[fileID{s.Dev, s.Ino}]}
	if r.layer == nil {
		m.answer(r, fmt.Errorf("file %d:%d (inode %d) is not watched any more", unix.Major(s.Dev), unix.Minor(s.Dev), s.Ino), nil)
		return
	}
	m.pending.Add(1) // it is in the table
	m.queue.put(r)
}

// look finds the layer of an event and says whether its range is there. It cuts the range to the layer's size.
func (m *Mounter) look(r *request, hasRange bool) (there bool, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(r.event), &st); err != nil {
		return false, fmt.Errorf("stat event's file: %w", err)
	}
	w := (*m.watches.Load())[fileID{st.Dev, st.Ino}]
	if w == nil {
		return false, fmt.Errorf("file %d:%d (inode %d) is no layer of ours", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
	}
	r.layer = w
	switch {
	case w.complete:
		return true, nil
	case !hasRange || r.n == 0:
		return false, errors.New("event has no range")
	case r.off >= w.sizeBytes:
		return true, nil // at the end there is nothing to read
	}
	r.n = min(r.n, w.sizeBytes-r.off)
	m.seen(w.blob, r.off, r.n, int(r.pid))
	return m.handler.Have(w.blob, r.off, r.n), nil
}

var errPanic = errors.New("handler panicked")

// fetch is what a worker does with a request.
func (m *Mounter) fetch(r request) {
	defer m.pending.Add(-1)
	err := errPanic
	defer func() {
		panicked := recover()
		if err != nil && m.handover.Load() {
			return // it is in the table, and its descriptor stays open until this process ends
		}
		m.answer(r, err, panicked)
	}()
	err = m.handler.Fetch(m.ctx, r.layer.blob, r.off, r.n)
	if err == nil && !m.handler.Have(r.layer.blob, r.off, r.n) {
		err = mount.ErrNotThere
	}
	if err == nil {
		m.waited.Add(1)
	}
}

// answer lets the reader go on or fail, and closes the event's descriptor: afterwards, because the kernel knows the event
// by that number.
func (m *Mounter) answer(r request, err error, panicked any) {
	if panicked != nil {
		err = fmt.Errorf("%w: %v", errPanic, panicked)
		m.log.Error("handler panicked", "panic", panicked, "stack", string(debug.Stack()))
	}
	m.table.Clear(r.event)
	var answerErr error
	if err == nil {
		answerErr = group.Allow(m.groupFD, r.event)
	} else {
		m.denied.Add(1)
		answerErr = group.Deny(m.groupFD, r.event)
		var blob digest.Digest
		if r.layer != nil {
			blob = r.layer.blob
		}
		m.denials.Denied(blob, r.off, r.n, err, "pid", r.pid)
	}
	if answerErr != nil {
		m.log.Error("answer event: its reader waits for a restart", "err", answerErr)
	}
	unix.Close(int(r.event))
}
