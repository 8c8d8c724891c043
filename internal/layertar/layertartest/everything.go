package layertartest

import "strings"

// Capability is a valid value of security.capability: cap_net_bind_service=ep.
const Capability = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// ACL is a valid value of system.posix_acl_access and _default: user::rw-,
// user:1000:r--, group::r--, mask::r--, other::r--.
const ACL = "\x02\x00\x00\x00" +
	"\x01\x00\x06\x00\xff\xff\xff\xff" +
	"\x02\x00\x04\x00\xe8\x03\x00\x00" +
	"\x04\x00\x04\x00\xff\xff\xff\xff" +
	"\x10\x00\x04\x00\xff\xff\xff\xff" +
	"\x20\x00\x04\x00\xff\xff\xff\xff"

// HugePath is the one file of [Everything] that is over 8 GiB (and all but empty),
// and HugeBytes its size: readers of whole trees may want to treat it apart.
const (
	HugePath  = "sparse/huge"
	HugeBytes = 8<<30 + 4096
)

// LongDir is a path of [Everything] with components as long as Linux lets them be.
var LongDir = "long/" + strings.Repeat("d", 255) + "/" + strings.Repeat("e", 255)

// Everything returns uncompressed layers, lowest first, that together hold all that a
// layer may: every format of header, kind of file and attribute, and every way in which
// a layer changes the ones below. All of it can be unpacked on ext4 as root.
func Everything() [][]byte {
	return [][]byte{baseLayer(), changeLayer(), opaqueLayer()}
}

func baseLayer() []byte {
	b := new(Builder)
	b.PAXType('g', "comment", "git writes these", "uid", "4242")
	b.Header(Header{Type: '5', Name: "./", Mode: 0o755, ModTime: 1_600_000_000})
	b.Dir("./etc/").File("./etc/passwd", []byte("root:x:0:0:root:/root:/bin/sh\n"))
	formats(b)
	attributes(b)
	sizes(b)
	sparseFiles(b)
	links(b)
	repeats(b)
	lower(b)
	return b.End().Raw([]byte("what follows the end blocks is no tar")).Bytes()
}

// formats has a name or number in every way that headers have for it.
func formats(b *Builder) {
	b.Dir("names")
	b.Entry(Header{Type: '0', Prefix: "names/" + strings.Repeat("p", 60), Name: strings.Repeat("n", 100), Mode: 0o644}, []byte("ustar prefix"))
	b.Entry(Header{Type: '0', Name: "names/v7-file", Mode: 0o644, Magic: MagicV7, Edit: func(b *[512]byte) { b[156] = 0 }}, []byte("v7"))
	b.Header(Header{Name: "names/v7-dir/", Mode: 0o750, Magic: MagicV7})
	b.Entry(Header{Type: '7', Name: "names/contiguous", Mode: 0o644}, []byte("type 7"))
	b.Entry(Header{Type: '0', Name: "names/star", Mode: 0o644, Edit: func(b *[512]byte) { copy(b[508:], "tar\x00") }}, []byte("star"))
	b.Dir("long")
	for _, p := range []string{LongDir[:5+255], LongDir} {
		b.PAX("path", p+"/").Header(Header{Type: '5', Name: "long/short", Mode: 0o711})
	}
	b.PAX("path", LongDir+"/pax").File("long/short", []byte("PAX path"))
	b.LongName(LongDir+"/gnu").Entry(Header{Type: '0', Name: "long/short", Mode: 0o644, Magic: MagicGNU}, []byte("GNU long name"))
	b.LongLink("../" + LongDir + "/gnu").Header(Header{Type: '2', Name: "long/symlink-gnu", Link: "cut", Mode: 0o777, Magic: MagicGNU})
	b.PAX("linkpath", "../"+LongDir+"/pax").Symlink("long/symlink-pax", "cut")
	b.LongName("long/hardlink-gnu").LongLink(LongDir + "/gnu").Header(Header{Type: '1', Name: "x", Link: "cut", Mode: 0o644, Magic: MagicGNU})
	b.PAX("linkpath", LongDir+"/pax", "path", "long/hardlink-pax").Hardlink("x", "cut")
	b.File("names/latin-\xe9\xff", []byte("not UTF-8"))
	b.PAX("path", "names/pax-\xff\xfe", "hdrcharset", "BINARY").File("x", []byte("not UTF-8 either"))
	b.File("names/unicode-\u00e9\u4e16\u754c", []byte("UTF-8"))
	b.File("names/space and\nnewline\\backslash", []byte("odd"))
	b.File("names//.//untidy", []byte("cleaned to names/untidy"))
	b.Entry(Header{Type: '0', Name: "names/signed-\xf0\xf1", Mode: 0o644, Break: signedChecksum}, []byte("signed checksum"))
	b.Symlink("names/absolute", "/etc/passwd").Symlink("names/dangling", "../../../../nowhere").Symlink("names/dir", "v7-dir")
}

func signedChecksum(blk *[512]byte) {
	sum := 0
	copy(blk[148:156], "        ")
	for _, c := range blk {
		sum += int(int8(c))
	}
	for i := 5; i >= 0; i-- {
		blk[148+i] = byte('0' + sum&7)
		sum >>= 3
	}
	blk[154] = 0
}

// attributes has owners, modes, times, xattrs and the files that are not files.
func attributes(b *Builder) {
	b.Dir("attrs")
	b.Entry(Header{Type: '0', Name: "attrs/uid-base256", Mode: 0o600, UID: 3_000_000_000, GID: 2_500_000, Magic: MagicGNU}, []byte("u"))
	b.PAX("uid", "4000000001", "gid", "2097152").File("attrs/uid-pax", []byte("u"))
	b.Entry(Header{Type: '0', Name: "attrs/suid", Mode: 0o4755, UID: 1000, GID: 1000}, []byte("s"))
	b.Entry(Header{Type: '0', Name: "attrs/sgid", Mode: 0o2755, GID: 5}, []byte("s"))
	b.Entry(Header{Type: '0', Name: "attrs/mode-0", Mode: 0, UID: 7}, []byte("s"))
	b.Entry(Header{Type: '0', Name: "attrs/mode-with-type", Mode: 0o100640}, []byte("s"))
	b.Header(Header{Type: '5', Name: "attrs/sticky", Mode: 0o1777})
	b.Header(Header{Type: '5', Name: "attrs/sgid-dir", Mode: 0o2775, GID: 50})

	b.Entry(Header{Type: '0', Name: "attrs/time-negative-base256", Mode: 0o644, ModTime: -86_400, Magic: MagicGNU}, nil)
	b.PAX("mtime", "-1.5").File("attrs/time-negative-pax", nil)
	b.PAX("mtime", "-0.000000001").File("attrs/time-just-before-1970", nil)
	b.PAX("mtime", "0").File("attrs/time-zero", nil)
	b.PAX("mtime", "1700000000.123456789", "atime", "1.5", "ctime", "2").File("attrs/time-nanoseconds", nil)
	b.PAX("mtime", "1700000000.1234567899").File("attrs/time-too-exact", nil)
	b.PAX("mtime", "8589934592.25").File("attrs/time-2242", nil)
	b.PAX("mtime", "1600000000.5").Header(Header{Type: '5', Name: "attrs/time-dir", Mode: 0o755})
	b.PAX("mtime", "1600000000.7").Symlink("attrs/time-symlink", "x")

	b.PAX("SCHILY.xattr.user.color", "blue", "SCHILY.xattr.user.binary", "\x00\n=\xff", "SCHILY.xattr.user.empty", "", "SCHILY.xattr.trusted.t", "t").File("attrs/xattrs", []byte("x"))
	b.PAX("SCHILY.xattr.security.capability", Capability).Entry(Header{Type: '0', Name: "attrs/capability", Mode: 0o755}, []byte("ping"))
	b.PAX("SCHILY.xattr.system.posix_acl_access", ACL, "SCHILY.acl.access", "user::rw-,user:daemon:r--,group::r--,mask::r--,other::r--").File("attrs/acl", []byte("a"))
	b.PAX("SCHILY.xattr.system.posix_acl_default", ACL, "SCHILY.xattr.user.d", "d", "SCHILY.xattr.trusted.d", "d").Dir("attrs/xattr-dir")
	b.PAX("SCHILY.xattr.trusted.link", "l", "SCHILY.xattr.user.dropped", "a symlink cannot have it").Symlink("attrs/xattr-symlink", "x")
	b.PAX("LIBARCHIVE.xattr.user.%6cib", "YmFzZTY0", "LIBARCHIVE.xattr.user.both", "bm8", "SCHILY.xattr.user.both", "yes").File("attrs/xattr-libarchive", nil)
	b.PAX("SCHILY.xattr.com.apple.provenance", "dropped", "SCHILY.xattr.user.kept", "k").File("attrs/xattr-foreign", nil)

	b.Dir("dev")
	b.Header(Header{Type: '3', Name: "dev/null", Mode: 0o666, DevMajor: 1, DevMinor: 3})
	b.Header(Header{Type: '4', Name: "dev/big", Mode: 0o660, GID: 6, DevMajor: 259, DevMinor: 1_000_000})
	b.Header(Header{Type: '6', Name: "dev/fifo", Mode: 0o620})
}

// sizes has files at the edges of blocks and spans.
func sizes(b *Builder) {
	b.Dir("sizes")
	for i, f := range []struct {
		name  string
		bytes int
	}{{"0", 0}, {"1", 1}, {"511", 511}, {"512", 512}, {"513", 513}, {"4095", 4095}, {"4096", 4096}, {"4097", 4097}, {"100000", 100_000}} {
		b.File("sizes/"+f.name, Fill(i, f.bytes))
	}
	// One whose data starts, one whose data ends exactly on a span of 1 MiB, one across.
	const span = 1 << 20
	gap := func() int { return -b.Len() & (span - 1) }
	b.File("sizes/filler", Fill(20, span+gap()-2*blockBytes))
	b.File("sizes/starts-on-span", Fill(21, span+1000))
	b.File("sizes/ends-on-span", Fill(22, gap()-blockBytes))
	b.File("sizes/after-span", Fill(23, 700))
	b.File("sizes/1MiB", Fill(24, span))
	b.PAX("size", "600").Header(Header{Type: '0', Name: "sizes/pax-size", Mode: 0o644, Size: 1}).Data(Fill(25, 600))
	b.Header(Header{Type: '0', Name: "sizes/base256-size", Mode: 0o644, Size: 600, Magic: MagicGNU, Edit: func(blk *[512]byte) {
		copy(blk[124:136], "\x80\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x58")
	}}).Data(Fill(26, 600))
	b.Header(Header{Type: '5', Name: "sizes/dir-with-size", Mode: 0o755, Size: 4096}) // no data follows
}

// parts returns n parts of one block, every other block of a file.
func parts(seed, n int) []Part {
	p := make([]Part, n)
	for i := range p {
		p[i] = Part{Offset: int64(1024 * i), Data: Fill(seed+i, blockBytes)}
	}
	return p
}

// sparseFiles has every format for them.
func sparseFiles(b *Builder) {
	b.Dir("sparse")
	tail := func(p []Part, size int64) []Part { return append(p, Part{Offset: size - 100, Data: Fill(99, 100)}) }
	const size = 1<<20 + 612
	b.SparseGNU("sparse/gnu-2", size, tail(parts(100, 1), size))
	b.SparseGNU("sparse/gnu-4", size, append(parts(110, 3), Part{Offset: size}))
	b.SparseGNU("sparse/gnu-60", size, tail(parts(120, 59), size))
	b.SparsePAX("0.0", "sparse/pax-0.0", size, tail(parts(200, 3), size))
	b.SparsePAX("0.1", "sparse/pax-0.1", size, tail(parts(210, 3), size), "SCHILY.xattr.user.sparse", "yes", "mtime", "1600000000.25")
	b.SparsePAX("1.0", "sparse/pax-1.0", size, tail(parts(220, 100), size))
	b.SparsePAX("1.0", "sparse/hole-first", size, []Part{{Offset: 8192, Data: Fill(230, 4096)}, {Offset: size}})
	b.SparsePAX("1.0", "sparse/neighbours", 3*4096, []Part{{Offset: 0, Data: Fill(231, 4096)}, {Offset: 4096, Data: Fill(232, 4096)}, {Offset: 3 * 4096}})
	b.SparsePAX("1.0", "sparse/only-hole", 1<<20, []Part{{Offset: 1 << 20}})
	b.SparseGNU("sparse/only-hole-gnu", 1<<20, []Part{{Offset: 1 << 20}})
	b.SparsePAX("1.0", "sparse/not-sparse", 5000, []Part{{Data: Fill(233, 5000)}})
	b.SparsePAX("0.1", "sparse/empty", 0, []Part{{}})
	b.SparseGNU(HugePath, HugeBytes, []Part{{Offset: 1 << 20, Data: Fill(240, 4096)}, {Offset: HugeBytes - 4096, Data: Fill(241, 4096)}})
}

func links(b *Builder) {
	b.Dir("links").File("links/a", []byte("linked")).Hardlink("links/b", "links/a").Hardlink("links/c", "./links/b")
	b.Symlink("links/sym", "a").Header(Header{Type: '1', Name: "links/sym-hard", Link: "links/sym", Mode: 0o777})
	b.Header(Header{Type: '1', Name: "links/with-size", Link: "links/a", Mode: 0o644, Size: 6}) // no data follows
	b.PAX("SCHILY.xattr.user.group", "all").File("links/x1", []byte("with xattr")).PAX("SCHILY.xattr.user.group", "all").Hardlink("links/x2", "links/x1")
	b.Header(Header{Type: '3', Name: "links/dev1", Mode: 0o644, DevMajor: 1, DevMinor: 5}).Hardlink("links/dev2", "links/dev1")
	b.Hardlink("links/hard to \xff", "links/a")
}

// repeats has names that come more than once, and directories out of order.
func repeats(b *Builder) {
	b.Dir("again")
	b.File("again/file", []byte("first, longer")).File("again/file", []byte("second"))
	b.File("again/old", []byte("old")).Hardlink("again/keeps-old", "again/old").File("again/old", []byte("new"))
	b.File("again/file-then-dir", []byte("f")).Dir("again/file-then-dir").File("again/file-then-dir/child", []byte("c"))
	b.Dir("again/dir-then-file").File("again/dir-then-file/gone", []byte("g")).File("again/dir-then-file", []byte("f"))
	b.Dir("again/dir-file-dir").File("again/dir-file-dir/gone", nil).File("again/dir-file-dir", nil).Dir("again/dir-file-dir")
	b.Symlink("again/link-then-file", "file").File("again/link-then-file", []byte("not through the link"))
	b.Dir("again/dir").File("again/dir/kept", []byte("k")).Header(Header{Type: '5', Name: "again/dir", Mode: 0o700, UID: 9})
	b.PAX("SCHILY.xattr.user.gone", "x").Dir("again/dir-xattr").Dir("again/dir-xattr")
	b.File("late/child", []byte("before its directory")).Header(Header{Type: '5', Name: "late", Mode: 0o701, UID: 8, ModTime: 1_500_000_000})
	b.File("never/a/b/child", []byte("its directories never come"))
}

// lower is what the layers above change.
func lower(b *Builder) {
	b.Dir("low")
	for _, name := range []string{"deleted", "deleted-and-back", "back-and-deleted", "kept", "replaced", "to-dir", "linked", "linked-and-changed", "chmod"} {
		b.File("low/"+name, []byte("lower "+name))
	}
	b.Hardlink("low/deleted-link-stays", "low/deleted")
	b.Symlink("low/deleted-symlink", "kept").Symlink("low/symlink-to-file", "kept")
	for _, dir := range []string{"low/dir-deleted", "low/dir-recreated", "low/dir-to-file", "low/dir-to-symlink", "low/dir-merged", "low/dir-chmod", "low/dir-implicit"} {
		b.PAX("SCHILY.xattr.user.lower", dir).Dir(dir).File(dir+"/a", []byte("a")).File(dir+"/b", []byte("b")).Dir(dir+"/sub").File(dir+"/sub/c", []byte("c"))
	}
	for _, dir := range []string{"opaque/first", "opaque/last", "opaque/between", "opaque/implicit", "opaque/alone", "opaque/nested"} {
		b.Dir(dir).File(dir+"/lower", []byte("l")).File(dir+"/same", []byte("l")).Dir(dir+"/sub").File(dir+"/sub/lower", []byte("l"))
	}
	b.File("root-file-deleted", nil)
}

func changeLayer() []byte {
	b := new(Builder)
	b.Header(Header{Type: '5', Name: ".wh..wh.plnk", Mode: 0o700}).Header(Header{Type: '5', Name: ".wh..wh.orph/", Mode: 0o700}).File(".wh..wh.aufs", nil)
	b.Whiteout("root-file-deleted").Whiteout("low/deleted").Whiteout("low/deleted-symlink").Whiteout("low/dir-deleted").Whiteout("low/never-was").Whiteout("no-such-dir/x")
	// A whiteout is about the layers below, wherever it stands in its own.
	b.Whiteout("low/deleted-and-back").File("low/deleted-and-back", []byte("upper, after its whiteout"))
	b.File("low/back-and-deleted", []byte("upper, before its whiteout")).Whiteout("low/back-and-deleted")
	b.Dir("low/dir-recreated").File("low/dir-recreated/new", []byte("n")).Whiteout("low/dir-recreated")
	b.File("low/replaced", []byte("upper"))
	b.Dir("low/to-dir").File("low/to-dir/child", nil)
	b.File("low/dir-to-file", []byte("now a file"))
	b.Symlink("low/dir-to-symlink", "dir-merged")
	b.File("low/symlink-to-file", []byte("replaces the link, not its target"))
	b.Hardlink("low/link-to-lower", "low/linked")
	b.Hardlink("low/link-to-changed", "low/linked-and-changed").File("low/linked-and-changed", []byte("changed after it was linked"))
	b.Entry(Header{Type: '0', Name: "low/chmod", Mode: 0o4711, UID: 33}, []byte("lower chmod"))
	b.Dir("low/dir-merged").File("low/dir-merged/a", []byte("upper a")).File("low/dir-merged/d", []byte("d")).Whiteout("low/dir-merged/b")
	b.PAX("SCHILY.xattr.user.upper", "u").Header(Header{Type: '5', Name: "low/dir-chmod", Mode: 0o700, UID: 12})
	b.File("low/dir-implicit/sub/d", []byte("its directories are below"))
	b.SparseGNU("low/sparse-again", 1<<16, parts(300, 8))
	return b.Bytes() // no end blocks
}

func opaqueLayer() []byte {
	b := new(Builder)
	b.Dir("opaque/first").Opaque("opaque/first").File("opaque/first/same", []byte("u")).File("opaque/first/new", []byte("u"))
	b.Dir("opaque/last").File("opaque/last/same", []byte("u")).Dir("opaque/last/sub").File("opaque/last/sub/new", []byte("u")).Opaque("opaque/last")
	b.File("opaque/between/new", []byte("u")).Opaque("opaque/between").Dir("opaque/between").File("opaque/between/newer", []byte("u"))
	b.Opaque("opaque/implicit").File("opaque/implicit/new", []byte("u"))
	b.Opaque("opaque/alone")
	b.Dir("opaque/nested/sub").Opaque("opaque/nested/sub").File("opaque/nested/sub/new", []byte("u")).Whiteout("opaque/nested/lower")
	b.Whiteout("low/dir-merged/a").Whiteout("low/deleted-and-back")
	b.Hardlink("low/third-link", "low/link-to-lower")
	b.File("sizes/4096", Fill(77, 4096))
	return b.End().Bytes()
}

// ThroughSymlinks returns layers whose upper one has entries below names that are
// symlinks to directories in the lower one, as layers not made from a running
// container have (lib/x over a base where lib is usr/lib). Unpackers resolve all but
// the last component inside the root; "x" ends up in usr/lib.
func ThroughSymlinks() [][]byte {
	low := new(Builder)
	low.Dir("usr").Dir("usr/lib").File("usr/lib/old", []byte("old")).File("usr/lib/gone", []byte("gone")).Dir("usr/bin")
	low.Symlink("lib", "usr/lib").Symlink("bin", "/usr/bin").Symlink("up", "../../usr/lib")
	up := new(Builder)
	up.File("lib/x", []byte("x")).File("bin/y", []byte("y")).File("up/z", []byte("z")).Hardlink("lib/x2", "up/old").Whiteout("lib/gone")
	return [][]byte{low.End().Bytes(), up.End().Bytes()}
}
