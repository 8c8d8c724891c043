package erofs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"strings"
	"testing"
)

func TestRoundTrip(t *testing.T) {
	root, l := everything()
	b := mustWrite(t, root, l.devices())
	diffFacts(t, modelFacts(root, l), imageFacts(t, b, l))
}

func TestRoundTripRandom(t *testing.T) {
	for seed := range uint64(30) {
		root, l := randomTree(newRand(seed), 400)
		b := mustWrite(t, root, l.devices())
		diffFacts(t, modelFacts(root, l), imageFacts(t, b, l))
	}
}

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0)) }

func randomTree(rng *rand.Rand, inodes int) (*Inode, layers) {
	l := make(layers, 1+rng.IntN(4))
	dirs := []*Inode{dir()}
	var files []*Inode
	for i := range inodes {
		parent := dirs[rng.IntN(len(dirs))]
		var in *Inode
		switch k := rng.IntN(12); {
		case k < 2:
			in = dir()
			dirs = append(dirs, in)
		case k < 4:
			in = symlink(strings.Repeat("x", 1+rng.IntN(700)))
		case k == 4 && len(files) > 0:
			in = files[rng.IntN(len(files))]
		default:
			in = l.file(rng.IntN(len(l)), strings.Repeat("d", rng.IntN(2000)))
			files = append(files, in)
		}
		if rng.IntN(3) == 0 {
			in.MtimeNsec = rng.Uint32N(3)
		}
		if rng.IntN(8) == 0 {
			in.Xattrs = []Xattr{{"trusted." + strings.Repeat("n", rng.IntN(200)) + "n", make([]byte, rng.IntN(900))}}
		}
		parent.Children = append(parent.Children, Dirent{fmt.Sprintf("%s%d", strings.Repeat("e", rng.IntN(200)), i), in})
	}
	return dirs[0], l
}

func TestDeterministic(t *testing.T) {
	root, l := everything()
	want := mustWrite(t, root, l.devices())
	again, l2 := everything()
	shuffle(again, rand.New(rand.NewPCG(3, 4)))
	if got := mustWrite(t, again, l2.devices()); !bytes.Equal(want, got) {
		t.Error("the same tree in another order gave other bytes")
	}
	again.Children[0].Inode.MtimeNsec++
	if got := mustWrite(t, again, l2.devices()); bytes.Equal(want[superOffset+sbUUID:][:16], got[superOffset+sbUUID:][:16]) {
		t.Error("another tree has the same UUID")
	}
}

func shuffle(in *Inode, rng *rand.Rand) {
	rng.Shuffle(len(in.Children), func(i, j int) { in.Children[i], in.Children[j] = in.Children[j], in.Children[i] })
	rng.Shuffle(len(in.Xattrs), func(i, j int) { in.Xattrs[i], in.Xattrs[j] = in.Xattrs[j], in.Xattrs[i] })
	for _, kid := range in.Children {
		shuffle(kid.Inode, rng)
	}
}

func TestLookup(t *testing.T) {
	root, l := everything()
	b := mustWrite(t, root, l.devices())
	img, err := Open(b)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range modelFacts(root, l) {
		info, err := img.Lookup(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode != want.Mode || info.Link != want.Link || info.SizeBytes != want.Size {
			t.Errorf("%q: got mode %o link %q size %d, want %+v", path, info.Mode, info.Link, info.SizeBytes, want)
		}
	}
	for _, path := range []string{"no", "zzz", "sub/", "/sub", "sub/no", "file-1/x", "sub/..", "."} {
		if _, err := img.Lookup(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q: got error %v, want not exist", path, err)
		}
	}
}

func TestSizes(t *testing.T) {
	// One file costs a compact inode, a chunk index and a directory entry when times agree.
	l := make(layers, 1)
	root := dir()
	for i := range 1000 {
		root.Children = append(root.Children, Dirent{fmt.Sprintf("file-%06d", i), l.file(0, "x")})
	}
	b := mustWrite(t, root, l.devices())
	if perFile := float64(len(b)) / 1000; perFile > 90 {
		t.Errorf("%.1f bytes a file", perFile)
	}
	// A hole or an extent of any size costs no more than one index.
	in := &Inode{Mode: ModeRegular, SizeBytes: 1 << 40}
	if b := mustWrite(t, dir(Dirent{"hole", in}), nil); len(b) > 2048 {
		t.Errorf("a hole of a terabyte takes %d bytes", len(b))
	}
}

func TestWriteErrors(t *testing.T) {
	file := func(size int64, es ...Extent) *Inode {
		return &Inode{Mode: ModeRegular, SizeBytes: size, Extents: es}
	}
	loop := dir()
	loop.Children = []Dirent{{"self", loop}}
	shared := dir()
	deep := dir()
	long := deep
	for range 300 {
		next := dir()
		long.Children = []Dirent{{strings.Repeat("p", 255), next}}
		long = next
	}
	cases := []struct {
		name string
		in   *Inode
		want string
	}{
		{"empty name", dir(Dirent{"", dir()}), "cannot be stored"},
		{"dot", dir(Dirent{".", dir()}), "cannot be stored"},
		{"slash", dir(Dirent{"a/b", dir()}), "cannot be stored"},
		{"NUL", dir(Dirent{"a\x00", dir()}), "cannot be stored"},
		{"long name", dir(Dirent{strings.Repeat("a", 256), dir()}), "cannot be stored"},
		{"name twice", dir(Dirent{"a", dir()}, Dirent{"b", dir()}, Dirent{"a", file(0)}), "two children"},
		{"no inode", dir(Dirent{"a", nil}), "no inode"},
		{"loop", loop, "another name"},
		{"directory twice", dir(Dirent{"a", shared}, Dirent{"b", shared}), "another name"},
		{"long path", deep, "more than 65536 bytes"},
		{"no type", &Inode{Mode: 0o644}, "no file type"},
		{"mode", &Inode{Mode: 1<<20 | ModeRegular}, "out of range"},
		{"nanoseconds", &Inode{Mode: ModeRegular, MtimeNsec: 1e9}, "out of range"},
		{"device number", &Inode{Mode: ModeChar, DevMajor: 4096}, "out of range"},
		{"empty link", symlink(""), "cannot be stored"},
		{"long link", symlink(strings.Repeat("a", 4096)), "cannot be stored"},
		{"negative size", file(-1), "size -1"},
		{"device", file(512, Extent{0, 512, 2, 0}), "there are 1"},
		{"device 0", file(512, Extent{0, 512, 0, 0}), "there are 1"},
		{"behind device", file(1024, Extent{0, 1024, 1, 1 << 20}), "leaves the 2048 blocks"},
		{"in a block that is not whole", file(100, Extent{0, 100, 1, 1 << 20}), "leaves the 2048 blocks"},
		{"behind device, overflow", file(1<<62, Extent{0, 1 << 62, 1, 1<<62 + 512}), "leaves the 2048 blocks"},
		{"behind file", file(512, Extent{0, 1024, 1, 0}), "leaves the file"},
		{"behind file, overflow", file(512, Extent{512, 1<<63 - 1, 1, 0}), "leaves the file"},
		{"overlap", file(2048, Extent{0, 1024, 1, 0}, Extent{512, 512, 1, 0}), "overlaps"},
		{"unaligned", file(1000, Extent{100, 900, 1, 0}), "whole 512-byte blocks"},
		{"unaligned device", file(1000, Extent{0, 1000, 1, 7}), "whole 512-byte blocks"},
		{"tail before the end", file(2000, Extent{0, 100, 1, 0}), "whole 512-byte blocks"},
		{"too many chunks", file(1<<40, Extent{512, 512, 1, 0}), "chunks"},
		{"xattr name", &Inode{Mode: ModeRegular, Xattrs: []Xattr{{"com.apple.x", nil}}}, "no place"},
		{"xattr empty name", &Inode{Mode: ModeRegular, Xattrs: []Xattr{{"user.", nil}}}, "no place"},
		{"xattr ACL suffix", &Inode{Mode: ModeRegular, Xattrs: []Xattr{{"system.posix_acl_access2", nil}}}, "no place"},
		{"xattr twice", &Inode{Mode: ModeRegular, Xattrs: []Xattr{{"user.a", nil}, {"user.b", nil}, {"user.a", nil}}}, "twice"},
		{"xattr value", &Inode{Mode: ModeRegular, Xattrs: []Xattr{{"user.a", make([]byte, 65536)}}}, "at most"},
		{"xattrs", &Inode{Mode: ModeRegular, Xattrs: []Xattr{{"user.a", make([]byte, 65535)}, {"user.b", make([]byte, 65535)},
			{"user.c", make([]byte, 65535)}, {"user.d", make([]byte, 65535)}}}, "take more"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := Write(dir(Dirent{"sub", dir(Dirent{"bad", c.in})}), []Device{{"", 1<<20 + 100}})
			var input *InputError
			if !errors.As(err, &input) || !strings.HasPrefix(input.Path, "sub/bad") || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q of sub/bad", err, c.want)
			}
		})
	}
	for _, ds := range [][]Device{{{"", -1}}, {{"", maxDeviceBytes + 1}}, {{strings.Repeat("t", 65), 1}}, make([]Device, MaxDevices+1)} {
		if _, err := Write(dir(), ds); err == nil {
			t.Errorf("%d devices like %.80v were accepted", len(ds), ds[0])
		}
	}
	if _, err := Write(file(0), nil); err == nil {
		t.Error("a root that is a file was accepted")
	}
}
