package fuse

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"
	"unsafe"

	protocol "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/mount"
)

// Sizes and numbers of <linux/fuse.h>.
const (
	opRead      = 15
	opInit      = 26
	opInterrupt = 36

	inHeaderBytes  = int(unsafe.Sizeof(protocol.InHeader{}))
	readInBytes    = int(unsafe.Sizeof(protocol.ReadIn{}))
	outHeaderBytes = 16 // u32 length, i32 error, u64 unique
	notifyResend   = 7

	iocBackingOpen  = 0x4010e501
	iocBackingClose = 0x4004e502
)

const (
	// maxReadBytes is the most that one request reads: what the kernel allows.
	maxReadBytes = 1 << 20
	// bufferBytes is room for a read's answer. The kernel wants as much for a request, although ours are small.
	bufferBytes = maxReadBytes + 8192
	// maxRequestBytes is more than any request but WRITE, which a read-only file system does not get.
	maxRequestBytes = 8192
	// maxBackground is how many read-aheads may wait at once. With the kernel's default of 12 a few slow fetches would
	// hold up all reads of the node.
	maxBackground = 1 << 14
)

// longAgo is a deadline that has passed.
var longAgo = time.Unix(1, 0)

// Connection is a live FUSE connection: three descriptors, that another process may hold while no daemon is there. While
// somebody holds Device, requests wait; when nobody does, they fail, for ever.
type Connection struct {
	// Device is the /dev/fuse that answers.
	Device *os.File
	// Tree is the root directory of the file system, which is attached nowhere else.
	Tree *os.File
	// Init is a file with the kernel's first request: what it can do, said only once. After it come numbers of backing files.
	Init *os.File
}

// Close closes the descriptors.
func (c *Connection) Close() {
	for _, f := range []*os.File{c.Device, c.Tree, c.Init} {
		if f != nil {
			f.Close()
		}
	}
}

// Duplicate returns the same with descriptors of its own.
func (c *Connection) Duplicate() (*Connection, error) {
	dup := &Connection{}
	for _, f := range []struct {
		from *os.File
		to   **os.File
	}{{c.Device, &dup.Device}, {c.Tree, &dup.Tree}, {c.Init, &dup.Init}} {
		fd, err := mount.RawFD(f.from)
		if err == nil {
			fd, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		}
		if err != nil {
			dup.Close()
			return nil, fmt.Errorf("duplicate FUSE connection: %w", err)
		}
		*f.to = os.NewFile(uintptr(fd), f.from.Name())
	}
	return dup, nil
}

// device speaks the protocol on a connection.
type device struct {
	*Connection
	fd     int // of Device; used without going through its locks
	server *protocol.ProtocolServer
}

func newServer(files protocol.RawFileSystem, log *slog.Logger) *protocol.ProtocolServer {
	return protocol.NewProtocolServer(files, &protocol.MountOptions{
		Name: "thaw", MaxBackground: maxBackground, CongestionThreshold: maxBackground, MaxWrite: maxReadBytes, MaxReadAhead: maxReadBytes,
		ExplicitDataCacheControl: true, DisableXAttrs: true, DisableReadDirPlus: true, MaxStackDepth: 1,
		ExtraCapabilities:    protocol.CAP_ASYNC_DIO | protocol.CAP_HAS_RESEND,
		DisabledCapabilities: protocol.CAP_NO_OPEN_SUPPORT, // opens are counted
		Logger:               slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	})
}

// openDevice makes a new connection, or goes on with one that an earlier daemon had; it owns it then, also after an error.
func openDevice(held *Connection, server *protocol.ProtocolServer) (d *device, err error) {
	if held != nil {
		d = &device{Connection: held, server: server}
		err = d.resume()
	} else {
		d = &device{Connection: &Connection{}, server: server}
		err = d.start()
	}
	if err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

// start mounts a file system, and answers its first request.
func (d *device) start() error {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.EPERM) {
		err = fmt.Errorf("%w: the kernel has no FUSE, or lets nobody use it here: %w", mount.ErrUnsupported, err)
	}
	if err != nil {
		return fmt.Errorf("open /dev/fuse: %w", err)
	}
	d.Tree, err = mount.FUSE(fd, maxReadBytes)
	d.fd, d.Device = fd, os.NewFile(uintptr(fd), "/dev/fuse") // not before: only now it can be polled
	if err != nil {
		return err
	}
	first := make([]byte, bufferBytes)
	n, err := d.Device.Read(first)
	if err != nil {
		return fmt.Errorf("read the kernel's first FUSE request: %w", err)
	}
	answer, err := d.init(first[:n])
	if err != nil {
		return err
	}
	memory, err := unix.MemfdCreate("thaw-fuse-init", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("keep the kernel's first FUSE request: %w", err)
	}
	d.Init = os.NewFile(uintptr(memory), "fuse-init")
	if _, err := d.Init.WriteAt(first[:n], 0); err != nil {
		return fmt.Errorf("keep the kernel's first FUSE request: %w", err)
	}
	if _, err := unix.Write(d.fd, answer); err != nil {
		return fmt.Errorf("answer the kernel's first FUSE request: %w", err)
	}
	return nil
}

// init lets the server know what the kernel can do.
func (d *device) init(request []byte) (answer []byte, err error) {
	if len(request) < inHeaderBytes || binary.NativeEndian.Uint32(request[4:]) != opInit {
		return nil, fmt.Errorf("read the kernel's first FUSE request: %d bytes that are none", len(request))
	}
	answer = make([]byte, maxRequestBytes)
	n, status := d.server.HandleRequest([][]byte{request}, [][]byte{answer})
	if !status.Ok() || n < outHeaderBytes || binary.NativeEndian.Uint32(answer[4:]) != 0 {
		return nil, fmt.Errorf("%w: the kernel's FUSE version is not understood", mount.ErrUnsupported)
	}
	return answer[:n], nil
}

// resume takes up what the last daemon left: the kernel is asked to send again what was read and not answered.
func (d *device) resume() error {
	first := make([]byte, maxRequestBytes)
	n, err := d.Init.ReadAt(first, 0)
	if n < inHeaderBytes {
		return fmt.Errorf("read the kernel's first FUSE request: %d bytes: %w", n, err)
	}
	length := binary.NativeEndian.Uint32(first)
	if _, err := d.init(first[:min(n, int(length))]); err != nil {
		return err
	}
	if d.fd, err = mount.RawFD(d.Device); err != nil {
		return err
	}
	if err := unix.SetNonblock(d.fd, true); err != nil {
		return fmt.Errorf("resume FUSE connection: %w", err)
	}
	var b [outHeaderBytes]byte
	putHeader(b[:], outHeaderBytes, notifyResend, 0)
	if _, err := unix.Write(d.fd, b[:]); err != nil {
		return fmt.Errorf("resume FUSE connection (Linux 6.9 is needed): %w", err)
	}
	return nil
}

func putHeader(b []byte, length int, status int32, unique uint64) {
	binary.NativeEndian.PutUint32(b, uint32(length))
	binary.NativeEndian.PutUint32(b[4:], uint32(status))
	binary.NativeEndian.PutUint64(b[8:], unique)
}

// answer sends the first n bytes of b after its header. A reader that was killed meanwhile (ENOENT) and an unmounted
// file system (ENODEV) want none.
func (d *device) answer(unique uint64, b []byte, n int) error {
	putHeader(b, outHeaderBytes+n, 0, unique)
	return d.write(b[:outHeaderBytes+n])
}

func (d *device) fail(unique uint64, errno unix.Errno) error {
	var b [outHeaderBytes]byte
	putHeader(b[:], outHeaderBytes, -int32(errno), unique)
	return d.write(b[:])
}

func (d *device) write(b []byte) error {
	for {
		_, err := unix.Write(d.fd, b)
		switch {
		case err == nil, errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ECONNABORTED):
			return nil
		case !errors.Is(err, unix.EINTR):
			return fmt.Errorf("answer FUSE request: %w", err)
		}
	}
}

// handle answers any request but a read.
func (d *device) handle(request, b []byte) error {
	unique := binary.NativeEndian.Uint64(request[8:])
	if binary.NativeEndian.Uint32(request[4:]) == opInterrupt {
		// A read that was interrupted goes on: what it fetches is for the page cache. The kernel asks no more after this.
		return d.fail(unique, unix.ENOSYS)
	}
	n, status := d.server.HandleRequest([][]byte{request}, [][]byte{b})
	if !status.Ok() {
		return d.fail(unique, unix.EIO)
	}
	if n == 0 {
		return nil
	}
	return d.write(b[:n])
}

// openBacking lets the kernel read the file itself where an open names the number returned.
func (d *device) openBacking(fd int) (int32, error) {
	arg := protocol.BackingMap{Fd: int32(fd)}
	id, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(d.fd), iocBackingOpen, uintptr(unsafe.Pointer(&arg)))
	if errno != 0 {
		return 0, fmt.Errorf("register backing file: %w", errno)
	}
	return int32(id), nil
}

func (d *device) closeBacking(id int32) {
	_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(d.fd), iocBackingClose, uintptr(unsafe.Pointer(&id)))
}
