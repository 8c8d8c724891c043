package erofs

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// node is an inode with all that is decided about it before a byte is written.
type node struct {
	in     *Inode // what is wanted of it often is copied: the tree is not in the CPU's cache
	name   string // by which it was found first, for errors
	mode   uint32
	parent int32
	nlink  uint32

	dir *dirNode // of a directory

	pathBytes  int32
	xattrBytes int32
	time       int32 // index of the plan's times
	small      bool  // fits the 32-byte inode but for the time
	compact    bool
	layout     uint8
	chunkBits  uint8
	tailBytes  uint16 // written behind the inode (layoutFlatInline)
	chunks     int32  // layoutChunkBased
	dataBytes  int64  // of a directory's blocks or a link
	dataBlock  uint32 // where those of them lie that are not the tail
	pos        int64
}

// dirNode is what a directory has besides.
type dirNode struct {
	kids  []Dirent // sorted by name
	nodes []int32  // of kids
}

func (n *node) kind() uint32 { return n.mode & ModeType }

func (n *node) inodeBytes() int {
	if n.compact {
		return compactSize
	}
	return extendedSize
}

// outBlocks is the number of blocks of the node that lie in the data area.
func (n *node) outBlocks() int64 { return blocksOf(n.dataBytes - int64(n.tailBytes)) }

// plan is an image before it is written. Nodes are in the order in which their
// inodes lie: the children of one directory next to each other, sorted by name,
// then those of its first subdirectory, and so on. So readdir with stat, and
// find, read the image front to back.
type plan struct {
	nodes     []node
	devices   []Device
	times     map[mtime]int32
	timeCount []int // of small inodes
	epoch     mtime
	size      int64
}

type mtime struct {
	sec  int64
	nsec uint32
}

func (a mtime) compare(b mtime) int {
	return cmp.Or(cmp.Compare(a.sec, b.sec), cmp.Compare(a.nsec, b.nsec))
}

func newPlan(root *Inode, devices []Device) (*plan, error) {
	p := &plan{devices: devices, times: map[mtime]int32{}}
	if err := p.checkDevices(); err != nil {
		return nil, err
	}
	if root == nil || root.Mode&ModeType != ModeDir {
		return nil, &InputError{"", "the root is not a directory"}
	}
	if err := p.scan(root); err != nil {
		return nil, err
	}
	for i := range p.nodes {
		if reason := p.check(&p.nodes[i]); reason != "" {
			return nil, p.fail(int32(i), reason)
		}
		p.countTime(&p.nodes[i])
	}
	p.chooseEpoch()
	return p, p.place()
}

func (p *plan) checkDevices() error {
	if len(p.devices) > MaxDevices {
		return fmt.Errorf("write erofs image: %d devices, at most %d are possible", len(p.devices), MaxDevices)
	}
	for i, d := range p.devices {
		if d.SizeBytes < 0 || d.SizeBytes > maxDeviceBytes || len(d.Tag) > deviceTagSize {
			return fmt.Errorf("write erofs image: device %d: size %d or tag %q out of range", i+1, d.SizeBytes, d.Tag)
		}
	}
	return nil
}

// fail makes an error that names node i.
func (p *plan) fail(i int32, reason string) error {
	var parts []string
	for ; i > 0; i = p.nodes[i].parent {
		parts = append(parts, p.nodes[i].name)
	}
	slices.Reverse(parts)
	return &InputError{strings.Join(parts, "/"), reason}
}

// scan numbers all inodes and counts their links.
func (p *plan) scan(root *Inode) error {
	p.nodes = append(make([]node, 0, 1024), node{in: root, mode: root.Mode, nlink: 2})
	known := map[*Inode]int32{root: 0}
	stack := []int32{0}
	for len(stack) > 0 {
		dir := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		first := len(stack)
		kids, err := p.sortKids(dir)
		if err != nil {
			return err
		}
		d := &dirNode{kids, make([]int32, len(kids))}
		for k, kid := range kids {
			i, err := p.addKid(known, dir, kid)
			if err != nil {
				return err
			}
			d.nodes[k] = i
			if p.nodes[i].kind() == ModeDir {
				stack = append(stack, i)
			}
		}
		slices.Reverse(stack[first:])
		p.nodes[dir].dir = d
	}
	return nil
}

func (p *plan) addKid(known map[*Inode]int32, dir int32, kid Dirent) (int32, error) {
	if i, found := known[kid.Inode]; found {
		n := &p.nodes[i]
		if n.kind() == ModeDir {
			return 0, p.fail(dir, fmt.Sprintf("%q is a directory that has another name", kid.Name))
		}
		n.nlink++
		return i, nil
	}
	parent := &p.nodes[dir]
	n := node{in: kid.Inode, mode: kid.Inode.Mode, name: kid.Name, parent: dir, nlink: 1, pathBytes: parent.pathBytes + 1 + int32(len(kid.Name))}
	if n.kind() == ModeDir {
		n.nlink = 2
		parent.nlink++
	}
	if n.pathBytes > MaxPathBytes {
		return 0, p.fail(dir, fmt.Sprintf("a name in it has a path of more than %d bytes", MaxPathBytes))
	}
	i := int32(len(p.nodes))
	p.nodes = append(p.nodes, n)
	known[kid.Inode] = i
	return i, nil
}

// sortKids returns the directory's children sorted by the bytes of their names,
// which the kernel's binary search needs.
func (p *plan) sortKids(dir int32) ([]Dirent, error) {
	kids := p.nodes[dir].in.Children
	byName := func(a, b Dirent) int { return strings.Compare(a.Name, b.Name) }
	if !slices.IsSortedFunc(kids, byName) {
		kids = slices.Clone(kids)
		slices.SortFunc(kids, byName)
	}
	for k, kid := range kids {
		switch {
		case !validName(kid.Name) || kid.Name == "." || kid.Name == "..":
			return nil, p.fail(dir, fmt.Sprintf("a name in it cannot be stored: %q", kid.Name))
		case k > 0 && kids[k-1].Name == kid.Name:
			return nil, p.fail(dir, fmt.Sprintf("two children have the name %q", kid.Name))
		case kid.Inode == nil:
			return nil, p.fail(dir, fmt.Sprintf("no inode for the name %q", kid.Name))
		}
	}
	return kids, nil
}

func validName(name string) bool {
	return name != "" && len(name) <= maxName && strings.IndexByte(name, '/') < 0 && strings.IndexByte(name, 0) < 0
}

// check decides the node's layout, or says why it cannot be written.
func (p *plan) check(n *node) (reason string) {
	in := n.in
	if in.Mode > 0xffff || in.MtimeNsec >= 1e9 {
		return fmt.Sprintf("mode %o or nanoseconds %d out of range", in.Mode, in.MtimeNsec)
	}
	size, reason := checkXattrs(in.Xattrs)
	if reason != "" {
		return reason
	}
	n.xattrBytes = int32(size)
	switch n.kind() {
	case ModeRegular:
		return p.checkExtents(n)
	case ModeDir:
		n.dataBytes = dirBytes(n.dir.kids)
	case ModeSymlink:
		n.dataBytes = int64(len(in.Link))
		if in.Link == "" || len(in.Link) > maxLink || strings.IndexByte(in.Link, 0) >= 0 {
			return fmt.Sprintf("link target of %d bytes cannot be stored", len(in.Link))
		}
	case ModeChar, ModeBlock:
		if in.DevMajor > 0xfff || in.DevMinor > 0xfffff {
			return fmt.Sprintf("device number %d:%d out of range", in.DevMajor, in.DevMinor)
		}
	case ModeFifo, ModeSocket:
	default:
		return fmt.Sprintf("mode %o has no file type", in.Mode)
	}
	return ""
}

// countTime notes the node's time, and whether all else fits the 32-byte inode.
func (p *plan) countTime(n *node) {
	t := mtime{n.in.MtimeSec, n.in.MtimeNsec}
	i, known := p.times[t]
	if !known {
		i = int32(len(p.timeCount))
		p.times[t] = i
		p.timeCount = append(p.timeCount, 0)
	}
	n.time = i
	n.small = n.in.UID <= 0xffff && n.in.GID <= 0xffff && n.nlink <= 0xffff && max(n.in.SizeBytes, n.dataBytes) <= 0xffffffff
	if n.small {
		p.timeCount[i]++
	}
}

// chooseEpoch takes the time most inodes have: they need not store it and are
// compact. (Linux 6.15 and later add a 32-bit time of a compact inode's own;
// we leave it 0, so that older kernels see the same.)
func (p *plan) chooseEpoch() {
	best := int32(-1)
	for t, i := range p.times {
		if best < 0 || p.timeCount[i] > p.timeCount[best] || p.timeCount[i] == p.timeCount[best] && t.compare(p.epoch) < 0 {
			p.epoch, best = t, i
		}
	}
	for i := range p.nodes {
		n := &p.nodes[i]
		n.compact = n.small && n.time == best
	}
}

// place gives every inode its place, and every directory and long link its blocks.
func (p *plan) place() error {
	pos := int64(superOffset + superSize + deviceSlotSize*len(p.devices))
	for i := range p.nodes {
		n := &p.nodes[i]
		rec := n.inodeBytes() + int(n.xattrBytes)
		switch {
		case n.layout == layoutChunkBased:
			// The indexes are aligned in the image, and an inode is too.
			rec = roundUp(rec, chunkUnit) + chunkUnit*int(n.chunks)
		case n.dataBytes&(blockSize-1) != 0 && rec+int(n.dataBytes&(blockSize-1)) <= blockSize:
			// A tail must lie in one block; a link is only fast to read, and before
			// Linux 6.13 only readable, when its inode lies in that block as well.
			n.layout = layoutFlatInline
			n.tailBytes = uint16(n.dataBytes & (blockSize - 1))
			rec += int(n.tailBytes)
			if pos&(blockSize-1)+int64(rec) > blockSize {
				pos = roundUp(pos, blockSize)
			}
		}
		n.pos = pos
		pos = roundUp(pos+int64(rec), nidUnit)
	}
	pos = roundUp(pos, blockSize)
	for i := range p.nodes {
		if n := &p.nodes[i]; n.outBlocks() > 0 {
			n.dataBlock = uint32(pos >> blockBits)
			pos += n.outBlocks() << blockBits
		}
	}
	p.size = pos
	if p.size > maxImageBytes {
		return fmt.Errorf("write erofs image: %d bytes of metadata, at most %d are possible", p.size, maxImageBytes)
	}
	return nil
}
