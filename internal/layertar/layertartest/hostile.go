package layertartest

import (
	"fmt"
	"strconv"
	"strings"
)

// Case is a tar that has to be refused.
type Case struct {
	Name string
	// Entry is a part of the entry's name that the message must hold; "" where there is none.
	Entry string
	Tar   []byte
}

// Hostile returns tars that must be refused, each for one reason and after one good entry.
func Hostile() []Case {
	var cases []Case
	add := func(name, entry string, build func(b *Builder)) {
		b := new(Builder).File("good", []byte("good"))
		build(b)
		cases = append(cases, Case{Name: name, Entry: entry, Tar: b.End().Bytes()})
	}
	hostileNames(add)
	hostileKinds(add)
	hostileNumbers(add)
	hostileSparse(add)

	whole := new(Builder).File("good", []byte("good")).File("cut", Fill(1, 2000)).Bytes()
	for _, c := range []struct {
		name, entry string
		bytes       int
	}{{"cut header", "", 1024 + 100}, {"cut data", "cut", 1024 + 512 + 1999}} {
		cases = append(cases, Case{Name: c.name, Entry: c.entry, Tar: whole[:c.bytes]})
	}
	return cases
}

type addCase func(name, entry string, build func(b *Builder))

func hostileNames(add addCase) {
	for _, name := range []string{"..", "../evil", "a/../evil", "a/..", "./../evil", "a/b/../../../evil", "/../evil", "..//evil"} {
		add("name "+name, name, func(b *Builder) { b.File(name, nil) })
		add("pax name "+name, name, func(b *Builder) { b.PAX("path", name).File("x", nil) })
		add("gnu name "+name, name, func(b *Builder) { b.LongName(name).File("x", nil) })
		add("hardlink to "+name, "link", func(b *Builder) { b.Hardlink("link", name) })
		add("whiteout in "+name, name, func(b *Builder) { b.File(name+"/.wh.x", nil) })
		add("opaque "+name, name, func(b *Builder) { b.Opaque(name) })
	}
	add("absolute name", "/etc/evil", func(b *Builder) { b.File("/etc/evil", nil) })
	add("absolute name with slashes", "//etc/evil", func(b *Builder) { b.File("//etc/evil", nil) })
	add("absolute hardlink", "link", func(b *Builder) { b.Hardlink("link", "/etc/passwd") })
	add("absolute whiteout", "/etc/.wh.evil", func(b *Builder) { b.File("/etc/.wh.evil", nil) })
	add("sparse name", "../evil", func(b *Builder) { b.SparsePAX("1.0", "../evil", 0, nil) })
	for _, name := range []string{".wh.", ".wh..", ".wh...", "a/.wh.", "a/.wh.."} {
		add("whiteout "+name, name, func(b *Builder) { b.File(name, nil) })
	}
	add("NUL in pax path", "", func(b *Builder) { b.PAX("path", "a\x00b").File("x", nil) })
	add("NUL in pax linkpath", "", func(b *Builder) { b.PAX("linkpath", "a\x00b").Symlink("x", "y") })
	add("long component", strings.Repeat("c", 100), func(b *Builder) { b.PAX("path", strings.Repeat("c", 256)).File("x", nil) })
	add("long path", strings.Repeat("p", 100), func(b *Builder) { b.PAX("path", strings.Repeat(strings.Repeat("p", 250)+"/", 17)).File("x", nil) })
	add("deep path", "d/d/d", func(b *Builder) { b.PAX("path", strings.Repeat("d/", 1500)).Dir("x") })
	add("long symlink target", "link", func(b *Builder) { b.PAX("linkpath", strings.Repeat("t", 4096)).Symlink("link", "x") })
	add("long hardlink target", "link", func(b *Builder) { b.PAX("linkpath", strings.Repeat("t", 256)).Hardlink("link", "x") })
}

func hostileKinds(add addCase) {
	add("root is a file", "", func(b *Builder) { b.File("./", nil) })
	add("root is a symlink", "", func(b *Builder) { b.Symlink("./", "/etc") })
	add("no name", "", func(b *Builder) { b.File("", nil) })
	add("hardlink without target", "link", func(b *Builder) { b.Hardlink("link", "") })
	add("hardlink to root", "link", func(b *Builder) { b.Hardlink("link", "./") })
	add("hardlink to itself", "link", func(b *Builder) { b.Hardlink("link", "./link") })
	add("symlink without target", "link", func(b *Builder) { b.Symlink("link", "") })
	add("link to missing aufs file", "link", func(b *Builder) { b.Hardlink("link", ".wh..wh.plnk/1.2") })
	for _, typ := range []byte("VMDNAXZ8\xff") {
		add(fmt.Sprintf("type %q", typ), "odd", func(b *Builder) { b.Header(Header{Type: typ, Name: "odd"}) })
	}
	add("checksum", "", func(b *Builder) {
		b.Header(Header{Type: '0', Name: "x", Break: func(blk *[512]byte) { blk[0] = 'y' }})
	})
	add("garbage", "", func(b *Builder) { b.Raw(Fill(1, 512)) })
	add("zero block, then more", "", func(b *Builder) { b.Raw(make([]byte, 512)).File("after", nil) })
	add("xattr value", "big", func(b *Builder) { b.PAX("SCHILY.xattr.user.x", strings.Repeat("v", 64<<10+1)).File("big", nil) })
	add("xattr name", "big", func(b *Builder) { b.PAX("SCHILY.xattr.user."+strings.Repeat("n", 251), "v").File("big", nil) })
	add("many xattrs", "big", func(b *Builder) {
		var kv []string
		for i := range 5000 {
			kv = append(kv, "SCHILY.xattr.user."+strconv.Itoa(i), "twenty bytes of value")
		}
		b.PAX(kv...).File("big", nil)
	})
	add("libarchive xattr", "bad", func(b *Builder) { b.PAX("LIBARCHIVE.xattr.user.x", "*").File("bad", nil) })
	add("huge pax header", "", func(b *Builder) { b.Header(Header{Type: 'x', Name: "pax", Size: 1<<20 + 1}) })
	add("huge global header", "", func(b *Builder) { b.Header(Header{Type: 'g', Name: "pax", Size: 1 << 40}) })
	add("huge long name", "", func(b *Builder) { b.Header(Header{Type: 'L', Name: "long", Size: 1 << 62, Magic: MagicGNU}) })
	for _, record := range []string{"x", "5 a=b\n", "99999 a=b\n", "-6 a=b\n", "0 a=b\n", "6 a=b", "6 a=b ", "6 =bb\n", "7 abcd\n", "99999999999999999999 a=b\n", " 6 a=b\n", "8 \x00a=b\n\n"} {
		add("pax record "+strconv.Quote(record), "", func(b *Builder) {
			b.Entry(Header{Type: 'x', Name: "pax"}, []byte(record)).File("x", nil)
		})
	}
}

func hostileNumbers(add addCase) {
	field := func(at int, value string) func(*[512]byte) {
		return func(blk *[512]byte) { copy(blk[at:], value) }
	}
	numbers := func(name string, at, n int) {
		for _, v := range []string{"9", "-1", "1 2", "0x1", "\x80" + strings.Repeat("\xff", n-1), "\xc0" + strings.Repeat("\x00", n-1)} {
			if n == 8 && v[0]&0x80 != 0 && name == "mode" {
				continue // fits in 64 bits; only its low bits count
			}
			add(name+" "+strconv.Quote(v), "num", func(b *Builder) {
				b.Header(Header{Type: '0', Name: "num", Edit: field(at, v+"\x00"[:min(1, n-len(v))])})
			})
		}
	}
	numbers("mode", 100, 8)
	numbers("uid", 108, 8)
	numbers("gid", 116, 8)
	numbers("size", 124, 12)
	numbers("mtime", 136, 12)
	add("size -1", "num", func(b *Builder) { b.Header(Header{Type: '0', Name: "num", Size: -1}) })
	add("size near overflow", "num", func(b *Builder) { b.Header(Header{Type: '0', Name: "num", Size: 1<<63 - 1}) })
	add("size over all files", "num", func(b *Builder) { b.Header(Header{Type: '0', Name: "num", Size: 1 << 50}) })
	add("size beyond the end", "num", func(b *Builder) { b.Header(Header{Type: '0', Name: "num", Size: 1 << 40}) })
	add("uid over 32 bits", "num", func(b *Builder) { b.Header(Header{Type: '0', Name: "num", UID: 1 << 32}) })
	for _, kv := range [][2]string{
		{"size", "-1"}, {"size", "9223372036854775807"}, {"size", "9223372036854775808"}, {"size", "1x"}, {"size", " 1"},
		{"uid", "-1"}, {"uid", "4294967296"}, {"gid", "x"},
		{"mtime", "x"}, {"mtime", "1.x"}, {"mtime", "."}, {"mtime", "99999999999999999999"}, {"mtime", "-9223372036854775808.5"},
	} {
		add("pax "+kv[0]+" "+kv[1], "num", func(b *Builder) { b.PAX(kv[0], kv[1]).File("num", nil) })
	}
	add("device major", "dev", func(b *Builder) { b.Header(Header{Type: '3', Name: "dev", DevMajor: 4096}) })
	add("device minor", "dev", func(b *Builder) { b.Header(Header{Type: '4', Name: "dev", DevMinor: 1 << 20}) })
	add("device garbage", "dev", func(b *Builder) { b.Header(Header{Type: '4', Name: "dev", Edit: field(329, "zz")}) })
}

func hostileSparse(add addCase) {
	one := Fill(1, 512)
	for _, version := range []string{"gnu", "0.0", "0.1", "1.0"} {
		sparse := func(name string, size int64, parts ...Part) {
			add("sparse "+version+" "+name, "sp", func(b *Builder) {
				if version == "gnu" {
					b.SparseGNU("sp", size, parts)
				} else {
					b.SparsePAX(version, "sp", size, parts)
				}
			})
		}
		sparse("part out of the file", 512, Part{512, one})
		sparse("parts overlap", 4096, Part{0, one}, Part{256, one})
		sparse("parts out of order", 4096, Part{1024, one}, Part{0, one})
		sparse("offset not aligned", 4096, Part{100, one})
		sparse("length not aligned", 4096, Part{0, one[:100]}, Part{1024, one})
		sparse("tail not aligned", 4096, Part{0, one[:100]})
		sparse("negative offset", 4096, Part{-512, one})
		sparse("offset overflows", 4096, Part{1<<63 - 512, one})
		sparse("negative size", -1, Part{0, one})
		sparse("size over all files", 1<<60, Part{0, one})
	}
	pax := func(name string, size int64, kv ...string) {
		add("sparse "+name, "sp", func(b *Builder) {
			b.PAX(append(kv, "GNU.sparse.name", "sp", "GNU.sparse.realsize", "4096")...).Header(Header{Type: '0', Name: "sp", Size: size})
			b.Raw(make([]byte, size))
		})
	}
	pax("stored bytes missing", 0, "GNU.sparse.map", "0,512", "GNU.sparse.numblocks", "1")
	pax("stored bytes too many", 1024, "GNU.sparse.map", "0,512", "GNU.sparse.numblocks", "1")
	pax("numblocks", 512, "GNU.sparse.map", "0,512", "GNU.sparse.numblocks", "2")
	pax("odd map", 512, "GNU.sparse.map", "0,512,1024", "GNU.sparse.numblocks", "1")
	pax("map of letters", 512, "GNU.sparse.map", "0,x", "GNU.sparse.numblocks", "1")
	pax("unknown version", 512, "GNU.sparse.major", "2", "GNU.sparse.minor", "0")
	pax("map without end", 4096, "GNU.sparse.major", "1", "GNU.sparse.minor", "0")
	add("sparse records out of order", "", func(b *Builder) {
		b.PAX("GNU.sparse.numbytes", "1", "GNU.sparse.offset", "0").File("sp", nil)
	})
	for _, m := range []string{"x\n", "\n", "1\n0\n\n", "1\n-0\n512\n", "99999999999999999999\n", "9223372036854775807\n", "4611686018427387904\n", "3\n0\n512\n"} {
		add("sparse 1.0 map "+strconv.Quote(m), "sp", func(b *Builder) {
			b.PAX("GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.name", "sp").Entry(Header{Type: '0', Name: "x"}, []byte(m))
		})
	}
	add("sparse symlink", "sp", func(b *Builder) {
		b.PAX("GNU.sparse.map", "0,0", "GNU.sparse.numblocks", "1").Symlink("sp", "x")
	})
	add("sparse header of star", "sp", func(b *Builder) { b.Header(Header{Type: 'S', Name: "sp"}) })
	add("sparse map without end", "sp", func(b *Builder) {
		b.Header(Header{Type: 'S', Name: "sp", Magic: MagicGNU, Edit: func(blk *[512]byte) { blk[482] = 1 }})
		var ext [512]byte
		ext[504] = 1
		for range 2100 {
			b.Raw(ext[:])
		}
	})
}
