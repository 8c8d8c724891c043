package measure

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/measure/clock"
)

// dirPrefix of the directories that measurements work in; the process and the time of
// its start follow.
const dirPrefix = "thaw-measure-"

// NewDir makes a directory for this process's measurement below base. [RemoveStale]
// removes those of processes that were killed.
func NewDir(base string) (string, error) {
	dir, err := os.MkdirTemp(base, fmt.Sprintf("%s%d-%d-", dirPrefix, os.Getpid(), clock.Started(os.Getpid())))
	if err != nil {
		return "", fmt.Errorf("make directory: %w", err)
	}
	return dir, nil
}

// RemoveStale removes what measurements that were killed have left below base: their
// daemons with all that those have mounted, and their directories. exe is thaw. What
// another user has put there is left alone: anybody may write into /var/tmp.
func RemoveStale(ctx context.Context, exe, base string) error {
	dirs, err := filepath.Glob(filepath.Join(base, dirPrefix+"*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range dirs {
		parts := strings.Split(strings.TrimPrefix(filepath.Base(dir), dirPrefix), "-")
		pid, err := strconv.Atoi(parts[0])
		if err != nil || len(parts) < 3 || strconv.FormatUint(clock.Started(pid), 10) == parts[1] || !own(dir) {
			continue
		}
		errs = append(errs, removeNodes(ctx, exe, dir))
	}
	return errors.Join(errs...)
}

// own reports whether a path is a directory of this user's.
func own(dir string) bool {
	var st unix.Stat_t
	return unix.Lstat(dir, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR && int(st.Uid) == os.Geteuid()
}

// removeNodes removes a measurement's state directories, two levels below its own, and
// then that.
func removeNodes(ctx context.Context, exe, dir string) error {
	roots, err := filepath.Glob(filepath.Join(dir, "*", "*"))
	if err != nil {
		return err
	}
	for _, root := range roots {
		if err := RemoveNode(ctx, exe, root); err != nil {
			return err // and nothing is removed below what is mounted
		}
	}
	return os.RemoveAll(dir)
}
