package layertar

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"math"
	"slices"
	"strconv"
	"strings"
)

const (
	paxSchilyXattr     = "SCHILY.xattr."
	paxLibarchiveXattr = "LIBARCHIVE.xattr."
)

const (
	maxXattrName  = 255      // XATTR_NAME_MAX
	maxXattrValue = 64 << 10 // XATTR_SIZE_MAX
)

// paxRecords is one 'x' header. Its slices alias the scanner's buffer for it.
// An empty value means that the header field counts, as in archive/tar.
type paxRecords struct {
	path, link, size, uid, gid, mtime []byte

	sparseMajor, sparseMinor   []byte
	sparseName                 []byte
	sparseSize, sparseRealSize []byte
	sparseMap, sparseBlocks    []byte
	sparsePairs                [][]byte // 0.0: offset and numbytes records in turn

	xattrs []rawXattr
}

type rawXattr struct {
	name, value []byte
	libarchive  bool // url-encoded name, base64 value; a SCHILY record of the name wins
}

func (r *paxRecords) reset() {
	pairs, xattrs := r.sparsePairs[:0], r.xattrs[:0]
	*r = paxRecords{sparsePairs: pairs, xattrs: xattrs}
}

// parse decodes the records of an extended header: "LEN KEY=VALUE\n" each.
func (r *paxRecords) parse(b []byte) (reason string) {
	const malformed = "malformed PAX record"
	for len(b) > 0 {
		n, i := 0, 0
		for ; i < len(b) && b[i] >= '0' && b[i] <= '9' && n <= len(b); i++ {
			n = n*10 + int(b[i]-'0')
		}
		if i == 0 || i >= len(b) || b[i] != ' ' || n > len(b) || n < i+4 || b[n-1] != '\n' {
			return malformed
		}
		record := b[i+1 : n-1]
		b = b[n:]
		eq := bytes.IndexByte(record, '=')
		if eq <= 0 {
			return malformed
		}
		if reason := r.record(record[:eq], record[eq+1:]); reason != "" {
			return reason
		}
	}
	return ""
}

func (r *paxRecords) record(key, value []byte) (reason string) {
	if bytes.IndexByte(key, 0) >= 0 {
		return "PAX key holds a NUL byte"
	}
	if to := r.field(string(key)); to != nil {
		*to = value
		if (to == &r.path || to == &r.link) && bytes.IndexByte(value, 0) >= 0 {
			return "name holds a NUL byte"
		}
		return ""
	}
	switch {
	case string(key) == "GNU.sparse.offset" || string(key) == "GNU.sparse.numbytes":
		if (len(r.sparsePairs)%2 == 0) != (string(key) == "GNU.sparse.offset") {
			return "sparse map is out of order"
		}
		r.sparsePairs = append(r.sparsePairs, value)
	case bytes.HasPrefix(key, []byte(paxSchilyXattr)):
		r.xattrs = append(r.xattrs, rawXattr{name: key[len(paxSchilyXattr):], value: value})
	case bytes.HasPrefix(key, []byte(paxLibarchiveXattr)):
		r.xattrs = append(r.xattrs, rawXattr{name: key[len(paxLibarchiveXattr):], value: value, libarchive: true})
	}
	return ""
}

func (r *paxRecords) field(key string) *[]byte {
	switch key {
	case "path":
		return &r.path
	case "linkpath":
		return &r.link
	case "size":
		return &r.size
	case "uid":
		return &r.uid
	case "gid":
		return &r.gid
	case "mtime":
		return &r.mtime
	case "GNU.sparse.major":
		return &r.sparseMajor
	case "GNU.sparse.minor":
		return &r.sparseMinor
	case "GNU.sparse.name":
		return &r.sparseName
	case "GNU.sparse.size":
		return &r.sparseSize
	case "GNU.sparse.realsize":
		return &r.sparseRealSize
	case "GNU.sparse.map":
		return &r.sparseMap
	case "GNU.sparse.numblocks":
		return &r.sparseBlocks
	}
	return nil
}

// merge overrides the header's fields with those of the records.
func (r *paxRecords) merge(h *header) (reason string) {
	if len(r.path) > 0 {
		h.name = r.path
	}
	if len(r.link) > 0 {
		h.link = r.link
	}
	for _, f := range [...]struct {
		to   *int64
		from []byte
		name string
	}{{&h.size, r.size, "size"}, {&h.uid, r.uid, "uid"}, {&h.gid, r.gid, "gid"}} {
		if len(f.from) == 0 {
			continue
		}
		var err error
		if *f.to, err = strconv.ParseInt(string(f.from), 10, 64); err != nil {
			return "PAX " + f.name + " is not a number that fits"
		}
	}
	if len(r.mtime) > 0 {
		var ok bool
		if h.mtime, h.mtimeNsec, ok = parsePAXTime(r.mtime); !ok {
			return "PAX mtime is not a time"
		}
	}
	return ""
}

// parsePAXTime reads "[-]SECONDS[.FRACTION]"; digits past nanoseconds are cut off.
// nsec is in [0, 1e9), so -1.5 is -2 seconds and 5e8 nanoseconds.
func parsePAXTime(b []byte) (sec, nsec int64, ok bool) {
	whole, fraction, _ := bytes.Cut(b, []byte("."))
	sec, err := strconv.ParseInt(string(whole), 10, 64)
	if err != nil {
		return 0, 0, false
	}
	scale := int64(100_000_000)
	for _, c := range fraction {
		if c < '0' || c > '9' {
			return 0, 0, false
		}
		nsec += int64(c-'0') * scale
		scale /= 10
	}
	if whole[0] == '-' && nsec > 0 {
		if sec == math.MinInt64 {
			return 0, 0, false
		}
		sec, nsec = sec-1, 1_000_000_000-nsec
	}
	return sec, nsec, true
}

// entryXattrs returns the attributes that Linux can set on an entry of type t.
// The result shares no memory with the records.
func (r *paxRecords) entryXattrs(t Type, limit int) (xattrs []Xattr, reason string) {
	if len(r.xattrs) == 0 {
		return nil, ""
	}
	for i := range r.xattrs {
		if x := &r.xattrs[i]; x.libarchive {
			if reason := x.decode(); reason != "" {
				return nil, reason
			}
		}
	}
	slices.SortStableFunc(r.xattrs, func(a, b rawXattr) int {
		if c := bytes.Compare(a.name, b.name); c != 0 || a.libarchive == b.libarchive {
			return c
		}
		if a.libarchive {
			return -1
		}
		return 1
	})
	total := 0
	for i, x := range r.xattrs {
		if i+1 < len(r.xattrs) && bytes.Equal(x.name, r.xattrs[i+1].name) {
			continue // the last record of a name counts
		}
		name := string(x.name)
		if !settable(name, t) {
			continue
		}
		total += len(name) + len(x.value)
		if reason := checkXattr(x, total, limit); reason != "" {
			return nil, reason
		}
		xattrs = append(xattrs, Xattr{Name: name, Value: bytes.Clone(x.value)})
	}
	slices.SortFunc(xattrs, func(a, b Xattr) int { return cmp.Compare(a.Name, b.Name) })
	return xattrs, ""
}

func checkXattr(x rawXattr, total, limit int) (reason string) {
	switch {
	case len(x.name) > maxXattrName:
		return "xattr name is longer than " + strconv.Itoa(maxXattrName) + " bytes"
	case len(x.value) > maxXattrValue:
		return "xattr value is longer than " + strconv.Itoa(maxXattrValue) + " bytes"
	case total > limit:
		return "xattrs are longer than " + strconv.Itoa(limit) + " bytes together"
	}
	return ""
}

// settable reports whether Linux lets root set the attribute on such a file.
func settable(name string, t Type) bool {
	for _, prefix := range [...]string{"user.", "trusted.", "security."} {
		if len(name) > len(prefix) && strings.HasPrefix(name, prefix) {
			return prefix != "user." || t == TypeReg || t == TypeDir || t == TypeHardlink
		}
	}
	return (name == "system.posix_acl_access" || name == "system.posix_acl_default") && t != TypeSymlink
}

// decode undoes libarchive's encoding of name (percent) and value (base64,
// which it writes without padding).
func (x *rawXattr) decode() (reason string) {
	name := make([]byte, 0, len(x.name))
	for i := 0; i < len(x.name); i++ {
		c := x.name[i]
		if c == '%' && i+2 < len(x.name) {
			if v, err := strconv.ParseUint(string(x.name[i+1:i+3]), 16, 8); err == nil {
				c, i = byte(v), i+2
			}
		}
		if c == 0 {
			return "xattr name holds a NUL byte"
		}
		name = append(name, c)
	}
	raw := bytes.TrimRight(x.value, "=")
	value := make([]byte, base64.RawStdEncoding.DecodedLen(len(raw)))
	n, err := base64.RawStdEncoding.Decode(value, raw)
	if err != nil {
		return "LIBARCHIVE.xattr value is not base64"
	}
	x.name, x.value = name, value[:n]
	return ""
}
