package keeper

import (
	"encoding/binary"
	"errors"
	"log/slog"
	"os"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// The descriptors of a FUSE connection are held like layers, under these names. What they are is said by fuse.Connection.
const (
	FUSEDevice digest.Digest = "fuse:device"
	FUSETree   digest.Digest = "fuse:tree"
	FUSEInit   digest.Digest = "fuse:init"
)

// IsFUSE says whether a name under which something is held is that of a part of a FUSE connection, not of a layer.
func IsFUSE(name digest.Digest) bool {
	return name == FUSEDevice || name == FUSETree || name == FUSEInit
}

// Sizes and numbers of <linux/fuse.h>.
const (
	fuseRequestBytes   = 1<<20 + 8192 // what the daemon has agreed on with the kernel; requests are far smaller
	fuseInHeaderBytes  = 40           // u32 length, u32 opcode, u64 unique, ...
	fuseOutHeaderBytes = 16           // u32 length, i32 error, u64 unique
	fuseNotifyResend   = 7
	fuseForget         = 2
	fuseRead           = 15
	fuseInterrupt      = 36
	fuseBatchForget    = 42
)

// fuseDenier answers all requests of a FUSE connection with EIO.
type fuseDenier struct {
	device *os.File
	fd     int // the keeper's own, for answers
	log    *slog.Logger
	said   bool // a line is enough
	done   chan struct{}
}

// startFUSEDenier denies what the dead daemon left unanswered, then what comes, until close.
func startFUSEDenier(fd int, log *slog.Logger) (*fuseDenier, error) {
	device, err := duplicate(fd, "/dev/fuse") // not blocking, as the daemon opened it
	if err != nil {
		return nil, err
	}
	d := &fuseDenier{device: device, fd: fd, log: log, done: make(chan struct{})}
	if err := d.write(fuseNotifyResend, 0); err != nil {
		log.Error("ask for FUSE requests that were not answered: their readers wait for a daemon", "err", err)
	}
	go d.run()
	return d, nil
}

func (d *fuseDenier) run() {
	defer close(d.done)
	b := make([]byte, fuseRequestBytes)
	for {
		n, err := d.device.Read(b)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ECONNABORTED):
			return
		case err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINTR):
			d.log.Error("read FUSE request", "err", err)
			time.Sleep(10 * time.Millisecond)
		case err == nil && n >= fuseInHeaderBytes:
			d.deny(b[:n])
		}
	}
}

func (d *fuseDenier) deny(request []byte) {
	opcode, unique := binary.NativeEndian.Uint32(request[4:]), binary.NativeEndian.Uint64(request[8:])
	switch opcode {
	case fuseForget, fuseBatchForget, fuseInterrupt:
		return // no answer is wanted
	case fuseRead:
		if !d.said {
			d.said = true
			d.log.Error("denied a read: no daemon", "file", binary.NativeEndian.Uint64(request[16:]))
		}
	}
	if err := d.write(-int32(unix.EIO), unique); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
		d.log.Error("deny FUSE request", "err", err)
	}
}

func (d *fuseDenier) write(status int32, unique uint64) error {
	var b [fuseOutHeaderBytes]byte
	binary.NativeEndian.PutUint32(b[:], fuseOutHeaderBytes)
	binary.NativeEndian.PutUint32(b[4:], uint32(status))
	binary.NativeEndian.PutUint64(b[8:], unique)
	_, err := unix.Write(d.fd, b[:])
	return err
}

// close stops reading and returns when no request is in hand.
func (d *fuseDenier) close() {
	_ = d.device.SetReadDeadline(time.Unix(1, 0))
	<-d.done
	d.device.Close()
}
