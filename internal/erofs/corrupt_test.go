package erofs

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// small is a tree with each kind of structure, for tests that break every byte.
func small(t testing.TB) []byte {
	l := make(layers, 2)
	hard := l.file(1, "hard")
	many := dir()
	for i := range 60 {
		many.Children = append(many.Children, Dirent{strings.Repeat("m", i+1), hard})
	}
	xattrs := l.file(0, "x")
	xattrs.Xattrs = []Xattr{{"user.a", []byte("b")}, {"security.c", []byte("d")}}
	sparse := l.file(0, strings.Repeat("s", 1024))
	sparse.Extents[0].Offset, sparse.SizeBytes = 512, 4096
	late := l.file(1, strings.Repeat("l", 700))
	late.MtimeNsec = 9
	root := dir(Dirent{"many", many}, Dirent{"x", xattrs}, Dirent{"sparse", sparse}, Dirent{"late", late}, Dirent{"link", symlink("to")},
		Dirent{"longlink", symlink(strings.Repeat("l", 600))}, Dirent{"null", &Inode{Mode: ModeChar, DevMajor: 1, DevMinor: 3}})
	return mustWrite(t, root, l.devices())
}

// explore reads all that a reader can.
func explore(b []byte) error {
	img, err := Open(b)
	if err != nil {
		return err
	}
	var paths []string
	err = img.Walk(func(path string, in *Info) error {
		if len(paths) < 20 {
			paths = append(paths, path)
		}
		return nil
	})
	// What is checked is what is read.
	if checkErr := img.Check(); (checkErr == nil) != (err == nil) {
		err = fmt.Errorf("walk says %v, check says %v", err, checkErr)
	}
	out, redirectErr := Redirect(b, func(e Extent) bool { return e.Offset == 0 })
	if redirectErr == nil {
		openErr := sameButDevices(img, out)
		if err != nil || openErr != nil {
			err = fmt.Errorf("check says %v, redirected all the same, and check says %v", err, openErr)
		}
	}
	for _, path := range paths {
		_, lookupErr := img.Lookup(path)
		err = errors.Join(err, lookupErr)
	}
	return err
}

// fixChecksum makes a broken superblock look sound, so that what is behind the
// checksum is tested too.
func fixChecksum(b []byte) {
	if len(b) >= superOffset+blockSize {
		le.PutUint32(b[superOffset+sbChecksum:], superChecksum(b[superOffset:][:blockSize]))
	}
}

func TestCorruptBytes(t *testing.T) {
	good := small(t)
	if err := explore(good); err != nil {
		t.Fatal(err)
	}
	noticed := 0
	for i := range good {
		for _, flip := range []byte{0xff, 0x01, 0x80} {
			b := bytes.Clone(good)
			b[i] ^= flip
			err := explore(b)
			if i >= superOffset && i < superOffset+blockSize && err == nil {
				t.Errorf("byte %d of the superblock's block was flipped unnoticed", i)
			}
			fixChecksum(b)
			if err := explore(b); err != nil {
				noticed++
				var c *CorruptError
				if !errors.As(err, &c) {
					t.Errorf("byte %d: error %v is not a CorruptError", i, err)
				}
			}
		}
	}
	t.Logf("%d of %d flips noticed", noticed, 3*len(good))
}

func TestCutImage(t *testing.T) {
	good := small(t)
	for n := range len(good) {
		if err := explore(good[:n]); err == nil {
			t.Fatalf("image cut at %d of %d bytes was accepted", n, len(good))
		}
	}
}

// patch changes the inode at path in a copy of the image.
func patch(t *testing.T, b []byte, path string, change func(img, inode []byte)) []byte {
	t.Helper()
	b = bytes.Clone(b)
	img, err := Open(b)
	if err != nil {
		t.Fatal(err)
	}
	in, err := img.Lookup(path)
	if err != nil {
		t.Fatal(err)
	}
	change(b, b[in.pos:])
	return b
}

func TestHostileImages(t *testing.T) {
	good := small(t)
	cases := []struct {
		name, path string
		change     func(img, inode []byte)
		want       string
	}{
		{"negative size", "late", func(_, in []byte) { le.PutUint64(in[inSize:], 1<<63) }, "out of range"},
		{"file behind its device", "x", func(_, in []byte) {
			le.PutUint32(in[inSize:], 1<<31)
			le.PutUint32(in[inU:], chunkIndexes|chunkBitsMax)
		}, "leaves device"},
		{"chunk behind its device", "sparse", func(_, in []byte) { le.PutUint32(in[compactSize+chunkUnit+4:], 1<<20) }, "leaves device"},
		{"plain file", "x", func(_, in []byte) { in[inFormat] &^= 7 << 1 }, "plain layout"},
		{"4-byte chunks", "sparse", func(_, in []byte) { le.PutUint16(in[inU:], 0) }, "chunk format"},
		{"chunk count", "sparse", func(_, in []byte) { le.PutUint32(in[inSize:], 1<<31) }, "chunks are too many"},
		{"chunk device", "sparse", func(_, in []byte) { in[compactSize+chunkUnit+2] = 9 }, "leaves device"},
		{"shared xattrs", "x", func(_, in []byte) { in[compactSize+4] = 1 }, "shared"},
		{"xattr length", "x", func(_, in []byte) { in[compactSize+xattrHeaderSize] = 200 }, "leaves its inode"},
		{"huge directory", "many", func(_, in []byte) { le.PutUint32(in[inSize:], 1<<31) }, "structures overlap"},
		{"directory of no entries", "many", func(_, in []byte) { le.PutUint32(in[inSize:], 0) }, "without . or .."},
		{"long link", "longlink", func(_, in []byte) { le.PutUint32(in[inSize:], 1<<31) }, "link of"},
		{"compressed", "x", func(_, in []byte) { in[0] = 3 << 1 }, "not supported"},
		{"one link, many names", "many/m", func(_, in []byte) { le.PutUint16(in[inCompactNlink:], 1) }, "more names than links"},
		{"other type", "null", func(_, in []byte) { le.PutUint16(in[inMode:], ModeFifo) }, "not of file type"},
		{"no type", "null", func(_, in []byte) { le.PutUint16(in[inMode:], 0) }, "no file type"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			err := explore(patch(t, good, c.path, c.change))
			var corrupt *CorruptError
			if !errors.As(err, &corrupt) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// TestDirectoryLoop has a directory's entry point back at the root.
func TestDirectoryLoop(t *testing.T) {
	b := mustWrite(t, dir(Dirent{"a", dir(Dirent{"b", dir()})}), nil)
	rootNID := uint64(le.Uint16(b[superOffset+sbRootNID:]))
	b = patch(t, b, "a", func(_, in []byte) { le.PutUint64(in[compactSize+2*direntSize:], rootNID) })
	fixChecksum(b)
	if err := explore(b); err == nil || !strings.Contains(err.Error(), "more names than links") {
		t.Errorf("got %v", err)
	}
}

func FuzzOpen(f *testing.F) {
	f.Add(small(f))
	f.Add(mustWrite(f, dir(), nil))
	root, l := randomTree(newRand(1), 30)
	f.Add(mustWrite(f, root, l.devices()))
	f.Fuzz(func(t *testing.T, b []byte) {
		fixChecksum(b)
		if err := explore(b); err != nil && strings.Contains(err.Error(), "check says") {
			t.Error(err)
		}
	})
}
