package erofs

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// fact is all that can be seen of a name, from the tree, from an image or from a
// mount of it.
type fact struct {
	Mode, UID, GID, Nlink uint32
	Sec                   int64
	Nsec                  uint32
	Size                  int64 // of regular files
	Dev                   [2]uint32
	Link                  string
	Xattrs                map[string]string
	Group                 string // the first name of the same file
	Sum                   [32]byte
}

// layers are fake tars: data at multiples of 512, padded with bytes that no
// reader may see.
type layers [][]byte

const padByte = 0xEE

func (l layers) add(dev int, data []byte) Extent {
	e := Extent{0, int64(len(data)), uint16(dev + 1), int64(len(l[dev]))}
	l[dev] = append(l[dev], data...)
	for len(l[dev])%blockSize != 0 {
		l[dev] = append(l[dev], padByte)
	}
	return e
}

func (l layers) devices() (ds []Device) {
	for i, b := range l {
		ds = append(ds, Device{fmt.Sprintf("layer-%d", i), int64(len(b))})
	}
	return ds
}

// maxSum is up to where contents are summed: files of terabytes are all hole.
const maxSum = 64 << 20

func (l layers) sum(in *Inode) [32]byte {
	if in.SizeBytes > maxSum {
		return [32]byte{}
	}
	data := make([]byte, in.SizeBytes)
	for _, e := range in.Extents {
		copy(data[e.Offset:e.Offset+e.Length], l[e.Device-1][e.OffsetDevice:])
	}
	return sha256.Sum256(data)
}

func dir(kids ...Dirent) *Inode {
	return &Inode{Mode: ModeDir | 0o755, MtimeSec: 1_700_000_000, Children: kids}
}

func (l layers) file(dev int, data string) *Inode {
	in := &Inode{Mode: ModeRegular | 0o644, MtimeSec: 1_700_000_000, SizeBytes: int64(len(data))}
	if data != "" {
		in.Extents = []Extent{l.add(dev, []byte(data))}
	}
	return in
}

func symlink(target string) *Inode {
	return &Inode{Mode: ModeSymlink | 0o777, MtimeSec: 1_700_000_000, Link: target}
}

func acl(ids ...uint32) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	add := func(tag, perm uint16, id uint32) {
		b = binary.LittleEndian.AppendUint16(b, tag)
		b = binary.LittleEndian.AppendUint16(b, perm)
		b = binary.LittleEndian.AppendUint32(b, id)
	}
	add(1, 7, 0xffffffff)
	for _, id := range ids {
		add(2, 5, id)
	}
	add(4, 5, 0xffffffff)
	add(0x10, 5, 0xffffffff)
	add(0x20, 5, 0xffffffff)
	return b
}

// everything is a tree with each thing an image layer can have.
func everything() (*Inode, layers) {
	l := make(layers, 3)
	root := dir()
	add := func(name string, in *Inode) *Inode {
		root.Children = append(root.Children, Dirent{name, in})
		return in
	}
	rng := rand.New(rand.NewPCG(1, 2))
	random := func(n int) string {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		return string(b)
	}
	for _, n := range []int{0, 1, 511, 512, 513, 700, 4095, 4096, 4097, 1 << 20, 3<<20 + 77} {
		add(fmt.Sprintf("file-%d", n), l.file(n%3, random(n)))
	}
	for i, name := range []string{"!", "-", "+x", ".-", ".a", "...", "~", "\x01", "\xff\xfe", "a b\nc", strings.Repeat("n", 255), "é"} {
		add(name, l.file(i%3, name))
	}
	times := add("times", dir())
	for _, t := range []mtime{{0, 0}, {-1, 999_999_999}, {-1 << 40, 1}, {1 << 33, 5}, {1_700_000_000, 1}} {
		in := l.file(0, "time")
		in.MtimeSec, in.MtimeNsec = t.sec, t.nsec
		times.Children = append(times.Children, Dirent{fmt.Sprint(t), in})
	}
	for i, mode := range []uint32{0, 0o4755, 0o2755, 0o1777, 0o7777} {
		in := add(fmt.Sprintf("mode-%o", mode), l.file(1, "x"))
		in.Mode = ModeRegular | mode
		in.UID, in.GID = uint32(65534+i), uint32(65537-i)
	}
	add("big-ids", l.file(2, "y")).UID = 1 << 31
	add("tmp", dir()).Mode = ModeDir | 0o1777
	add("pipe", &Inode{Mode: ModeFifo | 0o600})
	add("sock", &Inode{Mode: ModeSocket | 0o600})
	add("null", &Inode{Mode: ModeChar | 0o666, DevMajor: 1, DevMinor: 3})
	add("whiteout", &Inode{Mode: ModeChar})
	add("blk", &Inode{Mode: ModeBlock | 0o660, DevMajor: 4095, DevMinor: 1<<20 - 1})
	for _, n := range []int{1, 100, 447, 448, 449, 480, 511, 512, 513, 600, 1023, 4095} {
		add(fmt.Sprintf("link-%d", n), symlink(strings.Repeat("t", n)))
		odd := add(fmt.Sprintf("oddlink-%d", n), symlink(strings.Repeat("o", n)))
		odd.MtimeNsec = 7
		odd.Xattrs = []Xattr{{"security.selinux", []byte("system_u:object_r:x")}}
	}
	hard := add("hard-1", l.file(0, "hard"))
	add("hard-2", hard)
	hardLink := symlink("hard")
	sub := add("sub", dir(Dirent{"hard-3", hard}, Dirent{"l2", hardLink}, Dirent{"empty", dir()}))
	add("l1", hardLink)
	for _, n := range []int{1, 17, 18, 30, 31, 32, 33, 34, 35, 36, 1000} {
		many := dir()
		for i := range n {
			many.Children = append(many.Children, Dirent{fmt.Sprintf("%0*d", n%7+1, i), l.file(i%3, fmt.Sprint(i))})
		}
		sub.Children = append(sub.Children, Dirent{fmt.Sprintf("many-%d", n), many})
	}
	addXattrs(add, l, random)
	addSparse(add, l, random)
	deep := add("deep", dir())
	for range 300 {
		next := dir()
		deep.Children = []Dirent{{"d", next}}
		deep = next
	}
	return root, l
}

func addXattrs(add func(string, *Inode) *Inode, l layers, random func(int) string) {
	add("x-caps", l.file(0, "caps")).Xattrs = []Xattr{{"security.capability", []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")}}
	aclDir := add("x-acl", dir())
	aclDir.Xattrs = []Xattr{{"system.posix_acl_default", acl(1000, 70000)}, {"system.posix_acl_access", acl(1)}}
	aclDir.Mode = ModeDir | 0o755
	many := add("x-many", l.file(0, "many"))
	for i := range 40 {
		many.Xattrs = append(many.Xattrs, Xattr{fmt.Sprintf("user.%s%d", strings.Repeat("k", i*5), i), []byte(random(i * 37))})
	}
	add("x-big", l.file(1, "big")).Xattrs = []Xattr{{"trusted.big", []byte(random(MaxXattrValue))}, {"user.e", nil}}
	bigDir := add("x-dir", dir(Dirent{"kid", l.file(0, "k")}))
	bigDir.Xattrs = []Xattr{{"trusted.d", []byte(random(500))}}
	add("x-link", symlink("target")).Xattrs = []Xattr{{"trusted.l", []byte(random(490))}}
	add("x-fifo", &Inode{Mode: ModeFifo, Xattrs: []Xattr{{"trusted.f", []byte("f")}}})
}

func addSparse(add func(string, *Inode) *Inode, l layers, random func(int) string) {
	sparse := func(name string, size int64, extents ...[2]int64) *Inode {
		in := &Inode{Mode: ModeRegular | 0o600, MtimeSec: 5, SizeBytes: size}
		for i, e := range extents {
			x := l.add(i%3, []byte(random(int(e[1]))))
			x.Offset = e[0]
			in.Extents = append(in.Extents, x)
		}
		return add(name, in)
	}
	sparse("sparse-all", 5_000_000)
	sparse("sparse-start", 9000, [2]int64{8192, 808})
	sparse("sparse-mid", 1<<20, [2]int64{65536, 4096}, [2]int64{1<<20 - 1024, 512})
	sparse("sparse-odd", 100_001, [2]int64{512, 512}, [2]int64{1536, 512}, [2]int64{99840, 161})
	sparse("sparse-end", 70_000, [2]int64{0, 4096})
	sparse("sparse-xattr", 70_000, [2]int64{4096, 4096}).Xattrs = []Xattr{{"user.a", []byte("b")}}
	sparse("sparse-8g", 8<<30+5, [2]int64{4 << 30, 64 << 10})
	sparse("sparse-256g", 256<<30, [2]int64{128 << 30, 1 << 20})
	sparse("sparse-3t", 3<<40)
	// Extents that continue each other are one.
	two := sparse("two-extents", 4096)
	e := l.add(1, []byte(random(4096)))
	two.Extents = []Extent{{0, 1024, 2, e.OffsetDevice}, {1024, 3072, 2, e.OffsetDevice + 1024}}
	// One file over two devices.
	sparse("two-devices", 2048, [2]int64{0, 1024}, [2]int64{1024, 1024})
}

func modelFacts(root *Inode, l layers) map[string]fact {
	facts := map[string]fact{}
	first := map[*Inode]string{}
	names := map[*Inode]uint32{}
	var walk func(path string, in *Inode)
	walk = func(path string, in *Inode) {
		if _, ok := first[in]; !ok {
			first[in] = path
		}
		names[in]++
		f := fact{Mode: in.Mode, UID: in.UID, GID: in.GID, Sec: in.MtimeSec, Nsec: in.MtimeNsec, Dev: [2]uint32{in.DevMajor, in.DevMinor},
			Link: in.Link, Xattrs: xattrMap(in.Xattrs), Group: first[in]}
		if in.Mode&ModeType == ModeRegular {
			f.Size, f.Sum = in.SizeBytes, l.sum(in)
		}
		kids := slices.Clone(in.Children)
		slices.SortFunc(kids, func(a, b Dirent) int { return strings.Compare(a.Name, b.Name) })
		if in.Mode&ModeType == ModeDir {
			f.Nlink = 2
		}
		for _, kid := range kids {
			if kid.Inode.Mode&ModeType == ModeDir {
				f.Nlink++
			}
			walk(strings.TrimPrefix(path+"/"+kid.Name, "/"), kid.Inode)
		}
		facts[path] = f
	}
	walk("", root)
	for in, path := range first {
		for p, f := range facts {
			if f.Group == path && in.Mode&ModeType != ModeDir {
				f.Nlink = names[in]
				facts[p] = f
			}
		}
	}
	return facts
}

func xattrMap(xs []Xattr) map[string]string {
	m := map[string]string{}
	for _, x := range xs {
		m[x.Name] = string(x.Value)
	}
	return m
}

func imageFacts(t testing.TB, b []byte, l layers) map[string]fact {
	t.Helper()
	img, err := Open(b)
	if err != nil {
		t.Fatal(err)
	}
	facts := map[string]fact{}
	first := map[uint64]string{}
	err = img.Walk(func(path string, in *Info) error {
		if _, ok := first[in.NID]; !ok {
			first[in.NID] = path
		}
		f := fact{Mode: in.Mode, UID: in.UID, GID: in.GID, Nlink: in.Nlink, Sec: in.MtimeSec, Nsec: in.MtimeNsec, Size: in.SizeBytes,
			Dev: [2]uint32{in.DevMajor, in.DevMinor}, Link: in.Link, Xattrs: xattrMap(in.Xattrs), Group: first[in.NID]}
		if in.Mode&ModeType == ModeRegular {
			f.Sum = l.sum(&in.Inode)
		}
		facts[path] = f
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if int(img.Inodes()) != len(first) {
		t.Errorf("superblock says %d inodes, %d were found", img.Inodes(), len(first))
	}
	return facts
}

func mustWrite(t testing.TB, root *Inode, ds []Device) []byte {
	t.Helper()
	b, err := Write(root, ds)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func diffFacts(t testing.TB, want, got map[string]fact) {
	t.Helper()
	for path, w := range want {
		if g, ok := got[path]; !ok {
			t.Errorf("%q is missing", path)
		} else if diff := cmp.Diff(w, g); diff != "" {
			t.Errorf("%q (-want +got):\n%s", path, diff)
		}
	}
	for path := range got {
		if _, ok := want[path]; !ok {
			t.Errorf("%q should not exist", path)
		}
	}
}
