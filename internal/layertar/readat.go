package layertar

import (
	"errors"
	"fmt"
	"io"
)

// readAtBytes is the size of a read: a few headers with small files between.
const readAtBytes = 16 << 10

// ReadAllAt is ReadAll for a tar of sizeBytes that can be read at any place: it
// reads the headers and steps over the data.
func ReadAllAt(r io.ReaderAt, sizeBytes int64, limits Limits) ([]Entry, error) {
	var entries []Entry
	s := NewScanner(limits, func(e Entry) error {
		entries = append(entries, e)
		return nil
	})
	buf := make([]byte, readAtBytes)
	for s.offset < sizeBytes && s.state != stateEnd {
		if s.skip > 0 {
			n := min(s.skip, sizeBytes-s.offset)
			s.skip -= n
			s.offset += n
			continue
		}
		n, err := r.ReadAt(buf[:min(readAtBytes, sizeBytes-s.offset)], s.offset)
		if _, err := s.Write(buf[:n]); err != nil {
			return nil, err
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("read tar: %w", err)
		}
		if n == 0 {
			break
		}
	}
	if err := s.Close(); err != nil {
		return nil, err
	}
	return entries, nil
}
