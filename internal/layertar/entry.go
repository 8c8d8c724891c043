package layertar

import (
	"fmt"
	"math"
	"strconv"
)

// entry takes the header block, at offset at, of an entry proper.
func (s *Scanner) entry(b *block, h *header, at int64) error {
	if reason := s.pax.merge(h); reason != "" {
		return s.refuse(h.name, reason)
	}
	if len(s.longName) > 0 {
		h.name = s.longName
	}
	if len(s.longLink) > 0 {
		h.link = s.longLink
	}
	typ := entryType(h)
	if typ == 0 {
		return s.refuse(h.name, "entry type "+strconv.QuoteRune(rune(h.typ))+" is not supported")
	}
	kind, reason := sparseKindOf(h, &s.pax)
	if reason != "" {
		return s.refuse(h.name, reason)
	}
	if kind >= sparsePAX0 && len(s.pax.sparseName) > 0 {
		h.name = s.pax.sparseName
	}
	s.name = append(s.name[:0], h.name...)
	e, reason := s.newEntry(b, h, typ)
	if reason != "" {
		return s.refuse(h.name, reason)
	}
	if typ != TypeReg {
		if kind != sparseNone {
			return s.refuse(h.name, "sparse map for a "+typ.String())
		}
		s.skip, s.pad = 0, 0
		return s.deliver(e)
	}
	if h.size < 0 || h.size > math.MaxInt64-at-2*BlockBytes {
		return s.refuse(h.name, fmt.Sprintf("size %d is impossible", h.size))
	}
	e.SizeBytes, e.OffsetTar = h.size, at+BlockBytes
	if kind != sparseNone {
		return s.sparseFile(b, e, kind, at)
	}
	return s.deliverFile(e, h.size)
}

func entryType(h *header) Type {
	switch h.typ {
	case 0:
		if len(h.name) > 0 && h.name[len(h.name)-1] == '/' {
			return TypeDir // v7 had no type for them
		}
		return TypeReg
	case '0', '7', 'S':
		return TypeReg
	case '1':
		return TypeHardlink
	case '2':
		return TypeSymlink
	case '3':
		return TypeChar
	case '4':
		return TypeBlock
	case '5':
		return TypeDir
	case '6':
		return TypeFifo
	}
	return 0
}

// newEntry decodes all that does not depend on the entry's data.
func (s *Scanner) newEntry(b *block, h *header, typ Type) (e Entry, reason string) {
	e = Entry{
		Type: typ, Mode: uint32(h.mode & 0o7777), OffsetHeader: s.first,
		ModTimeSec: h.mtime, ModTimeNsec: uint32(h.mtimeNsec),
	}
	if e.Path, reason = s.limits.cleanPath(h.name); reason != "" {
		return e, reason
	}
	if e.Path == "" && typ != TypeDir {
		return e, "the root can only be a directory"
	}
	if h.uid < 0 || h.uid > math.MaxUint32 || h.gid < 0 || h.gid > math.MaxUint32 {
		return e, fmt.Sprintf("owner %d:%d is impossible", h.uid, h.gid)
	}
	e.UID, e.GID = uint32(h.uid), uint32(h.gid)
	switch typ {
	case TypeSymlink:
		e.Mode = 0o777 // Linux has no other
		e.Link, reason = symlinkTarget(h.link)
	case TypeHardlink:
		e.Link, reason = s.hardlinkTarget(h.link, e.Path)
	case TypeChar, TypeBlock:
		e.DevMajor, e.DevMinor, reason = deviceNumber(b)
	}
	if reason != "" {
		return e, reason
	}
	e.Xattrs, reason = s.pax.entryXattrs(typ, s.limits.XattrBytes)
	return e, reason
}

func symlinkTarget(raw []byte) (target, reason string) {
	switch {
	case len(raw) == 0:
		return "", "symlink has no target"
	case len(raw) > maxTargetBytes:
		return "", "symlink target is longer than " + strconv.Itoa(maxTargetBytes) + " bytes"
	}
	return string(raw), ""
}

func (s *Scanner) hardlinkTarget(raw []byte, from string) (target, reason string) {
	target, reason = s.limits.cleanPath(raw)
	switch {
	case reason != "":
		return "", fmt.Sprintf("hardlink to %.512q: %s", raw, reason)
	case target == "":
		return "", "hardlink to the root"
	case target == from:
		return "", "hardlink to itself"
	}
	return target, ""
}

// deviceNumber reads a device's number, of the 12 and 20 bits that Linux has for it.
func deviceNumber(b *block) (major, minor uint32, reason string) {
	if detectFormat(b) == formatV7 {
		return 0, 0, ""
	}
	x, ok1 := parseNumber(b[offDevMajor : offDevMajor+lenDev])
	y, ok2 := parseNumber(b[offDevMinor : offDevMinor+lenDev])
	if !ok1 || !ok2 || x < 0 || y < 0 || x >= 1<<12 || y >= 1<<20 {
		return 0, 0, "device number is impossible"
	}
	return uint32(x), uint32(y), ""
}

// sparseFile starts on the map of e, whose header block is at offset at.
func (s *Scanner) sparseFile(b *block, e Entry, kind sparseKind, at int64) error {
	s.pending, s.storedLeft = e, e.SizeBytes
	s.sparse.reset()
	if kind == sparseOld {
		size, ok := parseNumber(b[offGNURealSize : offGNURealSize+lenSize])
		if !ok {
			return s.refuse(s.name, "sparse file's size is not a number")
		}
		s.pending.SizeBytes = size
		return s.sparseOldBlock(b[offGNUSparse:], sparsePairsHeader, b[offGNUExtended], at)
	}
	size := s.pax.sparseSize
	if len(size) == 0 {
		size = s.pax.sparseRealSize
	}
	if len(size) > 0 {
		var err error
		if s.pending.SizeBytes, err = strconv.ParseInt(string(size), 10, 64); err != nil {
			return s.refuse(s.name, "sparse file's size is not a number that fits")
		}
	}
	if kind == sparsePAX1 {
		s.state = stateSparseMap
		return nil
	}
	if reason := s.sparse.addPAX0(&s.pax); reason != "" {
		return s.refuse(s.name, reason)
	}
	return s.sparseDone(at + BlockBytes)
}

func (s *Scanner) sparseOldBlock(b []byte, pairs int, more byte, at int64) error {
	if reason := s.sparse.addOld(b, pairs); reason != "" {
		return s.refuse(s.name, reason)
	}
	if more == 0 {
		return s.sparseDone(at + BlockBytes)
	}
	if s.sparse.metaBytes >= s.limits.MetaBytes {
		return s.refuse(s.name, "sparse map is too long")
	}
	s.state = stateSparseOld
	return nil
}

func (s *Scanner) sparseMapBlock(b *block, at int64) error {
	s.storedLeft -= BlockBytes
	if s.storedLeft < 0 {
		return s.refuse(s.name, "sparse map is longer than the entry's data")
	}
	if reason := s.sparse.addPAX1(b[:]); reason != "" {
		return s.refuse(s.name, reason)
	}
	if s.sparse.finished {
		return s.sparseDone(at + BlockBytes)
	}
	if s.sparse.metaBytes >= s.limits.MetaBytes {
		return s.refuse(s.name, "sparse map is too long")
	}
	return nil
}

// sparseDone has the whole map; the stored bytes start at offsetTar.
func (s *Scanner) sparseDone(offsetTar int64) error {
	s.state = stateHeader
	e := s.pending
	s.pending = Entry{}
	e.OffsetTar = offsetTar
	var reason string
	if e.SizeBytes < 0 || s.storedLeft > math.MaxInt64-offsetTar-BlockBytes {
		reason = fmt.Sprintf("size %d is impossible", e.SizeBytes)
	} else {
		e.Segments, reason = s.sparse.segments(e.SizeBytes, offsetTar, s.storedLeft)
	}
	if reason != "" {
		return s.refuse(s.name, reason)
	}
	return s.deliverFile(e, s.storedLeft)
}
