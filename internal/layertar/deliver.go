package layertar

import (
	"fmt"
	"path"
	"strconv"
	"strings"
)

// entryOverheadBytes is what an entry counts for against Limits.TotalBytes besides
// its strings.
const entryOverheadBytes = 128

// deliverFile emits a file with storedBytes of data behind its headers.
func (s *Scanner) deliverFile(e Entry, storedBytes int64) error {
	if e.SizeBytes > s.limits.FileBytes {
		return s.refuse(s.name, fmt.Sprintf("size %d is over the limit of %d", e.SizeBytes, s.limits.FileBytes))
	}
	s.pad = -storedBytes & (BlockBytes - 1)
	s.skip = storedBytes + s.pad
	return s.deliver(e)
}

// deliver emits the entry as what it means in a layer.
func (s *Scanner) deliver(e Entry) error {
	s.endGroup()
	if s.entries++; s.entries > s.limits.Entries {
		return s.refuse(s.name, fmt.Sprintf("more than %d entries", s.limits.Entries))
	}
	s.totalBytes += entryOverheadBytes + int64(len(e.Path)+len(e.Link)+24*len(e.Segments))
	for _, x := range e.Xattrs {
		s.totalBytes += int64(len(x.Name) + len(x.Value))
	}
	if s.totalBytes > s.limits.TotalBytes {
		return s.refuse(s.name, fmt.Sprintf("entries of more than %d bytes together", s.limits.TotalBytes))
	}
	if e.Path != "" {
		hidden, typ, ignored, reason := whiteout(e.Path)
		switch {
		case reason != "":
			return s.refuse(s.name, reason)
		case ignored:
			s.keepAufsLink(e)
			return nil
		case typ != 0:
			e = Entry{Path: hidden, Type: typ, OffsetHeader: e.OffsetHeader}
		}
	}
	if e.Type == TypeHardlink && strings.HasPrefix(e.Link, aufsLinkDir) {
		file, ok := s.aufsLinks[path.Clean(e.Link)]
		if !ok {
			return s.refuse(s.name, "hardlink to aufs file "+strconv.Quote(e.Link)+", which is missing")
		}
		file.Path, file.OffsetHeader = e.Path, e.OffsetHeader
		e = file
	}
	return s.emit(e)
}

// keepAufsLink remembers files of aufs's pool of hardlinked files, which layers of
// early Docker have: links into it stand for the file itself.
func (s *Scanner) keepAufsLink(e Entry) {
	if e.Type != TypeReg || !strings.HasPrefix(e.Path, aufsLinkDir) {
		return
	}
	if s.aufsLinks == nil {
		s.aufsLinks = make(map[string]Entry)
	}
	s.aufsLinks[e.Path] = e
}
