package erofs

import "sort"

// dirEntries is a directory's entries in the order of the disk: its children with
// "." and ".." sorted in, which names that begin with '!' or '-' come before.
type dirEntries struct {
	kids        []Dirent
	dot, dotdot int // places of the two
}

func newDirEntries(kids []Dirent) dirEntries {
	after := func(name string) int {
		return sort.Search(len(kids), func(i int) bool { return kids[i].Name > name })
	}
	return dirEntries{kids, after("."), after("..") + 1}
}

func (d dirEntries) len() int { return len(d.kids) + 2 }

// at returns entry k's name and its place among the children, -1 for "." and -2
// for "..".
func (d dirEntries) at(k int) (name string, kid int) {
	switch {
	case k == d.dot:
		return ".", -1
	case k == d.dotdot:
		return "..", -2
	case k > d.dotdot:
		kid = k - 2
	case k > d.dot:
		kid = k - 1
	default:
		kid = k
	}
	return d.kids[kid].Name, kid
}

// block returns the end of the block of entries that starts with entry k, and
// the bytes it uses.
func (d dirEntries) block(k int) (end, used int) {
	for end = k; end < d.len(); end++ {
		name, _ := d.at(end)
		if used+direntSize+len(name) > blockSize {
			break
		}
		used += direntSize + len(name)
	}
	return end, used
}

func dirBytes(kids []Dirent) (size int64) {
	d := newDirEntries(kids)
	for k, used := 0, 0; k < d.len(); size += int64(used) {
		size = roundUp(size, blockSize)
		k, used = d.block(k)
	}
	return size
}

// putBlock writes entries [from, to) as one directory block: all entries, then
// all names.
func (p *plan) putBlock(b []byte, i int, d dirEntries, from, to int) {
	n := &p.nodes[i]
	nameOff := direntSize * (to - from)
	for k := from; k < to; k++ {
		name, kid := d.at(k)
		target := &p.nodes[i]
		switch kid {
		case -1:
		case -2:
			target = &p.nodes[n.parent]
		default:
			target = &p.nodes[n.dir.nodes[kid]]
		}
		de := b[direntSize*(k-from):]
		le.PutUint64(de, uint64(target.pos/nidUnit))
		le.PutUint16(de[8:], uint16(nameOff))
		de[10] = direntTypes[target.kind()>>12]
		nameOff += copy(b[nameOff:], name)
	}
}
