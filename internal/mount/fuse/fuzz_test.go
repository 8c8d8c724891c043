package fuse

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/mount"
)

// halfThere has the even pages of a layer, and brings every third of the others.
type halfThere struct{}

func (halfThere) Have(_ digest.Digest, off, _ int64) bool { return off>>12&1 == 0 }

func (halfThere) Fetch(_ context.Context, _ digest.Digest, off, _ int64) error {
	if off>>12%3 == 0 {
		return nil
	}
	return errors.New("not today")
}

// FuzzRequest: whatever is read from /dev/fuse gets one answer at most, for itself,
// and a read gets the layer's bytes or an error.
func FuzzRequest(f *testing.F) {
	data := bytes.Repeat([]byte("0123456789abcdef"), 3000)
	path := filepath.Join(f.TempDir(), "layer")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		f.Fatal(err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		f.Fatal(err)
	}
	m := &Mounter{handler: halfThere{}, log: slog.New(slog.DiscardHandler), denials: mount.NewDeniedLog(slog.New(slog.DiscardHandler)),
		mounts: map[string][]uint64{}, fetching: make(chan struct{}, 1), buffers: make(chan []byte, 1)}
	m.buffers <- nil
	m.nodes.Store(&map[uint64]*node{})
	m.ctx, m.cancel = context.WithCancelCause(f.Context())
	m.device = &device{Connection: &Connection{}, fd: pair[0], server: newServer(&files{m: m}, m.log)}
	n, err := m.add(mount.Layer{Blob: digest.FromBytes(data), Path: path, SizeBytes: int64(len(data)), Complete: true}, false)
	if err != nil {
		f.Fatal(err)
	}
	n.complete.Store(false)
	for opcode := range uint32(60) {
		for _, id := range []uint64{1, n.id} {
			request := make([]byte, 100)
			binary.NativeEndian.PutUint32(request, 100)
			binary.NativeEndian.PutUint32(request[4:], opcode)
			binary.NativeEndian.PutUint64(request[8:], 7)
			binary.NativeEndian.PutUint64(request[16:], id)
			binary.NativeEndian.PutUint64(request[48:], 8191)
			binary.NativeEndian.PutUint32(request[56:], 4096)
			f.Add(request)
		}
	}
	init := append(make([]byte, inHeaderBytes), 7, 0, 0, 0, 41, 0, 0, 0)
	binary.NativeEndian.PutUint32(init[4:], opInit)
	f.Add(append(init, make([]byte, 56)...))
	b, answer := make([]byte, bufferBytes), make([]byte, bufferBytes)
	f.Fuzz(func(t *testing.T, request []byte) {
		if len(request) > len(b) {
			return
		}
		m.request(b[:copy(b, request)], b)
		m.workers.Wait()
		for answers := 0; ; answers++ {
			got, err := unix.Read(pair[1], answer)
			if errors.Is(err, unix.EAGAIN) || got == 0 {
				return
			}
			if answers > 0 {
				t.Fatal("two answers to one request")
			}
			checkAnswer(t, request, answer[:got], data)
		}
	})
}

func checkAnswer(t *testing.T, request, answer, data []byte) {
	t.Helper()
	if len(answer) < outHeaderBytes || int(binary.NativeEndian.Uint32(answer)) != len(answer) {
		t.Fatalf("an answer of %d bytes", len(answer))
	}
	if unique := binary.NativeEndian.Uint64(answer[8:]); unique != binary.NativeEndian.Uint64(request[8:]) {
		t.Errorf("an answer to request %d", unique)
	}
	if binary.NativeEndian.Uint32(request[4:]) != opRead || len(answer) == outHeaderBytes {
		return
	}
	off := binary.NativeEndian.Uint64(request[48:])
	if got := answer[outHeaderBytes:]; off > uint64(len(data)) || !bytes.Equal(got, data[off:off+uint64(len(got))]) {
		t.Errorf("wrong bytes at %d", off)
	}
}
