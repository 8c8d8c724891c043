// Package tracestore keeps what starts on this node have read.
//
// A trace of one run is a file, below the digests of its image and of its
// command. Of each image and command the last few runs are kept, and of all
// together what fits a bound; the oldest go first. Files are written under a
// temporary name and renamed, not synced: one that a power failure has torn is
// damaged, and what is damaged is logged and otherwise not there.
//
// The package does not record, and does not know which images a node still has.
package tracestore

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/trace"
)

const (
	// MaxRuns is how many runs of an image and a command are kept.
	MaxRuns = 8
	// maxBytes bounds all of a store. A trace has some 10 KiB.
	maxBytes = 64 << 20
	// maxFileBytes bounds one trace.
	maxFileBytes = 16 << 20
	suffix       = ".trace"
)

// ErrNotFound says that the store has no such trace.
var ErrNotFound = errors.New("no trace on this node")

// Key is what runs have in common that are merged.
type Key struct {
	Image   digest.Digest // of the manifest
	Command string        // see CommandID
}

// CommandID stands for a container's command.
func CommandID(command []string) string {
	if command == nil {
		command = []string{}
	}
	b, _ := json.Marshal(command) // of strings
	return digest.FromBytes(b).Encoded()[:16]
}

// KeyOf returns where a trace belongs.
func KeyOf(t *trace.Trace) Key { return Key{t.Image, CommandID(t.Command)} }

// ID is a short name of the key, for people.
func (k Key) ID() string { return digest.FromString(k.Image.String() + " " + k.Command).Encoded()[:12] }

// Store is a directory of traces. Any number of processes may use it.
type Store struct {
	dir   string
	log   *slog.Logger
	limit int64
}

// Open makes the directory where it is missing.
func Open(dir string, log *slog.Logger) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open trace store: %w", err)
	}
	s := &Store{dir: dir, log: log, limit: maxBytes}
	s.Sweep()
	return s, nil
}

// Sweep removes what processes were writing when they were killed.
func (s *Store) Sweep() {
	files, _ := filepath.Glob(filepath.Join(s.dir, ".tmp-*")) // the pattern is right
	for _, f := range files {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(f), ".tmp-"), "-")
		if dead(pid) {
			os.Remove(f) // what cannot be removed does no harm
		}
	}
}

// dead reports whether a process has ended. Of one that was killed a moment ago
// there may still be the exit code, which nobody has asked for.
func dead(pid string) bool {
	b, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH)
	}
	_, state, _ := bytes.Cut(b[max(0, bytes.LastIndexByte(b, ')')):], []byte(" "))
	return bytes.HasPrefix(state, []byte("Z")) || bytes.HasPrefix(state, []byte("X"))
}

func imageDir(image digest.Digest) string { return image.Algorithm().String() + "-" + image.Encoded() }

func (s *Store) path(k Key) string { return filepath.Join(s.dir, imageDir(k.Image), k.Command) }

// Put keeps the trace of a run.
func (s *Store) Put(t *trace.Trace) error {
	var b bytes.Buffer
	if err := trace.Encode(&b, t); err != nil {
		return err
	}
	if err := s.put(KeyOf(t), b.Bytes()); err != nil {
		return fmt.Errorf("store trace of %s: %w", t.Image, err)
	}
	return nil
}

func (s *Store) put(k Key, b []byte) error {
	tmp, err := os.CreateTemp(s.dir, fmt.Sprintf(".tmp-%d-*", os.Getpid()))
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // nothing is there any more once it is renamed
	_, err = tmp.Write(b)
	if err := errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	if err := os.MkdirAll(s.path(k), 0o700); err != nil {
		return err
	}
	name := fmt.Sprintf("%020d-%d%s", time.Now().UnixNano(), os.Getpid(), suffix) // in the order of the runs
	if err := os.Rename(tmp.Name(), filepath.Join(s.path(k), name)); err != nil {
		return err
	}
	return s.trim(k)
}

// trim removes the oldest runs beyond the bounds.
func (s *Store) trim(k Key) error {
	runs := s.runs(k)
	for _, f := range runs[:max(0, len(runs)-MaxRuns)] {
		if err := remove(f); err != nil {
			return err
		}
	}
	type file struct {
		path string
		size int64
	}
	var all []file
	var sum int64
	keys, err := s.List()
	if err != nil {
		return err
	}
	for _, k := range keys {
		for _, f := range s.runs(k) {
			if info, err := os.Stat(f); err == nil {
				all = append(all, file{f, info.Size()})
				sum += info.Size()
			}
		}
	}
	slices.SortFunc(all, func(a, b file) int { return cmp.Compare(filepath.Base(a.path), filepath.Base(b.path)) })
	for len(all) > 1 && sum > s.limit {
		if err := remove(all[0].path); err != nil {
			return err
		}
		sum -= all[0].size
		all = all[1:]
	}
	return nil
}

// remove removes a run, and its directories when they are empty then.
func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if os.Remove(filepath.Dir(path)) == nil {
		os.Remove(filepath.Dir(filepath.Dir(path)))
	}
	return nil
}

// runs lists the files of a key's runs, oldest first.
func (s *Store) runs(k Key) []string {
	files, _ := filepath.Glob(filepath.Join(s.path(k), "*"+suffix)) // digests have nothing special to patterns
	slices.Sort(files)
	return files
}

// Runs returns how many runs of an image and a command are here, damaged ones
// included.
func (s *Store) Runs(k Key) int { return len(s.runs(k)) }

// LastRun returns when the newest run of an image and a command was kept, or
// zero.
func (s *Store) LastRun(k Key) time.Time {
	runs := s.runs(k)
	if len(runs) == 0 {
		return time.Time{}
	}
	info, err := os.Stat(runs[len(runs)-1])
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}

// List returns the images and commands that the store has runs of, ordered by
// image.
func (s *Store) List() ([]Key, error) {
	images, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("list traces: %w", err)
	}
	var keys []Key
	for _, e := range images {
		image := digest.Digest(strings.Replace(e.Name(), "-", ":", 1))
		if image.Validate() != nil {
			continue
		}
		commands, err := os.ReadDir(filepath.Join(s.dir, e.Name()))
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // removed meanwhile
			return nil, fmt.Errorf("list traces: %w", err)
		}
		for _, c := range commands {
			if k := (Key{image, c.Name()}); s.Runs(k) > 0 {
				keys = append(keys, k)
			}
		}
	}
	return keys, nil
}

// Get returns the runs of an image and a command, oldest first, without those
// that are damaged. None is ErrNotFound.
func (s *Store) Get(k Key) ([]*trace.Trace, error) {
	var all []*trace.Trace
	for _, path := range s.runs(k) {
		t, err := s.read(k, path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			s.log.Warn("trace is damaged and ignored", "path", path, "err", err)
			continue
		}
		all = append(all, t)
	}
	if len(all) == 0 {
		return nil, ErrNotFound
	}
	return all, nil
}

func (s *Store) read(k Key, path string) (*trace.Trace, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxFileBytes {
		return nil, fmt.Errorf("it has %d bytes", info.Size())
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	t, err := trace.Decode(bytes.NewReader(b), trace.Limits{})
	if err == nil && KeyOf(t) != k {
		err = fmt.Errorf("it is of %s", t.Image)
	}
	return t, err
}

// Merged returns all runs of an image and a command as one trace, or
// ErrNotFound.
func (s *Store) Merged(k Key) (*trace.Trace, error) {
	runs, err := s.Get(k)
	if err != nil {
		return nil, err
	}
	return trace.Merge(runs, trace.MergeOptions{}), nil
}

// Remove forgets the runs of an image and a command.
func (s *Store) Remove(k Key) error {
	for _, f := range s.runs(k) {
		if err := remove(f); err != nil {
			return fmt.Errorf("remove trace: %w", err)
		}
	}
	return nil
}
