// Package journal keeps the newest records of something in memory and in a file,
// one JSON object a line.
//
// Lines are appended and not synced: a power failure may cost the last ones, and a
// line that is damaged is skipped. When the file has grown past its bound it is
// written anew from what is kept. A journal loses records rather than hinder what
// they are about: one that cannot be written goes on in memory.
//
// What a record is, its user knows.
package journal

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
)

// maxBytes bounds the file, and maxLine a record in it.
const (
	maxBytes = 1 << 20
	maxLine  = 64 << 10
)

// Journal is a list of records. It is safe for concurrent use.
type Journal[T any] struct {
	path string
	kept int
	log  *slog.Logger

	mu   sync.Mutex // guards what follows
	all  []T        // oldest first, at most kept
	file *os.File   // nil before the first record, and once it cannot be written
	size int64
	lost bool // it cannot be written
}

// Open returns the journal with the file at path, of which it keeps the newest
// records. An empty path, and one that cannot be read, is an empty journal.
func Open[T any](path string, kept int, log *slog.Logger) *Journal[T] {
	j := &Journal[T]{path: path, kept: kept, log: log, lost: path == ""}
	if j.lost {
		return j
	}
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Warn("read journal", "path", path, "err", err)
	}
	j.all = decode[T](b, kept)
	return j
}

// decode returns the newest records of a file, without what is damaged.
func decode[T any](b []byte, kept int) []T {
	var all []T
	lines := bufio.NewScanner(bytes.NewReader(b[max(0, len(b)-maxBytes):])) // its first line may be cut
	lines.Buffer(nil, maxBytes+1)
	for lines.Scan() {
		var record T
		if len(lines.Bytes()) <= maxLine && json.Unmarshal(lines.Bytes(), &record) == nil {
			all = append(all, record)
		}
	}
	return all[max(0, len(all)-kept):]
}

// Add adds a record.
func (j *Journal[T]) Add(record T) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.all = append(j.all, record)
	if over := len(j.all) - j.kept; over > 0 {
		j.all = slices.Delete(j.all, 0, over)
	}
	if j.lost {
		return
	}
	if err := j.write(record); err != nil {
		j.log.Warn("write journal; from now on it is kept in memory only", "path", j.path, "err", err)
		j.lost = true
		j.close()
	}
}

func (j *Journal[T]) write(record T) error {
	b, err := json.Marshal(record)
	if err != nil {
		return err
	}
	if len(b) >= maxLine {
		return fmt.Errorf("a record of %d bytes", len(b))
	}
	if j.file == nil || j.size+int64(len(b)) >= maxBytes {
		return j.rewrite()
	}
	n, err := j.file.Write(append(b, '\n'))
	j.size += int64(n)
	return err
}

// rewrite replaces the file by the newest of what is kept that fits half its bound.
func (j *Journal[T]) rewrite() error {
	var lines [][]byte
	size := 0
	for _, record := range slices.Backward(j.all) {
		b, err := json.Marshal(record)
		if err != nil {
			return err
		}
		if size += len(b) + 1; size > maxBytes/2 {
			break
		}
		lines = append(lines, append(b, '\n'))
	}
	slices.Reverse(lines)
	tmp, err := os.CreateTemp(filepath.Dir(j.path), ".tmp-journal-*")
	if err != nil {
		return err
	}
	n, err := tmp.Write(bytes.Join(lines, nil))
	if err == nil {
		err = os.Rename(tmp.Name(), j.path)
	}
	if err != nil {
		return errors.Join(err, tmp.Close(), os.Remove(tmp.Name()))
	}
	j.close()
	j.file, j.size = tmp, int64(n)
	return nil
}

func (j *Journal[T]) close() {
	if j.file != nil {
		j.file.Close()
		j.file = nil
	}
}

// Close lets go of the file. What is added afterwards is kept in memory.
func (j *Journal[T]) Close() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lost = true
	j.close()
}

// List returns the records that are wanted, the newest first.
func (j *Journal[T]) List(wanted func(T) bool) []T {
	j.mu.Lock()
	defer j.mu.Unlock()
	var found []T
	for _, record := range slices.Backward(j.all) {
		if wanted(record) {
			found = append(found, record)
		}
	}
	return found
}
