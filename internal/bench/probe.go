package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ReadFile reads a file of a container's root to its end, and says how long that
// took and how many bytes it had. Links are followed as the container would.
func ReadFile(root, name string) (time.Duration, int64, error) {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, 0, fmt.Errorf("open container's root %s: %w", root, err)
	}
	defer unix.Close(dir)
	buf := make([]byte, 1<<20)
	begun := time.Now()
	fd, err := unix.Openat2(dir, name, &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
	if err != nil {
		return 0, 0, fmt.Errorf("open %s in the container: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	var n int64
	for {
		m, err := f.Read(buf)
		n += int64(m)
		if errors.Is(err, io.EOF) {
			return time.Since(begun), n, nil
		}
		if err != nil {
			return 0, n, fmt.Errorf("read %s in the container: %w", name, err)
		}
	}
}

// pageTimeout bounds a page that does not come.
const pageTimeout = time.Minute

// getPage fetches a page to its end over a connection of its own.
func getPage(ctx context.Context, url string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, pageTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	transport := &http.Transport{DisableKeepAlives: true}
	begun := time.Now()
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return 0, fmt.Errorf("get page: %w", err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return 0, fmt.Errorf("get page %s: %w", url, err)
	}
	if resp.StatusCode >= 400 {
		return 0, fmt.Errorf("get page %s: %s", url, resp.Status)
	}
	return time.Since(begun), nil
}
