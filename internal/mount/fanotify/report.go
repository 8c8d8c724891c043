package fanotify

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/mount"
)

const (
	reportEvery     = time.Minute // a line for the same place
	reportKeep      = 1024        // places remembered
	reportShiftBits = 20          // a place is this much of a layer: a read-ahead that fails is tried again page by page
)

// report logs denied reads, each MiB of a layer once a minute: a reader that tries again must not fill the disk.
type report struct {
	log *slog.Logger

	mu   sync.Mutex // guards said
	said map[reportKey]time.Time
}

type reportKey struct {
	layer digest.Digest
	place int64
}

func (p *report) denied(r request, cause error) {
	key := reportKey{place: r.off >> reportShiftBits}
	if r.layer != nil {
		key.layer = r.layer.blob
	}
	now := time.Now()
	p.mu.Lock()
	last, ok := p.said[key]
	if p.said == nil || len(p.said) >= reportKeep {
		p.said = make(map[reportKey]time.Time)
	}
	quiet := ok && now.Sub(last) < reportEvery
	if !quiet {
		p.said[key] = now
	}
	p.mu.Unlock()
	if !quiet {
		p.log.Error("denied a read", append([]any{"layer", key.layer, "off", r.off, "count", r.n, "pid", r.pid, "cause", cause}, mount.HintOf(cause)...)...)
	}
}

// explain turns the errors of a machine that cannot do this into ones that say what is missing.
func explain(err error) error {
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("%w: the file system has no pre-content events (ext4, xfs and btrfs have): %w", mount.ErrUnsupported, err)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS):
		return fmt.Errorf("%w: the kernel has no pre-content events (Linux 6.14 with CONFIG_FANOTIFY_ACCESS_PERMISSIONS is needed): %w", mount.ErrUnsupported, err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: pre-content events need CAP_SYS_ADMIN in the initial user namespace: %w", mount.ErrUnsupported, err)
	}
	return err
}

// rawFD returns the number of a file's descriptor, good as long as the file is open. File.Fd would make a
// descriptor in the poller blocking for all who share it.
func rawFD(f *os.File) (int, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, fmt.Errorf("use descriptor of %s: %w", f.Name(), err)
	}
	number := -1
	if err := raw.Control(func(fd uintptr) { number = int(fd) }); err != nil {
		return -1, fmt.Errorf("use descriptor of %s: %w", f.Name(), err)
	}
	return number, nil
}
