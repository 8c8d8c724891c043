package erofs

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// MaxXattrValue is the size of the largest xattr value that Linux can get.
const MaxXattrValue = 1<<16 - 1

// maxXattrBytes is what i_xattr_icount can say.
const maxXattrBytes = xattrHeaderSize + 4*(1<<16-2)

// Xattr names are stored as an index for the prefix and the rest. The two ACLs
// are whole names: nothing may follow them.
var xattrPrefixes = []struct {
	index  uint8
	prefix string
	whole  bool
}{
	{1, "user.", false},
	{2, "system.posix_acl_access", true},
	{3, "system.posix_acl_default", true},
	{4, "trusted.", false},
	{6, "security.", false},
}

func splitXattr(name string) (index uint8, rest string, ok bool) {
	for _, p := range xattrPrefixes {
		rest, found := strings.CutPrefix(name, p.prefix)
		if found && (rest == "") == p.whole {
			return p.index, rest, len(rest) <= maxName && !strings.Contains(rest, "\x00")
		}
	}
	return 0, "", false
}

func joinXattr(index uint8, rest string) (string, bool) {
	for _, p := range xattrPrefixes {
		if p.index == index {
			name := p.prefix + rest
			_, _, ok := splitXattr(name)
			return name, ok
		}
	}
	return "", false
}

// KnownXattr reports whether EROFS can hold an xattr of this name: user.*,
// trusted.*, security.* and the two POSIX ACLs. Others have no meaning on Linux
// and [Write] refuses them: drop them before.
func KnownXattr(name string) bool {
	_, _, ok := splitXattr(name)
	return ok
}

// checkXattrs returns the bytes that the xattrs take behind the inode, or why
// they cannot be stored.
func checkXattrs(xs []Xattr) (size int, reason string) {
	if len(xs) == 0 {
		return 0, ""
	}
	size = xattrHeaderSize
	xs = sortedXattrs(xs)
	for i, x := range xs {
		_, rest, ok := splitXattr(x.Name)
		switch {
		case !ok:
			return 0, fmt.Sprintf("xattr name %q has no place in EROFS", x.Name)
		case len(x.Value) > MaxXattrValue:
			return 0, fmt.Sprintf("xattr %q has %d bytes, at most %d are possible", x.Name, len(x.Value), MaxXattrValue)
		case i > 0 && xs[i-1].Name == x.Name:
			return 0, fmt.Sprintf("xattr %q is given twice", x.Name)
		}
		size += roundUp(xattrEntrySize+len(rest)+len(x.Value), 4)
		if size > maxXattrBytes {
			return 0, fmt.Sprintf("xattrs take more than %d bytes", maxXattrBytes)
		}
	}
	return size, ""
}

func sortedXattrs(xs []Xattr) []Xattr {
	byName := func(a, b Xattr) int { return cmp.Compare(a.Name, b.Name) }
	if slices.IsSortedFunc(xs, byName) {
		return xs
	}
	xs = slices.Clone(xs)
	slices.SortFunc(xs, byName)
	return xs
}

// putXattrs writes the xattr area. Its header stays zero: no shared xattrs, and
// no name filter, which the superblock does not announce.
func putXattrs(b []byte, xs []Xattr) {
	b = b[xattrHeaderSize:]
	for _, x := range sortedXattrs(xs) {
		index, rest, _ := splitXattr(x.Name)
		b[0], b[1] = uint8(len(rest)), index
		le.PutUint16(b[2:], uint16(len(x.Value)))
		n := xattrEntrySize + copy(b[xattrEntrySize:], rest)
		n += copy(b[n:], x.Value)
		b = b[roundUp(n, 4):]
	}
}
