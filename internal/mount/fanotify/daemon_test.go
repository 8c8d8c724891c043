package fanotify

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/mount"
	"github.com/thaw-project/thaw/internal/mount/fanotify/group"
	"github.com/thaw-project/thaw/internal/mount/keeper"
	"github.com/thaw-project/thaw/internal/mount/mounttest"
)

// A test daemon lives in a directory: metadata, layer, mount point "root", sockets. Its layer is made up from its offsets.
const (
	killFileBytes  = 1 << 30
	killLayerBytes = killFileBytes + 512
	killSpanBytes  = 4096
	killSeed       = 42
	fetchLatency   = time.Millisecond
)

var killBlob = digest.FromString("kill test")

// daemonMain is a daemon that is made to be killed. It tells the test its pid, and closes in good order when told so.
func daemonMain() int {
	dir := os.Args[1]
	log := slog.New(slog.NewTextHandler(os.Stderr, nil)).With("daemon", os.Getpid())
	if err := runDaemon(dir, log); err != nil {
		log.Error("daemon", "err", err)
		return 1
	}
	return 0
}

func runDaemon(dir string, log *slog.Logger) error {
	ctx := context.Background()
	if err := group.LimitFiles(); err != nil {
		return err
	}
	client, err := keeper.Connect(ctx, keeper.ClientOptions{Socket: filepath.Join(dir, "keeper.sock"), Log: log})
	if err != nil {
		return err
	}
	layers, err := client.Layers()
	if err != nil {
		return err
	}
	source := &patternSource{first: layers[killBlob]}
	spec := mount.Spec{Dir: filepath.Join(dir, "root"), Metadata: filepath.Join(dir, "metadata"), Layers: []mount.Layer{{
		Blob: killBlob, Path: filepath.Join(dir, "layer"), SizeBytes: killLayerBytes,
	}}}
	if source.first == nil {
		if source.first, err = os.OpenFile(spec.Layers[0].Path, os.O_RDWR, 0); err != nil {
			return err
		}
	}
	m, err := New(ctx, Options{Handler: source, Keeper: client, Log: log})
	if err != nil {
		return err
	}
	if layers[killBlob] != nil {
		err = m.Adopt(spec)
	} else {
		spec.Layers[0].File = source.first
		err = m.Mount(ctx, spec)
	}
	if err != nil {
		return err
	}
	conn, err := net.Dial("unix", filepath.Join(dir, "test.sock"))
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(conn, os.Getpid()); err != nil {
		return err
	}
	order, _ := bufio.NewReader(conn).ReadString('\n')
	if order == "handover\n" {
		m.Handover(ctx)
		return nil
	}
	return m.Close()
}

// patternSource hydrates from a formula, after some latency. What an earlier daemon wrote is written again.
type patternSource struct {
	first *os.File
	have  [killLayerBytes/killSpanBytes + 1]atomic.Bool
}

func (s *patternSource) Have(_ digest.Digest, off, n int64) bool {
	for i := off / killSpanBytes; i*killSpanBytes < off+n; i++ {
		if !s.have[i].Load() {
			return false
		}
	}
	return true
}

func (s *patternSource) Fetch(ctx context.Context, _ digest.Digest, off, n int64) error {
	timer := time.NewTimer(fetchLatency)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	start := off / killSpanBytes * killSpanBytes
	end := min((off+n+killSpanBytes-1)/killSpanBytes*killSpanBytes, killLayerBytes)
	p := make([]byte, end-start)
	mounttest.Fill(p, killSeed, start)
	if _, err := unix.Pwrite(int(s.first.Fd()), p, start); err != nil {
		return err
	}
	for i := start / killSpanBytes; i*killSpanBytes < end; i++ {
		s.have[i].Store(true)
	}
	return nil
}
