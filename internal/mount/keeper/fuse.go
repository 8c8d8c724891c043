package keeper

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
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

// fuseDenier answers requests of a FUSE connection with EIO.
type fuseDenier struct {
	device *os.File
	fd     int  // the keeper's own, for answers
	spare  bool // reads are left for the next daemon
	log    *slog.Logger
	said   bool // a line is enough
	done   chan struct{}
}

// startFUSEDenier denies what the dead daemon left unanswered, then what comes, until close; with spare all but reads.
func startFUSEDenier(fd int, spare bool, log *slog.Logger) (*fuseDenier, error) {
	device, err := duplicate(fd, "/dev/fuse") // not blocking, as the daemon opened it
	if err != nil {
		return nil, err
	}
	d := &fuseDenier{device: device, fd: fd, spare: spare, log: log, done: make(chan struct{})}
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
		if d.spare {
			return // the kernel sends it again when the next daemon asks
		}
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
	return fuseAnswer(d.fd, status, unique)
}

func fuseAnswer(device int, status int32, unique uint64) error {
	var b [fuseOutHeaderBytes]byte
	binary.NativeEndian.PutUint32(b[:], fuseOutHeaderBytes)
	binary.NativeEndian.PutUint32(b[4:], uint32(status))
	binary.NativeEndian.PutUint64(b[8:], unique)
	_, err := unix.Write(device, b[:])
	return err
}

// close stops reading and returns when no request is in hand.
func (d *fuseDenier) close() {
	_ = d.device.SetReadDeadline(time.Unix(1, 0))
	<-d.done
	d.device.Close()
}

// stuckCheck is how often a keeper of a FUSE connection looks after its daemon; one that is dying twice in a row is stuck.
const stuckCheck = time.Second

// free ends a daemon that was killed and cannot die. It mounts what it serves itself: killed in the middle, its thread in the kernel waits
// for an answer that nobody gives any more, uninterruptibly, and with it live its store's lock and its connection to us. What such
// a thread waits for is no read, and is denied. Its readers wait for the next daemon, as ever.
func (k *keeper) free() {
	device, held := k.layers[FUSEDevice]
	if !held || k.conn == nil || k.peer == nil || k.fuseDenier != nil {
		return
	}
	was := k.dying
	if k.dying = dying(k.peer.pid); !k.dying || !was {
		return
	}
	k.log.Warn("daemon was killed and cannot die: its own FUSE requests are denied", "pid", k.peer.pid)
	d, err := startFUSEDenier(device, true, k.log)
	if err != nil {
		k.log.Error("free daemon that cannot die", "err", err)
		return
	}
	k.fuseDenier = d
}

// dying says whether a process has been killed, or has ended but for some of its threads.
func dying(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch name {
		case "State":
			if strings.HasPrefix(value, "Z") || strings.HasPrefix(value, "X") {
				return true
			}
		case "SigPnd": // of its first thread, in hexadecimal; the kernel puts SIGKILL there
			set, err := strconv.ParseUint(value, 16, 64)
			return err == nil && set&(1<<(unix.SIGKILL-1)) != 0
		}
	}
	return false
}
